"""What one `log` call becomes: its numbers, and an event for each value that is no number.

Numbers go to one `metrics` event, strings to `text`, media to their own types. Whatever else JSON can hold (bool,
None, lists, nested dictionaries) is a `custom` event `wandb.value` with `{"key", "value"}`: a nested dictionary
stays one value under its own key, so `{"a": {"b": 1}}` and `{"a.b": 1}` differ. Media inside a nested dictionary
have a dotted key and their path in the field `nested`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from spoolagent.format.values import clean_text, metric_value, to_json
from spoolagent.writers.tb_values import wall_ns
from spoolagent.writers.wandb_errors import notice, refuse
from spoolagent.writers.wandb_media import Html, Part, WBValue, text_part
from spoolagent.writers.wandb_plot import CustomChart
from spoolagent.writers.wandb_values import friendly, key_text

_INLINE = 256 << 10


class Row(NamedTuple):
    """The events of one call."""

    parts: list[Part]
    metrics: dict[str, Any]
    shown: dict[str, Any]
    """What the summary holds of it, by name."""
    at_ns: int | None
    """The user's own `_timestamp`."""


def make_row(data: Mapping[str, Any], step: int) -> Row:
    """Sorts the values of a `log` call. Raises TypeError before anything is logged."""
    for key in data:
        if not isinstance(key, str):
            raise TypeError("Key values passed to `wandb.log` must be strings.")
    row = Row([], {}, {}, None)
    for key, value in data.items():
        if key == "_timestamp":
            stamp = friendly(value)
            if isinstance(stamp, (int, float)) and 0 <= stamp < 9e9:
                row = row._replace(at_ns=wall_ns(stamp))
        elif key not in ("", "_step"):  # W&B drops these
            _add(row, clean_text(key), value, step)
    return row


def _add(row: Row, key: str, value: Any, step: int) -> None:
    value = _media(value)
    if isinstance(value, CustomChart):
        row.parts.append(value.panel(key))
        key, value = value.table_key(key), value.table
    if isinstance(value, WBValue):
        row.parts.extend(value.parts(key, step))
        row.shown[key] = value.summary()
    elif _is_media_list(value):
        _add_list(row, key, value, step)
    elif isinstance(value, Mapping):
        plain = _without_media(row, (key,), value, step)
        if plain:  # W&B drops a dictionary without leaves
            _add_plain(row, key, friendly(plain))
    else:
        _add_plain(row, key, friendly(value))


def _add_plain(row: Row, key: str, value: Any) -> None:
    if value is None:
        row.parts.append(_value(key, None))
        return
    row.shown[key] = value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        row.metrics[key] = metric_value(value)
    elif isinstance(value, str):
        row.parts.append(text_part({"key": key}, clean_text(value)))
    elif (
        isinstance(value, dict)
        and value.get("_type") == "histogram"
        and set(value) == {"_type", "values", "bins"}
    ):
        from spoolagent.writers.wandb_media import Histogram

        row.parts.extend(Histogram(np_histogram=(value["values"], value["bins"])).parts(key, 0))
    else:
        row.parts.append(_value(key, value))


def _value(key: str, value: Any) -> Part:
    made = to_json(value)
    data = orjson.dumps(made)
    if len(data) < _INLINE:
        return Part("custom", {"name": "wandb.value", "data": {"key": key, "value": made}})
    return Part("custom", {"name": "wandb.value", "data": {"key": key}}, data)


def _without_media(row: Row, path: tuple[str, ...], values: Mapping[Any, Any], step: int) -> dict[Any, Any]:
    """The nested values that are plain; media among them become events under a dotted key, with their path."""
    plain: dict[Any, Any] = {}
    for key, given in values.items():
        value = _media(given)
        inner = (*path, clean_text(key_text(key)))
        if isinstance(value, CustomChart):  # W&B takes it out, and calls it by its path
            _add(row, ".".join(inner), value, step)
        elif isinstance(value, Mapping):
            deeper = _without_media(row, inner, value, step)
            if deeper:
                plain[key] = deeper
        elif isinstance(value, WBValue) or _is_media_list(value):
            held = Row([], {}, {}, None)
            _add(held, ".".join(inner), value, step)
            nested = {"nested": list(inner)}
            row.parts.extend(part._replace(fields={**part.fields, **nested}) for part in held.parts)
        else:
            plain[key] = value
    return plain


def _is_media_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(v, WBValue) for v in value)


def _add_list(row: Row, key: str, values: Any, step: int) -> None:
    """A list of media of one type: one event each, with their place in the list."""
    kind = type(values[0])
    if any(type(v) is not kind for v in values):
        refuse("a list of media of several types", "log each type under a key of its own")
    row.shown[key] = [value.summary() for value in values]
    if hasattr(values[0], "to_json"):  # histograms: W&B keeps their JSON in a list
        row.parts.append(_value(key, [value.to_json() for value in values]))
        return
    if kind.MAX_ITEMS is not None and len(values) > kind.MAX_ITEMS:
        notice(f"Only {kind.MAX_ITEMS} {kind.__name__} will be uploaded.")
        values = values[: kind.MAX_ITEMS]
    for index, value in enumerate(values):
        for part in value.parts(key, step):
            place = {"index": index, "count": len(values)}
            row.parts.append(part._replace(fields={**part.fields, **place}))


def _media(value: Any) -> Any:
    """A figure, data frame or chart as the media type that W&B, too, makes of it."""
    kind = type(value)
    if kind.__module__ == "builtins":
        return value
    package = kind.__module__.partition(".")[0]
    if package == "pandas" and kind.__name__ == "DataFrame":
        from spoolagent.writers.wandb_table import Table

        return Table(dataframe=value)
    if package == "matplotlib" or getattr(value, "__name__", "") == "matplotlib.pyplot":
        from spoolagent.writers.wandb_image import Image

        return Image(value)
    if package == "plotly":
        return Html(value.to_html(include_plotlyjs="cdn"), inject=False, data_is_not_path=True)
    return value
