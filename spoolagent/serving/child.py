"""The worker process of one receiver: `python -m spoolagent.serving.child`, started by the supervisor.

It gets its job as one JSON line on standard input and ends when that closes, so it never outlives its
supervisor. It answers in JSON lines on standard output: {"ready"}, {"say"}, {"note"}, {"progress"}, {"beat"}, {"done"}.
"""

import os
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from spoolagent.contract import Receiver
from spoolagent.errors import Locked, SpoolError, Unreachable, cannot_import
from spoolagent.format.spool import Spool, open_spool
from spoolagent.serving.activity import Activity, Beat, Heartbeat
from spoolagent.serving.backoff import Backoff
from spoolagent.serving.delivery import OUT_OF_MEMORY
from spoolagent.serving.registry import load_receiver
from spoolagent.serving.store import Store, open_store
from spoolagent.serving.sums import Damaged
from spoolagent.serving.worker import Worker
from spoolagent.settings import AgentSettings, ReceiverSettings, Selection
from spoolagent.stopping import Stop, leave_to_parent
from spoolagent.watching import Watcher
from spoolagent.words import tell_words

_HARD_STOP_S = 25.0
"""After a stop was asked for: how long a receiver's call may still take."""
_LOCK_WAIT_S = 10.0
_SAY_EVERY_S = 0.2
_FOR_EVER_S = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What the supervisor asks of a worker process."""

    agent: AgentSettings
    receiver: ReceiverSettings
    selection: Selection = field(default_factory=Selection)
    replay: bool = False
    give_up_after_s: float = 120.0


def encode_job(job: Job) -> bytes:
    """One JSON line."""
    return orjson.dumps(job, default=_sets) + b"\n"


def _sets(value: object) -> list[Any]:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError


def decode_job(line: bytes) -> Job:
    """The job of a line by `encode_job`."""
    data = orjson.loads(line)
    chosen = data["selection"]
    steps = chosen["steps"]
    return Job(
        agent=AgentSettings(**data["agent"]),
        receiver=ReceiverSettings(**data["receiver"]),
        selection=Selection(
            sites=tuple(chosen["sites"]),
            runs=tuple(chosen["runs"]),
            since_ns=chosen["since_ns"],
            until_ns=chosen["until_ns"],
            types=frozenset(chosen["types"]),
            steps=None if steps is None else (steps[0], steps[1]),
        ),
        replay=data["replay"],
        give_up_after_s=data["give_up_after_s"],
    )


class Child:
    """One worker process's life."""

    def __init__(self, job: Job, say: Callable[..., None]) -> None:
        self._job, self._say = job, say
        self._stopping = Stop()  # set by a signal handler
        self._go = Stop()
        self._watcher: Watcher | None = None
        self._activity = Activity()
        self._worker: Worker | None = None
        self._away: tuple[str, float] | None = None
        self._heart = Heartbeat(self._look, self._beat, stuck_after_s=job.agent.stuck_after_s)
        self._said_at = 0.0

    @property
    def doing(self) -> str:
        """What it is at, for people."""
        return self._activity.what

    def listen(self) -> None:
        """Starts the thread that hears "go" and the end of standard input."""
        threading.Thread(target=self._hear, name="stdin", daemon=True).start()

    def _hear(self) -> None:
        while line := read_line():
            if line.strip() == b"go":
                self._go.set()
        self.stop()

    def _look(self) -> Beat:
        """How it stands. Called by another thread, also while a call hangs."""
        activity, worker, away = self._activity, self._worker, self._away
        doing, age_s = activity.what, activity.age_s
        if away is not None:
            why, retry_at = away
            wait_s = max(0.0, retry_at - time.monotonic())
            return Beat(state="backoff", doing=doing, age_s=age_s, error=why, retry_in_s=wait_s)
        if worker is None:
            return Beat(state="working", doing=doing, age_s=age_s)
        if worker.is_failing:
            wait_s = worker.retry_in_s
            return Beat(state="backoff", doing=doing, age_s=age_s, error=worker.error, retry_in_s=wait_s)
        state = "idle" if activity.is_waiting else "working"
        return Beat(state=state, doing=doing, age_s=max(age_s, worker.stalled_s))

    def _beat(self, beat: Beat) -> None:
        self._say(beat={"state": beat.state, "doing": beat.doing, "age_s": beat.age_s})

    def stop(self, *_: object) -> None:
        """Ends the work soon: what is held is delivered first."""
        self._stopping.set()
        self._go.set()
        if self._watcher is not None:
            self._watcher.interrupt()
        timer = threading.Timer(_HARD_STOP_S, os._exit, (75,))
        timer.daemon = True
        timer.start()

    def run(self) -> int:
        """Returns the process's exit code. Raises SpoolError for what ends it before it works."""
        self._heart.start()
        try:
            return self._run()
        except Damaged:  # while it worked: the mirror has what the database had
            return self._run()
        finally:
            self._heart.stop()

    def _run(self) -> int:
        self._activity.begin("opening", self._job.agent.spool)
        spool = open_spool(self._job.agent.spool)
        self._activity.begin("loading", self._job.receiver.name)
        receiver = load_receiver(self._job.receiver.spec, self._job.receiver.options)
        self._activity.begin("waiting for another worker to end", allowed_s=_LOCK_WAIT_S + 1)
        with self._locked_store(spool, receiver) as store:
            self._heart.folder = store.folder
            if store.news:
                self._say(say=f"{self._job.receiver.name}: {store.news}")
            if not self._open(receiver, store):
                return 0
            self._say(ready=True)
            if self._job.replay:
                self._activity.begin("waiting for the other receivers", allowed_s=_FOR_EVER_S)
                self._go.wait()
            try:
                with Watcher(spool.path, self._job.agent.poll, streams=False) as self._watcher:
                    return self._work(spool, receiver, store, self._watcher)
            finally:
                self._activity.begin("closing", self._job.receiver.name)
                receiver.close()

    def _locked_store(self, spool: Spool, receiver: Receiver) -> Store:
        """Waits a little for a worker that a killed supervisor left behind to notice."""
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                return open_store(spool, receiver)
            except Locked:
                if time.monotonic() > deadline or self._stopping.wait(0.2):
                    raise

    def _open(self, receiver: Receiver, store: Store) -> bool:
        """True when the target can be used; `serve` waits for it, `replay` does not."""
        backoff = Backoff()
        while not self._stopping.is_set():
            self._activity.begin("opening", self._job.receiver.name)
            try:
                receiver.open(store)
                self._away = None
                return True
            except (Unreachable, OSError) as error:
                if self._job.replay:
                    raise
                if not backoff.failures:
                    self._say(say=f"{self._job.receiver.name}: {error}; everything is kept, trying again")
                wait_s = backoff.failed()
                self._away = str(error), time.monotonic() + wait_s
                self._activity.begin("waiting for the tracker", allowed_s=wait_s + 1)
                self._stopping.wait(wait_s)
        return False

    def _work(self, spool: Spool, receiver: Receiver, store: Store, watcher: Watcher) -> int:
        job = self._job
        self._activity.begin("reading where it stood")
        worker = Worker(
            spool,
            receiver,
            store,
            agent=job.agent,
            limits=job.receiver,
            hints=watcher,
            selection=job.selection,
            report=lambda line: self._say(say=line),
            should_stop=lambda: self._should_stop(worker),
            on_batch=lambda: self._progress(worker.delivered),
            activity=self._activity,
        )
        self._worker = worker
        worker.run(until_drained=job.replay)
        return self._result(worker, store)

    def _progress(self, delivered: int) -> None:
        now = time.monotonic()
        if now - self._said_at > _SAY_EVERY_S:
            self._said_at = now
            self._say(progress=delivered)

    def _should_stop(self, worker: Worker) -> bool:
        if self._stopping.is_set() or not self._job.replay:
            return self._stopping.is_set()
        idle_s = time.monotonic() - worker.progress_at
        if worker.is_failing:
            return idle_s > self._job.give_up_after_s
        return idle_s > self._job.agent.patience_s + 5 and bool(worker.blocked())

    def _result(self, worker: Worker, store: Store) -> int:
        dead, lost = store.count("dead"), store.count("lost")
        code = 0
        if self._job.replay and not worker.is_drained():
            code = 3 if worker.is_failing else 1
        elif self._job.replay and (dead or lost):
            code = 1
        self._say(
            done=code,
            progress=worker.delivered,
            delivered=worker.delivered,
            dead=dead,
            lost=lost,
            error=worker.error,
            blocked=[f"{key}: {note}" for key, note in worker.blocked()],
        )
        return code


def read_line() -> bytes:
    """A line of standard input, or b"" at its end. Unbuffered: a buffer's lock, held by a thread, breaks exit."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    return bytes(line)


def main() -> int:
    """Runs the job on standard input."""
    guard = threading.Lock()

    def say(**message: Any) -> None:
        with guard:
            try:
                os.write(1, orjson.dumps(message) + b"\n")
            except OSError:
                return  # the supervisor is gone; standard input says so, too

    leave_to_parent()
    tell_words(lambda text: say(note=text))
    line = read_line()
    if not line.endswith(b"\n"):
        return 0  # the supervisor was killed before it said what to do
    job = decode_job(line)
    child = Child(job, say)
    signal.signal(signal.SIGTERM, child.stop)
    child.listen()
    try:
        return child.run()
    except SpoolError as error:
        say(failed=str(error), code=error.exit_code)
        return error.exit_code
    except ImportError as error:
        kind = job.receiver.spec.partition(":")[0]
        missing = cannot_import(f"what receiver {kind} needs", error, kind)
        say(failed=str(missing), code=missing.exit_code)
        return missing.exit_code
    except (MemoryError, SystemError):
        # The second is Python's own when memory ends in the middle of an import.
        say(failed=f"{child.doing}: {OUT_OF_MEMORY}", code=1)
        return 1
    except OSError as error:
        say(failed=f"{error.filename or job.agent.spool}: {error.strerror or error}", code=1)
        return 1
    except sqlite3.Error as error:  # the disk of the cursors is full or fails; everything is kept
        say(failed=f"{job.agent.spool}: the cursor store: {error}", code=1)
        return 1
    except Exception as error:  # noqa: BLE001 - a fault of ours or of a receiver's: the supervisor says so in one line
        traceback.print_exc()
        say(failed=f"{child.doing}: {type(error).__name__}: {error}; its traceback is above", code=1)
        return 1


if __name__ == "__main__":
    sys.exit(main())
