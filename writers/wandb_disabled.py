"""`mode="disabled"`: a run of the same shape that logs nothing."""

import os
import time
from contextlib import suppress
from typing import Any

from spoolagent.writers import wandb_metric
from spoolagent.writers.wandb_config import Config
from spoolagent.writers.wandb_run import Run
from spoolagent.writers.wandb_settings import Settings
from spoolagent.writers.wandb_summary import DisabledSummary


class _Noop:
    """Whatever is asked of it is itself."""

    def __getattr__(self, name: str) -> "_Noop":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> "_Noop":
        del args, kwargs
        return self


class DisabledRun(Run):
    """Takes every call and logs nothing. Config and summary can be read back."""

    def __init__(
        self, settings: Settings, config: Config
    ) -> None:  # there is no spool to begin: no super() call
        self._settings = settings
        self._config = config
        self.summary = DisabledSummary()
        self._resumed = False
        self._starting_step = self._step = 0
        self._start_time = time.time()
        self._is_finished = False
        self._on_finish = []

    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        """Keeps the values for the summary."""
        del step, commit
        self.summary.update(data)

    def _check_running(self, what: str) -> None:
        del what

    def define_metric(self, *args: Any, **kwargs: Any) -> wandb_metric.Metric:
        """A definition of nothing."""
        del args, kwargs
        return wandb_metric.Metric("dummy")

    def _nothing(self, *args: Any, **kwargs: Any) -> Any:
        """Does nothing."""

    alert = write_logs = log_model = watch = unwatch = mark_preempting = _nothing
    link_artifact = link_model = log_code = pin_config_keys = restore = status = _nothing
    use_artifact = use_model = finish_artifact = upsert_artifact = _nothing

    def log_artifact(self, *args: Any, **kwargs: Any) -> Any:
        """Something that takes every call."""
        del args, kwargs
        return _Noop()

    def save(self, *args: Any, **kwargs: Any) -> bool | list[str]:
        """False."""
        del args, kwargs
        return False

    def _tell(self, **fields: Any) -> None:
        del fields

    @property
    def id(self) -> str:
        """The run's id."""
        return self._settings.run_id or ""

    @property
    def dir(self) -> str:
        """A temporary directory, made when it is asked for."""
        if not self._settings.files_dir:
            import tempfile

            path = os.path.join(tempfile.gettempdir(), "wandb", f"run-{self.id}", "files")
            with suppress(OSError):  # as on a full disk: a disabled run must not fail for it
                os.makedirs(path, exist_ok=True)
            self._settings.files_dir = path
        return self._settings.files_dir

    @property
    def sync_dir(self) -> str:
        """The directory above `dir`."""
        return os.path.dirname(self.dir)

    @property
    def offline(self) -> bool:
        """False."""
        return False

    @property
    def disabled(self) -> bool:
        """True."""
        return True

    def finish(self, exit_code: int | None = None) -> None:
        """Ends it."""
        del exit_code
        for told in self._on_finish:
            told(self)

    def __repr__(self) -> str:
        return f"<wandb.Run {self.id}, disabled>"


RunDisabled = DisabledRun
"""The name that frameworks import from `wandb.sdk.lib`."""
