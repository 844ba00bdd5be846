"""Events of one run to W&B's records: what each type becomes. No file is touched here.

| event | in W&B |
|---|---|
| run_start | the run's record; config |
| metrics, image, histogram, audio, video, table, text | columns of a history row, files below `media/` |
| custom `wandb.value`, `wandb.run` | any JSON as a column; a new name, notes, tags of the run |
| custom `wandb.chart` | how a table is drawn: config below `_wandb` |
| param, hparams, tag | config (tags below the key `tags`) |
| text with a path, artifact, model | files of the run |
| summary, define_metric, alert | the same |
| log, system | console line, hardware metrics |
| run_end | closes the stream's row |
| rewind, gap, tb_summary, other custom | counted as skipped |
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson

from spoolagent.format.events import Event
from spoolagent.format.values import from_json
from spoolagent.receivers import wandb_media as media
from spoolagent.receivers.wandb_media import RunFile, Unusable
from spoolagent.receivers.wandb_overlays import overlays
from spoolagent.receivers.wandb_records import json_text
from spoolagent.receivers.wandb_session import Session, closes, prefix
from spoolagent.receivers.wandb_summary import Stamp, definition


def apply(run: Session, event: Event, writer: str, blobs: str) -> bool:
    """Applies one event; False when W&B has no way to show it. Raises ValueError when it never can be applied."""
    handler = _HANDLERS.get(event.type)
    return False if handler is None else handler(run, event, writer, blobs)


def metric_text(value: Any) -> str:
    """A metric's JSON form as W&B writes it: NaN and infinities bare."""
    return value if isinstance(value, str) else repr(value)


def _stamp(event: Event, writer: str) -> Stamp:
    return event.time_ns, writer, event.seq


def _start(run: Session, event: Event, writer: str, blobs: str) -> bool:
    del blobs
    data = event.data
    attempt = data.get("attempt") or 1
    run.emit(run.rows.begin(writer, data.get("api") or "native", data.get("rank"), attempt))
    run.configure(data.get("config") or {}, _stamp(event, writer))
    run.put_tags(data.get("tags") or {}, _stamp(event, writer))
    return True


def _metrics(run: Session, event: Event, writer: str, blobs: str) -> bool:
    del blobs
    front = prefix(event.data.get("context"))
    values = {front + name: metric_text(value) for name, value in event.data["metrics"].items()}
    return run.point(event, writer, values, close=closes(event, default=event.step is None))


def _text(run: Session, event: Event, writer: str, blobs: str) -> bool:
    data, blob = event.data, event.data.get("blob")
    if not data.get("path"):
        text = data["text"] if blob is None else media.read_blob(blobs, blob).decode("utf-8", "replace")
        return run.media(event, writer, text)
    path = media.relative(data["path"])
    if blob is None:
        file = RunFile(path, data=data["text"].encode())
    else:
        file = RunFile(path, source=media.blob_file(blobs, blob))
    # our W&B writer's Html; any other text with a path is a file and no more
    value = media.html(file) if path.startswith("media/html/") else None
    run.add_files([file])
    return True if value is None else run.media(event, writer, value)


def _media(run: Session, event: Event, writer: str, blobs: str) -> bool:
    file, value = media.media(event, blobs)
    more, over = overlays(event, blobs) if event.type == "image" else ([], {})
    run.add_files([file, *more])
    return run.media(event, writer, {**value, **over})


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
    if name == "wandb.chart" and isinstance(data, dict) and isinstance(data.get("key"), str):
        run.records.chart(data["key"], json_text(from_json(data.get("panel"))))
        return True
    if name != "wandb.run" or not isinstance(data, dict):
        return False
    fields: dict[str, Any] = {k: str(data[k]) for k in ("name", "notes", "group", "job_type") if k in data}
    if isinstance(data.get("labels"), list):
        fields["labels"] = [str(label) for label in data["labels"]]
    run.info = replace(run.info, **fields)
    if not run.fresh:  # else the log's first record says it
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
