"""A run's summary and its metric definitions. Pure.

`wandb sync` computes no summary, so it is ours to keep: the last value of each name, or what `define_metric` asks
for. Explicit summary events compete with rows: the later one by (time, writer, seq) wins, so that the order in
which streams are delivered changes nothing.
"""

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Stamp = tuple[int, str, int]
_LARGEST = sys.float_info.max
KINDS = ("min", "max", "mean", "best", "last", "none", "copy", "first")


@dataclass(frozen=True, kw_only=True, slots=True)
class Definition:
    """One `define_metric`. A name that ends in `*` stands for all names with that front."""

    name: str
    step_metric: str | None = None
    step_sync: bool = False
    hidden: bool = False
    kinds: tuple[str, ...] = ()
    """Of KINDS; empty keeps the last value."""
    goal: str | None = None


def definition(data: Mapping[str, Any]) -> Definition:
    """The definition in a `define_metric` event. Raises ValueError for a summary that W&B does not know."""
    kinds = tuple(kind.strip() for kind in (data.get("summary") or "").split(",") if kind.strip())
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"define_metric: unknown summary {unknown[0]!r}: use {', '.join(KINDS)}")
    step, goal = data.get("step_metric"), data.get("goal")
    sync = data.get("step_sync")
    return Definition(
        name=data["name"],
        step_metric=step,
        step_sync=bool(step) if sync is None else bool(sync),
        hidden=bool(data.get("hidden")),
        kinds=kinds,
        goal={"min": "minimize", "max": "maximize"}.get(goal or "", goal),
    )


@dataclass(kw_only=True, slots=True)
class _Total:
    """What `min`, `max`, `mean` and `first` need of the values so far. NaN counts for none of them."""

    count: int = 0
    total: float = 0.0
    low: float = 0.0
    high: float = 0.0
    first: float = 0.0

    def add(self, value: float) -> None:
        if self.count == 0:
            self.low = self.high = self.first = value
        self.count += 1
        self.total = min(max(self.total + value, -_LARGEST), _LARGEST)  # the state's JSON has no infinity
        self.low, self.high = min(self.low, value), max(self.high, value)


@dataclass(kw_only=True, slots=True)
class Latest:
    """Names and JSON texts, each with the stamp of what set it. A removed name keeps its stamp and has no text."""

    held: dict[str, tuple[str | None, Stamp]] = field(default_factory=dict)

    @classmethod
    def load(cls, saved: Mapping[str, Any]) -> "Latest":
        """The inverse of `save`."""
        return cls(held={name: (text, (at, writer, seq)) for name, (text, at, writer, seq) in saved.items()})

    def save(self) -> dict[str, Any]:
        """As JSON."""
        return {name: (text, *stamp) for name, (text, stamp) in self.held.items()}

    def put(self, name: str, text: str | None, stamp: Stamp) -> bool:
        """Sets or removes `name` unless something later did; True when it took effect."""
        before = self.held.get(name)
        if before is not None and before[1] > stamp:
            return False
        self.held[name] = (text, stamp)
        return True

    def items(self) -> dict[str, str]:
        """What is set now."""
        return {name: text for name, (text, _) in self.held.items() if text is not None}


class Summary:
    """The summary of one run. `save` and the constructor are inverse."""

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        saved = saved or {}
        self.latest = Latest.load(saved.get("latest", {}))
        self.definitions: dict[str, Definition] = {
            data["name"]: Definition(**{**data, "kinds": tuple(data["kinds"])})
            for data in saved.get("defined", [])
        }
        self._totals = {name: _Total(**data) for name, data in saved.get("totals", {}).items()}
        self._axes: dict[str, str] = dict(saved.get("axes", {}))
        self.changed: dict[str, str | None] = {}
        """Name -> new text (None: removed) since the object was made."""

    def save(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "latest": self.latest.save(),
            "defined": [asdict(made) for made in self.definitions.values()],
            "totals": {name: asdict(total) for name, total in self._totals.items()},
            "axes": self._axes,
        }

    def define(self, made: Definition) -> bool:
        """Takes a definition; True when it says something new."""
        if self.definitions.get(made.name) == made:
            return False
        self.definitions[made.name] = made
        return True

    def find(self, name: str) -> Definition | None:
        """The definition that holds for a metric: its own, else that of the longest glob."""
        own = self.definitions.get(name)
        if own is not None or not self.definitions:
            return own
        globs = [
            d for d in self.definitions.values() if d.name.endswith("*") and name.startswith(d.name[:-1])
        ]
        return max(globs, key=lambda made: len(made.name), default=None)

    def complete(self, values: dict[str, str]) -> None:
        """Adds to a row the last value of each step metric that its metrics are drawn against (`step_sync`)."""
        if not self.definitions:
            return
        axes = {made.step_metric for made in self.definitions.values() if made.step_metric}
        self._axes.update({name: values[name] for name in axes if name in values})
        for name in list(values):
            made = self.find(name)
            axis = made.step_metric if made is not None and made.step_sync else None
            if axis and axis not in values and axis in self._axes:
                values[axis] = self._axes[axis]

    def row(self, values: Mapping[str, str], stamp: Stamp) -> None:
        """Takes the values of a closed row."""
        for name, text in values.items():
            made = self.find(name) if self.definitions else None
            kinds = made.kinds if made is not None else ()
            if not kinds:
                self.put(name, text, stamp)
            elif "none" not in kinds:
                goal = made.goal if made is not None else None
                self.put(name, self._aggregate(name, text, kinds, goal), stamp)

    def put(self, name: str, text: str | None, stamp: Stamp) -> None:
        """Sets (or with None removes) a name unless something later did."""
        if self.latest.put(name, text, stamp):
            self.changed[name] = text

    def put_all(self, items: Iterable[tuple[str, str | None]], stamp: Stamp) -> None:
        """`put` for several."""
        for name, text in items:
            self.put(name, text, stamp)

    def _aggregate(self, name: str, text: str, kinds: tuple[str, ...], goal: str | None) -> str:
        value = json.loads(text)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return text
        total = self._totals.setdefault(name, _Total())
        if math.isfinite(value):  # the state's JSON has no other
            total.add(value)
        if "copy" in kinds:
            return text
        best = total.high if goal == "maximize" else total.low
        made = {
            "min": total.low,
            "max": total.high,
            "mean": total.total / max(total.count, 1),
            "best": best,
            "first": total.first,
            "last": value,
        }
        kept = {kind: made[kind] for kind in kinds if kind in made and (total.count or kind == "last")}
        return json.dumps(kept, separators=(",", ":"))
