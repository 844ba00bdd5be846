"""Opening one of a receiver's SQLite databases: its tables brought up to date, its contents checked, its rows counted.

A receiver has two of them, with the same contents: the database, and its mirror (`spoolagent.serving.mirror`).
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable
from typing import Literal, TypeVar
from urllib.parse import quote

from spoolagent.format.durable import fault_point
from spoolagent.serving import sums
from spoolagent.serving.schema import prepare

NAME = "state.sqlite"
MIRROR = "state.mirror"
MADE = ".made"
"""Beside a database that was made: one that is missing or empty then is damage, not a beginning."""
_T = TypeVar("_T")
Change = Callable[[sqlite3.Connection], _T]
"""What a transaction does: the same each time it is called."""
_LEAST = 512
"""Bytes of a database at least. SQLite takes a shorter file for a new one."""
_CACHE_KIB = 256
"""Pages that a connection keeps. SQLite's 2 MiB are no faster here (the kernel has the file), and a worker has two."""
SIDE_FILES = ("-wal", "-shm")
"""What SQLite keeps beside a database: its log, and an index of that."""


def _connect(path: str) -> sqlite3.Connection:
    """A connection whose commits are on disk when they return. Raises sqlite3.Error."""
    old = os.umask(0o077)
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=10)
    finally:
        os.umask(old)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    except BaseException:
        db.close()
        raise
    return db


def existing(path: str, mode: Literal["ro", "rw"]) -> sqlite3.Connection:
    """A connection to a database that is there, for whoever does not have the target's lock. Raises sqlite3.Error."""
    if not os.path.isfile(path):  # a FIFO would hold us up
        raise sqlite3.OperationalError(f"{path} is missing, or no file")
    return sqlite3.connect(f"file:{quote(path)}?mode={mode}", uri=True, isolation_level=None, timeout=10)


def open_checked(path: str, *, was_made: bool) -> sqlite3.Connection:
    """A connection to a database of this version that holds what was written to it. For who has the target's lock.

    Raises Damaged when it does not, NewerVersion when a later version wrote it, sqlite3.Error when the disk refuses.
    """
    if was_made and not _has_bytes(path):
        raise sums.Damaged(path, "it is missing or empty, and was not once")
    with sums.noticing(path):
        db = _connect(path)
    try:
        with sums.noticing(path):
            prepare(db, path, was_made=was_made)
        sums.check(db, path)
        sums.keep(db)
        _check_writable(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _check_writable(db: sqlite3.Connection, path: str) -> None:
    """SQLite looks at that part of the header only when something is written."""
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute("INSERT OR REPLACE INTO meta VALUES ('writable', '')")
    except sqlite3.OperationalError as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_READONLY and os.access(path, os.W_OK):
            raise sums.Damaged(path, "its header says that it is not to be written") from error
        raise
    finally:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")


def transact(db: sqlite3.Connection, path: str, change: Change[_T]) -> _T:
    """Makes one transaction in the database at `path`, and counts it. Returns what `change` returns.

    Raises sqlite3.Error; then nothing was changed.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        result = change(db)
        if not db.execute("UPDATE meta SET value = value + 1 WHERE key = 'commits'").rowcount:
            db.execute("INSERT INTO meta VALUES ('commits', '1')")
        fault_point("commit", path)
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
    return result


def commits(db: sqlite3.Connection) -> int:
    """How many transactions the database has seen."""
    row = db.execute("SELECT value FROM meta WHERE key = 'commits'").fetchone()
    return 0 if row is None else int(row[0])


def _has_bytes(path: str) -> bool:
    return os.path.exists(path) and os.path.getsize(path) >= _LEAST
