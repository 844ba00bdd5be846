"""What a receiver's worker commits, as rows of its database: one transaction, written to the database and its mirror."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from spoolagent.format.layout import StreamKey
from spoolagent.format.reader import START, Lost, Position


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
    damage: list[str] = field(default_factory=list)
    """What was found wrong in the target; the same sentence again is the same damage."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Transaction:
    """All that is committed at once. Made of values only, so that it can be written twice with the same result."""

    changes: Sequence[Commit]
    state: dict[str, bytes | None]
    """What the receiver put (JSON) and removed (None)."""
    name: Named | None
    """The batch that is delivered next."""
    retry: Letter | None
    """The dead letter that is delivered next."""
    time_ns: int

    def write(self, db: sqlite3.Connection) -> None:
        """Writes it into an open transaction. Raises sqlite3.Error."""
        run = db.execute
        for change in self.changes:
            self._write_change(db, change)
        for key, raw in self.state.items():
            if raw is None:
                run("DELETE FROM kv WHERE key = ?", (key,))
            else:
                run("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, raw))
        if (name := self.name) is not None:
            content = orjson.dumps({**name._asdict(), "key": None, "position": tuple(name.position)})
            run(
                "INSERT OR REPLACE INTO named (site, run, writer, content) VALUES (?, ?, ?, ?)",
                (*name.key, content),
            )
        if (retry := self.retry) is not None:
            run(
                "INSERT OR IGNORE INTO retrying (site, run, writer, seq) VALUES (?, ?, ?, ?)",
                (*retry.key, retry.seq),
            )

    def _write_change(self, db: sqlite3.Connection, change: Commit) -> None:
        run, now = db.execute, self.time_ns
        if change.told is not None:
            site, run_id, content = change.told
            run("INSERT OR REPLACE INTO told VALUES (?, ?, ?)", (site, run_id, orjson.dumps(content)))
        for kind, count in change.skipped.items():
            run(
                "INSERT INTO skipped VALUES (?, ?) ON CONFLICT (type) DO UPDATE SET n = n + excluded.n",
                (kind, count),
            )
        for text in change.damage:
            run("INSERT OR IGNORE INTO damage VALUES (?, ?)", (text, now))
        if change.retried is not None:
            self._write_retried(db, change.retried)
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

    def _write_retried(self, db: sqlite3.Connection, retried: Retried) -> None:
        run, place = db.execute, (*retried.key, retried.seq)
        where = "WHERE site = ? AND run = ? AND writer = ?"
        run(f"DELETE FROM retrying {where} AND seq = ?", place)  # noqa: S608 - our own text
        if retried.reason:  # one that was dropped meanwhile stays dropped
            run(
                "UPDATE dead SET reason = ?, time_ns = ?, retries = retries + 1, "  # noqa: S608 - our own text
                f"state = CASE state WHEN 'retry' THEN 'dead' ELSE state END {where} AND seq = ?",
                (retried.reason, self.time_ns, *place),
            )
            return
        run(f"DELETE FROM dead {where} AND seq = ?", place)  # noqa: S608 - our own text
        run(f"UPDATE streams SET applied = applied + 1 {where}", retried.key)  # noqa: S608 - our own text
