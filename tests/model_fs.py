"""A file system that forgets: what is durable is remembered at each fsync, and a power cut goes back to that.

The real files (on tmpfs) are what running processes see. `note` is told of each durable operation before it
happens. At a power cut every file and every name becomes what fsync's rules allow: what was not fsynced is
there, or not, or in part (a prefix, or with holes of zeros); a rename happened or did not.
"""

import os
import re
import shutil

_BESIDE = re.compile(r"^[0-9a-f]{16}-.*\.mirror")
"""The mirror beside a target's files. The one beside the database waits for no disk."""
BLOCK = 64
"""Bytes that reach the disk together: far less than a page, so that small files have holes, too."""


def own_care(name):
    """SQLite's files: what it committed stays, it calls fsync itself. Locks hold nothing."""
    return name.startswith("state.sqlite") or name.endswith("lock") or bool(_BESIDE.search(name))


class FileModel:
    """Durable content by inode (tmpfs does not use one twice)."""

    def __init__(self):
        self.data = {}
        self.names = {}

    def note(self, operation, path):
        if operation == "fsync":
            try:
                self._remember(path)
            except FileNotFoundError:
                return

    def _remember(self, path):
        status = os.stat(path)
        if os.path.isdir(path):
            self.names[status.st_ino] = _listed(path)
        else:
            with open(path, "rb") as file:
                self.data[status.st_ino] = file.read()

    def durable(self, folder, name):
        """What of the file is on the disk for sure; b"" when its name, or that of a directory above, is not."""
        above, entry = folder, self.names.get(os.stat(folder).st_ino, {}).get(name)
        while os.path.basename(above) != "sites":
            above, last = os.path.split(above)
            found = self.names.get(os.stat(above).st_ino, {}).get(last)
            if found is None or found[0] != os.stat(os.path.join(above, last)).st_ino:
                return b""
        if entry is None or entry[0] != os.stat(os.path.join(folder, name)).st_ino:
            return b""  # another file was renamed over the one that is on disk
        return self.data.get(entry[0], b"")

    def sync_tree(self, root):
        """All below `root` is durable as it is."""
        for folder, _, files in os.walk(root):
            self._remember(folder)
            for name in files:
                if not own_care(name) and not os.path.islink(os.path.join(folder, name)):
                    self._remember(os.path.join(folder, name))

    def power_cut(self, root, rng):
        """Forgets; every process that used `root` must be dead already."""
        self._cut_folder(root, rng)
        self.sync_tree(root)

    def _cut_folder(self, path, rng):
        old, now = self.names.get(os.stat(path).st_ino, {}), _listed(path)
        for name in sorted(now.keys() | old.keys()):
            if own_care(name):
                continue
            full, new, was = os.path.join(path, name), now.get(name), old.get(name)
            if os.path.islink(full):  # to the mirror beside a target's files
                continue
            if new is not None and new[1]:
                self._cut_subfolder(path, full, new, old, rng)
            elif new == was:
                self._cut_file(full, new[0], rng)
            elif was is not None and was[1]:
                continue  # a directory that was renamed: looked at under its new name
            else:
                self._cut_name(full, new, was, rng)

    def _cut_subfolder(self, path, full, new, old, rng):
        if new not in old.values():  # its name was never made durable
            if rng.random() < 0.5:
                shutil.rmtree(full)
                return
        elif old.get(os.path.basename(full)) != new and rng.random() < 0.5:
            before = next(name for name, entry in old.items() if entry == new)
            os.rename(full, os.path.join(path, before))
            full = os.path.join(path, before)
        self._cut_folder(full, rng)

    def _cut_name(self, full, new, was, rng):
        picked = rng.choice([new, was])
        if picked is None:
            if new is not None:
                os.unlink(full)
        elif picked == new:
            self._cut_file(full, new[0], rng)
        else:
            content = self.data.get(was[0], b"")
            if new is not None:
                os.unlink(full)
            _put(full, content)

    def _cut_file(self, full, inode, rng):
        with open(full, "rb") as file:
            now = file.read()
        durable = self.data.get(inode, b"")
        if now != durable:
            left = _some_of(durable, now, rng)
            if left != now:
                _put(full, left)


def _listed(path):
    with os.scandir(path) as entries:
        return {e.name: (e.inode(), e.is_dir(follow_symlinks=False)) for e in entries}


def _put(path, content):
    with open(path, "wb") as file:
        file.write(content)


def _some_of(durable, now, rng):
    """What may be on the disk of a file that was changed from `durable` to `now`."""
    chance = rng.random()
    if chance < 0.25:
        return now
    if chance < 0.45:
        return durable
    if not now.startswith(durable):
        return now if rng.random() < 0.5 else durable
    end = rng.randint(len(durable), len(now))
    if chance < 0.7:
        return now[:end]
    left = bytearray(now if rng.random() < 0.5 else now[:end])
    at = len(durable)
    while at < len(left):
        stop = min(len(left), at - at % BLOCK + BLOCK)
        if rng.random() < 0.4:
            left[at:stop] = bytes(stop - at)
        at = stop
    return bytes(left)
