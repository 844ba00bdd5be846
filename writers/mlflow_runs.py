"""One run as this process knows it: what is logged to it, under MLflow's rules, over the native `Run`."""

import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from spoolagent.writers import process
from spoolagent.writers.mlflow_checks import (
    MAX_TAG,
    STEP_MAX,
    STEP_MIN,
    check_key,
    cut,
    good_keys,
    param_value,
    to_at_ns,
    to_float,
    to_step,
)
from spoolagent.writers.mlflow_entities import (
    Experiment,
    LifecycleStage,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunStatus,
    RunTag,
)
from spoolagent.writers.mlflow_errors import invalid, missing
from spoolagent.writers.mlflow_names import NOTE, PARENT, RUN_NAME, USER
from spoolagent.writers.run import Run as NativeRun
from spoolagent.writers.run import optional

_STATUS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}
_PARAMS, _TAGS, _METRICS = 20, 16, 500
"""How many, in their greatest length, surely fit into one line of 1 MiB."""
_START_TAGS = 64 << 10
"""Characters of tags that the `run_start` line may hold; more follow in lines of their own."""
_HINT = " A param keeps its first value: log a changing number as a metric, or start another (nested) run."


class _Guard:
    """One lock for what is not the hot path; a forked child gets a new one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()


guard: Final = _Guard()


class Tracked:
    """A run of this process, or one that another process has begun.

    `here` is False while nothing is known of it but its id. Methods raise MlflowException for what MLflow
    refuses; what the disk refuses is counted by the native run.
    """

    def __init__(
        self,
        run_id: str,
        experiment: Experiment,
        name: str | None,
        *,
        tags: Mapping[str, str] | None = None,
        start_ms: int | None = None,
        started: bool = False,
    ) -> None:
        self.id = run_id
        self.experiment = experiment
        self.name = name
        self.tags: dict[str, str] = dict(tags or {})
        self.params: dict[str, str] = {}
        self.metrics: dict[str, tuple[int, int, float]] = {}
        """(step, time in ms, value) of the latest point of each metric."""
        self.status = "RUNNING"
        self.start_ms = now_ms() if start_ms is None else start_ms
        self.end_ms: int | None = None
        self.here = started
        self._started = started
        self._start_at = None if start_ms is None else to_at_ns(start_ms, "start_time")
        self._run: NativeRun | None = None

    # -- the native run ------------------------------------------------------------------------------------

    def writer(self) -> NativeRun:
        """The native run, opened: again when it had ended, for MLflow lets one log to a run that ended."""
        with guard.lock:
            if self._run is None:
                self._run = self._open(anew=self._started)
                self.here = True
            elif self._run.finished:
                self._run.reopen()  # the same attempt: it stays failed when it was
            return self._run

    def _next_attempt(self) -> NativeRun:
        """The native run of another attempt when it had ended: the status of the latest is the run's."""
        if self._run is not None and self.status in _STATUS:
            self._run.finish(_STATUS[self.status])  # does nothing, unless it was logged to after its end
            self._run = self._open(anew=False)
        return self.writer()

    def _open(self, *, anew: bool) -> NativeRun:
        given = self.tags if anew else {}  # a run that is gone on with keeps the tags that it has now
        tags = {k: v for k, v in given.items() if k not in (RUN_NAME, NOTE, PARENT)}
        small = sum(len(k) + len(v) for k, v in tags.items()) <= _START_TAGS
        run = NativeRun(
            run=self.id,
            experiment=self.experiment.name,
            name=None if self.name is None else self.name[:MAX_TAG],
            notes=given.get(NOTE, "")[:MAX_TAG] or None,
            parent=given.get(PARENT),
            tags=tags if tags and small else None,
            api="mlflow",
            extra=optional(at=self._start_at if anew else None),
        )
        if not small:
            for part in chunks(tags.items(), _TAGS):
                run.set_tags({k: v[:MAX_TAG] for k, v in part.items()})
        return run

    def resume(self) -> None:
        """Goes on with the run: it is running again."""
        with guard.lock:
            self._next_attempt()
            self.status = "RUNNING"

    def end(self, status: str, end_ms: int | None = None) -> None:
        """Gives the run a status. Raises Exception, as MLflow does, for a word that is none.

        `end_ms`: the end time to show, in milliseconds since the epoch, when it is not now.
        """
        RunStatus.from_string(status)
        at_ns = to_at_ns(end_ms, "end_time") if end_ms else None
        with guard.lock:
            run = self._run
            if run is None or not run.finished or self.status != status:
                run = self.writer() if self.status == status else self._next_attempt()
                if status in _STATUS:
                    run.finish(_STATUS[status], at_ns=at_ns)
            self.status = status
            self.end_ms = end_ms or (now_ms() if status in _STATUS else self.end_ms)

    def flush(self) -> None:
        """Makes what was logged durable."""
        if self._run is not None and not self._run.finished:
            self._run.flush()

    # -- metrics -------------------------------------------------------------------------------------------

    def metric(self, key: Any, value: Any, step: Any, timestamp: Any) -> None:
        """Logs one point; `timestamp` in ms, or None for now. The hot path."""
        if key not in good_keys:
            check_key("metric", key, "name")
        if type(value) is not float:
            value = to_float(value, "value")
        if type(step) is not int or not STEP_MIN <= step <= STEP_MAX:
            step = to_step(step, "step")
        at_ns = None if timestamp is None else to_at_ns(timestamp, "timestamp")
        run = self._run
        if run is None or run.finished:
            run = self.writer()
        run.log({key: value}, step, at_ns=at_ns)
        self._latest(key, value, step, time.time_ns() if at_ns is None else at_ns)

    def metrics_at(self, metrics: Any, step: Any, timestamp: Any) -> None:
        """Logs a mapping of names to values at one step; all are checked first."""
        values: dict[str, float] = {}
        for i, (key, value) in enumerate(metrics.items()):
            if key not in good_keys:
                check_key("metric", key, f"metrics[{i}].name")
            values[key] = value if type(value) is float else to_float(value, f"metrics[{i}].value")
        step = to_step(step, "step")
        at_ns = None if timestamp is None else to_at_ns(timestamp, "timestamp")
        for part in [values] if len(values) <= _METRICS else chunks(values.items(), _METRICS):
            if part:
                self.writer().log(part, step, at_ns=at_ns)
                self._keep(part, step, at_ns)

    def _keep(self, values: Mapping[str, float], step: int, at_ns: int | None) -> None:
        shown_ns = time.time_ns() if at_ns is None else at_ns
        for key, value in values.items():
            self._latest(key, value, step, shown_ns)

    def _latest(self, key: str, value: float, step: int, at_ns: int) -> None:
        point = (step, at_ns // 1_000_000, value)
        held = self.metrics.get(key)
        if held is None or point >= held:
            self.metrics[key] = point

    def log_batch(self, metrics: Iterable[Any], params: Iterable[Any], tags: Iterable[Any]) -> None:
        """Logs objects like MLflow's Metric (its timestamp in ms), Param and RunTag; all are checked first."""
        points = _checked(metrics)
        texts = _checked_tags((tag.key, tag.value) for tag in tags)
        self.log_params((param.key, param.value) for param in params)
        for (step, at_ns), values in _grouped(points):
            self.writer().log(values, step, at_ns=at_ns)
            self._keep(values, step, at_ns)
        self._set_tags(texts)

    # -- params and tags -----------------------------------------------------------------------------------

    def log_params(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Logs params. A repeated value is fine, another value for a name is refused, and then none is logged."""
        new: dict[str, Any] = {}
        shown: dict[str, str] = {}
        with guard.lock:
            for i, (key, value) in enumerate(pairs):
                check_key("param", key, f"params[{i}].key")
                if key in shown:
                    raise invalid(f"duplicate parameter key {key!r} in one request")
                new[key], shown[key] = param_value(value)
            changed = [k for k, text in shown.items() if self.params.get(k, text) != text]
            if changed:
                what = "; ".join(f"{k!r} is {self.params[k]!r}, not {shown[k]!r}" for k in changed)
                raise invalid(f"changing param values is not allowed, run {self.id!r}: {what}.{_HINT}")
            fresh = {k: value for k, value in new.items() if k not in self.params}
            for part in chunks(fresh.items(), _PARAMS):
                self.writer().log_params(part)
            self.params |= shown

    def set_tags(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Sets tags; the last value of a name stays. The tag mlflow.runName renames the run."""
        self._set_tags(_checked_tags(pairs))

    def _set_tags(self, tags: dict[str, str]) -> None:
        with guard.lock:
            for part in chunks(tags.items(), _TAGS):
                self.writer().set_tags(part)
            self.tags |= tags
            self.name = tags.get(RUN_NAME, self.name)

    def delete_tag(self, key: Any) -> None:
        """Removes a tag. Raises MlflowException when this process knows that there is none."""
        check_key("tag", key, "key")
        with guard.lock:
            if self.tags.pop(key, None) is None and self._started:
                raise missing(f"no tag with name {key!r} in run {self.id}")
            self.writer().set_tags({key: None})

    # -- what is shown -------------------------------------------------------------------------------------

    def artifact_uri(self, path: str | None = None) -> str:
        """Names the run's artifacts. No file system or server knows it: artifacts go to the tracker later."""
        place = process.place_from(os.environ)
        return f"spoolagent:/{place.site}/{self.id}/artifacts" + (f"/{path}" if path else "")

    def entity(self) -> Run:
        """The run as it is now, as far as this process knows."""
        with guard.lock:
            tags = dict(self.tags)
            params = [Param(key, value) for key, value in self.params.items()]
            metrics = [Metric(k, _stored(v), ms, step) for k, (step, ms, v) in list(self.metrics.items())]
        if self.name is not None:
            tags[RUN_NAME] = self.name
        info = RunInfo(
            self.id,
            self.experiment.experiment_id,
            tags.get(USER, "unknown"),
            self.status,
            self.start_ms,
            self.end_ms,
            LifecycleStage.ACTIVE,
            self.artifact_uri(),
            self.name,
        )
        return Run(info, RunData(metrics, params, [RunTag(k, v) for k, v in tags.items()]))


def _stored(value: float) -> float:
    """A metric's value as MLflow's store gives it back: infinities are the largest finite numbers."""
    return math.copysign(sys.float_info.max, value) if math.isinf(value) else value


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def chunks(pairs: Iterable[tuple[str, Any]], size: int) -> Iterator[dict[str, Any]]:
    """The pairs in mappings of at most `size`."""
    rest = iter(pairs)
    while part := dict(islice(rest, size)):
        yield part


def _checked(points: Iterable[Any]) -> list[tuple[str, float, int, int | None]]:
    checked = []
    for i, point in enumerate(points):
        where = f"metrics[{i}]"
        check_key("metric", point.key, f"{where}.name")
        value = to_float(point.value, f"{where}.value")
        at = point.timestamp
        at_ns = None if at is None else to_at_ns(at, f"{where}.timestamp")
        checked.append((point.key, value, to_step(point.step, f"{where}.step"), at_ns))
    return checked


def _checked_tags(pairs: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    tags: dict[str, str] = {}
    for i, (key, value) in enumerate(pairs):
        check_key("tag", key, f"tags[{i}].key")
        tags[key] = cut(str(value), MAX_TAG, "tag value")
    return tags


def _grouped(
    points: list[tuple[str, float, int, int | None]],
) -> Iterator[tuple[tuple[int, int | None], dict[str, float]]]:
    """Neighbours of one step and time with distinct names, in order, as one mapping."""
    place: tuple[int, int | None] = (0, None)
    values: dict[str, float] = {}
    for key, value, step, at_ns in points:
        if values and (place != (step, at_ns) or key in values or len(values) >= _METRICS):
            yield place, values
            values = {}
        place = (step, at_ns)
        values[key] = value
    if values:
        yield place, values


def _after_fork_in_child() -> None:
    guard.lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)
