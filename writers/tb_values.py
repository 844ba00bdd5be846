"""What SummaryWriter's callers pass in, as event fields. numpy is imported only for arrays."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spoolagent.format.lines import MAX_LINE
from spoolagent.format.values import metric_value, to_json
from spoolagent.writers.process import warn_once

if TYPE_CHECKING:
    import numpy as np

NS = 1_000_000_000
STEPS = 2**63
"""Steps are smaller than this, and not smaller than its negative."""
LARGE = MAX_LINE // 8
"""Bytes from which a text or summary goes to a blob; JSON makes up to six bytes of one."""
_GRID_COLUMNS = 8


def text_tag(tag: Any) -> str:
    """`tag` as text. Raises TypeError, as the protocol buffer does, for what is neither str nor bytes."""
    if isinstance(tag, str):
        return str(tag)
    if isinstance(tag, bytes):
        return tag.decode()
    raise TypeError(f"a tag must be a str, got {tag!r}")


def step_number(step: Any) -> int:
    """`int(step)`: floats are cut, one-element tensors work. Raises ValueError beyond 64 bits."""
    number = int(step)
    if -STEPS <= number < STEPS:
        return number
    raise ValueError(f"global_step {number} does not fit in 64 bits")


def wall_ns(walltime: Any) -> int:
    """Seconds since the epoch as the nearest nanoseconds, which give the same float back; torch takes any float.

    Beyond 64 bits (before 1677, after 2262, infinite) the nearest that there is, for NaN the time now, with a warning.
    Raises TypeError for what is no number.
    """
    if isinstance(walltime, (str, bytes)):
        raise TypeError(f"walltime must be a number of seconds, got {walltime!r}")
    seconds = float(walltime)
    if not -STEPS / NS <= seconds < STEPS / NS:
        warn_once(
            "walltime", f"a walltime of {seconds} s cannot be kept: the nearest that can is, for NaN now"
        )
        return now_ns() if seconds != seconds else STEPS - 1 if seconds > 0 else -STEPS  # noqa: PLR0124 - NaN test
    numerator, denominator = seconds.as_integer_ratio()
    return (numerator * 2_000_000_000 + denominator) // (2 * denominator)


def now_ns() -> int:
    """Nanoseconds since the epoch."""
    return time.time_ns()


def scalar(value: Any) -> float | int | str:
    """A scalar as a metric's value: the double that torch would have narrowed.

    Raises NotImplementedError for a list, None and the like, AssertionError for an array that has not exactly
    one element, ValueError for a text that is no number: as torch does.
    """
    if isinstance(value, (int, float, str, bytes)):
        return metric_value(float(value))
    item = getattr(value, "item", None)
    if callable(item):
        size = value.numel() if hasattr(value, "numel") else getattr(value, "size", 1)
        if size != 1:
            raise AssertionError(
                f"a scalar has one element, this one has {size} (shape {tuple(value.shape)})"
            )
        value = item()
    if not hasattr(value, "__float__"):
        raise NotImplementedError(f"a scalar is a number, a numpy array or a torch tensor, not {type(value)}")
    return metric_value(float(value))


def array(value: Any) -> "np.ndarray[Any, Any]":
    """A tensor, array or scalar as a numpy array. Raises NotImplementedError for a list, as torch does."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):
        if str(value.dtype) == "torch.bfloat16":  # numpy has no such type
            value = value.half()
        return np.asarray(value.detach().cpu().numpy())
    if np.isscalar(value):
        return np.array([value])
    if hasattr(value, "__array__"):
        return np.asarray(value)
    raise NotImplementedError(f"expected a numpy array or a torch tensor, not {type(value)}")


def image(value: Any, dataformats: str) -> tuple[bytes, dict[str, Any]]:
    """Raw pixels and fields of an `image` event. uint8 stays, everything else is scaled by 255 and clipped."""
    import numpy as np

    from spoolagent.writers.media import raw_image

    pixels = _rows(array(value), dataformats)
    scale = 1 if pixels.dtype == np.uint8 else 255
    pixels = (pixels.astype(np.float32) * scale).clip(0, 255).astype(np.uint8)
    if pixels.size == 0:
        raise ValueError(f"an image needs at least one pixel, got the shape {pixels.shape}")
    return raw_image(pixels)


def _rows(pixels: "np.ndarray[Any, Any]", dataformats: str) -> "np.ndarray[Any, Any]":
    """Pixels as height x width x channels, with at least three channels; a batch becomes a grid."""
    import numpy as np

    letters = dataformats.upper()
    if len(set(letters)) != len(letters):
        raise AssertionError(f"dataformats {dataformats!r} names a dimension twice")
    if pixels.ndim != len(letters):
        raise AssertionError(f"dataformats {dataformats!r} does not fit the shape {pixels.shape}")
    order = {2: "HW", 3: "HWC", 4: "NHWC"}.get(len(letters), "")
    if set(letters) != set(order):
        raise ValueError(f"dataformats {dataformats!r} is not an order of HW, CHW or NCHW")
    pixels = pixels.transpose([letters.index(letter) for letter in order])
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    return _grid(pixels) if pixels.ndim == 4 else pixels


def _grid(batch: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Images of equal size in rows of up to eight; what stays empty is black."""
    import numpy as np

    count, height, width, channels = batch.shape
    if channels != 3:
        raise AssertionError(f"a batch of images has 1 or 3 channels, this one has {channels}")
    columns = max(1, min(count, _GRID_COLUMNS))
    rows = -(-count // columns)
    grid = np.zeros((rows * columns, height, width, channels), dtype=batch.dtype)
    grid[:count] = batch
    return (
        grid.reshape(rows, columns, height, width, channels)
        .swapaxes(1, 2)
        .reshape(rows * height, columns * width, channels)
    )


def figure_pixels(figure: Any, *, close: bool) -> "np.ndarray[Any, Any]":
    """A matplotlib figure drawn by Agg: height x width x RGB."""
    import sys

    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # its methods have no types
    canvas.draw()
    pixels = np.array(canvas.buffer_rgba())[:, :, :3]
    pyplot = sys.modules.get("matplotlib.pyplot")  # not loaded: it has no figure to close
    if close and pyplot is not None:
        pyplot.close(figure)
    return pixels


def default_bins() -> list[float]:
    """The edges of TensorFlow's histogram: 0, and +-1e-12 growing by a tenth up to 1e20."""
    edges, value = [], 1e-12
    while value < 1e20:
        edges.append(value)
        value *= 1.1
    return [-edge for edge in reversed(edges)] + [0] + edges


_bins: list[float] = []


def histogram(values: Any, bins: Any, max_bins: int | None) -> dict[str, Any]:
    """The fields of a `histogram` event: torch's HistogramProto, value for value.

    Raises ValueError when nothing of `values` (all NaN, none at all) falls into a bin.
    """
    import numpy as np

    numbers = array(values).astype(float).reshape(-1)
    if numbers.size == 0:
        raise ValueError("a histogram needs at least one value")
    if isinstance(bins, str) and bins == "tensorflow":
        if not _bins:
            _bins[:] = default_bins()
        bins = _bins
    counts, edges = np.histogram(numbers, bins=bins)
    if max_bins is not None and len(counts) > max_bins:
        counts, edges = _merged(counts, edges, len(counts) // max_bins)
    filled = np.flatnonzero(counts)
    if filled.size:
        first, last = int(filled[0]), int(filled[-1]) + 1
    elif len(counts) == 1:
        first = last = 1  # torch shows a single bin although it is empty
    else:
        raise ValueError("a histogram needs at least one value inside its bins")
    # Only right edges are kept: an empty bin before the first filled one keeps that one's left edge.
    shown = [0, *counts[:last].tolist()] if first == 0 else counts[first - 1 : last].tolist()
    return {
        "min": metric_value(numbers.min()),
        "max": metric_value(numbers.max()),
        "num": len(numbers),
        "sum": metric_value(numbers.sum()),
        "sum_squares": metric_value(numbers.dot(numbers)),
        "limits": [metric_value(edge) for edge in edges[first : last + 1].tolist()],
        "counts": shown,
    }


def _merged(counts: Any, edges: Any, together: int) -> tuple[Any, Any]:
    """Bins merged so many `together`; the last one may be made of fewer."""
    import numpy as np

    counts = np.pad(counts, (0, -len(counts) % together)).reshape(-1, together).sum(axis=1)
    return counts, np.append(edges[:-1:together], edges[-1])


def hparams(
    values: dict[Any, Any], metrics: dict[Any, Any], discrete: Mapping[Any, Any] | None
) -> dict[str, Any]:
    """The fields of an `hparams` event. Raises TypeError and ValueError where torch does."""
    if type(values) is not dict or type(metrics) is not dict:
        raise TypeError("hparam_dict and metric_dict must be dicts")
    if discrete is not None and not isinstance(discrete, dict):
        raise TypeError("hparam_domain_discrete must be a dict")
    for name, choices in (discrete or {}).items():
        fits = isinstance(choices, list) and name in values
        if not fits or not all(isinstance(choice, type(values[name])) for choice in choices):
            raise TypeError(
                f"hparam_domain_discrete[{name!r}] must be a list of the type of hparam_dict[{name!r}]"
            )
    fields: dict[str, Any] = {
        "hparams": to_json({text_tag(name): _hparam(value) for name, value in values.items()}),
        "metrics": {text_tag(name): scalar(value) for name, value in metrics.items()},
    }
    if discrete:
        fields["domain"] = to_json(discrete)
    return fields


def _hparam(value: Any) -> Any:
    if value is None or isinstance(value, (int, float, str)):
        return value
    if hasattr(value, "item"):
        return scalar(value)
    raise ValueError(f"a hyperparameter is an int, float, str, bool or tensor, not {type(value)}")
