"""What the W&B tests share: a reader of `.wandb` files that knows nothing of our encoder, and scripted events.

The reader follows the LevelDB log format: 32 KiB blocks, records of 4 bytes checksum, 2 bytes length, 1 byte type,
and a 7-byte file header of W&B's own. It is strict: a wrong checksum or an impossible type raises.
"""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
HEADER = 7


def read_log(data: bytes) -> tuple[list[bytes], int]:
    """The records of a `.wandb` file, and how many bytes at the end belong to no whole record."""
    assert data[:HEADER] == b":W&B" + struct.pack("<HB", 0xBEE1, 0), data[:HEADER]
    records: list[bytes] = []
    parts: list[bytes] = []
    at = whole = HEADER
    while at < len(data):
        room = BLOCK - at % BLOCK
        if room < HEADER:
            assert data[at : at + room].strip(b"\0") == b""
            at += room
            whole = at if not parts else whole
            continue
        if at + HEADER > len(data):
            break
        crc, length, kind = struct.unpack_from("<IHB", data, at)
        body = data[at + HEADER : at + HEADER + length]
        if len(body) < length:
            break
        assert length <= room - HEADER
        assert crc == zlib.crc32(bytes([kind]) + body), f"checksum at {at}"
        assert kind in ((1, 2) if not parts else (3, 4)), f"record type {kind} at {at}"
        parts.append(body)
        at += HEADER + length
        if kind in (1, 4):
            records.append(b"".join(parts))
            parts = []
            whole = at
    return records, len(data) - whole


def read_records(path: Path | str) -> list[Any]:
    """The protobuf `Record`s of a whole `.wandb` file."""
    from wandb.proto import wandb_internal_pb2 as pb

    records, torn = read_log(Path(path).read_bytes())
    assert torn == 0, f"{torn} torn bytes at the end"
    made = []
    for data in records:
        record = pb.Record()
        record.ParseFromString(data)
        made.append(record)
    return made
