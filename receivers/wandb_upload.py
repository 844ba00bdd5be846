"""The child process of `wandb:online`: uploads one run's logs with W&B's SDK, then leaves.

    python -m spoolagent.receivers.wandb_upload '<plan as JSON>'

It resumes the run (`resume="allow"`), skips the rows that the server has, uploads what the logs hold and goes on
with what is appended. It leaves when nothing came for a while, after a round's time, or when its standard input is
closed. What the SDK's `finish()` has acknowledged is written to the run's progress file. Only a round that was told
that the run ended sets the run's state on the server.
"""

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from spoolagent.format.durable import make_dirs, write_file
from spoolagent.receivers.wandb_log import read_log
from spoolagent.receivers.wandb_records import proto

_COMPUTED = frozenset({"_runtime", "_wandb"})
"""Summary entries that the SDK computes and does not let others set."""
EXIT_LOCKED = 75
"""Another child uploads this run."""
_POLL_S = 0.5
_BEAT_EACH = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a child is told."""

    home: str
    """Directory of the run's progress file and of the SDK's own files."""
    logs: list[str]
    ended: bool
    """The last log holds the run's end."""
    linger_s: float
    round_s: float


@dataclass(kw_only=True, slots=True)
class Progress:
    """What the server has, as far as `finish()` said so."""

    read: dict[str, int] = field(default_factory=dict)
    """Log -> bytes that need not be read again."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Arguments of `wandb.init`."""
    defined: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None
    """That of the last log's exit record, when it was read."""
    ended: bool = False

    @classmethod
    def load(cls, home: str) -> "Progress":
        """The progress so far; an unreadable file means none (the server's own step still skips its rows)."""
        try:
            with open(progress_path(home), "rb") as file:
                return cls(**json.load(file))
        except (FileNotFoundError, ValueError, TypeError):
            return cls()

    def save(self, home: str) -> None:
        """Puts it on disk."""
        values = {name: getattr(self, name) for name in self.__slots__}
        write_file(progress_path(home), json.dumps(values).encode())


def progress_path(home: str) -> str:
    """The run's progress file."""
    return os.path.join(home, "progress.json")


def beat_path(home: str) -> str:
    """A file whose time changes whenever the child gets on."""
    return os.path.join(home, "beat")


class Upload:
    """One round."""

    def __init__(self, plan: Plan, stop: threading.Event) -> None:
        self._plan, self._stop = plan, stop
        self._progress = Progress.load(plan.home)
        self._config: dict[str, Any] = {}
        self._summary: dict[str, Any] = {}
        self._removed: set[str] = set()
        self._run: Any = None
        self._log = ""

    def run(self) -> None:
        """Uploads, and saves the progress. Raises what the SDK raises."""
        self._beat()
        if not self._progress.facts:
            self._learn_facts()
        self._run = self._init()
        for arguments in self._progress.defined:
            self._run.define_metric(**arguments)
        begun = fed = time.monotonic()
        while True:
            if self._feed():
                fed = time.monotonic()
                self._push()
            self._beat()
            now = time.monotonic()
            done = self._progress.exit_code is not None
            if done or now - fed >= self._plan.linger_s or now - begun >= self._plan.round_s:
                break
            if self._stop.wait(_POLL_S):
                break
        ends = self._plan.ended and self._progress.exit_code is not None
        self._run.finish(exit_code=self._progress.exit_code if ends else 0)
        self._progress.ended = ends
        self._progress.save(self._plan.home)

    def _beat(self) -> None:
        with open(beat_path(self._plan.home), "wb") as file:
            file.write(b"")
        os.utime(beat_path(self._plan.home))

    def _learn_facts(self) -> None:
        for record, _ in _records(self._plan.logs[0], 0):
            if record.WhichOneof("record_type") == "run":
                self._take_facts(record.run)
                return

    def _take_facts(self, run: Any) -> None:
        names = {
            "entity": run.entity,
            "group": run.run_group,
            "job_type": run.job_type,
            "name": run.display_name,
        }
        facts = {name: value for name, value in {**names, "notes": run.notes}.items() if value}
        self._progress.facts = {
            "id": run.run_id, "project": run.project, "tags": list(run.tags), "host": run.host, **facts,
        }  # fmt: skip

    def _init(self) -> Any:
        import wandb

        wanted = {
            "console": "off",
            "disable_git": True,
            "disable_job_creation": True,
            "save_code": False,
            "silent": True,
            "x_disable_stats": True,
            "x_disable_meta": True,
            "x_disable_machine_info": True,
            "x_save_requirements": False,
            "x_update_finish_state": self._plan.ended,
        }
        facts = dict(self._progress.facts)
        if host := facts.pop("host", None):
            wanted["host"] = host
        known = wandb.Settings.model_fields
        settings = wandb.Settings(**{name: value for name, value in wanted.items() if name in known})
        return wandb.init(**facts, dir=self._plan.home, mode="online", resume="allow", settings=settings)

    def _feed(self) -> bool:
        """Gives the SDK every record that is there and was not given; False when there is none."""
        given = 0
        for log in self._plan.logs:
            self._log = log
            for record, at in _records(log, self._progress.read.get(log, 0)):
                handler = getattr(self, f"_on_{record.WhichOneof('record_type')}", None)
                if handler is not None:
                    handler(record)
                self._progress.read[log] = at
                given += 1
                if given % _BEAT_EACH == 0:
                    self._beat()
        return given > 0

    def _push(self) -> None:
        if self._config:
            self._run.config.update(self._config, allow_val_change=True)
        for name in self._removed:
            if name in self._run.summary:
                del self._run.summary[name]
        if self._summary:
            self._run.summary.update(self._summary)
        self._config, self._summary, self._removed = {}, {}, set()

    # One method for each type of record that the SDK has a public way for.

    def _on_run(self, record: Any) -> None:
        self._progress.exit_code = None  # a further log goes on after the end of the one before
        self._config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        before = self._progress.facts
        self._take_facts(record.run)
        now = self._progress.facts
        for name, attribute in (("name", "name"), ("notes", "notes"), ("tags", "tags")):
            if now.get(name) and now.get(name) != before.get(name):
                setattr(self._run, attribute, now[name])

    def _on_config(self, record: Any) -> None:
        for item in record.config.update:
            value = json.loads(item.value_json)
            if item.nested_key:  # a chart; as the SDK itself tells its core of one
                self._run._config_callback(key=tuple(item.nested_key), val=value)  # noqa: SLF001
            else:
                self._config[item.key] = value

    def _on_history(self, record: Any) -> None:
        step = record.history.step.num
        if step < self._run.starting_step:
            return  # the server has it
        row = _tree(record.history.item)
        row.pop("_step", None)
        row.pop("_runtime", None)
        self._run.log(row, step=step, commit=True)  # at once: our summary must come after it

    def _on_summary(self, record: Any) -> None:
        for item in record.summary.remove:
            self._summary.pop(item.key, None)
            self._removed.add(item.key)
        made = _tree(record.summary.update)
        self._summary |= {name: value for name, value in made.items() if name not in _COMPUTED}
        self._removed -= made.keys()

    def _on_metric(self, record: Any) -> None:
        metric = record.metric
        kinds = [field.name for field, _ in metric.summary.ListFields()]
        arguments: dict[str, Any] = {
            "name": metric.name or metric.glob_name,
            "step_metric": metric.step_metric or None,
            "step_sync": metric.options.step_sync or None,
            "hidden": metric.options.hidden or None,
            "summary": ",".join(kinds) or None,
        }
        self._progress.defined = [d for d in self._progress.defined if d["name"] != arguments["name"]]
        self._progress.defined.append(arguments)
        self._run.define_metric(**arguments)

    def _on_files(self, record: Any) -> None:
        folder = os.path.join(os.path.dirname(self._log), "files")
        for item in record.files.files:
            self._run.save(os.path.join(folder, item.path), base_path=folder, policy="now")

    def _on_alert(self, record: Any) -> None:
        self._run.alert(title=record.alert.title, text=record.alert.text, level=record.alert.level)

    def _on_output_raw(self, record: Any) -> None:
        if hasattr(self._run, "write_logs"):  # not in older versions
            self._run.write_logs(record.output_raw.line + "\n")

    def _on_exit(self, record: Any) -> None:
        self._progress.exit_code = record.exit.exit_code


def _records(path: str, at: int) -> Iterator[tuple[Any, int]]:
    if not os.path.exists(path):  # removed by hand, or its first bytes are about to be written
        return
    with open(path, "rb") as file:
        for data, end in read_log(file, at):
            record = proto().Record()
            record.ParseFromString(data)
            yield record, end


def _tree(items: Any) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for item in items:
        path = list(item.nested_key) or [item.key]
        place = made
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = json.loads(item.value_json)
    return made


def main() -> None:
    """Runs the plan in the first argument; standard input's end means: finish now."""
    plan = Plan(**json.loads(sys.argv[1]))
    stop = threading.Event()

    def watch() -> None:
        while os.read(
            0, 1
        ):  # not sys.stdin: its lock, held by a daemon thread, aborts the interpreter's exit
            pass
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    make_dirs(plan.home)
    with open(os.path.join(plan.home, "lock"), "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a child of an agent that was killed still finishes its round
            sys.exit(EXIT_LOCKED)
        Upload(plan, stop).run()


if __name__ == "__main__":
    main()
