"""TensorBoard's records and protocol buffers, built by hand: deterministic, and several times faster.

Field numbers are those of TensorBoard's event.proto, summary.proto, tensor.proto and histogram.proto. The bytes
are the ones that its own protocol buffers would serialize to; the tests compare them.
"""

import struct
from collections.abc import Iterable
from functools import lru_cache

from google_crc32c import value as crc32c

_DOUBLE = struct.Struct("<d").pack
_FLOAT = struct.Struct("<f").pack
_U32 = struct.Struct("<I").pack
_U64 = struct.Struct("<Q").pack
_U64_AT = struct.Struct("<Q").unpack_from

NS = 1_000_000_000
"""An integer: dividing nanoseconds by it rounds once; by 1e9, twice."""
FRAME_BYTES = 16
"""What a record adds to its data: length, CRC of the length, CRC of the data."""
_INFINITY, _MINUS_INFINITY = _FLOAT(float("inf")), _FLOAT(float("-inf"))


def _masked_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    return _U32(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@lru_cache(maxsize=4096)
def _frame(length: int) -> bytes:
    head = _U64(length)
    return head + _masked_crc(head)


def record(data: bytes) -> bytes:
    """`data` as one record of an event file."""
    return b"%b%b%b" % (_frame(len(data)), data, _masked_crc(data))


def whole_records(data: bytes) -> int:
    """How many bytes at the front of `data` are complete records."""
    at = 0
    while at + FRAME_BYTES <= len(data):
        end = at + FRAME_BYTES + _U64_AT(data, at)[0]
        if end > len(data):
            break
        at = end
    return at


def varint(number: int) -> bytes:
    """A protocol buffer's integer; a negative one takes ten bytes, as int64 does."""
    number &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_SMALL = tuple(varint(n) for n in range(1 << 14))


def _step(step: int | None) -> bytes:
    """Event.step; proto3 leaves out a zero."""
    if not step:
        return b""
    return b"\x10" + (_SMALL[step] if 0 < step < 16384 else varint(step))


# Fields of messages. Each leaves out what proto3 leaves out: zero and empty.


def field_bytes(number: int, data: bytes) -> bytes:
    """A string, bytes or message field, also when it is empty."""
    return b"%b%b%b" % (varint(number << 3 | 2), varint(len(data)), data)


def field_text(number: int, text: str) -> bytes:
    """A string field, left out when empty."""
    return field_bytes(number, text.encode()) if text else b""


def field_int(number: int, value: int) -> bytes:
    """An integer or enum field, left out when zero."""
    return varint(number << 3) + varint(value) if value else b""


def field_double(number: int, value: float) -> bytes:
    """A double field, left out when all its bits are zero."""
    data = _DOUBLE(value)
    return varint(number << 3 | 1) + data if any(data) else b""


def field_float(number: int, value: float) -> bytes:
    """A float field, left out when all its bits are zero."""
    data = float32(value)
    return varint(number << 3 | 5) + data if any(data) else b""


def field_doubles(number: int, values: Iterable[float]) -> bytes:
    """A packed repeated double field."""
    data = b"".join(map(_DOUBLE, values))
    return field_bytes(number, data) if data else b""


def float32(value: float) -> bytes:
    """The nearest float32; what is too large becomes an infinity, as protocol buffers do it."""
    try:
        return _FLOAT(value)
    except OverflowError:
        return _INFINITY if value > 0 else _MINUS_INFINITY


# Records of an event file.


def file_version(wall_s: float, step: int | None = None) -> bytes:
    """The record that an event file begins with."""
    source = (
        b"" if step is not None else field_bytes(10, field_text(1, "spoolagent"))
    )  # source_metadata.writer
    return record(b"\x09" + _DOUBLE(wall_s) + _step(step) + field_bytes(3, b"brain.Event:2") + source)


def session_start(wall_s: float, step: int) -> bytes:
    """The record that makes readers drop what was logged at `step` and later."""
    return record(b"\x09" + _DOUBLE(wall_s) + _step(step) + field_bytes(7, field_int(1, 1)))


def summary_event(wall_s: float, step: int | None, summary: bytes) -> bytes:
    """A record with a serialized Summary."""
    return event(wall_s, step, 5, summary)


def event(wall_s: float, step: int | None, field: int, data: bytes) -> bytes:
    """A record with any message in the field of this number."""
    return record(b"\x09" + _DOUBLE(wall_s) + _step(step) + field_bytes(field, data))


def value(tag: str, *fields: bytes) -> bytes:
    """A Summary with one Value: its tag and further fields, in the order of their numbers."""
    return field_bytes(1, field_text(1, tag) + b"".join(fields))


def tensor_scalar(tag: str, number: float, *, double: bool) -> bytes:
    """A Summary with a scalar in tensor form, as `add_scalar(new_style=True)` makes it."""
    packed = field_bytes(6, _DOUBLE(number)) if double else field_bytes(5, float32(number))
    tensor = field_int(1, 2 if double else 1) + packed  # DT_DOUBLE, DT_FLOAT
    metadata = field_bytes(1, field_text(1, "scalars"))
    return value(tag, field_bytes(8, tensor), field_bytes(9, metadata))


@lru_cache(maxsize=8192)
def _scalar_head(tag: str) -> bytes:
    """Event.summary with one scalar Value, up to the four bytes of its float32."""
    inner = field_text(1, tag) + b"\x15"
    size = varint(len(inner) + 4)
    return b"\x2a" + varint(1 + len(size) + len(inner) + 4) + b"\x0a" + size + inner


def scalar(wall_ns: int, step: int | None, tag: str, number: float) -> bytes:
    """The record of one scalar: the path that nearly all events take."""
    try:
        last = _FLOAT(number)
    except OverflowError:
        last = float32(number)
    if not step:
        data = b"\x09%b%b%b" % (_DOUBLE(wall_ns / NS), _scalar_head(tag), last)
    else:
        data = b"\x09%b\x10%b%b%b" % (
            _DOUBLE(wall_ns / NS),
            _SMALL[step] if 0 < step < 16384 else varint(step),
            _scalar_head(tag),
            last,
        )
    crc = crc32c(data)
    return b"%b%b%b" % (
        _frame(len(data)),
        data,
        _U32(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF),
    )
