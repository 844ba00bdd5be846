"""Dead letters that somebody marked for a retry: found in the database, read again from the spool.

The worker's own readers are not touched. A dead letter is delivered as a batch of one event, and named in the
database before, as any batch is; after a crash it comes first.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from spoolagent.contract import Stream
from spoolagent.format.ends import read_pruned
from spoolagent.format.events import Event
from spoolagent.format.layout import StreamKey, list_segments, stream_dir
from spoolagent.format.reader import Position, StreamReader
from spoolagent.serving.changes import Letter, StreamFacts
from spoolagent.serving.store import FIRST, Store
from spoolagent.settings import Selection

_MOST = 256
"""Dead letters looked up at a time."""
_MOST_BYTES = 4 << 20
"""Of their events, about: what is beyond waits for the next page."""
_GONE = "it can no longer be retried: "


@dataclass(kw_only=True, slots=True, eq=False)
class Retry:
    """One dead letter on its way to the receiver."""

    letter: Letter
    event: Event | None
    """None when its bytes are no longer there, `why` says how that came."""
    why: str = ""
    named: bool = False
    """It may have been delivered: nothing of its run, and nothing at all after an outage, may come before it."""
    again: bool = False
    retry_at: float = 0.0
    note: str = ""

    @property
    def key(self) -> StreamKey:
        """Its stream."""
        return self.letter.key


class Retries:
    """The worker's list of retries."""

    def __init__(self, spool: str, store: Store, selection: Selection) -> None:
        self._spool, self._store, self._selection = spool, store, selection
        self._waiting: list[Retry] = []
        self._unread = store.retrying()
        """Named before a crash, whatever the selection is now."""
        self._look = True
        self._after = FIRST

    def sweep(self) -> None:
        """The next `due` looks into the database again."""
        self._look = True

    @property
    def is_done(self) -> bool:
        """True when nothing is marked, as far as is known."""
        return not (self._waiting or self._unread or self._look)

    def named(self) -> list[Retry]:
        """Those that were named and are not resolved. Raises OSError when one cannot be read."""
        while self._unread:
            retry = _Reader(self._spool)(self._unread[0])
            retry.named = retry.again = True
            self._waiting.append(retry)
            del self._unread[0]
        return [retry for retry in self._waiting if retry.named]

    def due(self) -> list[Retry]:
        """Those that wait, with the next page of what was marked.

        Nothing that was resolved may still be uncommitted when this is called.
        """
        if self._look and all(retry.named for retry in self._waiting):
            self._waiting += self._page()
        return list(self._waiting)

    def _page(self) -> list[Retry]:
        found = self._store.marked(_MOST, self._after)
        fresh, size, last = [], 0, None
        read = _Reader(self._spool)
        for letter in found:
            if size > _MOST_BYTES:
                break
            last = letter
            if not self._selection.takes_run(letter.key.site, letter.key.run):
                continue
            try:
                retry = read(letter)
            except OSError:
                continue  # its disk is away: it stays marked, and the next sweep asks again
            if retry.event is not None and not self._selection.takes_event(retry.event):
                continue
            size += 0 if retry.event is None else len(orjson.dumps(retry.event.data))
            fresh.append(retry)
        self._look = len(found) == _MOST or (last is not None and last is not found[-1])
        self._after = FIRST
        if self._look and last is not None:
            self._after = (last.key.site, last.key.run, last.key.writer, last.seq)
        return fresh

    def resolved(self, retry: Retry) -> None:
        """It was delivered, or refused again."""
        self._waiting.remove(retry)

    def next_due_s(self, now: float) -> float | None:
        """Seconds until one wants to be tried again; None when none waits."""
        if not self._waiting:
            return 0.0 if self._look else None
        return max(0.0, min(retry.retry_at for retry in self._waiting) - now)

    def stream(self, retry: Retry) -> Stream:
        """What a receiver is told of its stream."""
        cursor = self._store.cursor(retry.key)
        facts = StreamFacts() if cursor is None else cursor.facts
        return Stream(
            key=retry.key,
            role=facts.role,
            attempt=facts.attempt,
            created_ns=facts.created_ns,
            spool=facts.spool,
        )


class _Reader:
    """Reads letters that come by stream and rising seq."""

    def __init__(self, spool: str) -> None:
        self._spool = spool
        self._key: StreamKey | None = None

    def __call__(self, letter: Letter) -> Retry:
        """The retry of a letter. Raises OSError."""
        if letter.key != self._key:
            self._key, self._find = letter.key, finder(self._spool, letter.key)
        event = self._find(letter.seq)
        return Retry(letter=letter, event=event, why="" if event is not None else _gone(self._spool, letter))


def finder(spool: str, key: StreamKey) -> Callable[[int], Event | None]:
    """A function from rising seqs of one stream to their events; None for bytes that are not there. Raises OSError."""
    folder = stream_dir(spool, key)
    segments = list_segments(folder)
    reader: StreamReader | None = None
    held: dict[int, Event] = {}

    def find(seq: int) -> Event | None:
        nonlocal reader
        first = max((first for first in segments if first <= seq), default=None)
        if first is None:
            return None
        if reader is None or reader.position.next_seq > seq or reader.position.segment < first:
            if seq in held:
                return held[seq]
            start = Position(first, 0, first)
            reader = StreamReader(folder, start, at_home=False, patience_s=0.0, patience_elsewhere_s=0.0)
        while reader.position.next_seq <= seq:
            chunk = reader.read(1 << 16, until_seq=seq)
            held.clear()
            held.update((event.seq, event) for event in chunk.events)
            if chunk.state != "more":
                break
        return held.get(seq)

    return find


def why_missing(spool: str, key: StreamKey, seq: int) -> str:
    """Why an event that was there once is not there any more."""
    folder = stream_dir(spool, key)
    pruned = read_pruned(folder)
    if pruned is not None and pruned.through >= seq:
        return "it was pruned from the spool"
    if not os.path.isdir(folder):
        return "its stream is no longer in the spool"
    return "its bytes are damaged or missing"


def _gone(spool: str, letter: Letter) -> str:
    before = letter.reason
    if before.startswith(_GONE):
        before = before.rpartition("; refused before: ")[2]
    return f"{_GONE}{why_missing(spool, letter.key, letter.seq)}; refused before: {before}"
