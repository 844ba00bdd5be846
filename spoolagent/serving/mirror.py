"""The second copy of a receiver's database. A damaged database must not stop its receiver until somebody comes.

Each transaction is made in the database, durably, and then again in the mirror, without waiting for the disk. When a
receiver is opened, both are checked in full. The one that is damaged, or has seen fewer commits, is replaced by the
other; when the mirror takes over, the damaged database is kept beside it. After a power cut the mirror may have
forgotten some commits: then events are delivered again, which has no second effect.

The mirror lies beside the database, or, for a target that wants it so, with the target's files; then a symbolic link
beside the database leads to it, and each of its commits is on disk, too.
"""

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from spoolagent.errors import Locked, SpoolError
from spoolagent.format.durable import discard, fault_point, fsync_path, rename
from spoolagent.format.layout import FILE_MODE
from spoolagent.serving import sums
from spoolagent.serving.beside import Nook
from spoolagent.serving.database import (
    MADE,
    MIRROR,
    NAME,
    SIDE_FILES,
    Change,
    commits,
    open_checked,
    transact,
)
from spoolagent.serving.place import Moved
from spoolagent.serving.schema import NewerVersion
from spoolagent.serving.sums import Damaged

KEPT = "damaged.sqlite"
"""The last database that was found damaged, for whoever wants to know more."""
_NOT_OURS = frozenset((errno.EACCES, errno.EPERM, errno.ENOLCK, errno.ENOSYS))
"""What says that there can be no mirror beside a target."""
_AGAIN_S = 60.0
"""After the disk refused the mirror: how long until it is made again."""


class Mirror:
    """Follows the open database `db` of `folder`. What goes wrong with the mirror is never the database's trouble."""

    def __init__(
        self,
        folder: str,
        db: sqlite3.Connection,
        copy: sqlite3.Connection | None,
        nook: Nook | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db, self._copy, self._clock = db, copy, clock
        self._own, self._nook = os.path.join(folder, MIRROR), nook
        self._again_at = 0.0
        if copy is not None:
            self._follows(copy)
        elif nook is None:
            self._make()  # beside a target: when its receiver has found that it may be used, with the first commit

    @property
    def _path(self) -> str:
        return self._own if self._nook is None else self._nook.path

    def claim(self) -> None:
        """Before a change: takes the place beside the target's files. Raises Moved when another agent has worked there."""
        if self._nook is None:
            return
        if self._copy is not None and not self._nook.is_there():
            self._lose()  # the target's folder was made anew
            self._nook.leave()
            self._again_at = 0.0
        if self._nook.is_entered:
            return
        try:
            self._nook.enter()
        except Locked as error:  # a copy of the spool was quicker: two would write every event twice
            raise Moved(str(error)) from error
        except (SpoolError, OSError):
            self._nook = None
            return
        if self._nook.is_used:
            self._nook.leave()
            raise Moved(
                f"another agent has worked with a copy of this spool meanwhile: {self._nook.path} is there now;"
                " what it delivered counts from the next start on"
            )

    def follow(self, change: Change[None], *, make: bool = True) -> None:
        """Makes a change that the database has committed in the mirror, too. `make`: also a mirror that is not there."""
        if self._copy is None:
            if make and self._clock() >= self._again_at:
                self._make()  # with this change in it
            return
        try:
            transact(self._copy, self._path, change)
        except (sqlite3.Error, OSError):
            self._lose()

    def give_way(self) -> bool:
        """Frees the mirror's space on a disk that is full, for a while. True when there was some."""
        if self._nook is not None:
            return False  # seldom on this disk, and what the cursors of a spool that is put back are compared with
        had_some = self._copy is not None
        self._lose()
        with contextlib.suppress(OSError):
            _remove(self._path)
        return had_some

    def close(self) -> None:
        """Releases the mirror's file."""
        if self._copy is not None:
            self._copy.close()
            self._copy = None

    def _lose(self) -> None:
        """A mirror that missed a commit is behind for good: it is made anew."""
        self.close()
        self._again_at = self._clock() + _AGAIN_S

    def _make(self) -> None:
        try:
            new = _copied(self._db, self._path)
            _remove(self._path)
            rename(new, self._path)
            try:
                self._copy = open_checked(self._path, was_made=True)
            except BaseException:
                # A file system without shared memory: what we cannot open, no next start may find.
                _remove(self._path)
                raise
            self._follows(self._copy)
        except (sqlite3.Error, SpoolError, OSError):
            self._lose()

    def _follows(self, copy: sqlite3.Connection) -> None:
        """Here it waits for the disk only when it copies its log into its file: it stays whole, and may fall behind.

        With a target's files it must not: it is what tells how far they are when the database is put back.
        """
        if self._nook is None:
            copy.execute("PRAGMA synchronous=NORMAL")
            return
        self._nook.remember()
        with contextlib.suppress(OSError):  # a disk without symbolic links: only `status` and marks go by it
            if not os.path.islink(self._own) or os.readlink(self._own) != self._path:
                _remove(self._own)  # a mirror that lay here
                os.symlink(self._path, self._own)


def open_both(folder: str, nook: Nook | None = None) -> tuple[sqlite3.Connection, Mirror, str]:
    """The database in `folder`, made when there is none, its mirror, and what is to be reported of them, or "".

    For who has the target's lock. Raises Damaged when neither can be used, NewerVersion, and sqlite3.Error or OSError
    when the disk refuses.
    """
    path, own = os.path.join(folder, NAME), os.path.join(folder, MIRROR)
    is_marked = os.path.exists(path + MADE)
    is_new = not is_marked and not os.path.exists(path)
    if nook is not None and nook.is_used and not _enter(nook, is_new=is_new):
        nook = None
    held = _held(folder, nook)
    db, why = _opened(path, was_made=is_marked or bool(held))
    copy = _newest(held)
    if db is not None and copy is not None:
        ours, its = commits(db), commits(copy.db)
        if its > ours:  # its log was cut or damaged, of which SQLite says nothing; or a backup was put back
            why = Damaged(path, f"it knows of {ours} commits, its mirror of {its}")
            db.close()
            db = None
        elif not sums.same(db, copy.db):
            copy.db.close()
            copy = None
    news = ""
    if db is None:
        assert why is not None
        if copy is None:
            if held and not is_marked:
                raise Damaged(held[-1], "and the database that it is the mirror of is gone")
            raise why
        news = _take_over(folder, copy.db, why.why)
        db = open_checked(path, was_made=True)
    if copy is not None and (copy.path != (nook.path if nook else own) or os.path.islink(copy.path)):
        copy.db.close()
        copy = None
    return db, Mirror(folder, db, None if copy is None else copy.db, nook), news


class _Copy(NamedTuple):
    """A mirror that is whole."""

    path: str
    db: sqlite3.Connection


def _held(folder: str, nook: Nook | None) -> list[str]:
    """Where mirrors are: one place, and for a moment two, when it was not known or could not be used before."""
    own = os.path.join(folder, MIRROR)
    found = [own] if os.path.isfile(own) and not (nook and os.path.islink(own)) else []
    return found + ([nook.path] if nook is not None and nook.is_used else [])


def _newest(paths: list[str]) -> _Copy | None:
    """The whole one with the most commits, open."""
    newest: _Copy | None = None
    for path in paths:
        db, _ = _opened(path, was_made=True)
        if db is None:
            continue
        if newest is not None and commits(newest.db) >= commits(db):
            db.close()
            continue
        if newest is not None:
            newest.db.close()
        newest = _Copy(path, db)
    return newest


def _enter(nook: Nook, *, is_new: bool) -> bool:
    """Locks the mirror beside a target. That of a target which was emptied, with its state, is removed. Raises Locked.

    False when it is not ours, or cannot be reached.
    """
    try:
        nook.enter()
        if is_new and not nook.has_files():
            _remove(nook.path)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise  # what passes: the worker comes again
        return False
    return True


def _opened(
    path: str, *, was_made: bool
) -> tuple[sqlite3.Connection, None] | tuple[None, Damaged | NewerVersion]:
    """The database at `path`, or why it cannot be used."""
    try:
        return open_checked(path, was_made=was_made), None
    except (Damaged, NewerVersion) as error:
        return None, error


def _take_over(folder: str, copy: sqlite3.Connection, why: str) -> str:
    """Puts what the mirror holds in the database's place. A crash in between leaves the mirror as it is.

    Returns what is to be reported.
    """
    path, kept = os.path.join(folder, NAME), os.path.join(folder, KEPT)
    new = _copied(copy, path)
    _remove(kept)
    for side in ("", *SIDE_FILES):
        if os.path.lexists(path + side):
            rename(path + side, kept + side)
    rename(new, path)
    when = datetime.now(UTC).isoformat(" ", "seconds")
    return (
        f"{path} was found damaged at {when} ({why}); its mirror has taken its place"
        f"{f', the damaged one is kept as {kept}' if os.path.exists(kept) else ''}"
    )


def _copied(source: sqlite3.Connection, path: str) -> str:
    """A whole, durable copy of a database in a file beside `path`. Returns that file's path."""
    new = path + ".new"
    _remove(new)
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, FILE_MODE))
    fault_point("write", new)
    with contextlib.closing(sqlite3.connect(new)) as target:
        source.backup(target)
    fsync_path(new)
    return new


def _remove(path: str) -> None:
    """Removes a database and all that SQLite keeps beside it."""
    for side in ("", "-journal", *SIDE_FILES):
        with contextlib.suppress(FileNotFoundError):
            discard(path + side)
