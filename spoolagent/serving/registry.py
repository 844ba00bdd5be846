"""Finding receivers by the entry-point group `spoolagent.receivers`; the built-in ones, too, come that way."""

import difflib
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from spoolagent.contract import Options, Receiver
from spoolagent.errors import UsageError, cannot_import

GROUP = "spoolagent.receivers"


def known_kinds() -> list[str]:
    """The kinds of receivers that are installed, sorted."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def split_spec(spec: str) -> tuple[str, str]:
    """`kind:target` as (kind, target). Raises UsageError for an unknown kind, naming the nearest."""
    kind, colon, target = spec.partition(":")
    kinds = known_kinds()
    if not colon or not target or kind not in kinds:
        near = difflib.get_close_matches(kind, kinds, 1)
        hint = f"; did you mean {near[0]}:...?" if near and near[0] != kind else ""
        raise UsageError(
            f"{spec!r} is no receiver: give kind:target with one of {', '.join(kinds)}{hint} "
            "(or the name of a receiver in the configuration)"
        )
    return kind, target


def load_receiver(spec: str, options: Options) -> Receiver:
    """The receiver of a spec, not yet opened. Raises UsageError when the spec, options or its extra are wrong."""
    kind, target = split_spec(spec)
    point = next(p for p in entry_points(group=GROUP) if p.name == kind)
    return cast(Receiver, _factory(point)(target, options))  # type: ignore[operator] # checked by the contract tests


def _factory(point: EntryPoint) -> object:
    try:
        return point.load()
    except ImportError as error:
        raise cannot_import(f"what receiver {point.name} needs", error, point.name) from error
