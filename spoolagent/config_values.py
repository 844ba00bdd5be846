"""What a setting may be: its kind, its range, and the message when it is not that."""

import difflib
import re
from collections.abc import Callable, Collection
from typing import Any

from spoolagent.errors import UsageError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", re.ASCII)
_NAMED = 25
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

Kind = Callable[[Any, str], Any]
"""Called as `kind(value, where)`: the checked value. Raises UsageError, which names `where`."""


def nearest(word: str, known: Collection[str]) -> str:
    """The next step for somebody who wrote `word` where only `known` is understood."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    names = sorted(known)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"known are {', '.join(names[:_NAMED])}{more}" if names else "there are none"


def parse_duration(value: Any, where: str) -> float:
    """Seconds: a number, or a text such as "500ms", "30s", "10m", "12h", "1d". Raises UsageError."""
    if type(value) in (int, float) and 0 <= value < float("inf"):
        return float(value)
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise UsageError(
            f'{where}: {value!r} is no duration: write seconds, or a text like "30s", "10m", "1d"'
        )
    return float(match[1]) * _UNIT_S[match[2] or "s"]


def duration(low_s: float, high_s: float) -> Kind:
    """A duration within a range, in seconds."""

    def check(value: Any, where: str) -> float:
        seconds = parse_duration(value, where)
        if not low_s <= seconds <= high_s:
            raise UsageError(f"{where}: {value!r} is out of range: {low_s:g} to {high_s:g} seconds")
        return seconds

    return check


def integer(low: int, high: int) -> Kind:
    """A whole number within a range; digits in a text are taken too (the environment has only texts)."""

    def check(value: Any, where: str) -> int:
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        if type(value) is not int:
            raise UsageError(f"{where}: {value!r} is not a whole number")
        if not low <= value <= high:
            raise UsageError(f"{where}: {value} is out of range: {low} to {high}")
        return value

    return check


def text(value: Any, where: str) -> str:
    """A text that is not empty and has no control characters."""
    if not isinstance(value, str):
        raise UsageError(f"{where}: expected a text, got {type(value).__name__}")
    if not value.strip() or any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise UsageError(f"{where}: {value!r} is empty or has control characters")
    return value


def texts(value: Any, where: str) -> tuple[str, ...]:
    """A list of texts; one text may hold several, separated by commas."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"{where}: expected a list of texts, got {type(value).__name__}")
    return tuple(text(item, f"{where}[{place}]") for place, item in enumerate(value))


def switch(value: Any, where: str) -> bool | None:
    """true, false, or "auto" (None)."""
    known = {"true": True, "false": False, "1": True, "0": False, "auto": None}
    if type(value) is bool:
        return value
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    raise UsageError(f'{where}: {value!r} is not true, false or "auto"')
