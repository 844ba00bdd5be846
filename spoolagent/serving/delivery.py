"""Between a worker and its receiver: one batch delivered or kept, and what is committed with it.

Here stand the answers of a tracker: away (the whole receiver waits), not now (the run waits), refused (the batch
is halved down to the event that is a dead letter).
"""

import sqlite3
from collections.abc import Callable
from typing import Protocol

from spoolagent.contract import Batch, Outcome, Receiver
from spoolagent.errors import Refused, Transient, Unreachable
from spoolagent.format.layout import StreamKey
from spoolagent.serving import sums
from spoolagent.serving.activity import Activity
from spoolagent.serving.backoff import Backoff
from spoolagent.serving.changes import Commit, Letter, Named
from spoolagent.serving.chunks import halves
from spoolagent.serving.place import Moved
from spoolagent.serving.store import Store

OUR_STORE = (sqlite3.Error, sums.Damaged, Moved)
"""Our own store's troubles, which a receiver meets when it puts something on record: no event's fault."""
OUT_OF_MEMORY = "out of memory: raise the limit (MemoryMax= of the service, ulimit -v), or end what takes it"


class Owner(Protocol):
    """Whose batch it is: a stream's task, or a retry."""

    retry_at: float
    note: str

    @property
    def key(self) -> StreamKey:
        """Its stream."""
        ...


class _HeldRun:
    """A run whose tracker said "not now" to a batch of `owner`, which comes next then."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.backoff = Backoff()


class Delivery:
    """One receiver and its store, as the worker's loop uses them. `clock` is monotonic, in s."""

    def __init__(
        self,
        name: str,
        receiver: Receiver,
        store: Store,
        *,
        activity: Activity,
        report: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self.name, self.receiver, self.store = name, receiver, store
        self.activity, self.report, self.clock = activity, report, clock
        self.pending: list[Commit] = []
        """What was delivered and goes with the next commit."""
        self.progress_at = clock()
        """When something was last committed."""
        self.error = ""
        """Why the tracker does not take what it is given, or ""."""
        self._backoff = Backoff()
        self._held_runs: dict[tuple[str, str], _HeldRun] = {}
        self._resume_at = 0.0
        self._disk_refuses = False
        """The cursor store took no commit when it was last asked."""

    # -- how the tracker stands ------------------------------------------------------------------------------

    @property
    def is_away(self) -> bool:
        """True until the next try after the tracker could not be reached."""
        return self.clock() < self._resume_at

    @property
    def is_out(self) -> bool:
        """True from a failure to reach the tracker, or to commit, until it is known to work again."""
        return self._backoff.failures > 0

    @property
    def resume_in_s(self) -> float:
        """Seconds until then; 0 or less for now."""
        return self._resume_at - self.clock()

    @property
    def is_failing(self) -> bool:
        """True while the tracker does not take what it is given."""
        return self.clock() < self._resume_at or bool(self._held_runs)

    @property
    def retry_in_s(self) -> float:
        """Seconds until a tracker that is failing is tried again."""
        held = [hold.owner.retry_at for hold in list(self._held_runs.values())]
        return max(0.0, max(self._resume_at, min(held, default=0.0)) - self.clock())

    def is_held(self, task: Owner) -> bool:
        """True while another batch of the same run was not taken: that one comes first, as it was."""
        hold = self._held_runs.get((task.key.site, task.key.run))
        if hold is None or hold.owner is task:
            return False
        task.retry_at = max(task.retry_at, hold.owner.retry_at)
        return True

    # -- delivering ------------------------------------------------------------------------------------------

    def deliver(self, task: Owner, batch: Batch, outcome: Outcome) -> bool:
        """True when the whole batch is resolved. False: it stays named, and is tried again later."""
        first, last = batch.events[0].seq, batch.events[-1].seq
        self.activity.begin(f"delivering seqs {first} to {last} of", task.key)
        run = (task.key.site, task.key.run)
        mark = self.store.mark()
        try:
            self._bisect(batch, outcome)
        except (Unreachable, OSError) as error:
            self.store.rollback(mark)
            self.away(f"{error}")
            return False
        except sqlite3.Error as error:
            self.store.rollback(mark)
            self.refused_by_disk(error)
            return False
        except Transient as error:
            self.store.rollback(mark)
            hold = self._held_runs.setdefault(run, _HeldRun(task))
            task.retry_at = self.clock() + hold.backoff.failed(error.retry_after_s)
            task.note = self.error = str(error)
            if hold.backoff.failures == 1:
                self.report(f"{self.name}: {task.key}: {error}; trying again")
            return False
        self._held_runs.pop(run, None)
        self.is_back()
        return True

    def _bisect(self, batch: Batch, outcome: Outcome) -> None:
        """Delivers the batch; when it is refused, its halves, down to the one event that is a dead letter."""
        mark = self.store.mark()
        try:
            part = self.receiver.deliver(batch)
        except (Unreachable, Transient, OSError, *OUR_STORE):
            raise
        except Exception as error:
            # Refused, or a record that a receiver chokes on: it must not stop the rest.
            self.store.rollback(mark)
            if len(batch.events) == 1:
                if isinstance(error, MemoryError):  # no fault of the event
                    raise Transient(OUT_OF_MEMORY) from error
                why = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
                outcome.dead[batch.events[0].seq] = why
                return
            for half in halves(batch):
                self._bisect(half, outcome)
            return
        outcome.dead.update(part.dead)
        outcome.damage += part.damage
        for kind, count in part.skipped.items():
            outcome.skipped[kind] = outcome.skipped.get(kind, 0) + count

    def say_damage(self, damage: list[str]) -> None:
        """Reports what is wrong in the target; it is kept with the commit."""
        for line in damage:
            self.report(f"{self.name}: {line}")

    def away(self, why: str) -> None:
        """The tracker, or a disk that is needed, takes nothing now: all is kept, and tried again after a while."""
        wait_s = self._backoff.failed()
        self._resume_at = self.clock() + wait_s
        self.error = why
        if self._backoff.failures == 1:
            self.report(f"{self.name}: {why}; everything is kept, trying again")

    def is_back(self) -> None:
        """It took something."""
        if self._backoff.failures:
            self.report(f"{self.name}: reached again after {self._backoff.failures} failures")
        self._backoff.succeeded()
        self.error = ""

    # -- committing ------------------------------------------------------------------------------------------

    def commit(self, name: Named | None = None, retry: Letter | None = None) -> bool:
        """Commits what is pending, and names what is delivered next. False when the disk refuses: all is kept."""
        self.activity.begin("committing to", self.store.path)
        try:
            self.store.commit(self.pending, name, retry)
        except (sqlite3.Error, OSError) as error:
            self.refused_by_disk(error)
            return False
        self.pending.clear()
        self.progress_at = self.clock()
        if self._disk_refuses:
            self._disk_refuses = False
            self._resume_at = self.clock()
            self.is_back()
        return True

    def refused_by_disk(self, error: Exception) -> None:
        """The disk of the cursors is full or fails: nothing is delivered until it takes a commit."""
        if sums.is_damage(error):
            raise sums.Damaged(self.store.path, str(error)) from error
        self._disk_refuses = True
        if self.clock() >= self._resume_at:  # it is asked at every sweep, but that is one failure
            self.away(f"{self.store.path}: {error}")
