"""One segment file, as its writer sees it: header, appended lines, seal, and the hash of all its bytes."""

import contextlib
import errno
import os
import threading
from typing import Any, NamedTuple

from spoolagent.errors import FormatError
from spoolagent.format import durable
from spoolagent.format.hashes import new_sha256
from spoolagent.format.layout import FILE_MODE, FORMAT, segment_name
from spoolagent.format.lines import MAX_LINE, decode_line, encode_line, has_valid_crc

_HASH_EVERY = 1 << 16
"""Bytes that may wait for the running hash: few enough to be hashed in some 50 us."""


class Origin(NamedTuple):
    """What every header of a stream repeats."""

    spool: str
    run: str
    writer: str
    role: str
    attempt: int
    launch: str | None


class Segment:
    """An open segment that only this object changes.

    `append` either writes the whole line or leaves the file as it was (`broken` is set when even that failed:
    then nothing more goes into this file). A whole line is never taken back. All methods raise OSError.
    """

    __slots__ = (
        "_doubted",
        "_file",
        "_is_hash_unknown",
        "_sha",
        "_sync_lock",
        "_synced",
        "_unhashed",
        "_unhashed_from",
        "broken",
        "created_ns",
        "fd",
        "first_seq",
        "path",
        "prev",
        "size",
    )

    def __init__(
        self, stream: str, first_seq: int, origin: Origin, prev: str | None, created_ns: int
    ) -> None:
        self.path = os.path.join(stream, segment_name(first_seq))
        self.first_seq = first_seq
        self.prev = prev
        """The hash of the segment before this one."""
        self.created_ns = created_ns
        self.size = 0
        self.broken = False
        self._sync_lock = threading.RLock()  # a signal handler may flush in the middle of it
        self._synced = 0
        """Bytes that are on disk for sure."""
        self._doubted = False
        """An fsync has failed: from now on it says nothing about the bytes that it was called for."""
        self._sha = new_sha256()
        self._is_hash_unknown = False
        self._unhashed: list[bytes] = []
        self._unhashed_from = 0
        self._file = -1, -1
        durable.fault_point("create", self.path)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self.fd = durable.out_of_the_way(os.open(self.path, flags, FILE_MODE))
        try:
            status = os.fstat(self.fd)
            self._file = status.st_dev, status.st_ino
            header = encode_line(_header(first_seq, origin, prev, created_ns))
            if not self._takes_over(len(header)):
                self.append(header)
        except BaseException:
            self.close()
            if self.size == 0:
                with contextlib.suppress(OSError):
                    durable.discard(self.path)  # nothing is in it
            raise

    def _takes_over(self, length: int) -> bool:
        """Goes on with what an interrupted try left under this name. True when its header is whole; else it is cut.

        It can only be this writer's own: nobody else writes into its directory, and no event has that seq yet.
        """
        found = os.pread(self.fd, length + 1, 0)
        header = found[:length]
        is_whole = header.endswith(b"\n") and has_valid_crc(header[:-1])
        if len(found) > length or (found and not is_whole):
            durable.truncate(self.fd, length if is_whole else 0, self.path)
        if is_whole:
            self._count(header)  # it differs in `created` only, and may have been read already
        return is_whole

    def append(self, line: bytes) -> None:
        """Writes one whole line or nothing."""
        try:
            written = durable.append(self.fd, line)
            if written != len(line):
                _short_write(self.path)
        except BaseException as error:
            # Also a KeyboardInterrupt lands here, perhaps after the write: the file's length tells. A second one may
            # land in the middle of this: then nothing more goes into this file, and `read_last_seq` tells.
            self.broken = True
            is_whole = self._reconcile(len(line), error)
            if is_whole:
                self._count(line)
            if is_whole and isinstance(error, OSError):
                return  # a reader may have it already
            raise
        self.size += written
        self._unhashed.append(line)
        if self.size - self._unhashed_from > _HASH_EVERY:
            self._hash()

    def _count(self, line: bytes) -> None:
        self.size += len(line)
        self._unhashed.append(line)

    def _reconcile(self, length: int, error: BaseException) -> bool:
        """True when a line of `length` bytes was wholly written all the same; else cuts the file back.

        `broken` is False afterwards, when the file holds for sure what it should.
        """
        if not self.check_descriptor():
            return not isinstance(
                error, OSError
            )  # a refused write wrote nothing, an interrupted one may have
        actual = os.fstat(self.fd).st_size
        is_whole = actual == self.size + length
        if not is_whole and actual != self.size:
            with contextlib.suppress(OSError):
                durable.truncate(self.fd, self.size, self.path)
                actual = self.size
        self.broken = not is_whole and actual != self.size
        return is_whole

    def read_last_seq(self) -> int:
        """The seq of the last whole event in the file, read from there; 0 when it holds none, or is gone."""
        fd = -1
        try:
            if not self.check_descriptor():  # our own needs no new one: there may be none left
                fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            used = self.fd if fd < 0 else fd
            size = os.fstat(used).st_size
            start = max(0, size - 2 * MAX_LINE)
            lines = os.pread(used, size - start, start).split(b"\n")[:-1]
        except FileNotFoundError:
            return 0
        finally:
            if fd >= 0:
                os.close(fd)
        for line in reversed(lines):
            with contextlib.suppress(FormatError):
                found = decode_line(line).get("seq")
                return found if type(found) is int else 0
        return 0

    def check_descriptor(self) -> bool:
        """False when somebody closed our descriptor: it may be anybody's by now, and is neither used nor closed."""
        if self.fd < 0:
            return False
        try:
            found = os.fstat(self.fd)
        except OSError:
            found = None
        if found is not None and (found.st_dev, found.st_ino) == self._file:
            return True
        self.fd = -1
        self.broken = True
        return False

    def is_removed(self) -> bool:
        """True when somebody removed the open file: what is written to it, nobody will see."""
        return self.fd >= 0 and os.fstat(self.fd).st_nlink == 0

    def close(self) -> None:
        """Frees the descriptor; a write that comes after that is refused instead of going to whoever gets its number."""
        fd, self.fd = self.fd if self.check_descriptor() else -1, -1
        if fd >= 0:
            os.close(fd)

    def sync(self, last: bytes = b"") -> None:
        """Makes what was appended so far durable. `last`: the bytes at the end, where they are at hand.

        Once an fsync has failed the kernel takes the bytes for written, and only a new write makes it try again: so
        they are written a second time, to the same place. They stay, whatever happens: a reader may have them.
        """
        with self._sync_lock:  # the keeper may be here, too, and the kernel tells of an error once
            if self.fd < 0:
                durable.fsync_path(self.path)
                return
            size = self.size
            if not self._doubted:
                try:
                    durable.fsync_fd(self.fd, self.path)
                except OSError:
                    self._doubted = True
            if self._doubted:
                size = self.size
                self._write_again(size, last)
            self._synced = size
            self._doubted = self._doubted and size != self.size  # what came meanwhile is as doubtful

    def _write_again(self, size: int, last: bytes) -> None:
        count = size - self._synced
        front = max(0, count - len(last))
        data = os.pread(self.fd, front, self._synced) + last[len(last) - (count - front) :]
        lines = data.split(b"\n")
        if len(data) != count or lines.pop() or not all(map(has_valid_crc, lines)):
            raise OSError(errno.EIO, "what was written cannot be read back", self.path)
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)  # ours writes to the end only
        try:
            if not os.path.samestat(os.fstat(fd), os.fstat(self.fd)):
                raise OSError(errno.ESTALE, "another file has its name", self.path)
            os.lseek(fd, self._synced, os.SEEK_SET)
            durable.write_all(fd, data, self.path)
            durable.fsync_fd(fd, self.path)
        finally:
            os.close(fd)

    def _hash(self) -> None:
        if not self._is_hash_unknown:
            # And so it stays when a KeyboardInterrupt lands in the middle.
            self._is_hash_unknown = True
            self._sha.update(b"".join(self._unhashed))
            self._unhashed.clear()
            self._is_hash_unknown = False
        else:
            self._unhashed.clear()
        self._unhashed_from = self.size

    def sha256(self) -> str:
        """The hash of all bytes in the file. Raises OSError when they must be read, and cannot be."""
        if not self.broken:
            self._hash()
        if self._is_hash_unknown:
            return self._sha256_read()
        if self.broken:  # what is in it is only known by reading
            with contextlib.suppress(OSError):  # unreadable: then what should be in it has to do
                return self._sha256_read()
            self._hash()
        return self._sha.hexdigest()

    def _sha256_read(self) -> str:
        digest = new_sha256()
        with open(self.path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()

    def seal(self, last_seq: int, *, closed: bool) -> None:
        """Writes the seal."""
        self.append(encode_line({"seal": last_seq, "sha256": self.sha256(), "closed": closed}))


def _short_write(path: str) -> None:
    raise OSError(errno.ENOSPC, "no space for a whole line", path)


def _header(first_seq: int, origin: Origin, prev: str | None, created_ns: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "spool": origin.spool,
        "run": origin.run,
        "writer": origin.writer,
        "role": origin.role,
        "attempt": origin.attempt,
        "first": first_seq,
        "prev": prev,
        "created": created_ns,
        "launch": origin.launch,
    }
