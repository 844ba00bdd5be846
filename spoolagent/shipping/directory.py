"""The target that is a directory: a disk, or a mounted share.

Each piece of work opens the directory anew, checks that it still is the spool that was opened, and then names
everything through that descriptor. So a disk that is pulled out, or a directory that is renamed away, is noticed,
and nothing is ever made where it used to be.
"""

import contextlib
import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator

from filelock import FileLock, Timeout

from spoolagent import again
from spoolagent.errors import FormatError, Locked, SpoolError, Unreachable, UsageError
from spoolagent.format import durable, layout
from spoolagent.format.layout import StreamKey
from spoolagent.format.names import check_case, check_name
from spoolagent.format.plain import is_plain, open_plain
from spoolagent.format.spool import create_spool, open_spool
from spoolagent.shipping.target import AnotherSpool, Away, InTheWay, OffsetRefused

_CHUNK = 1 << 20
_NAMED_MOST = 100_000
_LOCK_WAIT_S = 1.0
_LEFTOVER_S = 86_400.0
_NEXT_STEPS = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "raise its quota, or make room there",
    errno.EROFS: "mount it so that it can be written",
    errno.EACCES: "check its owner and mode",
    errno.EPERM: "check its owner and mode",
    errno.ENOTDIR: "remove what is in a directory's place",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
"""What an operator can do, by what the target said."""
_ANEW = "(to begin anew in an empty directory, remove the file for it in the spool's .agent/ship)"


class DirectoryTarget:
    """A target in the directory `path`."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.identity = f"directory:{self.path}"
        self._uuid = ""
        self._named: set[tuple[StreamKey, int]] = set()
        """Segments whose names are known to be on disk, in this session."""

    def open(self, known: str | None) -> str:
        """See `Target.open`. UsageError when the place cannot be a spool."""
        self._named.clear()
        if known is None:
            self._uuid = create_spool(self.path).uuid
        else:
            self._uuid = known
        with self._root() as root:
            for name in ("locks", "incoming"):
                durable.make_dirs(os.path.join(root, layout.AGENT_DIR, name))
            _remove_leftovers(os.path.join(root, layout.AGENT_DIR, "incoming"), _LEFTOVER_S)
        return self._uuid

    @contextlib.contextmanager
    def _root(self) -> Iterator[str]:
        """A path of the target that stays the same directory while it is used. Turns OSError into Unreachable.

        No message shows that path.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            what = _NEXT_STEPS.get(error.errno or 0, f"mount or connect it {_ANEW}")
            raise Away(
                f"the target {self.path} is away ({error.strerror}): {what}; nothing is lost meanwhile"
            ) from error
        root = f"/proc/self/fd/{fd}"
        try:
            self._check(root)
            yield root
        except OSError as error:
            name = self._shown(error.filename or root, root)
            what = _NEXT_STEPS.get(error.errno or 0, "look at its disk")
            raise Unreachable(
                f"the target {self.path} cannot be written: {error.strerror or error} ({name}): {what};"
                " ship goes on where it stopped"
            ) from error
        except SpoolError as error:
            error.args = (self._shown(str(error), root),)
            raise
        finally:
            os.close(fd)

    def _shown(self, text: str, root: str) -> str:
        """The text with the path that the user gave, not the one by which the target is held."""
        return re.sub(re.escape(root) + r"(?!\d)", lambda _: self.path, text)

    def _check(self, root: str) -> None:
        if not os.path.exists(os.path.join(root, layout.SPOOL_FILE)):
            raise Away(
                f"the target {self.path} is away: it was a spool and now holds no spool.json; mount or connect it {_ANEW}"
            )
        try:
            found = open_spool(root).uuid
        except UsageError as error:
            raise Away(str(error)) from error
        if found != self._uuid:
            raise AnotherSpool(
                f"the target {self.path} is another spool now ({found}, before {self._uuid}): give the right directory,"
                " or remove the file for it in the spool's .agent/ship to ship everything there, too"
            )

    def asked(self) -> list[StreamKey]:
        """See `Target.asked`."""
        with self._root() as root:
            return list(again.asked(root))

    def answer(self, key: StreamKey) -> None:
        """See `Target.answer`."""
        with self._root() as root:
            again.answer(root, key)

    def asked_blobs(self) -> list[tuple[str, str]]:
        """See `Target.asked_blobs`."""
        with self._root() as root:
            return list(again.asked_blobs(root))

    def answer_blob(self, site: str, sha256: str) -> None:
        """See `Target.answer_blob`."""
        with self._root() as root:
            again.answer_blob(root, site, sha256)

    @contextlib.contextmanager
    def stream(self, key: StreamKey) -> Iterator["DirectoryCopy"]:
        """See `Target.stream`. One lock file serves several runs, so that their number stays bounded."""
        for kind, name in zip(("site", "run", "writer"), key, strict=True):
            check_name(kind, name)
        stripe = hashlib.sha256(f"{key.site}/{key.run}".encode()).hexdigest()[:2]
        with self._root() as root:
            _check_links(root, layout.stream_dir(root, key))
            self._check_case(root, key)
            lock = FileLock(
                os.path.join(root, layout.AGENT_DIR, "locks", f"ship-{stripe}.lock"), mode=layout.FILE_MODE
            )
            try:
                lock.acquire(timeout=_LOCK_WAIT_S)
            except Timeout:
                raise Locked(f"another shipper is at {key} in {self.path}; it is tried again") from None
            copy = DirectoryCopy(layout.stream_dir(root, key), key, self._named)
            try:
                yield copy
            finally:
                copy.close()
                lock.release()

    @staticmethod
    def _check_case(root: str, key: StreamKey) -> None:
        folder = layout.stream_dir(root, key)
        if os.path.isdir(folder):
            return
        runs = os.path.join(layout.site_dir(root, key.site), "runs")
        check_case("site", os.path.join(root, "sites"), key.site)
        check_case("run", runs, key.run)
        check_case("writer", os.path.join(runs, key.run), key.writer)

    def has_blob(self, site: str, sha256: str, size: int) -> bool:
        """See `Target.has_blob`. A blob appears only when it is whole; who finds it damaged later asks for it."""
        with self._root() as root:
            try:
                found = os.stat(layout.blob_path(root, site, sha256), follow_symlinks=False)
            except FileNotFoundError:
                return False
            return stat.S_ISREG(found.st_mode) and found.st_size == size

    def put_blob(self, site: str, sha256: str, chunks: Iterable[bytes]) -> None:
        """See `Target.put_blob`."""
        check_name("site", site)
        with self._root() as root:
            check_case("site", os.path.join(root, "sites"), site)
            final = layout.blob_path(root, site, sha256)
            _check_links(root, os.path.dirname(final))
            digest = hashlib.sha256()
            with durable.temporary(os.path.join(root, layout.AGENT_DIR, "incoming", sha256)) as (fd, temp):
                for chunk in chunks:
                    digest.update(chunk)
                    durable.write_all(fd, chunk, temp)
                if digest.hexdigest() != sha256:
                    raise FormatError("its content does not match its name")
                durable.make_dirs(os.path.dirname(final))
                durable.publish(fd, temp, final)


class DirectoryCopy:
    """See `StreamCopy`. Holds at most one file open."""

    def __init__(self, folder: str, key: StreamKey, named: set[tuple[StreamKey, int]]) -> None:
        self._folder, self._key, self._named = folder, key, named
        self._fd = -1
        self._first = 0
        self._dirty = False
        self._compared: set[int] = set()
        self._new_names: set[tuple[StreamKey, int]] = set()

    def segments(self) -> dict[int, int]:
        """See `StreamCopy.segments`."""
        return {first: os.stat(self._path(first)).st_size for first in layout.list_segments(self._folder)}

    def read(self, first_seq: int, offset: int, size: int) -> bytes:
        """See `StreamCopy.read`. What is compared may come from a shipper that died before its fsync."""
        self._compared.add(first_seq)
        fd = os.open(self._path(first_seq), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return os.pread(fd, size, offset)
        finally:
            os.close(fd)

    def sha256(self, first_seq: int, length: int) -> str:
        """See `StreamCopy.sha256`."""
        digest = hashlib.sha256()
        at = 0
        while at < length and (data := self.read(first_seq, at, min(_CHUNK, length - at))):
            digest.update(data)
            at += len(data)
        return digest.hexdigest()

    def append(self, first_seq: int, offset: int, data: bytes) -> None:
        """See `StreamCopy.append`."""
        self._open(first_seq)
        path = self._path(first_seq)
        length = os.fstat(self._fd).st_size
        if length != offset:
            raise OffsetRefused(f"{path} has {length} bytes, not {offset}; it is compared again")
        os.lseek(self._fd, offset, os.SEEK_SET)
        self._dirty = True
        durable.write_all(self._fd, data, path)

    def cut(self, first_seq: int, length: int) -> None:
        """See `StreamCopy.cut`."""
        self._open(first_seq)
        self._dirty = True
        durable.truncate(self._fd, length, self._path(first_seq))

    def side(self, name: str) -> bytes:
        """See `StreamCopy.side`."""
        try:
            with open_plain(os.path.join(self._folder, name)) as file:
                return file.read(_CHUNK)
        except FileNotFoundError:
            return b""

    def put_side(self, name: str, data: bytes) -> None:
        """See `StreamCopy.put_side`."""
        self.sync()
        _check_plain(os.path.join(self._folder, name))
        durable.make_dirs(self._folder)
        _remove_leftovers(self._folder, 0.0)  # of a shipper that died here: we hold the lock
        durable.write_file(os.path.join(self._folder, name), data)

    def sync(self) -> None:
        """See `StreamCopy.sync`."""
        for first in self._compared:
            durable.fsync_path(self._path(first))
            self._new_names |= {(self._key, first)} - self._named
        self._compared.clear()
        if self._dirty:
            durable.fsync_fd(self._fd, self._path(self._first))
            self._dirty = False
        if self._new_names:
            durable.fsync_dir(self._folder)
            if len(self._named) >= _NAMED_MOST:
                self._named.clear()
            self._named |= self._new_names
            self._new_names.clear()

    def close(self) -> None:
        """Closes the open segment, whatever has become of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self, first_seq: int) -> None:
        if self._fd >= 0 and self._first == first_seq:
            return
        self.sync()
        self.close()
        path = self._path(first_seq)
        if (self._key, first_seq) not in self._named:
            durable.make_dirs(self._folder)
            durable.fault_point("create", path)
            self._new_names.add((self._key, first_seq))  # if it is there, who made it may have been killed
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(path, flags, layout.FILE_MODE)
        except OSError:
            _check_plain(path)
            raise
        self._first = first_seq
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            self.close()
            _check_plain(path)

    def _path(self, first_seq: int) -> str:
        return os.path.join(self._folder, layout.segment_name(first_seq))


def _check_links(root: str, folder: str) -> None:
    """Raises InTheWay when a directory between `root` and `folder` is a symbolic link: nothing is written through it."""
    place = root
    for name in os.path.relpath(folder, root).split(os.sep):
        place = os.path.join(place, name)
        if os.path.islink(place):
            raise InTheWay(
                f"{os.path.relpath(place, root)} is a symbolic link at the target: remove it there"
            )


def _check_plain(path: str) -> None:
    """Raises InTheWay when something else than a plain file is there."""
    if os.path.lexists(path) and not is_plain(path):
        raise InTheWay(f"{'/'.join(path.split(os.sep)[-4:])} is no plain file at the target: remove it there")


def _remove_leftovers(folder: str, older_than_s: float) -> None:
    """Temporary files of shippers that died."""
    with os.scandir(folder) as entries:
        found = [e.path for e in entries if e.name.startswith(".tmp-")]
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - os.stat(path).st_mtime >= older_than_s:
                durable.unlink(path)


def open_target(text: str) -> DirectoryTarget:
    """The target that the command line or the configuration names. Raises UsageError."""
    if "://" in text:
        scheme = text.partition("://")[0]
        raise UsageError(
            f"{text}: a target is a directory; this version cannot ship by {scheme}: mount it, or use a bundle"
        )
    if not text:
        raise UsageError("the target is empty: give a directory")
    return DirectoryTarget(text)
