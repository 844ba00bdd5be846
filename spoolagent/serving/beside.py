"""Where the mirror of a file target's state lies: with the target's files, not with the spool.

A spool that is put back from a backup brings older cursors along. The files of its targets are not older, and say
with the mirror beside them what was appended since, so that nothing is appended twice. See
docs/decisions/0010-the-mirror-lies-with-the-target.md.
"""

import glob
import hashlib
import os
import stat
from dataclasses import dataclass

from filelock import FileLock, Timeout

from spoolagent.contract import Beside
from spoolagent.errors import Locked
from spoolagent.format.durable import make_dirs
from spoolagent.format.layout import FILE_MODE

FOLDER = ".spoolagent"
"""In the target's folder; a name that no tracker's reader looks at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A mirror beside its target, locked: a copy of this spool may be delivered by another agent."""

    path: str
    has_files: bool
    """False when the target is empty: then a mirror is of a target that is gone."""
    lock: FileLock


def take_place(beside: Beside, uuid: str, identity: str, *, is_new: bool) -> Place | None:
    """The place for the mirror of the state of target `identity` for the spool `uuid`; None where there can be none.

    `is_new`: nothing is known of the target yet, so its folder is made; otherwise a folder that is missing may be a
    mount that is away. Raises Locked.
    """
    folder = os.path.join(beside.folder, FOLDER)
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    path = os.path.join(folder, f"{name}-{uuid}.mirror")
    try:
        if not is_new and not os.path.isdir(beside.folder):
            return None
        make_dirs(folder)
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return None  # another user's, in a folder that many share
        lock = FileLock(path + ".lock", mode=FILE_MODE)
        lock.acquire(timeout=0)
    except Timeout:
        raise Locked(
            f"another process is replaying a copy of this spool into {identity}: wait for it, or end it"
        ) from None
    except (OSError, NotImplementedError):  # read-only, full, or a file system without locks
        return None
    own = glob.iglob(os.path.join(glob.escape(beside.folder), beside.pattern))
    return Place(path=path, has_files=next(own, None) is not None, lock=lock)
