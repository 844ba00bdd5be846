"""Opening what somebody else may have put into a spool: only plain files, and never through a symbolic link.

A FIFO would hold up whoever opens it, a link leads out of the spool. To every reader such a name is not there.
"""

import errno
import os
import stat
from typing import BinaryIO

_NOT_PLAIN = frozenset((errno.ELOOP, errno.ENXIO))
"""What O_NOFOLLOW says of a link, and open of a socket."""

UNREADABLE = frozenset((errno.EIO, errno.EACCES, errno.EPERM, errno.EISDIR))
"""What says of a file that it cannot be read, not that the process has no descriptor or memory left just now."""


class NotPlain(FileNotFoundError):
    """There is something else than a plain file."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.ENOENT, "is not a plain file, so it is not read", path)


def open_plain(path: str, buffering: int = -1) -> BinaryIO:
    """The plain file at `path`, open to be read. Raises OSError, NotPlain."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in _NOT_PLAIN:
            raise NotPlain(path) from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotPlain(path)
    return os.fdopen(fd, "rb", buffering)


def is_plain(path: str) -> bool:
    """True when a plain file is there, and not by a symbolic link."""
    return os.path.isfile(path) and not os.path.islink(path)


def plain_size(path: str) -> int:
    """Length of the plain file at `path` in bytes. Raises OSError, NotPlain."""
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise NotPlain(path)
    return found.st_size
