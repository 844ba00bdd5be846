"""The streams of a spool, listed again and again: run directories that have not changed are not read again."""

import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from spoolagent.format.layout import list_names, run_dir, site_dir
from spoolagent.format.marks import Marks

_SETTLED_NS = 2_000_000_000
"""A directory that changed this recently is read again: file systems stamp times in steps, some of a second."""
_FULL_EVERY = 60
"""Each so many sweeps everything is read, whatever the times say (a network file system may cache them)."""


class RunListing(NamedTuple):
    """The streams of one run, as its directory shows them."""

    site: str
    run: str
    writers: list[str]
    stamp: int | None
    """The directory's time; None when it changed so recently that it may change again without another one."""


class Listing:
    """Remembers which run directories were dealt with, by their modification times, and no names at all."""

    def __init__(self, spool: str, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._spool = spool
        self._now_ns = now_ns
        self._settled = Marks()
        self._sweeps = 0
        self.unreadable: dict[str, str] = {}
        """Directories that the last sweep could not read, with the reason: what is below them is not listed."""

    def runs(self) -> Iterator[RunListing | None]:
        """A sweep: the runs, in the order of names, whose directories have changed since they were `settled`.

        None for each of the others: a caller that has something else to do need not wait for the next one.
        """
        if self._sweeps % _FULL_EVERY == 0:
            self._settled.clear()
        self._sweeps += 1
        unreadable: dict[str, str] = {}
        for site in self._names(os.path.join(self._spool, "sites"), unreadable):
            for run in self._names(os.path.join(site_dir(self._spool, site), "runs"), unreadable):
                folder = run_dir(self._spool, site, run)
                stamp = self._stamp(folder, unreadable)
                if stamp is None or self._settled.has(site, run, stamp):
                    yield None
                    continue
                writers = self._names(folder, unreadable)
                is_old = abs(self._now_ns() - stamp) > _SETTLED_NS
                is_whole = folder not in unreadable
                yield RunListing(site, run, writers, stamp if is_old else None) if is_whole else None
        self.unreadable = unreadable

    def settled(self, run: RunListing) -> None:
        """Nothing is to be done for the run until its directory changes."""
        if run.stamp is not None:
            self._settled.add(run.site, run.run, run.stamp)

    @staticmethod
    def _stamp(folder: str, unreadable: dict[str, str]) -> int | None:
        try:
            return os.stat(folder).st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            unreadable[folder] = f"cannot be read: {error.strerror or error}"
            return None

    @staticmethod
    def _names(folder: str, unreadable: dict[str, str]) -> list[str]:
        try:
            return list_names(folder)
        except OSError as error:  # of one site, or for a moment: it must not hide the others
            unreadable[folder] = f"cannot be read: {error.strerror or error}"
            return []
