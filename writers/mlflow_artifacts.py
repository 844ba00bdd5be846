"""Files of a run: artifacts, texts, figures, images, tables. Images go into the spool as raw pixels.

numpy, Pillow, matplotlib, plotly, pandas and yaml are used only when the caller's own objects need them.
"""

import io
import os
import posixpath
import re
import sys
from collections.abc import Mapping
from typing import Any

import orjson

from spoolagent.format import blobs
from spoolagent.format.lines import MAX_LINE
from spoolagent.format.values import clean_text, to_json
from spoolagent.writers.media import image_payload, raw_image
from spoolagent.writers.mlflow_checks import check_file, check_folder, to_at_ns, to_step
from spoolagent.writers.mlflow_errors import invalid, not_offline
from spoolagent.writers.mlflow_runs import Tracked, now_ms
from spoolagent.writers.process import warn_once
from spoolagent.writers.run import list_files, optional

_DEFERRED = frozenset({".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp"})
"""Extensions for which the receiver encodes; for any other the caller's Pillow does."""
_MODES = ("L", "LA", "RGB", "RGBA")
_IMAGE_KEY = re.compile(r"[a-zA-Z0-9_\-./ ]+$")
_TABLE_REFUSED = "\"',:[]{}"
_FIGURE_CHANNELS = 4


def log_artifact(run: Tracked, local_path: Any, artifact_path: Any) -> None:
    """A file into the folder `artifact_path`; a directory becomes a folder of its own name in it."""
    source, folder = os.fspath(local_path), check_folder(artifact_path)
    if os.path.isdir(source):
        name = os.path.basename(os.path.normpath(source))
        folder = posixpath.join(folder, name) if folder else name
    _log_files(run, source, folder)


def log_artifacts(run: Tracked, local_dir: Any, artifact_path: Any) -> None:
    """The files of a directory into the folder `artifact_path`. No directory: nothing but a warning, as there."""
    source, folder = os.fspath(local_dir), check_folder(artifact_path)
    if os.path.isdir(source):
        _log_files(run, source, folder)
    else:
        warn_once(f"no directory {source}", f"log_artifacts: {source} is not a directory: nothing logged")


def _log_files(run: Tracked, source: str, folder: str | None) -> None:
    files = [(clean_text(inside), here) for inside, here in list_files(source)]
    if files:
        run.writer().log_files("artifact", files, optional(path=folder))


def log_bytes(run: Tracked, data: bytes, artifact_file: Any) -> None:
    """`data` as the file `artifact_file`."""
    folder, name = posixpath.split(check_file(artifact_file))
    native = run.writer()
    try:
        ref = blobs.put_bytes(native.spool, native.site, data)
    except OSError as error:
        native.drop(f"artifact: {error.strerror}")
        return
    native.event("artifact", {**optional(path=folder or None), "files": [{"path": name, "blob": ref}]})


def log_stream(run: Tracked, stream: Any, artifact_file: Any) -> None:
    """What `stream.read()` still gives, as the file `artifact_file`."""
    parts = []
    while chunk := stream.read(1 << 20):
        parts.append(bytes(chunk))
    log_bytes(run, b"".join(parts), artifact_file)


def log_text(run: Tracked, text: Any, artifact_file: Any) -> None:
    """`text` as the file `artifact_file`, in UTF-8."""
    path = check_file(artifact_file)
    if not isinstance(text, str):
        raise TypeError(f"text must be str, not {type(text).__name__}")
    run.writer().log_text(path, text, path=path)


def log_dict(run: Tracked, dictionary: Any, artifact_file: Any) -> None:
    """A mapping or list as JSON, or as YAML when the file's name ends so."""
    if os.path.splitext(artifact_file)[1] in (".yml", ".yaml"):
        import yaml  # type: ignore[import-untyped] # its stubs are a package of their own

        text = str(yaml.dump(dictionary, indent=2, default_flow_style=False))
    else:
        import json

        text = json.dumps(dictionary, indent=2, default=str)
    log_text(run, text, artifact_file)


# -- figures and images ------------------------------------------------------------------------------------------


def _is_a(value: Any, module: str, name: str) -> bool:
    """True for an instance of `module.name`, when that module is loaded at all."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def log_figure(run: Tracked, figure: Any, artifact_file: Any, save_kwargs: Mapping[str, Any] | None) -> None:
    """A matplotlib figure (as pixels; anything but a plain image by its own `savefig`), or one of plotly."""
    options = dict(save_kwargs or {})
    extension = os.path.splitext(artifact_file)[1].lower()
    if _is_a(figure, "matplotlib.figure", "Figure"):
        if extension in _DEFERRED and not options and _log_pixels(run, figure, artifact_file):
            return
        buffer = io.BytesIO()
        figure.savefig(buffer, **{"format": extension[1:] or None, **options})
        log_bytes(run, buffer.getvalue(), artifact_file)
    elif _is_a(figure, "plotly.basedatatypes", "BaseFigure"):
        log_bytes(run, _plotly(figure, extension, options), artifact_file)
    else:
        raise TypeError(f"unsupported figure type {type(figure)}: it must be of matplotlib or plotly")


def _log_pixels(run: Tracked, figure: Any, artifact_file: str) -> bool:
    """Draws the figure as `savefig` would, without encoding it. False when its size is not what it seems."""
    dpi = sys.modules["matplotlib"].rcParams["savefig.dpi"]
    scale = 1.0 if dpi == "figure" else float(dpi) / figure.dpi
    width, height = (int(n * scale) for n in figure.bbox.size)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba")
    data = buffer.getvalue()
    if len(data) != width * height * _FIGURE_CHANNELS:
        return False
    shape = {"encoding": "raw", "height": height, "width": width, "channels": _FIGURE_CHANNELS}
    path = check_file(artifact_file)
    run.writer().with_blob("image", {"key": clean_text(path), **shape, "path": path}, data)
    return True


def _plotly(figure: Any, extension: str, options: dict[str, Any]) -> bytes:
    if extension == ".html":
        options.setdefault("include_plotlyjs", "cdn")
        options.pop("auto_open", None)
        return str(figure.to_html(**options)).encode()
    if extension in (".png", ".jpeg", ".webp", ".svg", ".pdf"):
        return bytes(figure.to_image(**{"format": extension[1:], **options}))
    raise TypeError(f"unsupported file extension for a plotly figure: {extension!r}")


def log_image(run: Tracked, image: Any, artifact_file: Any, key: Any, step: Any, timestamp: Any) -> None:
    """An image as a file, or under a key at a step."""
    if artifact_file is not None and any(arg is not None for arg in (key, step, timestamp)):
        raise TypeError("log_image takes 'artifact_file' alone, or 'key' with 'step' and 'timestamp'")
    if artifact_file is None and key is None:
        raise TypeError("log_image takes exactly one of 'artifact_file' and 'key'")
    if not (_is_a(image, "numpy", "ndarray") or _is_a(image, "PIL.Image", "Image")):
        raise TypeError(
            f"unsupported image type {type(image)}: it must be a numpy.ndarray or a PIL.Image.Image"
        )
    if artifact_file is not None:
        _image_file(run, image, str(artifact_file))
        return
    if _IMAGE_KEY.match(key) is None:
        raise ValueError(f"image key {key!r}: only letters, digits, '_', '-', '.', ' ' and '/' are allowed")
    data, fields = _pixels(image) or (_encoded(image, "PNG"), {"encoding": "png"})
    at_ns = to_at_ns(timestamp or now_ms(), "timestamp")
    place = {"step": to_step(step or 0, "step"), "at": at_ns}
    run.writer().with_blob("image", {"key": key, **fields, **place}, data)


def _image_file(run: Tracked, image: Any, artifact_file: str) -> None:
    path = check_file(artifact_file)
    extension = os.path.splitext(path)[1].lower()
    pixels = _pixels(image)
    if pixels is not None and extension in _DEFERRED:
        data, fields = pixels
        run.writer().with_blob("image", {"key": clean_text(path), **fields, "path": path}, data)
        return
    from PIL import Image

    Image.init()
    kind = Image.registered_extensions().get(extension)
    if kind is None:
        raise ValueError(f"unknown file extension: {extension}")
    log_bytes(run, _encoded(image, kind), path)


def _pixels(image: Any) -> tuple[bytes, dict[str, Any]] | None:
    """Raw pixels; None for a PIL image of a mode that has no 8-bit channels."""
    if not hasattr(image, "getbands"):
        return raw_image(_array_pixels(image))
    return image_payload(image) if image.mode in _MODES else None


def _encoded(image: Any, kind: str) -> bytes:
    from PIL import Image

    picture = image if hasattr(image, "getbands") else Image.fromarray(_flat(_array_pixels(image)))
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def _flat(pixels: Any) -> Any:
    return pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _array_pixels(array: Any) -> Any:
    """An array as uint8 by MLflow's rules: integers are 0 to 255, floats and bools 0 to 1."""
    import numpy as np

    if array.dtype.kind not in "biuf":
        raise TypeError(f"invalid array data type {str(array.dtype)!r}: it must be bool, integer or float")
    if array.ndim not in (2, 3):
        raise ValueError(f"`image` must be a 2D or 3D array but got image shape: {array.shape}")
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        raise ValueError(f"invalid channel length: {array.shape[2]}, must be one of 1, 3, 4")
    low, high, whole = array.min(), array.max(), array.dtype.kind in "iu"
    if low < 0 or high > (255 if whole else 1):
        if whole:
            raise ValueError(f"integer pixel values must be 0 to 255, these are {low} to {high}")
        import warnings

        warnings.warn(f"float pixel values are {low} to {high}, not 0.0 to 1.0: scaled to that", stacklevel=2)
        array = (array - low) / (high - low)
    return (array if whole else array * 255).astype(np.uint8)


# -- tables --------------------------------------------------------------------------------------------------------


def log_table(run: Tracked, data: Any, artifact_file: str) -> None:
    """Rows for the table in the JSON file `artifact_file`; the receiver appends them to what it holds."""
    for char in _TABLE_REFUSED:
        if char in artifact_file:
            raise ValueError(f"the artifact_file contains forbidden character: {char}")
    if artifact_file.endswith(".parquet"):
        raise not_offline("log_table to .parquet", "give the table a name that ends with .json")
    if not artifact_file.endswith(".json"):
        raise ValueError(f"a table's file name must end with .json: {artifact_file!r}")
    columns, rows = _table(data)
    path = check_file(artifact_file)
    fields: dict[str, Any] = {"key": path, "path": path}
    table = {"columns": columns, "data": rows}
    encoded = orjson.dumps(table)
    if len(encoded) < MAX_LINE // 2:
        run.writer().event("table", {**fields, **table})
    else:
        run.writer().with_blob("table", fields, encoded)


def _table(data: Any) -> tuple[list[str], list[Any]]:
    if isinstance(data, dict):
        columns, rows = _rows_of(data)
        for cell in (cell for row in rows for cell in row):
            if hasattr(cell, "save") and hasattr(cell, "resize"):
                raise not_offline("log_table with images", "log them with log_image(image, key=...)")
        return columns, to_json(rows)
    if not _is_a(data, "pandas", "DataFrame"):
        raise invalid("data must be a pandas.DataFrame or a dictionary")
    text = data.to_json(orient="split", index=False, date_format="iso", double_precision=15)
    held = orjson.loads(text)
    return [str(name) for name in held["columns"]], held["data"]


def _rows_of(data: dict[Any, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a dict of columns; of a single row, when its values are no columns of one length."""
    names = [clean_text(str(name)) for name in data]
    values = [v.tolist() if callable(getattr(v, "tolist", None)) else v for v in data.values()]
    lengths = {len(v) for v in values if isinstance(v, (list, tuple))}
    if len(lengths) != 1:
        return names, [values]
    (count,) = lengths
    columns = [v if isinstance(v, (list, tuple)) else [v] * count for v in values]
    return names, [list(row) for row in zip(*columns, strict=True)]
