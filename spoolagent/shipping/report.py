"""What a shipper says while it works, and what it has done in the end."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from spoolagent.format.layout import StreamKey

_KEPT = 1000

Kind = Literal["shipped", "ended", "fork", "longer", "waiting", "parked", "error", "away", "back"]


class Note(NamedTuple):
    """One thing worth a line. `shipped` comes once per stream and sweep; the others when they change."""

    kind: Kind
    stream: StreamKey | None
    text: str
    size_bytes: int = 0


Tell = Callable[[Note], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShipReport:
    """What one `ship` did. All that is counted as shipped was fsynced by the target."""

    streams: int = 0
    """Streams that were looked at."""
    complete: int = 0
    """Of these: ended, and shipped to their last byte."""
    shipped_bytes: int = 0
    shipped_lines: int = 0
    shipped_blobs: int = 0
    forks: tuple[str, ...] = ()
    longer: tuple[str, ...] = ()
    """Streams of which the target has more: its copy was kept."""
    parked: tuple[str, ...] = ()
    """Streams of a later format, shipped unread."""
    waiting: tuple[str, ...] = ()
    """What may not ship yet, and why (a bad line that may heal, a segment that is not complete)."""
    errors: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0, or 1 when something that could have been shipped was not."""
        return 1 if self.errors or self.waiting else 0


@dataclass(kw_only=True, slots=True)
class Tally:
    """The counts while they grow. Notes that repeat themselves are told once."""

    tell: Tell
    streams: set[StreamKey] = field(default_factory=set)
    shipped_bytes: int = 0
    shipped_lines: int = 0
    shipped_blobs: int = 0
    _now: dict[str, dict[str, Note]] = field(default_factory=dict)

    def note(self, kind: Kind, stream: StreamKey | None, text: str, *, about: str = "") -> None:
        """Tells a note, unless it was told about the same stream (or `about`) last time."""
        kept = self._now.setdefault(kind, {})
        name = about or str(stream)
        made = Note(kind, stream, text)
        if kept.get(name) == made:
            return
        if len(kept) < _KEPT or name in kept:  # bounded: a disk can refuse a great many files
            kept[name] = made
        self.tell(made)

    def clear(self, kind: Kind, stream: StreamKey | None, *, about: str = "") -> None:
        """What was noted is over."""
        self._now.get(kind, {}).pop(about or str(stream), None)

    def shipped(self, stream: StreamKey, size_bytes: int, lines: int) -> None:
        """Counts bytes that the target has made durable."""
        self.shipped_bytes += size_bytes
        self.shipped_lines += lines
        self.tell(Note("shipped", stream, f"{size_bytes} bytes, {lines} lines", size_bytes))

    def told_end(self, stream: StreamKey, reason: str) -> None:
        """A `.end` has arrived."""
        self.tell(Note("ended", stream, f"{stream} has ended: {reason}"))

    def _texts(self, kind: Kind) -> tuple[str, ...]:
        return tuple(note.text for note in self._now.get(kind, {}).values())

    def report(self, complete: int) -> ShipReport:
        """The counts so far."""
        return ShipReport(
            streams=len(self.streams),
            complete=complete,
            shipped_bytes=self.shipped_bytes,
            shipped_lines=self.shipped_lines,
            shipped_blobs=self.shipped_blobs,
            forks=self._texts("fork"),
            longer=self._texts("longer"),
            parked=self._texts("parked"),
            waiting=self._texts("waiting"),
            errors=self._texts("error"),
        )
