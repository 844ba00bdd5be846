"""Where the mirror of a file target's state lies: with the target's files or above them, not with the spool.

A spool that is put back from a backup brings older cursors along. The files of its targets are not older, and say
with the mirror beside them what was appended since, so that nothing is appended twice. See
docs/decisions/0011-the-mirror-lies-with-the-target.md.
"""

import errno
import hashlib
import os
import re
import stat

from filelock import FileLock, Timeout

from spoolagent.contract import Beside
from spoolagent.errors import Locked
from spoolagent.format.durable import make_dirs
from spoolagent.format.layout import FILE_MODE
from spoolagent.serving.place import Moved, Place

FOLDER = ".spoolagent"
"""A name that no tracker's reader looks at."""


class Nook:
    """Where the mirror of one target's state lies, for one spool. Locked: a copy of the spool may have an agent, too."""

    def __init__(self, beside: Beside, uuid: str, identity: str) -> None:
        self._beside, self._identity = beside, identity
        self.folder = os.path.join(beside.folder, FOLDER)
        name = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self.path = os.path.join(self.folder, f"{name}-{uuid}.mirror")
        self._lock = FileLock(self.path + ".lock", mode=FILE_MODE)
        self._place: Place | None = None

    @property
    def is_used(self) -> bool:
        """True when there is a mirror."""
        return os.path.isfile(self.path)

    @property
    def is_entered(self) -> bool:
        """True while this process has the place."""
        return self._lock.is_locked

    def has_files(self) -> bool:
        """False when the target is empty: then a mirror is of a target that is gone."""
        try:
            with os.scandir(self._beside.files) as entries:
                return any(re.fullmatch(self._beside.pattern, entry.name) for entry in entries)
        except FileNotFoundError:
            return False

    def enter(self) -> None:
        """Makes the folder, and locks the place. Raises Locked; OSError where there can be no mirror.

        A target's folder that is missing is not made: it may be a mount that is away.
        """
        if not os.path.isdir(self._beside.folder):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._beside.folder)
        try:
            make_dirs(self.folder)
            found = os.lstat(self.folder)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "belongs to another user", self.folder)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise Locked(
                f"another process is replaying a copy of this spool into {self._identity}: wait for it, or end it"
            ) from None
        except NotImplementedError as error:  # a file system without locks
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), self.path) from error
        except OSError as error:
            if error.errno == errno.EROFS and not os.statvfs(self._beside.files).f_flag & os.ST_RDONLY:
                # Only what lies above the target's files is kept from us, by a sandbox: it will stay so.
                raise PermissionError(errno.EPERM, os.strerror(errno.EROFS), self.folder) from error
            raise

    def remember(self) -> None:
        """Keeps which files are there now: the mirror that is open, and its lock."""
        self._place = Place([self.path, self.path + ".lock"])

    def is_there(self) -> bool:
        """False when the mirror or its lock was removed or replaced while it was in use."""
        try:
            if self._place is not None:
                self._place.check()
        except Moved:
            return False
        return True

    def leave(self) -> None:
        """Releases the lock."""
        self._lock.release(force=True)  # also when it was entered twice
