"""Events of one run to W&B's records: what each type becomes. No file is touched here.

| event | in W&B |
|---|---|
| run_start | the run's record; config |
| metrics, image, histogram, audio, video, table, text | columns of a history row, files below `media/` |
| custom `wandb.value`, `wandb.run` | any JSON as a column; a new name, notes, tags of the run |
| param, hparams, tag | config (tags below the key `tags`) |
| text with a path, artifact, model | files of the run |
| summary, define_metric, alert | the same |
| log, system | console line, hardware metrics |
| run_end | closes the stream's row |
| rewind, gap, tb_summary, other custom | counted as skipped |
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from spoolagent.contract import RunEnd
from spoolagent.format.events import Event
from spoolagent.format.values import from_json
from spoolagent.receivers import wandb_media as media
from spoolagent.receivers.wandb_media import RunFile, Unusable, refusal
from spoolagent.receivers.wandb_records import NS, Records, RunInfo, json_text
from spoolagent.receivers.wandb_rows import RANK_COLUMN, STEP_COLUMN, Closed, Point, Rows
from spoolagent.receivers.wandb_summary import Definition, Latest, Stamp, Summary, definition

EXIT_KILLED = 255
"""What the SDK uses when a run is stopped from outside."""
TAGS = "tags"
"""The config key that holds the run's tags."""
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

    def apply(self, event: Event, writer: str, blobs: str) -> bool:
        """Applies one event; False when W&B has no way to show it. Raises Unusable when it never can be applied."""
        handler = _HANDLERS.get(event.type)
        return False if handler is None else handler(self, event, writer, blobs)

    def end(self, end: RunEnd, *, whole: bool) -> None:
        """Closes all rows and writes the end of the run; `whole` as in `flush_summary`."""
        self.emit(self.rows.close_all())
        runtime_s = max(0, end.time_ns - self.info.start_ns) // NS
        stamp = (end.time_ns, "~", 0)  # sorts after every writer's name
        self.summary.put("_wandb", json_text({"runtime": runtime_s}), stamp)
        self.summary.put("_runtime", str(runtime_s), stamp)
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
            self.summary.put("_step", str(row.step), row.stamp)

    def _define_axis(self, row: Closed) -> None:
        """Metrics whose steps W&B cannot keep are drawn against the user's step."""
        if row.values.get(STEP_COLUMN, str(row.step)) == str(row.step):
            return
        self.define(Definition(name=STEP_COLUMN, hidden=True))
        for name in row.values:
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
        close = _closes(event, default=event.step is None and (held is None or held.api != "wandb"))
        name = _prefix(event.data.get("context")) + event.data["key"]
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


def metric_text(value: Any) -> str:
    """A metric's JSON form as W&B writes it: NaN and infinities bare."""
    return value if isinstance(value, str) else repr(value)


def _closes(event: Event, *, default: bool) -> bool:
    commit = event.data.get("commit")
    return default if commit is None else bool(commit)


def _prefix(context: Mapping[str, str] | None) -> str:
    if not context:
        return ""
    return "".join(f"{v}/" if k == "subrun" else f"{k}={v}/" for k, v in sorted(context.items()))


def _stamp(event: Event, writer: str) -> Stamp:
    return event.time_ns, writer, event.seq


def _start(run: Session, event: Event, writer: str, blobs: str) -> bool:
    del blobs
    data = event.data
    run.rows.begin(writer, data.get("api") or "native", data.get("rank"))
    run.configure(data.get("config") or {}, _stamp(event, writer))
    run.put_tags(data.get("tags") or {}, _stamp(event, writer))
    return True


def _metrics(run: Session, event: Event, writer: str, blobs: str) -> bool:
    del blobs
    prefix = _prefix(event.data.get("context"))
    values = {prefix + name: metric_text(value) for name, value in event.data["metrics"].items()}
    return run.point(event, writer, values, close=_closes(event, default=event.step is None))


def _text(run: Session, event: Event, writer: str, blobs: str) -> bool:
    data = event.data
    if data.get("path"):
        if data.get("blob") is not None:
            return run.add_files(
                [RunFile(media.relative(data["path"]), source=media.blob_file(blobs, data["blob"]))]
            )
        return run.add_files([RunFile(media.relative(data["path"]), data=data["text"].encode())])
    blob = data.get("blob")
    return run.media(
        event,
        writer,
        data["text"] if blob is None else media.read_blob(blobs, blob).decode("utf-8", "replace"),
    )


def _media(run: Session, event: Event, writer: str, blobs: str) -> bool:
    file, value = media.media(event, blobs)
    run.add_files([file])
    return run.media(event, writer, value)


def _histogram(run: Session, event: Event, writer: str, blobs: str) -> bool:
    del blobs
    return run.media(event, writer, media.histogram(event.data))


def _table(run: Session, event: Event, writer: str, blobs: str) -> bool:
    file, value = media.table(event, blobs)
    run.add_files([file])
    return run.media(event, writer, value)


def _artifact(run: Session, event: Event, writer: str, blobs: str) -> bool:
    del writer
    files = media.artifact(event, blobs)
    return run.add_files(files) if files else True


def _param(run: Session, event: Event, writer: str, blobs: str) -> bool:
    del blobs
    run.configure(event.data["params"], _stamp(event, writer))
    return True


def _tag(run: Session, event: Event, writer: str, blobs: str) -> bool:
    del blobs
    run.put_tags(event.data["tags"], _stamp(event, writer))
    return True


def _hparams(run: Session, event: Event, writer: str, blobs: str) -> bool:
    del blobs
    stamp = _stamp(event, writer)
    run.configure(event.data["hparams"], stamp)
    run.summary.put_all(((name, metric_text(value)) for name, value in event.data["metrics"].items()), stamp)
    return True


def _summary(run: Session, event: Event, writer: str, blobs: str) -> bool:
    del blobs
    values = event.data["summary"]
    texts = {name: None if value is None else json_text(from_json(value)) for name, value in values.items()}
    run.summary.put_all(texts.items(), _stamp(event, writer))
    return True


def _define(run: Session, event: Event, writer: str, blobs: str) -> bool:
    del writer, blobs
    try:
        run.define(definition(event.data))
    except (ValueError, TypeError, AttributeError) as error:
        raise Unusable(str(error)) from error
    return True


def _alert(run: Session, event: Event, writer: str, blobs: str) -> bool:
    del writer, blobs
    data = event.data
    run.records.alert(data["title"], data.get("text") or "", (data.get("level") or "INFO").upper())
    return True


def _log(run: Session, event: Event, writer: str, blobs: str) -> bool:
    del writer, blobs
    data = event.data
    front = " ".join(word for word in (data.get("level"), data.get("logger")) if word)
    run.records.output(f"{front}: {data['message']}" if front else data["message"], event.wall_ns)
    return True


def _system(run: Session, event: Event, writer: str, blobs: str) -> bool:
    del writer, blobs
    run.records.stats({k: metric_text(v) for k, v in event.data["metrics"].items()}, event.wall_ns)
    return True


def _run_end(run: Session, event: Event, writer: str, blobs: str) -> bool:
    del event, blobs
    run.emit(run.rows.close(writer))
    return True


def _custom(run: Session, event: Event, writer: str, blobs: str) -> bool:
    """What our own W&B writer has no other type for. Custom events of others have no place here."""
    name, data = event.data["name"], event.data["data"]
    if name == "wandb.value" and isinstance(data, dict) and isinstance(data.get("key"), str):
        return _value(run, event, writer, blobs)
    if name != "wandb.run" or not isinstance(data, dict):
        return False
    fields: dict[str, Any] = {k: str(data[k]) for k in ("name", "notes", "group", "job_type") if k in data}
    if isinstance(data.get("labels"), list):
        fields["labels"] = [str(label) for label in data["labels"]]
    run.info = replace(run.info, **fields)
    run.records.run(run.info, {}, resume=False)
    return True


def _value(run: Session, event: Event, writer: str, blobs: str) -> bool:
    """Any JSON as a column of a row."""
    data, blob = event.data["data"], event.data.get("blob")
    value = data.get("value")
    if blob is not None:
        try:
            value = orjson.loads(media.read_blob(blobs, media.reference(blob)))
        except orjson.JSONDecodeError as error:
            raise Unusable(f"the blob of {data['key']!r} is not JSON: {error}") from error
    made = from_json(value)
    if made == {}:  # W&B drops a dictionary without leaves
        return True
    column = Event(event.seq, event.time_ns, event.type, {**event.data, "key": data["key"]})
    return run.media(column, writer, made)


_HANDLERS: dict[str, Callable[[Session, Event, str, str], bool]] = {
    "run_start": _start,
    "metrics": _metrics,
    "text": _text,
    "image": _media,
    "audio": _media,
    "video": _media,
    "histogram": _histogram,
    "table": _table,
    "artifact": _artifact,
    "model": _artifact,
    "param": _param,
    "tag": _tag,
    "hparams": _hparams,
    "summary": _summary,
    "define_metric": _define,
    "alert": _alert,
    "log": _log,
    "system": _system,
    "run_end": _run_end,
    "custom": _custom,
}
