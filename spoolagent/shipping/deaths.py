"""The `.end` of a stream of which the target has more than the source: it describes the target's own bytes."""

from collections.abc import Iterator

from spoolagent.format import ends
from spoolagent.format.layout import end_name
from spoolagent.shipping import compare
from spoolagent.shipping.target import StreamCopy

_TAIL = 4096


def end_at_target(copy: StreamCopy, first: int, length: int, end: ends.End) -> str:
    """Ends the target's copy, whose last segment is `first` of `length` bytes, since the source's writer is dead.

    Its home lost the last of it (a power cut), so its own `.end` says less than what is here. Returns the reason that was
    written, "" when there was nothing to write: it has such an `.end`, or the writer's own closing seal. Should the
    home get its bytes back, or the writer live, what it ships extends the stream and voids this end.
    """

    def read(offset: int, size: int) -> bytes:
        return copy.read(first, offset, size)

    seal = compare.seal_of(read(max(0, length - _TAIL), _TAIL))
    known = ends.parse_end(copy.side(end_name(first)))
    if (seal is not None and seal.get("closed") is True) or (known is not None and known.length == length):
        return ""
    measured = ends.measure_lines(_lines(read, length), first)
    last = max(measured.last, end.last)
    if known is not None and known[:3] == (measured.length, last, measured.sha256):
        return ""
    reason = f"{end.reason}; its home lost the last of it"
    copy.put_side(end_name(first), ends.end_line(measured, last, reason))
    return reason


def _lines(read: compare.Read, length: int) -> Iterator[bytes]:
    lines, offset = compare.Lines(read, length), 0
    while offset < length and (line := lines.at(offset)):
        yield line
        offset += len(line)
