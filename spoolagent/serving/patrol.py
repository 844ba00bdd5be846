"""Rounds through all streams, a page at a time: the truth, where file-system events are only hints.

Where hints come, a round twice a minute finds what they missed; where none come, each sweep is a round. A stream
that rests is compared with its row in the database; only one that looks different is taken up by the worker.
"""

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from spoolagent.format.layout import SEGMENT_SUFFIX, StreamKey, end_name, segment_name, stream_dir
from spoolagent.format.listing import Listing, RunListing
from spoolagent.format.plain import open_plain
from spoolagent.format.spool import Spool
from spoolagent.serving.pool import Pool, RunKey
from spoolagent.serving.store import Cursor, Store, Which
from spoolagent.settings import Selection

SLOW_S = 30.0
"""How often streams that were killed, delivered and left alone are looked at (a suspended writer may wake), and
all others where hints come: so long does a lost hint delay an event at most."""
_PAGE = 1024
"""Directories looked at in a row; then hints are heard again."""
_STREAM = 8
"""A stream counts for as many of them."""
_REST = 4.0
"""How many times as long as a round the pause after it is, at least."""


class Watching(Protocol):
    """What the patrol asks of the hints (`spoolagent.watching.Watcher`)."""

    @property
    def sees_all(self) -> bool:
        """True when a change of any stream that is watched is hinted."""
        ...

    def watch(self, key: StreamKey) -> None:
        """From now on changes of this stream are hinted."""


class Found(NamedTuple):
    """A page of a round."""

    new: list[StreamKey]
    """Streams without a cursor, with which the worker has not begun."""
    changed: list[Cursor]
    """Streams that may have more than their cursors say."""
    runs: list[RunKey]
    """Runs whose state is to be derived again."""


class Patrol:
    """Goes round the spool's streams of `selection` that are not in `pool`.

    `is_quiet` tells of the cursor of an open stream whether its run may count as dead by now. `clock` is monotonic.
    """

    def __init__(
        self,
        spool: Spool,
        store: Store,
        pool: Pool,
        hints: Watching,
        *,
        selection: Selection,
        interval_s: float,
        is_quiet: Callable[[Cursor], bool],
        clock: Callable[[], float],
    ) -> None:
        self._spool, self._store, self._pool, self._hints = spool, store, pool, hints
        self._selection, self._interval_s = selection, interval_s
        self._is_quiet, self._clock = is_quiet, clock
        self._listing = Listing(spool.path)
        self._round: Iterator[int] | None = None
        """Adds to `_found`, and says how many directories it has looked at."""
        self._found = Found([], [], [])
        self._next_at = self._slow_at = clock()
        self._missed = False
        self.has_been_round = False
        """True once every stream has been looked at."""

    @property
    def unreadable(self) -> dict[str, str]:
        """Directories that could not be read, with the reason."""
        return self._listing.unreadable

    @property
    def is_under_way(self) -> bool:
        """True until the round is over."""
        return self._round is not None

    @property
    def is_done(self) -> bool:
        """True when a round is over, and all that was there could be seen."""
        return self.has_been_round and self._round is None and not self.unreadable

    def missed(self) -> None:
        """A hint was lost: a round begins with the next sweep, or again after the one that is under way."""
        self._missed = True

    def sweep(self) -> None:
        """Begins a round when one is due."""
        if self._round is not None:
            return
        now = self._clock()
        is_slow = now >= self._slow_at
        is_blind = not self._hints.sees_all or bool(self.unreadable)
        if is_slow or self._missed or (is_blind and now >= self._next_at):
            self._missed = False
            self._slow_at = now + SLOW_S if is_slow else self._slow_at
            which: Which = "all" if not self.has_been_round else "not closed" if is_slow else "open"
            self._round = self._go_round(which, began=now)

    def next(self) -> Found:
        """The next page of the round that is under way."""
        self._found, looked_at = Found([], [], []), 0
        while self._round is not None and looked_at < _PAGE:
            looked_at += next(self._round, 0)
        return self._found

    def changed(self, run: RunKey) -> list[Cursor]:
        """The open streams of one run that look different from their cursors."""
        return [
            cursor for cursor in self._store.cursors_of(*run, "open") if self._is_rested_and_changed(cursor)
        ]

    # -- one round -----------------------------------------------------------------------------------------

    def _go_round(self, which: Which, *, began: float) -> Iterator[int]:
        is_first = which == "all"
        # What goes on and what is new must not wait for a long history.
        yield from self._go_through("open" if is_first else which)
        yield from self._look_for_new()
        if is_first:
            yield from self._go_through(which)
        now = self._clock()
        self._next_at = now + max(self._interval_s, _REST * (now - began))
        self._round, self.has_been_round = None, True

    def _go_through(self, which: Which) -> Iterator[int]:
        """The streams that have a row."""
        after: RunKey = ("", "")
        while page := self._store.cursors(after, _PAGE // _STREAM, which):
            after = page[-1].key[:2]
            mine = [cursor for cursor in page if self._selection.takes_run(*cursor.key[:2])]
            self._found.changed.extend(cursor for cursor in mine if self._is_rested_and_changed(cursor))
            told = {c.key[:2] for c in mine if which == "all" or (not c.facts.end and self._is_quiet(c))}
            self._found.runs.extend(told)
            yield _STREAM * len(page)

    def _look_for_new(self) -> Iterator[int]:
        """The streams that have none."""
        for run in self._listing.runs():
            if run is None:
                yield 1
                continue
            new = self._new(run)
            self._found.new.extend(new)
            self._listing.settled(run)
            yield _STREAM * (1 + len(new))

    def _new(self, run: RunListing) -> list[StreamKey]:
        if not self._selection.takes_run(run.site, run.run):
            return []
        known = {cursor.key for cursor in self._store.cursors_of(run.site, run.run)}
        keys = (StreamKey(run.site, run.run, writer) for writer in run.writers)
        return [key for key in keys if is_stream(key) and key not in known and key not in self._pool]

    def _is_rested_and_changed(self, cursor: Cursor) -> bool:
        if cursor.facts.end == "closed" or cursor.key in self._pool:
            return False
        if not cursor.facts.end:
            self._hints.watch(cursor.key)
        return has_changed(self._spool.path, cursor)


def is_stream(key: StreamKey) -> bool:
    """False for a fork that a shipper kept beside its stream."""
    return ".fork-" not in key.writer


def has_changed(spool: str, cursor: Cursor) -> bool:
    """True unless the stream on disk ends just where its cursor stands, and in the same way."""
    segment, offset, _ = cursor.position
    folder = stream_dir(spool, cursor.key)
    try:
        names = os.listdir(folder)
        with open_plain(os.path.join(folder, segment_name(segment)), 0) as file:
            # Of an open file: a network file system must ask its server.
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return True
    last = max((name for name in names if name.endswith(SEGMENT_SUFFIX)), default="")
    is_ended = end_name(segment) in names
    return size != offset or last != segment_name(segment) or is_ended != (cursor.facts.end == "dead")
