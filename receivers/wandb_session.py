"""One run while a batch is applied to it: rows, config, summary, and the records and files that come of them.

No file is touched here; wandb_events.py says what each type of event does to a session.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from spoolagent.contract import RunEnd
from spoolagent.format.events import Event
from spoolagent.format.values import from_json
from spoolagent.receivers.wandb_media import RunFile, Unusable, refusal
from spoolagent.receivers.wandb_records import NS, Records, RunInfo, json_text
from spoolagent.receivers.wandb_rows import RANK_COLUMN, STEP_COLUMN, Closed, Point, Rows
from spoolagent.receivers.wandb_summary import Definition, Latest, Stamp, Summary

EXIT_KILLED = 255
"""What the SDK uses when a run is stopped from outside."""
TAGS = "tags"
"""The config key that holds the run's tags."""
_ALWAYS: Stamp = (2**62, "", 0)
"""Later than any event: what is ours to say wins."""
_OWN_COLUMNS = (STEP_COLUMN, RANK_COLUMN)


def exit_code(end: RunEnd) -> int:
    """W&B's exit code for a run's end."""
    if end.status == "failed":
        return end.exit_code or 1
    return EXIT_KILLED if end.status == "killed" else 0


@dataclass(kw_only=True, slots=True)
class Session:
    """One run while a batch is applied. The records and files that it made are in `records` and `files`."""

    info: RunInfo
    rows: Rows
    config: Latest
    tags: Latest
    summary: Summary
    records: Records
    fresh: bool
    """No log exists yet: its first record will hold the whole config."""
    folder: str
    """The current log's `files/` directory."""
    files: list[RunFile] = field(default_factory=list)

    def end(self, end: RunEnd, *, whole: bool) -> None:
        """Closes all rows and writes the end of the run; `whole` as in `flush_summary`."""
        self.emit(self.rows.close_all())
        runtime_s = max(0, end.time_ns - self.info.start_ns) // NS
        self.summary.put("_wandb", json_text({"runtime": runtime_s}), _ALWAYS)
        self.summary.put("_runtime", str(runtime_s), _ALWAYS)
        self.flush_summary(whole=whole)
        self.records.exit(exit_code(end), runtime_s)

    def flush_summary(self, *, whole: bool) -> None:
        """Writes what changed in the summary; with `whole` (in a new log), all of it."""
        changed: Mapping[str, str | None] = self.summary.latest.items() if whole else self.summary.changed
        if changed:
            self.records.summary(changed)
        self.summary.changed = {}

    def emit(self, closed: Iterable[Closed]) -> None:
        """Writes rows, and takes them into the summary."""
        for row in closed:
            self._define_axis(row)
            self.summary.complete(row.values)
            self.records.row(row, self.info.start_ns)
            self.summary.row({k: v for k, v in row.values.items() if k not in _OWN_COLUMNS}, row.stamp)
            times = {"_timestamp": row.at_ns / NS, "_runtime": (row.at_ns - self.info.start_ns) / NS}
            self.summary.put_all(((name, repr(value)) for name, value in times.items()), row.stamp)
            self.summary.put("_step", str(row.step), _ALWAYS)

    def _define_axis(self, row: Closed) -> None:
        """Metrics whose steps W&B cannot keep are drawn against the user's step, where all their rows have it."""
        if row.axis is None:
            return
        self.define(Definition(name=STEP_COLUMN, hidden=True))
        for name in row.values if row.axis == "all" else ():
            if name not in _OWN_COLUMNS and self.summary.find(name) is None:
                self.define(Definition(name=name, step_metric=STEP_COLUMN))

    def define(self, made: Definition) -> None:
        """Writes a metric's definition when it says something new."""
        if self.summary.define(made):
            self.records.metric(made)

    def configure(self, values: Mapping[str, Any], stamp: Stamp) -> None:
        """Sets config keys unless something later did. Raises ValueError for a tag of the format it does not know."""
        texts = {name: json_text(from_json(value)) for name, value in values.items()}
        changed = {name: text for name, text in texts.items() if self.config.put(name, text, stamp)}
        if changed and not self.fresh:
            self.records.config(changed)

    def put_tags(self, tags: Mapping[str, str | None], stamp: Stamp) -> None:
        """Sets tags (None: removes), which lie together under the config's key `tags`."""
        took = [
            self.tags.put(name, None if text is None else json_text(text), stamp)
            for name, text in tags.items()
        ]
        if any(took) and not self.fresh:
            self.records.config({TAGS: self._tags_text()})

    def _tags_text(self) -> str:
        return (
            "{"
            + ",".join(f"{json_text(name)}:{text}" for name, text in sorted(self.tags.items().items()))
            + "}"
        )

    def whole_config(self) -> dict[str, str]:
        """The config as a new log begins with it."""
        return {**self.config.items(), **({TAGS: self._tags_text()} if self.tags.held else {})}

    def point(self, event: Event, writer: str, values: dict[str, str], *, close: bool) -> bool:
        """Puts values into the stream's row."""
        made = Point(
            values=values,
            step=event.step,
            at_ns=event.wall_ns,
            stamp=(event.time_ns, writer, event.seq),
            close=close,
        )
        self.emit(self.rows.add(writer, made))
        return True

    def media(self, event: Event, writer: str, value: Any) -> bool:
        """Puts one value that is not a number into the row.

        Without a step it is a row of its own, but for W&B's API, where the `metrics` event that follows closes it.
        """
        held = self.rows.writers.get(writer)
        close = closes(event, default=event.step is None and (held is None or held.api != "wandb"))
        name = prefix(event.data.get("context")) + event.data["key"]
        return self.point(event, writer, {name: json_text(value)}, close=close)

    def add_files(self, files: list[RunFile]) -> bool:
        """Puts files into the run. Raises Unusable, before anything is changed, when one cannot lie there."""
        taken = {file.path for file in self.files}
        for file in files:
            if reason := refusal(self.folder, file.path, taken):
                raise Unusable(reason)
            taken.add(file.path)
        self.files += files
        self.records.files(file.path for file in files)
        return True


def closes(event: Event, *, default: bool) -> bool:
    """Whether the row is complete with the event."""
    commit = event.data.get("commit")
    return default if commit is None else bool(commit)


def prefix(context: Mapping[str, str] | None) -> str:
    """What a context puts before a name."""
    if not context:
        return ""
    return "".join(f"{v}/" if k == "subrun" else f"{k}={v}/" for k, v in sorted(context.items()))
