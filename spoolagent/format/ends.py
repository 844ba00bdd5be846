"""How a stream ended when its writer did not say so: `.end` and `pruned.json`, and who is dead."""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from spoolagent.errors import FormatError
from spoolagent.format import durable, live
from spoolagent.format.layout import (
    LIVE_FILE,
    MAX_SEQ,
    PRUNED_FILE,
    end_name,
    list_ends,
    list_segments,
    segment_name,
)
from spoolagent.format.lines import MAX_LINE, decode_line, encode_line, has_valid_crc
from spoolagent.format.plain import open_plain

STALE_AFTER_S = 60.0
_NUMBERS = re.compile(rb'"(length|last)":(\d{1,18})[,}]')
_SHORTEST_EVENT = 70
"""Bytes that an event's line has at least."""


class End(NamedTuple):
    """The content of a `.end`: the last segment up to the end of its last whole line."""

    length: int
    last: int
    sha256: str
    reason: str
    time_ns: int


class Pruned(NamedTuple):
    """The content of `pruned.json`: what was removed from the stream's front."""

    through: int
    prev: str


def _read_raw(path: str) -> bytes:
    try:
        with open_plain(path) as file:
            return file.read(MAX_LINE)
    except (FileNotFoundError, NotADirectoryError):
        return b""


def _line_in(raw: bytes) -> dict[str, Any] | None:
    try:
        return decode_line(raw.removesuffix(b"\n")) if raw.endswith(b"\n") else None
    except FormatError:
        return None  # damaged: as if it were not there; fsck reports it, and the agent at home writes it anew


def read_end(stream: str, first_seq: int) -> End | None:
    """The valid `.end` of a segment, or None."""
    return parse_end(_read_raw(os.path.join(stream, end_name(first_seq))))


def parse_end(raw: bytes) -> End | None:
    """What the content of a `.end` says, or None when it is not valid."""
    data = _line_in(raw)
    if data is None:
        return None
    try:
        end = End(data["length"], data["last"], data["sha256"], data["reason"], data["time"])
    except KeyError:
        return None
    numbers = (end.length, end.last, end.time_ns)
    fine = all(type(n) is int and 0 <= n < 2**63 for n in numbers) and max(numbers[:2]) <= MAX_SEQ
    return end if fine and type(end.sha256) is str and type(end.reason) is str else None


def read_pruned(stream: str) -> Pruned | None:
    """The valid `pruned.json` of a stream, or None."""
    data = _line_in(_read_raw(os.path.join(stream, PRUNED_FILE)))
    through = data.get("through") if data is not None else None
    if (
        data is None
        or type(through) is not int
        or not 0 <= through <= MAX_SEQ
        or type(data.get("prev")) is not str
    ):
        return None
    return Pruned(through, data["prev"])


class DeathWatch:
    """Tells which writers are dead, with the memory that this needs for writers on other machines.

    `stale_after_s`: how long the LIVE of another host or boot may stay unchanged, by our own monotonic clock.
    """

    def __init__(
        self, *, stale_after_s: float = STALE_AFTER_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stale_after_s = stale_after_s
        self._clock = clock
        self._seen: dict[str, tuple[bytes, float]] = {}

    def is_dead(self, stream: str) -> bool:
        """True when the writer of the stream (born in this spool) will not write again.

        A lock that seems free is believed once: after a void `.end` only a content that does not change any more counts.
        A LIVE that cannot be read tells nothing: no writer dies of an error that its observer has.
        """
        if live.is_held_here(stream):
            return False
        try:
            owner, raw = live.read_owner(stream)
        except OSError:
            return False
        at_home = owner is not None and (owner.host, owner.boot) == (live.host_name(), live.boot_id())
        locked = live.is_locked(stream) if at_home else None
        if locked is not None and (locked or not _outlived_an_end(stream)):
            return not locked
        if owner is None and not raw and _is_missing(os.path.join(stream, LIVE_FILE)):
            return True
        known = self._seen.get(stream)
        now = self._clock()
        if known is None or known[0] != raw:
            self._seen[stream] = (raw, now)
            return False
        return now - known[1] >= self._stale_after_s

    @staticmethod
    def is_surely_alive(stream: str) -> bool:
        """True when a process of this machine holds the stream's LIVE and says that it is its writer: a quick look.

        Raises OSError when LIVE cannot be read.
        """
        if live.is_held_here(stream):
            return True
        owner, _ = live.read_owner(stream)
        at_home = owner is not None and (owner.host, owner.boot) == (live.host_name(), live.boot_id())
        return at_home and live.is_locked(stream) is True

    def forget(self, stream: str) -> None:
        """Drops what is remembered of a stream that has ended."""
        self._seen.pop(stream, None)


def _is_missing(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # an error is no evidence that it is gone
        pass
    return False


def _outlived_an_end(stream: str) -> bool:
    """True when the stream went on after somebody had taken its writer for dead: its lock lies, or it was suspended."""
    first = max(list_segments(stream), default=0)
    if any(seq < first for seq in list_ends(stream)):
        return True
    known = read_end(stream, first)
    if known is None:
        return False
    with open_plain(os.path.join(stream, segment_name(first))) as file:
        file.seek(known.length)
        return any(line.endswith(b"\n") and has_valid_crc(line[:-1]) for line in file)


def end_dead_stream(stream: str, watch: DeathWatch) -> bool:
    """Writes the `.end` of a stream whose writer is dead. True when the stream has ended now, however.

    Only for a stream born in this spool. Two agents at once write it once: the second finds it there.
    """
    segments = list_segments(stream)
    if not segments:
        return False
    first = segments[-1]
    if is_closed(os.path.join(stream, segment_name(first))):
        watch.forget(stream)
        return True
    if not watch.is_dead(stream):
        return False
    if segments != list_segments(stream):  # it went on between the two looks
        return False
    path = os.path.join(stream, segment_name(first))
    durable.fsync_path(path)
    durable.fsync_dir(stream)
    if is_closed(path):
        return True
    measured = measure(path, first)
    _write_end(stream, first, measured, max(measured.last, last_known(stream, first, measured)))
    return True


def last_known(stream: str, first: int, measured: "Measured") -> int:
    """The last seq that the stream is known to have had, whatever is left of its last segment `first`; 0: not known.

    An `.end`, even a damaged one, that of a later segment that is gone, and `pruned.json` remember it.
    """
    pruned = read_pruned(stream)
    found = [pruned.through if pruned is not None else 0]
    for seq in list_ends(stream):
        if seq < first:
            continue
        end = read_end(stream, seq)
        if end is not None:
            found.append(end.last)
        elif seq == first:
            found.append(_last_in(_read_raw(os.path.join(stream, end_name(seq))), measured))
        found.append(seq - 1)
    return max(found)


def _last_in(raw: bytes, measured: "Measured") -> int:
    """What a damaged `.end` still tells of the last seq, if it shows that the segment was longer; else 0."""
    if measured.sha256.encode() in raw:
        return 0
    says = {name: int(number) for name, number in _NUMBERS.findall(raw)}
    missing, last = says.get(b"length", 0) - measured.length, says.get(b"last", 0)
    if missing <= 0:
        return min(last, MAX_SEQ)
    most = measured.last + max(1, missing // _SHORTEST_EVENT)  # one of its digits may be damaged, too
    return min(max(last, measured.last + 1), most, MAX_SEQ)


def _write_end(stream: str, first: int, measured: "Measured", last: int) -> None:
    known = read_end(stream, first)
    if known is not None and known[:3] == (measured.length, last, measured.sha256):
        return
    missing = f"; seqs {measured.last + 1} to {last} are missing" if last > measured.last else ""
    target = os.path.join(stream, end_name(first))
    line = end_line(measured, last, f"its writer died{missing}")
    try:
        # One that is there is void (the writer went on after it), damaged, or knows of bytes that are gone.
        durable.write_file(target, line, exclusive=not os.path.lexists(target))
    except FileExistsError:
        return


def end_line(measured: "Measured", last: int, reason: str) -> bytes:
    """The content of a `.end`, made now."""
    return encode_line(
        {
            "length": measured.length,
            "last": last,
            "sha256": measured.sha256,
            "reason": reason,
            "time": time.time_ns(),
        }
    )


class Measured(NamedTuple):
    """A segment up to the end of its last valid line: length in bytes, last seq, SHA-256."""

    length: int
    last: int
    sha256: str


def measure(path: str, first_seq: int) -> Measured:
    """What an `.end` says of the segment as it is. Raises OSError."""
    with open_plain(path) as file:
        return measure_lines(iter(lambda: file.readline(MAX_LINE + 1), b""), first_seq)


def measure_lines(lines: Iterable[bytes], first_seq: int) -> Measured:
    """The same of a segment given in lines, or pieces of what is too long for one."""
    length, last, position = 0, first_seq - 1, 0
    digest, good = hashlib.sha256(), hashlib.sha256()
    for line in lines:
        digest.update(line)
        position += len(line)
        if not line.endswith(b"\n") or not has_valid_crc(line[:-1]):
            continue
        length, good = position, digest.copy()
        try:
            value = decode_line(line[:-1])
        except FormatError:
            continue  # no JSON, though its checksum says that it is as it was written
        seq = value.get("seq", value.get("seal"))
        if type(seq) is int and last < seq <= MAX_SEQ:
            last = seq
    return Measured(length, last, good.hexdigest())


def last_lines(path: str, count: int = 2, window: int = 1 << 16) -> list[dict[str, Any]]:
    """The last valid lines of a segment that lie in its last `window` bytes, at most `count`, decoded."""
    with open_plain(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - window))
        data = file.read()
    found: list[dict[str, Any]] = []
    for line in reversed(data[: data.rfind(b"\n")].split(b"\n") if b"\n" in data else []):
        if len(found) == count:
            break
        try:
            found.append(decode_line(line))
        except FormatError:
            continue
    return found[::-1]


def is_closed(segment: str) -> bool:
    """True when the segment ends with a seal by which its writer closed the stream."""
    try:
        lines = last_lines(segment, 1)
    except FileNotFoundError:
        return False
    return bool(lines) and type(lines[0].get("seal")) is int and lines[0].get("closed") is True
