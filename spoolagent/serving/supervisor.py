"""Starts one worker process per receiver, restarts those that die, and ends dead writers' streams.

Receivers share nothing: a worker that crashes, hangs or is killed is restarted with backoff and delays nobody.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from spoolagent.errors import SpoolError, UsageError
from spoolagent.format.spool import open_spool
from spoolagent.interpreter import module_command
from spoolagent.notify import notify
from spoolagent.serving.backoff import Backoff
from spoolagent.serving.child import Job, encode_job
from spoolagent.serving.registry import load_receiver
from spoolagent.settings import Selection, ServeSettings
from spoolagent.stopping import Stop, not_for_children, stop_on_signals
from spoolagent.undertaker import Undertaker
from spoolagent.words import Seldom

_HEALTHY_S = 30.0
"""A worker that lived this long begins with a short backoff again."""
_STOP_S = 30.0
_TICK_S = 0.2
_REST = 30.0
"""How many times as long as a look at all open streams the pause after it is, at least: it is not to be noticed."""
_MOST_PAUSE_S = 30.0
_LONGEST_CALL_S = 86_400.0
_SILENT_S = 20.0
"""How long a worker may give no sign of life at all, at least: a busy machine, slow imports."""

Report = Callable[[str], None]


def to_stderr(line: str) -> None:
    """The default report: a plain line."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@dataclass(kw_only=True)
class WorkerProcess:
    """One worker process and what it said."""

    job: Job
    report: Report
    note: Report = to_stderr
    """For what several workers have to say, in the same words."""
    process: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0.0
    restart_at: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)
    ready: threading.Event = field(default_factory=threading.Event)
    delivered: int = 0
    done: dict[str, Any] | None = None
    failed: str = ""
    code: int | None = None
    reader: threading.Thread | None = None
    beat_at: float = 0.0
    doing: str = "starting"
    age_s: float = 0.0
    stuck: int = 0
    """How often in a row it was ended because it was stuck."""
    is_ended_as_stuck: bool = False

    @property
    def name(self) -> str:
        """The receiver's name."""
        return self.job.receiver.name

    def start(self) -> None:
        """Starts the process and hands it its job."""
        self.ready.clear()
        self.done, self.failed, self.code = None, "", None
        self.doing, self.age_s, self.is_ended_as_stuck = "starting", 0.0, False
        with not_for_children():
            self.process = subprocess.Popen(
                module_command("spoolagent.serving.child"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        self.started_at = self.beat_at = time.monotonic()
        self.send(encode_job(self.job))
        self.reader = threading.Thread(target=self._listen, args=(self.process,), daemon=True)
        self.reader.start()

    def send(self, data: bytes) -> None:
        """Writes to the process; one that is dead is noticed elsewhere."""
        assert self.process is not None
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                message = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # a library printed to standard output
            if isinstance(message, dict):
                self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        if "say" in message:
            self.report(str(message["say"]))
        if "note" in message:
            self.note(str(message["note"]))
        if "progress" in message:
            self.delivered, self.stuck = message["progress"], 0
        if "beat" in message:
            self.beat_at = time.monotonic()
            self.doing, self.age_s = str(message["beat"]["doing"]), float(message["beat"]["age_s"])
        if "done" in message:
            self.done = message
        if "failed" in message:
            self.failed = str(message["failed"])
        if "ready" in message:
            self.ready.set()

    @property
    def patience_s(self) -> float:
        """How long is too long: doubled each time in a row, so that a very long upload ends all the same."""
        base = self.job.agent.stuck_after_s
        return min(base * float(2**self.stuck), max(base, _LONGEST_CALL_S))

    def end_if_stuck(self) -> None:
        """SIGKILL when it is stuck: what hangs in a call does not listen to anything else."""
        silent_s = time.monotonic() - self.beat_at
        is_silent = silent_s > max(self.patience_s, _SILENT_S)
        if self.process is None or self.is_ended_as_stuck or not (is_silent or self.age_s > self.patience_s):
            return
        self.is_ended_as_stuck = True
        what = f"silent for {silent_s:.0f} s" if is_silent else f"{self.doing} for {self.age_s:.0f} s"
        self.report(
            f"{self.name}: its worker is stuck, {what}: killed; what it had not committed is delivered again"
        )
        self.stuck += 1
        self.failed = "it was stuck"
        self.process.kill()

    def close_stdin(self) -> None:
        """Asks the process to deliver what it holds and end."""
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def poll(self) -> int | None:
        """The exit code once the process is gone and all that it said was read, else None."""
        if self.process is None:
            return self.code
        code = self.process.poll()
        if code is None:
            return None
        if self.reader is not None:
            self.reader.join(5)
        self.close_stdin()
        self.process, self.code = None, code
        return code

    def wait(self, deadline: float) -> None:
        """Waits until `deadline` (monotonic), then kills."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.report(
                f"{self.name}: did not end in time, killed; what it had not committed is delivered again"
            )
            self.process.kill()
            self.process.wait()
        self.poll()


def _processes(
    settings: ServeSettings, selection: Selection, *, replay: bool, report: Report
) -> list[WorkerProcess]:
    """A worker process for each receiver, not yet started. Raises UsageError for a receiver that cannot be."""
    if not settings.receivers:
        raise UsageError(
            "no receiver: give --to RECEIVER, or name some in [serve] to = [...] of the configuration"
        )
    seen: dict[str, str] = {}
    note = Seldom(report)
    made = []
    for receiver in settings.receivers:
        identity = load_receiver(receiver.spec, receiver.options).identity
        if identity in seen:
            raise UsageError(f"{receiver.name} and {seen[identity]} are the same target: give it once")
        seen[identity] = receiver.name
        job = Job(
            agent=settings.agent,
            receiver=receiver,
            selection=selection,
            replay=replay,
            give_up_after_s=settings.give_up_after_s if settings.give_up_after_s is not None else 120.0,
        )
        made.append(WorkerProcess(job=job, report=report, note=note))
    return made


def serve(settings: ServeSettings, *, stop: Stop | None = None, report: Report = to_stderr) -> int:
    """Serves until SIGTERM, SIGINT or SIGHUP (or `stop`). Returns 0. Raises UsageError before it starts."""
    stop = stop or Stop()
    spool = open_spool(settings.agent.spool)
    processes = _processes(settings, Selection(), replay=False, report=report)
    undertaker = Undertaker(spool, stale_after_s=settings.agent.stale_after_s, report=report)
    with stop_on_signals(stop):
        for process in processes:
            _keep_alive(process)
        report(f"serving {spool.path} to {', '.join(p.name for p in processes)} (pid {os.getpid()})")
        notify("READY=1")
        sweep_at = 0.0
        while not stop.wait(_TICK_S):
            for process in processes:
                process.end_if_stuck()
                _keep_alive(process)
            if time.monotonic() >= sweep_at:
                began = time.monotonic()
                undertaker.sweep()
                now = time.monotonic()
                pause_s = min(_MOST_PAUSE_S, _REST * (now - began))
                sweep_at = now + max(settings.agent.sweep_interval_s, pause_s)
                notify("WATCHDOG=1")
        notify("STOPPING=1")
        _stop_all(processes)
    report("stopped; every cursor is committed")
    return 0


def _keep_alive(process: WorkerProcess) -> None:
    now = time.monotonic()
    if process.process is None:
        if now >= process.restart_at:
            _start(process, now)
        return
    code = process.poll()
    if code is None:
        return
    if now - process.started_at > _HEALTHY_S:
        process.backoff.succeeded()
    wait_s = process.backoff.failed()
    process.restart_at = now + wait_s
    process.report(f"{process.name}: its worker {_how(process, code)}; restarting in {wait_s:.1f} s")


def _start(process: WorkerProcess, now: float) -> None:
    """The machine may have no process, memory or descriptor left: that is no reason to end the others."""
    try:
        process.start()
    except OSError as error:
        wait_s = process.backoff.failed()
        process.restart_at = now + wait_s
        why = error.strerror or error
        process.report(
            f"{process.name}: its worker cannot be started ({why}); trying again in {wait_s:.1f} s"
        )


def _how(process: WorkerProcess, code: int) -> str:
    """How a worker ended, and why, as far as it said."""
    how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    if process.failed:
        return f"{how} ({process.failed})"
    return f"{how} (a library ended it: its own words are above)" if code > 0 else how


def _stop_all(processes: list[WorkerProcess]) -> None:
    for process in processes:
        process.close_stdin()
    deadline = time.monotonic() + _STOP_S
    for process in processes:
        process.wait(deadline)


Progress = Callable[[dict[str, int]], None]


def replay(
    settings: ServeSettings,
    selection: Selection | None = None,
    *,
    report: Report = to_stderr,
    progress: Progress = lambda _: None,
    stop: Stop | None = None,
) -> int:
    """Replays until drained. Returns 0, 1 (something was not delivered), 3 (a tracker was away) or 128 + a signal.

    All receivers are checked before the first event is delivered. Raises UsageError, Unreachable, Locked.
    `progress` gets the number of events delivered by each receiver, now and then.
    """
    stop = stop or Stop()
    spool = open_spool(settings.agent.spool)
    processes = _processes(settings, selection or Selection(), replay=True, report=report)
    Undertaker(spool, stale_after_s=settings.agent.stale_after_s, report=report).sweep()
    with stop_on_signals(stop):
        try:
            for process in processes:
                process.start()
            _wait_ready(processes, stop)
            for process in processes:
                process.send(b"go\n")
            while not stop.is_set() and any(p.poll() is None for p in processes):
                for process in processes:
                    process.end_if_stuck()
                progress({p.name: p.delivered for p in processes})
                stop.wait(_TICK_S)
        finally:
            _stop_all(processes)
    progress({p.name: p.delivered for p in processes})
    code = max(_summary(process, report) for process in processes)
    if code and stop.is_set():
        report(
            "interrupted before everything was delivered; run the replay again, it goes on where it stopped"
        )
        return stop.exit_code
    return code


def _wait_ready(processes: list[WorkerProcess], stop: Stop) -> None:
    for process in processes:
        while not process.ready.wait(_TICK_S) and not stop.is_set():
            process.end_if_stuck()
            code = process.poll()
            if code is not None and not process.ready.is_set():
                error = SpoolError(
                    process.failed
                    or f"{process.name}: its worker {_how(process, code)} before it began; run the replay again"
                )
                error.exit_code = code if code in (1, 2, 3) else 1
                raise error


def _summary(process: WorkerProcess, report: Report) -> int:
    done = process.done
    if done is None:
        report(
            f"{process.name}: its worker ended early (code {process.code}) {process.failed}; run the replay again, it goes on"
        )
        return 1
    line = f"{process.name}: {done['delivered']} events delivered"
    if done["dead"]:
        line += f", {done['dead']} dead letters (spoolagent status shows them)"
    if done["lost"]:
        line += f", {done['lost']} lost"
    if done["done"] == 3:
        line += f"; gave up: {done['error']}; run it again, it goes on where it stopped"
    report(line)
    for blocked in done["blocked"]:
        report(f"{process.name}: {blocked}")
    return int(done["done"])
