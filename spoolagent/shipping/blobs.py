"""Blobs leave before the events that name them, and are checked against their name where they arrive."""

import os

from spoolagent.errors import FormatError, NameRefused, Unreachable
from spoolagent.format import layout
from spoolagent.format.blobs import references
from spoolagent.format.lines import decode_line
from spoolagent.shipping.compare import hashes_in
from spoolagent.shipping.report import Tally
from spoolagent.shipping.source import SourceError, chunks_of, confined, iter_blobs
from spoolagent.shipping.target import AnotherSpool, Away, InTheWay, Target

_MISSING_KEPT = 10_000


class BlobCarrier:
    """Carries the blobs of all sites of one spool. Raises what the target raises; the rest it reports."""

    def __init__(self, spool: str, target: Target, tally: Tally) -> None:
        self._spool, self._target, self._tally = spool, target, tally
        self._missing: dict[tuple[str, str], None] = {}

    def carry_named(self, site: str, lines: bytes) -> None:
        """Carries what these lines may name; what a line does name and nobody has is reported."""
        absent = [sha256 for sha256 in hashes_in(lines) if not self.carry(site, sha256)]
        if not absent:
            return
        named = _named_in(lines)
        for sha256 in absent:
            if sha256 in named:
                self._miss(site, sha256)

    def carry(self, site: str, sha256: str) -> bool:
        """Carries one blob unless the target has it. False when the source has none of that name."""
        path = layout.blob_path(self._spool, site, sha256)
        try:
            size = os.lstat(path).st_size
        except OSError:
            return False
        if self._target.has_blob(site, sha256, size):
            return True
        self._put(site, sha256, path)
        return True

    def carry_again(self, site: str, sha256: str) -> None:
        """Carries a blob that a reader at the target asks for, whatever is there. What is not of this spool others have."""
        path = layout.blob_path(self._spool, site, sha256)
        if os.path.lexists(path):
            try:
                is_answered = self._put(site, sha256, path)
            except (Away, AnotherSpool):
                raise
            except (InTheWay, NameRefused, Unreachable) as error:  # of this one: the streams go on
                self._complain(path, str(error))
                is_answered = False
            if is_answered:
                self._target.answer_blob(site, sha256)

    def _put(self, site: str, sha256: str, path: str) -> bool:
        """False when it may succeed later."""
        try:
            confined(self._spool, path)
            self._target.put_blob(site, sha256, chunks_of(path))
        except FormatError:
            self._complain(
                path, f"{path} is damaged: its content does not match its name; it was not shipped"
            )
        except SourceError as error:
            self._complain(path, str(error))
            return False
        else:
            self._tally.shipped_blobs += 1
            self._tally.clear("error", None, about=path)
        return True

    def carry_all(self, site: str) -> None:
        """Carries every blob of a site that the target has not (once per session: one may have come, or healed)."""
        for sha256 in iter_blobs(self._spool, site):
            self.carry(site, sha256)

    def retry_missing(self) -> None:
        """Looks again for blobs that were named before they came."""
        for site, sha256 in list(self._missing)[:1000]:
            del self._missing[site, sha256]
            if self.carry(site, sha256):
                self._tally.clear("error", None, about=layout.blob_path(self._spool, site, sha256))
            else:
                self._missing[site, sha256] = None  # to the end of the queue

    def _miss(self, site: str, sha256: str) -> None:
        path = layout.blob_path(self._spool, site, sha256)
        if len(self._missing) < _MISSING_KEPT:
            self._missing[site, sha256] = None
        self._complain(
            path, f"{path} is missing: an event names it; the event was shipped, its payload was not"
        )

    def _complain(self, path: str, text: str) -> None:
        self._tally.note("error", None, text, about=path)


def _named_in(lines: bytes) -> set[str]:
    found: set[str] = set()
    for line in lines.split(b"\n"):
        if b'"sha256":"' in line:
            try:
                found.update(ref["sha256"] for ref in references(decode_line(line)))
            except (FormatError, AttributeError, TypeError):
                continue
    return found
