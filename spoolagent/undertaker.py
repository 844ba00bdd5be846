"""Writes the `.end` of streams whose writers are dead, in the spool where they were born."""

from collections.abc import Callable

from spoolagent.errors import FormatError
from spoolagent.format.ends import DeathWatch, end_dead_stream
from spoolagent.format.header import read_header
from spoolagent.format.layout import StreamKey, stream_dir
from spoolagent.format.listing import Listing
from spoolagent.format.spool import Spool


class Undertaker:
    """Every agent of a spool runs one; two at once do no harm.

    A stream that has ended is not looked at again by the same agent, except one that it ended itself while its
    writer might only have been suspended.
    """

    def __init__(
        self, spool: Spool, *, stale_after_s: float, report: Callable[[str], None] = lambda _: None
    ) -> None:
        self._spool = spool
        self._watch = DeathWatch(stale_after_s=stale_after_s)
        self._listing = Listing(spool.path)
        self._report = report
        self._done: set[StreamKey] = set()
        self._complained: set[StreamKey] = set()

    def sweep(self) -> None:
        """Looks once at every stream that is still open and was born here."""
        for key in self._listing.streams():
            if key not in self._done:
                self._look(key)

    def _look(self, key: StreamKey) -> None:
        stream = stream_dir(self._spool.path, key)
        try:
            header = read_header(stream)
            if header is None:
                return
            if header.spool != self._spool.uuid or end_dead_stream(stream, self._watch):
                self._done.add(key)
        except (OSError, FormatError) as error:
            if key not in self._complained:
                self._complained.add(key)
                self._report(f"{stream}: cannot tell whether its writer lives: {error}")
