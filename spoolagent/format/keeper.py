"""The one background thread of a training process: fsync, LIVE renewal, rotation by age, off the calling thread.

Everything that it looks after has `tick()`, called once a second. It starts with the first stream, is a daemon,
and does not exist in a forked child until the child logs.
"""

import os
import threading
import weakref
from typing import Protocol

TICK_S = 1.0


class Kept(Protocol):
    """What the keeper looks after."""

    def tick(self) -> None:
        """Does what is due; must not raise."""

    def after_fork(self) -> None:
        """In a forked child: forget what belongs to the parent."""


_kept: "weakref.WeakSet[Kept]" = weakref.WeakSet()
_known: "weakref.WeakSet[Kept]" = weakref.WeakSet()
"""What is to be told of a fork, looked after or not (yet)."""
_thread: threading.Thread | None = None
_guard = threading.Lock()
_stop = threading.Event()


def know(item: Kept) -> None:
    """Calls `item.after_fork()` in each forked child, as long as it is referenced elsewhere."""
    _known.add(item)


def keep(item: Kept) -> None:
    """Calls `item.tick()` each second from now on, as long as it is referenced elsewhere."""
    global _thread  # noqa: PLW0603 - one thread for the process is the point
    with _guard:
        _kept.add(item)
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(target=_run, args=(_stop,), name="spoolagent-keeper", daemon=True)
            try:
                _thread.start()
            except RuntimeError:  # at interpreter shutdown no thread starts; the final close does its work
                _thread = None


def release(item: Kept) -> None:
    """Stops the ticks of `item`."""
    with _guard:
        _kept.discard(item)


def _run(stop: threading.Event) -> None:
    while not stop.wait(TICK_S):
        with _guard:
            items = list(_kept)
        for item in items:
            item.tick()


def _after_fork_in_child() -> None:
    global _thread, _guard, _stop
    _guard, _stop, _thread = threading.Lock(), threading.Event(), None
    _kept.clear()
    for item in list(_known):
        item.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
