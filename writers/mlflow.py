"""MLflow's logging API over the spool: `import spoolagent.writers.mlflow as mlflow`.

Same names, arguments and rules as mlflow 3.17; no server is ever asked, and mlflow is never imported. What cannot
work without the server raises NotSupportedOffline with a way to go on. Submodules that scripts import by name
(`mlflow.entities`, `mlflow.exceptions`, `mlflow.tracking`, `mlflow.client`, `mlflow.utils`) are there, too.
"""

import sys
from collections.abc import Mapping
from typing import Any

from spoolagent.writers import mlflow_artifacts as _artifacts
from spoolagent.writers import mlflow_book as _book
from spoolagent.writers import mlflow_client as tracking
from spoolagent.writers import mlflow_entities as entities
from spoolagent.writers import mlflow_errors as exceptions
from spoolagent.writers import mlflow_flavors as _flavors
from spoolagent.writers import mlflow_search as _search
from spoolagent.writers import mlflow_utils as utils
from spoolagent.writers.mlflow_active import (
    ActiveRun,
    active_run,
    end_run,
    last_active_run,
    set_experiment,
    start_run,
)
from spoolagent.writers.mlflow_active import chosen_experiment as _chosen_experiment
from spoolagent.writers.mlflow_active import current as _current
from spoolagent.writers.mlflow_client import (
    MlflowClient,
    get_tracking_uri,
    is_tracking_uri_set,
    set_tracking_uri,
)
from spoolagent.writers.mlflow_client import done as _done
from spoolagent.writers.mlflow_client import warn_links as _warn_links
from spoolagent.writers.mlflow_entities import Experiment, Run, RunOperations
from spoolagent.writers.mlflow_errors import MlflowException, NotSupportedOffline
from spoolagent.writers.mlflow_errors import invalid as _invalid
from spoolagent.writers.mlflow_errors import not_offline as _not_offline
from spoolagent.writers.mlflow_runs import Tracked as _Tracked
from spoolagent.writers.process import warn_once as _warn_once

__version__ = "3.17.2"
"""The version of MLflow whose API this follows."""
client = tracking
_SUBMODULES = {
    "entities": entities,
    "exceptions": exceptions,
    "tracking": tracking,
    "tracking.context": utils,
    "tracking.context.registry": utils,
    "client": client,
    "utils": utils,
    "utils.mlflow_tags": utils,
    "utils.validation": utils,
}
"""What can be imported by name (`from ...mlflow.entities import Metric`); a parent comes before what is in it."""
for _name, _module in _SUBMODULES.items():
    sys.modules.setdefault(f"{__name__}.{_name}", _module)

_modules = _flavors.register(__name__)
_client = MlflowClient()


def _run(run_id: str | None) -> _Tracked:
    return _current() if not run_id else _book.find_run(run_id)


# -- metrics, params, tags -------------------------------------------------------------------------------------


def log_metric(
    key: str,
    value: float,
    step: int | None = None,
    synchronous: bool | None = None,
    timestamp: int | None = None,
    run_id: str | None = None,
    model_id: str | None = None,
    dataset: Any = None,
) -> RunOperations | None:
    """Logs one point; without a step at step 0. `timestamp` in milliseconds."""
    if model_id is not None or dataset is not None:
        _warn_links(model_id, dataset)
    run = _current() if run_id is None else _book.find_run(run_id)
    run.metric(key, value, step or 0, timestamp or None)
    return None if synchronous is None else _done(synchronous)


def log_metrics(
    metrics: dict[str, float],
    step: int | None = None,
    synchronous: bool | None = None,
    run_id: str | None = None,
    timestamp: int | None = None,
    model_id: str | None = None,
    dataset: Any = None,
) -> RunOperations | None:
    """Logs several metrics at one step."""
    _warn_links(model_id, dataset)
    run = _current() if run_id is None else _book.find_run(run_id)
    run.metrics_at(metrics, step or 0, timestamp or None)
    return _done(synchronous)


def log_param(key: str, value: Any, synchronous: bool | None = None) -> Any:
    """Logs a param; another value for its name is refused."""
    _current().log_params([(key, value)])
    return tracking.DONE if synchronous is False else value


def log_params(
    params: dict[str, Any], synchronous: bool | None = None, run_id: str | None = None
) -> RunOperations | None:
    """Logs several params: all, or none when one of them is refused."""
    _run(run_id).log_params(params.items())
    return _done(synchronous)


def set_tag(key: str, value: Any, synchronous: bool | None = None) -> RunOperations | None:
    """Sets a tag."""
    _current().set_tags([(key, value)])
    return _done(synchronous)


def set_tags(tags: dict[str, Any], synchronous: bool | None = None) -> RunOperations | None:
    """Sets several tags."""
    _current().set_tags(tags.items())
    return _done(synchronous)


def delete_tag(key: str) -> None:
    """Removes a tag."""
    _current().delete_tag(key)


# -- files -----------------------------------------------------------------------------------------------------


def log_artifact(local_path: str, artifact_path: str | None = None, run_id: str | None = None) -> None:
    """Logs a file or a directory."""
    _artifacts.log_artifact(_run(run_id), local_path, artifact_path)


def log_artifacts(local_dir: str, artifact_path: str | None = None, run_id: str | None = None) -> None:
    """Logs the files of a directory."""
    _artifacts.log_artifacts(_run(run_id), local_dir, artifact_path)


def log_text(text: str, artifact_file: str, run_id: str | None = None) -> None:
    """Logs a text as a file."""
    _artifacts.log_text(_run(run_id), text, artifact_file)


def log_dict(dictionary: dict[str, Any], artifact_file: str, run_id: str | None = None) -> None:
    """Logs a mapping as a JSON or YAML file."""
    _artifacts.log_dict(_run(run_id), dictionary, artifact_file)


def log_stream(stream: Any, artifact_file: str, run_id: str | None = None) -> None:
    """Logs what a binary stream gives as a file."""
    _artifacts.log_stream(_run(run_id), stream, artifact_file)


def log_figure(figure: Any, artifact_file: str, *, save_kwargs: Mapping[str, Any] | None = None) -> None:
    """Logs a figure of matplotlib or plotly as a file."""
    _artifacts.log_figure(_current(), figure, artifact_file, save_kwargs)


def log_image(
    image: Any,
    artifact_file: str | None = None,
    key: str | None = None,
    step: int | None = None,
    timestamp: int | None = None,
    synchronous: bool | None = False,
) -> None:
    """Logs an image as a file, or under a key at a step. Its pixels are stored raw, the receiver encodes them."""
    del synchronous
    _artifacts.log_image(_current(), image, artifact_file, key, step, timestamp)


def log_table(data: Any, artifact_file: str, run_id: str | None = None) -> None:
    """Adds rows to the table in a JSON file."""
    _artifacts.log_table(_run(run_id), data, artifact_file)


def get_artifact_uri(artifact_path: str | None = None) -> str:
    """A name for the active run's artifacts; they have no place of their own before they reach a tracker."""
    return _current().artifact_uri(artifact_path)


# -- experiments, runs, settings ---------------------------------------------------------------------------------


def create_experiment(
    name: str,
    artifact_location: str | None = None,
    tags: dict[str, Any] | None = None,
    trace_location: Any = None,
) -> str:
    """The id of a new experiment."""
    if trace_location is not None:
        _warn_once("trace", "mlflow: trace_location is not kept, there are no traces offline")
    return _client.create_experiment(name, artifact_location, tags)


def get_experiment(experiment_id: str) -> Experiment:
    """The experiment with this id, when this process has named it."""
    return _client.get_experiment(experiment_id)


def get_experiment_by_name(name: str) -> Experiment | None:
    """The experiment, when this process has named it before, else None."""
    return _client.get_experiment_by_name(name)


def set_experiment_tag(key: str, value: Any) -> None:
    """Keeps a tag of the active experiment in this process; it does not reach the tracker, and a warning says so."""
    _book.tag_experiment(_chosen_experiment(), {key: value})


def set_experiment_tags(tags: dict[str, Any]) -> None:
    """Several of them."""
    _book.tag_experiment(_chosen_experiment(), tags)


def search_runs(
    experiment_ids: list[str] | None = None,
    filter_string: str = "",
    run_view_type: int = entities.ViewType.ACTIVE_ONLY,
    max_results: int = 100_000,
    order_by: list[str] | None = None,
    output_format: str = "pandas",
    search_all_experiments: bool = False,
    experiment_names: list[str] | None = None,
) -> Any:
    """The runs of this process that match, as a pandas.DataFrame or a list. Those of others are not seen."""
    if experiment_ids and experiment_names:
        raise _invalid("only one of experiment_ids and experiment_names can be used")
    if output_format not in ("pandas", "list"):
        raise ValueError(f"unsupported output format: {output_format}. Supported: 'pandas' and 'list'")
    if experiment_names is not None:
        named = [_book.experiment_by_name(name) for name in experiment_names]
        experiment_ids = [found.experiment_id for found in named if found is not None]
    elif not experiment_ids:
        experiment_ids = (
            _book.experiment_ids() if search_all_experiments else [_chosen_experiment().experiment_id]
        )
    runs = _client.search_runs(experiment_ids, filter_string, run_view_type, max_results, order_by)
    return _search.frame(runs) if output_format == "pandas" else list(runs)


def get_run(run_id: str) -> Run:
    """A run, as far as this process and its spool know it."""
    return _client.get_run(run_id)


def get_parent_run(run_id: str) -> Run | None:
    """The parent of a nested run."""
    return _client.get_parent_run(run_id)


def flush_async_logging() -> None:
    """Makes all that was logged so far durable."""
    for run in _book.all_runs():
        run.flush()


def flush_artifact_async_logging() -> None:
    """Files are durable when the call that logs them returns."""


def set_registry_uri(uri: str) -> None:
    """Is taken and not used: there is no model registry offline."""
    del uri


def get_registry_uri() -> str:
    """The tracking URI, as in MLflow."""
    return get_tracking_uri()


def enable_system_metrics_logging() -> None:
    """Warns once: system metrics are not collected."""
    _warn_once("system", "mlflow: system metrics are not collected by spoolagent.writers.mlflow")


def set_system_metrics_sampling_interval(interval: Any) -> None:
    """As `enable_system_metrics_logging`."""
    del interval
    enable_system_metrics_logging()


def set_system_metrics_samples_before_logging(samples: Any) -> None:
    """As `enable_system_metrics_logging`."""
    del samples
    enable_system_metrics_logging()


def set_system_metrics_node_id(node_id: Any) -> None:
    """As `enable_system_metrics_logging`."""
    del node_id
    enable_system_metrics_logging()


def disable_system_metrics_logging() -> None:
    """They are not collected anyway."""


def autolog(
    log_input_examples: bool = False,
    log_model_signatures: bool = True,
    log_models: bool = True,
    log_datasets: bool = True,
    log_traces: bool = True,
    disable: bool = False,
    exclusive: bool = False,
    disable_for_unsupported_versions: bool = False,
    silent: bool = False,
    extra_tags: dict[str, str] | None = None,
    exclude_flavors: list[str] | None = None,
) -> None:
    """Raises NotSupportedOffline, unless `disable` is set."""
    del log_input_examples, log_model_signatures, log_models, log_datasets, log_traces
    del exclusive, disable_for_unsupported_versions, silent, extra_tags, exclude_flavors
    if not disable:
        raise _flavors.no_autolog("autolog")


def __getattr__(name: str) -> Any:
    if name in _modules:
        return _modules[name]
    if name.startswith("__"):
        raise AttributeError(name)
    raise _not_offline(name)


__all__ = [
    "ActiveRun",
    "Experiment",
    "MlflowClient",
    "MlflowException",
    "NotSupportedOffline",
    "Run",
    "RunOperations",
    "active_run",
    "autolog",
    "client",
    "create_experiment",
    "delete_tag",
    "disable_system_metrics_logging",
    "enable_system_metrics_logging",
    "end_run",
    "entities",
    "exceptions",
    "flush_artifact_async_logging",
    "flush_async_logging",
    "get_artifact_uri",
    "get_experiment",
    "get_experiment_by_name",
    "get_parent_run",
    "get_registry_uri",
    "get_run",
    "get_tracking_uri",
    "is_tracking_uri_set",
    "last_active_run",
    "log_artifact",
    "log_artifacts",
    "log_dict",
    "log_figure",
    "log_image",
    "log_metric",
    "log_metrics",
    "log_param",
    "log_params",
    "log_stream",
    "log_table",
    "log_text",
    "search_runs",
    "set_experiment",
    "set_experiment_tag",
    "set_experiment_tags",
    "set_registry_uri",
    "set_tag",
    "set_tags",
    "set_tracking_uri",
    "start_run",
    "tracking",
    "utils",
]
