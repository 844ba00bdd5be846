"""What MLflow's calls take and return, also reachable as `mlflow.entities`: same names, arguments, attributes."""

from collections.abc import Iterator
from typing import Any


class _Entity:
    """Compares, prints and iterates (so that `dict(run.info)` works) by its attributes."""

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from vars(self).items()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self), repr(self)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {', '.join(f'{name}={value!r}' for name, value in self)}>"


class Metric(_Entity):
    """One point of a metric; `timestamp` in milliseconds since the epoch."""

    def __init__(
        self,
        key: str,
        value: float,
        timestamp: int,
        step: int,
        model_id: str | None = None,
        dataset_name: str | None = None,
        dataset_digest: str | None = None,
        run_id: str | None = None,
    ) -> None:
        self.key, self.value, self.timestamp, self.step = key, value, timestamp, step
        self.model_id, self.dataset_name, self.dataset_digest = model_id, dataset_name, dataset_digest
        self.run_id = run_id


class _Pair(_Entity):
    def __init__(self, key: str, value: str) -> None:
        self.key, self.value = key, value


class Param(_Pair):
    """A parameter of a run."""


class RunTag(_Pair):
    """A tag of a run."""


class ExperimentTag(_Pair):
    """A tag of an experiment."""


class RunInfo(_Entity):
    """What a run is, as of when the object was made. Times in milliseconds since the epoch."""

    def __init__(
        self,
        run_id: str,
        experiment_id: str,
        user_id: str,
        status: str,
        start_time: int,
        end_time: int | None,
        lifecycle_stage: str,
        artifact_uri: str | None = None,
        run_name: str | None = None,
    ) -> None:
        self.run_id, self.run_name, self.experiment_id = run_id, run_name, experiment_id
        self.user_id, self.status, self.lifecycle_stage = user_id, status, lifecycle_stage
        self.start_time, self.end_time = start_time, end_time
        self.artifact_uri = artifact_uri


class RunData(_Entity):
    """Params, tags and the latest value of each metric, as this process knows them."""

    def __init__(
        self,
        metrics: list[Metric] | None = None,
        params: list[Param] | None = None,
        tags: list[RunTag] | None = None,
    ) -> None:
        self.metrics: dict[str, float] = {metric.key: metric.value for metric in metrics or []}
        self.params: dict[str, str] = {param.key: param.value for param in params or []}
        self.tags: dict[str, str] = {tag.key: tag.value for tag in tags or []}

    def to_dictionary(self) -> dict[str, Any]:
        """The three mappings in one."""
        return dict(self)


class Run(_Entity):
    """A run: `info` and `data`."""

    def __init__(
        self, run_info: RunInfo, run_data: RunData, run_inputs: Any = None, run_outputs: Any = None
    ) -> None:
        self.info, self.data = run_info, run_data
        self.inputs, self.outputs = run_inputs, run_outputs

    def to_dictionary(self) -> dict[str, Any]:
        """`info` and `data` as plain mappings."""
        return {"info": dict(self.info), "data": self.data.to_dictionary()}


class Experiment(_Entity):
    """A named group of runs. Its id is made from its name, so that no server need be asked."""

    def __init__(
        self,
        experiment_id: str,
        name: str,
        artifact_location: str,
        lifecycle_stage: str,
        tags: list[ExperimentTag] | None = None,
        creation_time: int | None = None,
        last_update_time: int | None = None,
        workspace: str | None = None,
        trace_location: Any = None,
        effective_trace_archival_retention: str | None = None,
    ) -> None:
        self.experiment_id, self.name = experiment_id, name
        self.artifact_location, self.lifecycle_stage = artifact_location, lifecycle_stage
        self.tags: dict[str, str] = {tag.key: tag.value for tag in tags or []}
        self.creation_time, self.last_update_time = creation_time, last_update_time
        self.workspace, self.trace_location = workspace, trace_location
        self.effective_trace_archival_retention = effective_trace_archival_retention


class LifecycleStage:
    """Whether a run or experiment was deleted."""

    ACTIVE = "active"
    DELETED = "deleted"


class ViewType:
    """Which runs a search shows."""

    ACTIVE_ONLY, DELETED_ONLY, ALL = 1, 2, 3


class RunStatus:
    """The states of a run, as numbers and names."""

    RUNNING, SCHEDULED, FINISHED, FAILED, KILLED = 1, 2, 3, 4, 5
    _NAMES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")

    @staticmethod
    def from_string(status_str: str) -> int:
        """The number of a name. Raises Exception, as MLflow does, for any other text."""
        if status_str not in RunStatus._NAMES:
            raise Exception(  # noqa: TRY002 - the type that MLflow raises
                f"{status_str!r} is not a run status: use one of {', '.join(RunStatus._NAMES)}"
            )
        return RunStatus._NAMES.index(status_str) + 1

    @staticmethod
    def to_string(status: int) -> str:
        """The name of a number."""
        if status not in RunStatus.all_status():
            raise Exception(f"{status!r} is not the number of a run status")  # noqa: TRY002 - as above
        return RunStatus._NAMES[status - 1]

    @staticmethod
    def is_terminated(status: int) -> bool:
        """True when the run has ended."""
        return status in (RunStatus.FINISHED, RunStatus.FAILED, RunStatus.KILLED)

    @staticmethod
    def all_status() -> list[int]:
        """All numbers."""
        return [1, 2, 3, 4, 5]


class RunOperations:
    """What a call with `synchronous=False` returns. The event is in the spool already, there is nothing to wait for."""

    def wait(self) -> None:
        """Returns at once."""
