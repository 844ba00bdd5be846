"""`MlflowClient`, also reachable as `mlflow.tracking` and `mlflow.client`. It asks no server."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from spoolagent.writers import mlflow_artifacts as artifacts
from spoolagent.writers import mlflow_book as book
from spoolagent.writers import mlflow_utils as context
from spoolagent.writers import process
from spoolagent.writers.mlflow_entities import Experiment, Run, RunOperations, RunStatus, ViewType
from spoolagent.writers.mlflow_errors import not_offline
from spoolagent.writers.mlflow_names import PARENT, RUN_NAME
from spoolagent.writers.mlflow_search import search
from spoolagent.writers.process import warn_once

DONE = RunOperations()
_uris: dict[str, str] = {}


def set_tracking_uri(uri: Any) -> None:
    """Is remembered for `get_tracking_uri`, and never contacted: events go to the spool."""
    _uris["tracking"] = str(uri)


def get_tracking_uri() -> str:
    """What was set, by call or by MLFLOW_TRACKING_URI; else the spool."""
    given = _uris.get("tracking") or os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"file://{process.place_from(os.environ).spool}"


def is_tracking_uri_set() -> bool:
    """True when a tracking URI was given."""
    return bool(_uris.get("tracking") or os.environ.get("MLFLOW_TRACKING_URI"))


def done(synchronous: bool | None) -> RunOperations | None:
    """What a logging call returns."""
    return DONE if synchronous is False else None


def warn_links(*links: Any) -> None:
    """Says once that links of metrics to models and datasets are not kept."""
    if any(link is not None for link in links):
        warn_once("links", "mlflow: model_id and dataset of metrics are not kept; the metrics are")


class PagedList(list[Run]):
    """A list that has no next page."""

    token: str | None = None


class MlflowClient:
    """Logs to runs by their id. What needs the server raises NotSupportedOffline (an AttributeError)."""

    def __init__(
        self,
        tracking_uri: str | None = None,
        registry_uri: str | None = None,
        workspace_store_uri: str | None = None,
    ) -> None:
        del registry_uri, workspace_store_uri
        self._tracking_uri = tracking_uri

    def __getattr__(self, name: str) -> Any:
        """Raises NotSupportedOffline: what is not defined here needs the server."""
        if name.startswith("_"):
            raise AttributeError(name)
        raise not_offline(f"MlflowClient.{name}")

    @property
    def tracking_uri(self) -> str:
        """The URI given, never contacted."""
        return self._tracking_uri or get_tracking_uri()

    # -- experiments and runs --------------------------------------------------------------------------------

    def create_experiment(
        self, name: str, artifact_location: str | None = None, tags: dict[str, Any] | None = None
    ) -> str:
        """The id of a new experiment."""
        return book.create_experiment(name, artifact_location, tags)

    def get_experiment(self, experiment_id: str) -> Experiment:
        """The experiment with this id, when this process has named it."""
        return book.experiment(experiment_id)

    def get_experiment_by_name(self, name: str) -> Experiment | None:
        """The experiment, when this process has named it before, else None."""
        return book.experiment_by_name(name)

    def set_experiment_tag(self, experiment_id: str, key: str, value: Any) -> None:
        """Keeps a tag of the experiment in this process; it does not reach the tracker, and a warning says so."""
        book.tag_experiment(book.experiment(experiment_id), {key: value})

    def create_run(
        self,
        experiment_id: str,
        start_time: int | None = None,
        tags: dict[str, Any] | None = None,
        run_name: str | None = None,
    ) -> Run:
        """A new run, which does not become the active one."""
        where = book.experiment("0" if experiment_id is None else experiment_id)
        return book.create_run(where, run_name, tags or {}, start_time or None).entity()

    def get_run(self, run_id: str) -> Run:
        """A run, as far as this process and its spool know it."""
        return book.seen_run(run_id).entity()

    def search_runs(
        self,
        experiment_ids: list[str],
        filter_string: str = "",
        run_view_type: int = ViewType.ACTIVE_ONLY,
        max_results: int = 1000,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> "PagedList":
        """The runs of this process that match: all of them at once, there are no pages."""
        del page_token
        warn_once("search", "mlflow: search_runs sees the runs of this process only, offline")
        ids = [experiment_ids] if isinstance(experiment_ids, (str, int)) else experiment_ids
        return PagedList(search(ids, filter_string, run_view_type, max_results, order_by))

    def get_parent_run(self, run_id: str) -> Run | None:
        """The parent of a nested run."""
        parent = book.seen_run(run_id).tags.get(PARENT)
        return None if parent is None else self.get_run(parent)

    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
        """Ends a run, by default as FINISHED."""
        book.find_run(run_id).end(status or "FINISHED", end_time)

    def update_run(self, run_id: str, status: str | None = None, name: str | None = None) -> None:
        """Gives a run another status or name."""
        tracked = book.find_run(run_id)
        if status is not None:
            RunStatus.from_string(status)
        if name:
            tracked.set_tags([(RUN_NAME, name)])
        if status is not None:
            tracked.end(status, tracked.end_ms)  # a time that is there stays, as in MLflow

    # -- metrics, params, tags -----------------------------------------------------------------------------

    def log_metric(
        self,
        run_id: str,
        key: str,
        value: float,
        timestamp: int | None = None,
        step: int | None = None,
        synchronous: bool | None = None,
        dataset_name: str | None = None,
        dataset_digest: str | None = None,
        model_id: str | None = None,
    ) -> RunOperations | None:
        """Logs one point; `timestamp` in milliseconds."""
        warn_links(dataset_name, dataset_digest, model_id)
        book.find_run(run_id).metric(key, value, 0 if step is None else step, timestamp)
        return done(synchronous)

    def log_param(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> Any:
        """Logs a param; another value for its name is refused."""
        book.find_run(run_id).log_params([(key, value)])
        return DONE if synchronous is False else value

    def set_tag(
        self, run_id: str, key: str, value: Any, synchronous: bool | None = None
    ) -> RunOperations | None:
        """Sets a tag."""
        book.find_run(run_id).set_tags([(key, value)])
        return done(synchronous)

    def delete_tag(self, run_id: str, key: str) -> None:
        """Removes a tag."""
        book.find_run(run_id).delete_tag(key)

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Any] = (),
        params: Sequence[Any] = (),
        tags: Sequence[Any] = (),
        synchronous: bool | None = None,
    ) -> RunOperations | None:
        """Logs objects like MLflow's Metric, Param and RunTag."""
        if metrics or params or tags:
            book.find_run(run_id).log_batch(metrics, params, tags)
        return done(synchronous)

    # -- files -----------------------------------------------------------------------------------------------

    def log_artifact(self, run_id: str, local_path: Any, artifact_path: str | None = None) -> None:
        """Logs a file or a directory."""
        artifacts.log_artifact(book.find_run(run_id), local_path, artifact_path)

    def log_artifacts(self, run_id: str, local_dir: str, artifact_path: str | None = None) -> None:
        """Logs the files of a directory."""
        artifacts.log_artifacts(book.find_run(run_id), local_dir, artifact_path)

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        """Logs a text as a file."""
        artifacts.log_text(book.find_run(run_id), text, artifact_file)

    def log_dict(self, run_id: str, dictionary: dict[str, Any], artifact_file: str) -> None:
        """Logs a mapping as a JSON or YAML file."""
        artifacts.log_dict(book.find_run(run_id), dictionary, artifact_file)

    def log_stream(self, run_id: str, stream: Any, artifact_file: str) -> None:
        """Logs what a binary stream gives as a file."""
        artifacts.log_stream(book.find_run(run_id), stream, artifact_file)

    def log_figure(
        self,
        run_id: str,
        figure: Any,
        artifact_file: str,
        *,
        save_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Logs a figure of matplotlib or plotly as a file."""
        artifacts.log_figure(book.find_run(run_id), figure, artifact_file, save_kwargs)

    def log_image(
        self,
        run_id: str,
        image: Any,
        artifact_file: str | None = None,
        key: str | None = None,
        step: int | None = None,
        timestamp: int | None = None,
        synchronous: bool | None = None,
    ) -> None:
        """Logs an image as a file, or under a key at a step."""
        del synchronous
        artifacts.log_image(book.find_run(run_id), image, artifact_file, key, step, timestamp)

    def log_table(self, run_id: str, data: Any, artifact_file: str) -> None:
        """Adds rows to the table in a JSON file."""
        artifacts.log_table(book.find_run(run_id), data, artifact_file)


__all__ = [
    "DONE",
    "MlflowClient",
    "PagedList",
    "context",
    "done",
    "get_tracking_uri",
    "is_tracking_uri_set",
    "set_tracking_uri",
    "warn_links",
]
