"""The dead letters of a spool's receivers, for people: listing them, and marking them as to be retried or dropped.

Works beside a running worker: reading takes no lock, marking is one short transaction. The worker looks for marks
at every sweep; without one, the next `serve` or `replay` does.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, Literal

from filelock import FileLock, Timeout

from spoolagent.errors import Locked
from spoolagent.format.events import Event
from spoolagent.format.layout import StreamKey
from spoolagent.serving import sums
from spoolagent.serving.database import MIRROR, NAME, existing, transact
from spoolagent.serving.retries import finder, why_missing
from spoolagent.serving.schema import VERSION, prepare, version_of

LetterState = Literal["dead", "retry", "dropped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """One event that a receiver refused for good."""

    key: StreamKey
    seq: int
    type: str
    reason: str
    time_ns: int
    """When it was refused, the last time."""
    state: LetterState
    """"dead"; "retry" when it is to be delivered again; "dropped" when somebody said that it is not wanted."""
    retries: int
    """How often it was delivered again and refused again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Which dead letters. Empty: all of them."""

    sites: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    writers: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    seqs: tuple[int, ...] = ()
    reason: str = ""
    """A part of the reason's text."""
    states: tuple[LetterState, ...] = ()

    def where(self) -> tuple[str, list[Any]]:
        """The condition, and its values."""
        parts: list[str] = ["1"]
        values: list[Any] = []
        columns: tuple[tuple[str, tuple[Any, ...]], ...] = (
            ("site", self.sites),
            ("run", self.runs),
            ("writer", self.writers),
            ("type", self.types),
            ("seq", self.seqs),
            ("state", self.states),
        )
        for column, wanted in columns:
            if wanted:
                parts.append(f"{column} IN ({', '.join('?' * len(wanted))})")
                values += wanted
        if self.reason:
            parts.append("instr(reason, ?) > 0")
            values.append(self.reason)
        return " AND ".join(parts), values


def read_letters(folder: str, choice: Choice) -> Iterator[DeadLetter]:
    """The dead letters in a receiver's folder, by stream and seq. Reads only. Raises sqlite3.Error."""
    with closing(existing(_path(folder), "ro")) as db:
        old = "(SELECT *, 'dead' AS state, 0 AS retries FROM dead)"  # an agent of an earlier version made it
        where, values = choice.where()
        columns = "site, run, writer, seq, type, reason, time_ns, state, retries"
        table = "dead" if version_of(db) > 1 else old
        query = f"SELECT {columns} FROM {table} WHERE {where} ORDER BY site, run, writer, seq"  # noqa: S608 - our own text
        for row in db.execute(query, values):
            yield DeadLetter(
                key=StreamKey(*row[:3]),
                seq=row[3],
                type=row[4],
                reason=row[5],
                time_ns=row[6],
                state=row[7],
                retries=row[8],
            )


def mark(folder: str, choice: Choice, state: LetterState) -> int:
    """Gives the chosen dead letters this state. Returns how many were changed. Raises Locked, sqlite3.Error."""
    where, values = choice.where()
    query = f"UPDATE dead SET state = ? WHERE {where} AND state != ?"  # noqa: S608 - our own text

    def change(db: sqlite3.Connection) -> int:
        return db.execute(query, (state, *values, state)).rowcount

    path, mirror = _path(folder), os.path.join(folder, MIRROR)
    with closing(existing(path, "rw")) as db:
        db.execute("PRAGMA synchronous=FULL")
        _bring_up_to_date(db, folder)
        sums.keep(db)
        changed = transact(db, path, change)
    # Where that fails, the next worker makes the mirror anew.
    with suppress(sqlite3.Error), closing(existing(mirror, "rw")) as copy:
        sums.keep(copy)
        transact(copy, mirror, change)
    return changed


def _bring_up_to_date(db: sqlite3.Connection, folder: str) -> None:
    """A worker of an earlier version must not have its tables changed under its hands."""
    if version_of(db) == VERSION:
        return
    try:
        with FileLock(os.path.join(folder, "lock"), mode=0o600, timeout=0):
            prepare(db, _path(folder))
    except Timeout:
        raise Locked(
            f"{_path(folder)} is in use by a worker of another version: restart `serve`, then try again"
        ) from None


def event_of(spool: str, letter: DeadLetter) -> tuple[Event | None, str]:
    """The event of a dead letter, decoded from the spool; None and why, when its bytes are gone. Raises OSError."""
    event = finder(spool, letter.key)(letter.seq)
    return event, "" if event is not None else why_missing(spool, letter.key, letter.seq)


def _path(folder: str) -> str:
    return os.path.join(folder, NAME)
