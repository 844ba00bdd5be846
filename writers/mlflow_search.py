"""`search_runs` over the runs of this process, with MLflow's filters and orders. No server is asked."""

import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from spoolagent.writers import mlflow_book as book
from spoolagent.writers.mlflow_entities import Run, ViewType
from spoolagent.writers.mlflow_errors import invalid

_CLAUSE = re.compile(
    r"""\s*(?:(?P<of>[a-z]+)\s*\.\s*)?(?P<key>"[^"]+"|`[^`]+`|[\w./\-]+)\s*
    (?P<op>!=|<=|>=|=|<|>|NOT\s+IN\b|IN\b|NOT\s+LIKE\b|LIKE\b|ILIKE\b|IS\s+NOT\s+NULL\b|IS\s+NULL\b)\s*
    (?P<value>\((?:[^()'"]|'[^']*'|"[^"]*")*\)|'[^']*'|"[^"]*"|[\w.+\-]+)?\s*(?P<and>AND\b|$)""",
    re.IGNORECASE | re.VERBOSE,
)
_ORDER = re.compile(
    r"""\s*(?:(?P<of>[a-z]+)\s*\.\s*)?(?P<key>"[^"]+"|`[^`]+`|[^\s"`]+)(?:\s+(?P<way>ASC|DESC))?\s*$""",
    re.IGNORECASE | re.VERBOSE,
)
_KINDS = {
    **dict.fromkeys(("metric", "metrics"), "metrics"),
    **dict.fromkeys(("param", "params", "parameter", "parameters"), "params"),
    **dict.fromkeys(("tag", "tags"), "tags"),
    **dict.fromkeys(("attribute", "attributes", "attr", "run"), "info"),
}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NAMES = {"created": "start_time", "Created": "start_time", "run name": "run_name", "Run name": "run_name"}


def search(
    experiment_ids: Sequence[Any],
    filter_string: str | None,
    run_view_type: int,
    max_results: int,
    order_by: Sequence[str] | None,
) -> list[Run]:
    """The runs that match, at most `max_results`. Raises MlflowException for a filter or order that is none."""
    if run_view_type == ViewType.DELETED_ONLY:
        return []
    tests = _tests(filter_string or "")
    wanted = {str(ident) for ident in experiment_ids}
    runs = [run.entity() for run in book.all_runs() if run.experiment.experiment_id in wanted]
    found = [run for run in runs if all(test(run) for test in tests)]
    found.sort(key=lambda run: run.info.run_id)
    found.sort(key=lambda run: run.info.start_time, reverse=True)
    for order in reversed(order_by or ()):
        _sort(found, order)
    return found[:max_results]


def _place(of: str | None, key: str) -> tuple[str, str]:
    kind = _KINDS.get((of or "attribute").lower())
    if kind is None:
        raise invalid(f"invalid entity type {of!r}: use metrics, params, tags or attributes")
    key = key.strip('"`')
    return kind, _NAMES.get(key, key) if kind == "info" else key


def _value_of(run: Run, kind: str, key: str) -> Any:
    if kind != "info":
        return getattr(run.data, kind).get(key)
    try:
        return dict(run.info)[key]
    except KeyError as error:
        raise invalid(f"invalid attribute key {key!r}: use one of {', '.join(dict(run.info))}") from error


def _tests(text: str) -> list[Callable[[Run], bool]]:
    made: list[Callable[[Run], bool]] = []
    at = 0
    while text[at:].strip():
        found = _CLAUSE.match(text, at)
        if found is None:
            raise invalid(f"invalid filter_string {text!r} at {text[at:]!r}")
        kind, key = _place(found["of"], found["key"])
        op = " ".join(found["op"].upper().split())
        made.append(_test(kind, key, op, found["value"]))
        at = found.end()
        if found["and"] and not text[at:].strip():
            raise invalid(f"invalid filter_string {text!r}: nothing follows {found['and']}")
    return made


def _test(kind: str, key: str, op: str, literal: str | None) -> Callable[[Run], bool]:
    if op in ("IS NULL", "IS NOT NULL"):
        return lambda run: (_value_of(run, kind, key) is None) == (op == "IS NULL")
    if literal is None:
        raise invalid(f"filter_string: no value for {key!r}")
    number = kind == "metrics" or (kind == "info" and key in ("start_time", "end_time"))
    if number:
        try:
            value: Any = float(literal)
        except ValueError as error:
            raise invalid(f"filter_string: {key!r} is compared with a number, not {literal}") from error
    elif literal[0] not in "'\"(":
        raise invalid(f"filter_string: expected a quoted string value for {kind} {key!r}, got {literal}")
    elif literal[0] == "(":
        value = [a or b for a, b in re.findall(r"""'([^']*)'|"([^"]*)\"""", literal)]
    else:
        value = literal[1:-1]
    compare = _COMPARE.get(op) or _text_test(op, value)

    def test(run: Run) -> bool:
        held = _value_of(run, kind, key)
        return held is not None and compare(held, value)

    return test


def _text_test(op: str, value: Any) -> Callable[[Any, Any], bool]:
    if op in ("IN", "NOT IN"):
        return lambda held, _value: (held in value) == (op == "IN")
    pattern = "".join({"%": ".*", "_": "."}.get(char, re.escape(char)) for char in str(value))
    like = re.compile(pattern, re.DOTALL | (re.IGNORECASE if op == "ILIKE" else 0))
    return lambda held, _value: bool(like.fullmatch(str(held))) == (op != "NOT LIKE")


def _sort(runs: list[Run], order: str) -> None:
    """Sorts in place and stably; runs without the value come last, those with NaN before them."""
    found = _ORDER.match(order)
    if found is None:
        raise invalid(f"invalid order_by {order!r}: write e.g. 'metrics.loss ASC'")
    kind, key = _place(found["of"], found["key"])
    falling = (found["way"] or "").upper() == "DESC"

    def nan(value: Any) -> bool:
        return isinstance(value, float) and math.isnan(value)

    values = {id(run): _value_of(run, kind, key) for run in runs}
    missing = [run for run in runs if values[id(run)] is None]
    nans = [run for run in runs if nan(values[id(run)])]
    rest = [run for run in runs if values[id(run)] is not None and not nan(values[id(run)])]
    rest.sort(key=lambda run: values[id(run)], reverse=falling)
    runs[:] = [*rest, *nans, *missing]


def frame(runs: Sequence[Run]) -> Any:
    """The runs as MLflow's pandas.DataFrame: one row a run, a column for each metric, param and tag."""
    import pandas as pd  # type: ignore[import-untyped,unused-ignore] # pandas is the caller's, not ours

    info = ("run_id", "experiment_id", "status", "artifact_uri", "start_time", "end_time")
    data: dict[str, Any] = {name: [dict(run.info)[name] for run in runs] for name in info}
    for name in ("start_time", "end_time"):
        data[name] = pd.to_datetime(pd.Series(data[name], dtype="float64"), unit="ms", utc=True)
    for kind, empty in (("metrics", math.nan), ("params", None), ("tags", None)):
        for key in dict.fromkeys(key for run in runs for key in getattr(run.data, kind)):
            data[f"{kind}.{key}"] = [getattr(run.data, kind).get(key, empty) for run in runs]
    return pd.DataFrame(data)
