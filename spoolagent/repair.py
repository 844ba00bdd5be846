"""`fsck --repair`: repairs what can be repaired without inventing anything, and never changes a byte of a segment.

It runs beside writers and agents: side files of streams that were shipped here are touched under the shippers' lock,
`.end` files are written as any agent writes them, blobs move by rename. Two repairs at once are refused.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator

from spoolagent.errors import FormatError, NewerFormat, UsageError
from spoolagent.format import durable, live
from spoolagent.format.ends import DeathWatch
from spoolagent.format.facts import stream_facts
from spoolagent.format.layout import (
    AGENT_DIR,
    LIVE_FILE,
    StreamKey,
    blob_dir,
    iter_streams,
    list_names,
    run_dir,
    site_dir,
    stream_dir,
)
from spoolagent.format.spool import open_spool
from spoolagent.fsck import fsck
from spoolagent.repair_aside import DAY_S, Repair, lock_of
from spoolagent.repair_blobs import move_damaged, remove_orphans
from spoolagent.repair_home import repair_home
from spoolagent.repair_stream import StreamRepair

__all__ = ["Repair", "repair"]

_PID = re.compile(r"\.tmp-.*-(\d+)-[0-9a-f]{8}")
_BLOB = re.compile(r"[0-9a-f]{64}")


def repair(
    spool: str,
    *,
    site: str | None = None,
    orphans: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Repair]:
    """Repairs the spool, optionally one site of it only, and yields what was done and what cannot be.

    `orphans`: also removes blobs that no event names. Raises UsageError when there is no spool, NewerFormat,
    Locked when another repair is at work, OSError when the file system refuses.
    """
    spool = os.path.abspath(spool)
    if not os.path.isdir(os.path.join(spool, "sites")):
        open_spool(spool)  # says what is wrong with the place
    with lock_of(spool, "repair.lock", 0.0):
        yield from repair_home(spool)
        home = _home(spool)
        yield from _Leftovers(spool, home or "", site).run()
        watch = DeathWatch()
        for key in iter_streams(spool, site):
            yield from StreamRepair(spool, key, home=home or "", watch=watch).run()
        if home is not None:
            yield from _after_reading(spool, site, home=home, orphans=orphans, progress=progress)


def _home(spool: str) -> str | None:
    """The uuid of the spool; "" when it is not known, None when there is no spool.json at all."""
    try:
        return open_spool(spool).uuid
    except NewerFormat:
        raise
    except FormatError:
        return ""
    except UsageError:
        return None


def _after_reading(
    spool: str, site: str | None, *, home: str, orphans: bool, progress: Callable[[int], None]
) -> Iterator[Repair]:
    """What only a look at every byte shows: bad lines, damaged blobs, orphans."""
    unnamed: dict[str, list[tuple[str, int]]] = {}

    def on_orphan(name: str, sha256: str, size: int) -> None:
        unnamed.setdefault(name, []).append((sha256, size))

    paths, uncertain = set(), set()
    for finding in fsck(spool, site=site, progress=progress, on_orphan=on_orphan if orphans else None):
        paths.add(finding.path)
        parts = os.path.relpath(finding.path, spool).split(os.sep)
        if parts[0] == "sites" and len(parts) > 1 and finding.severity != "info":
            uncertain.add(parts[1])
    for key in iter_streams(spool, site):
        folder = stream_dir(spool, key) + os.sep
        if any(path.startswith(folder) for path in paths):
            yield from StreamRepair(spool, key, home=home, watch=DeathWatch()).keep_bad_bytes()
    for path in sorted(paths):
        parts = os.path.relpath(path, spool).split(os.sep)
        if parts[0] == "sites" and parts[2:3] == ["blobs"] and _BLOB.fullmatch(parts[-1]):
            yield from move_damaged(spool, parts[1], path)
    for name, found in unnamed.items():
        if name not in uncertain:
            yield from remove_orphans(spool, name, found)
            continue
        yield Repair(
            path=blob_dir(spool, name),
            message=f"{len(found)} blobs that no event at hand names were left: the site has damage",
            done=False,
            next_step="a destroyed event may have named them; repair what can be, then try again",
        )


class _Leftovers:
    """Temporary files that nobody will finish: a day old, or of a site of this spool where no writer lives."""

    def __init__(self, spool: str, home: str, site: str | None) -> None:
        self._spool, self._home, self._site = spool, home, site
        self._count: dict[str, int] = {}

    def run(self) -> Iterator[Repair]:
        """Removes them."""
        for name in list_names(os.path.join(self._spool, "sites")) if self._site is None else [self._site]:
            keys = list(iter_streams(self._spool, name))
            quiet = self._is_quiet(keys)
            runs = [
                run_dir(self._spool, name, run)
                for run in list_names(os.path.join(site_dir(self._spool, name), "runs"))
            ]
            streams = [stream_dir(self._spool, key) for key in keys]
            blobs = [folder for folder, _, _ in os.walk(blob_dir(self._spool, name))]
            for folder in [site_dir(self._spool, name), *runs, *streams, *blobs]:
                self._clean(folder, quiet=quiet)
        if self._site is None:
            self._clean(self._spool, quiet=False)
            for folder, below, _ in os.walk(os.path.join(self._spool, AGENT_DIR)):
                below[:] = [name for name in below if name != "quarantine"]
                self._clean(folder, quiet=False)
        for folder, count in self._count.items():
            yield Repair(path=folder, message=f"{count} leftover temporary files were removed")

    def _is_quiet(self, keys: list[StreamKey]) -> bool:
        """True when every writer of the site was one of this spool's, and is dead."""
        for key in keys:
            facts = stream_facts(self._spool, key, home=self._home)
            if facts.header is None or facts.header.spool != self._home or facts.alive is not False:
                return False
        return bool(keys)

    def _clean(self, folder: str, *, quiet: bool) -> None:
        try:
            entries = [e for e in os.scandir(folder) if e.name.startswith(".tmp-")]
        except FileNotFoundError:
            return
        for entry in entries:
            try:
                age_s = time.time() - entry.stat(follow_symlinks=False).st_mtime
                if age_s < DAY_S and not (quiet and not _is_in_use(entry)):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if live.is_locked(entry.path):
                        continue  # a stream that is just being made
                    shutil.rmtree(entry.path)
                else:
                    durable.unlink(entry.path)
            except FileNotFoundError:
                continue
            self._count[folder] = self._count.get(folder, 0) + 1


def _is_in_use(entry: "os.DirEntry[str]") -> bool:
    """True when the process that a temporary name tells may still be writing."""
    if entry.is_dir(follow_symlinks=False):
        is_locked = live.is_locked(entry.path)  # None: nobody can tell
        return is_locked is not False or not os.path.exists(os.path.join(entry.path, LIVE_FILE))
    pid = _PID.fullmatch(entry.name)
    return pid is None or os.path.exists(f"/proc/{pid[1]}")
