"""One segment file, as its writer sees it: header, appended lines, seal, and the hash of all its bytes."""

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from spoolagent.format import durable
from spoolagent.format.layout import FILE_MODE, FORMAT, segment_name
from spoolagent.format.lines import encode_line, has_valid_crc

_HASH_EVERY = 1 << 16
"""Bytes that may wait for the running hash: few enough to be hashed in some 50 us."""

if TYPE_CHECKING:
    import hashlib


class Origin(NamedTuple):
    """What every header of a stream repeats."""

    spool: str
    run: str
    writer: str
    role: str
    attempt: int
    launch: str | None


def _sha256() -> "hashlib._Hash":
    import hashlib  # at the first segment: loading OpenSSL costs 5 ms, which an import of a writer need not

    return hashlib.sha256()


class Segment:
    """An open segment that only this object changes.

    `append` either writes the whole line or leaves the file as it was (`broken` is set when even that failed:
    then nothing more goes into this file). All methods raise OSError.
    """

    __slots__ = (
        "_is_hash_unknown",
        "_sha",
        "_unhashed",
        "_unhashed_from",
        "broken",
        "created_ns",
        "fd",
        "first_seq",
        "path",
        "size",
    )

    def __init__(
        self, stream: str, first_seq: int, origin: Origin, prev: str | None, created_ns: int
    ) -> None:
        self.path = os.path.join(stream, segment_name(first_seq))
        self.first_seq = first_seq
        self.created_ns = created_ns
        self.size = 0
        self.broken = False
        self._sha = _sha256()
        self._is_hash_unknown = False
        self._unhashed: list[bytes] = []
        self._unhashed_from = 0
        durable.fault_point("create", self.path)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self.fd = os.open(self.path, flags, FILE_MODE)
        try:
            header = encode_line(_header(first_seq, origin, prev, created_ns))
            if not self._takes_over(len(header)):
                self.append(header)
        except BaseException:
            os.close(self.fd)
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
        except BaseException:
            # Also a KeyboardInterrupt lands here, perhaps after the write: the file's length tells.
            if self._reconcile(len(line)):
                self._count(line)
            raise
        self.size += written
        self._unhashed.append(line)
        if self.size - self._unhashed_from > _HASH_EVERY:
            self._hash()

    def _count(self, line: bytes) -> None:
        self.size += len(line)
        self._unhashed.append(line)

    def _reconcile(self, length: int) -> bool:
        """True when a line of `length` bytes was wholly written all the same; else cuts the file back."""
        try:
            actual = os.fstat(self.fd).st_size
            if actual == self.size + length:
                return True
            if actual != self.size:
                durable.truncate(self.fd, self.size, self.path)
        except OSError:
            self.broken = True
        return False

    def undo(self, size: int) -> None:
        """Cuts back to `size`, a line's end: for a line whose fsync failed. The file takes no more lines."""
        self.broken = True
        durable.truncate(self.fd, size, self.path)
        self.size = size

    def _hash(self) -> None:
        if not self._is_hash_unknown:
            self._is_hash_unknown = (
                True  # and so it stays when a KeyboardInterrupt lands between the next two
            )
            self._sha.update(b"".join(self._unhashed))
            self._unhashed.clear()
            self._is_hash_unknown = False
        else:
            self._unhashed.clear()
        self._unhashed_from = self.size

    def sha256(self) -> str:
        """The hash of all bytes in the file."""
        if not self.broken:
            self._hash()
        if not self.broken and not self._is_hash_unknown:
            return self._sha.hexdigest()
        with open(self.path, "rb") as file:  # what is in it is only known by reading
            digest = _sha256()
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
