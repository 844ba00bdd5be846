"""Appends each batch to a file exactly once; the mechanism that all receivers with file targets share.

The receiver's state holds, per file, its name and its committed length. What a file holds beyond that length was
left by a crash: the same batch comes again, encodes to the same bytes, and they are completed, also where a power cut
left zeros in their place. Nothing is ever cut, because a live reader may already have read it. A file that does not
continue as it should is left alone, and a later-named one is begun.

    append(state, Append(key="file/a", folder=LOGDIR, name=lambda n: f"events-{n:04d}", encode=encode))
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spoolagent.contract import State
from spoolagent.errors import Unreachable
from spoolagent.format.durable import fault_point, fsync_dir, fsync_fd, make_dirs, write_all
from spoolagent.format.layout import FILE_MODE

MAX_NAMES = 10_000
"""How many names that are already taken are passed over before giving up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Append:
    """What one batch adds to one file."""

    key: str
    """Where the file's record lies in the state: {"name", "length", "number", ...}. One key, one file at a time."""
    folder: str
    """Absolute; created when it is missing."""
    name: Callable[[int], str]
    """The name of the file's 1st, 2nd, 3rd ... successor. Each sorts after the ones before it."""
    encode: Callable[[int], bytes]
    """The batch's bytes when they begin at this offset of the file: the same bytes for the same batch and offset.
    Called with len(head) for a new file."""
    head: bytes = b""
    """What every new file begins with, before the bytes of `encode`."""
    whole: Callable[[bytes], int] | None = None
    """How many bytes at the front of a torn result of `encode` are whole records, which a reader shows. Only for
    encodings that do not depend on the offset. With it, a batch that was written in part before its file was
    damaged goes on in the next file after these records, instead of from its first one."""
    says: str = ""
    """What is to be reported when a first file is begun: why it takes the place of another key's."""


@dataclass(kw_only=True, slots=True)
class _Plan:
    path: str
    at: int
    """Where `data` begins; also the committed length."""
    data: bytes
    new: bool
    """The file does not exist yet."""
    write: bool
    """False when the file already holds more than `data`."""
    record: dict[str, Any]
    """The state's record before the batch."""
    skip: int
    """What remains to be skipped of the batches after this one."""
    moved: bool
    """The record names a file that the committed state does not name yet."""


def append(state: State, *files: Append) -> list[str]:
    """Adds the bytes to all the files, durably, and puts their new lengths into the state.

    Returns what was found wrong with them, for `Outcome.damage`; after a crash the same again.

    It may call `state.checkpoint()`. So call it once per delivery, with all files, and put whatever must become
    true only together with the cursor *after* it. Raises Unreachable when the file system refuses (full, I/O error,
    no permission); calling it again with the same batch then completes the files.
    """
    try:
        plans = [(file, _plan(state, file)) for file in files]
        moved = [(file, plan) for file, plan in plans if plan.moved]
        for file, plan in moved:
            state.put(file.key, plan.record)
        if moved:
            # The names are ours from here on, before the files exist: a crash in between is recognised.
            state.checkpoint()
        for _, plan in plans:
            _write(plan)
    except OSError as error:
        place = error.filename or (files[0].folder if files else "")
        raise Unreachable(f"{place}: {error.strerror or error}: make room or mend the file system") from error
    said = []
    for file, plan in plans:
        record = {**plan.record, "length": plan.at + len(plan.data), "skip": plan.skip}
        if says := record.pop("says", ""):
            said.append(f"{says}; what comes later is in {plan.path}")
        state.put(file.key, record)
    return said


def own_names(record: dict[str, Any]) -> list[str]:
    """All file names that a record in the state stands for: those given up, then the current one."""
    return [*record.get("old", []), record["name"]]


def _plan(state: State, file: Append) -> _Plan:
    record = state.get(file.key)
    if record is None:
        return _begin(file, {"number": 0, "old": [], "skip": 0}, file.says)
    path = os.path.join(file.folder, record["name"])
    at, skip = record["length"], record.get("skip", 0)
    data, left = _encoded(file, at, skip)
    size = _size(path)
    if size is None and at == 0:  # named, then a crash before it was made
        return _Plan(path=path, at=0, data=data, new=True, write=True, record=record, skip=left, moved=False)
    if size is None or size < at:  # somebody removed or cut it
        return _begin(file, record, cut(path, at, size))
    tail = _read(path, at, min(size - at, len(data))) if size > at else b""
    longer = size - at > len(data)
    if data.startswith(tail) or (not longer and _has_holes(data, tail)):
        return _Plan(
            path=path, at=at, data=data, new=False, write=not longer, record=record, skip=left, moved=False
        )
    shown = _common(data, tail) - (len(file.head) if at == 0 else 0)
    if file.whole is not None and shown > 0:
        body = data[len(file.head) :] if at == 0 else data
        record = {**record, "skip": skip + file.whole(body[:shown])}
    return _begin(file, record, f"{path} holds bytes that were not delivered to it, and is left alone")


def cut(path: str, length: int, size: int | None) -> str:
    """What is to be reported of a file that is shorter than the `length` that was delivered to it, or gone."""
    if size is None:
        return f"{path}, with {length} bytes that were delivered to it, is gone"
    return f"the last {length - size} bytes that were delivered to {path} are gone"


def _begin(file: Append, record: dict[str, Any], says: str) -> _Plan:
    """A plan for a new file: the first one, or the next after the one that `record` names."""
    number, name = _free_name(file, record["number"] + 1)
    old = [*record["old"], record["name"]] if "name" in record else []
    fresh = {"name": name, "length": 0, "number": number, "old": old, "skip": record["skip"]}
    if says:
        fresh["says"] = says
    data, left = _encoded(file, 0, record["skip"])
    path = os.path.join(file.folder, name)
    return _Plan(path=path, at=0, data=data, new=True, write=True, record=fresh, skip=left, moved=True)


def _free_name(file: Append, first: int) -> tuple[int, str]:
    for number in range(first, first + MAX_NAMES):
        name = file.name(number)
        if not os.path.lexists(os.path.join(file.folder, name)):  # what is not in the state is not ours
            return number, name
    raise Unreachable(
        f"{file.folder}: {MAX_NAMES} names from {file.name(first)} on are taken: move them away"
    )


def _encoded(file: Append, at: int, skip: int) -> tuple[bytes, int]:
    """The bytes to be at offset `at`, and how much is still to be skipped after them."""
    if at == 0:
        body = file.encode(len(file.head))
        return file.head + body[skip:], max(0, skip - len(body))
    body = file.encode(at)
    return body[skip:] if skip else body, max(0, skip - len(body))


def _size(path: str) -> int | None:
    """The file's length, or None when there is no regular file."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _read(path: str, at: int, count: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.pread(fd, count, at)
    finally:
        os.close(fd)


def _has_holes(data: bytes, tail: bytes) -> bool:
    """True when a power cut left `tail` of `data`: blocks that did not reach the disk read as zeros."""
    return all(found in (0, byte) for byte, found in zip(data, tail, strict=False))


def _common(one: bytes, other: bytes) -> int:
    """How many bytes at the front are the same."""
    limit = min(len(one), len(other))
    return next((i for i in range(limit) if one[i] != other[i]), limit)


def _write(plan: _Plan) -> None:
    if not plan.data and not plan.new:
        return
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    if plan.new:
        make_dirs(os.path.dirname(plan.path))
        fault_point("create", plan.path)
        flags |= os.O_CREAT | os.O_EXCL
    fd = os.open(plan.path, flags, FILE_MODE)
    try:
        if plan.write:
            # From the committed length on, also over bytes that are there already: they are the same, and after
            # a failed fsync only a new write makes the kernel try again.
            os.lseek(fd, plan.at, os.SEEK_SET)
            write_all(fd, plan.data, plan.path)
        fsync_fd(fd, plan.path)
    finally:
        os.close(fd)
    if plan.at == 0:
        fsync_dir(os.path.dirname(plan.path))
