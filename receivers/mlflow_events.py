"""What each type of event becomes in MLflow.

- `metrics`, `system` (prefix `system/`), `hparams`: points with their milliseconds and step (0 when there is none);
  a sub-run is the prefix `<subrun>/`.
- `param`: a param, the first value wins, another one is a dead letter. Config (that of `run_start`, a `param` with
  `overwrite`, `hparams`): flattened with `.`; the first value becomes the param, which MLflow never changes, and once
  it changes the last one is the tag `config.<name>`.
- `summary`: the tag `summary.<name>`. `labels` of `run_start`: tags with an empty value; `group`, `job_type`: tags.
- `gap`: the tag `spoolagent.dropped`, the number of events that the run's writers could not write.
- `text`, `image`, `audio`, `video`, `table`, `artifact`, `model`: files of the run.
- Everything else is counted as skipped.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from spoolagent.contract import Batch, State
from spoolagent.format.events import Event, column_numbers
from spoolagent.format.values import from_json, number
from spoolagent.receivers.mlflow_media import (
    File,
    MissingError,
    files_of,
    join_tables,
    milliseconds,
    named,
    table_of,
)
from spoolagent.receivers.mlflow_names import clean_path, escape, escape_path
from spoolagent.receivers.mlflow_plan import MAX_TAG, NAME_TAG, PARENT_TAG, RESERVED, Plan, Upload, cut

MAX_PARAM = 6000
"""Characters of the longest param value; MLflow's own client cuts there, too."""


def make_plan(batch: Batch, state: State) -> Plan:
    """The plan of a batch; events that can never be delivered are dead letters in its outcome."""
    key = batch.stream.key
    plan = Plan(state=state, run=f"{key.site}/{key.run}")
    planner = _Planner(plan, key.writer, batch.blobs)
    for event in batch.events:
        handle = planner.handlers.get(event.type)
        if handle is None:
            planner.skip(event)
            continue
        try:
            handle(event)
        except (ValueError, MissingError) as error:
            plan.die(event.seq, str(error))
    return plan


class _Planner:
    """One method per event type; each raises ValueError or MissingError for an event that MLflow cannot take."""

    def __init__(self, plan: Plan, writer: str, blobs: str) -> None:
        self.plan = plan
        self.writer = writer
        self.blobs = blobs
        self.names: dict[str, str] = {}
        self.handlers: dict[str, Callable[[Event], None]] = {
            "run_start": self.run_start,
            "metrics": self.metrics,
            "system": self.system,
            "custom": self.custom,
            "param": self.param,
            "tag": self.tag,
            "hparams": self.hparams,
            "summary": self.summary,
            "table": self.table,
            "gap": self.gap,
            "run_end": lambda _event: None,
            **dict.fromkeys(("text", "image", "audio", "video", "artifact", "model"), self.files),
        }

    def skip(self, event: Event) -> None:
        skipped = self.plan.outcome.skipped
        skipped[event.type] = skipped.get(event.type, 0) + 1

    def order(self, event: Event) -> list[Any]:
        return [event.time_ns, self.writer, event.seq]

    def run_start(self, event: Event) -> None:
        data = event.data
        tags: dict[str, str | None] = dict.fromkeys(data.get("labels") or (), "")
        tags |= {name: data[name] for name in ("group", "job_type") if data.get(name)}
        if data.get("notes"):
            tags["mlflow.note.content"] = data["notes"]
        self.set_tags(event, tags | (data.get("tags") or {}))
        self.config(event, data.get("config") or {})
        if data.get("parent"):
            self.plan.parent = data["parent"]

    def metrics(self, event: Event) -> None:
        subrun = (event.data.get("context") or {}).get("subrun")
        self.add_points(event, event.data["metrics"], f"{subrun}/" if subrun else "")

    def custom(self, event: Event) -> None:
        """Numbers that W&B's API logs nested or as booleans are points; other custom events are skipped."""
        numbers = column_numbers(event)
        if numbers:
            self.add_points(event, numbers)
        else:
            self.skip(event)

    def system(self, event: Event) -> None:
        for name, value in event.data["metrics"].items():
            self.add_points(event, {name: value}, "" if name.startswith("system/") else "system/")

    def add_points(self, event: Event, metrics: dict[str, Any], prefix: str = "") -> None:
        time_ms, step = milliseconds(event), event.step or 0
        names, points = self.names, self.plan.points
        for name, value in metrics.items():
            name = prefix + name if prefix else name  # noqa: PLW2901 - the hot loop
            key = names.get(name)
            if key is None:
                try:
                    key = names[name] = self.plan.name(name)
                except ValueError as error:
                    self.plan.die(event.seq, str(error))
                    continue
            points.append((key, value if type(value) is float else float(number(value)), time_ms, step))

    def param(self, event: Event) -> None:
        if event.data.get("overwrite"):
            self.config(event, event.data["params"])
            return
        for name, value in event.data["params"].items():
            self.first_wins(event, name, _stringify(value))

    def first_wins(self, event: Event, name: str, value: str) -> None:
        try:
            key = self.plan.name(name)
        except ValueError as error:
            self.plan.die(event.seq, str(error))
            return
        held = self.plan.get("param", key)
        if held is None:
            self.set_param(key, value)
        elif held != value:
            reason = f"param {name!r} is {held[:200]!r} already and MLflow never changes one: {value[:200]!r} refused"
            self.plan.die(event.seq, reason)

    def set_param(self, key: str, value: str) -> None:
        self.plan.params[key] = value
        self.plan.put("param", key, value)

    def config(self, event: Event, config: dict[str, Any]) -> None:
        """Config may change: the first value becomes the param, later ones the tag `config.<name>`."""
        for name, raw in _flatten(config):
            try:
                key = self.plan.name(name)
            except ValueError as error:
                self.plan.die(event.seq, str(error))
                continue
            if not self.plan.wins("config", key, self.order(event)):
                continue
            value, held = _stringify(raw), self.plan.get("param", key)
            if held is None:
                self.set_param(key, value)
            elif held != value or self.plan.get("changed", key):
                self.plan.put("changed", key, 1)
                self.set_tags(event, {f"config.{name}": value})

    def hparams(self, event: Event) -> None:
        self.config(event, event.data["hparams"])
        self.add_points(event, event.data["metrics"])

    def tag(self, event: Event) -> None:
        self.set_tags(event, event.data["tags"])

    def summary(self, event: Event) -> None:
        for name, value in _flatten(event.data["summary"]):
            self.set_tags(event, {f"summary.{name}": None if value is None else _stringify(value)})

    def set_tags(self, event: Event, tags: dict[str, str | None]) -> None:
        plan = self.plan
        for name, value in tags.items():
            try:
                key = plan.name(name)
            except ValueError as error:
                plan.die(event.seq, str(error))
                continue
            if name in RESERVED:
                plan.die(event.seq, f"tag {name!r} is set by the receiver only")
            elif not plan.wins("tag", key, self.order(event)):
                continue
            elif value is None:
                plan.tags.pop(key, None)
                plan.removed.add(key)
            elif key == NAME_TAG:
                plan.run_name = value
            else:
                if key == PARENT_TAG:
                    # The id of a run of the site: becomes the tracker's, as soon as that is known.
                    plan.parent = value
                plan.removed.discard(key)
                plan.tags[key] = cut(value, MAX_TAG)

    def files(self, event: Event) -> None:
        for file in list(files_of(event, self.writer, self.blobs)):
            self.upload(event, file)
        if event.type == "image" and not event.data.get("path"):
            self.plan.tags["mlflow.loggedImages"] = "True"
            if event.data["key"]:
                self.plan.name(event.data["key"])  # for its tag

    def upload(self, event: Event, file: File, *, always: bool = False) -> str | None:
        """Plans the upload unless a later event wrote the path already. Returns the path as MLflow takes it."""
        plan, path = self.plan, clean_path(file.path)
        escaped = path if file.is_escaped else escape_path(path)
        self.take_place(escaped)
        if not plan.wins("file", escaped, self.order(event)) and not always:
            return None
        if escaped != path and not plan.get("named", escaped):
            plan.put("named", escaped, 1)
            plan.tags[escape(f"spoolagent.file.{path}")] = cut(path, MAX_TAG)
        plan.uploads[escaped] = Upload(seq=event.seq, path=escaped, file=file)
        return escaped

    def take_place(self, path: str) -> None:
        """Raises ValueError where a file would have to be a folder at once: servers fail at that for ever."""
        parts = path.split("/")
        for count in range(1, len(parts)):
            above = "/".join(parts[:count])
            if self.plan.get("file", above):
                raise ValueError(f"{above!r} is a file of the run, so {path!r} cannot lie in it")
            if not self.plan.get("folder", above):
                self.plan.put("folder", above, 1)
        if self.plan.get("folder", path):
            raise ValueError(f"{path!r} is a folder of the run's files and cannot become a file")

    def table(self, event: Event) -> None:
        path = event.data.get("path")
        if path is None:
            columns, rows = table_of(event, self.blobs)
            content = join_tables([(columns, rows)])
            path = named("table", event, self.writer, "json")
        else:
            content = self.grown(event, path)
        placed = self.upload(event, File(path, lambda: content), always=True)
        if placed is not None:
            self.list_table(placed)

    def grown(self, event: Event, path: str) -> bytes:
        """All rows logged to this path so far: MLflow's log_table appends to the file."""
        columns, rows = table_of(event, self.blobs)
        place = f"{escape_path(clean_path(path))}//"
        order = f"{event.time_ns:020d}/{self.writer}/{event.seq:020d}"
        self.plan.put("table", place + order, [columns, rows])
        return join_tables([(part[0], part[1]) for _, part in self.plan.scan("table", place)])

    def list_table(self, path: str) -> None:
        """Adds the file to the tag by which MLflow's evaluation view finds tables."""
        listed = self.plan.get("tables", "") or []
        if path not in listed:
            listed = [*listed, path]
            self.plan.put("tables", "", listed)
            value = json.dumps([{"path": item, "type": "table"} for item in listed])
            if len(value) <= MAX_TAG:  # a cut list would not be JSON; the files are there all the same
                self.plan.tags["mlflow.loggedArtifacts"] = value

    def gap(self, event: Event) -> None:
        self.plan.put("gap", f"{self.writer}/{event.seq}", event.data["dropped"])
        self.plan.tags["spoolagent.dropped"] = str(sum(count for _, count in self.plan.scan("gap")))


def _stringify(value: Any) -> str:
    """The text that MLflow's client makes of a param's value."""
    return cut(str(from_json(value)), MAX_PARAM)


def _flatten(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested config as `outer.inner`; an empty mapping and what the spool tagged stay values."""
    for raw, value in config.items():
        name = prefix + (raw[1:] if raw.startswith("$$") else raw)
        if isinstance(value, dict) and value and not _is_tagged(value):
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value


def _is_tagged(value: dict[str, Any]) -> bool:
    key = next(iter(value))
    return len(value) == 1 and key in ("$float", "$int", "$bytes")
