"""Where a benchmark writes: a temporary directory that holds the spool, and an environment that says so."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "DO_NOT_TRACK": "true",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "TRACKIO_TELEMETRY": "0",
    "HF_HUB_OFFLINE": "1",
}


@contextmanager
def workplace(parent: str | None) -> Iterator[str]:
    """A new directory below `parent` (default: the system's), current while it lasts, removed afterwards."""
    before, environment = os.getcwd(), dict(os.environ)
    with tempfile.TemporaryDirectory(
        prefix="spoolagent-bench-", dir=parent, ignore_cleanup_errors=True
    ) as place:
        for name in [n for n in os.environ if n.startswith(("SPOOLAGENT_", "MLFLOW_", "WANDB_"))]:
            del os.environ[name]
        os.environ.update(_SETTINGS, SPOOLAGENT_SPOOL=os.path.join(place, "spool"), SPOOLAGENT_SITE="bench")
        os.environ.update(WANDB_DIR=place, TRACKIO_DIR=os.path.join(place, "trackio"))
        os.chdir(place)
        try:
            yield place
        finally:
            os.chdir(before)
            os.environ.clear()
            os.environ.update(environment)
