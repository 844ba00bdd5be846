"""Which MLflow run a spool's run is: found by its tags or created once, never created again.

The state keeps `run/<site>/<run>` (the tracker's ids), `intent/<site>/<run>` (a create was sent whose answer is not
known) and `experiment/<name>` (the id). One worker process owns a target's state, so that streams of one run that
start together come here one after another.
"""

import hashlib
import os
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spoolagent.contract import Batch, State
from spoolagent.errors import Refused, UsageError
from spoolagent.receivers.mlflow_calls import Calls
from spoolagent.receivers.mlflow_errors import NotThere
from spoolagent.receivers.mlflow_names import escape
from spoolagent.receivers.mlflow_plan import MAX_TAG, NAME_TAG, RESERVED, cut


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """The receiver's settings that concern runs and experiments."""

    experiment: str = "Default"
    """Template for the experiment of runs that name neither an experiment nor a project."""
    run_name: str | None = None
    """Template for the name to show."""
    experiment_tags: Mapping[str, str] = field(default_factory=dict)
    run_tags: Mapping[str, str] = field(default_factory=dict)


FIELDS = frozenset(
    ["site", "run", "name", "project", "experiment", "group", "api", "host", "attempt", "rank"]
)
_MAX_EXPERIMENT = 500
_MAX_TWINS = 100


class GoneError(Exception):
    """The run or its experiment was deleted in MLflow, or can never be there; the message says which."""


def check_template(option: str, template: object) -> str:
    """A template with `{site}`, `{run}`, `{name}` ...; UsageError when it has a field that is not known."""
    if not isinstance(template, str):
        raise UsageError(f"mlflow: option {option!r} must be a text")
    try:
        fields = {name for _, name, *_ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UsageError(f"mlflow: option {option!r}: {error}") from error
    if not fields <= FIELDS:
        wrong, known = ", ".join(sorted(fields - FIELDS)), ", ".join(sorted(FIELDS))
        raise UsageError(f"mlflow: option {option!r} has the field {wrong!r}; the known ones are {known}")
    return template


def render(template: str, values: dict[str, str]) -> str:
    """The template with its fields filled in; a part between hyphens whose fields are all empty is left out."""
    parts = []
    for part in template.split("-"):
        fields = [name for _, name, *_ in string.Formatter().parse(part) if name]
        if not fields or any(values[name] for name in fields):
            parts.append(part.format_map(values))
    return "-".join(parts)


class Runs:
    """Finds and creates runs and experiments through `calls`."""

    def __init__(self, calls: Calls, state: State, options: RunOptions, artifacts: str | None) -> None:
        self._calls = calls
        self._state = state
        self._options = options
        self._artifacts = artifacts
        """Folder for artifacts of experiments that are created in a local database, else None."""

    def known(self, site: str, run: str) -> str | None:
        """The tracker's id of the run, when it is known."""
        record = self._state.get(f"run/{site}/{run}")
        return None if record is None else str(record["id"])

    def ensure(self, batch: Batch) -> str:
        """The tracker's id of the batch's run, found or created now. Raises GoneError.

        Commits the state. Comes first in a delivery, so that nothing of the batch is committed with it.
        """
        site, run = batch.stream.key.site, batch.stream.key.run
        known = self.known(site, run)
        if known is not None:
            return known
        start = next((event.data for event in batch.events if event.type == "run_start"), {})
        values = _values(batch, start)
        experiment = self.experiment(start, values)
        found = self._find(site, run, experiment)
        if found is None:
            found = self._create(batch, start, values, experiment)
        self._state.put(f"run/{site}/{run}", {"id": found, "experiment": experiment, "named": bool(start)})
        self._state.delete(f"intent/{site}/{run}")
        self._state.checkpoint()
        return found

    def experiment(self, start: dict[str, Any], values: dict[str, str]) -> str:
        """The id of the experiment that the run belongs to, created when it never was there. Raises GoneError."""
        home = f"home/{values['site']}/{values['run']}"
        name = start.get("experiment") or start.get("project") or self._state.get(home)
        name = name or render(self._options.experiment, values)
        if start:
            # Later batches have no run_start; should this one fail for good, they belong here all the same.
            self._state.put(home, name)
        if not name or len(name) > _MAX_EXPERIMENT:
            raise GoneError(
                f"{name[:80]!r} cannot name an MLflow experiment: it needs 1 to {_MAX_EXPERIMENT} characters"
            )
        key = f"experiment/{name}"
        known = self._state.get(key)
        if known is not None:
            return str(known)
        found = self._calls.experiment_by_name(name)
        if found is None:
            location = None if self._artifacts is None else os.path.join(self._artifacts, _folder_name(name))
            found = self._calls.create_experiment(name, location)
        if found.lifecycle_stage == "deleted":
            raise GoneError(f"experiment {name!r} was deleted in MLflow: restore it, then retry")
        identifier = str(found.experiment_id)
        for tag, text in self._options.experiment_tags.items():
            self._calls.set_experiment_tag(identifier, tag, text)
        self._state.put(key, identifier)
        self._state.checkpoint()
        return identifier

    def _find(self, site: str, run: str, experiment: str) -> str | None:
        found = self._search(site, run, experiment)
        alive = [item for item in found if item.info.lifecycle_stage != "deleted"]
        if found and not alive:
            raise GoneError(f"run {found[0].info.run_id} was deleted in MLflow: restore it, then retry")
        return str(alive[0].info.run_id) if alive else None

    def _search(self, site: str, run: str, experiment: str) -> list[Any]:
        """All runs of the experiment with our two tags, deleted ones too; the first created comes first."""
        filters = (
            f"tags.`spoolagent.site` = '{site}' and tags.`spoolagent.run` = '{run}'"  # both are legal names
        )
        found = self._calls.search_runs(experiment, filters, _MAX_TWINS)
        return sorted(found, key=lambda item: (item.info.start_time or 0, item.info.run_id))

    def _create(self, batch: Batch, start: dict[str, Any], values: dict[str, str], experiment: str) -> str:
        site, run = batch.stream.key.site, batch.stream.key.run
        lost = self._state.get(f"intent/{site}/{run}") is not None
        self._state.put(f"intent/{site}/{run}", 1)
        self._state.checkpoint()
        tags = {"spoolagent.site": site, "spoolagent.run": run, **self._options.run_tags}
        for name, value in (
            start.get("tags") or {}
        ).items():  # MLflow's own: its user column is set only here
            if name.startswith("mlflow.") and name not in (*RESERVED, NAME_TAG) and value is not None:
                tags[escape(name)] = cut(value, MAX_TAG)
        first = next((event for event in batch.events if event.type == "run_start"), batch.events[0])
        name = self.run_name(start, values)
        try:
            created = self._calls.create_run(experiment, max(1, first.wall_ns // 1_000_000), tags, name)
        except Refused as error:  # not bisected: a part of the batch must not create the run elsewhere
            self._state.delete(f"intent/{site}/{run}")
            raise GoneError(f"{error}; when its experiment was deleted, restore it, then retry") from error
        return self._drop_twins(site, run, experiment, created) if lost else created

    def _drop_twins(self, site: str, run: str, experiment: str, created: str) -> str:
        """After a create whose answer was lost: a slow server may have carried out both. The first one stays."""
        alive = [r for r in self._search(site, run, experiment) if r.info.lifecycle_stage != "deleted"]
        if len(alive) < 2 or alive[0].info.run_id == created:
            kept, extra = created, [r.info.run_id for r in alive if r.info.run_id != created]
        else:
            kept, extra = str(alive[0].info.run_id), [r.info.run_id for r in alive[1:]]
        for twin in extra:
            self._calls.delete_run(twin)
        return kept

    def run_name(self, start: dict[str, Any], values: dict[str, str]) -> str:
        """The name to show: the template of the options, by default the run's own name or else its id."""
        template = self._options.run_name
        if template is None:
            template = "{site}-{run}-{name}" if start.get("api") == "nvflare" else "{name}"
        return cut(render(template, values), MAX_TAG) or values["run"]

    def rename_late(self, batch: Batch, run_id: str) -> None:
        """Names a run that was created by a batch without `run_start`, when that event has come."""
        key = f"run/{batch.stream.key.site}/{batch.stream.key.run}"
        record = self._state.get(key)
        start = next((event.data for event in batch.events if event.type == "run_start"), None)
        if start is None or record["named"]:
            return
        self._calls.rename(run_id, self.run_name(start, _values(batch, start)))
        self._state.put(key, {**record, "named": True})

    def check_alive(self, run_id: str) -> Any:
        """The run as MLflow has it now. Raises GoneError when somebody deleted it, or its experiment."""
        try:
            found = self._calls.get_run(run_id)
        except NotThere as error:
            raise GoneError(f"run {run_id} is no longer in MLflow, and is not created again") from error
        if found.info.lifecycle_stage == "deleted":
            raise GoneError(f"run {run_id} was deleted in MLflow: restore it, then retry")
        return found


def _values(batch: Batch, start: dict[str, Any]) -> dict[str, str]:
    given = {name: "" if start.get(name) is None else str(start[name]) for name in FIELDS}
    return given | {
        "site": batch.stream.key.site,
        "run": batch.stream.key.run,
        "attempt": str(batch.stream.attempt),
    }


def _folder_name(experiment: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", experiment):
        return experiment
    digest = hashlib.sha256(experiment.encode()).hexdigest()[:8]
    return re.sub(r"[^A-Za-z0-9._-]", "_", experiment)[:60] + "-" + digest
