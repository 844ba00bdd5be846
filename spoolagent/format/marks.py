"""What was seen before, remembered in little memory."""

from array import array

_FEWEST = 1 << 12
_MOST = 1 << 18
"""Slots of 8 bytes: 32 KiB at first, 2 MiB at most, whatever happens."""
_WAYS = 8
"""Slots that one thing can have. With a single one, of 100,000 things half would push out each other for ever."""


class Marks:
    """A set that forgets: what is added may push out something older, and has to be looked at again then.

    It keeps no thing but its hash of 64 bits. It grows with what is added, as far as it may.
    """

    def __init__(self) -> None:
        self.clear()

    def add(self, *what: object) -> None:
        """Remembers `what`, for a while."""
        value = hash(what)
        at, known = self._group(value)
        while 0 not in known and value not in known and len(self._slots) < _MOST:
            self._grow()
            at, known = self._group(value)
        self._put(value, at, known)

    def has(self, *what: object) -> bool:
        """True when `what` was added, and nothing has pushed it out."""
        value = hash(what)
        return value != 0 and value in self._group(value)[1]

    def discard(self, *what: object) -> None:
        """Forgets `what`."""
        value = hash(what)
        at, known = self._group(value)
        if value in known:
            self._slots[at + known.index(value)] = 0

    def clear(self) -> None:
        """Forgets everything."""
        self._slots = array("q", [0]) * _FEWEST

    def _group(self, value: int) -> tuple[int, "array[int]"]:
        """Where the slots are that a hash can have, and what is in them."""
        at = value % (len(self._slots) // _WAYS) * _WAYS
        return at, self._slots[at : at + _WAYS]

    def _put(self, value: int, at: int, known: "array[int]") -> None:
        if value not in known:
            free = known.index(0) if 0 in known else (value >> 32) % _WAYS
            self._slots[at + free] = value

    def _grow(self) -> None:
        old, self._slots = self._slots, array("q", [0]) * (2 * len(self._slots))
        for value in old:
            if value:
                self._put(value, *self._group(value))
