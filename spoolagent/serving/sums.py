"""Checksums over a receiver's database. SQLite has none for its pages: a flipped bit in a cursor would go unnoticed.

The table `sums` holds, for each table, how many rows it has and the sum of their CRC-32. Temporary triggers keep it
up to date in the same transaction as the rows, so whoever writes calls `keep` first. `check` counts it all again.
"""

import contextlib
import sqlite3
import zlib
from collections.abc import Iterator

import orjson

from spoolagent.errors import SpoolError

TABLES = (
    "meta",
    "kv",
    "streams",
    "named",
    "dead",
    "lost",
    "quarantine",
    "skipped",
    "told",
    "retrying",
    "damage",
)
_SCHEMA = "(schema)"
"""The row of `sums` for the tables' own definitions."""
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT)


_LONG = 120
"""Of SQLite's own words. It may quote a whole table."""
NEXT = (
    "Put a backup in its place, with the -wal file that belongs to it and no other, and remove its -shm file and "
    "what state.mirror is or leads to; or move its folder away and deliver into a new, empty target"
)
"""What an operator can do."""


class Damaged(SpoolError):
    """A receiver's database is not what was written: nothing can be delivered by it, for nothing in it is sure.

    When its mirror is whole, that takes its place (`spoolagent.serving.mirror`).
    """

    def __init__(self, path: str, why: str) -> None:
        self.why = " ".join(why.split())[:_LONG]
        super().__init__(f"{path} is damaged: {self.why}; nothing is delivered by it. {NEXT}")


def is_damage(error: Exception) -> bool:
    """True for what SQLite says of bytes that cannot be right; False when a disk is full, fails or is busy."""
    if str(error).startswith("Could not decode"):  # Python's own word: text that is no text
        return True
    code = getattr(error, "sqlite_errorcode", None)  # missing when SQLite did not say it
    return isinstance(error, sqlite3.DatabaseError) and code is not None and code & 0xFF in _DAMAGE


@contextlib.contextmanager
def noticing(path: str) -> Iterator[None]:
    """Raises Damaged for what cannot be right in the database at `path`; other errors pass."""
    try:
        yield
    except UnicodeDecodeError as error:  # Python's own: text, or SQLite's message about it, that is no text
        raise Damaged(path, "what should be text in it is none") from error
    except orjson.JSONDecodeError as error:
        raise Damaged(path, "what should be JSON in it is none") from error
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            raise Damaged(path, str(error)) from error
        raise


def keep(db: sqlite3.Connection) -> None:
    """Makes this connection's changes count. For every connection that writes, once the tables are there."""
    _enable(db)
    db.execute("PRAGMA temp_store=MEMORY")  # a full disk must not be in the way of the triggers
    db.execute("PRAGMA recursive_triggers=ON")  # else REPLACE removes a row without telling
    for table in TABLES:
        columns = _columns(db, table)
        added = f"row_sum('{table}', {', '.join(f'new.{c}' for c in columns)})"
        removed = f"row_sum('{table}', {', '.join(f'old.{c}' for c in columns)})"
        for event, change in (
            ("INSERT", f"n = n + 1, total = total + {added}"),
            ("DELETE", f"n = n - 1, total = total - {removed}"),
            ("UPDATE", f"total = total + {added} - {removed}"),
        ):
            db.execute(
                f"CREATE TEMP TRIGGER keep_{event}_{table} AFTER {event} ON main.{table} BEGIN "  # noqa: S608 - our own names
                f"UPDATE sums SET {change} WHERE name = '{table}'; END"
            )


def fill(db: sqlite3.Connection) -> None:
    """Counts what was not counted yet, inside the transaction that made it. What was is still to be checked."""
    _enable(db)
    for table in TABLES:
        db.execute("INSERT OR IGNORE INTO sums VALUES (?, ?, ?)", (table, *_count(db, table)))
    db.execute("INSERT OR REPLACE INTO sums VALUES (?, ?, ?)", (_SCHEMA, *_schema(db)))


def check(db: sqlite3.Connection, path: str) -> None:
    """Reads the whole database. Raises Damaged when anything in it is not what was written; else sqlite3.Error."""
    with noticing(path):
        db.execute("BEGIN")  # one view of it, whatever another process commits meanwhile
        try:
            _check(db, path)
        finally:
            db.execute("ROLLBACK")


def same(one: sqlite3.Connection, other: sqlite3.Connection) -> bool:
    """True when two databases that were checked hold the same rows."""
    query = "SELECT name, n, total FROM sums ORDER BY name"
    return bool(one.execute(query).fetchall() == other.execute(query).fetchall())


def _check(db: sqlite3.Connection, path: str) -> None:
    _enable(db)
    (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise Damaged(path, str(found))
    sums = {name: (n, total) for name, n, total in db.execute("SELECT name, n, total FROM sums")}
    if sums.get(_SCHEMA) != _schema(db):
        raise Damaged(path, "the definitions of its tables do not have the checksum that they had")
    for table in TABLES:
        if sums.get(table) != _count(db, table):
            raise Damaged(path, f"the rows of its table {table} do not have the checksum that they had")


def _enable(db: sqlite3.Connection) -> None:
    db.create_function("row_sum", -1, _row_sum, deterministic=True)


def _row_sum(*values: object) -> int:
    """CRC-32 over values with their types and lengths."""
    crc = 0
    for value in values:
        raw = value if isinstance(value, bytes) else str(value).encode()
        crc = zlib.crc32(raw, zlib.crc32(f"{type(value).__name__}{len(raw)}:".encode(), crc))
    return crc


def _columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in db.execute(f"PRAGMA main.table_info({table})")]


def _count(db: sqlite3.Connection, table: str) -> tuple[int, int]:
    columns = ", ".join(_columns(db, table))
    query = f"SELECT count(*), coalesce(sum(row_sum('{table}', {columns})), 0) FROM {table}"  # noqa: S608 - our own names
    n, total = db.execute(query).fetchone()
    return n, total


def _schema(db: sqlite3.Connection) -> tuple[int, int]:
    query = "SELECT CAST(type AS BLOB), CAST(name AS BLOB), CAST(tbl_name AS BLOB), CAST(sql AS BLOB) FROM main.sqlite_master"
    rows = db.execute(query).fetchall()  # as bytes: damaged ones may be no text
    return len(rows), sum(_row_sum(*row) for row in rows)
