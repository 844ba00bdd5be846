"""What a repair reports, and where it keeps what it takes away: nothing is thrown away that might be somebody's data."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from filelock import FileLock, Timeout

from spoolagent.errors import Locked
from spoolagent.format import durable
from spoolagent.format.layout import AGENT_DIR, FILE_MODE

DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """One thing that was repaired, or that cannot be."""

    path: str
    message: str
    """What was done; when it could not be done, why."""
    done: bool = True
    next_step: str = ""


def keep_aside(spool: str, *place: str, data: bytes) -> None:
    """Puts a copy of damaged bytes into the quarantine, named by their hash: the same bytes once. Raises OSError."""
    *folders, name = place
    folder = os.path.join(spool, AGENT_DIR, "quarantine", *folders)
    path = os.path.join(folder, f"{name}-{hashlib.sha256(data).hexdigest()[:8]}")
    if not os.path.exists(path):
        durable.make_dirs(folder)
        durable.write_file(path, data)


def take_aside(spool: str, path: str, *place: str) -> str:
    """Moves a file into the quarantine, durably. Returns where it is now. Raises OSError."""
    *folders, name = place
    folder = os.path.join(spool, AGENT_DIR, "quarantine", *folders)
    durable.make_dirs(folder)
    number, target = 1, os.path.join(folder, name)
    while os.path.lexists(target):
        number, target = number + 1, os.path.join(folder, f"{name}-{number + 1}")
    durable.rename(path, target)
    durable.fsync_dir(os.path.dirname(path))
    return target


@contextlib.contextmanager
def lock_of(spool: str, name: str, wait_s: float) -> Iterator[None]:
    """Holds one of the agents' lock files. Raises Locked."""
    folder = os.path.join(spool, AGENT_DIR, "locks")
    durable.make_dirs(folder)
    lock = FileLock(os.path.join(folder, name), mode=FILE_MODE)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise Locked(f"{folder}/{name} is held by another process: wait for it, then try again") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def shipping_lock(spool: str, site: str, run: str) -> Iterator[None]:
    """Keeps shippers that write into this spool away from a run (`spoolagent.shipping.directory`). Raises Locked."""
    stripe = hashlib.sha256(f"{site}/{run}".encode()).hexdigest()[:2]
    with lock_of(spool, f"ship-{stripe}.lock", 10.0):
        yield
