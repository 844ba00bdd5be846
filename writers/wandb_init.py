"""How a run begins: which one it is, where it logs to, and what it goes on from."""

import atexit
import os
from typing import Any

from spoolagent.format.layout import list_names, run_dir
from spoolagent.format.names import new_run_id
from spoolagent.writers import process
from spoolagent.writers.run import Run as Spool
from spoolagent.writers.run import optional
from spoolagent.writers.wandb_config import Config, defaults, in_notebook, parse_config
from spoolagent.writers.wandb_disabled import DisabledRun
from spoolagent.writers.wandb_errors import Error, UsageError, notice, refuse
from spoolagent.writers.wandb_files import make_run_dir
from spoolagent.writers.wandb_resume import earlier
from spoolagent.writers.wandb_run import Run, active, finish_saved
from spoolagent.writers.wandb_settings import Settings

_next_steps: dict[tuple[str, str, str], int] = {}
"""Where runs that ended in this process stopped counting."""
_hooked = False


def previous_run(settings: Settings) -> Run | None:
    """The active run that `init` returns instead of a new one, as `reinit` says; it may finish others first."""
    if not active or settings.mode == "disabled":
        return None
    if settings.reinit in (True, "finish_previous") or (
        settings.reinit in (None, "default") and in_notebook()
    ):
        for run in list(active):
            run.finish()
        return None
    if settings.reinit == "create_new":
        return None
    if settings.resume == "must":
        raise Error(
            "Cannot resume a run while another run is active. You must either finish it using run.finish(),"
            " or use reinit='create_new' when calling wandb.init()."
        )
    notice("wandb.init() called while a run is active, so returning the previous run.")
    return active[-1]


def refuse_what_is_missing(
    fork_from: Any, resume_from: Any, tensorboard: Any, gym: Any, save_code: Any
) -> None:
    """Raises NotSupportedError for what would silently log nothing."""
    if fork_from is not None or resume_from is not None:
        refuse("fork_from and resume_from", "give the id of the run to go on with it")
    if tensorboard:
        refuse("sync_tensorboard", "log through spoolagent.writers.tensorboard")
    if gym:
        refuse("monitor_gym", "log wandb.Video(path)")
    if save_code:
        notice("save_code has no effect here")


def make_config(config: Any, exclude: list[str] | None, include: list[str] | None) -> Config:
    """The config that a run begins with."""
    made = Config()
    if found := defaults():
        made.update(found, allow_val_change=True)
    made.update(parse_config({} if config is None else config, exclude, include), allow_val_change=True)
    return made


def start_disabled(settings: Settings, config: Config) -> Run:
    """A run that logs nothing."""
    run_id = settings.run_id or short_id()
    said = {"run_id": run_id, "run_name": settings.run_name or f"dummy-{run_id}"}
    said |= {"project": settings.project or "dummy", "entity": settings.entity or "dummy", "mode": "disabled"}
    return DisabledRun(Settings(**{**settings.given(), **said}), config)


def short_id(length: int = 8) -> str:
    """A random id of lower-case letters and digits."""
    return "".join("abcdefghijklmnopqrstuvwxyz0123456789"[byte % 36] for byte in os.urandom(length))


def start(settings: Settings, config: Config) -> Run:
    """A new run, or a new attempt of the run `settings.run_id`."""
    global _hooked  # noqa: PLW0603 - once a process
    run_id = settings.run_id or process.place_from(os.environ).run
    if settings.run_id is None and any(run.id == run_id for run in active):
        run_id = new_run_id()  # a second run beside the one that has SPOOLAGENT_RUN
    if run_id is not None:
        _check_resume(settings, run_id)
    elif settings.resume in ("auto", True):
        notice("resume='auto' has no effect without an id: give id= or set WANDB_RUN_ID")
    spool = Spool(
        project=settings.project,
        name=settings.run_name,
        run=run_id,
        group=settings.run_group,
        job_type=settings.run_job_type,
        notes=settings.run_notes,
        labels=settings.run_tags,
        config=config.as_dict(),
        api="wandb",
        extra=optional(entity=settings.entity),
    )
    key = (spool.spool, spool.site, spool.id)
    resumed, last = False, -1
    if run_id is not None:
        resumed, last = earlier(*key, spool.stream.attempt)
    first = max(last + 1, _next_steps.get(key, 0))
    settings.run_id = spool.id
    settings.files_dir = make_run_dir(settings.root_dir or ".", spool.id)
    run = Run(spool, settings, config, resumed=resumed or key in _next_steps, first_step=first)
    run._on_finish.append(_remember)  # noqa: SLF001 - of this package
    if not _hooked:
        _hooked = True
        atexit.register(finish_saved)  # after the spool's own hook, so that it runs before
    return run


def _remember(run: Run) -> None:
    spool = run._spool  # noqa: SLF001 - of this package
    _next_steps[spool.spool, spool.site, spool.id] = run.step


def _check_resume(settings: Settings, run_id: str) -> None:
    """Raises UsageError for `resume="never"` of a run that this spool holds."""
    place = process.place_from(os.environ)
    try:
        there = bool(list_names(run_dir(place.spool, place.site, run_id)))
    except OSError:  # an unreadable spool is the stream writer's to complain about
        return
    if settings.resume == "never" and there:
        raise UsageError(f"run {run_id!r} exists already, and resume='never' was given: use another id")
    if settings.resume == "must" and not there:
        notice(f"resume='must': this spool does not hold run {run_id!r}; it is begun here")
