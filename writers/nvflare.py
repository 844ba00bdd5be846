"""NVFLARE's experiment tracking over a spool: change the import line of a client's training script.

    from spoolagent.writers.nvflare import SummaryWriter  # was nvflare.client.tracking

    writer = SummaryWriter()
    writer.add_scalar("loss", 0.5, global_step=1)

All writers of a process share one run: `SPOOLAGENT_RUN`, or a generated id. Any rank may log; with
`SPOOLAGENT_RANK_ZERO_ONLY=1` what other ranks log is left out. What each data type becomes, see
`spoolagent.writers.nvflare_types`.
"""

import os
import threading
from collections.abc import Mapping
from typing import Any

from spoolagent.writers import process
from spoolagent.writers.nvflare_types import AnalyticsDataType, check, write
from spoolagent.writers.run import Run, optional

_YES = ("1", "true", "yes", "on")


class _Session:
    """The run of this process, made at `init` or at the first call that logs."""

    run: Run | None = None
    rank: int | None = None
    muted = False


_session = _Session()
_guard = threading.Lock()


def init(rank: str | int | None = None) -> None:
    """Begins the run; a second call changes nothing. Optional: the first call that logs does it, too.

    `rank` is this process's rank in its job, default what the launcher says (`RANK`, `SLURM_PROCID`, ...).
    Raises ValueError when it is no rank.
    """
    _open_run(rank)


def log(key: str, value: Any, data_type: AnalyticsDataType, **kwargs: Any) -> bool:
    """Logs one value of any type; False when only rank 0 logs and this is another.

    Known in `kwargs`: `global_step`, `path` (a text's file in the run), `walltime` (seconds since the epoch),
    `dataformats` (of an image). Raises TypeError and ValueError for what NVFLARE refuses.
    """
    kind = check(key, value, data_type, kwargs)
    run = _session.run or _open_run(None)
    if run is None:
        return False
    if run.finished:
        with _guard:
            run.reopen()
    write(run, key, value, kind, kwargs)
    return True


def shutdown() -> None:
    """Ends the run. A later call that logs reopens it."""
    run = _session.run
    if run is not None:
        run.finish()


def _open_run(rank: str | int | None) -> Run | None:
    """The run, or None when this rank is to be silent."""
    with _guard:
        if _session.run is None and not _session.muted:
            known = process.rank_from(os.environ) if rank is None else _rank(rank)
            only_zero = os.environ.get("SPOOLAGENT_RANK_ZERO_ONLY", "").lower() in _YES
            if only_zero and known not in (None, 0):
                _session.muted = True
            else:
                _session.run = Run(api="nvflare", extra=optional(rank=known))
        return _session.run


def _rank(rank: Any) -> int:
    if isinstance(rank, (str, int)) and str(rank).isascii() and str(rank).isdigit():
        return int(rank)
    raise ValueError(f"rank must be 0, 1, 2, ... as an int or a str, got {rank!r}")


class SummaryWriter:
    """Logs with the names of TensorBoard's SummaryWriter."""

    def add_scalar(self, tag: str, scalar: float, global_step: int | None = None, **kwargs: Any) -> None:
        """Logs one number."""
        log(tag, scalar, AnalyticsDataType.SCALAR, global_step=global_step, **kwargs)

    def add_scalars(
        self, tag: str, scalars: Mapping[str, float], global_step: int | None = None, **kwargs: Any
    ) -> None:
        """Logs numbers under one tag, each in a sub-run `<tag>_<name>`."""
        log(tag, scalars, AnalyticsDataType.SCALARS, global_step=global_step, **kwargs)

    def flush(self) -> None:
        """Does nothing, as in NVFLARE: what was logged is in the spool when the call returns."""


TBWriter = SummaryWriter
"""The name in NVFLARE 2.3."""


class WandBWriter:
    """Logs with the names of wandb."""

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs numbers by name."""
        log("metrics", metrics, AnalyticsDataType.METRICS, global_step=step)


class MLflowWriter:
    """Logs with the names of mlflow."""

    def log_param(self, key: str, value: Any) -> None:
        """Logs a parameter."""
        log(key, value, AnalyticsDataType.PARAMETER)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Logs parameters by name."""
        log("params", values, AnalyticsDataType.PARAMETERS)

    def log_metric(self, key: str, value: float, step: int | None = None) -> None:
        """Logs one number."""
        log(key, value, AnalyticsDataType.METRIC, global_step=step)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs numbers by name."""
        log("metrics", metrics, AnalyticsDataType.METRICS, global_step=step)

    def log_text(self, text: str, artifact_file_path: str) -> None:
        """Logs a text as a file of the run."""
        log("text", text, AnalyticsDataType.TEXT, path=artifact_file_path)

    def set_tag(self, key: str, tag: Any) -> None:
        """Sets a tag."""
        log(key, tag, AnalyticsDataType.TAG)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Sets tags by name."""
        log("tags", tags, AnalyticsDataType.TAGS)


def _after_fork_in_child() -> None:
    global _guard  # noqa: PLW0603 - the child's own: another thread may hold the parent's
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = [
    "AnalyticsDataType",
    "MLflowWriter",
    "SummaryWriter",
    "TBWriter",
    "WandBWriter",
    "init",
    "log",
    "shutdown",
]
