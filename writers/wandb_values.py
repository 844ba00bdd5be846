"""A user's values as the JSON that W&B's SDK would make of them, without importing numpy or torch."""

import sys
from collections.abc import Mapping
from typing import Any

_AS_TEXT = {"decimal", "fractions", "uuid", "pathlib", "pathlib._local", "ipaddress"}
_ARRAY_LIMIT = 32
"""W&B keeps an array of so many numbers as a list, a larger one as a histogram."""
_PLAIN = (bool, int, float, str)


def friendly(value: Any, *, compress: bool = True) -> Any:
    """`value` as None, bool, int, float, str, list or dict with string keys.

    An array of one number is that number; an array of more than 32 is a histogram (`compress`). Raises TypeError
    for what W&B cannot serialize, UnicodeDecodeError for bytes that are no UTF-8.
    """
    kind = type(value)
    if value is None or kind in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return {key_text(k): friendly(v, compress=compress) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, range)):
        return [friendly(v, compress=compress) for v in value]
    if isinstance(value, (bytes, bytearray)):
        return value.decode()
    if hasattr(value, "detach") or hasattr(value, "dtype"):
        return _array(value, compress)
    return _object(value, compress)


def _array(value: Any, compress: bool) -> Any:
    array = to_numpy(value)
    if not getattr(array, "shape", ()):
        return _scalar(array.item() if hasattr(array, "item") else array, compress)
    if array.size == 1:
        return _scalar(array.reshape(-1)[0].item(), compress)
    if compress and array.size > _ARRAY_LIMIT:
        import numpy as np

        counts, edges = np.histogram(array, bins=32)
        return {"_type": "histogram", "values": counts.tolist(), "bins": edges.tolist()}
    return friendly(array.tolist(), compress=compress)


def _scalar(value: Any, compress: bool) -> Any:
    # numpy's long double has no Python type: item() gives it back
    return friendly(float(value) if hasattr(value, "dtype") else value, compress=compress)


def to_numpy(value: Any) -> Any:
    """A tensor of torch, TensorFlow or JAX, a pandas series or a numpy array, as a numpy array or scalar."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    if hasattr(value, "numpy") and callable(value.numpy):
        return value.numpy()
    if type(value).__module__.partition(".")[0] == "numpy":
        return value
    import numpy as np

    return np.asarray(value)


def _object(value: Any, compress: bool) -> Any:
    enum = sys.modules.get("enum")
    if enum is not None and isinstance(value, enum.Enum):
        return friendly(value.value, compress=compress)
    for base in _PLAIN:
        if isinstance(value, base):
            return base(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if type(value).__module__ == "datetime" and hasattr(value, "total_seconds"):
        return _duration(value)
    if hasattr(type(value), "__dataclass_fields__") and not isinstance(value, type):
        names = type(value).__dataclass_fields__
        return {name: friendly(getattr(value, name), compress=compress) for name in names}
    if isinstance(value, complex):
        return str(value).strip("()")
    if hasattr(value, "__fspath__") or type(value).__module__ in _AS_TEXT:
        return str(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _duration(value: Any) -> str:
    """A timedelta as ISO 8601 spells it, with years of 365 days, as pydantic does for W&B."""
    size = abs(value)
    minutes, seconds = divmod(size.seconds, 60)
    fraction = f".{size.microseconds:06}".rstrip("0") if size.microseconds else ""
    date = _units((size.days // 365, "Y"), (size.days % 365, "D"))
    time = _units((minutes // 60, "H"), (minutes % 60, "M"))
    time += f"{seconds}{fraction}S" if seconds or fraction or not date + time else ""
    return ("-" if value.days < 0 else "") + f"P{date}" + (f"T{time}" if time else "")


def _units(*counts: tuple[int, str]) -> str:
    return "".join(f"{count}{unit}" for count, unit in counts if count)


def key_text(key: Any) -> str:
    """A dictionary key as JSON spells it."""
    if isinstance(key, str):
        return str(key)
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    return str(key.item() if hasattr(key, "item") else key)


def config_value(value: Any) -> Any:
    """A config's value: as `friendly`, but NaN is None, an enum its name, and an unknown object its text."""
    if isinstance(value, Mapping):
        return {key_text(k): config_value(v) for k, v in value.items()}
    if isinstance(value, slice):
        return {"slice_start": value.start, "slice_step": value.step, "slice_stop": value.stop}
    enum = sys.modules.get("enum")
    if enum is not None and isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (list, tuple, set, frozenset, range)):
        return [config_value(v) for v in value]
    try:
        made = friendly(value, compress=False)
    except TypeError:
        return str(value)
    return None if isinstance(made, float) and made != made else made  # noqa: PLR0124 - NaN test


def merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Puts `values` into `into`, nested dictionaries leaf by leaf."""
    for key, value in values.items():
        held = into.get(key)
        if isinstance(value, dict) and isinstance(held, dict):
            merge(held, value)
        else:
            into[key] = value
