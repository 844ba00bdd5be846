"""How each receiver of a spool stands, read from its database by anybody, at any time (`spoolagent status`)."""

import os
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson

from spoolagent.format.layout import AGENT_DIR, StreamKey

_ALIVE_S = 30.0
"""A worker that wrote its note this recently is taken to be running."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CursorStatus:
    """How far one receiver has resolved one stream."""

    key: StreamKey
    next_seq: int
    """Everything before this seq is resolved: applied, a dead letter, or lost."""
    applied: int
    end: str
    """"" while open; "closed" or "dead"."""
    status: str
    dropped: int
    """Events that the stream's writer could not write, as its gap events say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReceiverStatus:
    """One receiver target of a spool."""

    identity: str
    name: str
    folder: str
    is_running: bool
    """Its worker wrote a note within the last half minute."""
    pid: int | None
    error: str
    """Why the tracker does not take events now, or ""."""
    retry_in_s: float
    cursors: tuple[CursorStatus, ...] = ()
    blocked: tuple[tuple[str, str], ...] = ()
    """(stream, why) where something is missing or bad that may still heal."""
    dead: int = 0
    lost: int = 0
    quarantined: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    """Event type -> how many this tracker cannot show."""

    @property
    def applied(self) -> int:
        """Events that the tracker has."""
        return sum(cursor.applied for cursor in self.cursors)


def read_status(spool: str) -> list[ReceiverStatus]:
    """All receivers that were ever used with the spool, by identity. Reads only; takes no lock."""
    folder = os.path.join(spool, AGENT_DIR, "receivers")
    found = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        status = _read_one(os.path.join(folder, name))
        if status is not None:
            found.append(status)
    return found


def _read_one(folder: str) -> ReceiverStatus | None:
    path = os.path.join(folder, "state.sqlite")
    note = _note(os.path.join(folder, "worker.json"))
    if not os.path.exists(path):
        return None
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
            row = db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
            return None if row is None else _status(db, folder, row[0], note)
    except sqlite3.OperationalError:
        return None  # being created, or being moved away


def _status(db: sqlite3.Connection, folder: str, identity: str, note: dict[str, Any]) -> ReceiverStatus:
    cursors = []
    for site, run, writer, next_seq, applied, facts in db.execute(
        "SELECT site, run, writer, next_seq, applied, facts FROM streams ORDER BY site, run, writer"
    ):
        known = orjson.loads(facts)
        cursors.append(
            CursorStatus(
                key=StreamKey(site, run, writer),
                next_seq=next_seq,
                applied=applied,
                end=known.get("end", ""),
                status=known.get("status", ""),
                dropped=known.get("gap", 0),
            )
        )
    running = time.time_ns() - note.get("time", 0) < _ALIVE_S * 1e9 and not note.get("stopped")
    return ReceiverStatus(
        identity=identity,
        name=note.get("name", identity),
        folder=folder,
        is_running=running,
        pid=note.get("pid") if running else None,
        error=note.get("error", "") if running else "",
        retry_in_s=note.get("retry_in_s", 0.0),
        cursors=tuple(cursors),
        blocked=tuple((item["stream"], item["note"]) for item in note.get("blocked", [])),
        dead=_count(db, "SELECT count(*) FROM dead"),
        lost=_count(db, "SELECT coalesce(sum(last - first + 1), 0) FROM lost"),
        quarantined=_count(db, "SELECT count(*) FROM quarantine"),
        skipped=dict(db.execute("SELECT type, n FROM skipped ORDER BY type").fetchall()),
    )


def _count(db: sqlite3.Connection, query: str) -> int:
    return int(db.execute(query).fetchone()[0])


def _note(path: str) -> dict[str, Any]:
    with suppress(OSError, orjson.JSONDecodeError), open(path, "rb") as file:
        value = orjson.loads(file.read(1 << 20))
        if isinstance(value, dict):
            return value
    return {}
