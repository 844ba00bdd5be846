"""Rows of the result: two measured figures, their ratio, and what DESIGN.md asks for."""

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from benchmarks.rounds import Subject

Unit = Literal["us", "ms", "/s"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """`ratio` is of the best rounds, `ratio_median` the middle of each round's, `ratio_cpu` that of processor time.

    The verdict goes by the median: DESIGN.md's figures are means, and a peer that hands its work to a thread pays
    for it in most rounds, but not in its best.
    """

    what: str
    unit: Unit
    ours_s: float | None
    """Seconds per operation; None in a row that only shows a figure for comparison."""
    reference: str
    reference_s: float
    ratio: float | None = None
    ratio_median: float | None = None
    ratio_cpu: float | None = None
    required: str = ""
    meets: bool | None = None
    """None: nothing is required."""

    def as_json(self) -> dict[str, Any]:
        """The row for programs."""
        return asdict(self)


def bare(subject: Subject, unit: Unit = "us") -> Row:
    """A figure for comparison."""
    return Row(what=subject.name, unit=unit, ours_s=None, reference=subject.name, reference_s=subject.best_s)


def at_most(ours: Subject, reference: Subject, limit: float) -> Row:
    """Ours may cost `limit` times the reference."""
    per_round = [a / b for a, b in zip(ours.times_s, reference.times_s, strict=True)]
    ratio = ours.best_s / reference.best_s
    return Row(
        what=ours.name,
        unit="us",
        ours_s=ours.best_s,
        reference=reference.name,
        reference_s=reference.best_s,
        ratio=ratio,
        ratio_median=median(per_round),
        ratio_cpu=ours.best_cpu_s / reference.best_cpu_s,
        required=f"<= {limit:g} x the cost",
        meets=median(per_round) <= limit,
    )


def at_least(ours: Subject, reference: Subject, limit: float | None, unit: Unit, word: str) -> Row:
    """Ours must be `limit` times as fast as the reference, or cost that much less."""
    per_round = [b / a for a, b in zip(ours.times_s, reference.times_s, strict=True)]
    ratio = reference.best_s / ours.best_s
    return Row(
        what=ours.name,
        unit=unit,
        ours_s=ours.best_s,
        reference=reference.name,
        reference_s=reference.best_s,
        ratio=ratio,
        ratio_median=median(per_round),
        ratio_cpu=reference.best_cpu_s / ours.best_cpu_s,
        required="" if limit is None else f">= {limit:g} x {word}",
        meets=None if limit is None else median(per_round) >= limit,
    )


def under(what: str, ours_s: float, limit_s: float, reference: str, reference_s: float) -> Row:
    """Ours must take less than `limit_s`; the reference is shown beside it."""
    return Row(
        what=what,
        unit="ms",
        ours_s=ours_s,
        reference=reference,
        reference_s=reference_s,
        ratio=reference_s / ours_s,
        required=f"< {limit_s * 1000:g} ms",
        meets=ours_s < limit_s,
    )


def figure(seconds: float | None, unit: Unit) -> str:
    """Seconds per operation as people read them."""
    if seconds is None:
        return ""
    if unit == "us":
        return f"{seconds * 1e6:.2f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
    if unit == "ms":
        return f"{seconds * 1e3:.0f} ms"
    rate = 1 / seconds
    return f"{rate / 1e6:.2f} M/s" if rate >= 1e6 else f"{rate / 1e3:.1f} k/s"
