"""Media and files of a run: where they lie below a log's `files/`, and the JSON by which W&B finds them."""

import filecmp
import hashlib
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, cast

import orjson

from spoolagent.errors import Transient
from spoolagent.format.durable import make_dirs, publish, temporary, write_all, write_file
from spoolagent.format.events import Event
from spoolagent.format.plain import UNREADABLE, plain_size
from spoolagent.format.values import from_json, number
from spoolagent.receivers.pixels import encode_png, image_size
from spoolagent.receivers.wandb_names import file_part

MAX_BINS = 512
"""W&B shows no histogram with more bins."""
_RESERVED = frozenset({"config.yaml", "wandb-summary.json", "wandb-metadata.json", "output.log"})
"""Names at the top of `files/` that W&B itself writes."""
_FOLDERS = {"image": "media/images", "audio": "media/audio", "video": "media/videos"}


class Unusable(ValueError):
    """An event that can never become a file or a value here; the message says why."""


@dataclass(frozen=True, slots=True)
class RunFile:
    """A file of the run: its path below `files/`, and its bytes or the blob to copy."""

    path: str
    data: bytes | None = None
    source: str | None = None


def blob_file(blobs: str, blob: dict[str, Any]) -> str:
    """The path of a blob. Raises Unusable when it is not there whole."""
    digest = blob["sha256"]
    path = os.path.join(blobs, digest[:2], digest)
    try:
        whole = plain_size(path) == blob["size"]
    except OSError:
        whole = False
    if not whole:
        raise Unusable(f"blob {digest} is not in {blobs}: ship it, then retry the dead letter")
    return path


def read_blob(blobs: str, blob: dict[str, Any]) -> bytes:
    """The bytes of a blob. Raises Unusable when it is not there whole."""
    return _read(blob_file(blobs, blob))


def _read(path: str, size: int = -1) -> bytes:
    """At most `size` bytes of a blob. Raises Unusable."""
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        raise Unusable(f"{path}: {error.strerror}: mend it, then retry the dead letter") from error


def reference(value: Any) -> dict[str, Any]:
    """A blob reference of an event that `check` does not look into. Raises Unusable for anything else."""
    digest = value.get("sha256") if isinstance(value, dict) else None
    if (
        not isinstance(digest, str)
        or re.fullmatch("[0-9a-f]{64}", digest) is None
        or not isinstance(value.get("size"), int)
    ):
        raise Unusable("blob is no reference to a blob")
    return cast(dict[str, Any], value)


def media(event: Event, blobs: str) -> tuple[RunFile, dict[str, Any]]:
    """The file of an image, audio or video event and its value in the row."""
    data = event.data
    extension = "".join(c for c in str(data["encoding"]) if c.isalnum())[:8] or "bin"
    if data["encoding"] == "raw":
        try:
            content = encode_png(
                read_blob(blobs, data["blob"]), data["height"], data["width"], data["channels"]
            )
        except ValueError as error:
            raise Unusable(str(error)) from error
        digest, size, extension = hashlib.sha256(content).hexdigest(), len(content), "png"
        file = RunFile(_media_path(event, digest, extension), data=content)
    else:
        digest, size = data["blob"]["sha256"], data["blob"]["size"]
        file = RunFile(_media_path(event, digest, extension), source=blob_file(blobs, data["blob"]))
    value = {"_type": f"{event.type}-file", "path": file.path, "sha256": digest, "size": size}
    if data.get("caption"):
        value["caption"] = data["caption"]
    if event.type != "image":
        return file, value
    height, width = data.get("height"), data.get("width")
    if height is None or width is None:
        head = file.data if file.data is not None else _read(str(file.source), 1 << 20)
        height, width = image_size(head) or (0, 0)
    value |= {"format": extension, "height": height, "width": width}
    return file, _in_list(value) if (data.get("count") or 1) > 1 else value


def _in_list(value: dict[str, Any]) -> dict[str, Any]:
    """One image of a list; the row joins the parts."""
    return {
        "_type": "images/separated",
        "width": value["width"],
        "height": value["height"],
        "format": value["format"],
        "count": 1,
        "filenames": [value["path"]],
        "captions": [value.get("caption", "")],
    }


def media_stem(event: Event) -> str:
    """`<key>_<step>`, with the event's seq where there is no step."""
    return f"{file_part(event.data['key'])}_{event.seq if event.step is None else event.step}"


def _media_path(event: Event, digest: str, extension: str) -> str:
    return f"{_FOLDERS[event.type]}/{media_stem(event)}_{digest[:20]}.{extension.lower()}"


def table(event: Event, blobs: str) -> tuple[RunFile, dict[str, Any]]:
    """The file of a table event and its value in the row."""
    held = event.data
    if held.get("blob") is not None:
        try:
            held = orjson.loads(read_blob(blobs, held["blob"]))
            columns, rows = list(held["columns"]), list(held["data"])
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise Unusable(f"the blob of the table holds no table: {error}") from error
    else:
        columns, rows = held["columns"], held["data"]
    content = orjson.dumps({"columns": columns, "data": [[_cell(cell) for cell in row] for row in rows]})
    digest = hashlib.sha256(content).hexdigest()
    path = f"media/table/{media_stem(event)}_{digest[:20]}.table.json"
    value = {"_type": "table-file", "path": path, "sha256": digest, "size": len(content)}
    return RunFile(path, data=content), {**value, "ncols": len(columns), "nrows": len(rows)}


def _cell(value: Any) -> Any:
    if not isinstance(value, dict | list):
        return value
    plain = from_json(value)
    return (
        plain if isinstance(plain, dict | list | float) else str(plain)
    )  # orjson writes NaN as null, as wandb does


def histogram(data: dict[str, Any]) -> dict[str, Any]:
    """A histogram event as W&B's value: counts, and one edge more than counts."""
    counts = [number(value) for value in data["counts"]]
    low, high = number(data["min"]), number(data["max"])
    left = data.get("left")
    edges = [low if left is None else number(left), *(number(edge) for edge in data["limits"])]
    # TensorBoard's outermost edges are +-1.8e308; no chart can show them
    edges = [min(max(edge, low), high) if abs(edge) > 1e300 else edge for edge in edges]
    if len(counts) > MAX_BINS:
        each = -(-len(counts) // MAX_BINS)
        counts = [sum(counts[i : i + each]) for i in range(0, len(counts), each)]
        edges = [*edges[:-1:each], edges[-1]]
    return {"_type": "histogram", "values": counts, "bins": edges}


def relative(path: str) -> str:
    """`path`, a user's own name for a file of the run. Raises Unusable unless it lies inside the run."""
    parts = path.split("/")
    if (
        "\0" in path
        or "\\" in path
        or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
    ):
        raise Unusable(f"{path!r} is not a relative path inside the run")
    return f"artifacts/{path}" if parts[0] in _RESERVED else path


def html(file: RunFile) -> dict[str, Any]:
    """The value of a page that is a file of the run."""
    data = file.data
    if data is None:
        data = _read(str(file.source))
    return {
        "_type": "html-file",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        "path": file.path,
    }


def artifact(event: Event, blobs: str) -> list[RunFile]:
    """The files of an artifact or model event: under its path, else under `artifacts/<name>`."""
    folder, name = event.data.get("path"), event.data.get("name")
    prefix = f"{folder}/" if folder else f"artifacts/{file_part(name)}/" if name else ""
    return [
        RunFile(relative(prefix + file["path"]), source=blob_file(blobs, file["blob"]))
        for file in event.data["files"]
    ]


def refusal(folder: str, path: str, taken: Collection[str]) -> str | None:
    """Why a file can never lie at `path` below `folder`, where `taken` will lie too. None when it can."""
    parts = path.split("/")
    for depth in range(1, len(parts)):
        front = "/".join(parts[:depth])
        place = os.path.join(folder, front)
        if front in taken or (os.path.lexists(place) and (os.path.islink(place) or not os.path.isdir(place))):
            return f"{path}: {place} is not a directory"
    if os.path.isdir(os.path.join(folder, path)) or any(other.startswith(f"{path}/") for other in taken):
        return f"{path}: it is a directory"
    return None


def write_files(folder: str, files: Iterable[RunFile]) -> None:
    """Puts the files below `folder`, durably; one that is there with the same content is left alone.

    Raises Transient when the file system refuses.
    """
    for file in files:
        path = os.path.join(folder, file.path)
        try:
            make_dirs(os.path.dirname(path))
            if file.source is not None:
                _copy(file.source, path)
            elif file.data is not None and not _holds(path, file.data):
                write_file(path, file.data)
        except OSError as error:
            raise Transient(
                f"{path}: {error.strerror or error}: make room or mend the file system"
            ) from error


def _holds(path: str, data: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(data) + 1) == data
    except FileNotFoundError:
        return False


def _copy(source: str, path: str) -> None:
    if os.path.isfile(path) and filecmp.cmp(source, path, shallow=False):
        return
    with open(source, "rb") as origin, temporary(path) as (fd, temp):
        while chunk := origin.read(1 << 20):
            write_all(fd, chunk, temp)
        publish(fd, temp, path)
