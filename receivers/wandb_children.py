"""Child processes that upload runs: a bounded number of them, each on its own, tried again with growing delays.

One thread starts, watches and ends them. A child that fails, hangs or cannot log in delays only its own run: a
hung one is ended after `stuck_s` without a sign of life, and its place goes to the next run that waits.
"""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from spoolagent.format.durable import make_dirs
from spoolagent.interpreter import module_command
from spoolagent.receivers.wandb_offline import RunLogs
from spoolagent.receivers.wandb_upload import Plan, Progress, beat_path

_LOG = logging.getLogger("spoolagent.receivers.wandb")
_TICK_S = 0.1
_OF_A_RUN = {
    f"WANDB_{name}"
    for name in (
        *(
            "RUN_ID",
            "NAME",
            "NOTES",
            "TAGS",
            "JOB_TYPE",
            "RUN_GROUP",
            "PROJECT",
            "ENTITY",
            "RESUME",
            "SWEEP_ID",
        ),
        *("DISABLED", "RUN_DIR", "HOST", "CONFIG_PATHS"),
    )
}
"""Variables that would put the agent's own environment into every run that it uploads."""
_FIRST_DELAY_S = 5.0
_LONGEST_DELAY_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How many children, and how long each."""

    uploads: int = 4
    """Children at a time."""
    linger_s: float = 30.0
    """How long a child waits for more before it leaves."""
    round_s: float = 600.0
    """When a child leaves although more comes, so that every waiting run has its turn."""
    stuck_s: float = 300.0
    """Without a sign of life for so long, a child is ended."""
    close_s: float = 30.0
    """How long `close` waits for what is not uploaded yet."""
    first_delay_s: float = _FIRST_DELAY_S


@dataclass(slots=True)
class _Job:
    """One run that is or was to be uploaded."""

    run: RunLogs
    child: subprocess.Popen[bytes] | None = None
    failures: int = 0
    not_before: float = 0.0
    beat: float = 0.0
    """Modification time of the child's beat file when it last changed."""
    beat_seen: float = 0.0
    """When that was, by our own clock."""
    pending: bool = field(default=True)


class Children:
    """The children of one receiver."""

    def __init__(self, home: str, limits: Limits, environment: Mapping[str, str]) -> None:
        self._home, self._limits, self._environment = home, limits, dict(environment)
        self._jobs: dict[str, _Job] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._watch, name="wandb-uploads", daemon=True)
        self._thread.start()

    def tell(self, run: RunLogs) -> None:
        """There may be something to upload. Never waits for a child."""
        with self._changed:
            job = self._jobs.setdefault(run.wandb_id, _Job(run))
            job.run, job.pending = run, True
            self._changed.notify()

    def close(self) -> None:
        """Lets the children finish for `close_s` seconds, then ends them. What is left is uploaded another time."""
        deadline = time.monotonic() + self._limits.close_s
        with self._changed:
            self._closing = True
            self._changed.notify()
        while time.monotonic() < deadline and self._thread.is_alive():
            self._thread.join(_TICK_S)
        with self._changed:
            jobs, self._jobs = list(self._jobs.values()), {}
            self._changed.notify()
        for job in jobs:
            _end(job)
        self._thread.join()

    def home_of(self, wandb_id: str) -> str:
        """Where a run's progress lies."""
        return os.path.join(self._home, wandb_id)

    def _watch(self) -> None:
        with self._changed:
            while not self._closing or self._jobs:
                for wandb_id, job in list(self._jobs.items()):
                    self._look(wandb_id, job)
                if self._closing and not any(
                    job.child or (job.pending and not job.failures) for job in self._jobs.values()
                ):
                    return
                busy = any(job.child or job.pending for job in self._jobs.values())
                self._changed.wait(_TICK_S if busy else None)

    def _look(self, wandb_id: str, job: _Job) -> None:
        now = time.monotonic()
        if job.child is not None:
            self._supervise(wandb_id, job, now)
        elif job.pending and now >= job.not_before:
            if self._is_done(wandb_id, job.run):
                job.pending = False
            elif sum(other.child is not None for other in self._jobs.values()) < self._limits.uploads:
                self._begin(wandb_id, job, now)
        if job.child is None and not job.pending:
            self._jobs.pop(wandb_id, None)

    def _supervise(self, wandb_id: str, job: _Job, now: float) -> None:
        child = job.child
        assert child is not None
        code = child.poll()
        if code is None:
            if self._closing and child.stdin is not None:
                child.stdin.close()
            with suppress(FileNotFoundError):
                beat = os.stat(beat_path(self.home_of(wandb_id))).st_mtime
                if beat != job.beat:
                    job.beat, job.beat_seen = beat, now
            if now - job.beat_seen > self._limits.stuck_s:
                _LOG.warning("wandb: the upload of run %s hangs: ended, and tried again later", wandb_id)
                _kill(child)
            return
        if child.stdin is not None:
            child.stdin.close()
        job.child = None
        _remove_sdk_files(self.home_of(wandb_id))
        if code == 0:
            job.failures = 0
            return
        job.failures, job.pending = job.failures + 1, True
        delay = min(_LONGEST_DELAY_S, self._limits.first_delay_s * 2 ** (job.failures - 1))
        job.not_before = now + delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
        where = os.path.join(self.home_of(wandb_id), "upload.log")
        _LOG.warning(
            "wandb: upload of run %s failed (exit code %d, see %s), next in %.0f s",
            wandb_id,
            code,
            where,
            delay,
        )

    def _begin(self, wandb_id: str, job: _Job, now: float) -> None:
        home = self.home_of(wandb_id)
        make_dirs(home)
        run, limits = job.run, self._limits
        linger_s = 0.0 if self._closing else limits.linger_s
        plan = Plan(
            home=home, logs=list(run.logs), ended=run.ended, linger_s=linger_s, round_s=limits.round_s
        )
        inherited = {name: value for name, value in os.environ.items() if name not in _OF_A_RUN}
        with open(os.path.join(home, "upload.log"), "wb") as output:
            job.child = subprocess.Popen(
                module_command("spoolagent.receivers.wandb_upload", json.dumps(asdict(plan))),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**inherited, **self._environment, "WANDB_DIR": home},
                start_new_session=True,
            )
        job.beat, job.beat_seen, job.pending = 0.0, now, False

    def _is_done(self, wandb_id: str, run: RunLogs) -> bool:
        progress = Progress.load(self.home_of(wandb_id))
        sizes = {log: os.path.getsize(log) for log in run.logs if os.path.exists(log)}
        read = {log: size for log, size in progress.read.items() if log in sizes}
        return read == sizes and progress.ended == run.ended


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Ends the child and what it started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _end(job: _Job) -> None:
    if job.child is None:
        return
    _kill(job.child)
    job.child.wait()
    if job.child.stdin is not None:
        job.child.stdin.close()


def _remove_sdk_files(home: str) -> None:
    """What the SDK wrote for itself: the logs that it was fed from are kept."""
    shutil.rmtree(os.path.join(home, "wandb"), ignore_errors=True)
