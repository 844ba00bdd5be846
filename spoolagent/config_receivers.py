"""Receivers in a configuration: `[receivers.NAME]` tables, and what a RECEIVER argument means."""

from collections.abc import Mapping
from typing import Any

from spoolagent.config_values import Kind, duration, integer, nearest, text
from spoolagent.errors import UsageError
from spoolagent.format.names import is_legal
from spoolagent.serving.registry import known_kinds
from spoolagent.settings import ReceiverSettings

COMMON: Mapping[str, Kind] = {
    "to": text,
    "max_events": integer(1, 100_000),
    "max_bytes": integer(1024, 256 << 20),
    "flush_interval": duration(0, 3600),
}
"""The keys that every receiver has. Any other key is the receiver's own option, and the receiver checks it."""


def receiver_from_table(name: str, table: Any, where: str) -> ReceiverSettings:
    """The receiver of one `[receivers.NAME]` table. Raises UsageError."""
    if not is_legal(name):
        raise UsageError(f"{where}: the name {name!r} is not legal: use A-Z a-z 0-9 . _ - only")
    if not isinstance(table, dict):
        raise UsageError(
            f'{where}: expected a table, such as [receivers.{name}] with to = "tensorboard:/srv/tb"'
        )
    if "to" not in table:
        raise UsageError(
            f'{where}: `to` is missing: say where it delivers, such as to = "tensorboard:/srv/tb"'
        )
    values = {key: COMMON[key](value, f"{where}.{key}") for key, value in table.items() if key in COMMON}
    options = {key: value for key, value in table.items() if key not in COMMON}
    for key in options:
        _refuse_misspelt(key, f"{where}.{key}")
    spec = values["to"]
    check_spec(spec, f"{where}.to")
    return _settings(name, spec, options, values)


def receiver_from_argument(
    argument: str, named: Mapping[str, ReceiverSettings], where: str
) -> ReceiverSettings:
    """The receiver that a RECEIVER argument means: a name in `named`, or a spec `kind:target`. Raises UsageError."""
    if argument in named:
        return named[argument]
    if ":" not in argument:
        kinds = known_kinds()
        if argument in kinds:
            raise UsageError(f"{where}: {argument!r} needs a target: write {argument}:TARGET")
        hint = nearest(argument, [*named, *kinds])
        have = "" if named else "; the configuration names no receiver, so write kind:target"
        raise UsageError(f"{where}: no receiver is called {argument!r}: {hint}{have}")
    check_spec(argument, where)
    return _settings(argument, argument, {}, {})


def check_spec(spec: str, where: str) -> None:
    """Raises UsageError unless `spec` is `kind:target` with a kind that is installed."""
    kind, colon, target = spec.partition(":")
    kinds = known_kinds()
    if not colon:
        raise UsageError(f"{where}: {spec!r} is not kind:target; kinds are {', '.join(sorted(kinds))}")
    if kind not in kinds:
        raise UsageError(f"{where}: unknown receiver kind {kind!r}: {nearest(kind, kinds)}")
    if not target:
        raise UsageError(f"{where}: {spec!r} has no target: write {kind}:TARGET")


def _refuse_misspelt(key: str, where: str) -> None:
    """A receiver's own options are its own affair, but `max_event` is none of them."""
    hint = nearest(key, COMMON)
    if hint.startswith("did you mean") and _close(key):
        raise UsageError(f"{where}: unknown key: {hint}")


def _close(key: str) -> bool:
    plain = key.lower().replace("-", "_").removesuffix("_s").removesuffix("_seconds")
    return any(plain == known or _one_edit(plain, known) for known in COMMON if len(known) > 2)


def _one_edit(left: str, right: str) -> bool:
    """True when one letter was added, left out, changed, or two neighbours swapped."""
    if abs(len(left) - len(right)) > 1:
        return False
    start = next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )
    rest_left, rest_right = left[start:], right[start:]
    return (
        rest_left[1:] == rest_right
        or rest_left == rest_right[1:]
        or rest_left[1:] == rest_right[1:]
        or (rest_left[:2] == rest_right[:2][::-1] and rest_left[2:] == rest_right[2:])
    )


def _settings(
    name: str, spec: str, options: Mapping[str, Any], values: Mapping[str, Any]
) -> ReceiverSettings:
    fallback = ReceiverSettings(name=name, spec=spec)
    return ReceiverSettings(
        name=name,
        spec=spec,
        options=dict(options),
        max_events=values.get("max_events", fallback.max_events),
        max_bytes=values.get("max_bytes", fallback.max_bytes),
        flush_interval_s=values.get("flush_interval", fallback.flush_interval_s),
    )
