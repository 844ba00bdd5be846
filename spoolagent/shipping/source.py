"""Reading the spool that is shipped, without ever leaving it: no symbolic link is followed, only plain files are read."""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator

from spoolagent.errors import SpoolError
from spoolagent.format import durable, layout
from spoolagent.format.layout import StreamKey

_CHUNK = 1 << 20


class SourceError(SpoolError):
    """Something in the spool that is shipped cannot be read. The rest goes on."""


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns OSError into SourceError, so that the source's troubles are not taken for the target's."""
    try:
        yield
    except OSError as error:
        raise SourceError(
            f"{error.filename or path}: {error.strerror or error}; it is tried again"
        ) from error


def confined(spool: str, path: str) -> None:
    """Raises SourceError when `path` leads out of the spool through a symbolic link."""
    root = os.path.realpath(spool)
    if not os.path.realpath(path).startswith(root + os.sep):
        raise SourceError(f"{path} leads out of the spool through a symbolic link: it is not shipped")


def open_plain(path: str) -> int:
    """A descriptor of the plain file `path`. Raises SourceError."""
    with reading(path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SourceError(f"{path} is not a plain file: it is not shipped")
    return fd


def chunks_of(path: str) -> Iterator[bytes]:
    """The content of a plain file, fsynced first. Raises SourceError."""
    fd = open_plain(path)
    try:
        with reading(path):
            durable.fsync_fd(fd, path)
        while True:
            with reading(path):
                data = os.read(fd, _CHUNK)
            if not data:
                return
            yield data
    finally:
        os.close(fd)


class SourceSegment:
    """One segment, open. What is read through it was fsynced before. Raises SourceError."""

    def __init__(self, stream: str, first_seq: int) -> None:
        self.path = os.path.join(stream, layout.segment_name(first_seq))
        self.first_seq = first_seq
        self._fd = open_plain(self.path)
        found = os.fstat(self._fd)
        self.size = found.st_size
        """Bytes when it was opened; later ones are left to the next time."""
        self.identity = (found.st_dev, found.st_ino)

    def sync(self) -> None:
        """What leaves the machine must be something that it cannot forget."""
        with reading(self.path):
            durable.fsync_fd(self._fd, self.path)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes at `offset`, fewer at the end."""
        with reading(self.path):
            return os.pread(self._fd, max(0, min(size, self.size - offset)), offset)

    def sha256(self, length: int) -> str:
        """Hash of the first `length` bytes."""
        digest, at = hashlib.sha256(), 0
        while at < length and (data := self.read(at, min(_CHUNK, length - at))):
            digest.update(data)
            at += len(data)
        return digest.hexdigest()

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


def read_side(stream: str, name: str) -> bytes:
    """The content of a `.end` or `pruned.json`, b"" when there is none (or it is huge, or not a plain file)."""
    path = os.path.join(stream, name)
    if not os.path.lexists(path):
        return b""
    return b"".join(chunks_of(path))[:_CHUNK]


def signature(stream: str) -> tuple[tuple[str, int, int, int], ...]:
    """What a look at the directory tells: changes whenever something that ships has changed."""
    found = []
    with reading(stream), os.scandir(stream) as entries:
        for entry in entries:
            if (
                entry.name.endswith((layout.SEGMENT_SUFFIX, layout.END_SUFFIX))
                or entry.name == layout.PRUNED_FILE
            ):
                status = entry.stat(follow_symlinks=False)
                found.append((entry.name, status.st_size, status.st_ino, status.st_mtime_ns))
    return tuple(sorted(found))


def not_plain(stream: str) -> set[str]:
    """Paths of what has the name of a file that ships, and is something else: it counts as missing. Raises SourceError."""
    with reading(stream), os.scandir(stream) as entries:
        return {
            entry.path
            for entry in entries
            if entry.name.endswith((layout.SEGMENT_SUFFIX, layout.END_SUFFIX, layout.PRUNED_FILE))
            and not entry.is_file(follow_symlinks=False)
        }


def iter_blobs(spool: str, site: str) -> Iterator[str]:
    """The hashes by which the blobs of a site are named."""
    folder = layout.blob_dir(spool, site)
    for two in _listed(folder):
        if len(two) == 2:
            yield from (
                name for name in _listed(os.path.join(folder, two)) if len(name) == 64 and name[:2] == two
            )


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def stream_path(spool: str, key: StreamKey) -> str:
    """Where a stream lies. Raises SourceError when that is outside of the spool."""
    path = layout.stream_dir(spool, key)
    confined(spool, path)
    return path
