"""What one session knows about one stream that it ships: where to, how far, and what it waits for."""

import time
from collections.abc import Callable

from spoolagent.errors import FormatError, NewerFormat
from spoolagent.format import live
from spoolagent.format.header import read_header
from spoolagent.format.layout import StreamKey
from spoolagent.shipping.blobs import BlobCarrier
from spoolagent.shipping.report import Tally
from spoolagent.shipping.source import not_plain, reading, signature, stream_path
from spoolagent.shipping.target import Target
from spoolagent.shipping.walk import Forked, Memory, State, Walk

_MAX_FORKS = 8


class StreamCarrier:
    """Carries one stream. `carry` may be called at any time, from one thread.

    `home` is the uuid of the spool: bytes that are missing in a stream born elsewhere are waited for longer.
    Raises SourceError when the stream does not lie in the spool.
    """

    def __init__(
        self,
        spool: str,
        home: str,
        key: StreamKey,
        target: Target,
        blobs: BlobCarrier,
        tally: Tally,
        *,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.key = key
        self.path = stream_path(spool, key)
        self.state: State = "current"
        self.failures = 0
        """Times in a row that it could not be carried."""
        self.retry_at = 0.0
        self.in_full = False
        """True until it was compared in full: a seal does not vouch for what stands before it."""
        self._home, self._target, self._blobs, self._tally = home, target, blobs, tally
        self._patience_s, self._clock = patience_s, clock
        self._is_home: bool | None = None
        self._writer = key.writer
        self.seen: object = None
        """What the directory looked like when it was carried last; None: not yet, or `forget`."""
        self._odd: set[str] = set()
        self._memory = Memory()

    def forget(self) -> None:
        """Compares everything again the next time: the target was away, or another shipper was at work."""
        self.seen = None
        self._writer = self.key.writer
        self._memory = Memory()
        self.state = "current"

    def compare_in_full(self) -> None:
        """Compares every byte the next time, those before a seal, too."""
        self.forget()
        self.in_full = True

    def is_home(self) -> bool:
        """True when the stream was born in this spool. Raises SourceError."""
        if self._is_home is None:
            try:
                with reading(self.path):
                    header = read_header(self.path)
            except NewerFormat:
                return False
            if header is None:
                return live.is_there(self.path)
            self._is_home = header.spool == self._home
        return self._is_home

    def is_quiet(self) -> bool:
        """True when nothing has changed since it was carried last. Raises SourceError."""
        return self.seen is not None and self.seen == signature(self.path)

    def carry(self, should_stop: Callable[[], bool] = lambda: False) -> State:
        """Ships what can be shipped now, or one turn of it. Raises what the target raises, SourceError, and FormatError."""
        seen = signature(self.path)
        if self.state not in ("waiting", "more") and self.seen == seen:
            return self.state
        self._tell_of(not_plain(self.path))
        for _ in range(_MAX_FORKS):
            try:
                with self._target.stream(self.key._replace(writer=self._writer)) as copy:
                    walk = Walk(
                        self.path,
                        self.key,
                        copy,
                        self._memory,
                        self._blobs,
                        self._tally,
                        in_full=self.in_full,
                    )
                    self.state = walk.run(self._is_over, should_stop)
                break
            except Forked as fork:
                self._fork(fork.mark)
        else:
            raise FormatError(
                f"{self.path} differs from {_MAX_FORKS} forks at the target; look at them there"
            )
        self.seen = seen
        if self.state != "waiting":
            self._tally.clear("waiting", self.key)
            self._memory.suspects.clear()
        return self.state

    def _tell_of(self, odd: set[str]) -> None:
        for path in odd:
            self._tally.note("error", self.key, f"{path} is not a plain file: it is not shipped", about=path)
        for path in self._odd - odd:
            self._tally.clear("error", self.key, about=path)
        self._odd = odd

    def _fork(self, mark: str) -> None:
        old, self._writer = self._writer, f"{self._writer}.fork-{mark}"
        self._memory = Memory()
        text = f"{self.key} differs from the target's {old}: neither was changed, it ships to {self._writer} there"
        self._tally.note("fork", self.key, text)

    def _is_over(self, what: tuple[object, ...], why: str, elsewhere_s: float) -> bool:
        """True when `what` has been waited for long enough; a stream born elsewhere waits `elsewhere_s` at least."""
        now = self._clock()
        patience_s = self._patience_s if self.is_home() else max(self._patience_s, elsewhere_s)
        if now - self._memory.suspects.setdefault(what, now) >= patience_s:
            return True
        self._tally.note("waiting", self.key, f"{self.path}: {why}; it is read again for {patience_s:g} s")
        return False
