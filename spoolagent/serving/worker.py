"""The loop of one receiver: read, batch, deliver, commit. Strictly in this order, for ever or until drained.

The same loop serves a client's own spool, a server's, and `replay`.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from spoolagent.contract import Batch, Outcome, Receiver, RunEnd
from spoolagent.format.events import Event
from spoolagent.format.layout import StreamKey, blob_dir
from spoolagent.format.listing import Listing
from spoolagent.format.reader import START, Position
from spoolagent.format.spool import Spool
from spoolagent.serving.activity import Activity
from spoolagent.serving.changes import Commit, Named, StreamFacts
from spoolagent.serving.chunks import split_valid
from spoolagent.serving.delivery import Delivery
from spoolagent.serving.note import write_note
from spoolagent.serving.quarantine import keep_aside
from spoolagent.serving.retries import Retries
from spoolagent.serving.retry_round import RetryRound
from spoolagent.serving.runs import StreamView, derive, facts_after
from spoolagent.serving.store import Store
from spoolagent.serving.task import Task
from spoolagent.serving.telling import Teller
from spoolagent.settings import AgentSettings, ReceiverSettings, Selection

_SLOW_SWEEP_S = 30.0
"""How often streams that were killed, delivered and left alone are looked at: a suspended writer may wake."""
_NOTE_EVERY_S = 1.0
_REST_S = 1.0
"""How much longer than it was told a wait may take before it counts as a hang."""
_EVERYTHING = Selection()


class Hints(Protocol):
    """What tells the worker that something happened (`spoolagent.watching.Watcher`)."""

    def wait(self, timeout_s: float) -> set[StreamKey] | None:
        """Streams that changed, or None for "look at all of them"."""


class Worker:
    """Delivers a spool's streams to one receiver that is open.

    `report` gets one line per noteworthy thing. `clock` is monotonic, in s.
    """

    def __init__(
        self,
        spool: Spool,
        receiver: Receiver,
        store: Store,
        *,
        agent: AgentSettings,
        limits: ReceiverSettings,
        hints: Hints,
        selection: Selection | None = None,
        report: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        should_stop: Callable[[], bool] = lambda: False,
        on_batch: Callable[[], None] = lambda: None,
        activity: Activity | None = None,
    ) -> None:
        self._spool, self._store = spool, store
        self._agent, self._limits, self._hints = agent, limits, hints
        self._selection = selection or _EVERYTHING
        self._report, self._clock, self._should_stop = report, clock, should_stop
        self._on_batch = on_batch
        self._activity = activity or Activity()
        self._delivery = Delivery(
            limits.name, receiver, store, activity=self._activity, report=report, clock=clock
        )
        self._teller = Teller(self._delivery)
        self._tasks: dict[StreamKey, Task] = {}
        self._finished: dict[StreamKey, StreamFacts] = {}
        """Streams that are ended and delivered: out of the sweep."""
        self._runs: dict[tuple[str, str], set[StreamKey]] = {}
        self._redoing: set[StreamKey] = set()
        """Streams whose batch went out before a crash, and cannot be read again now."""
        self._redo_until = 0.0
        self._draining = False
        self._visitors: set[StreamKey] = set()
        """Streams that are not selected, of which only the batch named before a crash is delivered."""
        self._listing = Listing(spool.path)
        self._retries = Retries(spool.path, store, self._selection)
        self._retry_round = RetryRound(
            spool.path,
            self._retries,
            self._delivery,
            self._teller,
            should_stop=should_stop,
            on_applied=lambda: self._count(1),
        )
        self._touched: set[tuple[str, str]] = set()
        self._noted_at = -_NOTE_EVERY_S
        self._slow_sweep_at = 0.0
        self._not_yet: set[StreamKey] = set()
        """Streams that hold a batch which is due, and waits for something else."""
        self._calm_at = clock()
        self.delivered = 0
        """Events delivered by this worker."""
        self._load()

    # -- starting ------------------------------------------------------------------------------------------

    def _load(self) -> None:
        for key, (position, facts) in self._store.streams().items():
            self._runs.setdefault((key.site, key.run), set()).add(key)
            if not self._selection.takes_run(key.site, key.run):
                continue
            self._touched.add((key.site, key.run))  # a crash may have come before its state was told
            if facts.end in ("closed", "dead"):
                self._finished[key] = facts
            else:
                self._add(self._task(key, position, facts))
        self._redo_until = self._clock() + self._agent.patience_s
        for named in self._store.named():
            self._redo(named)

    def _redo(self, named: Named) -> None:
        """Takes up a batch that was named, whatever the selection: a file may hold a part of its bytes."""
        key = named.key
        if key not in self._tasks:  # its very first batch; or not selected now; or a dead stream that went on
            position, facts = self._store.streams().get(key, (START, StreamFacts()))
            self._finished.pop(key, None)
            self._add(self._task(key, position, facts))
        with contextlib.suppress(OSError):  # it is tried again with the next round
            self._tasks[key].redo(named)
        if self._tasks[key].redoing is not None:
            self._redoing.add(key)
        if not self._selection.takes_run(key.site, key.run):
            self._visitors.add(key)

    def _task(self, key: StreamKey, position: Position, facts: StreamFacts) -> Task:
        return Task(
            self._spool, key, position, facts, agent=self._agent, limits=self._limits, clock=self._clock
        )

    def _add(self, task: Task) -> None:
        self._tasks[task.key] = task
        self._runs.setdefault((task.key.site, task.key.run), set()).add(task.key)

    # -- the loop --------------------------------------------------------------------------------------------

    def run(self, *, until_drained: bool = False) -> None:
        """Works until `should_stop`, then delivers what it holds and returns; or until all is delivered.

        With `until_drained`, raises Unreachable when the tracker fails: the caller decides how long to try.
        """
        sweep_at = 0.0
        hinted: set[StreamKey] | None = None
        while not self._should_stop():
            now = self._clock()
            if hinted is None or now >= sweep_at:
                self._discover()
                sweep_at = now + self._agent.sweep_interval_s
                has_more = self._work(list(self._tasks.values()))
            else:
                has_more = self._work(self._hinted(hinted))
            self._see_stall()
            self._note()
            if until_drained and self.is_drained():
                break
            rest_s = max(0.0, 0.0 if has_more else min(self._next_due(), sweep_at - self._clock()))
            self._activity.begin("idle", allowed_s=rest_s + _REST_S)
            hinted = self._hints.wait(rest_s)
            self._activity.begin("looking at streams")
        self._drain()

    def _hinted(self, keys: Iterable[StreamKey]) -> list[Task]:
        for key in keys:
            if key not in self._tasks:
                self._consider(key)
        waiting = [t for t in self._tasks.values() if t.held is not None or t.state == "more"]
        return list(
            {id(t): t for t in [*waiting, *(self._tasks[k] for k in keys if k in self._tasks)]}.values()
        )

    def _discover(self) -> None:
        """Looks for streams that are new, and now and then at those that were taken for finished."""
        self._retries.sweep()
        for key in self._listing.streams():
            if key not in self._tasks and key not in self._finished:
                self._consider(key)
        if self._clock() >= self._slow_sweep_at:
            self._slow_sweep_at = self._clock() + _SLOW_SWEEP_S
            positions = None
            for key, facts in list(self._finished.items()):
                if facts.end == "dead":
                    positions = positions or self._store.streams()
                    del self._finished[key]
                    self._add(self._task(key, *positions[key]))

    def _consider(self, key: StreamKey) -> None:
        if (
            ".fork-" in key.writer
            or not self._selection.takes_run(key.site, key.run)
            or key in self._finished
        ):
            return
        self._add(self._task(key, START, StreamFacts()))

    def _work(self, tasks: list[Task]) -> bool:
        """Round after round over the streams, a batch each, until nothing is left to do now.

        Or until the next sweep is due, then True: a tracker that is slower than the writers must not keep new
        streams from being found, nor runs from being told how they ended.
        """
        if not self._teller.retell():
            return False
        until = self._clock() + self._agent.sweep_interval_s
        self._retry_round.first()
        tasks.sort(key=lambda t: (not t.named, t.facts.attempt, t.facts.created_ns, t.key))
        busy = True
        while busy and not (self._should_stop() and not self._draining):
            busy = False
            for task in tasks:
                if self._delivery.is_away or (self._should_stop() and not self._draining):
                    break
                busy |= self._turn(task)
            if self._draining or self._clock() >= until:
                break  # at a stop only what was held: a backlog would take longer than the supervisor waits
        if not self._draining:
            self._retry_round.last(until)
        self._settle(tasks)
        return busy

    def _turn(self, task: Task) -> bool:
        """One batch of one stream; True when it was delivered."""
        self._activity.begin("reading", task.key)
        self._not_yet.discard(task.key)
        try:
            task.fill()
        except OSError as error:
            task.state, task.note = "blocked", f"cannot be read: {error}"
            return False
        due_s = task.due_in(draining=self._draining)
        if due_s is None or due_s > 0:
            return False
        self._not_yet.add(task.key)
        if self._delivery.is_held(task):
            return False
        if task.named:  # it went out before, in whole or in part: nothing may come between
            return self._deliver(task)
        if self._waits_for_redo():
            return False
        if task.key in self._visitors or self._comes_later(task):
            return False
        missing = task.missing_blob()
        if missing is not None:
            task.state, task.note = "blocked", f"blob {missing} has not arrived"
            return False
        return self._deliver(task)

    def _waits_for_redo(self) -> bool:
        """True while a batch that may have been delivered in part is not at hand: a file would not go on as it must.

        For as long as bad bytes are waited for at most; then the others go on, and such a file is left for a new one.
        """
        for key in list(self._redoing):
            if key not in self._tasks or self._tasks[key].redoing is None:
                self._redoing.discard(key)
        return bool(self._redoing) and self._clock() < self._redo_until

    def _comes_later(self, task: Task) -> bool:
        """True while an earlier attempt of the run, or an earlier stream that has ended, has undelivered events.

        Trackers want a run's lives in order; streams that are written at the same time do not wait for each other.
        """
        keys = self._runs[task.key.site, task.key.run]
        if len(keys) == 1:
            return False
        mine = (task.facts.attempt, task.facts.created_ns, task.key)
        for key in keys:
            other = self._tasks.get(key)
            if (
                other is None
                or other is task
                or (other.facts.attempt, other.facts.created_ns, other.key) > mine
            ):
                continue
            if other.state == "new":
                try:
                    other.fill()
                except OSError:
                    continue
            has_more = other.state != "blocked" and (other.held is not None or other.state == "more")
            if has_more and (other.facts.attempt < task.facts.attempt or other.looks_ended):
                return True
        return False

    # -- delivering --------------------------------------------------------------------------------------------

    def _deliver(self, task: Task) -> bool:
        held = task.held
        assert held is not None
        try:
            keep_aside(self._spool.path, task.key, held.bad)
        except OSError as error:
            self._delivery.away(f"damaged bytes cannot be kept aside: {error}")
            return False
        good, dead = split_valid(held.events)
        good = self._chosen(task, good)
        outcome = Outcome()
        if good:
            is_damaged = bool(held.lost or held.bad)
            name = Named(task.key, held.position, held.position.next_seq - 1, task.chosen, is_damaged)
            if not self._delivery.commit(name):
                return False
            task.named = True
            blobs = blob_dir(self._spool.path, task.key.site)
            batch = Batch(stream=task.stream, events=tuple(good), blobs=blobs, again=task.again)
            if not self._delivery.deliver(task, batch, outcome):
                task.again = True
                return False
        kinds = {event.seq: event.type for event in good}
        dead += [(seq, kinds.get(seq, "?"), reason) for seq, reason in outcome.dead.items()]
        facts = facts_after(task.facts, held)
        task.facts = facts
        self._delivery.pending.append(
            Commit(
                key=task.key,
                position=held.position,
                facts=facts,
                applied=len(good) - len(outcome.dead),
                dead=dead,
                lost=held.lost,
                quarantined=[(b.segment, b.offset, len(b.data), b.reason) for b in held.bad],
                skipped=outcome.skipped,
            )
        )
        self._say_damage(task, dead)
        task.delivered()
        self._not_yet.discard(task.key)
        self._count(len(good))
        if task.key not in self._visitors:
            self._touched.add((task.key.site, task.key.run))
        return True

    def _count(self, events: int) -> None:
        self.delivered += events
        self._on_batch()

    def _chosen(self, task: Task, events: list[Event]) -> list[Event]:
        """What the selection takes; of a batch that was named, what it took then."""
        if not task.named and self._selection != _EVERYTHING:
            task.chosen = tuple(e.seq for e in events if self._selection.takes_event(e))
        if task.chosen is None:
            return events
        taken = frozenset(task.chosen)
        return [event for event in events if event.seq in taken]

    def _say_damage(self, task: Task, dead: list[tuple[int, str, str]]) -> None:
        held = task.held
        assert held is not None
        for lost in held.lost:
            self._report(f"{task.key}: seqs {lost.first} to {lost.last} are lost: {lost.reason}")
        for seq, kind, reason in dead[:3]:
            self._report(f"{self._limits.name}: {task.key}: {kind} event {seq} is a dead letter: {reason}")
        if len(dead) > 3:
            self._report(f"{self._limits.name}: {task.key}: {len(dead) - 3} more dead letters in this batch")

    def _settle(self, tasks: list[Task]) -> None:
        """After a round: commits, takes ended streams out of the sweep, tells the receiver how runs stand."""
        for key in [key for key in self._visitors if self._tasks[key].held is None]:
            self._visitors.discard(key)
            del self._tasks[key]
        tasks = [t for t in tasks if self._tasks.get(t.key) is t and t.key not in self._visitors]
        for task in tasks:
            if task.is_ended and task.facts.end != task.state:
                if task.note:
                    self._report(f"{task.key}: {task.note}")
                task.facts.end = task.state
                self._delivery.pending.append(Commit(key=task.key, position=task.position, facts=task.facts))
                self._touched.add((task.key.site, task.key.run))
            elif task.facts.end and not task.is_ended:  # it was ended, and goes on
                task.facts.end = ""
        if self._delivery.pending and not self._delivery.commit():
            return
        for task in tasks:
            if task.is_ended:
                self._finished[task.key] = task.facts
                self._tasks.pop(task.key, None)
        self._tell(tasks)

    def _tell(self, tasks: list[Task]) -> None:
        if self._waits_for_redo():
            return
        quiet = {(t.key.site, t.key.run) for t in tasks if t.held is None and self._is_presumed_dead(t)}
        for run in sorted(self._touched | quiet):
            if self._delivery.is_away:
                return
            state = self._derive(run)
            if state is None or self._teller.tell(*state):
                self._touched.discard(run)
        if self._delivery.pending:
            self._delivery.commit()

    def _derive(self, run: tuple[str, str]) -> tuple[RunEnd, int] | None:
        """The run's state, and how many events of main streams it stands for; None while some are still to be delivered."""
        views = []
        for key in self._runs[run]:
            task = self._tasks.get(key)
            if task is None:
                facts = self._finished.get(key)
                if facts is not None:
                    views.append(StreamView(facts, facts.end))
                continue
            if task.held is not None or task.state in ("more", "new"):
                return None
            presumed = "presumed" if self._is_presumed_dead(task) else ""
            views.append(StreamView(task.facts, task.state if task.is_ended else presumed))
        return derive(*run, views), sum(v.facts.last_seq for v in views if v.facts.role == "main")

    def _is_presumed_dead(self, task: Task) -> bool:
        news_ns = task.facts.news_ns
        if not news_ns or task.is_at_home or task.is_ended:
            return False
        return time.time_ns() - news_ns > self._agent.presume_dead_after_s * 1e9

    # -- resting -------------------------------------------------------------------------------------------------

    def is_drained(self) -> bool:
        """True when everything that can be delivered now has been, and is committed."""
        if self._delivery.pending or self._touched or not self._teller.is_done or not self._retries.is_done:
            return False
        if self._listing.unreadable:
            return False
        return not any(
            t.held is not None or t.redoing is not None or t.state in ("more", "new", "blocked")
            for t in self._tasks.values()
        )

    def blocked(self) -> list[tuple[str, str]]:
        """Streams in which something is missing or bad, and directories that cannot be read, with the reason."""
        streams = [
            (str(t.key), t.note)
            for t in self._tasks.values()
            if t.state in ("blocked", "parked") or t.redoing is not None
        ]
        return [*self._listing.unreadable.items(), *streams]

    @property
    def progress_at(self) -> float:
        """When something was last committed, by the worker's clock."""
        return self._delivery.progress_at

    @property
    def is_failing(self) -> bool:
        """True while the tracker does not take what it is given."""
        return self._delivery.is_failing

    @property
    def retry_in_s(self) -> float:
        """Seconds until a tracker that is failing is tried again."""
        return self._delivery.retry_in_s

    @property
    def stalled_s(self) -> float:
        """For how long a batch has been due, and nothing is committed, though no tracker fails. 0 when all is well.

        It may have to wait for an earlier stream's batch, which waits for company: that does not count.
        """
        since = max(self._delivery.progress_at, self._calm_at) + self._limits.flush_interval_s
        return max(0.0, self._clock() - since)

    def _see_stall(self) -> None:
        """A batch that is due waits a moment for an earlier one of its run; for ever would be a fault of ours."""
        waits = (t for key in self._not_yet if (t := self._tasks.get(key)) is not None)
        if self.is_failing or all(t.held is None or t.state == "blocked" for t in waits):
            self._calm_at = self._clock()

    @property
    def error(self) -> str:
        """Why, when it is failing."""
        return self._delivery.error

    def _next_due(self) -> float:
        """Seconds until there is something to do without any hint."""
        now = self._clock()
        due = [
            d
            for t in self._tasks.values()
            if (d := t.due_in(draining=False)) is not None and (d > 0 or t.key not in self._not_yet)
        ]
        if (retry_s := self._retries.next_due_s(now)) is not None:
            due.append(retry_s)
        soonest = min(due, default=self._agent.sweep_interval_s)
        return max(soonest, self._delivery.resume_in_s)

    def _drain(self) -> None:
        """At a stop: delivers what is held, without waiting for anything."""
        self._draining = True
        if not self._delivery.is_away:
            self._work([t for t in self._tasks.values() if t.held is not None])
        self._delivery.commit()
        self._note(force=True)

    def _note(self, *, force: bool = False) -> None:
        """Leaves word for `status` of what is not in the database."""
        now = self._clock()
        if not force and now - self._noted_at < _NOTE_EVERY_S:
            return
        self._noted_at = now
        note = {
            "pid": os.getpid(),
            "time": time.time_ns(),
            "name": self._limits.name,
            "spec": self._limits.spec,
            "error": self.error if self.is_failing else "",
            "state": "backoff" if self.is_failing else "working" if self._not_yet else "idle",
            "retry_in_s": round(self.retry_in_s, 3),
            "blocked": [{"stream": name, "note": why} for name, why in self.blocked()[:100]],
            "open": len(self._tasks),
            "finished": len(self._finished),
            "stopped": force,
        }
        write_note(self._store.folder, note)
