"""Writes the `.end` of streams whose writers are dead, in the spool where they were born."""

import contextlib
import os
import time
from collections.abc import Callable

from spoolagent.errors import FormatError, SpoolError
from spoolagent.format import live
from spoolagent.format.ends import DeathWatch, end_dead_stream, is_closed
from spoolagent.format.header import read_header
from spoolagent.format.layout import StreamKey, list_segments, segment_name, stream_dir
from spoolagent.format.listing import Listing, RunListing
from spoolagent.format.marks import Marks
from spoolagent.format.spool import Spool, open_spool

_LOOK_AGAIN_S = 30.0
"""How often streams that got a `.end` are looked at: a writer that was suspended may have gone on."""


class Undertaker:
    """Every agent of a spool runs one; two at once do no harm.

    A stream that its writer closed, or that was born elsewhere, is not looked at again. What it remembers of the
    streams takes a fixed amount of memory; at most a stream is looked at in vain. `clock` is monotonic, in s.
    """

    def __init__(
        self,
        spool: Spool,
        *,
        stale_after_s: float,
        report: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._stale_after_s, self._report = clock, stale_after_s, report
        self._begin(spool)

    def _begin(self, spool: Spool) -> None:
        self._spool = spool
        self._watch = DeathWatch(stale_after_s=self._stale_after_s, clock=self._clock)
        self._listing = Listing(spool.path)
        self._done = Marks()
        """Streams that need no further look."""
        self._ended = Marks()
        """Streams with a `.end`; and, with the last segment and its length, as they were when they got it."""
        self._look_again_at = 0.0
        self._complained: set[str] = set()

    def sweep(self) -> None:
        """Looks once at every stream that is still open and was born here."""
        with contextlib.suppress(SpoolError):  # away, or damaged: what is there is looked at as before
            spool = open_spool(self._spool.path)
            if spool.uuid != self._spool.uuid:  # somebody put another one in its place
                self._begin(spool)
        again = self._clock() >= self._look_again_at
        if again:
            self._look_again_at = self._clock() + _LOOK_AGAIN_S
        for run in self._listing.runs():
            if run is not None:
                self._look_at_run(run, again=again)
        for folder, why in self._listing.unreadable.items():
            self._complain(folder, why)

    def _look_at_run(self, run: RunListing, *, again: bool) -> None:
        is_done = True
        for writer in run.writers:
            key = StreamKey(run.site, run.run, writer)
            if self._done.has(key):
                continue
            is_ended = self._ended.has(key)
            if again or not is_ended:
                self._look(key, is_ended=is_ended)
            is_done = is_done and self._done.has(key)
        if is_done:
            self._listing.settled(run)

    def _look(self, key: StreamKey, *, is_ended: bool) -> None:
        stream = stream_dir(self._spool.path, key)
        try:
            if not is_ended and self._watch.is_surely_alive(stream):
                return
            size = _size(stream)
            if is_ended and self._ended.has(key, *size):
                return
            self._ended.discard(key)
            header = read_header(stream)
            if header is None and not live.is_there(stream):
                return
            if header is not None and header.spool != self._spool.uuid:
                self._done.add(key)
            elif end_dead_stream(stream, self._watch):
                if is_closed(os.path.join(stream, segment_name(size[0]))):
                    self._done.add(key)
                else:
                    self._ended.add(key)
                    self._ended.add(key, *size)
        except (OSError, FormatError) as error:
            self._complain(stream, f"cannot tell whether its writer lives: {error}")

    def _complain(self, place: str, why: str) -> None:
        if place not in self._complained:
            self._complained.add(place)
            self._report(f"{place}: {why}")


def _size(stream: str) -> tuple[int, int]:
    """The last segment and its length; (0, 0) when there is none."""
    segments = list_segments(stream)
    return (
        (segments[-1], os.stat(os.path.join(stream, segment_name(segments[-1]))).st_size)
        if segments
        else (0, 0)
    )
