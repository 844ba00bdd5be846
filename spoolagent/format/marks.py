"""What was seen before, remembered in a fixed amount of memory."""

from array import array

_SLOTS = 1 << 16
"""Half a MiB, whatever happens."""


class Marks:
    """A set that forgets: what is added may push out something older, and has to be looked at again then.

    It keeps no thing but its hash of 64 bits, each in the one slot that it can have.
    """

    def __init__(self) -> None:
        self._slots = array("q", [0]) * _SLOTS

    def add(self, *what: object) -> None:
        """Remembers `what`, for a while."""
        value = hash(what)
        self._slots[value % _SLOTS] = value

    def has(self, *what: object) -> bool:
        """True when `what` was added, and nothing has pushed it out."""
        value = hash(what)
        return self._slots[value % _SLOTS] == value != 0

    def discard(self, *what: object) -> None:
        """Forgets `what`."""
        if self.has(*what):
            self._slots[hash(what) % _SLOTS] = 0

    def clear(self) -> None:
        """Forgets everything."""
        self._slots = array("q", [0]) * _SLOTS
