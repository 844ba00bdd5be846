"""Which run a TensorBoard `log_dir` is, and which part of it.

With `SPOOLAGENT_RUN` the first log_dir of the process is the run itself, and each further one a sub-run of it.
Without, each log_dir is a run of its own. The same log_dir is the same run (and sub-run) as long as the process
lives, also after `close`.
"""

import os
import threading
import time

from spoolagent.format.live import host_name
from spoolagent.format.names import new_run_id
from spoolagent.format.stream import warn_on_stderr
from spoolagent.writers import process
from spoolagent.writers.run import Run

_Home = tuple[str, str, str]

_guard = threading.Lock()
_ids: dict[_Home, str] = {}
"""(spool, site, log_dir) -> the run id generated for it."""
_parts: dict[_Home, dict[str, str]] = {}
"""(spool, site, run) -> log_dir -> sub-run; "" is the run itself, and the first."""


def default_log_dir(comment: str) -> str:
    """`runs/<time>_<host><comment>`, as torch names it."""
    return os.path.join("runs", time.strftime("%b%d_%H-%M-%S") + "_" + host_name() + comment)


def join(log_dir: str, name: str) -> tuple[Run, str]:
    """A handle on the run that `log_dir` belongs to, and the sub-run's name ("" for the run itself)."""
    place = process.place_from(os.environ)
    path = log_dir if "://" in log_dir else os.path.abspath(log_dir)
    part = ""
    with _guard:
        if place.run is None:
            run_id = _ids.setdefault((place.spool, place.site, path), new_run_id())
        else:
            run_id = place.run
            part = _part(_parts.setdefault((place.spool, place.site, run_id), {}), path)
    return Run(run=run_id, name=name, api="tensorboard", extra={"log_dir": log_dir}), part


def below(log_dir: object, name: str) -> str:
    """The sub-run that a directory given from `log_dir` on (or a whole path) is; "." is `log_dir` itself.

    Scripts give "." or log_dir's own path to have hyperparameters and curves in one run.
    """
    inside = os.path.relpath(os.path.join(str(log_dir), name), str(log_dir))
    return name if inside.split("/")[0] == ".." else inside


def make_log_dir(log_dir: str) -> None:
    """Creates the directory that torch would have created; a URL has none.

    Raises FileExistsError or NotADirectoryError where a file is in the way. What the disk refuses is only
    warned of: the events go to the spool.
    """
    if "://" in log_dir:
        return
    try:
        os.makedirs(log_dir, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise
    except OSError as error:
        warn_on_stderr(
            f"cannot create log_dir {log_dir} ({error.strerror}). Events go to the spool all the same."
        )


def _part(known: dict[str, str], path: str) -> str:
    """The sub-run of `path` among the log_dirs known so far; two log_dirs never share one."""
    if path not in known:
        name = base = "" if not known else _relative(path, next(iter(known)))
        number = 1
        while name in known.values():
            number += 1
            name = f"{base}_{number}"
        known[path] = name
    return known[path]


def _relative(path: str, first: str) -> str:
    """`path` below the first log_dir or below its parent, else below what they share."""
    parent = os.path.dirname(first)
    for root in (first, parent):
        inside = os.path.relpath(path, root)
        if inside.split("/")[0] not in (".", ".."):
            return inside
    parts = [part for part in os.path.relpath(path, parent).split("/") if part not in (".", "..")]
    return "/".join(parts) or os.path.basename(path) or "root"


def _after_fork_in_child() -> None:
    global _guard  # noqa: PLW0603 - the child's own: another thread may hold the parent's
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
