"""Events: what a line of a segment says after its header. docs/format.md lists every type with its fields.

`check` is the one place where a foreign site's payload is parsed: what passes has the shape that receivers rely
on, what does not becomes a dead letter.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from spoolagent.format.clock import MAX_NS, within
from spoolagent.format.layout import MAX_SEQ
from spoolagent.format.values import number

TYPES = frozenset(
    [
        "run_start",
        "metrics",
        "param",
        "tag",
        "text",
        "image",
        "histogram",
        "audio",
        "video",
        "table",
        "artifact",
        "model",
        "hparams",
        "summary",
        "define_metric",
        "alert",
        "log",
        "system",
        "tb_summary",
        "rewind",
        "gap",
        "run_end",
        "custom",
    ]
)


class Event(NamedTuple):
    """One event. `data` is the whole JSON object, its own fields beside seq, time, type and crc."""

    seq: int
    time_ns: int
    """When the call was made, in nanoseconds since the epoch."""
    type: str
    data: dict[str, Any]

    @property
    def wall_ns(self) -> int:
        """The time to show in a tracker: the caller's own (`at`) where one was given, else that of the call."""
        at = self.data.get("at")
        return self.time_ns if at is None else at

    @property
    def step(self) -> int | None:
        """The step that the caller gave, or None."""
        return self.data.get("step")


def column_numbers(event: Event) -> dict[str, float | int]:
    """The numbers in a `custom` event named `wandb.value`: those of nested dictionaries by names joined with ".".

    For trackers that know numbers only. Booleans count as 0 and 1; lists and texts are no numbers. Empty for
    any other event.
    """
    data = event.data.get("data")
    if (
        event.data.get("name") != "wandb.value"
        or not isinstance(data, dict)
        or not isinstance(data.get("key"), str)
    ):
        return {}
    found: dict[str, float | int] = {}
    _collect(data["key"], data.get("value"), found)
    return found


def _collect(name: str, value: Any, found: dict[str, float | int]) -> None:
    if isinstance(value, bool | int | float):
        found[name] = int(value) if isinstance(value, bool) else value
    elif isinstance(value, dict):
        if value.keys() == {"$float"}:
            found[name] = number(value["$float"])
            return
        for key, inner in value.items():
            _collect(f"{name}.{key.removeprefix('$')}", inner, found)


def parse_event(data: dict[str, Any]) -> Event | None:
    """The event of a decoded line, or None when seq, time or type are not what they must be."""
    seq, time_ns, kind = data.get("seq"), data.get("time"), data.get("type")
    if type(seq) is not int or not 0 < seq <= MAX_SEQ:
        return None
    if type(time_ns) is int and type(kind) is str:
        # A wrong clock is no reason to lose what it was asked for.
        return Event(seq, within(time_ns), kind, data)
    return None


def check(event: Event) -> str | None:
    """Why the event's payload is not what its type promises, or None when it is fine.

    An unknown type is reported too: it is a dead letter that can be retried after an upgrade.
    """
    if type(event.type) is not str or type(event.time_ns) is not int or not 0 <= event.time_ns <= MAX_NS:
        return "time or type is not what an event has"
    rule = _RULES.get(event.type)
    if rule is None:
        return f"unknown event type {event.type!r}: upgrade spoolagent, then retry the dead letter"
    data = event.data
    step, at = data.get("step"), data.get("at")
    if step is not None and (type(step) is not int or not -(2**63) <= step < 2**63):
        return "step is not a 64-bit integer"
    if at is not None and (type(at) is not int or not -(2**63) <= at < 2**63):
        return "at is not a 64-bit number of nanoseconds"
    try:
        rule(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"malformed {event.type} event: {type(error).__name__}: {error}"
    return None


# Each rule raises KeyError, TypeError or ValueError for a payload that is not of the documented shape.


def _is(value: object, kind: type | tuple[type, ...], what: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{what} is {type(value).__name__}")


def _maybe(data: dict[str, Any], kind: type | tuple[type, ...], *names: str) -> None:
    for name in names:
        if data.get(name) is not None:
            _is(data[name], kind, name)


def _metrics(data: dict[str, Any]) -> None:
    for value in data["metrics"].values():
        if type(value) is not float:
            number(value)
    context = data.get("context")
    if context is not None:
        _strings(context)


def _strings(value: object) -> None:
    _is(value, dict, "a mapping of strings")
    assert isinstance(value, dict)
    for item in value.values():
        if item is not None:
            _is(item, str, "a value")


def _start(data: dict[str, Any]) -> None:
    _maybe(
        data,
        str,
        "api",
        "project",
        "experiment",
        "name",
        "group",
        "job_type",
        "notes",
        "host",
        "parent",
        "entity",
    )
    _maybe(data, int, "rank", "attempt", "pid")
    _maybe(data, dict, "config")
    _maybe(data, list, "labels")
    _strings(data.get("tags") or {})
    for label in data.get("labels") or []:
        _is(label, str, "a label")


def _param(data: dict[str, Any]) -> None:
    _is(data["params"], dict, "params")
    _maybe(data, bool, "overwrite")


def _key(data: dict[str, Any]) -> None:
    _is(data["key"], str, "key")


def blob(value: Any) -> None:
    """Raises unless `value` is a reference to a blob: {"sha256": <64 hex digits>, "size": <bytes>}."""
    digest, size = value["sha256"], value["size"]
    if type(digest) is not str or len(digest) != 64 or digest.strip("0123456789abcdef"):
        raise ValueError("sha256 is not 64 hex digits")
    if type(size) is not int or size < 0:
        raise ValueError("size is not a number of bytes")


def _text(data: dict[str, Any]) -> None:
    _key(data)
    _maybe(data, str, "path")
    blob(data["blob"]) if data.get("blob") is not None else _is(data["text"], str, "text")


def _image(data: dict[str, Any]) -> None:
    _media(data)
    if data["encoding"] != "raw":
        return
    height, width, channels = data["height"], data["width"], data["channels"]
    if (
        min(height, width) < 0
        or channels not in (1, 2, 3, 4)
        or height * width * channels != data["blob"]["size"]
    ):
        raise ValueError("raw image: height x width x channels is not the size of its blob")


def _media(data: dict[str, Any]) -> None:
    _key(data)
    blob(data["blob"])
    _is(data["encoding"], str, "encoding")
    _maybe(data, str, "caption", "path")
    _maybe(data, int, "height", "width", "channels", "index", "count")


def _histogram(data: dict[str, Any]) -> None:
    _key(data)
    limits, counts = data["limits"], data["counts"]
    if len(limits) != len(counts) or not limits:
        raise ValueError("limits and counts must have the same length, at least 1")
    for value in (*limits, *counts, data["min"], data["max"], data["num"], data["sum"], data["sum_squares"]):
        number(value)


def _table(data: dict[str, Any]) -> None:
    _key(data)
    _maybe(data, str, "path")
    if data.get("blob") is not None:
        blob(data["blob"])
        return
    for name in data["columns"]:
        _is(name, (str, int), "a column")
    for row in data["data"]:
        if len(row) != len(data["columns"]):
            raise ValueError("a row is not as long as columns")


def _artifact(data: dict[str, Any]) -> None:
    _maybe(data, str, "path", "name", "kind")
    for file in data["files"]:
        _relative(file["path"])
        blob(file["blob"])
    if data.get("path"):
        _relative(data["path"])


def _relative(path: Any) -> None:
    parts = path.split("/")
    if "\0" in path or "\\" in path or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{path!r} is not a relative path inside the run")


def _hparams(data: dict[str, Any]) -> None:
    _is(data["hparams"], dict, "hparams")
    for value in data["metrics"].values():
        number(value)
    _maybe(data, str, "run_name")


def _custom(data: dict[str, Any]) -> None:
    _is(data["name"], str, "name")
    data["data"]


def _end(data: dict[str, Any]) -> None:
    if data["status"] not in ("finished", "failed", "killed"):
        raise ValueError("status is not finished, failed or killed")
    _maybe(data, int, "exit_code")


def _gap(data: dict[str, Any]) -> None:
    for name in ("dropped", "from", "to"):
        _is(data[name], int, name)
    _is(data["reason"], str, "reason")


def _rewind(data: dict[str, Any]) -> None:
    _is(data["step"], int, "step")


def _summary(data: dict[str, Any]) -> None:
    _is(data["summary"], dict, "summary")


def _named(data: dict[str, Any]) -> None:
    _is(data["name"], str, "name")


def _alert(data: dict[str, Any]) -> None:
    _is(data["title"], str, "title")
    _maybe(data, str, "text", "level")


def _log(data: dict[str, Any]) -> None:
    _is(data["message"], str, "message")
    _maybe(data, str, "level", "logger")


def _tags(data: dict[str, Any]) -> None:
    _strings(data["tags"])


def _tb_summary(data: dict[str, Any]) -> None:
    _key(data)
    _maybe(data, str, "part")
    blob(data["blob"]) if data.get("blob") is not None else _is(data["base64"], str, "base64")


_RULES: dict[str, Callable[[dict[str, Any]], None]] = {
    "run_start": _start,
    "metrics": _metrics,
    "param": _param,
    "tag": _tags,
    "text": _text,
    "image": _image,
    "histogram": _histogram,
    "audio": _media,
    "video": _media,
    "table": _table,
    "artifact": _artifact,
    "model": _artifact,
    "hparams": _hparams,
    "summary": _summary,
    "define_metric": _named,
    "alert": _alert,
    "log": _log,
    "system": _metrics,
    "tb_summary": _tb_summary,
    "rewind": _rewind,
    "gap": _gap,
    "run_end": _end,
    "custom": _custom,
}
