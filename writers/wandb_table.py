"""`wandb.Table`: rows under named columns."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import orjson

from spoolagent.format.values import to_json
from spoolagent.writers.wandb_errors import notice, refuse
from spoolagent.writers.wandb_media import Part, WBValue
from spoolagent.writers.wandb_values import friendly

_INLINE = 256 << 10
"""Bytes of JSON from which a table goes to a blob."""
_KINDS: dict[Any, str] = {
    bool: "boolean",
    int: "number",
    float: "number",
    str: "string",
    list: "list",
    dict: "dict",
}


class Table(WBValue):
    """A table. A column holds values of one kind, and None where `optional`; else TypeError, as W&B does.

    `allow_mixed_types` lifts that. The first 10,000 rows are logged. Media in cells are stored in the spool, as
    blobs of the event.
    """

    MAX_ROWS: ClassVar[int] = 10_000
    MAX_ARTIFACT_ROWS: ClassVar[int] = 200_000
    _log_type = "table"

    def __init__(
        self,
        columns: list[Any] | None = None,
        data: Any = None,
        rows: list[Iterable[Any]] | None = None,
        dataframe: Any = None,
        dtype: Any = None,
        optional: bool | list[bool] = True,
        allow_mixed_types: bool = False,
        log_mode: str | None = "IMMUTABLE",
    ) -> None:
        if log_mode not in ("IMMUTABLE", "MUTABLE", "INCREMENTAL"):
            raise AssertionError(f"Invalid log_mode: {log_mode}")
        self.log_mode = log_mode
        frame = dataframe if dataframe is not None else data if _is_frame(data) else None
        if frame is not None:
            columns = list(frame.columns)
            data = [tuple(frame[c].values[i] for c in columns) for i in range(len(frame))]
        elif data is None:
            data = rows or []
        elif not isinstance(data, list) and not hasattr(data, "dtype"):
            raise AssertionError("data argument expects a `list` object")
        self.columns: list[Any] = ["Input", "Output", "Expected"] if columns is None else columns
        if not isinstance(self.columns, list) or any(type(c) not in (str, int) for c in self.columns):
            raise AssertionError("columns argument expects list of strings or ints")
        self.data: list[list[Any]] = []
        self._mixed = allow_mixed_types
        self._optional = self._per_column(optional)
        self._kinds: list[str | None] = [_KINDS.get(kind) for kind in self._per_column(dtype)]
        for row in data:
            self.add_data(*row)

    def _per_column(self, value: Any) -> list[Any]:
        return list(value) if isinstance(value, list) else [value] * len(self.columns)

    def add_data(self, *data: Any) -> None:
        """Adds a row. Raises ValueError for a wrong length, TypeError for a value of another kind."""
        if len(data) != len(self.columns):
            raise ValueError(
                f"This table expects {len(self.columns)} columns: {self.columns}, found {len(data)}"
            )
        kinds = [self._kind(i, value) for i, value in enumerate(data)]
        self._kinds = kinds
        self.data.append(list(data))

    def add_row(self, *row: Any) -> None:
        """The older name of `add_data`."""
        self.add_data(*row)

    def _kind(self, column: int, value: Any) -> str | None:
        held = self._kinds[column]
        if self._mixed:
            return held
        kind = _kind_of(value)
        if kind is None and not self._optional[column]:
            raise TypeError(
                f"Data row contained incompatible types: {self.columns[column]!r} is not optional"
            )
        if kind is not None and held is not None and kind != held:
            raise TypeError(
                f"Data row contained incompatible types: {self.columns[column]!r} holds {held}, got {kind}"
            )
        return held or kind

    def add_column(self, name: Any, data: Any, optional: bool = False) -> None:
        """Adds a column; `data` has one value for each row."""
        if not isinstance(name, str) or name in self.columns:
            raise AssertionError(f"{name!r} is no new name of a column")
        values = list(data)
        if self.data and len(values) != len(self.data):
            raise ValueError(f"Expected length {len(self.data)}, found {len(values)}")
        first = not self.columns
        self.columns.append(name)
        self._optional.append(optional)
        self._kinds.append(None)
        for row, value in enumerate(values):
            self._kinds[-1] = self._kind(len(self.columns) - 1, value)
            if first:
                self.data.append([value])
            else:
                self.data[row].append(value)

    def get_column(self, name: Any, convert_to: str | None = None) -> Any:
        """The values of a column, as a list, or as an array with `convert_to="numpy"`."""
        if convert_to not in (None, "numpy"):
            raise AssertionError("convert_to is None or 'numpy'")
        at = self.columns.index(name)
        values = [row[at] for row in self.data]
        if convert_to is None:
            return values
        import numpy as np

        return np.array(values)

    def get_dataframe(self) -> Any:
        """A pandas data frame."""
        import pandas as pd  # type: ignore[import-untyped,unused-ignore] # pandas is the caller's, not ours

        return pd.DataFrame.from_records(self.data, columns=self.columns)

    def iterrows(self) -> Iterator[tuple[int, list[Any]]]:
        """Index and row, row by row."""
        yield from enumerate(self.data)

    def parts(self, key: str, step: int) -> list[Part]:
        """A `table` event."""
        del step
        if len(self.data) > self.MAX_ROWS:
            notice(f"Truncating wandb.Table object to {self.MAX_ROWS} rows.")
        files: list[tuple[str, bytes]] = []
        rows = [[_cell(value, files) for value in row] for row in self.data[: self.MAX_ROWS]]
        if files:
            notice("media in the cells of a table are stored in the spool, but no tracker shows them yet")
        body = {"columns": [str(c) for c in self.columns], "data": rows}
        data = orjson.dumps(body)
        if len(data) < _INLINE:
            return [Part("table", {"key": key, **body}, None, tuple(files))]
        return [Part("table", {"key": key, "columns": body["columns"]}, data, tuple(files))]

    def summary(self) -> dict[str, Any]:
        """Type and size."""
        return {
            "_type": "table-file",
            "ncols": len(self.columns),
            "nrows": min(len(self.data), self.MAX_ROWS),
        }

    def __getattr__(self, name: str) -> Any:
        if name in ("add_computed_columns", "set_pk", "set_fk", "get_index", "index_ref", "cast"):
            refuse(f"wandb.Table.{name}")
        raise AttributeError(f"'Table' object has no attribute {name!r}")


def _cell(value: Any, files: list[tuple[str, bytes]]) -> Any:
    if not isinstance(value, WBValue):
        return to_json(friendly(value, compress=False))
    made: list[dict[str, Any]] = []
    for part in value.parts("", 0):
        said = {k: v for k, v in part.fields.items() if k != "key"}
        if part.data is not None:
            said["file"] = f"cells/{len(files)}"
            files.append((said["file"], part.data))
        made.append({"_type": type(value)._log_type, **said})  # noqa: SLF001 - of this package
    return made[0]


def _is_frame(data: Any) -> bool:
    return hasattr(data, "columns") and hasattr(data, "iloc")


def _kind_of(value: Any) -> str | None:
    """What W&B calls a value's type; None for None and Python's own NaN, which pandas puts where a text is missing."""
    if type(value) is float and math.isnan(value):
        return None
    if isinstance(value, WBValue):
        return type(value).__name__
    if hasattr(value, "dtype") and getattr(value, "shape", ()) != ():
        return "ndarray"
    made = friendly(value, compress=False)
    return None if made is None else _KINDS.get(type(made), type(made).__name__)
