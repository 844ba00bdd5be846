"""Files of a run: their names, made from (writer, seq) or taken from the event, and their bytes.

`log_image(key=, step=)` of MLflow names its files `images/<key>+step+<step>+timestamp+<ms>+<uuid>.png`, with a
small `+compressed.webp` beside each, and its image view finds them by these names. The uuid here is a UUIDv5 of
(writer, seq), so that a repeat overwrites the same files.
"""

import io
import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import orjson

from spoolagent.format.events import Event
from spoolagent.format.plain import plain_size
from spoolagent.format.values import from_json
from spoolagent.receivers.mlflow_names import escape_key

_SPACE = uuid.UUID("5b4bd2a6-0f0e-5d0c-9f3f-0c8a7f1d6a11")
_EXTENSION = re.compile(r"[a-z0-9]{1,8}")
_SMALL_PIXELS = 256
"""Longer side of MLflow's preview images."""


class MissingError(Exception):
    """A blob that an event names is not there; the message says which."""


@dataclass(frozen=True, slots=True)
class File:
    """One artifact file: its relative path, and what makes its content (bytes, or a file to copy)."""

    path: str
    content: Callable[[], bytes] | str
    is_escaped: bool = False
    """True when the path is in MLflow's form already."""


def blob_file(blobs: str, blob: dict[str, Any]) -> str:
    """The path of a blob. Raises MissingError when it is not there in its full size."""
    digest = blob["sha256"]
    path = os.path.join(blobs, digest[:2], digest)
    try:
        size = plain_size(path)
    except OSError:
        raise MissingError(f"blob {digest} is not in {blobs}: ship it, then retry") from None
    if size != blob["size"]:
        raise MissingError(
            f"blob {digest} in {blobs} has {size} bytes, not {blob['size']}: ship it again, then retry"
        )
    return path


def named(kind: str, event: Event, writer: str, extension: str) -> str:
    """`<kind>/<key>/<step>-<writer>-<seq>.<extension>`: sorts by step, and is the same at each delivery."""
    step = "" if event.step is None else f"{event.step:08d}-"
    suffix = extension.lower() if _EXTENSION.fullmatch(extension.lower()) else "bin"
    return f"{kind}/{_folder(event.data['key'])}/{step}{writer}-{event.seq:08d}.{suffix}"


def _folder(key: str) -> str:
    return "/".join(part for part in key.split("/") if part not in ("", ".", "..")) or "_"


def files_of(event: Event, writer: str, blobs: str) -> Iterator[File]:
    """The files that a text, image, audio, video, artifact or model event becomes. Raises MissingError."""
    if event.type in ("artifact", "model"):
        folder = event.data.get("path") or ""
        for file in event.data["files"]:
            path = f"{folder}/{file['path']}" if folder else file["path"]
            yield File(path, blob_file(blobs, file["blob"]))
    elif event.type == "text":
        yield _text(event, writer, blobs)
    elif event.type == "image":
        yield from _image(event, writer, blobs)
    else:
        extension = event.data["encoding"]
        path = event.data.get("path") or named(event.type, event, writer, extension)
        yield File(path, blob_file(blobs, event.data["blob"]))


def _text(event: Event, writer: str, blobs: str) -> File:
    path = event.data.get("path") or named("text", event, writer, "txt")
    blob, text = event.data.get("blob"), event.data.get("text")
    return File(path, blob_file(blobs, blob) if blob is not None else lambda: str(text).encode())


def milliseconds(event: Event) -> int:
    """The event's time as MLflow keeps it, which refuses what is before 1970."""
    return max(0, event.wall_ns // 1_000_000)


def _image(event: Event, writer: str, blobs: str) -> Iterator[File]:
    data = dict(event.data)
    source = blob_file(blobs, data["blob"])
    if data.get("path"):
        yield _as_is(data, data["path"], source)
        return
    ident = uuid.uuid5(_SPACE, f"{writer}/{event.seq}")
    stem = f"images/{escape_key(data['key'])}+step+{event.step or 0}+timestamp+{milliseconds(event)}+{ident}"
    if not _has_pillow():
        extension = "png" if data["encoding"] == "raw" else data["encoding"]
        yield replace(_as_is(data, f"{stem}.{extension}", source), is_escaped=True)
        return
    yield replace(_as_is(data, f"{stem}.png", source), is_escaped=True)
    small = f"{stem}+compressed.webp"
    yield File(small, lambda: _convert(_encoded(data, source), "WEBP", small=True), is_escaped=True)


def _as_is(data: dict[str, Any], path: str, source: str) -> File:
    """The image under `path`: its own bytes when the extension fits them, else converted by Pillow."""
    wanted = {
        ".png": "PNG",
        ".jpg": "JPEG",
        ".jpeg": "JPEG",
        ".gif": "GIF",
        ".bmp": "BMP",
        ".webp": "WEBP",
    }.get(os.path.splitext(path)[1].lower())
    encoding = "PNG" if data["encoding"] == "raw" else str(data["encoding"]).upper()
    if wanted in (None, encoding) or not _has_pillow():
        return File(path, source if data["encoding"] != "raw" else lambda: _encoded(data, source))
    return File(path, lambda: _convert(_encoded(data, source), str(wanted)))


def _encoded(data: dict[str, Any], source: str) -> bytes:
    with open(source, "rb") as file:
        content = file.read()
    if data["encoding"] != "raw":
        return content
    from spoolagent.receivers.pixels import encode_png

    return encode_png(content, data["height"], data["width"], data["channels"])


def _has_pillow() -> bool:
    try:
        import PIL.Image  # noqa: F401 - only whether it is there
    except ImportError:
        return False
    return True


def _convert(content: bytes, wanted: str, *, small: bool = False) -> bytes:
    """`content` in another image format. What Pillow cannot read or write stays as it is."""
    from PIL import Image

    out = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content)) as opened:
            image: Image.Image = opened
            if small:
                scale = _SMALL_PIXELS / max(image.size)
                image = image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))
            if wanted == "JPEG" and image.mode not in ("L", "RGB"):
                image = image.convert("RGB")
            image.save(out, wanted)
    except (OSError, ValueError, Image.DecompressionBombError):
        return content
    return out.getvalue()


def table_of(event: Event, blobs: str) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table event. Raises MissingError, or ValueError when its blob holds no table."""
    data = event.data
    if data.get("blob") is None:
        return data["columns"], data["data"]
    with open(blob_file(blobs, data["blob"]), "rb") as file:
        held = orjson.loads(file.read())
    return list(held["columns"]), list(held["data"])


def join_tables(parts: list[tuple[list[str], list[list[Any]]]]) -> bytes:
    """One JSON table, in the shape that MLflow's `log_table` writes, from the rows of several calls.

    A column that a call did not give is null in its rows, as pandas.concat makes it.
    """
    columns = list(dict.fromkeys(name for names, _ in parts for name in names))
    rows = []
    for names, data in parts:
        place = {name: i for i, name in enumerate(names)}
        rows += [[row[place[name]] if name in place else None for name in columns] for row in data]
    return orjson.dumps({"columns": columns, "data": [[_cell(value) for value in row] for row in rows]})


def _cell(value: Any) -> Any:
    """A cell without the spool's tags: JSON has no NaN (null, as pandas writes it) and no bytes."""
    if not isinstance(value, (dict, list)):
        return value
    plain = from_json(value)
    if isinstance(plain, float):
        return None
    if isinstance(plain, bytes):
        return value["$bytes"] if isinstance(value, dict) else None
    if isinstance(plain, int):
        return str(plain)
    if isinstance(value, list):
        return [_cell(item) for item in value]
    return {key: _cell(item) for key, item in value.items()} if isinstance(value, dict) else value
