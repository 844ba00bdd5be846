"""`wandb.Run`: rows that gather, config, summary, files; all of it into the spool.

How rows are written (api "wandb"): each `log` call ends in a `metrics` event with the row's `step` and `commit`;
what is no number goes before it as events of their own with `commit` false and the same step (wandb_rows.py). A
call for a step that is gone keeps that step, where W&B drops it. A new name, notes or tags are a `custom` event
`wandb.run`.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from spoolagent.format import blobs
from spoolagent.format.values import clean_text, to_json
from spoolagent.writers import wandb_artifact, wandb_metric, wandb_values
from spoolagent.writers.run import Run as Spool
from spoolagent.writers.run import check_step, optional, status_of
from spoolagent.writers.wandb_config import Config
from spoolagent.writers.wandb_errors import AlertLevel, notice, refuse
from spoolagent.writers.wandb_facts import RunFacts
from spoolagent.writers.wandb_files import Saved, as_text
from spoolagent.writers.wandb_media import Part, WBValue
from spoolagent.writers.wandb_rows import make_row
from spoolagent.writers.wandb_settings import Settings
from spoolagent.writers.wandb_summary import Summary
from spoolagent.writers.wandb_watch import Watched

_SPECIAL = frozenset(("", "_step", "_timestamp"))
_LARGE = 128 << 10
"""Characters of an artifact's metadata that surely leave room for names of files in its line."""
_REFUSED = frozenset(
    {
        "display",
        "finish_artifact",
        "link_artifact",
        "link_model",
        "log_code",
        "pin_config_keys",
        "restore",
        "status",
        "to_html",
        "upsert_artifact",
        "use_artifact",
        "use_model",
    }
)

active: "list[Run]" = []
"""Runs of this process that are not finished, the latest last."""


def _flag(commit: Any) -> bool:
    """A commit that is no bool: W&B takes numpy's, tensors and integers, too. Raises TypeError."""
    if isinstance(commit, (str, bytes, float, list, tuple, dict)):
        raise TypeError(f"commit must be a bool, got {commit!r}")
    return bool(commit)


class Run(RunFacts):
    """A run. Made by `init`; thread-safe; a forked child goes on with it in a stream of its own."""

    def __init__(
        self, spool: Spool, settings: Settings, config: Config, *, resumed: bool, first_step: int
    ) -> None:
        self._spool = spool
        self._stream = spool.stream
        self._settings = settings
        self._config = config
        config._on_change(self._config_changed)  # noqa: SLF001 - of this package
        self.summary: Any = Summary(self._summary_changed, self._summary_shows)
        self._shown: dict[str, Any] = self.summary._as_dict()  # noqa: SLF001
        self._defined: dict[str, wandb_metric.Metric] = {}
        self._resumed = resumed
        self._starting_step = self._step = first_step
        self._start_time = time.time()
        self._is_finished = False
        self._lock = threading.RLock()
        self._saved = Saved(spool, settings.files_dir)
        self._watched = Watched(lambda values: self.log(values, commit=False))
        self._on_finish: list[Callable[[Run], None]] = []
        active.append(self)

    # -- logging -----------------------------------------------------------------------------------------

    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        """Logs values by name into the row of `step`, or into the current one, which it then completes.

        Raises TypeError for what is no dict with str keys, a step that is no int, a value that has no JSON form.
        """
        if type(data) is dict and not self._is_finished:
            for key, value in data.items():
                kind = type(value)
                if type(key) is not str or not (
                    (kind is float and value - value == 0.0) or (kind is int and -(2**63) <= value < 2**63)
                ):
                    break
            else:
                if _SPECIAL.isdisjoint(data):
                    self._write((), data, step, commit, None)
                    if self._defined:
                        self._define_shown(data)
                    else:
                        self._shown.update(data)
                    return
        self._log_any(data, step, commit)

    def _log_any(self, data: Any, step: int | None, commit: bool | None) -> None:
        self._check_running("log")
        if not isinstance(data, Mapping):
            raise TypeError("wandb.log must be passed a dictionary")
        step = check_step(step)
        row = make_row(data, self._step if step is None else step)
        self._write(row.parts, row.metrics, step, commit, row.at_ns)
        if self._defined:
            self._define_shown(row.shown)
        else:
            wandb_values.merge(self._shown, row.shown)

    def _write(
        self,
        parts: Sequence[Part],
        metrics: dict[str, Any],
        step: int | None,
        commit: bool | None,
        at_ns: int | None,
    ) -> None:
        if step is not None:
            step = check_step(step)
        if commit is not None and type(commit) is not bool:
            commit = _flag(commit)
        with self._lock:
            close = step is None if commit is None else commit
            row = self._step
            if step is not None:
                row = step
                if step > self._step:
                    self._step = step
                elif step < self._step:
                    notice("a row of an earlier step was logged: kept, where W&B would drop it")
            for part in parts:
                self._write_part(part, row, at_ns)
            if metrics or close or not parts:
                event = {
                    "seq": 0,
                    "time": 0,
                    "type": "metrics",
                    "metrics": metrics,
                    "step": row,
                    "commit": close,
                }
                if at_ns is not None:
                    event["at"] = at_ns
                self._stream.append_event(event)
            if close and row == self._step:
                self._step = row + 1

    def _write_part(self, part: Part, row: int, at_ns: int | None) -> None:
        fields = {**part.fields, "step": row, "commit": False, **optional(at=at_ns)}
        try:
            if part.files:
                put = self._spool.spool, self._spool.site
                fields["files"] = [
                    {"path": name, "blob": blobs.put_bytes(*put, data)} for name, data in part.files
                ]
        except OSError as error:
            self._spool.drop(f"{part.kind}: {error.strerror}")
            return
        if part.data is not None:
            self._spool.with_blob(part.kind, fields, part.data)
        else:
            self._stream.append(part.kind, fields)

    def _define_shown(self, values: dict[str, Any]) -> None:
        with self._lock:
            for name, value in values.items():
                made = wandb_metric.find(self._defined, name)
                wandb_values.merge(self._shown, made.show(name, value) if made is not None else {name: value})

    def define_metric(
        self,
        name: str,
        step_metric: "str | wandb_metric.Metric | None" = None,
        step_sync: bool | None = None,
        hidden: bool | None = None,
        summary: str | None = None,
        overwrite: bool | None = None,
    ) -> "wandb_metric.Metric":
        """Says how a metric is drawn (`step_metric`) and summed up (min, max, mean, last, first, none)."""
        self._check_running("define_metric")
        made = wandb_metric.make(name, step_metric, step_sync, hidden, summary, overwrite)
        made = made.merged(self._defined.get(name))
        with self._lock:
            self._defined[name] = made
            self._spool.event("define_metric", made.fields())
        return made

    def alert(self, title: str, text: str, level: Any = None, wait_duration: Any = None) -> None:
        """Logs an alert. Raises ValueError for a level that is not INFO, WARN or ERROR."""
        self._check_running("alert")
        level = level or AlertLevel.INFO
        name = level.value if isinstance(level, AlertLevel) else level
        if name not in {known.value for known in AlertLevel}:
            raise ValueError("level must be one of 'INFO', 'WARN', or 'ERROR'")
        wait = getattr(wait_duration, "total_seconds", lambda: wait_duration or 60)()
        if not isinstance(wait, (int, float)):
            raise TypeError("wait_duration must be an int, float, or datetime.timedelta")
        said = self._spool.shorten("text of an alert", clean_text(str(text)))
        fields = {"title": clean_text(str(title)), "text": said, "level": name}
        self._spool.event("alert", {**fields, "wait_s": wait})

    def write_logs(self, text: str) -> None:
        """Logs text as console output of the run."""
        self._check_running("write_logs")
        for line in clean_text(str(text)).splitlines():
            for start in range(0, len(line), 100_000):  # a line of the spool holds so much
                self._spool.event("log", {"message": line[start : start + 100_000]})

    # -- files ---------------------------------------------------------------------------------------------

    def log_artifact(
        self,
        artifact_or_path: Any,
        name: str | None = None,
        type: str | None = None,  # noqa: A002 - W&B's name
        aliases: list[str] | None = None,
        tags: list[str] | None = None,
    ) -> "wandb_artifact.Artifact":
        """Copies an artifact's files into the spool. Raises ValueError for a path that is not there."""
        self._check_running("log_artifact")
        artifact = self._artifact(artifact_or_path, name, type or "unspecified")
        artifact.tags = [str(tag) for tag in tags or artifact.tags]
        return self._log_artifact("artifact", artifact, aliases)

    def log_model(self, path: Any, name: str | None = None, aliases: list[str] | None = None) -> None:
        """Logs a file or directory as a model."""
        self._check_running("log_model")
        self._log_artifact("model", self._artifact(path, name, "model"), aliases)

    def _log_artifact(
        self, kind: str, artifact: "wandb_artifact.Artifact", aliases: Any
    ) -> "wandb_artifact.Artifact":
        artifact.aliases = wandb_artifact.resolve_aliases(aliases)
        fields = artifact.fields(artifact.aliases)
        if len(repr(fields.get("metadata"))) > _LARGE:
            self._spool.drop(f"the metadata of artifact {artifact.name} do not fit in a line of the spool")
            del fields["metadata"]
        self._spool.log_files(kind, artifact.listing(), fields)
        return artifact

    def _artifact(self, given: Any, name: str | None, kind: str) -> "wandb_artifact.Artifact":
        if isinstance(given, wandb_artifact.Artifact):
            return given
        if not isinstance(given, (str, os.PathLike)):
            raise TypeError(
                "You must pass an instance of wandb.Artifact or a valid file path to log_artifact"
            )
        path = os.fspath(given)
        if "://" in path:
            refuse("an artifact of a reference", "give the path of a file or directory")
        made = wandb_artifact.Artifact(
            name or f"run-{self.id}-{os.path.basename(os.path.normpath(path))}", kind
        )
        if os.path.isdir(path):
            made.add_dir(path)
        else:
            made.add_file(path)
        return made

    def save(
        self,
        glob_str: Any,
        base_path: Any = None,
        policy: str = "live",
        glob: bool = True,
    ) -> bool | list[str]:
        """Logs files of the run: a path or pattern; now, and for "live" and "end" again when the run ends."""
        self._check_running("save")
        pattern = as_text(glob_str)
        if pattern.startswith(("gs://", "s3://")):
            notice(f"{pattern} is a cloud storage url, can't save file to W&B.")
            return []
        return self._saved.save(
            pattern, None if base_path is None else as_text(base_path), policy, expand=glob
        )

    def watch(
        self,
        models: Any,
        criterion: Any = None,
        log: str | None = "gradients",
        log_freq: int = 1000,
        idx: int | None = None,
        log_graph: bool = False,
    ) -> None:
        """Logs histograms of the gradients and parameters of torch models, each `log_freq` batches, until the end."""
        del criterion
        self._check_running("watch")
        self._watched.watch(models, log, log_freq, idx, log_graph=log_graph)

    def unwatch(self, models: Any = None) -> None:
        """Stops that, for these models or for all."""
        self._watched.unwatch(models)

    def _label(self, code: str | None = None, **kwargs: Any) -> None:
        """Which framework logs: W&B's own statistics, not kept. Hugging Face calls it."""

    def mark_preempting(self) -> None:
        """Puts on record that the machine is about to be taken away."""
        self._check_running("mark_preempting")
        self._spool.event("custom", {"name": "wandb.preempting", "data": {}})

    # -- config and summary ----------------------------------------------------------------------------------

    def _config_changed(self, values: dict[str, Any]) -> None:
        self._check_running("config")
        self._spool.event("param", {"params": to_json(values), "overwrite": True})

    def _summary_changed(self, values: dict[str, Any]) -> None:
        self._check_running("summary")
        self._spool.event("summary", {"summary": to_json(values)})

    def _summary_shows(self, key: str, value: WBValue) -> None:
        self._check_running("summary")
        self._write(value.parts(key, self._step), {}, None, False, None)

    # -- the end ---------------------------------------------------------------------------------------------

    def finish(self, exit_code: int | None = None) -> None:
        """Ends the run; an exit code that is not 0 makes it a failed one. A second call does nothing."""
        with self._lock:
            if self._is_finished:
                return
            self._watched.unwatch()
            self._saved.finish()
            self._is_finished = True
        if self in active:
            active.remove(self)
        for told in self._on_finish:
            told(self)
        code = int(exit_code or 0)
        self._spool.finish("failed" if code else "finished", code)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(status_of(kind, error))

    def __getattr__(self, name: str) -> Any:
        if name in _REFUSED:
            refuse(f"wandb.Run.{name}", "it needs a server")
        raise AttributeError(f"'Run' object has no attribute {name!r}")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        del memo
        return self

    def __repr__(self) -> str:
        return f"<wandb.Run {self.path} in {self._spool.spool}>"


def finish_saved() -> None:
    """When the interpreter ends: what `save` promised for the end of the run."""
    for run in active:
        run._saved.finish()  # noqa: SLF001 - of this module


def _after_fork_in_child() -> None:
    for run in active:
        run._lock = threading.RLock()  # noqa: SLF001 - a thread of the parent may have held the old one


os.register_at_fork(after_in_child=_after_fork_in_child)
