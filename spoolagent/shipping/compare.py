"""Two copies of a segment: is one the beginning of the other, a damaged copy of it, or another stream? Pure logic."""

import hashlib
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

import orjson

from spoolagent.errors import FormatError
from spoolagent.format.lines import MAX_LINE, decode_line, has_valid_crc

Read = Callable[[int, int], bytes]
"""`read(offset, size)`: bytes of a segment, fewer than `size` at its end."""
_HASH = re.compile(rb'"sha256":"([0-9a-f]{64})"')


class Verdict(NamedTuple):
    """What to do with the target's copy.

    append: go on at `offset`. longer: the target has more, it wins. cut: what the target has from `offset` on is
    damaged, cut it there and go on. fork: another stream; `mark` are 8 hex digits that stay the same for it.
    """

    kind: Literal["append", "longer", "cut", "fork"]
    offset: int
    mark: str = ""


def fork_mark(line: bytes) -> str:
    """The `<hash8>` of a fork: of the first line of the incoming stream that the other copy has not."""
    return hashlib.sha256(line).hexdigest()[:8]


class Lines:
    """Lines by offset, through a window of a few MiB."""

    def __init__(self, read: Read, length: int) -> None:
        self._read, self._length = read, length
        self._from, self._data = 0, b""

    def at(self, offset: int) -> bytes:
        """The line that begins at `offset`, with its newline if it has one; at most 1 MiB of it."""
        line = self._cut(offset)
        if not line.endswith(b"\n") and offset + len(line) < self._length and len(line) < MAX_LINE:
            self._from = offset
            self._data = self._read(offset, min(4 * MAX_LINE, self._length - offset))
            line = self._cut(offset)
        return line

    def _cut(self, offset: int) -> bytes:
        start = offset - self._from
        if not 0 <= start <= len(self._data):
            return b""
        end = self._data.find(b"\n", start, start + MAX_LINE) + 1
        return self._data[start : end or start + MAX_LINE]


def is_line(line: bytes) -> bool:
    """True for a whole line with its newline and a right checksum."""
    return line.endswith(b"\n") and has_valid_crc(line[:-1])


def examine(source: Read, source_length: int, target: Read, target_length: int) -> Verdict:
    """The verdict on two copies of which the shorter is not simply the beginning of the longer.

    Lines that stand at the same place and are both valid must be equal, else it is a fork. A line that only one
    side has whole is damage on the other: the target's is cut off and shipped anew, the source's stays as the
    target has it.
    """
    ours, theirs = Lines(source, source_length), Lines(target, target_length)
    offset, damaged_at, source_is_damaged = 0, -1, False
    while offset < min(source_length, target_length):
        mine, other = ours.at(offset), theirs.at(offset)
        if not mine or not other:
            break  # a file became shorter under our hands: whoever appends will notice
        if mine == other:
            offset += len(mine)
        elif is_line(mine) and is_line(other):
            return Verdict("fork", offset, fork_mark(mine))
        elif is_line(other):
            source_is_damaged = True
            offset += len(other)
        else:
            damaged_at = offset if damaged_at < 0 else damaged_at
            offset += len(mine)
    if damaged_at >= 0 and not source_is_damaged:
        return Verdict("cut", damaged_at)
    return Verdict("append" if target_length <= source_length else "longer", target_length)


def has_valid_line(read: Read, offset: int, length: int) -> bool:
    """True when a valid line stands between `offset`, where a line begins, and `length`."""
    lines = Lines(read, length)
    while offset < length and (line := lines.at(offset)):
        if is_line(line):
            return True
        offset += len(line)
    return False


def last_line_end(read: Read, length: int) -> int:
    """The offset behind the last newline before `length`, 0 when there is none."""
    while length > 0:
        start = max(0, length - MAX_LINE)
        found = read(start, length - start).rfind(b"\n") + 1
        if found:
            return start + found
        length = start
    return 0


class Usable(NamedTuple):
    """How many bytes of a chunk may ship, and why the line behind them may not yet."""

    length: int
    bad: str


def usable(data: bytes, *, unread: bool = False) -> Usable:
    """The valid whole lines at the beginning of `data`; of a later format (`unread`) all of it."""
    end = data.rfind(b"\n") + 1
    if unread:
        return Usable(len(data), "")
    length = 0
    for line in data[:end].split(b"\n")[:-1]:
        if len(line) >= MAX_LINE or not has_valid_crc(line):
            return Usable(length, "a bad line")
        length += len(line) + 1
    if len(data) - length > MAX_LINE:
        return Usable(length, "a line of over 1 MiB")
    return Usable(length, "")


def hashes_in(data: bytes) -> list[str]:
    """What may be a blob's hash in these lines, each once, whatever their format."""
    return list(dict.fromkeys(match.decode() for match in _HASH.findall(data)))


def is_newer(first_line: bytes, ours: int) -> bool:
    """True when a segment's first line says a later format than `ours`."""
    try:
        number = orjson.loads(first_line).get("format")
    except (orjson.JSONDecodeError, AttributeError):
        return False
    return type(number) is int and number > ours


def seal_of(tail: bytes) -> dict[str, object] | None:
    """The seal with which `tail`, the end of a segment, ends, or None."""
    if not tail.endswith(b"\n"):
        return None
    try:
        value = decode_line(tail[tail.rfind(b"\n", 0, -1) + 1 : -1])
    except FormatError:
        return None
    return value if type(value.get("seal")) is int else None
