"""The active run of a thread, and the active experiment of the process."""

import os
import threading
from types import TracebackType
from typing import Any, Final, Self

from spoolagent.writers import mlflow_book as book
from spoolagent.writers.mlflow_checks import check_run_id
from spoolagent.writers.mlflow_entities import Experiment, Run
from spoolagent.writers.mlflow_errors import MlflowException, invalid
from spoolagent.writers.mlflow_names import NOTE, PARENT, RUN_NAME, context_tags
from spoolagent.writers.mlflow_runs import Tracked
from spoolagent.writers.process import warn_once


class _Active:
    """The process's experiment, and each thread's stack of runs."""

    def __init__(self) -> None:
        self.experiment: Experiment | None = None
        self.local = threading.local()

    def stack(self) -> list["ActiveRun"]:
        """The runs of this thread, the active one last."""
        try:
            found: list[ActiveRun] = self.local.stack
        except AttributeError:
            found = self.local.stack = []
        return found


_active: Final = _Active()


class ActiveRun(Run):
    """A run as a context manager: FINISHED at its end, FAILED when an exception leaves it."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.info, run.data, run.inputs, run.outputs)
        self._tracked = book.find_run(run.info.run_id)

    @property
    def tracked(self) -> Tracked:
        """What this process logs to."""
        return self._tracked

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if any(run.info.run_id == self.info.run_id for run in _active.stack()):
            end_run("FINISHED" if kind is None else "FAILED")
        return kind is None


def set_experiment(
    experiment_name: str | None = None, experiment_id: str | None = None, trace_location: Any = None
) -> Experiment:
    """Chooses the experiment for new runs. Processes started from here inherit it (MLFLOW_EXPERIMENT_NAME)."""
    if (experiment_name is None) == (experiment_id is None):
        raise invalid("specify exactly one of experiment_name and experiment_id")
    if trace_location is not None:
        warn_once("trace", "mlflow.set_experiment: trace_location is not kept, there are no traces offline")
    if experiment_id is not None:
        found = book.experiment(experiment_id)
    else:
        found = book.named_experiment(experiment_name)
    _active.experiment = found
    os.environ["MLFLOW_EXPERIMENT_NAME"] = found.name
    return found


def chosen_experiment() -> Experiment:
    """The experiment that new runs belong to."""
    if _active.experiment is not None:
        return _active.experiment
    if name := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        return book.named_experiment(name)
    ident = os.environ.get("MLFLOW_EXPERIMENT_ID")
    try:
        return book.experiment(ident or "0")
    except MlflowException as error:
        raise invalid(f"MLFLOW_EXPERIMENT_ID={ident}: {error}") from error


def start_run(
    run_id: str | None = None,
    experiment_id: str | None = None,
    run_name: str | None = None,
    nested: bool = False,
    parent_run_id: str | None = None,
    tags: dict[str, Any] | None = None,
    description: str | None = None,
    log_system_metrics: bool | None = None,
) -> ActiveRun:
    """Starts a run, or goes on with the one of `run_id` (or MLFLOW_RUN_ID), and makes it the active one."""
    stack = _active.stack()
    if experiment_id is not None and not isinstance(experiment_id, (str, int)):
        raise invalid(
            f"invalid experiment id {experiment_id!r} of type {type(experiment_id)}: use str or int"
        )
    if stack and not nested:
        raise Exception(  # noqa: TRY002 - the type that MLflow raises
            f"Run with UUID {stack[0].info.run_id} is already active. To start a new run, first end the current run "
            "with mlflow.end_run(). To start a nested run, call start_run with nested=True"
        )
    _say_no_system_metrics(log_system_metrics)
    given = dict(tags or {})
    if description:
        if NOTE in given:
            raise invalid(f"the description is set by the tag {NOTE} already: give only one of them")
        given[NOTE] = description
    existing = run_id or os.environ.pop("MLFLOW_RUN_ID", None)
    if existing:
        tracked = _resume(existing, run_name, given)
    else:
        tracked = _begin(stack, experiment_id, run_name, parent_run_id, given)
    stack.append(ActiveRun(tracked.entity()))
    return stack[-1]


def _resume(run_id: str, run_name: str | None, tags: dict[str, Any]) -> Tracked:
    tracked = book.find_run(run_id)
    chosen = _active.experiment
    if chosen is not None:
        if not tracked.here:
            tracked.experiment = chosen
        elif tracked.experiment.experiment_id != chosen.experiment_id:
            raise MlflowException(
                f"run {run_id} cannot be started: it belongs to experiment {tracked.experiment.name!r}, and "
                f"set_experiment() chose {chosen.name!r}"
            )
    tracked.resume()
    if run_name:
        tags = {**tags, RUN_NAME: run_name}
    tracked.set_tags(tags.items())
    return tracked


def _begin(
    stack: list[ActiveRun],
    experiment_id: str | None,
    run_name: str | None,
    parent: str | None,
    tags: dict[str, Any],
) -> Tracked:
    current = stack[-1].info.run_id if stack else None
    if parent:
        check_run_id(parent)
        if current is not None and parent != current:
            raise MlflowException(
                f"current run {current} is not the parent_run_id {parent}: end it first with mlflow.end_run()"
            )
    parent = parent or current
    experiment = chosen_experiment() if experiment_id is None else book.experiment(experiment_id)
    if parent is not None:
        tags[PARENT] = parent
    if run_name:
        tags[RUN_NAME] = run_name
    return book.create_run(experiment, run_name, {**context_tags(), **tags})


def _say_no_system_metrics(wanted: bool | None) -> None:
    if wanted is None:
        wanted = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() in ("true", "1")
    if wanted:
        warn_once("system", "mlflow: system metrics are not collected by spoolagent.writers.mlflow")


def end_run(status: str = "FINISHED") -> None:
    """Ends the active run, if there is one."""
    stack = _active.stack()
    if stack:
        os.environ.pop("MLFLOW_RUN_ID", None)
        run = stack.pop()
        _active.local.last = run.info.run_id
        run.tracked.end(status)


def active_run() -> ActiveRun | None:
    """The active run of this thread."""
    stack = _active.stack()
    return stack[-1] if stack else None


def last_active_run() -> Run | None:
    """The active run of this thread, else the one that it ended last."""
    last = getattr(_active.local, "last", None)
    return active_run() or (None if last is None else book.find_run(last).entity())


def current() -> Tracked:
    """The active run's own object; starts a run when there is none."""
    try:
        return _active.local.stack[-1].tracked  # type: ignore[no-any-return] # threading.local holds Any
    except (AttributeError, IndexError):
        return start_run().tracked


def _after_fork_in_child() -> None:
    _active.local = threading.local()  # as in MLflow: a forked child has no active run


os.register_at_fork(after_in_child=_after_fork_in_child)
