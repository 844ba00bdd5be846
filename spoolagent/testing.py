"""Public helpers for tests of receivers, writers and agents."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from spoolagent.contract import Batch, Outcome, RunEnd, State, Stream
from spoolagent.format.durable import Fault, set_fault
from spoolagent.format.events import Event
from spoolagent.format.layout import StreamKey

__all__ = ["Fault", "MemoryReceiver", "MemoryState", "make_batch", "make_stream", "set_fault"]


class MemoryState:
    """A `State` in memory that commits and rolls back as the worker's does."""

    def __init__(self) -> None:
        self._committed: dict[str, bytes] = {}
        self._now: dict[str, bytes] = {}

    def get(self, key: str) -> Any:
        """The value under `key`, or None."""
        return orjson.loads(self._now[key]) if key in self._now else None

    def put(self, key: str, value: Any) -> None:
        """Stores `value` until `commit` or `rollback`."""
        self._now[key] = orjson.dumps(value)

    def delete(self, key: str) -> None:
        """Removes `key`; a missing one is fine."""
        self._now.pop(key, None)

    def scan(self, prefix: str) -> Iterator[tuple[str, Any]]:
        """Keys that begin with `prefix`, in order, with their values."""
        for key in sorted(k for k in self._now if k.startswith(prefix)):
            yield key, self.get(key)

    def checkpoint(self) -> None:
        """Commits what was put so far."""
        self.commit()

    def commit(self) -> None:
        """What the worker does after `deliver` returned."""
        self._committed = dict(self._now)

    def rollback(self) -> None:
        """What the worker does when `deliver` raised, and what a crash does."""
        self._now = dict(self._committed)


class MemoryReceiver:
    """A receiver that keeps events in memory, by stream and seq; the reference for the contract tests.

    `before` is called with each batch before it is applied, `after` when it has been: raise from them to play
    a tracker that fails, or one that fails after it applied.
    """

    identity = "memory:"

    def __init__(
        self,
        before: Callable[[Batch], None] | None = None,
        after: Callable[[Batch], None] | None = None,
    ) -> None:
        self.before = before
        self.after = after
        self.events: dict[StreamKey, dict[int, Event]] = {}
        self.order: list[tuple[StreamKey, int]] = []
        """First applications, in order."""
        self.statuses: dict[tuple[str, str], RunEnd] = {}
        self.repeats = 0
        """How many events came that were already there."""
        self.is_open = False

    def open(self, state: State) -> None:
        """Nothing to check."""
        del state
        self.is_open = True

    def deliver(self, batch: Batch) -> Outcome:
        """Applies the batch; an event that is there already is counted as a repeat and compared."""
        if self.before is not None:
            self.before(batch)
        held = self.events.setdefault(batch.stream.key, {})
        for event in batch.events:
            if event.seq not in held:
                held[event.seq] = copy.deepcopy(event)
                self.order.append((batch.stream.key, event.seq))
                continue
            self.repeats += 1
            if held[event.seq] != event:
                raise AssertionError(f"{batch.stream.key} seq {event.seq} came with another content")
        if self.after is not None:
            self.after(batch)
        return Outcome()

    def set_status(self, end: RunEnd) -> None:
        """Keeps the last state of each run."""
        self.statuses[end.site, end.run] = end

    def close(self) -> None:
        """Nothing to release."""
        self.is_open = False


def make_stream(
    site: str = "site-1", run: str = "run-1", writer: str = "w-1", *, role: str = "main", attempt: int = 1
) -> Stream:
    """A stream for a receiver's test."""
    key = StreamKey(site, run, writer)
    return Stream(key=key, role=role, attempt=attempt, created_ns=1_700_000_000_000_000_000, spool="0" * 32)


def make_batch(
    stream: Stream,
    *events: tuple[str, dict[str, Any]],
    first_seq: int = 1,
    blobs: str = "",
    again: bool = False,
) -> Batch:
    """A batch of `(type, fields)` events, a millisecond apart, the first with `first_seq`."""
    made = []
    for seq, (kind, fields) in enumerate(events, first_seq):
        time_ns = stream.created_ns + seq * 1_000_000
        made.append(Event(seq, time_ns, kind, {"seq": seq, "time": time_ns, "type": kind, **fields}))
    return Batch(stream=stream, events=tuple(made), blobs=blobs, again=again)
