"""Values that JSON cannot hold, and back.

A metric's value is a number or one of "NaN", "Infinity", "-Infinity". Elsewhere what JSON lacks is tagged:
`{"$float": "NaN"}`, `{"$int": "..."}` beyond 64 bits, `{"$bytes": "<base64>"}`; a user's key that begins with
`$` is written with one more `$`.
"""

import base64
import math
from typing import Any

from spoolagent.format.lines import MAX_DEPTH

_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1  # what orjson writes as plain integers
_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

MetricValue = float | int | str


def metric_value(value: Any) -> MetricValue:
    """The JSON form of a metric's value: anything with float() or an exact int.

    Scalars of numpy and torch (0-d arrays, one-element tensors) go through their own `item()`, so that a
    float32 keeps its exact double. Raises TypeError for what is not a number.
    """
    kind = type(value)
    if kind is bool:
        return int(value)
    if kind is not int and kind is not float:
        value = _number(value)
    if type(value) is int:
        return value if _INT_MIN <= value <= _INT_MAX else _float_name(_to_float(value))
    return value if value - value == 0.0 else _float_name(value)


def _to_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:  # of 309 digits and more
        return math.inf if value > 0 else -math.inf


def _number(value: Any) -> int | float:
    if isinstance(value, (str, bytes)) or value is None:
        raise TypeError(f"a metric's value must be a number, got {value!r}")
    item = getattr(value, "item", None)
    if item is not None:
        try:
            value = item()
        except (RuntimeError, ValueError) as error:
            raise TypeError(f"a metric's value must be a scalar: {error}") from error
    if isinstance(value, int):  # bool, IntEnum
        return int(value)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"a metric's value must be a number, got {type(value).__name__}") from error


def _float_name(value: float) -> MetricValue:
    if value - value == 0.0:
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"  # noqa: PLR0124 - NaN test


def number(value: MetricValue) -> float | int:
    """The number of a metric's JSON form. Raises ValueError for anything else."""
    if type(value) is float or type(value) is int:
        return value
    if isinstance(value, str) and value in _NAMES:
        return _NAMES[value]
    raise ValueError(f"not a metric's value: {value!r}")


def to_json(value: Any, depth: int = MAX_DEPTH - 4) -> Any:
    """`value` as JSON can hold it, tagged where it must be. What has no JSON form becomes its `str()`.

    Tuples and sets become lists, keys become strings. Raises ValueError when it is nested too deeply.
    """
    kind = type(value)
    if kind is str:
        return clean_text(value)
    if kind is bool or value is None:
        return value
    if kind is int:
        return value if _INT_MIN <= value <= _INT_MAX else {"$int": str(value)}
    if kind is float:
        return value if value - value == 0.0 else {"$float": _float_name(value)}
    if depth <= 0:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        return {_key(k): to_json(v, depth - 1) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(v, depth - 1) for v in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"$bytes": base64.b64encode(value).decode()}
    return _foreign(value, depth)


def _foreign(value: Any, depth: int) -> Any:
    for base in (bool, int, float, str):  # enums and subclasses
        if isinstance(value, base):
            return to_json(base(value), depth)
    for name in ("tolist", "item"):  # numpy and torch, without importing them
        method = getattr(value, name, None)
        if callable(method):
            try:
                return to_json(method(), depth - 1)
            except (TypeError, ValueError, RuntimeError):
                break
    return clean_text(str(value))


def _key(key: Any) -> str:
    text = clean_text(key if type(key) is str else str(key))
    return "$" + text if text.startswith("$") else text


def clean_text(text: str) -> str:
    """`text` with lone surrogates replaced by U+FFFD: they have no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def from_json(value: Any) -> Any:
    """The Python value of tagged JSON. Raises ValueError for a tag that it does not know."""
    if type(value) is list:
        return [from_json(v) for v in value]
    if type(value) is not dict:
        return value
    if len(value) == 1:
        (key, inner), *_ = value.items()
        if key == "$float" and inner in _NAMES:
            return _NAMES[inner]
        if key == "$int" and isinstance(inner, str) and len(inner) <= 4300:
            return int(inner)
        if key == "$bytes" and isinstance(inner, str):
            return base64.b64decode(inner)
    return {_unkey(k): from_json(v) for k, v in value.items()}


def _unkey(key: str) -> str:
    if not key.startswith("$"):
        return key
    if key.startswith("$$"):
        return key[1:]
    raise ValueError(f"unknown tag {key!r}")
