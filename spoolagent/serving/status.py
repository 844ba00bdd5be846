"""How each receiver of a spool stands, read from its database by anybody, at any time (`spoolagent status`)."""

import os
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import orjson

from spoolagent.format import live
from spoolagent.format.layout import AGENT_DIR, StreamKey
from spoolagent.format.plain import open_plain
from spoolagent.serving.activity import HEARTBEAT_FILE
from spoolagent.serving.database import MADE, MIRROR, NAME, existing
from spoolagent.serving.place import InTheWay, check_folder
from spoolagent.serving.schema import VERSION, version_of
from spoolagent.serving.sums import Damaged, check, noticing

_LISTED = 100
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
    """Its worker gave a sign of life within the last half minute, or its process is still there."""
    state: str
    """"idle", "working", "backoff", "stuck", "not running", or "damaged": its database is, or it is none; `error` says what to do."""
    doing: str
    """What the worker does now, such as "delivering seqs 1 to 9 of site/run/writer"; "" when it does not run."""
    doing_s: float
    """For how long, or for how long it has made no progress though there is work."""
    pid: int | None
    error: str
    """Why the tracker does not take events now, or ""."""
    retry_in_s: float
    recovered: str = ""
    """When its database was found damaged, and replaced by its mirror, the last time; "" for never."""
    cursors: tuple[CursorStatus, ...] = ()
    blocked: tuple[tuple[str, str], ...] = ()
    """(stream, why) where something is missing or bad that may still heal."""
    dead: int = 0
    """Dead letters that nobody dropped."""
    to_retry: int = 0
    """Those of them that are to be delivered again."""
    dropped_letters: int = 0
    lost: int = 0
    lost_seqs: tuple[tuple[str, int, int, str], ...] = ()
    """(stream, first, last, why), the first hundred."""
    quarantined: int = 0
    damaged: int = 0
    """How often the target was found damaged."""
    damage: tuple[str, ...] = ()
    """What was found, the first hundred."""
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
    path, mirror = os.path.join(folder, NAME), os.path.join(folder, MIRROR)
    note = _note(os.path.join(folder, "worker.json"))
    was_made = os.path.exists(path + MADE) or os.path.exists(mirror)
    try:
        check_folder(folder)
        return _read_database(path, folder, note)
    except InTheWay as error:
        return _damaged(folder, note, error)
    except Damaged as error:
        if not was_made:
            return None  # it is being created
        with suppress(Damaged, sqlite3.DatabaseError):
            if (status := _read_database(mirror, folder, note)) is not None:
                found = f"{path} is damaged: {error.why}; its mirror takes its place when a worker starts"
                return replace(status, state="damaged", error=found)
        return _damaged(folder, note, error)
    except sqlite3.DatabaseError:
        return None  # being moved away, or busy


def _read_database(path: str, folder: str, note: dict[str, Any]) -> ReceiverStatus | None:
    if not os.path.exists(path):
        raise Damaged(path, "it is missing")
    with noticing(path), closing(existing(path, "ro")) as db:
        version = version_of(db)
        if version > VERSION or not version:
            raise Damaged(path, f"version {version} is not known")
        if version == VERSION and not _life(folder, note).is_running:  # a worker looked when it started
            check(db, path)
        meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
        return _status(db, folder, meta, note) if "identity" in meta else None


def _damaged(folder: str, note: dict[str, Any], error: Damaged | InTheWay) -> ReceiverStatus:
    """Nothing is known of it for sure but that."""
    name = str(note.get("name", os.path.basename(folder)))
    return ReceiverStatus(
        identity=str(note.get("spec", name)),
        name=name,
        folder=folder,
        is_running=False,
        state="damaged",
        doing="",
        doing_s=0.0,
        pid=None,
        error=str(error),
        retry_in_s=0.0,
    )


def _status(
    db: sqlite3.Connection, folder: str, meta: dict[str, str], note: dict[str, Any]
) -> ReceiverStatus:
    identity, cursors = meta["identity"], []
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
    life = _life(folder, note)
    dead, (damaged, damage) = _dead(db), _damage(db)
    return ReceiverStatus(
        identity=identity,
        name=note.get("name", identity),
        folder=folder,
        is_running=life.is_running,
        state=life.state,
        doing=life.doing,
        doing_s=life.age_s,
        pid=life.pid,
        error=life.error,
        retry_in_s=life.retry_in_s,
        recovered=meta.get("recovered", ""),
        cursors=tuple(cursors),
        blocked=tuple((item["stream"], item["note"]) for item in note.get("blocked", [])),
        dead=dead.get("dead", 0) + dead.get("retry", 0),
        to_retry=dead.get("retry", 0),
        dropped_letters=dead.get("dropped", 0),
        lost=_count(db, "SELECT coalesce(sum(last - first + 1), 0) FROM lost"),
        lost_seqs=tuple(
            (str(StreamKey(*row[:3])), *row[3:])
            for row in db.execute(f"SELECT site, run, writer, first, last, reason FROM lost LIMIT {_LISTED}")  # noqa: S608 - a number of ours
        ),
        quarantined=_count(db, "SELECT count(*) FROM quarantine"),
        damaged=damaged,
        damage=damage,
        skipped=dict(db.execute("SELECT type, n FROM skipped ORDER BY type").fetchall()),
    )


def _count(db: sqlite3.Connection, query: str) -> int:
    return int(db.execute(query).fetchone()[0])


def _damage(db: sqlite3.Connection) -> tuple[int, tuple[str, ...]]:
    """How much was found, and the first of it; a database of an earlier version has no table for it."""
    if version_of(db) < 4:
        return 0, ()
    query = f"SELECT text FROM damage ORDER BY time_ns, text LIMIT {_LISTED}"  # noqa: S608 - a number of ours
    return _count(db, "SELECT count(*) FROM damage"), tuple(text for (text,) in db.execute(query))


def _dead(db: sqlite3.Connection) -> dict[str, int]:
    """How many dead letters by their state; a database of an earlier version knows one state."""
    if version_of(db) == 1:
        return {"dead": _count(db, "SELECT count(*) FROM dead")}
    return dict(db.execute("SELECT state, count(*) FROM dead GROUP BY state").fetchall())


class _Life(NamedTuple):
    is_running: bool
    state: str = "not running"
    doing: str = ""
    age_s: float = 0.0
    pid: int | None = None
    error: str = ""
    retry_in_s: float = 0.0


def _life(folder: str, note: dict[str, Any]) -> _Life:
    """How the worker stands: by its heartbeat, which goes on while a call hangs; else by the note of its loop."""
    beat = _note(os.path.join(folder, HEARTBEAT_FILE))
    if beat.get("time", 0) < note.get("time", 0) and (
        note.get("stopped") or beat.get("pid") != note.get("pid")
    ):
        beat = note  # it has stopped in order, or has another process, which has not beaten yet
    age_s = (time.time_ns() - beat.get("time", 0)) / 1e9
    is_fresh = age_s < _ALIVE_S
    if beat.get("stopped") or not (is_fresh or _is_there(beat)):
        return _Life(is_running=False)
    state, doing_s = str(beat.get("state", "working")), float(beat.get("age_s", 0.0))
    if not is_fresh or doing_s > beat.get("stuck_after_s", float("inf")):
        state, doing_s = "stuck", doing_s + age_s
    return _Life(
        is_running=True,
        state=state,
        doing=str(beat.get("doing", "")),
        age_s=doing_s,
        pid=beat.get("pid"),
        error=str(beat.get("error", "")),
        retry_in_s=max(0.0, float(beat.get("retry_in_s", 0.0)) - age_s),
    )


def _is_there(beat: dict[str, Any]) -> bool:
    """True when the silent worker's process still exists: it is stopped, or hangs with all its threads."""
    if (beat.get("host"), beat.get("boot")) != (live.host_name(), live.boot_id()):
        return False
    try:
        with open(f"/proc/{beat.get('pid')}/cmdline", "rb") as file:
            return b"spoolagent" in file.read(4096)
    except OSError:
        return False


def _note(path: str) -> dict[str, Any]:
    with suppress(OSError, orjson.JSONDecodeError), open_plain(path) as file:
        value = orjson.loads(file.read(1 << 20))
        if isinstance(value, dict):
            return value
    return {}
