"""The runs and experiments that this process knows, and what the spool tells of runs of others."""

import os
from collections.abc import Mapping
from typing import Any

from spoolagent.errors import FormatError, NameRefused
from spoolagent.format import layout
from spoolagent.format.header import parse_header
from spoolagent.format.lines import MAX_LINE, decode_line
from spoolagent.format.names import check_name, new_run_id
from spoolagent.writers import process
from spoolagent.writers.mlflow_checks import check_experiment_name, check_run_id
from spoolagent.writers.mlflow_entities import Experiment, ExperimentTag, LifecycleStage
from spoolagent.writers.mlflow_errors import (
    RESOURCE_ALREADY_EXISTS,
    MlflowException,
    invalid,
    missing,
)
from spoolagent.writers.mlflow_names import PARENT, RUN_NAME, experiment_id, new_run_name
from spoolagent.writers.mlflow_runs import Tracked, guard, now_ms
from spoolagent.writers.process import warn_once

_runs: dict[str, Tracked] = {}
_experiments: dict[str, Experiment] = {}
_taken: set[str] = set()
"""The value of SPOOLAGENT_RUN, once a run of this process has it."""


# -- experiments -----------------------------------------------------------------------------------------------


def experiment_by_name(name: str) -> Experiment | None:
    """The experiment, when this process has named it before. "Default" is always there."""
    if name == "Default":
        return named_experiment(name)
    return _experiments.get(experiment_id(name)) if isinstance(name, str) else None


def named_experiment(
    name: Any, location: str | None = None, tags: Mapping[str, Any] | None = None
) -> Experiment:
    """The experiment of that name, known from now on. Raises MlflowException for a name that is none."""
    check_experiment_name(name)
    ident = experiment_id(name)
    with guard.lock:
        known = _experiments.get(ident)
        if known is None:
            now = now_ms()
            known = _experiments[ident] = Experiment(
                ident,
                name,
                location or f"spoolagent:/experiments/{ident}",
                LifecycleStage.ACTIVE,
                [ExperimentTag(k, str(v)) for k, v in (tags or {}).items()],
                now,
                now,
            )
    return known


def tag_experiment(known: Experiment, tags: Mapping[str, Any]) -> None:
    """Keeps tags of an experiment here, and says once that the tracker does not get them."""
    known.tags |= {str(key): str(value) for key, value in tags.items()}
    warn_once(
        "experiment", f"artifact_location and tags of experiment {known.name!r} stay here: set them in MLflow"
    )


def experiment_ids() -> list[str]:
    """The ids of all experiments that this process has named."""
    return list(_experiments)


def create_experiment(name: str, location: str | None, tags: Mapping[str, Any] | None) -> str:
    """The id of a new experiment. The receiver creates it with its first run."""
    check_experiment_name(name)
    if experiment_by_name(name) is not None:
        raise MlflowException(f"experiment {name!r} exists already", RESOURCE_ALREADY_EXISTS)
    if location or tags:
        warn_once(
            "experiment", f"artifact_location and tags of experiment {name!r} stay here: set them in MLflow"
        )
    return named_experiment(name, location, tags).experiment_id


def experiment(ident: Any) -> Experiment:
    """The experiment with this id. Raises MlflowException for an id that this process has not seen."""
    text = str(ident)
    if text == "0":
        return named_experiment("Default")
    known = _experiments.get(text)
    if known is not None:
        return known
    if not text.isdigit():
        raise invalid(f"invalid experiment id {ident!r}: it must be digits")
    raise missing(
        f"no experiment with id {text} is known offline (ids follow from names here): use set_experiment(name), "
        "or MLFLOW_EXPERIMENT_NAME"
    )


# -- runs ------------------------------------------------------------------------------------------------------


def create_run(
    where: Experiment, name: str | None, tags: Mapping[str, Any], start_ms: int | None = None
) -> Tracked:
    """A new run, begun in the spool. Its id is SPOOLAGENT_RUN for the first one of a process, else made up."""
    texts = {str(key): str(value) for key, value in tags.items()}
    tagged = texts.get(RUN_NAME)
    if name and tagged and name != tagged:
        raise invalid(f"run_name={name!r} and the tag {RUN_NAME}={tagged!r} name the run differently")
    if PARENT in texts:
        _check_legal(texts[PARENT])
    with guard.lock:
        ident, name = _new_id(), name or tagged
        if name is None and ident == os.environ.get("SPOOLAGENT_RUN"):
            name = (earlier_start(ident) or {}).get("name")  # a requeued job keeps the name made up before
        texts[RUN_NAME] = name = name or new_run_name()
        tracked = _runs[ident] = Tracked(ident, where, name, tags=texts, start_ms=start_ms, started=True)
        try:
            tracked.writer()
        except BaseException:
            del _runs[ident]
            raise
    return tracked


def _new_id() -> str:
    given = os.environ.get("SPOOLAGENT_RUN")
    if given and given not in _taken and given not in _runs:
        _taken.add(given)
        return given
    return new_run_id()


def _check_legal(run_id: Any) -> None:
    check_run_id(run_id)
    try:
        check_name("run", run_id)
    except NameRefused as error:
        raise invalid(str(error)) from error


def find_run(run_id: Any) -> Tracked:
    """The run with this id, to log to: of this process, of another one, or one that only a tracker knows.

    Offline nobody can tell whether the last exists; a rank or a requeued job on another machine gives such an id.
    """
    known = _runs.get(run_id)
    if known is not None:
        return known
    _check_legal(run_id)
    with guard.lock:
        known = _runs.get(run_id)
        if known is None:
            known = _runs[run_id] = _of_others(run_id)
    return known


def seen_run(run_id: Any) -> Tracked:
    """The run with this id, to look at. Raises MlflowException when neither process nor spool knows it."""
    known = _runs.get(run_id)
    if known is None or not known.here:
        _check_legal(run_id)
        if earlier_start(run_id) is None:
            raise missing(
                f"run with id={run_id} not found: it is neither of this process nor in its spool. "
                "start_run(run_id=...) goes on with it all the same"
            )
    return find_run(run_id)


def _of_others(run_id: str) -> Tracked:
    start = earlier_start(run_id)
    if start is None:
        return Tracked(run_id, named_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"), None)
    where = start.get("experiment") or start.get("project") or "Default"
    tags = {k: v for k, v in (start.get("tags") or {}).items() if v is not None}
    if start.get("parent"):
        tags[PARENT] = start["parent"]
    tracked = Tracked(run_id, named_experiment(where), start.get("name"), tags=tags)
    tracked.start_ms, tracked.here = start["time"] // 1_000_000, True
    return tracked


def earlier_start(run_id: str) -> dict[str, Any] | None:
    """The first `run_start` event of a run in this process's spool, or None."""
    place = process.place_from(os.environ)
    found = []
    try:
        streams = list(layout.iter_streams(place.spool, place.site, run_id))
    except OSError:  # an unreadable spool is the stream writer's to complain about
        return None
    for key in streams:
        try:
            start = _read_start(layout.stream_dir(place.spool, key))
        except (OSError, FormatError):
            continue  # damaged, pruned or just being made
        if start is not None:
            found.append(start)
    return min(found, key=lambda start: start["time"]) if found else None


def _read_start(stream: str) -> dict[str, Any] | None:
    with open(os.path.join(stream, layout.segment_name(1)), "rb") as file:
        header = parse_header(decode_line(file.readline(MAX_LINE)[:-1]), stream)
        event = decode_line(file.readline(MAX_LINE)[:-1])
    whole = event.get("type") == "run_start" and type(event.get("time")) is int
    return event if whole and header.role == "main" else None


def all_runs() -> list[Tracked]:
    """All runs that this process has touched."""
    with guard.lock:
        return list(_runs.values())
