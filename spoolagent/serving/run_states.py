"""How the runs stand: derived from their streams, and told to the receiver."""

import time
from collections.abc import Iterable

from spoolagent.contract import RunEnd
from spoolagent.format.spool import Spool
from spoolagent.serving.changes import StreamFacts
from spoolagent.serving.delivery import Delivery
from spoolagent.serving.pool import Pool, RunKey
from spoolagent.serving.runs import StreamView, derive
from spoolagent.serving.store import Cursor
from spoolagent.serving.task import Task
from spoolagent.serving.telling import Teller


class RunStates:
    """Derives the state of runs that something happened to, and tells the receiver what is new to it."""

    def __init__(
        self, spool: Spool, pool: Pool, delivery: Delivery, teller: Teller, *, presume_dead_after_s: float
    ) -> None:
        self._spool, self._pool, self._delivery, self._teller = spool, pool, delivery, teller
        self._presume_dead_after_s = presume_dead_after_s
        self.touched: set[RunKey] = set()
        """Runs whose state may have changed since it was derived."""

    @property
    def is_done(self) -> bool:
        """True when the receiver knows how every run stands, as far as is known."""
        return not self.touched and self._teller.is_done

    def tell(self, tasks: Iterable[Task]) -> None:
        """Tells what can be told, also of runs of `tasks` from which no news came for too long."""
        quiet = {t.key[:2] for t in tasks if t.held is None and not t.is_ended and self._is_quiet(t.facts)}
        for run in sorted(self.touched | quiet):
            if self._delivery.is_away:
                return
            state = self._derive(run)
            if state is None or self._teller.tell(*state):
                self.touched.discard(run)
        if self._delivery.pending:
            self._delivery.commit()

    def is_quiet(self, cursor: Cursor) -> bool:
        """True when no news of the open stream came for so long that its writer is presumed dead."""
        return self._is_quiet(cursor.facts)

    def _is_quiet(self, facts: StreamFacts) -> bool:
        if not facts.news_ns or facts.spool == self._spool.uuid:
            return False
        return time.time_ns() - facts.news_ns > self._presume_dead_after_s * 1e9

    def _derive(self, run: RunKey) -> tuple[RunEnd, int] | None:
        """The run's state, and how many events of main streams it stands for; None while some are still to be delivered."""
        tasks = list(self._pool.of_run(run))
        if any(task.held is not None or task.state in ("more", "new") for task in tasks):
            return None
        views = [
            StreamView(task.facts, self._end(task.facts, task.state, is_ended=task.is_ended))
            for task in tasks
        ]
        for cursor in self._delivery.store.cursors_of(*run):
            if cursor.key not in self._pool:
                facts = cursor.facts
                views.append(StreamView(facts, self._end(facts, facts.end, is_ended=bool(facts.end))))
        return derive(*run, views), sum(v.facts.last_seq for v in views if v.facts.role == "main")

    def _end(self, facts: StreamFacts, end: str, *, is_ended: bool) -> str:
        if is_ended:
            return end
        return "presumed" if self._is_quiet(facts) else ""
