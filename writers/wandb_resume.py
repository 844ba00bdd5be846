"""Where an earlier attempt of a run stopped counting steps, read from the ends of its streams in this spool."""

import os

from spoolagent.errors import FormatError
from spoolagent.format import layout
from spoolagent.format.header import read_header
from spoolagent.format.lines import decode_line

_TAIL = 256 << 10


def earlier(spool: str, site: str, run: str, attempt: int) -> tuple[bool, int]:
    """Whether the run has attempts before `attempt`, and the last step of the latest of them (-1: none seen)."""
    found: dict[int, list[str]] = {}
    try:
        for key in layout.iter_streams(spool, site, run):
            folder = layout.stream_dir(spool, key)
            header = _header(folder)
            if header is not None and header < attempt:
                found.setdefault(header, []).append(folder)
    except OSError:
        return False, -1
    for number in sorted(found, reverse=True):
        last = max(_last_step(folder) for folder in found[number])
        if last >= 0:
            return True, last
    return bool(found), -1


def _header(folder: str) -> int | None:
    try:
        header = read_header(folder)
    except (OSError, FormatError):
        return None
    return None if header is None else header.attempt


def _last_step(folder: str) -> int:
    """The highest step in the last 256 KiB of the stream's last segment that has one."""
    for first in reversed(layout.list_segments(folder)[-2:]):
        try:
            with open(os.path.join(folder, layout.segment_name(first)), "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL))
                lines = file.read(_TAIL).split(b"\n")
        except OSError:
            continue
        steps = [step for line in lines if (step := _step(line)) is not None]
        if steps:
            return max(steps)
    return -1


def _step(line: bytes) -> int | None:
    try:
        step = decode_line(line).get("step")
    except FormatError:
        return None
    return step if type(step) is int else None
