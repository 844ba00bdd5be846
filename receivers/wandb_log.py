"""The bytes of a `.wandb` transaction log: LevelDB's log format behind a header of W&B's own.

A file is `:W&B`, 0xBEE1 (little-endian), version 0, then blocks of 32 KiB. A record is a 4-byte CRC-32 (the one of
zlib, over type and data, without LevelDB's mask), a 2-byte length, a type and the data; what does not fit in the
block is continued in the next. How a record is written therefore depends on where in the file it begins.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from spoolagent.errors import FormatError

FILE_HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
BLOCK_SIZE = 32 * 1024
_RECORD_HEADER = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_CRC_OF_TYPE = [zlib.crc32(bytes([kind])) for kind in range(5)]


def encode_log(offset: int, records: Iterable[bytes]) -> bytes:
    """The bytes that `records` add to a log that is `offset` bytes long; a new log (0) gets its file header."""
    out = bytearray()
    if offset == 0:
        out += FILE_HEADER
    for record in records:
        _append(out, offset, record)
    return bytes(out)


def _append(out: bytearray, offset: int, record: bytes) -> None:
    view = memoryview(record)
    begun = False
    while True:
        room = BLOCK_SIZE - (offset + len(out)) % BLOCK_SIZE
        if room < _RECORD_HEADER.size:  # a record never begins in the last 6 bytes of a block
            out += bytes(room)
            room = BLOCK_SIZE
        part = view[: room - _RECORD_HEADER.size]
        view = view[len(part) :]
        kind = (_MIDDLE if view else _LAST) if begun else (_FIRST if view else _FULL)
        out += _RECORD_HEADER.pack(zlib.crc32(part, _CRC_OF_TYPE[kind]), len(part), kind)
        out += part
        begun = True
        if not view:
            return


def read_log(file: BinaryIO, at: int) -> Iterator[tuple[bytes, int]]:
    """Whole records from offset `at` (0, or an offset yielded before), each with the offset after it.

    Ends before a record that is not whole yet. Raises FormatError for bytes that are no log.
    """
    if at == 0:
        file.seek(0)
        head = file.read(len(FILE_HEADER))
        if head != FILE_HEADER[: len(head)]:
            raise FormatError(f"{file.name} is not a W&B log: it begins with {head!r}")
        at = len(FILE_HEADER)
    parts: list[bytes] = []
    for kind, data, end in _pieces(file, at):
        parts.append(data)
        if kind in (_FULL, _LAST):
            yield b"".join(parts), end
            parts = []


def _pieces(file: BinaryIO, at: int) -> Iterator[tuple[int, bytes, int]]:
    """Type, data and end of each piece of a record, block by block."""
    while True:
        file.seek(at)
        room = BLOCK_SIZE - at % BLOCK_SIZE
        block = file.read(room)
        used = 0
        while room - used >= _RECORD_HEADER.size:
            if len(block) - used < _RECORD_HEADER.size:
                return
            crc, length, kind = _RECORD_HEADER.unpack_from(block, used)
            begin = used + _RECORD_HEADER.size
            used = begin + length
            data = block[begin:used]
            if len(data) < length and len(block) < room:
                return
            if not _FULL <= kind <= _LAST or zlib.crc32(data, _CRC_OF_TYPE[kind]) != crc:
                raise FormatError(f"{file.name} is damaged near byte {at + begin}")
            yield kind, data, at + used
        if len(block) < room:
            return
        at += room
