"""Reading streams for people: everything that is there now, without patience, without a cursor."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from spoolagent.format.events import Event
from spoolagent.format.layout import StreamKey, list_segments, stream_dir
from spoolagent.format.reader import START, Chunk, Position, StreamReader


def chunks(spool: str, key: StreamKey, position: Position = START) -> Iterator[Chunk]:
    """What the stream holds from `position` on, damage given up at once. Raises OSError."""
    reader = StreamReader(
        stream_dir(spool, key), position, at_home=False, patience_s=0.0, patience_elsewhere_s=0.0
    )
    while True:
        chunk = reader.read()
        yield chunk
        if chunk.state != "more":
            return


def last_events(spool: str, key: StreamKey, count: int) -> list[Event]:
    """The last `count` events of a stream; reads only the segments that hold them."""
    segments = list_segments(stream_dir(spool, key))
    for first in reversed(segments):
        found: deque[Event] = deque(maxlen=count)
        for chunk in chunks(spool, key, Position(first, 0, first)):
            found.extend(chunk.events)
        if len(found) == count or first == segments[0]:
            return list(found)
    return []


def one_event(spool: str, key: StreamKey, seq: int) -> Event | None:
    """The event with this seq, or None."""
    before = [first for first in list_segments(stream_dir(spool, key)) if first <= seq]
    if not before:
        return None
    for chunk in chunks(spool, key, Position(before[-1], 0, before[-1])):
        for event in chunk.events:
            if event.seq == seq:
                return event
            if event.seq > seq:
                return None
    return None


@dataclass(kw_only=True)
class Tally:
    """What a stream holds, counted."""

    types: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    """seqs whose bytes are missing or damaged."""
    bad_bytes: int = 0
    dropped: int = 0
    """Events that the writer could not write, as its gap events say."""
    metrics: dict[str, tuple[int | None, object]] = field(default_factory=dict)
    """Metric -> (step, value) as last logged; the first 1000 names."""
    note: str = ""

    def add(self, chunk: Chunk) -> None:
        """Counts one chunk."""
        for event in chunk.events:
            self.types[str(event.type)] += 1
            if event.type == "metrics":
                self._keep(event)
            elif event.type == "gap" and type(event.data.get("dropped")) is int:
                self.dropped += event.data["dropped"]
        self.lost += sum(lost.last - lost.first + 1 for lost in chunk.lost)
        self.bad_bytes += sum(len(bad.data) for bad in chunk.bad)
        self.note = chunk.note or self.note

    def _keep(self, event: Event) -> None:
        values = event.data.get("metrics")
        if not isinstance(values, dict):
            return
        for name, value in values.items():
            if name in self.metrics or len(self.metrics) < 1000:
                self.metrics[name] = (event.step, value)


def tally(spool: str, key: StreamKey) -> Tally:
    """Reads a stream through and counts. Raises OSError."""
    found = Tally()
    for chunk in chunks(spool, key):
        found.add(chunk)
    return found
