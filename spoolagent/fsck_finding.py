"""What `fsck` reports."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]
"""error: bytes are damaged or missing. warning: somebody should look. info: nothing is wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong or notable, where, and what to do about it."""

    severity: Severity
    path: str
    message: str
    place: str = ""
    """Where in the file, for example "line 3, byte 1204"."""
    next_step: str = ""


def unreadable(path: str, error: OSError) -> Finding:
    """A finding for what the file system refuses to show."""
    return Finding(
        severity="error",
        path=path,
        message=f"cannot be read: {error.strerror or error}",
        next_step="check its owner and mode, or the disk",
    )
