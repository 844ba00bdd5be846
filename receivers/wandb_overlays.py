"""Boxes and masks drawn over an image, as our W&B writer puts them beside an `image` event.

`files` holds `boxes.json` ({name: {"box_data", "class_labels"}}) and one file for each of `masks`
([{"name", "file", "encoding", "height", "width", "channels"}]).
"""

import hashlib
from typing import Any

import orjson

from spoolagent.format.events import Event
from spoolagent.format.values import from_json
from spoolagent.receivers.pixels import encode_png
from spoolagent.receivers.wandb_media import RunFile, Unusable, media_stem, read_blob, reference


def overlays(event: Event, blobs: str) -> tuple[list[RunFile], dict[str, Any]]:
    """The files, and what they add to the image's value. Raises Unusable when they are not of this shape."""
    data = event.data
    if not data.get("files"):
        return [], {}
    try:
        held = {file["path"]: reference(file["blob"]) for file in data["files"]}
        boxes = from_json(orjson.loads(read_blob(blobs, held["boxes.json"]))) if "boxes.json" in held else {}
        made = [_box(event, name, box) for name, box in boxes.items()]
        masks = data.get("masks") or []
        made += [_mask(event, mask, read_blob(blobs, held[mask["file"]])) for mask in masks]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Unusable(f"boxes or masks of the image: {error}") from error
    value: dict[str, Any] = {}
    for kind, name, _, said in made:
        value.setdefault(kind, {})[name] = said
    return [file for _, _, file, _ in made], value


def _box(event: Event, name: str, box: Any) -> tuple[str, str, RunFile, dict[str, Any]]:
    content = orjson.dumps(box)
    digest = hashlib.sha256(content).hexdigest()
    path = f"media/metadata/boxes2D/{media_stem(event)}_{digest[:20]}.boxes2D.json"
    return "boxes", name, RunFile(path, data=content), _said("boxes2D", path, digest, content)


def _mask(event: Event, mask: dict[str, Any], content: bytes) -> tuple[str, str, RunFile, dict[str, Any]]:
    if mask["encoding"] == "raw":
        content = encode_png(content, mask["height"], mask["width"], mask["channels"])
    digest = hashlib.sha256(content).hexdigest()
    path = f"media/images/mask/{media_stem(event)}_{digest[:20]}.mask.png"
    return "masks", str(mask["name"]), RunFile(path, data=content), _said("mask", path, digest, content)


def _said(kind: str, path: str, digest: str, content: bytes) -> dict[str, Any]:
    return {"_type": kind, "sha256": digest, "size": len(content), "path": path}
