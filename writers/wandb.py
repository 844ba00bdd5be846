"""Weights & Biases' API over the spool: change `import wandb` to `import spoolagent.writers.wandb as wandb`.

    run = wandb.init(project="digits", config={"lr": 0.1})
    wandb.log({"loss": 0.5, "sample": wandb.Image(pixels)})
    wandb.finish()

A run logs to the spool of `SPOOLAGENT_SPOOL` and `SPOOLAGENT_SITE`, whatever `WANDB_MODE` says ("disabled" logs
nothing). Its id is `id=`, else `WANDB_RUN_ID`, else `SPOOLAGENT_RUN`, else a new one; an id that the spool knows
adds an attempt to that run, and the steps go on where the attempt before stopped.

Differs from W&B: a row for a step that is gone is kept; nothing here waits for a server, so what needs one raises
`NotSupportedError` (an AttributeError and NotImplementedError); `watch` logs no graph; a table that was changed can
be logged again.

What becomes of a `log` call, beside docs/format.md: every event has the row's `step` and `commit`; the row is
complete with `commit` true, or when a larger step comes. Numbers: one `metrics` event, the last of the call.
Strings: `text`. bool, None, lists, nested dictionaries: `custom` `wandb.value` `{"key", "value"}` (large: `value`
is the JSON in the event's `blob`). A name, notes or tags that change: `custom` `wandb.run`. Boxes and masks of an
image, and media in table cells: further blobs in the event's `files` (the list of `artifact`). Media inside a
nested dictionary: a dotted `key`, and the path in `nested`. A page: `text` with the `path` `media/html/...html`.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from spoolagent.writers import wandb_config, wandb_disabled, wandb_errors, wandb_init, wandb_run
from spoolagent.writers import wandb_plot as plot
from spoolagent.writers.wandb_artifact import Artifact
from spoolagent.writers.wandb_config import Config
from spoolagent.writers.wandb_disabled import DisabledRun
from spoolagent.writers.wandb_errors import (
    AlertLevel,
    AuthenticationError,
    CommError,
    Error,
    NotSupportedError,
    UnsupportedError,
    UsageError,
)
from spoolagent.writers.wandb_image import Image
from spoolagent.writers.wandb_media import Audio, Classes, Histogram, Html, Video
from spoolagent.writers.wandb_plot import plot_table
from spoolagent.writers.wandb_run import Run
from spoolagent.writers.wandb_settings import Settings, make_settings
from spoolagent.writers.wandb_table import Table

__version__ = "0.31.0"
"""The version of W&B's API that this one follows."""


class _PreInit:
    """`config` and `summary` while there is no run. Raises Error when used."""

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "_name", name)

    def __getitem__(self, key: str) -> Any:
        raise Error(f"You must call wandb.init() before {self._name}[{key!r}]")

    def __setitem__(self, key: str, value: Any) -> None:
        raise Error(f"You must call wandb.init() before {self._name}[{key!r}]")

    def __setattr__(self, key: str, value: Any) -> None:
        raise Error(f"You must call wandb.init() before {self._name}.{key}")

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):
            raise AttributeError(key)
        raise Error(f"You must call wandb.init() before {self._name}.{key}")

    _name: str


def _before_init(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        raise Error(f"You must call wandb.init() before wandb.{name}()")

    call.__name__ = call.__qualname__ = name
    call.__doc__ = getattr(Run, name).__doc__
    return call


# What follows the current run: `init` and `finish` set these, so that `wandb.log` is the run's own method.
run: Run | None = None
config: Any = _PreInit("wandb.config")
summary: Any = _PreInit("wandb.summary")
log = _before_init("log")
log_artifact = _before_init("log_artifact")
log_model = _before_init("log_model")
define_metric = _before_init("define_metric")
alert = _before_init("alert")
save = _before_init("save")
watch = _before_init("watch")
unwatch = _before_init("unwatch")
mark_preempting = _before_init("mark_preempting")

_CALLS = (
    *("log", "log_artifact", "log_model", "define_metric", "alert", "save", "watch", "unwatch"),
    "mark_preempting",
)


def _follow(current: Run) -> None:
    names = globals()
    names.update(run=current, config=current.config, summary=current.summary)
    names.update({name: getattr(current, name) for name in _CALLS})
    current._on_finish.append(_unfollow)  # noqa: SLF001 - of this package


def _unfollow(ended: Run) -> None:
    names = globals()
    if names["run"] is ended:
        names.update(run=None, config=_PreInit("wandb.config"), summary=_PreInit("wandb.summary"))
        names.update({name: _before_init(name) for name in _CALLS})


def init(
    entity: str | None = None,
    project: str | None = None,
    dir: str | os.PathLike[str] | None = None,  # noqa: A002 - W&B's name
    id: str | None = None,  # noqa: A002 - W&B's name
    name: str | None = None,
    notes: str | None = None,
    tags: Sequence[str] | None = None,
    config: Any = None,
    config_exclude_keys: list[str] | None = None,
    config_include_keys: list[str] | None = None,
    allow_val_change: bool | None = None,
    group: str | None = None,
    job_type: str | None = None,
    mode: str | None = None,
    force: bool | None = None,
    reinit: Any = None,
    resume: Any = None,
    resume_from: str | None = None,
    fork_from: str | None = None,
    save_code: bool | None = None,
    tensorboard: bool | None = None,
    sync_tensorboard: bool | None = None,
    monitor_gym: bool | None = None,
    settings: Any = None,
    anonymous: Any = None,
) -> Run:
    """Begins a run, or returns the one that is active (see `reinit`).

    `id` must be a legal name of a run (ValueError else); with the id of an earlier run this adds an attempt to
    it. `allow_val_change`, `force` and `anonymous` have no effect, as in W&B offline.
    """
    del allow_val_change, force, anonymous
    given = {
        "entity": entity,
        "project": project,
        "root_dir": None if dir is None else os.fspath(dir),
        "run_id": id,
        "run_name": name,
        "run_notes": notes,
        "run_tags": tags,
        "run_group": group,
        "run_job_type": job_type,
        "mode": mode,
        "reinit": reinit,
        "resume": resume,
    }
    made = make_settings(given, settings, os.environ)
    begun = wandb_init.make_config(config, config_exclude_keys, config_include_keys)
    if made.mode == "disabled":
        current = wandb_init.start_disabled(made, begun)
        _follow(current)
        return current
    synced = tensorboard or sync_tensorboard or made.sync_tensorboard
    wandb_init.refuse_what_is_missing(fork_from, resume_from, synced, monitor_gym, save_code)
    previous = wandb_init.previous_run(made)
    if previous is not None:
        return previous
    current = wandb_init.start(made, begun)
    if made.reinit != "create_new":
        _follow(current)
    return current


def finish(exit_code: int | None = None) -> None:
    """Ends the current run, if there is one."""
    if run is not None:
        run.finish(exit_code)


join = finish


def login(
    key: str | None = None,
    relogin: bool | None = None,
    host: str | None = None,
    force: bool | None = None,
    timeout: int | None = None,
    verify: bool = True,
    referrer: str | None = None,
    prompt: bool = True,
    anonymous: Any = None,
) -> bool:
    """True: nothing here needs a login."""
    del key, relogin, host, force, timeout, verify, referrer, prompt, anonymous
    return True


def setup(settings: Any = None) -> None:
    """Nothing to set up."""
    del settings


def teardown(exit_code: int | None = None) -> None:
    """Ends all active runs."""
    from spoolagent.writers.wandb_run import active

    for one in list(active):
        one.finish(exit_code)


def require(*args: Any, **kwargs: Any) -> None:
    """Nothing here has versions to choose from."""
    del args, kwargs


def termlog(string: str = "", newline: bool = True, repeat: bool = True) -> None:
    """One line on standard error."""
    del newline, repeat
    wandb_errors.notice(string)


termwarn = termerror = termlog

_ELSEWHERE = {
    "sweep": "it needs a server",
    "agent": "it needs a server",
    "controller": "it needs a server",
    "Api": "it needs a server",
}
_REFUSED = frozenset(
    {
        "EvalTable",
        "Graph",
        "JoinedTable",
        "Molecule",
        "Object3D",
        "Plotly",
        "Api",
        "agent",
        "apis",
        "attach",
        "box3d",
        "controller",
        "keras",
        "lightgbm",
        "catboost",
        "xgboost",
        "sklearn",
        "tensorboard",
        "tensorflow",
        "gym",
        "jupyter",
        "sacred",
        "integration",
        "visualize",
        "profiler",
        "restore",
        "sweep",
        "sagemaker_auth",
        "use_artifact",
        "use_model",
        "link_model",
        "link_artifact",
        "pin_config_keys",
        "ensure_configured",
        "api",
        "ArtifactTTL",
        "env",
    }
)


class util:  # noqa: N801 - W&B's name
    """What scripts use of `wandb.util`."""

    @staticmethod
    def generate_id(length: int = 8) -> str:
        """A random id of lower-case letters and digits."""
        return wandb_init.short_id(length)


errors = wandb_errors
helper = wandb_config


_SUBMODULES = {
    "errors": wandb_errors,
    "data_types": sys.modules[__name__],
    "wandb_run": wandb_run,
    "wandb_sdk": sys.modules[__name__],
    "sdk": sys.modules[__name__],
    "sdk.wandb_run": wandb_run,
    "sdk.lib": wandb_disabled,
    "sdk.lib.config_util": wandb_errors,
}
"""W&B's modules that scripts name (`wandb.sdk.wandb_run.Run`) and libraries import; a parent comes before what is in it."""


def __getattr__(name: str) -> Any:
    inside = _SUBMODULES.get(name) or _SUBMODULES.get(f"sdk.{name}")  # this module is its own `sdk`
    if inside is not None:
        return inside
    if name in _REFUSED:
        wandb_errors.refuse(f"wandb.{name}", _ELSEWHERE.get(name, ""))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AlertLevel",
    "Artifact",
    "Audio",
    "AuthenticationError",
    "Classes",
    "CommError",
    "Config",
    "DisabledRun",
    "Error",
    "Histogram",
    "Html",
    "Image",
    "NotSupportedError",
    "Run",
    "Settings",
    "Table",
    "UnsupportedError",
    "UsageError",
    "Video",
    "alert",
    "config",
    "define_metric",
    "finish",
    "init",
    "join",
    "log",
    "log_artifact",
    "log_model",
    "login",
    "mark_preempting",
    "plot",
    "plot_table",
    "run",
    "save",
    "setup",
    "summary",
    "teardown",
    "unwatch",
    "watch",
]
