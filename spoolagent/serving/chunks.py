"""Chunks as units of delivery: merging, and what a chunk is worth in bytes and events."""

from spoolagent.contract import Batch
from spoolagent.format.events import Event, check
from spoolagent.format.reader import Chunk


def merge(first: Chunk | None, second: Chunk) -> Chunk:
    """Two chunks of one stream that were read one after the other, as one."""
    if first is None or first.is_empty:
        return second
    return Chunk(
        first.events + second.events,
        first.lost + second.lost,
        first.bad + second.bad,
        second.position,
        second.state,
        second.note,
    )


def split_valid(events: list[Event]) -> tuple[list[Event], list[tuple[int, str, str]]]:
    """Events that have the shape their type promises, and (seq, type, reason) of those that do not."""
    good, dead = [], []
    for event in events:
        reason = check(event)
        if reason is None:
            good.append(event)
        else:
            dead.append((event.seq, str(event.type)[:100], reason))
    return good, dead


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """A refused batch in two, to find the event that is refused."""
    middle = len(batch.events) // 2
    return (
        Batch(stream=batch.stream, events=batch.events[:middle], blobs=batch.blobs, again=batch.again),
        Batch(stream=batch.stream, events=batch.events[middle:], blobs=batch.blobs, again=batch.again),
    )
