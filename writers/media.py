"""Images and histograms as event payloads. Only what the caller's own objects bring along is imported."""

import math
import os
from typing import Any

_MAGIC = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"BM": "bmp", b"RIFF": "webp"}


def image_encoding(data: bytes) -> str:
    """How encoded image bytes are encoded. Raises ValueError when they are of no kind that is known."""
    for magic, name in _MAGIC.items():
        if data.startswith(magic):
            return name
    raise ValueError("these bytes are no PNG, JPEG, GIF, BMP or WebP image")


def raw_image(pixels: Any) -> tuple[bytes, dict[str, Any]]:
    """The payload of a uint8 numpy array of height x width or height x width x channels (1 to 4)."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4):
        raise ValueError(f"an image has the shape (height, width, 1..4 channels), got {pixels.shape}")
    height, width, channels = (int(n) for n in pixels.shape)
    return pixels.tobytes(), {"encoding": "raw", "height": height, "width": width, "channels": channels}


def to_uint8(pixels: Any) -> Any:
    """Pixels of any numeric type as uint8: floats (0..1) are scaled by 255 and clipped, the rest is clipped."""
    import numpy as np

    if pixels.dtype == np.uint8:
        return pixels
    scale = 255.0 if pixels.dtype.kind == "f" else 1.0
    return np.clip(pixels.astype(np.float32) * scale, 0, 255).astype(np.uint8)


def image_payload(image: Any) -> tuple[bytes, dict[str, Any]]:
    """Bytes and fields of an `image` event from a path, encoded bytes, a PIL image or an array."""
    if isinstance(image, (str, os.PathLike)):
        with open(image, "rb") as file:
            image = file.read()
    if isinstance(image, (bytes, bytearray)):
        data = bytes(image)
        return data, {"encoding": image_encoding(data)}
    import numpy as np

    if hasattr(image, "detach"):  # a torch tensor
        image = image.detach().cpu().numpy()
    if hasattr(image, "getbands") and image.mode not in ("L", "LA", "RGB", "RGBA"):  # a PIL image
        image = image.convert("RGB")
    return raw_image(to_uint8(np.asarray(image)))


def histogram(values: Any, bins: int) -> dict[str, Any]:
    """The fields of a `histogram` event, with `bins` equal bins. Raises ValueError for no finite value."""
    import numpy as np

    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values, dtype=np.float64).ravel()
    array = array[np.isfinite(array)]
    if array.size == 0:
        raise ValueError("a histogram needs at least one finite value")
    counts, edges = np.histogram(array, bins=bins)
    return {
        "min": float(array.min()),
        "max": float(array.max()),
        "num": int(array.size),
        "sum": _finite(array.sum()),
        "sum_squares": _finite(np.square(array).sum()),
        "left": float(edges[0]),
        "limits": [float(e) for e in edges[1:]],
        "counts": [int(c) for c in counts],
    }


def _finite(value: Any) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else "Infinity" if number > 0 else "-Infinity"
