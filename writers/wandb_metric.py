"""`define_metric`: how a metric is drawn and summed up."""

import math
from typing import Any

from spoolagent.writers.run import optional
from spoolagent.writers.wandb_errors import Error

_OPS = frozenset(("min", "max", "mean", "last", "copy", "none", "first"))


class Metric:
    """One definition."""

    def __init__(
        self,
        name: str,
        step_metric: str | None = None,
        step_sync: bool | None = None,
        hidden: bool | None = None,
        summary: tuple[str, ...] | None = None,
        overwrite: bool | None = None,
    ) -> None:
        self.name, self.step_metric, self.hidden, self.summary = name, step_metric, hidden, summary
        self.step_sync = step_metric is not None if step_sync is None else step_sync
        self.overwrite = overwrite
        self._seen: dict[str, tuple[int, float, float, float, Any]] = {}

    def merged(self, before: "Metric | None") -> "Metric":
        """The definition over an earlier one of the same name, unless it is to overwrite it."""
        if before is None or self.overwrite:
            return self
        made = Metric(
            self.name,
            self.step_metric if self.step_metric is not None else before.step_metric,
            self.step_sync or before.step_sync,
            self.hidden if self.hidden is not None else before.hidden,
            self.summary if self.summary is not None else before.summary,
        )
        made._seen = before._seen  # noqa: SLF001 - of the same class
        return made

    def fields(self) -> dict[str, Any]:
        """The `define_metric` event."""
        summary = None if self.summary is None else ",".join(self.summary)
        step = optional(step_metric=self.step_metric, hidden=self.hidden, summary=summary)
        return {"name": self.name, "step_sync": self.step_sync, **step}

    def show(self, name: str, value: Any) -> dict[str, Any]:
        """What the summary shows of `name` after this value."""
        ops = self.summary or ()
        if "none" in ops:
            return {}
        if not ops or "copy" in ops or isinstance(value, bool) or not isinstance(value, (int, float)):
            return {name: value}
        count, total, low, high, first = self._seen.get(name, (0, 0.0, math.inf, -math.inf, value))
        if math.isfinite(value):
            count, total, low, high = count + 1, total + value, min(low, value), max(high, value)
        self._seen[name] = (count, total, low, high, first)
        made = {"last": value, "first": first}
        if count:
            made |= {"min": low, "max": high, "mean": total / count}
        return {name: {op: made[op] for op in ops if op in made}}


def find(defined: dict[str, Metric], name: str) -> Metric | None:
    """The definition that holds for a metric: its own, else that of the longest glob."""
    own = defined.get(name)
    if own is not None:
        return own
    globs = [made for key, made in defined.items() if key.endswith("*") and name.startswith(key[:-1])]
    return max(globs, key=lambda made: len(made.name), default=None)


def make(name: Any, step_metric: Any, step_sync: Any, hidden: Any, summary: Any, overwrite: Any) -> Metric:
    """A definition of checked arguments. Raises Error."""
    if not name:
        raise Error("define_metric() requires non-empty name argument")
    if isinstance(step_metric, Metric):
        step_metric = step_metric.name
    given = {
        "name": (name, str),
        "step_metric": (step_metric, str),
        "step_sync": (step_sync, bool),
        "hidden": (hidden, bool),
        "summary": (summary, str),
        "overwrite": (overwrite, bool),
    }
    for arg, (value, kind) in given.items():
        if value is not None and not isinstance(value, kind):
            raise Error(f"Unhandled define_metric() arg: {arg} type: {type(value).__name__}")
    if "*" in name.removesuffix("*"):
        raise Error(f"Unhandled define_metric() arg: name (glob suffixes only): {name}")
    ops = tuple(op.lower() for op in summary.split(",")) if summary else None
    for op in ops or ():
        if op not in _OPS:
            raise Error(f"Unhandled define_metric() arg: summary op: {op}")
    return Metric(name, step_metric, step_sync, hidden, ops, overwrite)
