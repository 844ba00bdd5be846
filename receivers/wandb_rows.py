"""Which history row each value goes to, and which `_step` the row gets. Pure; nothing here knows W&B's bytes.

Each stream has at most one open row. Events of an equal step and distinct names join it; anything else closes it,
never a timer. Rows are numbered over all streams of a run in the order in which they close: the user's step while
it rises, else the last `_step` + 1. The user's step is then also a column, `global_step`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

STEP_COLUMN = "global_step"
RANK_COLUMN = "rank"
_LARGEST_TAKEN = 2**62
"""A user's step above it is a column only: W&B's steps have 64 bits, and the rows that follow need some."""


@dataclass(kw_only=True, slots=True)
class Row:
    """A row that is not closed yet. `values` are JSON texts (W&B's: with NaN and Infinity)."""

    step: int | None
    values: dict[str, str] = field(default_factory=dict)
    at_ns: int = 0
    """Time of its last event."""
    stamp: tuple[int, str, int] = (0, "", 0)
    """(time, writer, seq) of its last event."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Closed:
    """A row as it goes to W&B."""

    step: int
    values: dict[str, str]
    at_ns: int
    stamp: tuple[int, str, int]
    axis: str | None = None
    """Set where `step` is not the user's: "all" when every row of these metrics has the column, "some" for W&B's
    API, whose rows have it only where they must."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """What one event adds to a row."""

    values: dict[str, str]
    step: int | None
    at_ns: int
    stamp: tuple[int, str, int]
    close: bool
    """The row is complete with it."""


@dataclass(kw_only=True, slots=True)
class Writer:
    """What a stream's first event said about it, and its open row."""

    api: str = "native"
    rank: int | None = None
    row: Row | None = None
    attempt: int = 1


class Rows:
    """The rows of one run: its last step, its writers and their open rows. `save` and the constructor are inverse."""

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        saved = saved or {}
        self.last_step: int = saved.get("last_step", -1)
        self.writers: dict[str, Writer] = {}
        for name, data in saved.get("writers", {}).items():
            row = data["row"]
            made = Row(**{**row, "stamp": tuple(row["stamp"])}) if row else None
            attempt = data.get("attempt", 1)
            self.writers[name] = Writer(api=data["api"], rank=data["rank"], row=made, attempt=attempt)

    def save(self) -> dict[str, Any]:
        """The state as JSON."""
        return {
            "last_step": self.last_step,
            "writers": {name: asdict(writer) for name, writer in self.writers.items()},
        }

    def begin(self, writer: str, api: str, rank: int | None, attempt: int = 1) -> list[Closed]:
        """Takes note of a stream's `run_start`. Closes the rows that earlier lives of the run left open, in order.

        Otherwise a killed life's last row would come after all rows of the life that went on.
        """
        held = self.writers.setdefault(writer, Writer())
        held.api, held.rank, held.attempt = api, rank, attempt
        left = sorted(name for name, other in self.writers.items() if other.attempt < attempt)
        return [row for name in left for row in self.close(name)]

    def is_open(self, writer: str) -> bool:
        """True when the stream has a row that is not closed."""
        held = self.writers.get(writer)
        return held is not None and held.row is not None

    def add(self, writer: str, point: Point) -> Iterator[Closed]:
        """Puts `point` into the stream's row; yields the rows that it closes, in order."""
        held = self.writers.setdefault(writer, Writer())
        if held.row is not None and not self._joins(held, held.row, point):
            yield from self.close(writer)
        if held.row is None:
            held.row = Row(step=point.step)
        row = held.row
        for name, text in point.values.items():
            row.values[name] = _joined(row.values.get(name), text)
        row.at_ns, row.stamp = point.at_ns, point.stamp
        if point.close:
            yield from self.close(writer)

    def _joins(self, held: Writer, row: Row, point: Point) -> bool:
        if held.api == "wandb":  # as its log(): without a step into the open row, a repeated name replaces
            current = self.last_step + 1 if row.step is None else row.step
            return point.step is None or point.step == current
        if point.step != row.step:  # a row without a step is open only when its event said so
            return False
        return not any(
            name in row.values and not _continues(row.values[name], text)
            for name, text in point.values.items()
        )

    def close(self, writer: str) -> Iterator[Closed]:
        """Closes the stream's open row, if it has one."""
        held = self.writers.get(writer)
        if held is None or held.row is None:
            return
        row, held.row = held.row, None
        rising = row.step is not None and self.last_step < row.step <= _LARGEST_TAKEN
        step = row.step if rising and row.step is not None else self.last_step + 1
        self.last_step = step
        values, axis = {name: _finished(text) for name, text in row.values.items()}, None
        if row.step is not None and (held.api != "wandb" or step != row.step):
            values.setdefault(STEP_COLUMN, str(row.step))
            if step != row.step:
                axis = "some" if held.api == "wandb" else "all"
        if held.rank:
            values.setdefault(RANK_COLUMN, str(held.rank))
        yield Closed(step=step, values=values, at_ns=row.at_ns, stamp=row.stamp, axis=axis)

    def close_all(self) -> Iterator[Closed]:
        """Closes the open rows of all streams, in the order of the streams' names."""
        for writer in sorted(self.writers):
            yield from self.close(writer)


_LIST_TYPE = "images/separated"


def _continues(held: str, text: str) -> bool:
    """True when both are images of one list."""
    marker = f'"_type":"{_LIST_TYPE}"'
    return marker in held and marker in text


def _joined(held: str | None, text: str) -> str:
    """The text for a name that the row may already have: lists of images and nested values are put together."""
    if held is None or not (held.startswith("{") and text.startswith("{")):
        return text
    before, after = json.loads(held), json.loads(text)
    if _continues(held, text):
        for name in ("filenames", "captions"):
            if name in before or name in after:
                before[name] = before.get(name, []) + after.get(name, [])
        before["count"] = len(before["filenames"])
    elif "_type" in before or "_type" in after:
        return text
    else:
        _merge(before, after)
    return json.dumps(before, separators=(",", ":"), ensure_ascii=False)


def _finished(text: str) -> str:
    """A list of images without captions has none, rather than empty ones."""
    if not text.startswith('{"_type":"images/'):
        return text
    value = json.loads(text)
    if not any(value.get("captions", ())):
        value.pop("captions", None)
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        held = into.get(name)
        if isinstance(held, dict) and isinstance(value, dict):
            _merge(held, value)
        else:
            into[name] = value
