"""What a shipper needs of the place that it ships to. `directory.py` is the one to copy from.

Any method may raise Unreachable: the target (or its disk) cannot take this now; the shipper comes back later.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from spoolagent.errors import SpoolError, Unreachable, UsageError
from spoolagent.format.layout import StreamKey


class OffsetRefused(SpoolError):
    """The target's segment has not the length that the shipper thinks: another one was at work. Compare again."""


class InTheWay(SpoolError):
    """At the target lies something else, a symbolic link perhaps, where a file or directory of the stream should."""


class Away(Unreachable):
    """The whole target is away (not mounted, renamed). When it comes back, everything is compared again."""


class AnotherSpool(UsageError):
    """The target's place holds another spool than before."""


class StreamCopy(Protocol):
    """The target's copy of one stream, locked against other shippers."""

    def segments(self) -> dict[int, int]:
        """Length in bytes of each segment, by the seq of its first event."""
        ...

    def read(self, first_seq: int, offset: int, size: int) -> bytes:
        """Bytes of a segment; fewer than `size` at its end."""
        ...

    def sha256(self, first_seq: int, length: int) -> str:
        """Hash of the first `length` bytes of a segment."""
        ...

    def append(self, first_seq: int, offset: int, data: bytes) -> None:
        """Appends to a segment, made when it is missing. OffsetRefused unless `offset` is its length."""
        ...

    def cut(self, first_seq: int, length: int) -> None:
        """Cuts a segment back to `length`: what followed is no valid line."""
        ...

    def side(self, name: str) -> bytes:
        """The content of a `.end` or `pruned.json`, b"" when there is none."""
        ...

    def put_side(self, name: str, data: bytes) -> None:
        """Puts a `.end` or `pruned.json`, durably."""
        ...

    def sync(self) -> None:
        """Returns when all that was appended, or read to compare it, is durable."""
        ...


class Target(Protocol):
    """A spool that streams are shipped to."""

    identity: str
    """Names the place, for the shipper's memory of it."""

    def open(self, known: str | None) -> str:
        """Checks the target, makes it a spool when none is `known` there, and returns its uuid.

        `known` is the uuid of earlier. Away when it is not there, AnotherSpool when another one is there.
        """
        ...

    def asked(self) -> list[StreamKey]:
        """The streams that a reader at the target found damaged: each is to be compared in full."""
        ...

    def answer(self, key: StreamKey) -> None:
        """The stream was compared in full, and mended where that was possible."""
        ...

    def asked_blobs(self) -> list[tuple[str, str]]:
        """The (site, SHA-256) of blobs that a reader at the target found damaged or missing."""
        ...

    def answer_blob(self, site: str, sha256: str) -> None:
        """The blob was shipped again, or the source's own is no better."""
        ...

    def stream(self, key: StreamKey) -> AbstractContextManager[StreamCopy]:
        """Locks and gives the copy of a stream. Locked while another shipper is at it, NameRefused."""
        ...

    def has_blob(self, site: str, sha256: str, size: int) -> bool:
        """True when a blob of that name and length is there, and durable."""
        ...

    def put_blob(self, site: str, sha256: str, chunks: Iterable[bytes]) -> None:
        """Publishes a blob, durably. FormatError when the chunks do not have that hash: nothing is kept."""
        ...
