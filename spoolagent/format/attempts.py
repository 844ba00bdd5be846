"""Which life of a run a starting process belongs to.

Ranks of one launch share an attempt; a requeued job begins the next one. The launch identity that SLURM or
torchrun gives decides where there is one; else a run with a living main stream is joined, and any other gets
its next attempt.
"""

import os
import time
from collections.abc import Mapping

from spoolagent.errors import FormatError
from spoolagent.format import layout, live
from spoolagent.format.header import Header, read_header

_RECENT_S = 60.0
"""A LIVE of another host counts as alive while its content is younger than this (clocks agree this well)."""


def launch_id(env: Mapping[str, str]) -> str | None:
    """The identity of this launch of the job: equal in all its ranks, different after a requeue. None: unknown."""
    parts = []
    if job := env.get("SLURM_JOB_ID"):
        parts.append(f"slurm:{job}.{env.get('SLURM_STEP_ID', '')}:{env.get('SLURM_RESTART_COUNT', '0')}")
    if elastic := env.get("TORCHELASTIC_RUN_ID"):
        if elastic == "none":  # torchrun's default names nothing; its agent is our parent
            elastic = f"none-{live.host_name()}-{os.getppid()}"
        parts.append(f"elastic:{elastic}:{env.get('TORCHELASTIC_RESTART_COUNT', '0')}")
    return "|".join(parts) or None


def next_attempt(spool: str, site: str, run: str, launch: str | None) -> int:
    """The attempt that a main stream starting now belongs to."""
    mains = [(key, header) for key, header in _headers(spool, site, run) if header.role == "main"]
    latest = max((header.attempt for _, header in mains), default=0)
    current = [(key, header) for key, header in mains if header.attempt == latest]
    launches = {header.launch for _, header in current}
    if launch is not None and launch in launches:
        return latest
    if launch is not None and current and None not in launches:
        return latest + 1  # all of them belong to other launches, whatever is still alive of them
    alive = any(_seems_alive(layout.stream_dir(spool, key)) for key, _ in current)
    return latest if alive else latest + 1


def attempt_of_parent(spool: str, site: str, run: str, pid: int) -> int | None:
    """The attempt in which the process `pid` of this machine writes to the run now; None when it does not.

    Raises OSError when the spool cannot be read.
    """
    for key, header in _headers(spool, site, run):
        stream = layout.stream_dir(spool, key)
        owner, _ = live.read_owner(stream)
        if owner is not None and (owner.host, owner.pid) == (live.host_name(), pid) and _seems_alive(stream):
            return header.attempt
    return None


def _headers(spool: str, site: str, run: str) -> list[tuple[layout.StreamKey, Header]]:
    found = []
    for key in layout.iter_streams(spool, site, run):
        try:
            header = read_header(layout.stream_dir(spool, key))
        except (OSError, FormatError):
            continue
        if header is not None:
            found.append((key, header))
    return found


def _seems_alive(stream: str) -> bool:
    if live.is_held_here(stream):
        return True
    try:
        owner, _ = live.read_owner(stream)
    except OSError:  # it may
        return True
    if owner is None:
        return False
    if (owner.host, owner.boot) == (live.host_name(), live.boot_id()):
        return live.is_locked(stream) is not False
    return time.time_ns() - owner.time_ns < _RECENT_S * 1e9
