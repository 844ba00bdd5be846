"""What the W&B tests share: a reader of `.wandb` files that knows nothing of our encoder, and scripted events.

The reader follows the LevelDB log format: 32 KiB blocks, records of 4 bytes checksum, 2 bytes length, 1 byte type,
and a 7-byte file header of W&B's own. It is strict: a wrong checksum or an impossible type raises.
"""

import json
import os
import struct
import subprocess
import sys
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


def rows_of(records: list[Any]) -> list[dict[str, Any]]:
    """History rows as nested dictionaries."""
    return [_tree(record.history.item) for record in records if record.WhichOneof("record_type") == "history"]


def summary_of(records: list[Any]) -> dict[str, Any]:
    """What the summary records add up to."""
    made: dict[str, Any] = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.remove:
                made.pop(item.key or item.nested_key[0], None)
            _tree(record.summary.update, made)
    return made


def config_of(records: list[Any]) -> dict[str, Any]:
    """What the run record and the config records add up to."""
    made: dict[str, Any] = {}
    for record in records:
        kind = record.WhichOneof("record_type")
        if kind in ("run", "config"):
            config = record.run.config if kind == "run" else record.config
            for item in config.remove:
                made.pop(item.key)
            made |= {item.key: json.loads(item.value_json) for item in config.update}
    return made


def kinds_of(records: list[Any]) -> list[str]:
    """The type of each record."""
    return [record.WhichOneof("record_type") for record in records]


def one_of(records: list[Any], kind: str) -> Any:
    """The only record of a type."""
    (found,) = [record for record in records if record.WhichOneof("record_type") == kind]
    return getattr(found, kind)


def _tree(items: Any, made: dict[str, Any] | None = None) -> dict[str, Any]:
    made = {} if made is None else made
    for item in items:
        path = list(item.nested_key) or [item.key]
        place = made
        for name in path[:-1]:
            held = place.get(name)
            place = place.setdefault(name, {}) if isinstance(held, dict) or held is None else place
            if not isinstance(held, dict) and held is not None:
                raise AssertionError(f"{path} lies inside a value")
        place[path[-1]] = json.loads(item.value_json)
    return made


def comparable(value: Any) -> Any:
    """`value` with NaN as a text, so that it equals itself; numbers as they are."""
    if isinstance(value, float) and value != value:
        return "NaN"
    if isinstance(value, dict):
        return {name: comparable(item) for name, item in value.items()}
    return [comparable(item) for item in value] if isinstance(value, list) else value


def server_config(run: Any) -> dict[str, Any]:
    """The config that the test server holds, without W&B's own entry."""
    return {name: item["value"] for name, item in run.config.items() if name != "_wandb"}


def run_wandb(backend: Any, home: Path, *args: str) -> str:
    """Runs the `wandb` command against the test server; returns what it printed. Raises when it fails."""
    from wandb_backend import environment

    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [str(Path(sys.executable).parent / "wandb"), *args],
        env={**os.environ, **environment(backend, str(home))},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
