"""One segment, read once from its first to its last byte."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from spoolagent.errors import FormatError, NewerFormat
from spoolagent.format.blobs import references
from spoolagent.format.ends import End
from spoolagent.format.events import check, parse_event
from spoolagent.format.header import Header, parse_header
from spoolagent.format.layout import StreamKey
from spoolagent.format.lines import MAX_LINE, decode_line, has_valid_crc
from spoolagent.format.plain import open_plain
from spoolagent.fsck_blobs import BlobCheck
from spoolagent.fsck_finding import Finding, Severity

_AGAIN = "ship the stream again from where it was born; else these seqs are lost, and the rest is delivered"


class SegmentCheck:
    """Checks the segment at `path`; afterwards the attributes say what it was like."""

    def __init__(
        self,
        path: str,
        key: StreamKey,
        first: int,
        next_seq: int,
        blobs: BlobCheck,
        progress: Callable[[int], None],
    ) -> None:
        self.first = first
        self.next_seq = next_seq
        """The seq that is expected next."""
        self.header: Header | None = None
        self.sha256 = ""
        """Of the whole file."""
        self.is_closed = False
        """True when it ends with the seal by which the writer closed the stream."""
        self.is_damaged = False
        """True when a finding names damaged bytes already, so that a wrong hash says nothing new."""
        self.torn_bytes = 0
        self._path, self._key, self._blobs, self._progress = path, key, blobs, progress
        self._sha = hashlib.sha256()
        self._offset = 0
        self._line = 0
        self._valid_end = 0
        self._sealed_at: int | None = None
        self._is_oversized = False
        self._has_bad_before = False
        self._at_end: tuple[str, int] | None = None

    def run(self, end: End | None) -> Iterator[Finding]:
        """All findings. Raises OSError, and NewerFormat when a later version wrote it."""
        with open_plain(self._path, 1 << 18) as file:
            yield from self._lines(file, end)
        self.sha256 = self._sha.hexdigest()
        if end is not None and not self.is_closed:
            yield from self._compare(end)

    def _lines(self, file: BinaryIO, end: End | None) -> Iterator[Finding]:
        stop = -1 if end is None else end.length
        if stop == 0:  # killed while it made the segment: not even its header is whole
            self._at_end = self._sha.hexdigest(), self.next_seq - 1
        while raw := file.readline(MAX_LINE + 1):
            self._line += 1
            if not raw.endswith(b"\n") and len(raw) <= MAX_LINE and not self._is_oversized:
                self.torn_bytes = len(raw)
                if self._sealed_at is not None:
                    yield self._bad("bytes behind the seal")
                elif has_valid_crc(raw[:-1]):
                    yield self._bad("the newline behind a whole line was changed")
            elif not self._takes_plain(raw):
                yield from self._piece(raw)
            self._sha.update(raw)
            self._offset += len(raw)
            self._progress(len(raw))
            if self._offset == stop:
                self._at_end = self._sha.hexdigest(), self.next_seq - 1

    def _takes_plain(self, raw: bytes) -> bool:
        """Takes the next event when there is nothing to say about it: almost every line, and by far the fastest way."""
        if not self._offset or self._sealed_at is not None or self._is_oversized or len(raw) > MAX_LINE:
            return False
        try:
            fields = decode_line(raw[:-1])
        except FormatError:
            return False
        if fields.get("seq") != self.next_seq or "blob" in fields or "files" in fields:
            return False
        event = parse_event(fields)
        if event is None or check(event) is not None:
            return False
        self.next_seq += 1
        self._valid_end = self._offset + len(raw)
        return True

    def _piece(self, raw: bytes) -> Iterator[Finding]:
        """A whole line, or a piece of one that is too long."""
        ends_here = raw.endswith(b"\n")
        if self._is_oversized or len(raw) > MAX_LINE:
            if not self._is_oversized:
                yield self._bad("a line of over 1 MiB")
            self._is_oversized = not ends_here
            return
        try:
            fields = decode_line(raw[:-1])
        except FormatError as error:
            yield self._bad("the header: " + str(error) if self._offset == 0 else str(error))
            return
        if self._sealed_at is not None:
            yield self._bad("a line behind the seal")
        elif self._offset == 0:
            yield from self._header_line(fields)
        elif type(fields.get("seal")) is int:
            yield from self._seal_line(fields)
        else:
            yield from self._event_line(fields)
        self._valid_end = self._offset + len(raw)

    # -- kinds of lines ------------------------------------------------------------------------------------

    def _header_line(self, fields: dict[str, Any]) -> Iterator[Finding]:
        try:
            self.header = header = parse_header(fields, self._path)
        except NewerFormat:
            raise
        except FormatError as error:
            yield self._bad(str(error).removeprefix(self._path).strip())
            return
        if header.writer != self._key.writer:
            if self._key.writer.startswith(f"{header.writer}.fork-"):
                step = "find out which one the site means; both are kept, the fork is not delivered"
                yield self._here(
                    "warning", f"a fork of writer {header.writer}: two streams had this name", step
                )
            else:
                yield self.at_header(
                    "error", f"says writer {header.writer!r}, the directory says {self._key.writer!r}"
                )
        if header.run != self._key.run:
            yield self.at_header("error", f"says run {header.run!r}, the directory says {self._key.run!r}")
        if header.first_seq != self.first:
            yield self.at_header(
                "error", f"says first seq {header.first_seq}, the file name says {self.first}"
            )

    def _seal_line(self, fields: dict[str, Any]) -> Iterator[Finding]:
        self._sealed_at = self._offset
        self.is_closed = fields.get("closed") is True
        last = fields["seal"]
        if last >= self.next_seq:
            yield self._gap(last)
            self.next_seq = last + 1
        elif last != self.next_seq - 1:
            yield self._here("error", f"the seal says last seq {last}, it is {self.next_seq - 1}", _AGAIN)
            self.is_damaged = True
        if fields.get("sha256") != self._sha.hexdigest() and not self.is_damaged:
            yield self._here(
                "error", "the seal's hash is not that of the bytes before it: they were changed", _AGAIN
            )
            self.is_damaged = True

    def _event_line(self, fields: dict[str, Any]) -> Iterator[Finding]:
        event = parse_event(fields)
        if event is None:
            yield self._bad("no event: seq, time or type are not what they must be")
            return
        if event.seq < self.next_seq:
            yield self._bad(f"seq {event.seq} stands there a second time")
            return
        if event.seq > self.next_seq:
            yield self._gap(event.seq - 1)
        self.next_seq = event.seq + 1
        reason = check(event)
        if reason is not None:
            step = "receivers keep it as a dead letter; the writer's version may be newer, or faulty"
            yield self._here("warning", f"seq {event.seq}: {reason}", step)
        if "blob" in fields or "files" in fields:
            for ref in _references(fields):
                self._blobs.note(self._key.site, ref, self._path, self._place)

    # -- the end -------------------------------------------------------------------------------------------

    def _compare(self, end: End) -> Iterator[Finding]:
        """The `.end` beside this segment against its bytes."""
        if end.length > self._offset:
            yield self.whole(
                "error", f"has {self._offset} bytes, its .end says {end.length}: bytes are missing"
            )
        elif self._at_end is None:
            yield self.whole(
                "error", f"its .end says {end.length} bytes, where no line ends: bytes were changed"
            )
        elif self._at_end[0] != end.sha256 and not self.is_damaged:
            yield self.whole("error", "its .end names another hash of its bytes: they were changed")
        elif self._at_end[1] != end.last and not self.is_damaged:
            yield self.whole("error", f"its .end says last seq {end.last}, it is {self._at_end[1]}")
        elif self._valid_end > end.length:
            yield self.whole(
                "info", "goes on behind its .end, which is void: the writer turned out to live", "nothing"
            )
        elif self._offset > end.length:
            torn = self._offset - end.length
            yield self.whole(
                "info", f"{torn} torn bytes behind the last whole line, as its .end says", "nothing"
            )

    # -- findings ------------------------------------------------------------------------------------------

    @property
    def _place(self) -> str:
        return f"line {self._line}, byte {self._offset}"

    def _bad(self, message: str) -> Finding:
        self.is_damaged = self._has_bad_before = True
        return self._here("error", message, _AGAIN)

    def _gap(self, last: int) -> Finding:
        self.is_damaged = True
        one = last == self.next_seq
        span = f"seq {last} is missing: it" if one else f"seqs {self.next_seq} to {last} are missing: they"
        why = (
            "stood in the damaged bytes before"
            if self._has_bad_before
            else "came with bytes that are not here"
        )
        self._has_bad_before = False
        return self._here("error", f"{span} {why}", _AGAIN)

    def _here(self, severity: Severity, message: str, next_step: str) -> Finding:
        return Finding(
            severity=severity, path=self._path, place=self._place, message=message, next_step=next_step
        )

    def at_header(self, severity: Severity, message: str) -> Finding:
        """A finding about line 1."""
        return Finding(
            severity=severity,
            path=self._path,
            place="line 1, byte 0",
            message=message,
            next_step="somebody moved or changed files: put back the original, or ship the stream again",
        )

    def whole(self, severity: Severity, message: str, next_step: str = _AGAIN) -> Finding:
        """A finding about the file as a whole."""
        return Finding(severity=severity, path=self._path, message=message, next_step=next_step)


def _references(fields: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        return references(fields)
    except (TypeError, AttributeError):
        return []  # malformed: reported as a dead letter already
