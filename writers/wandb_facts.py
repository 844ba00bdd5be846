"""What a `wandb.Run` says of itself: its names, places and state."""

import os
from collections.abc import Sequence
from typing import Any

from spoolagent.format.values import to_json
from spoolagent.writers.run import Run as Spool
from spoolagent.writers.wandb_config import Config, ConfigStatic
from spoolagent.writers.wandb_errors import UsageError, notice
from spoolagent.writers.wandb_settings import Settings, check_tags


class RunFacts:
    """The properties of a run. A name, notes or tags that are set become a `custom` event `wandb.run`."""

    _spool: Spool
    _settings: Settings
    _config: Config
    _start_time: float
    _starting_step: int
    _step: int
    _resumed: bool
    _is_finished: bool

    def _check_running(self, what: str) -> None:
        if self._is_finished:
            raise UsageError(
                f"Run ({self.id}) is finished. The call to `{what}` will be ignored."
                " Please make sure that you are using an active run."
            )

    def _tell(self, **fields: Any) -> None:
        self._spool.event("custom", {"name": "wandb.run", "data": to_json(fields)})

    @property
    def config(self) -> Config:
        """The run's parameters."""
        return self._config

    @property
    def config_static(self) -> ConfigStatic:
        """A read-only copy of the config."""
        return ConfigStatic(self._config)

    @property
    def name(self) -> str | None:
        """The display name; None until one is given."""
        return self._settings.run_name

    @name.setter
    def name(self, name: str) -> None:
        self._check_running("name")
        self._settings.run_name = name
        self._tell(name=self._spool.shorten("name", str(name)))

    @property
    def notes(self) -> str | None:
        """The run's notes."""
        return self._settings.run_notes

    @notes.setter
    def notes(self, notes: str) -> None:
        self._check_running("notes")
        self._settings.run_notes = notes
        self._tell(notes=self._spool.shorten("text of notes", str(notes)))

    @property
    def tags(self) -> tuple[str, ...]:
        """The run's tags."""
        return self._settings.run_tags or ()

    @tags.setter
    def tags(self, tags: Sequence[str]) -> None:
        self._check_running("tags")
        try:
            self._settings.run_tags = check_tags(tags)
        except ValueError as error:
            notice(f"Invalid tag detected: {error} Tags not updated.")
            return
        self._tell(labels=list(self.tags))

    @property
    def id(self) -> str:
        """The run's id."""
        return self._spool.id

    @property
    def settings(self) -> Settings:
        """The settings that the run was made with."""
        return self._settings

    @property
    def dir(self) -> str:
        """A directory for the run's files. What is written there is logged by `save` only."""
        return self._settings.files_dir

    @property
    def sync_dir(self) -> str:
        """The directory above `dir`."""
        return os.path.dirname(self._settings.files_dir)

    @property
    def path(self) -> str:
        """`entity/project/id`, without what is not known."""
        return "/".join(part for part in (self._settings.entity, self.project, self.id) if part)

    @property
    def project(self) -> str:
        """The project."""
        return self._settings.project or "uncategorized"

    @property
    def entity(self) -> str:
        """The entity, or ""."""
        return self._settings.entity or ""

    @property
    def group(self) -> str:
        """The group, or ""."""
        return self._settings.run_group or ""

    @property
    def job_type(self) -> str:
        """The job type, or ""."""
        return self._settings.run_job_type or ""

    @property
    def start_time(self) -> float:
        """When this process began the run, in seconds since the epoch."""
        return self._start_time

    @property
    def starting_step(self) -> int:
        """The first step of this attempt."""
        return self._starting_step

    @property
    def step(self) -> int:
        """The step of the next `log` call."""
        return self._step

    @property
    def resumed(self) -> bool:
        """Whether the spool holds earlier attempts of the run."""
        return self._resumed

    @property
    def offline(self) -> bool:
        """True: nothing here talks to a server."""
        return True

    @property
    def disabled(self) -> bool:
        """False; a disabled run is a `DisabledRun`."""
        return False

    @property
    def url(self) -> str | None:
        """None: where the run will be shown is not known here."""
        return None

    project_url = sweep_url = url

    @property
    def sweep_id(self) -> str | None:
        """None."""
        return None
