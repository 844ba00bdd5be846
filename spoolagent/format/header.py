"""The header line of a segment, parsed."""

import os
from typing import Any, NamedTuple

from spoolagent.errors import FormatError, NewerFormat
from spoolagent.format.layout import FORMAT, MAX_SEQ, list_segments, segment_name
from spoolagent.format.lines import MAX_LINE, decode_line
from spoolagent.format.plain import open_plain


class Header(NamedTuple):
    """What line 1 of a segment says."""

    spool: str
    run: str
    writer: str
    role: str
    attempt: int
    first_seq: int
    prev: str | None
    created_ns: int
    launch: str | None


def parse_header(data: dict[str, Any], where: str) -> Header:
    """The header in a decoded line. Raises NewerFormat or FormatError, naming `where`."""
    number = data.get("format")
    if type(number) is int and number > FORMAT:
        raise NewerFormat(f"{where} is of format {number}, this version reads {FORMAT}: upgrade spoolagent")
    kinds = {
        "format": int,
        "spool": str,
        "run": str,
        "writer": str,
        "attempt": int,
        "first": int,
        "created": int,
    }
    wrong = [name for name, kind in kinds.items() if type(data.get(name)) is not kind]
    if not wrong and not (
        0 < data["attempt"] <= MAX_SEQ and 0 < data["first"] <= MAX_SEQ and 0 <= data["created"] < 2**63
    ):
        wrong = ["a number"]
    if wrong or data.get("role") not in ("main", "aux") or not isinstance(data.get("prev"), str | None):
        raise FormatError(f"{where} has no valid header ({', '.join(wrong) or 'role or prev'})")
    launch = data.get("launch")
    return Header(
        data["spool"],
        data["run"],
        data["writer"],
        data["role"],
        data["attempt"],
        data["first"],
        data["prev"],
        data["created"],
        launch if isinstance(launch, str) else None,
    )


def read_segment_header(path: str) -> Header | None:
    """The header of the segment at `path`; None while its line is not whole. Raises OSError, FormatError."""
    with open_plain(path) as file:
        line = file.readline(MAX_LINE)
    if not line.endswith(b"\n"):
        return None
    try:
        data = decode_line(line[:-1])
    except FormatError as error:
        raise FormatError(f"{path}, line 1: {error}") from error
    return parse_header(data, path)


def read_header(stream: str) -> Header | None:
    """The header of a stream, from its first segment at hand; None when it has none yet."""
    for first in list_segments(stream):
        try:
            header = read_segment_header(os.path.join(stream, segment_name(first)))
        except NewerFormat:
            raise
        except FormatError:
            continue  # damaged: the next segment repeats it
        if header is not None:  # else it is not written yet, or was cut: so does the next one
            return header
    return None
