"""The queue of durability "queued": bounded, with a thread that writes, for spools where even write() can block."""

import threading
from collections import deque
from collections.abc import Callable

MAX_EVENTS = 100_000
MAX_BYTES = 64 << 20


class WriteQueue:
    """A bounded queue and its thread, for spools where even write() can block."""

    def __init__(self, write: Callable[[bytes], None], drop: Callable[[bytes], None]) -> None:
        self._write, self._drop = write, drop
        self._items: deque[bytes] = deque()
        self._bytes = 0
        # Taken by itself, never as the condition's: that would run Python code around it, in which a KeyboardInterrupt
        # leaves it taken for good.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._is_served = False
        self._writing = False
        self._closing = False

    def put(self, body: bytes) -> None:
        """Queues an event for the thread, or hands it to `drop` when the queue is full or closed."""
        with self._lock:
            full = len(self._items) >= MAX_EVENTS or self._bytes + len(body) > MAX_BYTES
            if not full and not self._closing:
                self._items.append(body)
                self._bytes += len(body)
                self._changed.notify_all()
                if self._thread is None:
                    self._thread = self._start()
        if full or self._closing:
            self._drop(body)

    def _start(self) -> threading.Thread | None:
        thread = threading.Thread(target=self._run, name="spoolagent-queue", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return None  # none can be had now, or at interpreter shutdown; the next event tries again
        return thread

    def _run(self) -> None:
        with self._lock:
            if self._is_served:  # an exception came just when the first thread had been started
                return
            self._is_served = True
        while True:
            with self._lock:
                self._writing = False
                self._changed.notify_all()
                while not self._items:
                    if self._closing:
                        return
                    self._changed.wait()
                body = self._items.popleft()
                self._bytes -= len(body)
                self._writing = True
            self._write(body)

    @property
    def is_closed(self) -> bool:
        """True when nothing more is taken."""
        return self._closing

    def drain(self, timeout_s: float) -> None:
        """Waits until all that was put is written, at most `timeout_s`. Without a thread it is written here."""
        while self._thread is None and self._items:
            body = self._items.popleft()
            self._bytes -= len(body)
            self._write(body)
        with self._lock:
            self._changed.notify_all()  # an exception may have come before `put` did
            self._changed.wait_for(lambda: not self._items and not self._writing, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Drains, and ends the thread."""
        self.drain(timeout_s)
        with self._lock:
            self._closing = True
            self._changed.notify_all()
