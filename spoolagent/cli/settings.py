"""From a verb's options to settings."""

import os
from typing import Any

from spoolagent.config import Config, load_config


def load(config: str | None, **flags: Any) -> Config:
    """The settings of this call; `flags` are keys with `__` for the dot, None where a flag was not given."""
    return load_config(config, os.environ, {key.replace("__", "."): value for key, value in flags.items()})


def spool_of(argument: str | None, config: str | None) -> str:
    """The spool that a verb looks at: the argument, the environment, the configuration, `./spool`."""
    return load(config, spool=argument).spool or os.path.abspath("spool")
