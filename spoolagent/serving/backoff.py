"""Waiting longer after each failure in a row, with jitter so that many workers do not come back at once."""

import random
from collections.abc import Callable


class Backoff:
    """`failed()` says how long to wait now, in s; `succeeded()` begins anew."""

    def __init__(
        self, *, first_s: float = 0.5, most_s: float = 30.0, jitter: Callable[[], float] = random.random
    ) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._jitter = jitter
        self.failures = 0
        """In a row."""

    def failed(self, wish_s: float | None = None) -> float:
        """The next wait: doubled each time up to the bound, three quarters to five quarters of it; never less than `wish_s`."""
        base = min(self._most_s, self._first_s * float(1 << min(self.failures, 30)))
        self.failures += 1
        return max(base * (0.75 + self._jitter() / 2), wish_s or 0.0)

    def succeeded(self) -> None:
        """The next failure waits `first_s` again."""
        self.failures = 0
