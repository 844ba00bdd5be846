"""A line of a segment: one JSON object with a positional checksum.

The last 18 bytes of every line before its newline are `,"crc":"` + 8 hex digits + `"}`: the CRC-32 (zlib) of
the bytes before them. Side files (`.end`, `pruned.json`) hold one such line, too.
"""

from typing import Any
from zlib import crc32

import orjson

from spoolagent.errors import FormatError

MAX_LINE = 1 << 20
"""Bytes of the longest line, its newline included."""
CRC_BYTES = 18
MAX_DEPTH = 32


def seal(body: bytes) -> bytes:
    """The line of a JSON object given without its closing brace."""
    return b'%b,"crc":"%08x"}\n' % (body, crc32(body))


def encode_line(value: dict[str, Any]) -> bytes:
    """The line of a non-empty object."""
    return seal(orjson.dumps(value)[:-1])


def has_valid_crc(line: bytes) -> bool:
    """True when `line` (without newline) ends with the checksum of what stands before it."""
    return len(line) > CRC_BYTES and line[-CRC_BYTES:] == b',"crc":"%08x"}' % crc32(line[:-CRC_BYTES])


def decode_line(line: bytes) -> dict[str, Any]:
    """The object of a line given without its newline. Raises FormatError, whatever the bytes are."""
    if not has_valid_crc(line):
        raise FormatError("checksum does not match")
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise FormatError(f"not JSON: {error}") from error
    if type(value) is not dict:
        raise FormatError("not a JSON object")
    return value
