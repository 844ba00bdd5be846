"""The time of day, from a clock that may be wrong."""

import time

MAX_NS = 2**63 - 1
"""The last time that an event can have, in the year 2262."""


def now_ns() -> int:
    """Nanoseconds since the epoch. A clock before 1970 or after 2262 says the nearest of what an event can hold."""
    return within(time.time_ns())


def within(time_ns: int) -> int:
    """`time_ns`, or the nearest time that an event can have."""
    return min(max(time_ns, 0), MAX_NS)
