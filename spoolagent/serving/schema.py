"""The tables of a receiver's database, and how an older one becomes one of this version."""

import contextlib
import sqlite3

from spoolagent.errors import SpoolError
from spoolagent.format.durable import fault_point
from spoolagent.serving import sums

VERSION = 4
SCHEMA = """
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
"""Version 1. What came later is added by the steps below, also to a new database: there is one way only."""

STEPS = {
    # Dead letters that an operator wants delivered again, or does not want at all; those that are under way.
    1: """
ALTER TABLE dead ADD COLUMN state TEXT NOT NULL DEFAULT 'dead';
ALTER TABLE dead ADD COLUMN retries INTEGER NOT NULL DEFAULT 0;
CREATE INDEX dead_marked ON dead (state) WHERE state = 'retry';
CREATE TABLE retrying (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    site TEXT NOT NULL, run TEXT NOT NULL, writer TEXT NOT NULL, seq INTEGER NOT NULL,
    UNIQUE (site, run, writer, seq));
""",
    # Checksums over all rows (`spoolagent.serving.sums`).
    2: """
CREATE TABLE sums (name TEXT PRIMARY KEY, n INTEGER NOT NULL, total INTEGER NOT NULL) WITHOUT ROWID;
""",
    # What was found wrong in the target.
    3: """
CREATE TABLE damage (text TEXT PRIMARY KEY, time_ns INTEGER NOT NULL) WITHOUT ROWID;
""",
}
"""Version -> what makes the next one of it."""


class NewerVersion(SpoolError):
    """A later version of spoolagent wrote the database, or what says so in it is damaged."""

    def __init__(self, path: str, version: int) -> None:
        self.why = f"it says that it is of version {version}"
        super().__init__(
            f"{path} is of version {version}, this version uses {VERSION}: upgrade spoolagent; "
            f"if no later version ever used it, it is damaged. {sums.NEXT}"
        )


def version_of(db: sqlite3.Connection) -> int:
    """Which version of the tables a database has; 0 when it has none."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def prepare(db: sqlite3.Connection, path: str, *, was_made: bool = True) -> None:
    """Makes the tables of a new database; brings an older one up to date, in place, in one transaction.

    Only for who holds the target's lock. Raises NewerVersion when a later version wrote it,
    Damaged when it is new though it `was_made` before.
    """
    version = version_of(db)
    if was_made and not version:
        raise sums.Damaged(path, "it has no tables, and once had them")
    fault_point("commit", path)
    if version == VERSION:
        return
    if version > VERSION:
        raise NewerVersion(path, version)
    script = SCHEMA if version == 0 else ""
    script += "".join(STEPS[step] for step in range(max(1, version), VERSION))
    try:
        db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version={VERSION};")
        sums.fill(db)
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
