"""`wandb.Image`: pixels, a PIL image, a figure or a file, with boxes and masks drawn over it."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from spoolagent.format.values import to_json
from spoolagent.writers.media import image_encoding, raw_image
from spoolagent.writers.run import optional
from spoolagent.writers.wandb_media import Classes, Part, WBValue, read_file
from spoolagent.writers.wandb_values import friendly, to_numpy

_FORMATS = ["png", "jpg", "jpeg", "bmp"]
_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


class Image(WBValue):
    """An image. Pixels are 0..255: arrays height x width (x channels), torch tensors channels x height x width.

    Values are cut to integers, never scaled, as W&B does. `boxes` and `masks` are dictionaries as W&B documents
    them. Raises ValueError for a shape or `file_type` that is no image's.
    """

    MAX_ITEMS = 108
    _log_type = "image-file"

    def __init__(
        self,
        data_or_path: Any,
        mode: str | None = None,
        caption: str | None = None,
        grouping: int | None = None,
        classes: Classes | Sequence[dict[str, Any]] | None = None,
        boxes: Mapping[str, Any] | None = None,
        masks: Mapping[str, Any] | None = None,
        file_type: str | None = None,
    ) -> None:
        self._caption = None if caption is None else str(caption)
        self._grouping = grouping
        self._classes: list[Any] = []
        if isinstance(data_or_path, Image):
            self._copy(data_or_path)
        elif isinstance(data_or_path, (str, os.PathLike)):
            self._data, self._fields = _from_path(os.fspath(data_or_path))
        else:
            if file_type is not None and file_type not in _FORMATS:
                raise ValueError(f"file_type must be one of {_FORMATS}")
            self._data, self._fields = _from_data(data_or_path, mode, file_type)
        if file_type is not None:
            self._fields["file_type"] = file_type
        if classes is not None:
            self._classes = (classes if isinstance(classes, Classes) else Classes(classes)).class_set
        self._boxes = _checked("boxes", boxes)
        self._masks = _checked("masks", masks)

    def _copy(self, other: "Image") -> None:
        self._data, self._fields = other._data, dict(other._fields)  # noqa: SLF001 - of the same class
        self._classes = other._classes  # noqa: SLF001
        self._caption = self._caption if self._caption is not None else other._caption  # noqa: SLF001
        self._grouping = self._grouping if self._grouping is not None else other._grouping  # noqa: SLF001

    def parts(self, key: str, step: int) -> list[Part]:
        """An `image` event."""
        del step
        more: dict[str, Any] = optional(caption=self._caption, grouping=self._grouping)
        if self._classes:
            more["classes"] = to_json(self._classes)
        files: list[tuple[str, bytes]] = []
        if self._boxes:
            files.append(("boxes.json", orjson.dumps(to_json(friendly(dict(self._boxes), compress=False)))))
        if self._masks:
            more["masks"] = [_mask(name, mask, files) for name, mask in self._masks.items()]
        return [Part("image", {"key": key, **self._fields, **more}, self._data, tuple(files))]

    def summary(self) -> dict[str, Any]:
        """Type, size and caption."""
        size: dict[str, Any] = {k: v for k, v in self._fields.items() if k in ("width", "height")}
        return {"_type": self._log_type, **size, **optional(caption=self._caption)}


def _checked(name: str, value: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if value and not isinstance(value, Mapping):
        raise ValueError(f'Images "{name}" argument must be a dictionary')
    return value or None


def _mask(name: str, mask: Any, files: list[tuple[str, bytes]]) -> dict[str, Any]:
    """What the event says of one mask; its pixels (class ids) or its file go to `files`."""
    labels = friendly(mask.get("class_labels") or {})
    said: dict[str, Any] = {"name": str(name), "class_labels": to_json(labels), "file": f"masks/{len(files)}"}
    if "path" in mask:
        data, fields = _from_path(os.fspath(mask["path"]))
    elif "mask_data" in mask:
        import numpy as np

        data, fields = raw_image(np.asarray(to_numpy(mask["mask_data"])).astype(np.uint8))
    else:
        raise TypeError('Image mask must contain a "path" or "mask_data"')
    files.append((said["file"], data))
    return {**said, **fields}


def _from_path(path: str) -> tuple[bytes, dict[str, Any]]:
    data = read_file(path)
    try:
        return data, {"encoding": image_encoding(data)}
    except ValueError:
        import io

        from PIL import Image as Pil

        return _from_pil(Pil.open(io.BytesIO(data)))


def _from_data(data: Any, mode: str | None, file_type: str | None) -> tuple[bytes, dict[str, Any]]:
    if hasattr(data, "getbands"):
        return _from_pil(data)
    if type(data).__module__.startswith("matplotlib"):
        return _from_figure(data)
    is_torch = hasattr(data, "detach")
    if is_torch:
        data = data.detach()
        channels_first = data if data.ndim > 2 else data[None]
        guessed = _guess(data.ndim, data.shape[0], data.shape, file_type)
        pixels = to_numpy(channels_first.permute(1, 2, 0)).squeeze()
    else:
        pixels = to_numpy(data)
        pixels = pixels.squeeze() if pixels.ndim > 2 else pixels
        guessed = _guess(pixels.ndim, pixels.shape[-1], pixels.shape, file_type)
    import numpy as np

    pixels = pixels.astype(np.uint8)
    mode = mode or guessed
    natural = "L" if pixels.ndim == 2 else {2: "LA", 3: "RGB", 4: "RGBA"}.get(pixels.shape[-1], "")
    if pixels.ndim not in (2, 3) or not natural:
        raise ValueError(f"Un-supported shape for image conversion {list(pixels.shape)}")
    if mode == natural:
        return raw_image(np.ascontiguousarray(pixels))
    if (natural, mode) == ("RGBA", "RGB"):
        return raw_image(np.ascontiguousarray(pixels[:, :, :3]))
    from PIL import Image as Pil

    return _from_pil(Pil.fromarray(pixels).convert(mode))


def _guess(ndim: int, channels: int, shape: Any, file_type: str | None) -> str:
    if ndim == 2 or channels == 1:
        return "L"
    if channels == 3:
        return "RGB"
    if channels == 4:  # the files that W&B would make of the others hold no transparency
        return "RGB" if file_type in ("jpg", "jpeg", "bmp") else "RGBA"
    raise ValueError(f"Un-supported shape for image conversion {list(shape)}")


def _from_pil(image: Any) -> tuple[bytes, dict[str, Any]]:
    if image.mode not in _CHANNELS:
        image = image.convert("RGBA" if "transparency" in image.info else "L" if image.mode == "1" else "RGB")
    size = {"height": image.height, "width": image.width, "channels": _CHANNELS[image.mode]}
    return image.tobytes(), {"encoding": "raw", **size}


def _from_figure(figure: Any) -> tuple[bytes, dict[str, Any]]:
    """The pixels of a matplotlib figure (or of the figure of an axes, or of pyplot itself)."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if not hasattr(figure, "savefig") or not hasattr(figure, "get_size_inches"):
        figure = figure.gcf() if hasattr(figure, "gcf") else figure.figure
    canvas: Any = FigureCanvasAgg(figure)  # type: ignore[no-untyped-call,unused-ignore] # matplotlib is half typed
    canvas.draw()
    return raw_image(np.asarray(canvas.buffer_rgba()))
