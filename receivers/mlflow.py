"""The MLflow receiver: `mlflow:http://host:5000`, `mlflow:https://...` or `mlflow:sqlite:///path/mlflow.db`.

Which MLflow run: `mlflow_runs`. What an event becomes: `mlflow_events`, its files: `mlflow_media`, its names:
`mlflow_names`. Limits of a request: `mlflow_calls`. What an error means: `mlflow_errors`.
"""

import contextlib
import gc
import os
import urllib.parse
from collections.abc import Mapping
from typing import Any

from spoolagent.contract import Batch, Options, Outcome, RunEnd, State
from spoolagent.errors import Refused, SpoolError, Unreachable, UsageError, cannot_import
from spoolagent.format.names import is_legal
from spoolagent.receivers.mlflow_calls import Calls, guarded, prepare_environment
from spoolagent.receivers.mlflow_events import make_plan
from spoolagent.receivers.mlflow_plan import PARENT_TAG, RESERVED, Plan, Upload
from spoolagent.receivers.mlflow_runs import GoneError, RunOptions, Runs, check_template
from spoolagent.receivers.options import check_options

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_OPTIONS = ("experiment", "run_name", "experiment_tags", "run_tags", "timeout_s")
_PORTS = {"http": 80, "https": 443}


class MlflowReceiver:
    """Delivers to an MLflow server, or straight into its SQLite database.

    Options: `experiment` and `run_name` (templates with {site}, {run}, {name}, {project}, {experiment}, {group},
    {api}, {host}, {attempt}, {rank}), `experiment_tags`, `run_tags`, `timeout_s` (of one request, default 10).
    An experiment that a run names itself (its `experiment`, else its `project`) comes before the option, whose
    default is MLflow's own "Default".
    """

    def __init__(self, target: str, options: Options | None = None) -> None:
        options = options or {}
        check_options("mlflow", options, _OPTIONS)
        self._uri, self.identity = _parse(target)
        name = options.get("run_name")
        self._run_options = RunOptions(
            experiment=check_template("experiment", options.get("experiment", "Default")),
            run_name=None if name is None else check_template("run_name", name),
            experiment_tags=_texts("experiment_tags", options.get("experiment_tags", {})),
            run_tags=_texts("run_tags", options.get("run_tags", {})),
        )
        timeout_s = options.get("timeout_s", 10)
        if type(timeout_s) is not int or timeout_s < 1:
            raise UsageError(
                f"mlflow: option 'timeout_s' must be a whole number of seconds, got {timeout_s!r}"
            )
        self._timeout_s = timeout_s
        self._calls: Calls | None = None
        self._runs: Runs | None = None
        self._state: State | None = None

    def open(self, state: State) -> None:
        """Imports mlflow and asks the server. Raises Unreachable, or UsageError for an unusable database."""
        artifacts, is_local = None, self._uri.startswith("sqlite:")
        try:
            if is_local:
                artifacts = _prepare_database(self._uri, self._timeout_s)
            calls = Calls(self._uri, self._timeout_s)
            calls.check()
        except (UsageError, Unreachable):
            raise
        except SpoolError as error:
            busy = getattr(error.__cause__, "error_code", None) == "TEMPORARILY_UNAVAILABLE"
            if is_local and not busy:
                raise UsageError(f"{self.identity} cannot be used: {error}") from error
            raise Unreachable(str(error)) from error
        # MLflow brings 150,000 objects and more; the collector, walking them again and again, took a quarter
        # of the time of a delivery.
        gc.freeze()
        self._calls, self._state = calls, state
        self._runs = Runs(calls, state, self._run_options, artifacts)

    def deliver(self, batch: Batch) -> Outcome:
        """Sends the batch. The events of a run that somebody deleted in MLflow are dead letters."""
        runs, _, _ = self._opened()
        if not batch.events:
            return Outcome()
        try:
            run_id = runs.ensure(batch)
            plan = self._log(batch, run_id)
            self._extras(run_id, plan)
        except GoneError as gone:
            return Outcome(dead={event.seq: str(gone) for event in batch.events})
        if plan.parent or any(event.type == "run_start" for event in batch.events):
            runs.rename_late(batch, run_id)
            self._adopt(batch, run_id, plan.parent)
        plan.commit()
        return plan.outcome

    def _log(self, batch: Batch, run_id: str) -> Plan:
        """Sends metrics, params and tags. Looks again at what is there when the server refuses."""
        runs, calls, state = self._opened()
        plan, refusal = make_plan(batch, state), None
        try:
            if not calls.log(run_id, plan) and (plan.uploads or plan.removed or plan.run_name):
                runs.check_alive(run_id)  # MLflow takes uploads into a deleted run without a word
        except Refused as error:
            refusal = error
        if refusal is None:
            return plan
        found = runs.check_alive(run_id)
        if not self._learn_params(plan, found.data.params):
            raise refusal
        plan = make_plan(batch, state)
        calls.log(run_id, plan)
        return plan

    def _learn_params(self, plan: Plan, held: Mapping[str, str]) -> bool:
        """Takes over params that somebody else logged to our run. True when one of the plan's is among them."""
        _, _, state = self._opened()
        news = False
        for key in plan.params:
            if key in held and held[key] != plan.params[key]:
                state.put(f"param/{plan.run}/{key}", held[key])
                news = True
        return news

    def _extras(self, run_id: str, plan: Plan) -> None:
        _, calls, _ = self._opened()
        for key in sorted(plan.removed):
            calls.delete_tag(run_id, key)
        if plan.run_name:
            calls.rename(run_id, plan.run_name)
        for upload in plan.uploads.values():
            self._upload(run_id, plan, upload)

    def _upload(self, run_id: str, plan: Plan, upload: Upload) -> None:
        _, calls, _ = self._opened()
        content = upload.file.content
        try:
            data = content if isinstance(content, str) else content()
        except ValueError as error:  # pixels that make no image
            plan.die(upload.seq, str(error))
            return
        try:
            calls.upload(run_id, upload.path, data)
        except Refused as error:
            plan.die(upload.seq, str(error))

    def _adopt(self, batch: Batch, run_id: str, parent: str | None) -> None:
        """Sets the parent's id at this run, or remembers that it waits; then serves those that wait for it."""
        runs, calls, state = self._opened()
        site, run = batch.stream.key.site, batch.stream.key.run
        if parent is not None and parent != run and is_legal(parent):
            known = runs.known(site, parent)
            if known is None:
                state.put(f"waits/{site}/{parent}/{run}", 1)
            else:
                calls.set_tag(run_id, PARENT_TAG, known)
        for key, _ in list(state.scan(f"waits/{site}/{run}/")):
            child = runs.known(site, key.rsplit("/", 1)[1])
            if child is not None:
                with contextlib.suppress(Refused):  # the child was deleted; nobody misses its parent
                    calls.set_tag(child, PARENT_TAG, run_id)
            state.delete(key)

    def set_status(self, end: RunEnd) -> None:
        """Shows the run's status, and its end time when it has ended. A run without events is left alone."""
        runs, calls, _ = self._opened()
        run_id = runs.known(end.site, end.run)
        if run_id is None:
            return
        try:
            if end.status == "running":
                calls.set_running(run_id)
            else:
                calls.set_ended(run_id, _STATUS[end.status], max(1, end.time_ns // 1_000_000))
        except Refused:
            with contextlib.suppress(GoneError):  # deleted: its events are dead letters already
                runs.check_alive(run_id)
                raise

    def close(self) -> None:
        """MLflow's client holds nothing that must be given back."""
        self._calls = self._runs = self._state = None

    def _opened(self) -> tuple[Runs, Calls, State]:
        if self._runs is None or self._calls is None or self._state is None:
            raise UsageError("the mlflow receiver is not open")
        return self._runs, self._calls, self._state


def _parse(target: str) -> tuple[str, str]:
    """The tracking URI to use, and the identity: without credentials, in one spelling."""
    parts = urllib.parse.urlsplit(target)
    if parts.scheme in _PORTS:
        if not parts.hostname:
            raise UsageError(f"mlflow: {target!r} has no host: write mlflow:{parts.scheme}://host:port")
        port = parts.port or _PORTS[parts.scheme]
        path = parts.path.rstrip("/")
        return target.rstrip("/"), f"mlflow:{parts.scheme}://{parts.hostname}:{port}{path}"
    if parts.scheme == "sqlite":
        path, question, query = target.removeprefix("sqlite:///").partition("?")
        if not target.startswith("sqlite:///") or not path:
            raise UsageError(
                f"mlflow: {target!r} names no database file: write mlflow:sqlite:///path/mlflow.db"
            )
        uri = f"sqlite:///{os.path.realpath(path)}"
        return uri + question + query, f"mlflow:{uri}"
    if parts.scheme in ("", "file"):
        raise UsageError(
            f"mlflow: {target!r}: MLflow's file store is not a target (MLflow itself refuses it since 3.13, and it "
            "doubles repeated points): give a server, http://host:5000, or a database, sqlite:///path/mlflow.db"
        )
    raise UsageError(f"mlflow: {parts.scheme!r} is not supported: use http://, https:// or sqlite:///")


def _texts(option: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise UsageError(f"mlflow: option {option!r} must be a table of names and texts")
    for name in value:
        if name in RESERVED:
            raise UsageError(
                f"mlflow: option {option!r} must not set {name!r}: the receiver finds its runs by it"
            )
    return {str(name): str(text) for name, text in value.items()}


def _prepare_database(uri: str, timeout_s: int) -> str:
    """Creates the database when it is not there. Returns the folder for artifacts, beside it.

    Left to itself, MLflow would put artifacts of a local database into `mlruns` of the current directory.
    """
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        if os.path.lexists(folder):
            raise UsageError(f"mlflow: {folder} is not a directory: choose another place for the database")
        raise UsageError(f"mlflow: the directory {folder} does not exist: create it first")
    artifacts = os.path.join(folder, "mlartifacts")
    if os.path.exists(path) and os.path.getsize(path):
        return artifacts
    prepare_environment(timeout_s)
    try:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    except ImportError as error:
        raise cannot_import("mlflow", error, "mlflow") from error
    # its tables, and an experiment "Default" whose files lie beside it
    guarded("creating the database", lambda: SqlAlchemyStore(uri, artifacts))
    return artifacts
