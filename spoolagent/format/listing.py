"""The streams of a spool, listed again and again: directories that have not changed are not read again."""

import os
import time
from collections.abc import Callable, Iterator

from spoolagent.format.layout import StreamKey, list_names, run_dir, site_dir

_SETTLED_NS = 2_000_000_000
"""A directory that changed this recently is read again: file systems stamp times in steps, some of a second."""
_FULL_EVERY = 60
"""Each so many sweeps everything is read, whatever the times say (a network file system may cache them)."""


class Listing:
    """Remembers what each directory held, by its modification time; `streams` is a sweep."""

    def __init__(self, spool: str, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._spool = spool
        self._now_ns = now_ns
        self._known: dict[str, tuple[int, list[str]]] = {}
        self._sweeps = 0
        self.unreadable: dict[str, str] = {}
        """Directories that the last sweep could not read, with the reason: what is below them is not listed."""

    def streams(self) -> Iterator[StreamKey]:
        """Every stream of the spool, in the order of names."""
        if self._sweeps % _FULL_EVERY == 0:
            self._known.clear()
        self._sweeps += 1
        self.unreadable.clear()
        for site in self._names(os.path.join(self._spool, "sites")):
            for run in self._names(os.path.join(site_dir(self._spool, site), "runs")):
                for writer in self._names(run_dir(self._spool, site, run)):
                    yield StreamKey(site, run, writer)

    def _names(self, folder: str) -> list[str]:
        try:
            stamp = os.stat(folder).st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            self._known.pop(folder, None)
            return []
        except OSError as error:
            self.unreadable[folder] = f"cannot be read: {error.strerror or error}"
            return []
        known = self._known.get(folder)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            names = list_names(folder)
        except OSError as error:  # of one site, or for a moment: it must not hide the others
            self.unreadable[folder] = f"cannot be read: {error.strerror or error}"
            return known[1] if known is not None else []
        if abs(self._now_ns() - stamp) > _SETTLED_NS:
            self._known[folder] = (stamp, names)
        return names
