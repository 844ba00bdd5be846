"""The calls to MLflow that the receiver makes, each with its errors translated. No retries, 10 s at most each."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from spoolagent.errors import Unreachable, cannot_import
from spoolagent.receivers.mlflow_errors import AlreadyThere, NotThere, reason, translate, without_credentials
from spoolagent.receivers.mlflow_plan import Plan, Point

MAX_ITEMS = 1000
"""Metrics, params and tags of one request, together."""
MAX_SMALL = 100
"""Params, and tags, of one request."""
MAX_BYTES = 900_000
"""Estimated size of one request; MLflow's limit is 1,000,000."""
_POINT_BYTES = 110
"""What a metric takes in a request beside its key, at most."""
_UPLOAD_BYTES_PER_S = 1_000_000
"""The slowest upload that the time-out of a large file allows for."""

_Result = TypeVar("_Result")


def prepare_environment(timeout_s: int) -> None:
    """Sets what MLflow's client reads from the environment; comes before mlflow is imported."""
    os.environ.update(
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        MLFLOW_HTTP_REQUEST_TIMEOUT=str(timeout_s),
        MLFLOW_DISABLE_TELEMETRY="true",
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
        MLFLOW_ENABLE_ASYNC_LOGGING="false",
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
        GIT_PYTHON_REFRESH="quiet",
    )


def guarded(doing: str, call: Callable[[], _Result]) -> _Result:
    """What `call` returns; whatever it raises becomes Unreachable, Transient or Refused."""
    try:
        return call()
    except Exception as error:  # MLflow lets its stores' errors through: requests, SQLAlchemy, boto3 and
        # others; whichever it is, the worker must get one of ours and try again.
        raise translate(error, doing) from error


class Calls:
    """An MlflowClient whose methods raise Unreachable, Transient or Refused."""

    def __init__(self, uri: str, timeout_s: int) -> None:
        prepare_environment(timeout_s)
        try:
            import mlflow.entities
            from mlflow import MlflowClient
        except ImportError as error:
            raise cannot_import("mlflow", error, "mlflow") from error
        self._entities = mlflow.entities
        self._uri, self._timeout_s = uri, timeout_s
        self._client = guarded("opening", lambda: MlflowClient(tracking_uri=uri))

    def check(self) -> None:
        """One cheap request, to see that an MLflow server or database is there."""
        try:
            guarded("looking for the server", lambda: self._client.search_experiments(max_results=1))
        except Unreachable as error:
            why = f"MLflow cannot be reached at {without_credentials(self._uri)}: {reason(error)}"
            raise Unreachable(f"{why}; start it or check the URI, then try again") from error

    def experiment_by_name(self, name: str) -> Any:
        """The experiment, also a deleted one, or None."""
        return guarded("looking up an experiment", lambda: self._client.get_experiment_by_name(name))

    def create_experiment(self, name: str, artifact_location: str | None) -> Any:
        """The experiment, created now, or by somebody else at the same moment."""
        with contextlib.suppress(AlreadyThere):
            guarded(
                "creating an experiment",
                lambda: self._client.create_experiment(name, artifact_location=artifact_location),
            )
        found = self.experiment_by_name(name)
        if found is None:
            raise NotThere(f"MLflow created experiment {name!r} but does not find it")
        return found

    def set_experiment_tag(self, experiment: str, key: str, value: str) -> None:
        """Sets a tag of the experiment."""
        guarded("tagging an experiment", lambda: self._client.set_experiment_tag(experiment, key, value))

    def search_runs(self, experiment: str, filters: str, limit: int) -> list[Any]:
        """Runs of the experiment in all lifecycle states."""
        everything = self._entities.ViewType.ALL
        return guarded(
            "searching the run",
            lambda: list(
                self._client.search_runs([experiment], filters, run_view_type=everything, max_results=limit)
            ),
        )

    def create_run(self, experiment: str, start_ms: int, tags: Mapping[str, str], name: str) -> str:
        """The id of a new run."""
        return guarded(
            "creating a run",
            lambda: str(
                self._client.create_run(
                    experiment, start_time=start_ms, tags=dict(tags), run_name=name
                ).info.run_id
            ),
        )

    def get_run(self, run_id: str) -> Any:
        """The run, also a deleted one. Raises NotThere."""
        return guarded("reading the run", lambda: self._client.get_run(run_id))

    def delete_run(self, run_id: str) -> None:
        """Moves a run to MLflow's bin."""
        guarded("removing a twin of the run", lambda: self._client.delete_run(run_id))

    def rename(self, run_id: str, name: str) -> None:
        """Changes the name that is shown."""
        guarded("naming the run", lambda: self._client.update_run(run_id, name=name))

    def set_running(self, run_id: str) -> None:
        """Status RUNNING; an end time stays until it is set anew."""
        guarded("setting the status", lambda: self._client.update_run(run_id, status="RUNNING"))

    def set_ended(self, run_id: str, status: str, end_ms: int) -> None:
        """Status FINISHED, FAILED or KILLED with the end time."""
        guarded("setting the status", lambda: self._client.set_terminated(run_id, status, end_ms))

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        """Sets one tag."""
        guarded("setting a tag", lambda: self._client.set_tag(run_id, key, value, synchronous=True))

    def delete_tag(self, run_id: str, key: str) -> None:
        """Removes a tag; a missing one is fine."""
        with contextlib.suppress(NotThere):
            guarded("removing a tag", lambda: self._client.delete_tag(run_id, key))

    def log(self, run_id: str, plan: Plan) -> int:
        """Sends the plan's metrics, params and tags in as few requests as MLflow allows. Returns how many."""
        entities, count = self._entities, 0
        for points, params, tags in split(plan.points, plan.params, plan.tags):
            metric_items = [entities.Metric(*point) for point in points]
            param_items = [entities.Param(key, value) for key, value in params]
            tag_items = [entities.RunTag(key, value) for key, value in tags]
            self._log_batch(run_id, metric_items, param_items, tag_items)
            count += 1
        return count

    def _log_batch(self, run_id: str, metrics: list[Any], params: list[Any], tags: list[Any]) -> None:
        guarded(
            "logging a batch",
            lambda: self._client.log_batch(
                run_id, metrics=metrics, params=params, tags=tags, synchronous=True
            ),
        )

    def upload(self, run_id: str, path: str, content: bytes | str) -> None:
        """Puts a file (bytes, or a local path to read) at `path` of the run's artifacts, over what is there."""
        folder, name = os.path.split(path)
        with tempfile.TemporaryDirectory(prefix="spoolagent-mlflow-") as temporary:
            local = os.path.join(temporary, name)
            if isinstance(content, bytes):
                with open(local, "wb") as file:
                    file.write(content)
            else:
                os.symlink(os.path.abspath(content), local)
            with self._patience(os.path.getsize(local)):
                guarded("uploading a file", lambda: self._client.log_artifact(run_id, local, folder or None))

    @contextlib.contextmanager
    def _patience(self, size_bytes: int) -> Iterator[None]:
        """A longer time-out for a large file: the server answers only when its own storage has taken it."""
        extra = size_bytes // _UPLOAD_BYTES_PER_S
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(self._timeout_s + extra)
        try:
            yield
        finally:
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(self._timeout_s)


_Pairs = list[tuple[str, str]]


def split(
    points: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]
) -> Iterator[tuple[list[Point], _Pairs, _Pairs]]:
    """Requests within MLflow's limits: params and tags first, then the metrics in their order."""
    request = _Request()
    sizes: dict[str, int] = {}
    for is_tag, pairs in ((False, params.items()), (True, tags.items())):
        for pair in pairs:
            size = _text_bytes(pair[0]) + _text_bytes(pair[1]) + 40
            small = request.tags if is_tag else request.params
            if len(small) >= MAX_SMALL or not request.fits(size):
                yield request.parts()
                request = _Request()
                small = request.tags if is_tag else request.params
            small.append(pair)
            request.add(size)
    for point in points:
        size = sizes.get(point[0], 0)
        if not size:
            size = sizes[point[0]] = _text_bytes(point[0]) + _POINT_BYTES
        if request.count >= MAX_ITEMS or request.bytes + size > MAX_BYTES:
            yield request.parts()
            request = _Request()
        request.points.append(point)
        request.count += 1
        request.bytes += size
    if request.count:
        yield request.parts()


class _Request:
    __slots__ = ("bytes", "count", "params", "points", "tags")

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.params: _Pairs = []
        self.tags: _Pairs = []
        self.count = 0
        self.bytes = 100

    def fits(self, size: int) -> bool:
        return not self.count or (self.count < MAX_ITEMS and self.bytes + size <= MAX_BYTES)

    def add(self, size: int) -> None:
        self.count += 1
        self.bytes += size

    def parts(self) -> tuple[list[Point], _Pairs, _Pairs]:
        return self.points, self.params, self.tags


def _text_bytes(text: str) -> int:
    r"""Bytes of a text in a request, at most: what is not ASCII, or a control character, is written `\uXXXX`."""
    return 2 * len(text) if text.isascii() and text.isprintable() else 12 * len(text)
