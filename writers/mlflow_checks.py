"""What MLflow takes and refuses: names, values, steps, times."""

import os
import posixpath
import re
from typing import Any

from spoolagent.writers.mlflow_errors import INTERNAL_ERROR, MlflowException, invalid
from spoolagent.writers.process import warn_once
from spoolagent.writers.run import check_step

MAX_KEY, MAX_PARAM, MAX_TAG, MAX_EXPERIMENT = 250, 6000, 8000, 500
"""Characters."""
STEP_MIN, STEP_MAX = -(2**63), 2**63 - 1
_MAX_MS = STEP_MAX // 1_000_000
"""Milliseconds whose nanoseconds still fit 64 bits: the year 2262."""
_NAME = re.compile(r"[/\w.\- :]*$")
_RUN_ID = re.compile(r"[a-zA-Z0-9][\w\-]{0,255}$")
_CHARACTERS = "letters, digits, '_', '-', '.', ' ', ':' and '/'"
_KEEP = 100_000

good_keys: set[str] = set()
"""Metric names that were checked already."""


def _resolves_elsewhere(name: str) -> bool:
    norm = posixpath.normpath(name)
    return norm != name or norm == "." or norm.startswith(("..", "/"))


def check_key(kind: str, name: Any, where: str) -> None:
    """Raises MlflowException for a name that MLflow refuses, TypeError for one that is no text.

    `kind` is "metric", "param" or "tag", `where` the argument as the message calls it.
    """
    if name is None:
        raise invalid(f"no value for {where!r}: a {kind} needs a name")
    if _NAME.match(name) is None:
        raise invalid(f"invalid value {name!r} for {where!r}: names may only contain {_CHARACTERS}")
    if _resolves_elsewhere(name):
        raise invalid(
            f"invalid value {name!r} for {where!r}: names may become files, and this one would resolve to "
            f"{posixpath.normpath(name)!r}"
        )
    if len(name) > MAX_KEY:
        raise invalid(f"{where!r}: a {kind}'s name has at most {MAX_KEY} characters, this one {len(name)}")
    if kind == "metric":
        if len(good_keys) >= _KEEP:
            good_keys.clear()
        good_keys.add(name)


def check_run_id(run_id: Any) -> None:
    """Raises MlflowException for what cannot be a run's id."""
    if not isinstance(run_id, str) or _RUN_ID.match(run_id) is None:
        raise invalid(f"invalid value {run_id!r} for 'run_id'")


def check_experiment_name(name: Any) -> None:
    """Raises MlflowException for what cannot name an experiment."""
    if not isinstance(name, str) or not name:
        raise invalid(f"invalid experiment name {name!r}: it must be a text")
    if len(name) > MAX_EXPERIMENT:
        raise invalid(f"'name': an experiment's name has at most {MAX_EXPERIMENT} characters")


def check_folder(path: Any) -> str | None:
    """The folder inside a run's artifacts that `artifact_path` names; None is their root."""
    if not path:
        return None
    text = str(path)
    if _resolves_elsewhere(text):
        raise MlflowException(
            f"invalid artifact path {text!r}: it would resolve to {posixpath.normpath(text)!r}",
            INTERNAL_ERROR,
        )
    return text


def check_file(artifact_file: Any) -> str:
    """The path, inside a run's artifacts, of the file that a call writes. Raises as MLflow does."""
    path: str = posixpath.normpath(artifact_file)
    folder, name = posixpath.split(path)
    check_folder(folder)
    if name in ("", ".", ".."):
        raise IsADirectoryError(21, "Is a directory", str(artifact_file))
    return path


def to_float(value: Any, where: str) -> float:
    """A metric's value as MLflow takes it. Raises MlflowException or TypeError for what is no number."""
    if value is None:
        raise invalid(f"no value for {where!r}")
    item = getattr(value, "item", None)  # arrays and tensors, and the scalars of numpy
    if callable(item):
        try:
            value = item()
        except (ValueError, RuntimeError, TypeError) as error:
            raise invalid(f"{where!r}: not convertible to a float: {error}") from error
    try:
        return float(value)
    except ValueError as error:
        raise invalid(
            f"invalid value {value!r} for {where!r}: it must be a 64-bit floating point number"
        ) from error


def to_step(step: Any, where: str) -> int:
    """A step as MLflow's server takes it: an int. TypeError for a float, MlflowException for the rest."""
    if isinstance(step, (str, list, tuple, dict)) or step is None:
        raise invalid(f"invalid value {step!r} for {where!r}: a step is a 64-bit integer")
    try:
        number = check_step(step)
    except ValueError:  # beyond 64 bits
        number = None
    if number is None:
        raise invalid(f"invalid value {step!r} for {where!r}: a step is a 64-bit integer")
    return number


def to_at_ns(timestamp: Any, where: str) -> int:
    """The nanoseconds of a timestamp in milliseconds since the epoch; after 2262 the last that there are.

    Raises MlflowException for what MLflow refuses.
    """
    try:
        milliseconds = -1 if isinstance(timestamp, (str, bytes)) else int(timestamp)
    except (TypeError, ValueError, OverflowError):
        milliseconds = -1
    if not 0 <= milliseconds <= STEP_MAX:
        raise invalid(f"invalid value {timestamp!r} for {where!r}: it must be milliseconds since 1970")
    if milliseconds > _MAX_MS:
        warn_once("timestamp", f"a timestamp of {milliseconds} ms is after the year 2262: {_MAX_MS} is kept")
        return _MAX_MS * 1_000_000
    return milliseconds * 1_000_000


def cut(text: str, limit: int, what: str) -> str:
    """`text`, cut at `limit` characters; MLFLOW_TRUNCATE_LONG_VALUES=false makes it an error instead."""
    if len(text) <= limit:
        return text
    if os.environ.get("MLFLOW_TRUNCATE_LONG_VALUES", "true").lower() in ("false", "0"):
        raise invalid(f"{what!r} has {len(text)} characters, the limit is {limit}")
    warn_once(what, f"{what} of {len(text)} characters cut to {limit}, as MLflow does; so will be later ones")
    return text[:limit]


def param_value(value: Any) -> tuple[str | int | float | bool, str]:
    """A param's value as the event holds it, and the text that MLflow shows for it."""
    text = value if type(value) is str else str(value)
    shown = cut(text, MAX_PARAM, "param value")
    plain = shown is text and type(value) in (int, float, bool)
    return (value if plain else shown), shown
