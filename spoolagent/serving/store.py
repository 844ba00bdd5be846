"""One SQLite database per receiver target: cursors, the receiver's state, dead letters, losses, counters.

Everything that belongs together is committed in one transaction (WAL, synchronous=FULL). What a receiver puts
is kept in memory until then, so a batch that fails leaves nothing behind.
"""

import contextlib
import hashlib
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self

import orjson
from filelock import FileLock, Timeout

from spoolagent.errors import Locked, SpoolError
from spoolagent.format.durable import fault_point, make_dirs
from spoolagent.format.layout import AGENT_DIR, StreamKey
from spoolagent.format.reader import START, Lost, Position

_VERSION = 1
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE kv (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE streams (
    site TEXT NOT NULL, run TEXT NOT NULL, writer TEXT NOT NULL,
    segment INTEGER NOT NULL, offset INTEGER NOT NULL, next_seq INTEGER NOT NULL,
    applied INTEGER NOT NULL DEFAULT 0, facts BLOB NOT NULL,
    PRIMARY KEY (site, run, writer)) WITHOUT ROWID;
CREATE TABLE named (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    site TEXT NOT NULL, run TEXT NOT NULL, writer TEXT NOT NULL, content BLOB NOT NULL,
    UNIQUE (site, run, writer));
CREATE TABLE dead (
    site TEXT NOT NULL, run TEXT NOT NULL, writer TEXT NOT NULL, seq INTEGER NOT NULL,
    type TEXT NOT NULL, reason TEXT NOT NULL, time_ns INTEGER NOT NULL,
    PRIMARY KEY (site, run, writer, seq)) WITHOUT ROWID;
CREATE TABLE lost (
    site TEXT NOT NULL, run TEXT NOT NULL, writer TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    reason TEXT NOT NULL, time_ns INTEGER NOT NULL,
    PRIMARY KEY (site, run, writer, first)) WITHOUT ROWID;
CREATE TABLE quarantine (
    site TEXT NOT NULL, run TEXT NOT NULL, writer TEXT NOT NULL, segment INTEGER NOT NULL, offset INTEGER NOT NULL,
    length INTEGER NOT NULL, reason TEXT NOT NULL, time_ns INTEGER NOT NULL,
    PRIMARY KEY (site, run, writer, segment, offset)) WITHOUT ROWID;
CREATE TABLE skipped (type TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE told (site TEXT NOT NULL, run TEXT NOT NULL, content BLOB NOT NULL, PRIMARY KEY (site, run)) WITHOUT ROWID;
"""


@dataclass(kw_only=True, slots=True)
class StreamFacts:
    """What a receiver's cursor remembers of a stream beside its position."""

    role: str = "main"
    attempt: int = 1
    created_ns: int = 0
    spool: str = ""
    end: str = ""
    """"" while open; "closed", "dead" or "presumed"."""
    status: str = ""
    """That of its last `run_end` event."""
    exit_code: int | None = None
    last_ns: int = 0
    """Time of the last event."""
    news_ns: int = 0
    """When something of it was last read, by this machine's clock."""
    last_seq: int = 0
    """The last seq that is resolved."""
    gap: int = 0
    """Events that its writer dropped, as its gap events say."""


@dataclass(kw_only=True, slots=True)
class Commit:
    """What one transaction changes."""

    key: StreamKey | None = None
    position: Position = START
    facts: StreamFacts | None = None
    applied: int = 0
    dead: list[tuple[int, str, str]] = field(default_factory=list)
    """(seq, type, reason)"""
    lost: list[Lost] = field(default_factory=list)
    quarantined: list[tuple[int, int, int, str]] = field(default_factory=list)
    """(segment, offset, length, reason)"""
    skipped: dict[str, int] = field(default_factory=dict)
    told: tuple[str, str, dict[str, Any]] | None = None


class Named(NamedTuple):
    """A batch that may have been delivered without its commit: to be delivered again, exactly, and first."""

    key: StreamKey
    position: Position
    """Where the stream stands after it."""
    last_seq: int
    chosen: tuple[int, ...] | None = None
    """The seqs that went out, when a selection left some out; None for all."""


def target_dir(spool: str, identity: str) -> str:
    """Where the agents keep what belongs to one target."""
    kind = re.sub(r"[^a-z0-9]+", "-", identity.partition(":")[0].lower())[:20]
    return os.path.join(
        spool, AGENT_DIR, "receivers", f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    )


class Store:
    """The database of one receiver target, exclusively locked while open.

    Raises Locked when another process has it open.
    """

    def __init__(self, spool: str, identity: str) -> None:
        self.folder = target_dir(spool, identity)
        make_dirs(self.folder)
        self._lock = FileLock(os.path.join(self.folder, "lock"), mode=0o600)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise Locked(
                f"another process is replaying this spool into {identity}: wait for it, or end it ('spoolagent status' shows it)"
            ) from None
        self.path = os.path.join(self.folder, "state.sqlite")
        self._db = _connect(self.path)
        self._prepare(identity)
        self._overlay: dict[str, bytes | None] = {}

    def _prepare(self, identity: str) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        fault_point("commit", self.path)
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise SpoolError(
                f"{self.path} is of version {version}, this version uses {_VERSION}: upgrade spoolagent"
            )
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('identity', ?)", (identity,))

    def close(self) -> None:
        """Releases the database and its lock."""
        self._db.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the receiver's state (contract.State) -----------------------------------------------------------

    def get(self, key: str) -> Any:
        """The value under `key`, or None."""
        if key in self._overlay:
            raw = self._overlay[key]
            return None if raw is None else orjson.loads(raw)
        row = self._db.execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()
        return None if row is None else orjson.loads(row[0])

    def put(self, key: str, value: Any) -> None:
        """Stores `value`, with the next commit."""
        self._overlay[key] = orjson.dumps(value)

    def delete(self, key: str) -> None:
        """Removes `key`, with the next commit."""
        self._overlay[key] = None

    def scan(self, prefix: str) -> Iterator[tuple[str, Any]]:
        """Keys that begin with `prefix`, in order, with their values."""
        rows = self._db.execute(
            "SELECT key FROM kv WHERE key >= ? AND key < ?", (prefix, prefix + "\U0010ffff")
        )
        keys = {row[0] for row in rows} | {k for k in self._overlay if k.startswith(prefix)}
        for key in sorted(keys):
            value = self.get(key)
            if value is not None:
                yield key, value

    def checkpoint(self) -> None:
        """Commits what was put so far, without moving a cursor."""
        self.commit([])

    def mark(self) -> dict[str, bytes | None]:
        """The uncommitted state as it is now, for `rollback`."""
        return dict(self._overlay)

    def rollback(self, mark: dict[str, bytes | None]) -> None:
        """Undoes what was put since `mark`."""
        self._overlay = mark

    # -- cursors --------------------------------------------------------------------------------------------

    def streams(self) -> dict[StreamKey, tuple[Position, StreamFacts]]:
        """Every stream that has a cursor."""
        rows = self._db.execute("SELECT site, run, writer, segment, offset, next_seq, facts FROM streams")
        return {
            StreamKey(*row[:3]): (Position(*row[3:6]), StreamFacts(**orjson.loads(row[6]))) for row in rows
        }

    def named(self) -> list[Named]:
        """The batches that may have been delivered without their commit, oldest first."""
        found = []
        for site, run, writer, content in self._db.execute(
            "SELECT site, run, writer, content FROM named ORDER BY number"
        ):
            data = orjson.loads(content)
            chosen = data.get("chosen")
            key, position = StreamKey(site, run, writer), Position(*data["position"])
            found.append(Named(key, position, data["last_seq"], None if chosen is None else tuple(chosen)))
        return found

    def told(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The state that the receiver was last told of each run, "sure" when it is known to have taken it."""
        rows = self._db.execute("SELECT site, run, content FROM told")
        return {(site, run): orjson.loads(content) for site, run, content in rows}

    def commit(self, changes: Sequence[Commit], name: Named | None = None) -> None:
        """Commits what was delivered, the receiver's state with it, and the batch that comes next."""
        with self._transaction():
            for change in changes:
                self._apply(change)
            for key, raw in self._overlay.items():
                if raw is None:
                    self._db.execute("DELETE FROM kv WHERE key = ?", (key,))
                else:
                    self._db.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, raw))
            if name is not None:
                content = orjson.dumps(
                    {"position": tuple(name.position), "last_seq": name.last_seq, "chosen": name.chosen}
                )
                self._db.execute(
                    "INSERT OR REPLACE INTO named (site, run, writer, content) VALUES (?, ?, ?, ?)",
                    (*name.key, content),
                )
        self._overlay = {}

    def _apply(self, change: Commit) -> None:
        now = time.time_ns()
        run = self._db.execute
        if change.told is not None:
            site, run_id, content = change.told
            run("INSERT OR REPLACE INTO told VALUES (?, ?, ?)", (site, run_id, orjson.dumps(content)))
        for kind, count in change.skipped.items():
            run(
                "INSERT INTO skipped VALUES (?, ?) ON CONFLICT (type) DO UPDATE SET n = n + excluded.n",
                (kind, count),
            )
        key = change.key
        if key is None or change.facts is None:
            return
        run(
            "INSERT INTO streams VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (site, run, writer) DO UPDATE SET "
            "segment = excluded.segment, offset = excluded.offset, next_seq = excluded.next_seq, "
            "applied = applied + excluded.applied, facts = excluded.facts",
            (*key, *change.position, change.applied, orjson.dumps(change.facts)),
        )
        run("DELETE FROM named WHERE site = ? AND run = ? AND writer = ?", key)
        for seq, kind, reason in change.dead:
            run("INSERT OR REPLACE INTO dead VALUES (?, ?, ?, ?, ?, ?, ?)", (*key, seq, kind, reason, now))
        for lost in change.lost:
            run("INSERT OR REPLACE INTO lost VALUES (?, ?, ?, ?, ?, ?, ?)", (*key, *lost, now))
        for bad in change.quarantined:
            run("INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*key, *bad, now))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            fault_point("commit", self.path)
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def count(self, table: str) -> int:
        """How many rows `table` ("dead", "lost", "quarantine") has; for lost, how many seqs."""
        what = "coalesce(sum(last - first + 1), 0)" if table == "lost" else "count(*)"
        return int(self._db.execute(f"SELECT {what} FROM {table}").fetchone()[0])  # noqa: S608 - our own table names


def _connect(path: str) -> sqlite3.Connection:
    old = os.umask(0o077)
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=10)
    finally:
        os.umask(old)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    return db
