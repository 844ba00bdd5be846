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

from spoolagent.errors import Locked
from spoolagent.format.durable import fault_point, fsync_dir, make_dirs
from spoolagent.format.layout import AGENT_DIR, StreamKey
from spoolagent.format.reader import START, Lost, Position
from spoolagent.serving import sums
from spoolagent.serving.schema import prepare


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


MADE = ".made"
"""Beside a database that was made: one that is missing or empty then is damage, not a beginning."""
FIRST = ("", "", "", 0)
"""Before the first page of `Store.marked`."""


class Letter(NamedTuple):
    """A dead letter: which event."""

    key: StreamKey
    seq: int
    type: str
    reason: str


class Retried(NamedTuple):
    """What became of a dead letter that was delivered again."""

    key: StreamKey
    seq: int
    reason: str
    """Why it was refused again; "" when it was applied."""


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
    retried: Retried | None = None


class Named(NamedTuple):
    """A batch that may have been delivered without its commit: to be delivered again, exactly, and first."""

    key: StreamKey
    position: Position
    """Where the stream stands after it."""
    last_seq: int
    chosen: tuple[int, ...] | None = None
    """The seqs that went out, when a selection left some out; None for all."""
    damaged: bool = False
    """Bad bytes or missing seqs in it had been given up."""


def target_dir(spool: str, identity: str) -> str:
    """Where the agents keep what belongs to one target."""
    kind = re.sub(r"[^a-z0-9]+", "-", identity.partition(":")[0].lower())[:20]
    return os.path.join(
        spool, AGENT_DIR, "receivers", f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    )


class Store:
    """The database of one receiver target, exclusively locked while open.

    Raises Locked when another process has it open, Damaged when it is not what was written.
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
        self._overlay: dict[str, bytes | None] = {}
        try:
            self._db = self._connect()
            try:
                self._prepare(identity)
            except BaseException:
                self._db.close()
                raise
        except BaseException:
            self._lock.release()  # whoever caught this may try again
            raise

    def _connect(self) -> sqlite3.Connection:
        was_made = os.path.exists(self.path + MADE)
        if was_made and not _has_bytes(self.path):
            raise sums.Damaged(self.path, "it is missing or empty, and was not once")
        with sums.noticing(self.path):
            db = _connect(self.path)
            if was_made and db.execute("PRAGMA user_version").fetchone() == (0,):
                db.close()
                raise sums.Damaged(self.path, "it has no tables, and once had them")
            return db

    def _prepare(self, identity: str) -> None:
        with sums.noticing(self.path):
            prepare(self._db, self.path)
        sums.check(self._db, self.path)
        sums.keep(self._db)
        try:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('identity', ?)", (identity,))
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code == sqlite3.SQLITE_READONLY and os.access(self.path, os.W_OK):
                raise sums.Damaged(self.path, "its header says that it is not to be written") from error
            raise
        self._give_back_space()  # the tables have their pages now, which a full disk would refuse
        if not os.path.exists(self.path + MADE):
            with contextlib.suppress(OSError):  # a full disk: the next start tries again
                os.close(os.open(self.path + MADE, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
                fsync_dir(self.folder)

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
        with sums.noticing(self.path):
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
        # Names and ids of what is about to be made: they must outlive even the loss of the log.
        self._db.execute("PRAGMA busy_timeout=0")
        self._give_back_space()
        self._db.execute("PRAGMA busy_timeout=10000")

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
            chosen = None if chosen is None else tuple(chosen)
            found.append(Named(key, position, data["last_seq"], chosen, data.get("damaged", False)))
        return found

    def told(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The state that the receiver was last told of each run, "sure" when it is known to have taken it."""
        rows = self._db.execute("SELECT site, run, content FROM told")
        return {(site, run): orjson.loads(content) for site, run, content in rows}

    def facts(self, key: StreamKey) -> StreamFacts | None:
        """What is known of one stream."""
        row = self._db.execute(
            "SELECT facts FROM streams WHERE site = ? AND run = ? AND writer = ?", key
        ).fetchone()
        return None if row is None else StreamFacts(**orjson.loads(row[0]))

    def marked(self, limit: int, after: tuple[str, str, str, int]) -> list[Letter]:
        """Dead letters that are to be delivered again and were not named yet, by stream and seq, a page of them."""
        rows = self._db.execute(
            "SELECT site, run, writer, seq, type, reason FROM dead d WHERE state = 'retry' "
            "AND (site, run, writer, seq) > (?, ?, ?, ?) AND NOT EXISTS "
            "(SELECT 1 FROM retrying r WHERE (r.site, r.run, r.writer, r.seq) = (d.site, d.run, d.writer, d.seq)) "
            "ORDER BY site, run, writer, seq LIMIT ?",
            (*after, limit),
        )
        return [Letter(StreamKey(*row[:3]), *row[3:]) for row in rows]

    def retrying(self) -> list[Letter]:
        """Dead letters that may have been delivered again without their commit, oldest first."""
        rows = self._db.execute(
            "SELECT r.site, r.run, r.writer, r.seq, coalesce(type, '?'), coalesce(reason, '') FROM retrying r "
            "LEFT JOIN dead d ON (r.site, r.run, r.writer, r.seq) = (d.site, d.run, d.writer, d.seq) ORDER BY number"
        )
        return [Letter(StreamKey(*row[:3]), *row[3:]) for row in rows]

    def commit(
        self, changes: Sequence[Commit], name: Named | None = None, retry: Letter | None = None
    ) -> None:
        """Commits what was delivered, the receiver's state with it, and the batch or dead letter that comes next."""
        try:
            self._commit(changes, name, retry)
        except sqlite3.OperationalError as error:
            is_full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
            if not is_full or not self._give_back_space():
                raise
            self._commit(changes, name, retry)  # the database's own log had taken the space
        self._overlay = {}

    def _commit(self, changes: Sequence[Commit], name: Named | None, retry: Letter | None) -> None:
        with self._transaction():
            for change in changes:
                self._apply(change)
            for key, raw in self._overlay.items():
                if raw is None:
                    self._db.execute("DELETE FROM kv WHERE key = ?", (key,))
                else:
                    self._db.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, raw))
            if name is not None:
                content = orjson.dumps({**name._asdict(), "key": None, "position": tuple(name.position)})
                self._db.execute(
                    "INSERT OR REPLACE INTO named (site, run, writer, content) VALUES (?, ?, ?, ?)",
                    (*name.key, content),
                )
            if retry is not None:
                self._db.execute(
                    "INSERT OR IGNORE INTO retrying (site, run, writer, seq) VALUES (?, ?, ?, ?)",
                    (*retry.key, retry.seq),
                )

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
        if change.retried is not None:
            self._apply_retried(change.retried, now)
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
            run(
                "INSERT OR REPLACE INTO dead (site, run, writer, seq, type, reason, time_ns) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*key, seq, kind, reason, now),
            )
        for lost in change.lost:
            run("INSERT OR REPLACE INTO lost VALUES (?, ?, ?, ?, ?, ?, ?)", (*key, *lost, now))
        for bad in change.quarantined:
            run("INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*key, *bad, now))

    def _apply_retried(self, retried: Retried, now: int) -> None:
        run, place = self._db.execute, (*retried.key, retried.seq)
        where = "WHERE site = ? AND run = ? AND writer = ?"
        run(f"DELETE FROM retrying {where} AND seq = ?", place)  # noqa: S608 - our own text
        if retried.reason:  # one that was dropped meanwhile stays dropped
            run(
                "UPDATE dead SET reason = ?, time_ns = ?, retries = retries + 1, "  # noqa: S608 - our own text
                f"state = CASE state WHEN 'retry' THEN 'dead' ELSE state END {where} AND seq = ?",
                (retried.reason, now, *place),
            )
            return
        run(f"DELETE FROM dead {where} AND seq = ?", place)  # noqa: S608 - our own text
        run(f"UPDATE streams SET applied = applied + 1 {where}", retried.key)  # noqa: S608 - our own text

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

    def _give_back_space(self) -> bool:
        """Moves what was committed from the log to the database. True when the log has no bytes any more."""
        try:
            busy, frames, _ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error:
            return False
        return not busy and not frames

    def count(self, table: str) -> int:
        """How many rows `table` ("dead", "lost", "quarantine") has; for lost, how many seqs.

        Dead letters that somebody dropped are on record, and not counted.
        """
        what = "coalesce(sum(last - first + 1), 0)" if table == "lost" else "count(*)"
        where = "WHERE state != 'dropped'" if table == "dead" else ""
        return int(self._db.execute(f"SELECT {what} FROM {table} {where}").fetchone()[0])  # noqa: S608 - our own table names


def _has_bytes(path: str) -> bool:
    return os.path.exists(path) and os.path.getsize(path) >= 512  # SQLite takes less for a new one


def _connect(path: str) -> sqlite3.Connection:
    old = os.umask(0o077)
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=10)
    finally:
        os.umask(old)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
    except BaseException:
        db.close()
        raise
    return db
