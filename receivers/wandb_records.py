"""W&B's protobuf records as bytes, the same for the same arguments. Imports `wandb.proto` when it is first used."""

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spoolagent.errors import cannot_import
from spoolagent.receivers.wandb_rows import Closed
from spoolagent.receivers.wandb_summary import Definition

NS = 1_000_000_000
"""Nanoseconds in a second. An int by an int divides correctly rounded; 1e9 would lose up to 256 ns."""
MIN_CONSUMER = "0.70.0"
"""The oldest reader of logs that W&B's own SDK asks for."""


@functools.cache
def proto() -> Any:
    """The module of W&B's messages. Raises UsageError when wandb is not installed."""
    try:
        from wandb.proto import wandb_internal_pb2
    except ImportError as error:
        raise cannot_import("wandb", error, "wandb") from error
    return wandb_internal_pb2


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """What the first record of a log says about its run."""

    wandb_id: str
    entity: str | None
    project: str
    group: str | None
    job_type: str | None
    name: str | None
    notes: str | None
    labels: list[str]
    host: str | None
    start_ns: int


class Records:
    """Numbers records and turns them into bytes. `number` is that of the last one."""

    def __init__(self, wandb_id: str, number: int = 0) -> None:
        self._id = wandb_id
        self.number = number
        self.made: list[bytes] = []

    def _new(self) -> Any:
        self.number += 1
        record = proto().Record(num=self.number)
        getattr(record, "_info").stream_id = self._id  # noqa: B009 - the message's field is called so
        return record

    def _keep(self, record: Any) -> None:
        self.made.append(record.SerializeToString(deterministic=True))

    def header(self) -> None:
        """The first record of a log."""
        record = self._new()
        record.header.version_info.producer = "spoolagent"
        record.header.version_info.min_consumer = MIN_CONSUMER
        self._keep(record)

    def run(self, info: RunInfo, config: Mapping[str, str], *, resume: bool) -> None:
        """The run. With `resume`, what W&B already has of it is continued."""
        record = self._new()
        run = record.run
        run.run_id, run.project = info.wandb_id, info.project
        optional = {
            "entity": info.entity,
            "run_group": info.group,
            "job_type": info.job_type,
            "display_name": info.name,
            "notes": info.notes,
            "host": info.host,
        }
        for name, value in optional.items():
            if value:
                setattr(run, name, value)
        run.tags.extend(info.labels)
        run.start_time.FromNanoseconds(info.start_ns)
        run.resume = resume
        for key, text in config.items():
            run.config.update.add(key=key, value_json=text)
        self._keep(record)

    def config(self, changed: Mapping[str, str | None]) -> None:
        """Config keys that were set, or removed (None)."""
        record = self._new()
        for key, text in changed.items():
            if text is None:
                record.config.remove.add(key=key)
            else:
                record.config.update.add(key=key, value_json=text)
        self._keep(record)

    def chart(self, key: str, text: str) -> None:
        """How a chart is drawn, as JSON."""
        record = self._new()
        record.config.update.add(nested_key=["_wandb", "visualize", key], value_json=text)
        self._keep(record)

    def row(self, row: Closed, start_ns: int) -> None:
        """A history row with its step, its recorded time and the time since the run's start, in seconds."""
        record = self._new()
        history = record.history
        for name, text in row.values.items():
            _nest(history.item, [name], text)
        history.item.add(nested_key=["_timestamp"], value_json=repr(row.at_ns / NS))
        history.item.add(nested_key=["_runtime"], value_json=repr((row.at_ns - start_ns) / NS))
        history.item.add(nested_key=["_step"], value_json=str(row.step))
        history.step.num = row.step
        self._keep(record)

    def summary(self, changed: Mapping[str, str | None]) -> None:
        """Summary names that were set, or removed (None)."""
        record = self._new()
        for name, text in changed.items():
            if text is None:
                record.summary.remove.add(key=name)
            else:
                _nest(record.summary.update, [name], text)
        self._keep(record)

    def metric(self, made: Definition) -> None:
        """A `define_metric`."""
        record = self._new()
        metric = record.metric
        if made.name.endswith("*"):
            metric.glob_name = made.name
        else:
            metric.name = made.name
        metric.step_metric = made.step_metric or ""
        metric.options.defined = True
        metric.options.step_sync = made.step_sync
        metric.options.hidden = made.hidden
        for kind in made.kinds:
            setattr(metric.summary, kind, True)
        if made.goal:
            metric.goal = proto().MetricRecord.GOAL_MAXIMIZE
            if made.goal != "maximize":
                metric.goal = proto().MetricRecord.GOAL_MINIMIZE
        self._keep(record)

    def files(self, paths: Iterable[str]) -> None:
        """Files below the log's `files/` directory."""
        record = self._new()
        for path in paths:
            record.files.files.add(path=path)
        self._keep(record)

    def alert(self, title: str, text: str, level: str) -> None:
        """An alert. W&B knows INFO, WARN and ERROR."""
        record = self._new()
        record.alert.title, record.alert.text = title, text
        record.alert.level = level if level in ("INFO", "WARN", "ERROR") else "INFO"
        record.alert.wait_duration = 60_000
        self._keep(record)

    def output(self, line: str, at_ns: int) -> None:
        """A line of the run's console log."""
        record = self._new()
        record.output_raw.output_type = proto().OutputRawRecord.STDOUT
        record.output_raw.timestamp.FromNanoseconds(at_ns)
        record.output_raw.line = line
        self._keep(record)

    def stats(self, values: Mapping[str, str], at_ns: int) -> None:
        """Hardware metrics."""
        record = self._new()
        record.stats.stats_type = proto().StatsRecord.SYSTEM
        record.stats.timestamp.FromNanoseconds(at_ns)
        for key, text in values.items():
            record.stats.item.add(key=key, value_json=text)
        self._keep(record)

    def exit(self, code: int, runtime_s: int) -> None:
        """The end of the run; nothing that follows it in the same log is read."""
        record = self._new()
        record.exit.exit_code = code
        record.exit.runtime = runtime_s
        self._keep(record)


def _nest(items: Any, path: list[str], text: str) -> None:
    """Adds a value, a JSON object as one item per leaf, as the SDK does."""
    if text.startswith("{"):
        value = json.loads(text)
        if value:
            for key, inner in value.items():
                _nest(items, [*path, key], json_text(inner))
            return
    items.add(nested_key=path, value_json=text)


def json_text(value: Any) -> str:
    """Compact JSON as W&B writes it, with NaN and Infinity."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)
