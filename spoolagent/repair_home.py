"""Repairing `spool.json`: its uuid is found where it still stands, never made up."""

import os
import re
from collections.abc import Iterator

import orjson

from spoolagent.errors import FormatError, NewerFormat, UsageError
from spoolagent.format import durable
from spoolagent.format.facts import stream_facts
from spoolagent.format.header import read_header
from spoolagent.format.layout import (
    AGENT_DIR,
    FORMAT,
    LIVE_FILE,
    SPOOL_FILE,
    StreamKey,
    iter_streams,
    stream_dir,
)
from spoolagent.format.plain import open_plain
from spoolagent.format.spool import open_spool
from spoolagent.fsck import is_near
from spoolagent.repair_aside import Repair, keep_aside

_NAMED = re.compile(rb'"spool"\s*:\s*"([0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12})"')


def repair_home(spool: str) -> Iterator[Repair]:
    """Writes a damaged or missing spool.json anew, or says why it cannot.

    Raises UsageError when the place holds no spool at all, NewerFormat when it is of a later format.
    """
    path = os.path.join(spool, SPOOL_FILE)
    try:
        known: str | None = open_spool(spool).uuid
    except NewerFormat:
        raise
    except UsageError:
        if os.path.lexists(path) or not os.path.isdir(os.path.join(spool, "sites")):
            raise
        known = None
    except FormatError:
        known = None
    born = _uuids(spool)
    if known is not None:
        right = next(iter(born)) if len(born) == 1 else known
        if known == right or not is_near(known, right):
            return
        yield _write(spool, path, right, f"its uuid was {known}, its streams were born in {right}")
        return
    uuid, why = _find(spool, path, born)
    if uuid is not None:
        yield _write(spool, path, uuid, why)
        return
    yield Repair(
        path=path,
        message=f"cannot be rebuilt: {why}",
        done=False,
        next_step='restore it from a backup: {"format":1,"spool":"<uuid>"}',
    )


def _find(spool: str, path: str, born: dict[str, list[StreamKey]]) -> tuple[str | None, str]:
    """The uuid and how it is known; or None, and why it is not."""
    stands = _NAMED.search(_raw(path))
    if stands is not None:
        uuid = stands[1].decode()
        if len(born) == 1 and is_near(uuid, next(iter(born))):
            uuid = next(iter(born))
        return uuid, "its own bytes still name the uuid"
    if not born:
        return None, "no stream is here whose header could tell the uuid"
    if len(born) > 1:
        return None, f"its streams were born in {len(born)} spools, so this one was shipped to"
    ((uuid, keys),) = born.items()
    if os.path.isdir(os.path.join(spool, AGENT_DIR, "incoming")):
        return (
            None,
            f"all streams were born in {uuid}, but this spool was shipped to: its own uuid is another",
        )
    if _is_home(spool, uuid, keys):
        return uuid, f"all {len(keys)} streams were born in it"
    return None, f"all streams name {uuid}, but nothing shows that they were born here, and some are open"


def _is_home(spool: str, uuid: str, keys: list[StreamKey]) -> bool:
    """True when streams were evidently born here (LIVE is never shipped); or when it makes no difference any more."""
    if os.path.isdir(os.path.join(spool, AGENT_DIR, "ship")):
        return True
    if any(os.path.exists(os.path.join(stream_dir(spool, key), LIVE_FILE)) for key in keys):
        return True
    return all(stream_facts(spool, key, home=uuid).ended is not None for key in keys)


def _uuids(spool: str) -> dict[str, list[StreamKey]]:
    """Which streams name which uuid in their headers."""
    found: dict[str, list[StreamKey]] = {}
    for key in iter_streams(spool):
        try:
            header = read_header(stream_dir(spool, key))
        except (OSError, FormatError):
            continue
        if header is not None:
            found.setdefault(header.spool, []).append(key)
    return found


def _raw(path: str) -> bytes:
    try:
        with open_plain(path) as file:
            return file.read(1 << 16)
    except FileNotFoundError:
        return b""


def _write(spool: str, path: str, uuid: str, why: str) -> Repair:
    raw = _raw(path)
    if raw:
        keep_aside(spool, ".spool", SPOOL_FILE, data=raw)
    durable.write_file(path, orjson.dumps({"format": FORMAT, "spool": uuid}) + b"\n")
    return Repair(path=path, message=f"written anew with uuid {uuid}: {why}")
