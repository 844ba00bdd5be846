"""One walk through a stream's segments, under the target's lock: compare once, then append whole fsynced lines."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal

from spoolagent.errors import FormatError
from spoolagent.format import durable, ends, layout
from spoolagent.format.header import read_segment_header
from spoolagent.format.layout import FORMAT, StreamKey
from spoolagent.format.lines import MAX_LINE, decode_line
from spoolagent.format.reader import PATIENCE_ELSEWHERE_S
from spoolagent.shipping import compare
from spoolagent.shipping.blobs import BlobCarrier
from spoolagent.shipping.deaths import end_at_target
from spoolagent.shipping.report import Tally
from spoolagent.shipping.source import SourceSegment, read_side, reading
from spoolagent.shipping.target import StreamCopy

_TAIL = 4096
TURN_BYTES = 64 << 20
"""After so much the next stream has its turn, so that a huge one does not keep the others waiting."""
State = Literal["done", "current", "waiting", "more"]
"""done: ended, and all of it is at the target. current: nothing more to ship now. waiting: a part may still heal.
more: its turn is over, or the shipper is to stop."""
IsOver = Callable[[tuple[object, ...], str, float], bool]
"""`is_over(what, why, elsewhere_s)`: True when `what` was waited for long enough, a stream born elsewhere longer."""


class Forked(Exception):
    """The target's copy is another stream; `mark` is the `<hash8>` of this one."""

    def __init__(self, mark: str) -> None:
        super().__init__(mark)
        self.mark = mark


@dataclass(slots=True)
class Memory:
    """What the walks of one session hand on."""

    verified: dict[int, tuple[object, int]] = field(default_factory=dict)
    """By segment: which file was compared with the target's, and up to which length both are the same."""
    complete: dict[int, tuple[object, int]] = field(default_factory=dict)
    """Segments that are finished, with a next one, and whole at the target: which file, of which length."""
    suspects: dict[tuple[object, ...], float] = field(default_factory=dict)
    """What may still heal, and since when it is known."""
    named: set[int] = field(default_factory=set)
    """Segments whose names in the source's directory are durable."""


class Walk:
    """Carries what there is now from the stream in directory `path` to `copy`.

    `in_full`: what ends with the same seal is compared all the same.
    """

    def __init__(
        self,
        path: str,
        key: StreamKey,
        copy: StreamCopy,
        memory: Memory,
        blobs: BlobCarrier,
        tally: Tally,
        *,
        in_full: bool = False,
    ) -> None:
        self._path, self._key, self._copy, self._memory = path, key, copy, memory
        self._blobs, self._tally = blobs, tally
        self._in_full = in_full
        self._bytes = self._lines = 0
        self._left = TURN_BYTES
        self._is_cut_short = self._has_later = False

    def run(self, is_over: IsOver, should_stop: Callable[[], bool]) -> State:
        """Walks. Raises Forked when another stream lies there, SourceError, and what the target raises."""
        self._is_over, self._should_stop = is_over, should_stop
        state: State = "current"
        try:
            segments = layout.list_segments(self._path)
            there = self._copy.segments()
            self._send_pruned(there)
            self._has_later = bool(segments) and max(there, default=0) > segments[-1]
            for first, following in zip_longest(segments, segments[1:]):
                if self._in_full and should_stop():
                    self._is_cut_short = True
                    break
                state = self._segment(first, following, there.get(first, 0))
                if following is not None and state != "done":
                    break
            else:
                if self._has_later:  # the source has lost its last segment
                    last = max(there)
                    state = self._end_there(segments[-1], last, there[last])
        finally:
            self._settle()
        return "more" if self._is_cut_short else state

    def _settle(self) -> None:
        """Nothing counts as shipped before the target has it on disk."""
        self._copy.sync()
        if self._bytes:
            self._tally.shipped(self._key, self._bytes, self._lines)
            self._bytes = self._lines = 0

    # -- one segment ---------------------------------------------------------------------------------------

    def _segment(self, first: int, following: int | None, there: int) -> State:
        """Carries one segment. "done": it is complete at the target (the last one: and the stream has ended)."""
        segment = SourceSegment(self._path, first)
        try:
            if self._memory.complete.get(first) == (segment.identity, segment.size) and there == segment.size:
                return "done" if following is not None else "current"
            offset = self._start(segment, following, there)
            if isinstance(offset, str):
                return offset
            newer = compare.is_newer(segment.read(0, MAX_LINE).partition(b"\n")[0], FORMAT)
            if newer:
                text = f"{self._key} is of a later format than {FORMAT}: it is shipped unread; upgrade spoolagent to deliver it"
                self._tally.note("parked", self._key, text)
            limit = self._limit(segment, newer) if following is None else segment.size
            offset, blocked = self._lines_of(segment, offset, limit, unread=newer)
            self._memory.verified[first] = (segment.identity, offset)
            if blocked:
                return "waiting"
            if following is None:
                return self._last(segment, offset)
            return self._finish(segment, offset, following, unread=newer)
        finally:
            segment.close()

    def _lines_of(self, segment: SourceSegment, offset: int, limit: int, *, unread: bool) -> tuple[int, bool]:
        """Ships whole lines from `offset` on. The offset behind them, and whether more of them must wait."""
        if offset < limit:
            self._make_durable(segment)
        begin = (
            offset if unread else compare.last_line_end(segment.read, offset)
        )  # the target may have half a line
        while begin < limit:
            if self._left <= 0 or self._should_stop():
                self._is_cut_short = True
                return offset, True
            data = segment.read(begin, min(MAX_LINE + 1, limit - begin))
            found = compare.usable(data, unread=unread)
            length = found.length
            if not length and found.bad:
                why = f"{found.bad} at byte {begin} of segment {segment.first_seq}"
                if not self._is_over(("bad", segment.first_seq, begin), why, 0.0):
                    return offset, True
                length = data.find(b"\n") + 1 or len(data)
            if not length:
                break
            self._blobs.carry_named(self._key.site, data[:length])
            self._append(segment.first_seq, offset, data[offset - begin : length])
            begin += length
            offset = max(offset, begin)
        return offset, False

    def _append(self, first: int, offset: int, data: bytes) -> None:
        if not data:
            return
        self._copy.append(first, offset, data)
        self._bytes += len(data)
        self._left -= len(data)
        self._lines += data.count(b"\n")

    def _make_durable(self, segment: SourceSegment) -> None:
        """What leaves the machine must be something that it cannot forget: the bytes, and the file's name."""
        segment.sync()
        if segment.first_seq not in self._memory.named:
            with reading(self._path):
                durable.fsync_dir(self._path)
                if not self._memory.named:  # its writer may have been killed just after it gave it its name
                    durable.fsync_dir(os.path.dirname(self._path))
            self._memory.named.add(segment.first_seq)

    # -- where to begin ------------------------------------------------------------------------------------

    def _start(self, segment: SourceSegment, following: int | None, there: int) -> int | State:
        """The verified length of the target's copy; a state where the target has more, and so nothing is to ship."""
        known = self._memory.verified.get(segment.first_seq)
        if there == 0 or (known == (segment.identity, there) and there <= segment.size):
            return there
        if not self._in_full and self._same_end(segment, there):
            return there
        verdict = self._compare(segment, there)
        if verdict.kind == "fork":
            raise Forked(verdict.mark)
        if verdict.kind == "cut":
            self._copy.cut(segment.first_seq, verdict.offset)
        elif verdict.kind == "longer":
            return self._longer(segment, following, there)
        return verdict.offset

    def _compare(self, segment: SourceSegment, there: int) -> compare.Verdict:
        first, common = segment.first_seq, min(segment.size, there)
        if segment.sha256(common) == self._copy.sha256(first, common):
            return compare.Verdict("append" if there <= segment.size else "longer", there)
        return compare.examine(
            segment.read, segment.size, lambda at, size: self._copy.read(first, at, size), there
        )

    def _same_end(self, segment: SourceSegment, there: int) -> bool:
        """True when both end with the same seal, or the same `.end`, which hold the hash of all before them."""
        if there > segment.size:
            return False
        start = max(0, there - _TAIL)
        tail = segment.read(start, there - start)
        if tail != self._copy.read(segment.first_seq, start, there - start):
            return False
        if there == segment.size and compare.seal_of(tail) is not None:
            return True
        name = layout.end_name(segment.first_seq)
        end, raw = ends.read_end(self._path, segment.first_seq), read_side(self._path, name)
        return end is not None and end.length == there and raw == self._copy.side(name)

    def _longer(self, segment: SourceSegment, following: int | None, there: int) -> int | State:
        """The target has all of this segment and more: it wins, unless the source's is known to be all there is."""
        first = segment.first_seq
        if following is None:
            if not self._has_later:
                text = f"{self._key}: the target has {there} bytes of segment {first}, the source {segment.size}; it was kept"
                self._tally.note("longer", self._key, text)
                return self._end_there(first, first, there)
            return "current"
        if self._prev_of(following) == self._copy.sha256(first, there):
            return "done"  # what the source lacks came to the target by another way
        if not self._is_complete(segment, following):
            why = f"segment {first} is shorter than the target's, though segment {following} is there"
            return "done" if self._is_over(("incomplete", first), why, PATIENCE_ELSEWHERE_S) else "waiting"
        if compare.has_valid_line(lambda at, size: self._copy.read(first, at, size), segment.size, there):
            head = SourceSegment(self._path, following)
            try:
                raise Forked(compare.fork_mark(head.read(0, MAX_LINE).partition(b"\n")[0]))
            finally:
                head.close()
        self._copy.cut(first, segment.size)
        return segment.size

    def _end_there(self, ours: int, first: int, there: int) -> State:
        """The target has more than the source's last segment `ours`, in `first`. If its writer is dead, that is all."""
        segment = SourceSegment(self._path, ours)
        try:
            if first > ours:
                text = (
                    f"{self._key}: the target has segment {first}, the source none after {ours}; it was kept"
                )
                self._tally.note("longer", self._key, text)
            end = ends.read_end(self._path, ours)
            if end is None or self._limit(segment, unread=False) != end.length:
                return "current"  # none, or void: its writer went on
        finally:
            segment.close()
        self._settle()
        reason = end_at_target(self._copy, first, there, end)
        if reason:
            self._tally.told_end(self._key, reason)
        return "done"

    # -- where to end --------------------------------------------------------------------------------------

    def _limit(self, segment: SourceSegment, unread: bool) -> int:
        """How much of the last segment counts: with a `.end` that holds, not what was torn behind it."""
        if unread:
            return compare.last_line_end(segment.read, segment.size)
        end = ends.read_end(self._path, segment.first_seq)
        if end is None or end.length > segment.size:
            return segment.size
        return segment.size if compare.has_valid_line(segment.read, end.length, segment.size) else end.length

    def _last(self, segment: SourceSegment, offset: int) -> State:
        """The end of the stream, if it has one: its closing seal, or its `.end`, which goes after the bytes."""
        seal = compare.seal_of(segment.read(max(0, offset - _TAIL), min(offset, _TAIL)))
        if seal is not None and seal.get("closed") is True:
            return "done"
        end = ends.read_end(self._path, segment.first_seq)
        if end is None or end.length > offset or self._limit(segment, unread=False) != end.length:
            return "current"  # none, not there yet, or void: its writer went on
        first = segment.first_seq
        if compare.has_valid_line(lambda at, size: self._copy.read(first, at, size), end.length, offset):
            text = f"{self._key}: the target has lines of segment {first} that are damaged in the source; they were kept"
            self._tally.note("longer", self._key, text)
            return self._end_there(first, first, offset)
        name = layout.end_name(first)
        raw = read_side(self._path, name)
        if raw != self._copy.side(name) and not self._has_later:
            self._settle()
            self._copy.put_side(name, raw)
            self._tally.told_end(self._key, end.reason)
        return "done"

    def _finish(self, segment: SourceSegment, offset: int, following: int, *, unread: bool) -> State:
        """Completes a segment that has a next one: with the torn bytes that its writer left, if it did."""
        first, size = segment.first_seq, segment.size
        if not (unread and offset == size) and not self._is_complete(segment, following):
            why = f"segment {first} is not complete, though segment {following} is there"
            if not self._is_over(("incomplete", first, size), why, PATIENCE_ELSEWHERE_S):
                return "waiting"
        if offset < size:
            self._make_durable(segment)
        while offset < size:
            data = segment.read(offset, MAX_LINE)
            self._append(first, offset, data)
            offset += len(data)
        self._settle()
        self._memory.verified[first] = self._memory.complete[first] = (segment.identity, offset)
        return "done"

    def _is_complete(self, segment: SourceSegment, following: int) -> bool:
        """True when the segment has its seal, or is what the header of the next one says."""
        size = segment.size
        if compare.seal_of(segment.read(max(0, size - _TAIL), _TAIL)) is not None:
            return True
        return self._prev_of(following) == segment.sha256(size)

    def _prev_of(self, following: int) -> str | None:
        try:
            with reading(self._path):
                header = read_segment_header(os.path.join(self._path, layout.segment_name(following)))
        except FormatError:
            return None
        return header.prev if header is not None else None

    def _send_pruned(self, there: dict[int, int]) -> None:
        """What was removed from the source's front will not come: the target must know, unless it has it."""
        pruned = ends.read_pruned(self._path)
        if pruned is None or (there and min(there) <= pruned.through):
            return
        raw = read_side(self._path, layout.PRUNED_FILE)
        theirs = self._copy.side(layout.PRUNED_FILE)
        if raw != theirs and _through(theirs) < pruned.through:
            self._copy.put_side(layout.PRUNED_FILE, raw)


def _through(raw: bytes) -> int:
    try:
        through = decode_line(raw.removesuffix(b"\n")).get("through")
    except FormatError:
        return 0
    return through if type(through) is int else 0
