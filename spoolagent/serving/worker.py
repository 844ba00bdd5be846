"""The loop of one receiver: read, batch, deliver, commit. Strictly in this order, for ever or until drained.

The same loop serves a client's own spool, a server's, and `replay`.
"""

import contextlib
import os
import time
from collections.abc import Callable
from typing import Protocol

from spoolagent.contract import Batch, Outcome, Receiver
from spoolagent.format.events import Event
from spoolagent.format.layout import StreamKey, blob_dir
from spoolagent.format.reader import START
from spoolagent.format.spool import Spool
from spoolagent.serving.activity import Activity
from spoolagent.serving.changes import Commit, Named, StreamFacts
from spoolagent.serving.chunks import split_valid
from spoolagent.serving.delivery import Delivery
from spoolagent.serving.note import write_note
from spoolagent.serving.patrol import Found, Patrol, Watching, is_stream
from spoolagent.serving.pool import MOST_RESTING, Pool
from spoolagent.serving.quarantine import keep_aside
from spoolagent.serving.retries import Retries
from spoolagent.serving.retry_round import RetryRound
from spoolagent.serving.run_states import RunStates
from spoolagent.serving.runs import facts_after
from spoolagent.serving.store import Cursor, Store
from spoolagent.serving.task import Task
from spoolagent.serving.telling import Teller
from spoolagent.settings import AgentSettings, ReceiverSettings, Selection

_MOST_HELD = 128
"""Streams that may wait for company with what they hold; beyond them there is no waiting: each takes memory."""
_NOTE_EVERY_S = 1.0
_REST_S = 1.0
"""How much longer than it was told a wait may take before it counts as a hang."""
_EVERYTHING = Selection()


class Hints(Watching, Protocol):
    """What tells the worker that something happened (`spoolagent.watching.Watcher`)."""

    def wait(self, timeout_s: float) -> set[StreamKey] | None:
        """Streams that changed, or None for "look at all of them"."""

    def forget(self, key: StreamKey) -> None:
        """Nothing more is expected of this stream."""


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
        self._pool = Pool()
        self._states = RunStates(
            spool,
            self._pool,
            self._delivery,
            self._teller,
            presume_dead_after_s=agent.presume_dead_after_s,
        )
        self._patrol = Patrol(
            spool,
            store,
            self._pool,
            hints,
            selection=self._selection,
            interval_s=agent.sweep_interval_s,
            is_quiet=self._states.is_quiet,
            clock=clock,
        )
        self._redoing: set[StreamKey] = set()
        """Streams whose batch went out before a crash, and cannot be read again now."""
        self._redo_until = 0.0
        self._draining = False
        self._visitors: set[StreamKey] = set()
        """Streams that are not selected, of which only the batch named before a crash is delivered."""
        self._retries = Retries(spool.path, store, self._selection)
        self._retry_round = RetryRound(
            spool.path,
            self._retries,
            self._delivery,
            self._teller,
            should_stop=should_stop,
            on_applied=lambda: self._count(1),
        )
        self._noted_at = -_NOTE_EVERY_S
        self._crowd = 0
        """How many streams too many wait for company."""
        self._not_yet: set[StreamKey] = set()
        """Streams that hold a batch which is due, and waits for something else."""
        self._calm_at = clock()
        self.delivered = 0
        """Events delivered by this worker."""
        self._load()

    # -- starting ------------------------------------------------------------------------------------------

    def _load(self) -> None:
        self._redo_until = self._clock() + self._agent.patience_s
        for named in self._store.named():
            self._redo(named)

    def _redo(self, named: Named) -> None:
        """Takes up a batch that was named, whatever the selection: a file may hold a part of its bytes."""
        key = named.key
        task = self._add(key, self._store.cursor(key))
        with contextlib.suppress(OSError):  # it is tried again with the next round
            task.redo(named)
        if task.redoing is not None:
            self._redoing.add(key)
        if not self._selection.takes_run(key.site, key.run):
            self._visitors.add(key)

    def _add(self, key: StreamKey, cursor: Cursor | None) -> Task:
        self._hints.watch(key)  # before the first look: what comes after it is hinted
        task = Task(
            self._spool,
            key,
            START if cursor is None else cursor.position,
            StreamFacts() if cursor is None else cursor.facts,
            agent=self._agent,
            limits=self._limits,
            clock=self._clock,
            is_stored=cursor is not None,
        )
        self._pool.add(task)
        return task

    # -- the loop --------------------------------------------------------------------------------------------

    def run(self, *, until_drained: bool = False) -> None:
        """Works until `should_stop`, then delivers what it holds and returns; or until all is delivered.

        With `until_drained`, raises Unreachable when the tracker fails: the caller decides how long to try. Raises
        Moved when somebody removed or replaced the cursor store.
        """
        sweep_at = 0.0
        hinted: set[StreamKey] | None = None
        while not self._should_stop():
            now = self._clock()
            is_sweep = hinted is None or now >= sweep_at
            if hinted is None:
                self._patrol.missed()
            if is_sweep:
                sweep_at = now + self._agent.sweep_interval_s
                self._store.check_place()
                self._retries.sweep()
                self._patrol.sweep()
            has_more = self._work(self._due(hinted or set(), is_sweep=is_sweep))
            self._see_stall()
            self._note()
            if until_drained and self.is_drained():
                break
            has_more = has_more or (self._patrol.is_under_way and self._has_room())
            rest_s = max(0.0, 0.0 if has_more else min(self._next_due(), sweep_at - self._clock()))
            self._activity.begin("idle", allowed_s=rest_s + _REST_S)
            hinted = self._hints.wait(rest_s)
            self._activity.begin("looking at streams")
        self._drain()

    def _due(self, hinted: set[StreamKey], *, is_sweep: bool) -> list[Task]:
        """The streams to look at now: those that hold something, those that were hinted, and a page of the patrol's.

        With a sweep, all that are at hand. While the tracker takes nothing, no more are taken in than there is room.
        """
        due = {t.key: t for t in self._pool.tasks() if is_sweep or t.held is not None or t.state == "more"}
        if self._has_room():
            due |= {task.key: task for task in [*self._wake(hinted), *self._take_up(self._patrol.next())]}
        else:
            due |= {key: task for key in hinted if (task := self._pool.get(key)) is not None}
            if any(key not in self._pool for key in hinted):
                self._patrol.missed()
        return list(due.values())

    def _has_room(self) -> bool:
        """False while much has piled up, because nothing can be delivered."""
        is_little = len(self._pool) < MOST_RESTING and len(self._states.touched) < MOST_RESTING
        return is_little or not (self._delivery.is_out or self._waits_for_redo())

    def _wake(self, keys: set[StreamKey]) -> list[Task]:
        """The tasks of streams that were hinted; those that ended are left to the patrol."""
        tasks, new, known = [], [], []
        for key in keys:
            task = self._pool.get(key)
            if task is not None:
                tasks.append(task)
            elif is_stream(key) and self._selection.takes_run(key.site, key.run):
                cursor = self._store.cursor(key)
                if cursor is None:
                    new.append(key)
                elif not cursor.facts.end:
                    known.append(cursor)
        runs = [] if self._patrol.has_been_round else [cursor.key[:2] for cursor in known]
        return tasks + self._take_up(Found(new, known, []), *runs)

    def _take_up(self, found: Found, *runs: tuple[str, str]) -> list[Task]:
        """Begins with streams. The others of a run to which a new one comes may have to go first."""
        self._states.touched.update(found.runs)
        tasks = [self._add(cursor.key, cursor) for cursor in found.changed]
        tasks += [self._add(key, None) for key in found.new]
        for run in {*runs, *(key[:2] for key in found.new)}:
            tasks += [self._add(cursor.key, cursor) for cursor in self._patrol.changed(run)]
        return tasks

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
            self._crowd = sum(t.held is not None for t in self._pool.tasks()) - _MOST_HELD
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
        due_s = task.due_in(draining=self._draining or self._crowd > 0)
        if due_s is None or due_s > 0:
            return False
        self._crowd -= 1
        self._not_yet.add(task.key)
        if self._delivery.is_held(task):
            return False
        if task.named:  # it went out before, in whole or in part: nothing may come between
            return self._deliver(task)
        if self._waits_for_redo():
            return False
        if task.key in self._visitors or self._comes_later(task):
            return False
        missing = task.missing_blob(lambda: self._activity.begin("checking a blob of", task.key))
        if missing is not None:
            task.state, task.note = "blocked", missing
            return False
        return self._deliver(task)

    def _waits_for_redo(self) -> bool:
        """True while a batch that may have been delivered in part is not at hand: a file would not go on as it must.

        For as long as bad bytes are waited for at most; then the others go on, and such a file is left for a new one.
        """
        for key in list(self._redoing):
            task = self._pool.get(key)
            if task is None or task.redoing is None:
                self._redoing.discard(key)
        return bool(self._redoing) and self._clock() < self._redo_until

    def _comes_later(self, task: Task) -> bool:
        """True while an earlier attempt of the run, or an earlier stream that has ended, has undelivered events.

        Trackers want a run's lives in order; streams that are written at the same time do not wait for each other.
        """
        mine = (task.facts.attempt, task.facts.created_ns, task.key)
        for other in self._pool.of_run(task.key[:2]):
            if other is task or (other.facts.attempt, other.facts.created_ns, other.key) > mine:
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
                damage=outcome.damage,
            )
        )
        self._delivery.say_damage(outcome.damage)
        self._say_damage(task, dead)
        task.delivered()
        task.is_stored = True  # once that is committed, and before that it is kept
        self._pool.stir(task.key)
        self._not_yet.discard(task.key)
        self._count(len(good))
        if task.key not in self._visitors:
            self._states.touched.add(task.key[:2])
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
        """After a round: commits, lets go of streams that ended or rest, tells the receiver how runs stand."""
        self._see_visitors_off()
        tasks = [t for t in tasks if self._pool.get(t.key) is t and t.key not in self._visitors]
        for task in tasks:
            if task.is_ended and task.facts.end != task.state:
                if task.note:
                    self._report(f"{task.key}: {task.note}")
                task.facts.end = task.state
                self._delivery.pending.append(Commit(key=task.key, position=task.position, facts=task.facts))
                self._states.touched.add(task.key[:2])
            elif task.facts.end and not task.is_ended:  # it was ended, and goes on
                task.facts.end, task.is_stored = "", False
        if self._delivery.pending and not self._delivery.commit():
            return
        for task in tasks:
            if task.is_ended:
                self._pool.remove(task.key)
                self._hints.forget(task.key)
        self._pool.rest((t for t in tasks if t.key in self._pool), self._clock())
        if not self._waits_for_redo():
            self._states.tell(tasks)

    def _see_visitors_off(self) -> None:
        for key in list(self._visitors):
            task = self._pool.get(key)
            if task is None or task.held is None:
                self._visitors.discard(key)
                self._pool.remove(key)

    # -- resting -------------------------------------------------------------------------------------------------

    def is_drained(self) -> bool:
        """True when everything that can be delivered now has been, and is committed."""
        if self._delivery.pending or not self._states.is_done or not self._retries.is_done:
            return False
        return self._patrol.is_done and not any(
            t.held is not None or t.redoing is not None or t.state in ("more", "new", "blocked")
            for t in self._pool.tasks()
        )

    def blocked(self) -> list[tuple[str, str]]:
        """Streams in which something is missing or bad, and directories that cannot be read, with the reason."""
        streams = [
            (str(t.key), t.note)
            for t in self._pool.tasks()
            if t.state in ("blocked", "parked") or t.redoing is not None
        ]
        return [*self._patrol.unreadable.items(), *streams]

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
        waits = (t for key in self._not_yet if (t := self._pool.get(key)) is not None)
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
            for t in self._pool.tasks()
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
            self._work([t for t in self._pool.tasks() if t.held is not None])
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
            "stopped": force,
        }
        write_note(self._store.folder, note)
