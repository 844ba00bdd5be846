"""LIVE: the proof that a stream's writer is alive.

A POSIX record lock on the file: the kernel frees it at any death of the process, and a forked child does not
have it. It is probed with F_GETLK, which takes nothing. The lock is evidence only on the host and boot that the
file names; elsewhere an observer times how long the content has not changed (`spoolagent.format.ends`).
"""

import contextlib
import errno
import fcntl
import os
import struct
from typing import NamedTuple

import orjson

from spoolagent.format.clock import now_ns
from spoolagent.format.durable import discard, fault_point, out_of_the_way
from spoolagent.format.layout import FILE_MODE, LIVE_FILE
from spoolagent.format.plain import open_plain

RENEW_S = 10.0
_FLOCK = "hhqqi4x"  # struct flock on Linux: l_type, l_whence, l_start, l_len, l_pid
_NO_LOCKS = frozenset((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL))
_FLAGS = os.O_RDWR | os.O_CLOEXEC
UNLOCKED = "unlocked"
"""Stands for the boot id where the file system has no locks, so that nobody takes the lock for evidence."""
_held: set[str] = set()
"""Streams whose LIVE this process holds: to open and close the file here again would free the lock."""


class Owner(NamedTuple):
    """Who wrote a LIVE file."""

    host: str
    boot: str
    pid: int
    time_ns: int


def host_name() -> str:
    """This machine's name."""
    return os.uname().nodename


_boot = ""


def boot_id() -> str:
    """The kernel's id of this boot, or "" where it cannot be read."""
    global _boot  # noqa: PLW0603 - read once
    if not _boot:
        with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
            _boot = file.read().strip()
    return _boot


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


class Live:
    """The LIVE file of a stream, locked by this process until `release`."""

    def __init__(self, stream: str) -> None:
        """Creates and locks LIVE in the directory `stream`, which nobody else sees yet."""
        path = os.path.join(stream, LIVE_FILE)
        fault_point("create", path)
        self._fd = out_of_the_way(os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, FILE_MODE))
        self._pid = os.getpid()
        self._stream = stream
        try:
            self._file = _identity(self._fd)
            self._lock()
            self.renew()
        except BaseException:
            os.close(self._fd)
            raise

    def _lock(self) -> None:
        self._boot = boot_id()
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._boot = UNLOCKED  # training goes on; everybody times the content

    def keep(self) -> None:
        """Locks the file again when somebody closed our descriptor, which frees the lock. Raises OSError."""
        if self._is_ours():
            return
        self._fd = -1  # it may be anybody's by now
        fd = os.open(os.path.join(self._stream, LIVE_FILE), _FLAGS | os.O_NOFOLLOW)
        if _identity(fd) != self._file:  # somebody else's, too
            os.close(fd)
            return
        self._fd = out_of_the_way(fd)
        self._lock()
        self.renew()

    def _is_ours(self) -> bool:
        try:
            return self._fd >= 0 and _identity(self._fd) == self._file
        except OSError:
            return False

    def published(self, stream: str) -> None:
        """Tells where the stream's directory is now, after its rename into view."""
        self._stream = os.path.abspath(stream)
        _held.add(self._stream)

    def renew(self) -> None:
        """Writes the content anew, at once and in one piece (observers elsewhere see it change)."""
        text = orjson.dumps({"host": host_name(), "boot": self._boot, "pid": self._pid, "time": now_ns()})
        fault_point("renew", os.path.join(self._stream, LIVE_FILE))
        if self._is_ours():
            os.pwrite(self._fd, text.ljust(255) + b"\n", 0)

    def release(self) -> None:
        """Removes the file and frees the lock; in a forked child it only closes the descriptor."""
        try:
            if self._pid == os.getpid():
                _held.discard(self._stream)
                with contextlib.suppress(OSError):
                    discard(os.path.join(self._stream, LIVE_FILE))
        finally:
            if self._is_ours():
                os.close(self._fd)
            self._fd = -1


def forget_after_fork() -> None:
    """In a forked child: the locks are the parent's."""
    _held.clear()


def is_held_here(stream: str) -> bool:
    """True when this process is itself the stream's living writer."""
    return os.path.abspath(stream) in _held


def is_there(stream: str) -> bool:
    """True when the stream has a LIVE. It was born where it is, then, whatever became of its headers: LIVE never ships."""
    return os.path.lexists(os.path.join(stream, LIVE_FILE))


def read_owner(stream: str) -> tuple[Owner | None, bytes]:
    """Who owns the stream's LIVE and its raw content; (None, b"") when there is none.

    Raises OSError when it cannot be read (no descriptor left, no permission, a disk that fails): then nobody knows.
    """
    try:
        with open_plain(os.path.join(stream, LIVE_FILE)) as file:
            raw = file.read(4096)
    except (FileNotFoundError, NotADirectoryError):
        return None, b""
    try:
        value = orjson.loads(raw)
        return Owner(str(value["host"]), str(value["boot"]), int(value["pid"]), int(value["time"])), raw
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None, raw


def is_locked(stream: str) -> bool | None:
    """True when some process of this machine holds the stream's LIVE; None when that cannot be told. Takes nothing.

    Never call it for a stream of this very process (see `is_held_here`).
    """
    try:
        fd = os.open(os.path.join(stream, LIVE_FILE), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:  # no descriptor left, no permission, a server away: no evidence of a death
        return None
    try:
        query = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, query))
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(fd)
    return bool(answer[0] != fcntl.F_UNLCK)
