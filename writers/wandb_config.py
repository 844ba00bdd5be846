"""`wandb.config`: a run's parameters, by item or attribute, that do not change unless one says so."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from spoolagent.writers.wandb_errors import ConfigError, UsageError, notice
from spoolagent.writers.wandb_media import WBValue
from spoolagent.writers.wandb_values import config_value

Changed = Callable[[dict[str, Any]], None]


class Config:
    """The parameters of a run. A value that is there can be set again only to the same value.

    `update(..., allow_val_change=True)` changes it all the same. Raises ConfigError otherwise.
    """

    _items: dict[str, Any]
    _changed: Changed | None

    def __init__(self) -> None:
        object.__setattr__(self, "_items", {})
        object.__setattr__(self, "_changed", None)

    def _on_change(self, changed: Changed) -> None:
        object.__setattr__(self, "_changed", changed)

    def _take(self, values: Mapping[str, Any], allow_val_change: bool | None) -> dict[str, Any]:
        if allow_val_change is None:
            allow_val_change = in_notebook()
        made = {}
        for key, value in values.items():
            if isinstance(value, WBValue):
                raise TypeError("WBValue objects cannot be added to the run config")
            name, new = key.strip("-"), config_value(value)
            if not allow_val_change and name in self._items and self._items[name] != new:
                raise ConfigError(
                    f'Attempted to change value of key "{name}" from {self._items[name]} to {new}\n'
                    "If you really want to do this, pass allow_val_change=True to config.update()"
                )
            made[name] = new
        self._items.update(made)
        return made

    def _tell(self, made: dict[str, Any]) -> None:
        if self._changed is not None and made:
            self._changed(made)

    def update(self, d: Any, allow_val_change: bool | None = None) -> None:
        """Sets what `d` holds: a dict, an argparse namespace, absl flags, or the path of a YAML file."""
        self._tell(self._take(parse_config(d), allow_val_change))

    def setdefaults(self, d: Any) -> None:
        """Sets what is not there yet."""
        self._tell(self._take({k: v for k, v in parse_config(d).items() if k not in self._items}, None))

    def setdefault(self, key: str, default: Any = None) -> Any:
        """The value of `key`, after setting it when it is not there."""
        if key not in self._items:
            self[key] = default
        return self._items[key]

    def get(self, *args: Any) -> Any:
        """`get(key, default=None)`."""
        return self._items.get(*args)

    def keys(self) -> list[str]:
        """The names."""
        return [k for k in self._items if not k.startswith("_")]

    def items(self) -> list[tuple[str, Any]]:
        """Names with values."""
        return [(k, v) for k, v in self._items.items() if not k.startswith("_")]

    def as_dict(self) -> dict[str, Any]:
        """A copy."""
        return dict(self.items())

    def persist(self) -> None:
        """Logs all of it once more (after a nested value was changed in place)."""
        self._tell(self.as_dict())

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._tell(self._take({key: value}, None))

    def __getattr__(self, key: str) -> Any:
        try:
            return self._items[key]
        except KeyError as error:
            raise AttributeError(f"{type(self)!r} object has no attribute {key!r}") from error

    __setattr__ = __setitem__

    def __getstate__(self) -> dict[str, Any]:
        return {"_items": self._items}

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "_items", state["_items"])
        object.__setattr__(self, "_changed", None)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __repr__(self) -> str:
        return str(self.as_dict())


class ConfigStatic:
    """A read-only copy of a config."""

    def __init__(self, config: Config) -> None:
        self.__dict__.update(config.as_dict())

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("Error: run.config_static is a readonly object")

    def __getitem__(self, key: str) -> Any:
        return self.__dict__[key]

    def keys(self) -> Any:
        """The names."""
        return self.__dict__.keys()


def parse_config(
    params: Any, exclude: list[str] | None = None, include: list[str] | None = None
) -> dict[str, Any]:
    """What can be given as a config, as a dict. Raises UsageError for both `exclude` and `include`."""
    if exclude and include:
        raise UsageError("Expected at most only one of exclude or include")
    values = _to_dict(from_yaml(params) if isinstance(params, str) else params)
    if include:
        return {k: v for k, v in values.items() if k in include}
    return {k: v for k, v in values.items() if k not in (exclude or ())}


def _to_dict(params: Any) -> dict[str, Any]:
    if isinstance(params, Mapping):
        return dict(params)
    if isinstance(params, Config):
        return params.as_dict()
    if type(params).__module__ == "absl.flags._flagvalues":
        return {name: params[name].value for name in dir(params)}
    if not hasattr(params, "__dict__"):
        raise TypeError("config must be a dict or have a __dict__ attribute.")
    return dict(vars(params))


def from_yaml(path: str) -> dict[str, Any]:
    """The values of a W&B config file (`name: {value: ...}`). Raises ConfigError when it cannot be read."""
    try:
        import yaml  # type: ignore[import-untyped,unused-ignore] # the caller's, no dependency of ours
    except ImportError as error:
        raise ConfigError(f"{path}: reading a config file needs PyYAML: pip install pyyaml") from error
    try:
        with open(path, encoding="utf-8") as file:
            loaded = yaml.safe_load(file)
    except FileNotFoundError as error:
        raise ConfigError(f"config file {path} doesn't exist") from error
    except OSError as error:
        raise ConfigError(f"Couldn't read config file: {path}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"Invalid YAML in config yaml: {path}") from error
    values = dict(loaded or {})
    if values.pop("wandb_version", 1) != 1:
        raise ConfigError("Unknown config version")
    return {k: v["value"] for k, v in values.items()}


def defaults() -> dict[str, Any]:
    """What `config-defaults.yaml` in the working directory says, as W&B reads it for each run."""
    name = "config-defaults.yaml"
    if not os.path.exists(name):
        return {}
    values = from_yaml(name)
    if not values:
        notice(f"found an empty {name}")
    return values


def in_notebook() -> bool:
    """True in a Jupyter kernel, where W&B lets a config change freely."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})
