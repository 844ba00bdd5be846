"""Names of sites, runs and writers. A name is legal or refused; nothing is cleaned up into a legal one."""

import os
import re

from spoolagent.errors import NameRefused
from spoolagent.format.clock import now_ns

_LEGAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


def is_legal(name: str) -> bool:
    """True when `name` may name a site, run or writer."""
    return _LEGAL.fullmatch(name) is not None


def check_name(kind: str, name: object) -> str:
    """`name`, when it is legal. Raises NameRefused, which is a ValueError.

    `kind` is "site", "run" or "writer", for the message.
    """
    if isinstance(name, str) and is_legal(name):
        return name
    raise NameRefused(
        f"{kind} name {name!r} is not legal: use 1 to 128 of A-Z a-z 0-9 . _ - and begin with a letter or digit"
    )


def check_case(kind: str, parent: str, name: str) -> None:
    """Refuses `name` when the directory `parent` holds one that differs from it only by case."""
    try:
        present = os.listdir(parent)
    except OSError:
        return
    folded = name.lower()
    for other in present:
        if other != name and other.lower() == folded:
            raise NameRefused(
                f"{kind} name {name!r} differs only by case from {other!r} in {parent}: use that name"
            )


def new_run_id() -> str:
    """A UUIDv7 (RFC 9562) as 32 hex digits: sorts by time, and has the shape of an MLflow run id."""
    stamp = now_ns() // 1_000_000
    rand = int.from_bytes(os.urandom(10), "big")
    value = (stamp & (2**48 - 1)) << 80 | rand
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return f"{value:032x}"


def new_writer_id() -> str:
    """A writer id: creation time in ms (so that listings sort) and 64 random bits. Never used twice."""
    return f"w{now_ns() // 1_000_000:012x}-{os.urandom(8).hex()}"
