"""One file per logging API that is mimicked, over one `Run` (`spoolagent.writers.run`)."""

from spoolagent.writers.run import Run

__all__ = ["Run"]
