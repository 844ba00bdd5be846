"""What each event type becomes in an event file: the records that torch's SummaryWriter would have written.

Decisions: a missing step is step 0, as in `add_scalar(tag, value)`. Images of a list get tags `key/0`, `key/1`.
A text that is a file of the run is shown under its key. A GIF is an image, other videos have no representation.
"""

import base64
import binascii
import hashlib
import io
import json
import os
import struct
import wave
from collections.abc import Callable
from typing import Any

from spoolagent.format.events import Event, column_numbers
from spoolagent.format.plain import UNREADABLE, open_plain
from spoolagent.format.values import from_json, number
from spoolagent.receivers import tb_encode as tb
from spoolagent.receivers.pixels import encode_png, image_size

QUIET = frozenset({"run_start", "run_end", "gap"})
"""Types that say something about the run and are not payload: neither shown nor counted as skipped."""

Records = tuple[str, bytes]
"""A sub-run ("" for the run itself) and the records for its event file."""


class Undeliverable(ValueError):
    """Why one event can never be shown here."""


def encode(event: Event, blobs: str) -> Records | None:
    """The event's records, or None when TensorBoard has no way to show it.

    `blobs` is the site's blob directory. Raises Undeliverable, or another ValueError for a payload that is
    outside what the format can hold.
    """
    make = _ENCODERS.get(event.type)
    if make is None:
        return None
    try:
        return make(event, blobs)
    except (OverflowError, struct.error, TypeError, KeyError, AttributeError, binascii.Error) as error:
        raise Undeliverable(f"malformed {event.type} event: {type(error).__name__}: {error}") from error


def subrun(event: Event) -> str:
    """The part of the run that the event belongs to; "" is the run itself."""
    context = event.data.get("context")
    return (context.get("subrun") or "") if context else ""


def text_record(wall_ns: int, step: int | None, tag: str, text: bytes) -> bytes:
    """The record of `add_text`."""
    tensor = (
        tb.field_int(1, 7)
        + tb.field_bytes(2, tb.field_bytes(2, tb.field_int(1, 1)))
        + tb.field_bytes(8, text)
    )
    metadata = _plugin("text", b"")
    summary = tb.value(f"{tag}/text_summary", tb.field_bytes(8, tensor), tb.field_bytes(9, metadata))
    return tb.summary_event(wall_ns / tb.NS, step, summary)


def read_blob(blobs: str, reference: dict[str, Any]) -> bytes:
    """The blob's bytes. Raises Undeliverable when it is missing or not what its name says."""
    digest = reference["sha256"]
    path = os.path.join(blobs, digest[:2], digest)
    try:
        with open_plain(path) as file:
            data = file.read()
    except FileNotFoundError as error:
        raise Undeliverable(f"{path} is missing: ship the blobs again, then retry the dead letter") from error
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        raise Undeliverable(f"{path}: {error.strerror}: mend it, then retry the dead letter") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise Undeliverable(f"{path} is damaged: ship the blob again, then retry the dead letter")
    return data


def _metrics(event: Event, _blobs: str) -> Records:
    wall_ns, step = event.wall_ns, event.step
    kind = event.data.get("tensor")
    metrics = {name: number(value) for name, value in event.data["metrics"].items()}
    if kind is None:
        made = [tb.scalar(wall_ns, step, name, value) for name, value in metrics.items()]
    else:
        made = [
            tb.summary_event(wall_ns / tb.NS, step, tb.tensor_scalar(name, value, double=kind == "float64"))
            for name, value in metrics.items()
        ]
    return subrun(event), b"".join(made)


def _custom(event: Event, _blobs: str) -> Records | None:
    """Numbers that W&B's API logs nested or as booleans."""
    numbers = column_numbers(event)
    if not numbers:
        return None
    wall_ns, step = event.wall_ns, event.step
    return subrun(event), b"".join(tb.scalar(wall_ns, step, name, value) for name, value in numbers.items())


def _text(event: Event, blobs: str) -> Records:
    data = event.data
    text = read_blob(blobs, data["blob"]) if data.get("blob") is not None else data["text"].encode()
    return subrun(event), text_record(event.wall_ns, event.step, data["key"], text)


def _image(event: Event, blobs: str) -> Records:
    data = event.data
    encoded = read_blob(blobs, data["blob"])
    if data["encoding"] == "raw":
        encoded = encode_png(encoded, data["height"], data["width"], data["channels"])
    height, width = data.get("height"), data.get("width")
    if height is None or width is None:
        height, width = image_size(encoded) or (0, 0)
    image = (
        tb.field_int(1, height)
        + tb.field_int(2, width)
        + tb.field_int(3, data.get("channels") or 3)
        + tb.field_bytes(4, encoded)
    )
    tag = f"{data['key']}/{data.get('index') or 0}" if (data.get("count") or 1) > 1 else data["key"]
    return subrun(event), tb.summary_event(
        event.wall_ns / tb.NS, event.step, tb.value(tag, tb.field_bytes(4, image))
    )


def _video(event: Event, blobs: str) -> Records | None:
    return _image(event, blobs) if event.data["encoding"] == "gif" else None


def _histogram(event: Event, _blobs: str) -> Records:
    data = event.data
    parts = [tb.field_double(i, number(data[name])) for i, name in enumerate(_HISTOGRAM, 1)]
    limits, counts = list(map(number, data["limits"])), list(map(number, data["counts"]))
    if data.get("left") is not None and counts[0]:
        # HistogramProto has right edges only: as torch does, an empty bin in front tells where the first begins.
        limits, counts = [number(data["left"]), *limits], [0, *counts]
    parts += [tb.field_doubles(6, limits), tb.field_doubles(7, counts)]
    summary = tb.value(data["key"], tb.field_bytes(5, b"".join(parts)))
    return subrun(event), tb.summary_event(event.wall_ns / tb.NS, event.step, summary)


_HISTOGRAM = ("min", "max", "num", "sum", "sum_squares")


def _audio(event: Event, blobs: str) -> Records:
    data = event.data
    encoded = read_blob(blobs, data["blob"])
    rate, channels, frames = (data.get(name) for name in ("sample_rate", "channels", "frames"))
    if data["encoding"] == "wav" and None in (rate, channels, frames):
        try:
            with wave.open(io.BytesIO(encoded)) as file:
                rate, channels, frames = file.getframerate(), file.getnchannels(), file.getnframes()
        except (wave.Error, EOFError) as error:
            raise Undeliverable(f"not a WAV file: {error}") from error
    audio = (
        tb.field_float(1, rate or 0)
        + tb.field_int(2, channels or 1)
        + tb.field_int(3, frames or 0)
        + tb.field_bytes(4, encoded)
        + tb.field_text(5, f"audio/{data['encoding']}")
    )
    summary = tb.value(data["key"], tb.field_bytes(6, audio))
    return subrun(event), tb.summary_event(event.wall_ns / tb.NS, event.step, summary)


def _tb_summary(event: Event, blobs: str) -> Records:
    data = event.data
    if data.get("blob") is not None:
        summary = read_blob(blobs, data["blob"])
    else:
        summary = base64.b64decode(data["base64"], validate=True)
    part = data.get("part") or "summary"
    _check_message(part, summary)
    return subrun(event), tb.event(event.wall_ns / tb.NS, event.step, _PARTS[part], summary)


_PARTS = {"graph_def": 4, "summary": 5, "tagged_run_metadata": 8}
"""Field numbers of event.proto."""


def _check_message(part: str, data: bytes) -> None:
    """Bytes that are no such message would stop TensorBoard at this record for good."""
    if part not in _PARTS:
        raise Undeliverable(f"unknown part {part!r} of an event: upgrade spoolagent, then retry")
    try:
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto import event_pb2, graph_pb2, summary_pb2
    except ImportError as error:
        raise Undeliverable(
            "tensorboard is missing: pip install 'spoolagent[tensorboard]', then retry"
        ) from error
    kinds: dict[str, Any] = {  # generated at import, without stubs
        "graph_def": getattr(graph_pb2, "GraphDef"),  # noqa: B009
        "summary": getattr(summary_pb2, "Summary"),  # noqa: B009
        "tagged_run_metadata": getattr(event_pb2, "TaggedRunMetadata"),  # noqa: B009
    }
    try:
        kinds[part].FromString(data)
    except DecodeError as error:
        raise Undeliverable(f"not a serialized tensorboard {part}: {error}") from error


def _artifact(event: Event, _blobs: str) -> Records | None:
    """Files that TensorBoard reads are put into the run's directory by the receiver; there is no record of them."""
    return (subrun(event), b"") if is_beside(event) else None


def is_beside(event: Event) -> bool:
    """Whether the event is of files that lie beside the event file."""
    return event.type == "artifact" and event.data.get("kind") == "tensorboard"


def beside(event: Event, blobs: str) -> dict[str, bytes]:
    """The files of such an event by their paths below the run's directory. Raises Undeliverable."""
    made = {}
    for file in event.data["files"]:
        path = file["path"]
        if "\0" in path or "tfevents" in path or any(not p or p.startswith(".") for p in path.split("/")):
            raise Undeliverable(f"{path!r} is not a path below a run's directory")
        made[path] = read_blob(blobs, file["blob"])
    return made


def _rewind(event: Event, _blobs: str) -> Records:
    wall_s, step = event.wall_ns / tb.NS, event.data["step"]
    return subrun(event), tb.file_version(wall_s, step) + tb.session_start(wall_s, step)


def _hparams(event: Event, _blobs: str) -> Records:
    data = event.data
    wall_ns, step = event.wall_ns, event.step
    name = data.get("run_name") or str(wall_ns / tb.NS)
    outer = subrun(event)
    where = outer if name == "." else f"{outer}/{name}" if outer else name
    made = [tb.summary_event(wall_ns / tb.NS, step, summary) for summary in _hparams_summaries(data)]
    made += [tb.scalar(wall_ns, step, key, number(value)) for key, value in data["metrics"].items()]
    return where, b"".join(made)


def _hparams_summaries(data: dict[str, Any]) -> list[bytes]:
    """The three summaries of the hparams plugin: the experiment, the session's start, its end."""
    domain = data.get("domain") or {}
    infos, entries = [], []
    for name, raw in data["hparams"].items():
        key = name[1:] if name.startswith("$$") else name
        value = from_json(raw)
        if value is None:
            continue
        encoded = _struct_value(value)
        kind = (
            3 if isinstance(value, (int, float)) else 1
        )  # DATA_TYPE_FLOAT64 (torch: for bools, too), _STRING
        choices = domain.get(name)
        listed = b"" if choices is None else tb.field_bytes(5, _list_value(choices))
        infos.append(tb.field_bytes(4, tb.field_text(1, key) + tb.field_int(4, kind) + listed))
        entries.append(tb.field_bytes(1, tb.field_bytes(1, key.encode()) + tb.field_bytes(2, encoded)))
    metrics = [tb.field_bytes(5, tb.field_bytes(1, tb.field_text(2, name))) for name in data["metrics"]]
    return [
        _hparams_value("experiment", tb.field_bytes(2, b"".join(infos + metrics))),
        _hparams_value("session_start_info", tb.field_bytes(3, b"".join(entries))),
        _hparams_value("session_end_info", tb.field_bytes(4, tb.field_int(1, 1))),  # STATUS_SUCCESS
    ]


def _hparams_value(name: str, content: bytes) -> bytes:
    return tb.value(f"_hparams_/{name}", tb.field_bytes(9, _plugin("hparams", content)))


def _struct_value(value: Any) -> bytes:
    """A google.protobuf.Value: a number, or a string (JSON for what is neither)."""
    if isinstance(value, (int, float)):
        return b"\x11" + struct.pack("<d", value)
    text = value if isinstance(value, str) else json.dumps(value, default=repr)
    return tb.field_bytes(3, text.encode())


def _list_value(choices: Any) -> bytes:
    return b"".join(tb.field_bytes(1, _struct_value(from_json(choice))) for choice in choices)


def _plugin(name: str, content: bytes) -> bytes:
    """A SummaryMetadata that names a plugin."""
    return tb.field_bytes(1, tb.field_text(1, name) + (tb.field_bytes(2, content) if content else b""))


_ENCODERS: dict[str, Callable[[Event, str], Records | None]] = {
    "metrics": _metrics,
    "custom": _custom,
    "text": _text,
    "image": _image,
    "video": _video,
    "histogram": _histogram,
    "artifact": _artifact,
    "audio": _audio,
    "tb_summary": _tb_summary,
    "rewind": _rewind,
    "hparams": _hparams,
}
