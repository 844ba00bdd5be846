"""What a signal asks of a process that delivers or ships: to finish what it has begun, commit, and end.

SIGTERM, SIGINT (Ctrl-C) and SIGHUP (the terminal was closed) mean the same. There is nothing to read anew at a
SIGHUP: who changes the configuration restarts the service, which loses nothing.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LOOK_S = 0.5
OF_A_TERMINAL = (signal.SIGINT, signal.SIGHUP)
"""What a terminal sends to all processes that it started, not only to the one in charge."""


class Stop(threading.Event):
    """Set when the process is to end; `number` is the signal that asked for it, 0 when none did."""

    number = 0

    def __init__(self) -> None:
        super().__init__()
        # A handler runs in the middle of the main thread's own wait() or set(): their lock must let it in.
        self._cond = threading.Condition(threading.RLock())

    def wait(self, timeout: float | None = None) -> bool:
        """As `threading.Event.wait`; also when it was set by a handler just before that began to listen."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = _LOOK_S if deadline is None else min(_LOOK_S, deadline - time.monotonic())
            if left <= 0:
                break
            super().wait(left)
        return self.is_set()

    @property
    def exit_code(self) -> int:
        """What a shell says of a command that a signal has ended: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + (self.number or signal.SIGTERM)


@contextlib.contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """Signals set `stop` for as long as this lasts (in the main thread only; under `nohup` all but SIGHUP)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, _: object) -> None:
        stop.number = stop.number or number
        stop.set()

    numbers = [n for n in _NUMBERS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    old = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def not_for_children() -> Iterator[None]:
    """A process that is started meanwhile gets no signal of the terminal's before it calls `leave_to_parent`."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, OF_A_TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def leave_to_parent() -> None:
    """In such a process: the terminal's signals are its parent's to answer."""
    for number in OF_A_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_A_TERMINAL)
