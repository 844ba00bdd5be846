"""Reading a stream, resumably: whole valid lines only, in seq order, around damage.

The reader holds no file open and trusts no inode: each `read` opens the segment by name and goes on at a byte
offset. What is not a valid line yet is read again for a while (network file systems show holes, rsync copies in
any order); then its seqs are lost, its bytes are handed out for quarantine, and reading goes on behind it.
"""

import hashlib
import os
import time
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Literal, NamedTuple
from zlib import crc32

import orjson

from spoolagent.errors import FormatError, NewerFormat
from spoolagent.format import durable
from spoolagent.format.blocks import BLOCK, plain_events
from spoolagent.format.ends import End, read_end, read_pruned
from spoolagent.format.events import Event, parse_event
from spoolagent.format.header import Header, parse_header, read_segment_header
from spoolagent.format.layout import MAX_SEQ, list_segments, segment_name
from spoolagent.format.lines import CRC_BYTES, MAX_LINE, has_valid_crc
from spoolagent.format.plain import open_plain
from spoolagent.format.tail import Tail, events_in, look_back

PATIENCE_S = 60.0
"""How long a bad line with its newline is read again before it is given up."""
PATIENCE_ELSEWHERE_S = 86_400.0
"""How long bytes that are merely missing are waited for where the stream was not born: a shipper may bring them."""


_PIECE = 1 << 18
"""Bytes read at once: some thousand events, and little to throw away when only a batch of them is wanted."""


class Position(NamedTuple):
    """How far a stream has been read: the next byte, and the seq that is expected next."""

    segment: int
    offset: int
    next_seq: int


START = Position(0, 0, 1)
"""Before the stream's first byte (segment 0: whichever is first)."""


class Lost(NamedTuple):
    """Seqs whose bytes are destroyed."""

    first: int
    last: int
    reason: str


class Bad(NamedTuple):
    """Bytes that are no valid line."""

    segment: int
    offset: int
    data: bytes
    reason: str


State = Literal["more", "waiting", "blocked", "closed", "dead", "parked"]
"""more: read on at once. waiting: at the end of what there is. blocked: something is missing or bad and may
still heal. closed: the writer ended the stream. dead: its `.end` did. parked: a later format."""


class Chunk(NamedTuple):
    """What one `read` found; resolving all of it moves the cursor to `position`."""

    events: list[Event]
    lost: list[Lost]
    bad: list[Bad]
    position: Position
    state: State
    note: str

    @property
    def is_empty(self) -> bool:
        """True when there is nothing to resolve."""
        return not (self.events or self.lost or self.bad)


class StreamReader:
    """Reads the stream in directory `stream` from `position` on.

    `at_home`: the stream was born in this spool, so bytes that are missing will not come from anywhere, and
    what is read is fsynced before it is handed out. `clock` is a monotonic clock in s.
    """

    def __init__(
        self,
        stream: str,
        position: Position = START,
        *,
        at_home: bool,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = PATIENCE_S,
        patience_elsewhere_s: float = PATIENCE_ELSEWHERE_S,
    ) -> None:
        self.stream = stream
        self.position = position
        self.header: Header | None = None
        """The header last read; of the first segment at hand after `load_header`."""
        self.impatient = False
        """True while what is read again was given up before: nothing is waited for."""
        self._at_home = at_home
        self._clock = clock
        self._patience_s = patience_s
        self._patience_elsewhere_s = patience_s if at_home else patience_elsewhere_s
        self._suspect: tuple[object, float] | None = None
        self._complete: tuple[int, int, int, bool] | None = None
        self._synced: tuple[int, int] = (0, 0)
        self._parsed: tuple[Position, bytes] | None = None
        self._looked: tuple[tuple[int, ...], Tail] | None = None
        self._listed: list[int] = []
        self._bad_before = 0  # the seq that was expected when a bad line was given up, if nothing came since

    # -- the caller's side -------------------------------------------------------------------------------

    @property
    def may_rest(self) -> bool:
        """True when a new reader at this position would go on just as this one."""
        return self._bad_before != self.position.next_seq

    def read(self, max_bytes: int = 1 << 20, *, until_seq: int | None = None) -> Chunk:
        """What stands at the position, up to about `max_bytes` or the event `until_seq`, and moves there.

        Raises OSError when the file system fails; then the position is as before.
        """
        before = self.position
        self._events: list[Event] = []
        self._lost: list[Lost] = []
        self._bad: list[Bad] = []
        self._note = ""
        try:
            state = self._read(max_bytes, until_seq)
        except NewerFormat as error:
            self._note, state = str(error), "parked"
        except BaseException:
            self.position = before
            raise
        return Chunk(self._events, self._lost, self._bad, self.position, state, self._note)

    # -- one segment ---------------------------------------------------------------------------------------

    def _read(self, max_bytes: int, until_seq: int | None) -> State:
        if self.position.segment == 0:
            state = self._first_segment()
            if state is not None:
                return state
        path = self._path()
        try:
            file = open_plain(path, 0)
        except FileNotFoundError:
            return self._missing_segment()
        with file:
            fd = file.fileno()
            size = os.fstat(fd).st_size
            data = os.pread(fd, min(max_bytes, _PIECE), self.position.offset)
            if data and b"\n" not in data:  # a longer line
                data = os.pread(fd, MAX_LINE + 1, self.position.offset)
            if data and self._at_home:
                self._sync(fd, path, size)
        if size < self.position.offset:
            return self._shrunk(path, size)
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) > MAX_LINE:
            return self._oversized(data)
        state = self._lines(data, end, until_seq) if end else None
        if state is not None:
            return state
        if self.position.offset + len(data) - end < size and end:
            return "more"
        return self._at_end(path, data[end:], size)

    def _path(self) -> str:
        return os.path.join(self.stream, segment_name(self.position.segment))

    def _sync(self, fd: int, path: str, size: int) -> None:
        """Nothing leaves this machine that it could still forget."""
        segment, synced = self._synced
        if segment == self.position.segment and synced >= size:
            return
        durable.fsync_fd(fd, path)
        if segment != self.position.segment:
            durable.fsync_dir(self.stream)
            if not segment:  # its writer may have been killed just after it gave it its name
                durable.fsync_dir(os.path.dirname(self.stream))
        self._synced = (self.position.segment, size)

    def _lines(self, data: bytes, end: int, until_seq: int | None) -> State | None:
        """Takes the whole lines in data[:end]; None when all of them were taken."""
        limit = 2**63 if until_seq is None else until_seq
        # A header, the events up to the limit, and one line more, which shows that there is more.
        most = min(max(limit - self.position.next_seq, 0) + 3, len(data))
        lines = data[: end - 1].split(b"\n", most)
        state: State | None = "more" if len(lines) > most else None
        del lines[most:]
        at = 0
        while at < len(lines):
            room = min(limit - self.position.next_seq + 1, BLOCK) if self.position.offset else 1
            block = lines[at : at + max(room, 1)]
            at += len(block)
            if not self._plain_lines(block, limit):
                found = self._line_by_line(block, limit)
                if found is not None:
                    return found
        return state

    def _plain_lines(self, lines: list[bytes], limit: int) -> bool:
        """Takes the lines when each of them is simply the next event; False: took none."""
        segment, offset, expected = self.position
        if offset == 0 or expected + len(lines) - 1 > limit:
            return False
        events = plain_events(lines, expected)
        if events is None:
            return False
        self._events += events
        offset += sum(map(len, lines)) + len(lines)
        self.position = Position(segment, offset, expected + len(lines))
        return True

    def _line_by_line(self, lines: list[bytes], limit: int) -> State | None:
        segment = self.position.segment
        for line in lines:
            if self._plain_lines([line], limit):
                continue
            if self.position.next_seq > limit:
                return "more"
            state = self._odd_line(line)
            if state is not None or self.position.segment != segment:
                return state or "more"
        return None

    def _odd_line(self, line: bytes) -> State | None:
        """A line that is not simply the next event. None: it was taken, go on behind it."""
        position = self.position
        valid = line[-CRC_BYTES:] == b',"crc":"%08x"}' % crc32(line[:-CRC_BYTES])
        fields: Any = None
        if valid:
            try:
                fields = orjson.loads(line)
            except orjson.JSONDecodeError:
                valid = False
        if not valid or type(fields) is not dict:
            return self._bad_line(line, "its checksum does not match")
        if position.offset == 0:
            return self._header_line(line, fields)
        if type(fields.get("seal")) is int and fields["seal"] <= MAX_SEQ:
            return self._seal_line(line, fields)
        event = parse_event(fields)
        if event is None:
            return self._bad_line(line, "it is no event", heals=False)
        if event.seq < position.next_seq:
            return self._bad_line(line, f"seq {event.seq} stands there a second time", heals=False)
        if event.seq > position.next_seq and not self._give_up_until(
            event.seq - 1, "their bytes are missing"
        ):
            return "blocked"
        self._events.append(event)
        self._take(len(line) + 1, event.seq + 1)
        return None

    def _take(self, length: int, next_seq: int) -> None:
        segment, offset, _ = self.position
        self.position = Position(segment, offset + length, next_seq)

    def _header_line(self, line: bytes, fields: dict[str, Any]) -> State | None:
        try:
            header = parse_header(fields, self._path())
        except NewerFormat:
            raise
        except FormatError as error:
            return self._bad_line(line, str(error), heals=False)
        if header.writer != os.path.basename(self.stream) or header.first_seq != self.position.segment:
            self._note = (
                f"{self._path()} says that it is segment {header.first_seq} of writer {header.writer}"
            )
            return "blocked"
        self.header = header
        self._take(len(line) + 1, self.position.next_seq)
        return None

    def _bad_line(self, line: bytes, reason: str, *, heals: bool = True) -> State | None:
        offset = self.position.offset
        if heals:
            state = self._wait_or(
                ("bad", offset), f"{self._path()} has a bad line at byte {offset}: {reason}", home=False
            )
            if state is not None:
                return state
        self._bad.append(Bad(self.position.segment, offset, line + b"\n", reason))
        self._take(len(line) + 1, self.position.next_seq)
        self._bad_before = self.position.next_seq
        return None

    def _oversized(self, data: bytes) -> State:
        """More than a line's limit without a newline: nothing of format 1 begins here."""
        state = self._wait_or(
            ("bad", self.position.offset), f"{self._path()} has a line of over 1 MiB", home=False
        )
        if state is not None:
            return state
        self._bad.append(Bad(self.position.segment, self.position.offset, data, "a line of over 1 MiB"))
        self._take(len(data), self.position.next_seq)
        self._bad_before = self.position.next_seq
        return "more"

    def _seal_line(self, line: bytes, fields: dict[str, Any]) -> State | None:
        last, closed = fields["seal"], fields.get("closed") is True
        if last >= self.position.next_seq and not self._give_up_until(
            last, "their bytes are missing before the seal"
        ):
            return "blocked"
        if closed:
            return "closed"
        following = self._following()
        if following is not None:
            return self._enter(following)
        end = read_end(self.stream, self.position.segment)
        sealed = self.position.offset + len(line) + 1
        if end is None or end.length != sealed:
            return "waiting"
        if end.last >= self.position.next_seq and not self._give_up_until(
            end.last, "missing before the stream's end"
        ):
            return "blocked"
        return "dead"

    # -- between segments --------------------------------------------------------------------------------------

    def _following(self) -> int | None:
        at = bisect_right(self._listed, self.position.segment)
        if self._listed[at : at + 1] != [self.position.next_seq]:  # else it is the one that has to come
            self._listed = list_segments(self.stream)
            at = bisect_right(self._listed, self.position.segment)
        return self._listed[at] if at < len(self._listed) else None

    def _enter(self, first: int) -> State:
        """Goes on in the segment `first`, with what is missing before it given up if it must be."""
        if first > self.position.next_seq and not self._give_up_until(
            first - 1, f"missing before segment {first}"
        ):
            return "blocked"
        self.position = Position(first, 0, max(self.position.next_seq, first))
        return "more"

    def _first_segment(self) -> State | None:
        segments = list_segments(self.stream)
        if not segments:
            return "waiting"
        if (
            segments[0] > self.position.next_seq
            and not self._pruned()
            and not self._give_up_until(segments[0] - 1, "the stream's first segment is missing")
        ):
            return "blocked"
        self.position = Position(segments[0], 0, max(self.position.next_seq, segments[0]))
        return None

    def _shrunk(self, path: str, size: int) -> State:
        """The segment is shorter than what was read of it: what was read counts, the rest may come back."""
        end = read_end(self.stream, self.position.segment)
        following = self._following()
        if following is None and end is not None:
            return self._ended(end, b"")
        state = self._wait_or(("shrunk", size), f"{path} is shorter than what was read of it", home=True)
        if state is None and following is not None:
            self._bad_before = self.position.next_seq  # what is missing was waited for
            return self._enter(following)
        self._note = f"{path} is shorter than what was read of it"
        return "blocked"

    def _missing_segment(self) -> State:
        if self._pruned():
            following = self._following()
            return self._enter(following) if following is not None else "waiting"
        earlier = self._ended_earlier()
        if earlier is not None:
            return self._ended(earlier, b"")
        following = self._following()
        state = self._wait_or(("gone", self.position.segment), f"{self._path()} is gone", home=True)
        if state is not None or following is None:
            self._note = f"{self._path()} is gone"
            return "blocked"
        self._bad_before = self.position.next_seq  # what is missing was waited for
        return self._enter(following)

    def _ended_earlier(self) -> End | None:
        """The stream's `.end` at home, if it stands before what was read: an old backup of it was put back."""
        segments = list_segments(self.stream)
        end = read_end(self.stream, segments[-1]) if self._at_home and segments else None
        if end is None or segments[-1] > self.position.segment:
            return None
        if end.last < self.position.next_seq:
            self._note = (
                f"{self.stream} ends with seq {end.last}, though seq {self.position.next_seq - 1} was read of it: "
                "an old backup was restored, or a part was removed"
            )
        return end

    def _pruned(self) -> bool:
        """True when the front was removed on purpose, beyond what was read; then its seqs are lost to this reader."""
        pruned = read_pruned(self.stream)
        if pruned is None or pruned.through < self.position.next_seq:
            return False
        self._lost.append(
            Lost(self.position.next_seq, pruned.through, "pruned before this receiver had read it")
        )
        self.position = self.position._replace(next_seq=pruned.through + 1)
        return True

    def _at_end(self, path: str, torn: bytes, size: int) -> State:
        """At the end of the whole lines of a segment without a seal."""
        following = self._following()
        if following is not None:
            has_all = (
                following == self.position.next_seq
            )  # what is missing is no event: a seal, lost in a power cut
            if (torn or not has_all) and not self._is_complete(size, following):
                why = f"{path} is not complete, though segment {following} is there"
                state = self._wait_or(("incomplete", size), why, home=not has_all)
                if state is not None:
                    return state
                self._bad_before = self.position.next_seq
            self._torn(torn)
            return self._enter(following)
        tail = self._look_back(path)
        if tail.healed_at is not None:
            self.position = self.position._replace(offset=tail.healed_at)
            return "more"
        end = read_end(self.stream, self.position.segment)
        if end is None:
            return self._open_end(path, tail.took)
        if end.length < self.position.offset:
            return self._ended_in_damage(end, path, torn)
        return self._ended(end, torn)

    def _look_back(self, path: str) -> Tail:
        """What became of bad lines at the end that were given up. Looks once at the same bytes, and when nothing comes."""
        status = os.stat(path)
        key = (*self.position, status.st_size, status.st_mtime_ns)
        if self._events:
            return Tail(None, 0)
        if self._looked is None or self._looked[0] != key:
            with open_plain(path) as file:
                self._looked = key, look_back(file.fileno(), self.position.offset, self.position.next_seq)
        return self._looked[1]

    def _open_end(self, path: str, took: int) -> State:
        """At the end of a stream that has none yet. Elsewhere it may never come, if the bad lines here held it."""
        if took and not self._at_home:
            first = self.position.next_seq
            if self._wait_or(("tail", *self.position), f"{path} ends in bad lines", home=True) is None:
                self._lost.append(
                    Lost(first, first + took - 1, "their bytes are damaged at the stream's end")
                )
                self.position = self.position._replace(next_seq=first + took)
        return "waiting"

    def _ended_in_damage(self, end: End, path: str, torn: bytes) -> State:
        """Whole lines follow where the `.end` says that the stream ends: damaged ones, or its writer went on."""
        with open_plain(path) as file:
            file.seek(end.length)
            lines = file.read(self.position.offset - end.length).split(b"\n")[:-1]
        if any(has_valid_crc(line) for line in lines):
            return "waiting"  # the end is void
        took = sum(events_in(line) for line in lines)
        if self.position.next_seq == end.last + 1 and took:
            self._lost.append(
                Lost(end.last + 1, end.last + took, "their bytes are damaged at the stream's end")
            )
            self.position = self.position._replace(next_seq=end.last + took + 1)
        self._torn(torn)
        return "dead"

    def _ended(self, end: End, torn: bytes) -> State:
        if end.last >= self.position.next_seq:  # else only a seal is missing: nothing to wait for
            why = f"{self._path()} ends at byte {self.position.offset}, its .end says {end.length}"
            state = self._wait_or(("short", self.position.offset), why, home=True)
            if state is not None:
                return state
            self._lost.append(Lost(self.position.next_seq, end.last, "missing before the stream's end"))
            self.position = self.position._replace(next_seq=end.last + 1)
        self._torn(torn)
        return "dead"

    def _torn(self, torn: bytes) -> None:
        """Hands out, once, the bytes of a last line that will never be whole."""
        key = (self.position, torn)
        if torn and self._parsed != key:
            self._bad.append(Bad(self.position.segment, self.position.offset, torn, "torn last line"))
            self._parsed = key

    def _is_complete(self, size: int, following: int) -> bool:
        """True when the current segment's hash is the one in the header of the next."""
        known = self._complete
        if known is not None and known[:3] == (self.position.segment, size, following):
            return known[3]
        try:
            header = read_segment_header(os.path.join(self.stream, segment_name(following)))
            if header is None:
                return False
            with open_plain(self._path()) as file:
                digest = hashlib.sha256()
                while piece := file.read(_PIECE):
                    digest.update(piece)
            same = digest.hexdigest() == header.prev
        except (OSError, FormatError):
            return False
        self._complete = (self.position.segment, size, following, same)
        return same

    # -- patience ------------------------------------------------------------------------------------------------

    def _give_up_until(self, last: int, reason: str) -> bool:
        """True when the seqs from the expected one through `last` are lost; False while they may still come."""
        if self._bad_before != self.position.next_seq:
            first = self.position.next_seq
            why = f"seqs {first} to {last} are missing in {self.stream}"
            if self._wait_or(("missing", first, last), why, home=True) is not None:
                return False
        self._lost.append(Lost(self.position.next_seq, last, reason))
        self.position = self.position._replace(next_seq=last + 1)
        return True

    def _wait_or(self, what: tuple[object, ...], note: str, *, home: bool) -> State | None:
        """The state blocked while `what` may still heal, None when patience is over. Another `what` begins anew.

        `home`: bytes are missing, for which a spool that is not the stream's home waits longer.
        """
        key: object = (self.position.segment, *what)
        now = self._clock()
        if self._suspect is None or self._suspect[0] != key:
            self._suspect = (key, now)
        patience = self._patience_elsewhere_s if home else self._patience_s
        if now - self._suspect[1] < patience and not self.impatient:
            self._note = note
            return "blocked"
        self._suspect = None
        return None
