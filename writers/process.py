"""What this process knows about itself: the environment's settings, and how the process ends."""

import atexit
import os
import sys
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple

from spoolagent.errors import UsageError
from spoolagent.format.live import host_name
from spoolagent.format.names import check_name, is_legal
from spoolagent.format.stream import DURABILITIES, warn_on_stderr


class Place(NamedTuple):
    """Where this process logs to."""

    spool: str
    site: str
    run: str | None
    durability: str


def place_from(env: Mapping[str, str]) -> Place:
    """The settings of `SPOOLAGENT_*`; without any, the spool is `./spool` and the site this machine's name.

    Raises UsageError (NameRefused) for a value that is not legal.
    """
    host = host_name()
    site = env.get("SPOOLAGENT_SITE") or (host if is_legal(host) else "local")
    run = env.get("SPOOLAGENT_RUN") or None
    durability = env.get("SPOOLAGENT_DURABILITY") or "interval"
    if durability not in DURABILITIES:
        raise UsageError(f"SPOOLAGENT_DURABILITY={durability!r} is not one of {', '.join(DURABILITIES)}")
    return Place(
        _absolute(env.get("SPOOLAGENT_SPOOL") or "spool"),
        check_name("site", site),
        None if run is None else check_name("run", run),
        durability,
    )


def _absolute(path: str) -> str:
    """`path` from the root. Where the working directory was deleted nothing relative can be written: it is named so."""
    try:
        return os.path.abspath(path)
    except OSError:
        return os.path.join("/proc/self/cwd", path)


def rank_from(env: Mapping[str, str]) -> int | None:
    """This process's rank in its job, or None when no launcher says so."""
    for name in ("SPOOLAGENT_RANK", "RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        value = env.get(name, "")
        if value.isascii() and value.isdigit():
            return int(value)
    return None


def parent_pid() -> int | None:
    """The process that started this one by Python's `multiprocessing` (also joblib's and torch's); None: nothing did."""
    loaded = sys.modules.get("multiprocessing.process")  # in such a child it is
    parent = loaded.parent_process() if loaded is not None else None
    return None if parent is None else parent.pid


_warned: set[str] = set()


def warn_once(topic: str, message: str) -> None:
    """One line on standard error, once in a process for each topic."""
    if topic not in _warned:
        _warned.add(topic)
        warn_on_stderr(message)


class _Exit:
    """How the process is ending: the exit code that it will have, as far as can be known."""

    code = 0


def exit_code() -> int:
    """0, or the exit code of the uncaught exception or `sys.exit` that is ending this process."""
    return _Exit.code


def on_exit(finish: Callable[[], None]) -> None:
    """Calls `finish` when the interpreter ends, and makes `exit_code` known from here on.

    An exception that nobody caught reaches `sys.excepthook`; `sys.exit(n)` reaches nobody, so it is wrapped,
    as wandb does. In a thread it ends only that thread.
    """
    atexit.register(finish)
    hook, leave = sys.excepthook, sys.exit

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        _Exit.code = 255 if issubclass(kind, KeyboardInterrupt) else 1
        hook(kind, error, trace)

    def leave_with(status: Any = None, /) -> None:
        if threading.current_thread() is threading.main_thread():
            _Exit.code = status if isinstance(status, int) else 0 if status is None else 1
        leave(status)

    sys.excepthook = excepthook
    sys.exit = leave_with  # type: ignore[assignment] # NoReturn by way of `leave`
