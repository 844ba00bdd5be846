"""What can be told of streams and runs from the ends of their files, without reading them through."""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from spoolagent.errors import FormatError
from spoolagent.format import live
from spoolagent.format.ends import read_end, read_pruned
from spoolagent.format.header import Header, read_header
from spoolagent.format.layout import (
    SEGMENT_SUFFIX,
    StreamKey,
    iter_streams,
    list_segments,
    segment_name,
    stream_dir,
)
from spoolagent.format.lines import MAX_LINE, decode_line
from spoolagent.format.plain import open_plain
from spoolagent.format.spool import open_spool

RunState = Literal["running", "finished", "failed", "killed"]
_WINDOWS = (1 << 14, 2 * MAX_LINE)
"""Bytes looked at from a file's end: a few lines are enough; the second try holds a longest line for sure."""
_LINES = 16
_RECENT_NS = 60_000_000_000
"""The LIVE of another host counts as renewed while its content is younger than this (clocks agree this well)."""
_WORST = ("failed", "killed", "finished")


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamFacts:
    """One stream, as its files' ends tell."""

    key: StreamKey
    header: Header | None
    """None while it has none, or when it cannot be read (`note` says why)."""
    note: str
    """Why the stream cannot be read, or ""."""
    segments: int
    bytes: int
    """Bytes of all segments."""
    first_seq: int
    """seq of the first event that is at hand."""
    last_seq: int
    """seq of the last event, 0 when there was none; also when it was pruned since."""
    last_time_ns: int | None
    """Time of the last event at hand."""
    ended: Literal["closed", "dead"] | None
    """"closed" by its writer's seal, "dead" by a `.end`; None while it has not ended."""
    end_status: RunState | None
    """How the stream counts for the run's state: None while it is open."""
    exit_code: int | None
    alive: bool | None
    """Whether its writer lives; None when this machine cannot know (born elsewhere, another host)."""

    @property
    def events(self) -> int:
        """How many seqs are at hand."""
        return max(0, self.last_seq - self.first_seq + 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """One run, with the facts of its streams."""

    site: str
    run: str
    streams: tuple[StreamFacts, ...]
    state: RunState | None
    """None when no main stream is at hand that says."""

    @property
    def exit_code(self) -> int | None:
        """That of the main stream that decides the state."""
        codes = [s.exit_code for s in _deciding(self.streams) if s.end_status == self.state]
        return next((code for code in codes if code), codes[0] if codes else None)

    @property
    def last_time_ns(self) -> int | None:
        """Time of the last event of any stream."""
        return max((s.last_time_ns for s in self.streams if s.last_time_ns is not None), default=None)

    @property
    def is_orphan(self) -> bool:
        """True for a run that counts as running though no writer of an open main stream lives."""
        still_open = [s for s in _deciding(self.streams) if s.ended is None]
        return bool(still_open) and all(s.alive is False for s in still_open)


class _Tail(NamedTuple):
    lines: list[dict[str, Any]]
    """The last valid lines, oldest first."""
    end: int
    """Offset behind the last of them, 0 when there is none."""


def stream_facts(spool: str, key: StreamKey, *, home: str | None = None) -> StreamFacts:
    """The facts of one stream. `home` is the uuid of the spool at `spool`, read when it is not given.

    Raises what `open_spool` raises, and OSError when files cannot be read. Takes no lock.
    """
    home = open_spool(spool).uuid if home is None else home
    folder = stream_dir(spool, key)
    header, note = _header(folder)
    segments = list_segments(folder)
    pruned = read_pruned(folder)
    tail, last_seq, time_ns = _last_event(folder, segments)
    if pruned is not None:
        last_seq = max(last_seq, pruned.through)
    ended = _ended(folder, segments, tail, last_seq)
    end_status, exit_code = _end_status(tail.lines, ended)
    return StreamFacts(
        key=key,
        header=header,
        note=note,
        segments=len(segments),
        bytes=_size(folder),
        first_seq=segments[0] if segments else last_seq + 1,
        last_seq=last_seq,
        last_time_ns=time_ns,
        ended=ended,
        end_status=end_status,
        exit_code=exit_code,
        alive=False if ended else is_alive(folder, at_home=header is not None and header.spool == home),
    )


def run_facts(spool: str, site: str | None = None, run: str | None = None) -> Iterator[RunFacts]:
    """The facts of all runs, in the order of their names; optionally of one site or run. Raises as `stream_facts`."""
    home = open_spool(spool).uuid
    held: list[StreamFacts] = []
    for key in iter_streams(spool, site, run):
        if held and held[0].key[:2] != key[:2]:
            yield _run(held)
            held = []
        held.append(stream_facts(spool, key, home=home))
    if held:
        yield _run(held)


def run_state(streams: Iterable[StreamFacts]) -> RunState | None:
    """The state of a run from all its streams, as docs/format.md says; None when no main stream is known.

    Running while any main stream of the latest attempt has not ended, or only an aux stream of it is there yet;
    else the worst of them.
    """
    known = list(streams)
    deciding = _deciding(known)
    if not deciding:
        has_main = any(s.header is not None and s.header.role == "main" for s in known)
        return "running" if has_main else None
    if any(stream.ended is None for stream in deciding):
        return "running"
    states: list[RunState] = [stream.end_status or "killed" for stream in deciding]
    return min(states, key=_WORST.index)


def _run(streams: list[StreamFacts]) -> RunFacts:
    site, run, _ = streams[0].key
    return RunFacts(site=site, run=run, streams=tuple(streams), state=run_state(streams))


def _deciding(streams: Iterable[StreamFacts]) -> list[StreamFacts]:
    found = [(s.header.attempt, s.header.role, s) for s in streams if s.header is not None]
    latest = max((attempt for attempt, _, _ in found), default=0)
    return [stream for attempt, role, stream in found if role == "main" and attempt == latest]


def _header(folder: str) -> tuple[Header | None, str]:
    try:
        return read_header(folder), ""
    except FormatError as error:
        return None, str(error)
    except FileNotFoundError:
        return None, "it was removed just now"


def _size(folder: str) -> int:
    size = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(SEGMENT_SUFFIX):
                    size += entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        pass  # the stream was pruned away between two looks
    return size


def _last_event(folder: str, segments: list[int]) -> tuple[_Tail, int, int | None]:
    """The tail of the last segment, and (seq, time) of the last event, perhaps of the segment before it."""
    tail = _Tail([], 0)
    for place, first in enumerate(reversed(segments[-2:])):
        found = _read_tail(os.path.join(folder, segment_name(first)))
        if place == 0:
            tail = found
        for line in reversed(found.lines):
            seq, time_ns = line.get("seq"), line.get("time")
            if type(seq) is int and seq >= first:
                return tail, seq, time_ns if type(time_ns) is int else None
    return tail, segments[-1] - 1 if segments else 0, None


def _read_tail(path: str) -> _Tail:
    try:
        with open_plain(path) as file:
            size = file.seek(0, os.SEEK_END)
            tail = _Tail([], 0)
            for window in _WINDOWS:
                start = max(0, size - window)
                file.seek(start)
                tail = _lines_of(file.read(size - start), start)
                if len(tail.lines) > 1 or start == 0:
                    return tail
            return tail
    except FileNotFoundError:
        return _Tail([], 0)


def _lines_of(data: bytes, start: int) -> _Tail:
    found: list[dict[str, Any]] = []
    end, stop = 0, data.rfind(b"\n")
    while stop >= 0 and len(found) < _LINES:
        begin = data.rfind(b"\n", 0, stop)
        try:
            found.append(decode_line(data[begin + 1 : stop]))
            end = end or start + stop + 1
        except FormatError:
            pass
        stop = begin
    return _Tail(found[::-1], end)


def _ended(folder: str, segments: list[int], tail: _Tail, last_seq: int) -> Literal["closed", "dead"] | None:
    if tail.lines and type(tail.lines[-1].get("seal")) is int and tail.lines[-1].get("closed") is True:
        return "closed"
    end = read_end(folder, segments[-1]) if segments else None
    if end is None or end.length < tail.end or end.last < last_seq:
        return None  # valid lines behind it: the writer turned out to live, the end is void
    return "dead"


def _end_status(
    lines: list[dict[str, Any]], ended: Literal["closed", "dead"] | None
) -> tuple[RunState | None, int | None]:
    if ended is None:
        return None, None
    ends: list[dict[str, Any]] = [line for line in lines if line.get("type") == "run_end"]
    said = ends[-1] if ends else {}
    status, code = said.get("status"), said.get("exit_code")
    exit_code = code if type(code) is int else None
    if status in ("failed", "finished"):
        return cast(RunState, status), exit_code
    return "killed", exit_code


def is_alive(folder: str, *, at_home: bool) -> bool | None:
    """Whether the writer of the stream lives; None when this machine cannot know. Takes no lock.

    `at_home`: the stream was born in this spool, so a missing LIVE says that its writer is gone.
    """
    if live.is_held_here(folder):
        return True  # to open LIVE here and close it again would free the lock
    try:
        owner, raw = live.read_owner(folder)
    except OSError:
        return None
    if owner is None:
        return False if at_home and not raw else None
    if (owner.host, owner.boot) == (live.host_name(), live.boot_id()):
        return live.is_locked(folder)
    return True if time.time_ns() - owner.time_ns < _RECENT_NS else None


def start_fields(spool: str, key: StreamKey) -> dict[str, Any]:
    """The `run_start` event with which the stream begins; empty when it is pruned, damaged or not there yet."""
    segments = list_segments(stream_dir(spool, key))
    if segments[:1] != [1]:
        return {}
    try:
        with open_plain(os.path.join(stream_dir(spool, key), segment_name(1))) as file:
            file.readline(MAX_LINE)
            line = decode_line(file.readline(MAX_LINE).removesuffix(b"\n"))
    except (FormatError, FileNotFoundError):
        return {}
    return line if line.get("type") == "run_start" else {}
