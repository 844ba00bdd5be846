"""W&B's exceptions by their names, its alert levels, and how this writer tells what it does not do."""

import enum
import os
from typing import Any, NoReturn

from spoolagent.format.stream import warn_on_stderr


class Error(Exception):
    """Base of all of W&B's errors."""

    def __init__(self, message: str, context: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.context = context or {}


class CommError(Error):
    """The server could not be reached. Never raised here; the name is for `except` clauses."""


class AuthenticationError(CommError):
    """Authentication failed. Never raised here."""


class UsageError(Error):
    """The caller's mistake."""


class UnsupportedError(UsageError):
    """A feature that does not exist."""


class ConfigError(Error):
    """A value of the config would be changed without `allow_val_change`."""


class NotSupportedError(UnsupportedError, AttributeError, NotImplementedError):
    """The real wandb has this; offline, or here, it cannot be done."""


class RunIdError(UsageError, ValueError):
    """The run id is not legal here."""


class AlertLevel(enum.Enum):
    """How urgent an alert is."""

    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"


def refuse(what: str, instead: str = "") -> NoReturn:
    """Raises NotSupportedError for `what`, naming what to do `instead`."""
    raise NotSupportedError(
        f"{what} is not supported by spoolagent.writers.wandb{': ' if instead else ''}{instead}"
    )


_told: set[str] = set()


def notice(message: str) -> None:
    """One line on standard error, once a process; none with WANDB_SILENT."""
    if message not in _told and os.environ.get("WANDB_SILENT", "").lower() not in ("true", "1"):
        _told.add(message)
        warn_on_stderr(f"wandb: {message}")
