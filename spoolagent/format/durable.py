"""The one place where files become durable. Nobody else calls write, fsync, rename or unlink on spool data.

A file that appears under its name is whole and on disk: temporary name, write, fsync, rename, fsync of the
directory. Each step passes `fault_point`, so that one test hook can fail, stop or kill at any of them.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator

from spoolagent.format.layout import DIR_MODE, FILE_MODE

Fault = Callable[[str, str], None]
"""Called as `fault(operation, path)` before the operation; it may raise OSError or end the process.

What it raises before an append or a write may say in an attribute `written` how many bytes get into the file all
the same: a short write, or a death in the middle of one.
"""

_fault: Fault | None = None

append: Callable[[int, bytes], int] = os.write
"""The writer's hot path: one os.write, with nothing around it until a fault injector is installed."""


def set_fault(fault: Fault | None) -> None:
    """Installs the hook of the fault injector (`spoolagent.testing`); None removes it."""
    global _fault, append  # noqa: PLW0603 - one seam for the whole process is the point
    _fault = fault
    append = os.write if fault is None else _append_with_fault


def _append_with_fault(fd: int, data: bytes) -> int:
    _write_point("append", os.readlink(f"/proc/self/fd/{fd}"), fd, data)
    return os.write(fd, data)


def _write_point(operation: str, path: str, fd: int, data: bytes) -> None:
    try:
        fault_point(operation, path)
    except BaseException as error:
        if written := getattr(error, "written", 0):
            os.write(fd, data[:written])
        raise


def fault_point(operation: str, path: str) -> None:
    """Lets the fault injector act before `operation` ("write", "fsync", "rename", "unlink", "commit", ...)."""
    if _fault is not None:
        _fault(operation, path)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Puts `path` into an OSError that names none: what the kernel says of a descriptor does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


_HIGH_FD = 200
"""Descriptors from here on: whoever opens a file gets the lowest free number."""


def out_of_the_way(fd: int) -> int:
    """`fd` under a high number, the old one closed; `fd` itself where there is none.

    A daemon that closes all descriptors and opens files of its own must not get our numbers: we would write to them.
    """
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
    except OSError:  # a lower limit, or no descriptor left
        return fd
    os.close(fd)
    return high


_sure: set[tuple[int, int]] = set()
"""Directories of which this process knows that their names are on disk, by device and inode."""
_SURE_MOST = 100_000


def make_dirs(path: str) -> None:
    """Creates `path` and its parents, 0700, each one durable in its parent.

    Also where it is there already: whoever made it may have been killed before it came to that.
    """
    found = _status(path)
    if found is not None and ((found.st_dev, found.st_ino) in _sure or not _is_ours(found)):
        return
    if os.path.islink(path):  # also /proc/self/fd/7: what it names has another directory above it
        return
    parent = os.path.dirname(path)
    if parent and parent != path:
        make_dirs(parent)
    if found is None:
        with contextlib.suppress(FileExistsError):
            fault_point("mkdir", path)
            os.mkdir(path, DIR_MODE)
        fsync_dir(parent or ".")
    else:
        try:
            fsync_dir(parent or ".")
        except OSError as error:
            above = _status(parent or ".")
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL) or (above and _is_ours(above)):
                raise  # what is not ours, above the spool, need not let itself be fsynced
    if (made := _status(path)) is not None:
        if len(_sure) >= _SURE_MOST:
            _sure.clear()
        _sure.add((made.st_dev, made.st_ino))


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _is_ours(found: os.stat_result) -> bool:
    """True for a directory that looks as if we had made it; those above a spool are not looked at."""
    return stat.S_ISDIR(found.st_mode) and found.st_mode & 0o777 == DIR_MODE and found.st_uid == os.geteuid()


def fsync_fd(fd: int, path: str) -> None:
    """fdatasync: the bytes and the length of an open file are on disk."""
    fault_point("fsync", path)
    with _naming(path):
        os.fdatasync(fd)


def fsync_dir(path: str) -> None:
    """Makes creations, renames and removals in the directory durable."""
    fault_point("fsync", path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _naming(path):
            os.fsync(fd)
    finally:
        os.close(fd)


def fsync_path(path: str) -> None:
    """Makes what is written to `path` so far, by anybody, durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fsync_fd(fd, path)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes, path: str) -> None:
    """Writes all of `data` at the descriptor's position. Raises OSError with a part possibly written."""
    if _fault is not None:
        _write_point("write", path, fd, data)
    view = memoryview(data)
    with _naming(path):
        while view:
            view = view[os.write(fd, view) :]


def write_file(path: str, data: bytes, *, exclusive: bool = False) -> None:
    """Puts a whole, durable file at `path`. With `exclusive`, raises FileExistsError when one is there."""
    with temporary(path) as (fd, temp):
        write_all(fd, data, temp)
        publish(fd, temp, path, exclusive=exclusive)


def publish(fd: int, temp: str, path: str, *, exclusive: bool = False) -> None:
    """Makes the finished temporary file `temp` (open as `fd`) appear at `path`, durably.

    With `exclusive` the file appears by a hard link, which fails where `path` exists.
    """
    fsync_fd(fd, temp)
    if exclusive:
        fault_point("link", path)
        os.link(temp, path)
    else:
        rename(temp, path)
        return
    fsync_dir(os.path.dirname(path) or ".")


def rename(source: str, target: str) -> None:
    """Renames, durably: afterwards the new name survives a power cut."""
    fault_point("rename", target)
    os.rename(source, target)
    fsync_dir(os.path.dirname(target) or ".")


@contextlib.contextmanager
def temporary(path: str) -> Iterator[tuple[int, str]]:
    """An open, new, 0600 file beside `path` under a dot name that readers ignore; removed if it is left over."""
    folder, name = os.path.split(path)
    temp = os.path.join(folder, f".tmp-{name}-{os.getpid()}-{os.urandom(4).hex()}")
    fault_point("create", temp)
    fd = os.open(temp, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        yield fd, temp
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):  # gone, or a leftover that nobody reads: what was done stands
            if os.path.lexists(temp):
                discard(temp)


def discard(path: str) -> None:
    """Removes a file that nobody will miss if a power cut brings it back. Raises OSError."""
    fault_point("unlink", path)
    os.unlink(path)


def discard_dir(path: str) -> None:
    """Removes an empty directory that nobody will miss if a power cut brings it back. Raises OSError."""
    fault_point("unlink", path)
    os.rmdir(path)


def unlink(path: str) -> None:
    """Removes a file, durably. A missing file is fine."""
    fault_point("unlink", path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        fsync_dir(os.path.dirname(path) or ".")


def truncate(fd: int, length: int, path: str) -> None:
    """Cuts an open file back. Only a stream's own writer, and a shipper in its target, may do this."""
    fault_point("truncate", path)
    with _naming(path):
        os.ftruncate(fd, length)
