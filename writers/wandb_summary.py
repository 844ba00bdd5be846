"""`wandb.summary`: one value a name; by itself the last that was logged.

What is logged goes into the receiver's summary by itself. Only what is set here becomes `summary` events; media are
logged under their name, in the current row, so that their files are kept.
"""

from collections.abc import Callable
from typing import Any

from spoolagent.writers.wandb_media import WBValue
from spoolagent.writers.wandb_values import friendly

Changed = Callable[[dict[str, Any]], None]
Shown = Callable[[str, WBValue], None]


class _Node:
    """A dictionary, or one nested in it, by item or attribute; `_change` tells what it became."""

    _items: dict[str, Any]

    def _change(self, values: dict[str, Any], removed: tuple[str, ...] = ()) -> None:
        raise NotImplementedError

    def _show(self, path: tuple[str, ...], value: WBValue) -> None:
        raise NotImplementedError

    def keys(self) -> list[str]:
        """The names."""
        return [k for k in self._items if k != "_wandb"]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`; a nested one as a plain dict."""
        return self._items.get(key, default)

    def update(self, d: dict[str, Any]) -> None:
        """Sets what `d` holds."""
        made: dict[str, Any] = {}
        for key, value in d.items():
            if not isinstance(key, str):
                raise TypeError(f"a summary's name must be a str, got {key!r}")
            if isinstance(value, WBValue):
                self._show((key,), value)
                continue
            made[key] = friendly(value)
            if isinstance(made[key], float) and made[key] != made[key]:
                made[key] = None  # as W&B writes it
        self._change(made)

    def __getitem__(self, key: str) -> Any:
        value = self._items[key]
        return _Nested(self, key, value) if isinstance(value, dict) else value

    __getattr__ = __getitem__

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    __setattr__ = __setitem__

    def __delitem__(self, key: str) -> None:
        self._change({}, (key,))

    __delattr__ = __delitem__

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __repr__(self) -> str:
        return repr(self._items)


class Summary(_Node):
    """The summary of one run."""

    def __init__(self, changed: Changed, shown: Shown) -> None:
        object.__setattr__(self, "_items", {})
        object.__setattr__(self, "_changed", changed)
        object.__setattr__(self, "_shown", shown)

    def _as_dict(self) -> dict[str, Any]:
        return self._items

    def _change(self, values: dict[str, Any], removed: tuple[str, ...] = ()) -> None:
        told = {**values, **dict.fromkeys(removed)}
        for key, value in told.items():
            if value is None:  # W&B: to set None is to remove
                self._items.pop(key, None)
            else:
                self._items[key] = value
        if told:
            self._changed(told)

    def _show(self, path: tuple[str, ...], value: WBValue) -> None:
        items = self._items
        for key in path[:-1]:
            items = items[key]
        items[path[-1]] = value.summary()
        self._shown(".".join(path), value)

    _changed: Changed
    _shown: Shown


class _Nested(_Node):
    def __init__(self, parent: _Node, key: str, items: dict[str, Any]) -> None:
        object.__setattr__(self, "_items", items)
        object.__setattr__(self, "_parent", parent)
        object.__setattr__(self, "_key", key)

    _parent: _Node
    _key: str

    def _change(self, values: dict[str, Any], removed: tuple[str, ...] = ()) -> None:
        self._items.update(values)
        for key in removed:
            self._items.pop(key, None)
        self._parent._change({self._key: self._items})  # noqa: SLF001 - of the same class

    def _show(self, path: tuple[str, ...], value: WBValue) -> None:
        self._parent._show((self._key, *path), value)  # noqa: SLF001 - of the same class


class DisabledSummary(dict[str, Any]):
    """The summary of a disabled run: a dict that also takes attributes."""

    __setattr__ = dict.__setitem__
    __delattr__ = dict.__delitem__

    def __getattr__(self, key: str) -> Any:
        return self[key]

    def __getitem__(self, key: str) -> Any:
        value = dict.__getitem__(self, key)
        if isinstance(value, dict) and not isinstance(value, DisabledSummary):
            value = self[key] = DisabledSummary(value)
        return value
