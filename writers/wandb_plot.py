"""`wandb.plot`: charts that W&B draws from a table. A chart is logged as its table and a note of how to draw it.

numpy and scikit-learn are needed by the same functions as in wandb.
"""

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

from spoolagent.writers.wandb_errors import Error, notice
from spoolagent.writers.wandb_media import Part
from spoolagent.writers.wandb_table import Table


class CustomChart:
    """A table, and which of its columns are drawn how."""

    def __init__(
        self,
        table: Table,
        spec_name: str,
        fields: dict[str, Any],
        string_fields: dict[str, Any],
        *,
        split_table: bool,
    ) -> None:
        self.table, self._spec_name = table, spec_name
        self._fields, self._strings, self._split = fields, string_fields, split_table

    def table_key(self, key: str) -> str:
        """The column of the table, when the chart is logged as `key`."""
        return f"Custom Chart Tables/{key}_table" if self._split else f"{key}_table"

    def panel(self, key: str) -> Part:
        """The event that says how to draw it."""
        table_key = {"name": "tableKey", "value": self.table_key(key)}
        names: list[dict[str, Any]] = [
            {"name": name, "fields": []} for name in ("id", "name", "_defaultColorIndex")
        ]
        runs = {
            "name": "runSets",
            "args": [{"name": "runSets", "value": "${runSets}"}],
            "fields": [*names, {"name": "summaryTable", "args": [table_key], "fields": []}],
        }
        config = {
            "panelDefId": self._spec_name,
            "fieldSettings": self._fields,
            "stringSettings": self._strings,
            "transform": {"name": "tableWithLeafColNames"},
            "userQuery": {"queryFields": [runs]},
        }
        panel = {"panel_type": "Vega2", "panel_config": config}
        return Part("custom", {"name": "wandb.chart", "data": {"key": key, "panel": panel}})


def plot_table(
    vega_spec_name: str,
    data_table: Any,
    fields: dict[str, Any],
    string_fields: dict[str, Any] | None = None,
    split_table: bool = False,
) -> CustomChart:
    """A chart by the name of a Vega specification that W&B has. Raises Error for what is no Table."""
    if not isinstance(data_table, Table):
        raise Error(
            f"Expected `data_table` to be `wandb.Table` type, instead got {type(data_table).__name__}"
        )
    return CustomChart(data_table, vega_spec_name, fields, string_fields or {}, split_table=split_table)


def line(
    table: Any, x: str, y: str, stroke: str | None = None, title: str = "", split_table: bool = False
) -> CustomChart:
    """A line of one column over another."""
    fields = {"x": x, "y": y, "stroke": stroke}
    return plot_table("wandb/line/v0", table, fields, {"title": title}, split_table)


def scatter(table: Any, x: str, y: str, title: str = "", split_table: bool = False) -> CustomChart:
    """Points of two columns."""
    return plot_table("wandb/scatter/v0", table, {"x": x, "y": y}, {"title": title}, split_table)


def bar(table: Any, label: str, value: str, title: str = "", split_table: bool = False) -> CustomChart:
    """A bar for each row."""
    fields = {"label": label, "value": value}
    return plot_table("wandb/bar/v0", table, fields, {"title": title}, split_table)


def histogram(table: Any, value: str, title: str = "", split_table: bool = False) -> CustomChart:
    """The distribution of a column."""
    return plot_table("wandb/histogram/v0", table, {"value": value}, {"title": title}, split_table)


def line_series(
    xs: Any,
    ys: Any,
    keys: Any = None,
    title: str = "",
    xname: str = "x",
    split_table: bool = False,
) -> CustomChart:
    """Several lines. Raises ValueError when there are not as many xs (or one for all) and keys as ys."""
    if not isinstance(xs[0], Iterable) or isinstance(xs[0], (str, bytes)):
        xs = [xs] * len(ys)
    if len(xs) != len(ys):
        raise ValueError(f"Number of x-series ({len(xs)}) must match y-series ({len(ys)}).")
    if keys is None:
        keys = [f"line_{i}" for i in range(len(ys))]
    if len(keys) != len(ys):
        raise ValueError(f"Number of keys ({len(keys)}) must match y-series ({len(ys)}).")
    series = zip(keys, xs, ys, strict=True)
    data = [[x, key, y] for key, xx, yy in series for x, y in zip(xx, yy, strict=False)]
    names = ["step", "lineKey", "lineVal"]
    return plot_table(
        "wandb/lineseries/v0",
        Table(data=data, columns=names),
        dict(zip(names, names, strict=True)),
        {"title": title, "xname": xname},
        split_table,
    )


def confusion_matrix(
    probs: Any = None,
    y_true: Any = None,
    preds: Any = None,
    class_names: Any = None,
    title: str = "Confusion Matrix Curve",
    split_table: bool = False,
) -> CustomChart:
    """How often each class was taken for which. Raises ValueError for lengths and numbers that do not fit."""
    import numpy as np

    if probs is not None and preds is not None:
        raise ValueError("Only one of `probs` or `preds` should be provided, not both.")
    true: Any = y_true
    found: Any = preds if probs is None else np.argmax(probs, axis=1).tolist()
    if len(found) != len(true):
        raise ValueError("The number of predictions and true labels must be equal.")
    seen = sorted(set(found) | set(true)) if class_names is None else list(range(len(class_names)))
    names = [f"Class_{i + 1}" for i in range(len(seen))] if class_names is None else class_names
    if max(len(set(found)), len(set(true))) > len(names):
        raise ValueError("The number of unique classes exceeds the number of class names.")
    counts = np.zeros((len(seen), len(seen)))
    place = {value: i for i, value in enumerate(seen)}
    for one, guess in zip(true, found, strict=True):
        counts[place[one], place[guess]] += 1
    data = [[a, b, counts[i, j]] for i, a in enumerate(names) for j, b in enumerate(names)]
    columns = ["Actual", "Predicted", "nPredictions"]
    return plot_table(
        "wandb/confusion_matrix/v1",
        Table(columns=columns, data=data),
        dict(zip(columns, columns, strict=True)),
        {"title": title},
        split_table,
    )


def _classes(y_true: Any, labels: Sequence[str] | None, wanted: Any) -> list[tuple[int, Any, Any]]:
    """(column of the probabilities, class, its label) of each class that is drawn."""
    import numpy as np

    found = np.unique(y_true)
    chosen = found if wanted is None else wanted
    named = labels if labels is not None and isinstance(found[0], np.integer) else None
    return [
        (i, one, one if named is None else named[one]) for i, one in enumerate(found) if np.isin(one, chosen)
    ]


def _area(
    columns: tuple[str, str], rows: list[list[Any]], axes: tuple[str, str], title: str, split: bool
) -> CustomChart:
    x, y = axes
    order = {"fpr": ("fpr", "tpr"), "precision": ("recall", "precision")}[columns[0]]
    strings = {"title": title, "x-axis-title": x, "y-axis-title": y}
    fields = {"x": order[0], "y": order[1], "class": "class"}
    if len(rows) > Table.MAX_ROWS:  # a sample of each class, the one that wandb takes
        notice(f"wandb uses only {Table.MAX_ROWS} data points to create the plots.")
        resample = importlib.import_module("sklearn.utils").resample
        how = {"replace": False, "n_samples": Table.MAX_ROWS, "random_state": 42}
        rows = resample(rows, **how, stratify=[row[0] for row in rows])
        rows.sort(key=lambda row: (row[1], row[2], row[0]))
    table = Table(data=rows, columns=["class", *columns])
    return plot_table("wandb/area-under-curve/v0", table, fields, strings, split)


def roc_curve(
    y_true: Any,
    y_probas: Any = None,
    labels: Any = None,
    classes_to_plot: Any = None,
    title: str = "ROC Curve",
    split_table: bool = False,
) -> CustomChart:
    """True over false positives of each class; of more than 10,000 points a sample."""
    import numpy as np

    curve = importlib.import_module("sklearn.metrics").roc_curve
    y_true, y_probas = np.array(y_true), np.array(y_probas)
    rows: list[list[Any]] = []
    for column, one, label in _classes(y_true, labels, classes_to_plot):
        fpr, tpr, _ = curve(y_true, y_probas[..., column], pos_label=one)
        rows += [[label, a, b] for a, b in zip(fpr.round(3), tpr.round(3), strict=True)]
    axes = ("False positive rate", "True positive rate")
    return _area(("fpr", "tpr"), rows, axes, title, split_table)


def pr_curve(
    y_true: Any = None,
    y_probas: Any = None,
    labels: Any = None,
    classes_to_plot: Any = None,
    interp_size: int = 21,
    title: str = "Precision-Recall Curve",
    split_table: bool = False,
) -> CustomChart:
    """Precision over recall of each class, at `interp_size` recalls."""
    import numpy as np

    curve = importlib.import_module("sklearn.metrics").precision_recall_curve
    y_true, y_probas = np.array(y_true), np.array(y_probas)
    recalls = np.linspace(0, 1, interp_size)[::-1]
    rows: list[list[Any]] = []
    for column, one, label in _classes(y_true, labels, classes_to_plot):
        precision, recall, _ = curve(y_true, y_probas[:, column], pos_label=one)
        smooth = np.maximum.accumulate(precision)[::-1]
        shown = smooth[np.searchsorted(recall[::-1], recalls, side="left")]
        rows += [[label, a, b] for a, b in zip(shown.round(3), recalls.round(3), strict=True)]
    return _area(("precision", "recall"), rows, ("Recall", "Precision"), title, split_table)


__all__ = [
    "CustomChart",
    "bar",
    "confusion_matrix",
    "histogram",
    "line",
    "line_series",
    "plot_table",
    "pr_curve",
    "roc_curve",
    "scatter",
]
