"""Where a receiver's state lies: nothing else may be in its place, and what is open must stay what is there.

An operator can remove `.agent`, put back a backup of it, or unmount the whole spool under a worker. A commit would go
to files that nobody will ever open again then, and a second worker could come beside this one.
"""

import os
from collections.abc import Iterable

from spoolagent.errors import SpoolError
from spoolagent.serving.database import MADE, MIRROR, NAME, SIDE_FILES

LOCK = "lock"
_FILES = (LOCK, NAME, NAME + MADE, *(name + side for name in (NAME, MIRROR) for side in ("", *SIDE_FILES)))


class InTheWay(SpoolError):
    """Something else is where a file or directory of a receiver's state belongs."""


class Moved(SpoolError):
    """The files that a worker has open are not those at their paths any more. A new worker begins with what is there."""


def check_folder(folder: str) -> None:
    """Raises InTheWay when the receiver's folder, what is above it in `.agent`, or a file in it is something else."""
    receivers = os.path.dirname(folder)
    for place in (os.path.dirname(receivers), receivers, folder):
        if os.path.lexists(place) and not os.path.isdir(place):
            raise InTheWay(_text(place, "directory"))
    for name in _FILES:
        path = os.path.join(folder, name)
        if name == MIRROR and os.path.islink(path):  # to where a target's files are, which may be away
            continue
        if os.path.lexists(path) and not os.path.isfile(path):  # a FIFO would hold up whoever opens it
            raise InTheWay(_text(path, "file"))


def _text(path: str, what: str) -> str:
    is_link = os.path.islink(path)
    found = f"a link to {os.readlink(path)}, which is no {what}" if is_link else f"no {what}"
    return f"{path} is {found}: move it away, or put back what was there; nothing is delivered meanwhile"


class Place:
    """Remembers which files are at these paths now. Raises Moved when one is gone already."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._known = {path: _identity(path) for path in paths}

    def check(self) -> None:
        """Raises Moved when another file, or none, is at one of the paths."""
        for path, known in self._known.items():
            try:
                found = _identity(path)
            except (FileNotFoundError, NotADirectoryError):
                found = None
            except OSError:  # the disk does not say: no evidence
                continue
            if found != known:
                what = "is gone" if found is None else "was replaced"
                raise Moved(
                    f"{path} {what} while it was in use (.agent removed, restored or unmounted?): "
                    "what was delivered since its last commit may be delivered again"
                )


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
