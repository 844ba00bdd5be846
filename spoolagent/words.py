"""What our own modules log, as lines for people: without a handler, Python prints it bare."""

import logging
import time
from collections.abc import Callable

_PAUSE_S = 600.0
_MOST = 1000


class Words(logging.Handler):
    """Hands each message to `tell`."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises: a line for people is worth no worker."""
        try:
            self._tell(record.getMessage())
        except Exception:  # noqa: BLE001 - as logging's own handlers do
            self.handleError(record)


def tell_words(tell: Callable[[str], None]) -> None:
    """From now on, what modules of ours log goes to `tell`. For the main function of a process."""
    logging.getLogger("spoolagent").addHandler(Words(tell))


class Seldom:
    """Passes a line on unless it was passed on in the last ten minutes: each worker has the same to say, at each start."""

    def __init__(self, tell: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._clock = tell, clock
        self._told: dict[str, float] = {}

    def __call__(self, line: str) -> None:
        """Tells it, or not."""
        now = self._clock()
        if now - self._told.get(line, now - _PAUSE_S) < _PAUSE_S:
            return
        if len(self._told) >= _MOST:
            self._told.clear()
        self._told[line] = now
        self._tell(line)
