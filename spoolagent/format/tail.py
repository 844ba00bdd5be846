"""Looking back at a segment's end, where bad lines were given up: have they healed, how many events were they."""

import os
from typing import NamedTuple

from spoolagent.errors import FormatError
from spoolagent.format.lines import MAX_LINE, decode_line

_WINDOWS = (1 << 14, 2 * MAX_LINE)
"""Bytes looked at: mostly the last line is a valid one; the second try holds a longest line for sure."""


class Tail(NamedTuple):
    """The end of what was read of a segment."""

    healed_at: int | None
    """Where a line begins that is valid by now, and of which the seq was not resolved; None: there is none."""
    took: int
    """How many events the bad lines behind the last valid one were, less those that were resolved."""


def look_back(fd: int, offset: int, next_seq: int) -> Tail:
    """The end of the first `offset` bytes of a segment, of which events up to `next_seq` - 1 were taken. Raises OSError."""
    for window in _WINDOWS:
        start = max(0, offset - window)
        found = _backwards(os.pread(fd, offset - start, start), start, next_seq)
        if found is not None:
            return found
        if start == 0:
            break
    return Tail(None, 0)


def _backwards(data: bytes, start: int, next_seq: int) -> Tail | None:
    """None when no line in `data` was taken before: then it has to begin earlier."""
    lines = data.split(b"\n")[:-1]
    healed_at, took, end = None, 0, start + len(data)
    while lines:
        line = lines.pop()
        end -= len(line) + 1
        try:
            value = decode_line(line)
        except FormatError:
            took += 0 if healed_at is not None else events_in(line)
            continue
        seq, first = value.get("seq"), value.get("first")
        if type(seq) is int and seq < next_seq:
            return Tail(healed_at, max(0, seq + took - next_seq + 1))
        if type(first) is int and "seq" not in value:  # the header
            return Tail(healed_at, max(0, first + took - next_seq))
        healed_at = end
    return None


def events_in(line: bytes) -> int:
    """How many events a damaged line was, as far as it can be told: a lost newline makes one of two."""
    seals = any(mark in line for mark in (b'{"seal":', b'"sha256":"', b'"closed":'))
    return max(1, line.count(b'"crc":"')) - seals
