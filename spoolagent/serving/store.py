"""One SQLite database per receiver target, and its mirror: cursors, the receiver's state, dead letters, losses, counters.

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
from functools import partial
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import orjson
from filelock import FileLock, Timeout

from spoolagent.contract import Beside, Receiver
from spoolagent.errors import Locked
from spoolagent.format.durable import fsync_dir, make_dirs
from spoolagent.format.layout import AGENT_DIR, StreamKey
from spoolagent.format.reader import Position
from spoolagent.format.spool import Spool
from spoolagent.serving import sums
from spoolagent.serving.beside import Nook
from spoolagent.serving.changes import Commit, Letter, Named, StreamFacts, Transaction
from spoolagent.serving.database import MADE, NAME, Change, transact
from spoolagent.serving.mirror import open_both
from spoolagent.serving.place import LOCK, Place, check_folder


class Cursor(NamedTuple):
    """How far the receiver has resolved one stream, and what is known of it."""

    key: StreamKey
    position: Position
    facts: StreamFacts


Which = Literal["all", "not closed", "open"]
_WHICH = {
    "all": "TRUE",
    # What a row says of the end, without parsing it; inside a string the quotes would be escaped.
    "not closed": """NOT instr(facts, CAST('"end":"closed"' AS BLOB))""",
    "open": """instr(facts, CAST('"end":""' AS BLOB))""",
}
FIRST = ("", "", "", 0)
"""Before the first page of `Store.marked`."""


def open_store(spool: Spool, receiver: Receiver) -> "Store":
    """The database of a receiver's target. Raises as `Store` does."""
    beside: Beside | None = getattr(receiver, "beside", None)
    return Store(spool.path, receiver.identity, None if beside is None else (beside, spool.uuid))


def target_dir(spool: str, identity: str) -> str:
    """Where the agents keep what belongs to one target."""
    kind = re.sub(r"[^a-z0-9]+", "-", identity.partition(":")[0].lower())[:20]
    return os.path.join(
        spool, AGENT_DIR, "receivers", f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    )


class Store:
    """The database of one receiver target, exclusively locked while open.

    Its mirror lies with it, or `beside` the files of the target, for the spool with the uuid that is given there.

    Raises Locked when another process has it open, Damaged when neither it nor its mirror is what was written, InTheWay
    when something else is in their place. A commit raises Moved when they are not at their paths any more.
    """

    def __init__(self, spool: str, identity: str, beside: tuple[Beside, str] | None = None) -> None:
        self.folder = target_dir(spool, identity)
        check_folder(self.folder)
        make_dirs(self.folder)
        self.path = os.path.join(self.folder, NAME)
        self._overlay: dict[str, bytes | None] = {}
        with contextlib.ExitStack() as undo:  # whoever catches what is raised may try again
            lock = FileLock(os.path.join(self.folder, LOCK), mode=0o600)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise Locked(
                    f"another process is replaying this spool into {identity}: wait for it, or end it "
                    "('spoolagent status' shows it)"
                ) from None
            undo.callback(lock.release)
            nook = None
            if beside is not None:
                nook = Nook(*beside, identity)
                undo.callback(nook.leave)
            self._db, self._mirror, news = open_both(self.folder, nook)
            undo.callback(self._close_both)
            self.news = news  # for the worker to report
            self._place = Place([os.path.join(self.folder, LOCK), self.path])
            self._prepare(identity)
            self._close = undo.pop_all()

    def _prepare(self, identity: str) -> None:
        # The receiver has not looked at its target yet, which may be somebody else's: no mirror is put there.
        self._change(partial(_introduce, identity=identity, news=self.news), make=False)
        self._give_back_space()  # the tables have their pages now, which a full disk would refuse
        if not os.path.exists(self.path + MADE):
            with contextlib.suppress(OSError):  # a full disk: the next start tries again
                os.close(os.open(self.path + MADE, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
                fsync_dir(self.folder)

    def check_place(self) -> None:
        """Raises Moved when the database or its lock is not what is at its path any more."""
        self._place.check()

    def close(self) -> None:
        """Releases the database, its mirror and their locks."""
        self._close.close()

    def _close_both(self) -> None:
        self._mirror.close()
        self._db.close()

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

    def cursors(self, after: tuple[str, str], limit: int, which: Which = "all") -> list[Cursor]:
        """The cursors of the runs that come after the run `after`: of whole runs, about `limit` of them."""
        found = self._cursors(f"(site, run) > (?, ?) AND {_WHICH[which]}", (*after, limit + 1))
        if len(found) <= limit:
            return found
        last = found[-1].key
        whole = [cursor for cursor in found if cursor.key[:2] != last[:2]]
        return whole or self.cursors_of(last.site, last.run, which)

    def cursors_of(self, site: str, run: str, which: Which = "all") -> list[Cursor]:
        """The cursors of one run's streams."""
        return self._cursors(f"site = ? AND run = ? AND {_WHICH[which]}", (site, run, -1))

    def cursor(self, key: StreamKey) -> Cursor | None:
        """That of one stream; None when nothing of it was resolved."""
        return next(iter(self._cursors("site = ? AND run = ? AND writer = ?", (*key, 1))), None)

    def _cursors(self, where: str, given: tuple[str | int, ...]) -> list[Cursor]:
        query = (
            "SELECT site, run, writer, segment, offset, next_seq, facts FROM streams "  # noqa: S608 - our own text
            f"WHERE {where} ORDER BY site, run, writer LIMIT ?"
        )
        with sums.noticing(self.path):
            return [
                Cursor(StreamKey(*row[:3]), Position(*row[3:6]), StreamFacts(**orjson.loads(row[6])))
                for row in self._db.execute(query, given)
            ]

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

    def told(self, site: str, run: str) -> dict[str, Any] | None:
        """The state that the receiver was last told of a run, "sure" when it is known to have taken it."""
        query = "SELECT content FROM told WHERE site = ? AND run = ?"
        with sums.noticing(self.path):
            row = self._db.execute(query, (site, run)).fetchone()
            return None if row is None else orjson.loads(row[0])

    def unsure(self) -> list[tuple[str, str]]:
        """The runs whose last state may not have reached the receiver."""
        rows = self._db.execute("SELECT site, run FROM told WHERE instr(content, ?)", (b'"sure":false',))
        return [(site, run) for site, run in rows]

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
        if changes or name is not None or retry is not None or self._overlay:
            self._change(
                Transaction(
                    changes=changes, state=self._overlay, name=name, retry=retry, time_ns=time.time_ns()
                ).write
            )
        self._overlay = {}

    def _change(self, change: Change[None], *, make: bool = True) -> None:
        """One transaction: in the database, and when it is on disk, in the mirror."""
        self.check_place()
        if make:
            self._mirror.claim()
        try:
            transact(self._db, self.path, change)
        except sqlite3.OperationalError as error:
            is_full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
            # The mirror may have taken the space, or the database's own log.
            if not is_full or not (self._mirror.give_way() | self._give_back_space()):
                raise
            transact(self._db, self.path, change)
        self._mirror.follow(change, make=make)

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


def _introduce(db: sqlite3.Connection, identity: str, news: str) -> None:
    run = db.execute
    run("INSERT OR REPLACE INTO meta VALUES ('identity', ?)", (identity,))
    if news:
        run("INSERT OR REPLACE INTO meta VALUES ('recovered', ?)", (news,))
