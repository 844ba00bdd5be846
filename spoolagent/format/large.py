"""Events that do not fit in a line: those that hold many names are written as several of their type.

What a blob can hold (a text, a table, an image) its caller puts into one before; a single value that is too large
for a line and has no blob cannot be stored.
"""

from collections.abc import Iterator
from typing import Any

from orjson import dumps

_MANY = {
    "metrics": "metrics",
    "system": "metrics",
    "param": "params",
    "tag": "tags",
    "summary": "summary",
    "artifact": "files",
    "model": "files",
}
"""Types whose event means the same as several with a part of the names each, and the field that holds them."""
PART = 512 << 10
"""Bytes of JSON from which a part begins another; one name with its value may take as much again."""


def split(kind: str, fields: dict[str, Any], at_ns: int) -> Iterator[dict[str, Any]]:
    """The fields of several events of type `kind` that together say what `fields` says, at the time `at_ns`.

    A name whose value is larger than `PART` comes alone. Yields `fields` as they are where they cannot be parted.
    """
    field = _MANY.get(kind)
    if field is None or len(fields[field]) < 2:
        yield fields
        return
    common = {name: value for name, value in fields.items() if name != field}
    if common.get("at") is None:
        common["at"] = at_ns
    # A row of W&B goes on until its last part, which says what the caller said.
    unfinished = {**common, "commit": False} if kind == "metrics" else common
    held = fields[field]
    whole: type[dict[str, Any] | list[Any]] = type(held)
    part: list[Any] = []
    size = 0
    for item in held.items() if whole is dict else held:
        more = len(dumps(item))
        if part and size + more > PART:
            yield {**unfinished, field: whole(part)}
            part, size = [], 0
        part.append(item)
        size += more
    yield {**common, field: whole(part)}


def describe(kind: str, fields: dict[str, Any], size: int) -> str:
    """Why an event is dropped that has `size` bytes and cannot be parted."""
    held = fields.get(_MANY.get(kind, ""))
    name = next(iter(held), None) if isinstance(held, dict) else fields.get("key")
    what = f" {name[:100]!r}" if isinstance(name, str) else ""
    return f"a {kind} event{what} of {size} bytes does not fit in a line of the spool"
