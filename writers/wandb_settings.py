"""What `init` is told: its arguments, a `wandb.Settings`, and the `WANDB_*` environment, in this order."""

from collections.abc import Mapping, Sequence
from typing import Any

from spoolagent.format.names import is_legal
from spoolagent.writers.wandb_errors import RunIdError, UsageError

_MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")
_REINIT = (None, True, False, "default", "return_previous", "finish_previous", "create_new")
_RESUME = (None, True, False, "allow", "never", "must", "auto")
_ENVIRONMENT = {
    "WANDB_PROJECT": "project",
    "WANDB_ENTITY": "entity",
    "WANDB_NAME": "run_name",
    "WANDB_NOTES": "run_notes",
    "WANDB_TAGS": "run_tags",
    "WANDB_JOB_TYPE": "run_job_type",
    "WANDB_RUN_GROUP": "run_group",
    "WANDB_RUN_ID": "run_id",
    "WANDB_MODE": "mode",
    "WANDB_DIR": "root_dir",
    "WANDB_RESUME": "resume",
    "WANDB_REINIT": "reinit",
}


class Settings:
    """Settings by W&B's names. Those that only matter to W&B's own uploader are kept and have no effect."""

    mode: str | None = None
    project: str | None = None
    entity: str | None = None
    run_id: str | None = None
    run_name: str | None = None
    run_notes: str | None = None
    run_tags: tuple[str, ...] | None = None
    run_group: str | None = None
    run_job_type: str | None = None
    root_dir: str | None = None
    resume: Any = None
    reinit: Any = None
    files_dir: str = ""
    sync_tensorboard: bool | None = None

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def given(self) -> dict[str, Any]:
        """What was set."""
        return dict(self.__dict__)

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{k}={v!r}' for k, v in self.given().items())})"


def make_settings(given: Mapping[str, Any], settings: Any, env: Mapping[str, str]) -> Settings:
    """The settings of a run, checked. Raises UsageError or ValueError for the caller's mistakes."""
    made: dict[str, Any] = {name: env[key] for key, name in _ENVIRONMENT.items() if env.get(key)}
    if "run_tags" in made:
        made["run_tags"] = made["run_tags"].split(",")
    if isinstance(settings, Mapping):
        made.update(settings)
    elif settings is not None:
        made.update(settings.given() if isinstance(settings, Settings) else vars(settings))
    made.update({name: value for name, value in given.items() if value is not None})
    if made.get("run_tags") is not None:
        made["run_tags"] = check_tags(made["run_tags"])
    _check(made)
    return Settings(**made)


def _check(made: dict[str, Any]) -> None:
    for name, known in (("mode", (None, *_MODES)), ("reinit", _REINIT), ("resume", _RESUME)):
        if made.get(name) not in known:
            raise UsageError(f"{name}={made[name]!r} is not one of {', '.join(repr(k) for k in known)}")
    project = made.get("project")
    if project is not None:
        if len(project) > 128:
            raise UsageError(f"Invalid project name {project!r}: exceeded 128 characters")
        if wrong := sorted(set("/\\#?%:").intersection(project)):
            raise UsageError(
                f"Invalid project name {project!r}: cannot contain characters {''.join(wrong)!r}"
            )
    run_id = made.get("run_id")
    if run_id is not None and not is_legal(run_id):
        raise RunIdError(
            f"run id {run_id!r} is not legal here: use 1 to 128 of A-Z a-z 0-9 . _ - and begin with a letter or"
            " digit (the display name, `name`, is free text)"
        )


def check_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Tags as a tuple. Raises ValueError for one that is empty or longer than 64."""
    made = (tags,) if isinstance(tags, str) else tuple(str(tag) for tag in tags)
    for tag in made:
        if not 1 <= len(tag) <= 64:
            raise ValueError(
                f"Tag {tag[:64]!r} is {len(tag)} characters. Tags must be between 1 and 64 characters"
            )
    return made
