"""Telling a receiver how its runs stand: once a change, and again after a crash that may have come between."""

import sqlite3
from collections.abc import Sequence
from typing import Any

from spoolagent.contract import Outcome, RunEnd
from spoolagent.errors import Transient, Unreachable
from spoolagent.serving import sums
from spoolagent.serving.changes import Commit
from spoolagent.serving.delivery import OUT_OF_MEMORY, Delivery
from spoolagent.serving.place import Moved

RunKey = tuple[str, str]
"""(site, run)"""


class Teller:
    """What the receiver was told of each run. What it may not have taken is told first after a restart."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._uncommitted: dict[RunKey, dict[str, Any]] = {}
        """What runs were told, as far as the database may not have it yet."""
        self._unsure = delivery.store.unsure()

    @property
    def is_done(self) -> bool:
        """False while a state may not have reached the receiver."""
        return not self._unsure

    def tell(self, end: RunEnd, upto: int) -> bool:
        """Tells the receiver a run's state, unless it knows; also the same state again when events came after it."""
        told = self._told(end.site, end.run)
        if end.status == "running" and (told is None or told["status"] == "running"):
            return True
        content = {"status": end.status, "time": end.time_ns, "exit": end.exit_code, "upto": upto}
        if told == {**content, "sure": True}:
            return True
        try:
            self._delivery.store.commit(
                [*self._delivery.pending, Commit(told=(end.site, end.run, {**content, "sure": False}))]
            )
        except (sqlite3.Error, OSError) as error:
            self._delivery.refused_by_disk(error)
            return False
        self._delivery.pending.clear()
        self._uncommitted.clear()
        return self._set_status(end, content)

    def _told(self, site: str, run: str) -> dict[str, Any] | None:
        if not self._delivery.pending:
            self._uncommitted.clear()
        return self._uncommitted.get((site, run)) or self._delivery.store.told(site, run)

    def _note(self, run: RunKey, content: dict[str, Any], damage: Sequence[str] = ()) -> None:
        """Goes with the next commit."""
        self._uncommitted[run] = content
        self._delivery.pending.append(Commit(told=(*run, content), damage=list(damage)))

    def _set_status(self, end: RunEnd, told: dict[str, Any]) -> bool:
        mark = self._delivery.store.mark()
        self._delivery.activity.begin("telling the state of", f"{end.site}/{end.run}")
        outcome = Outcome()
        try:
            outcome = self._delivery.receiver.set_status(end) or outcome
        except (sums.Damaged, Moved):
            raise
        except (Unreachable, Transient, OSError, sqlite3.Error, MemoryError) as error:
            self._delivery.store.rollback(mark)
            self._delivery.away(OUT_OF_MEMORY if isinstance(error, MemoryError) else str(error))
            self._unsure.append((end.site, end.run))
            return False
        except Exception as error:  # noqa: BLE001 - as in delivery: one run's state must not stop the rest
            self._delivery.store.rollback(mark)
            self._delivery.report(
                f"{self._delivery.name}: the state of {end.site}/{end.run} was refused: {error}"
            )
        self._delivery.say_damage(outcome.damage)
        self._note((end.site, end.run), {**told, "sure": True}, outcome.damage)
        return True

    def retell(self) -> bool:
        """States that may not have reached the receiver before a crash, first of all. True when they have now."""
        if self._unsure and self._delivery.is_away:
            return False
        while self._unsure:
            site, run = self._unsure.pop()
            told = self._told(site, run)
            assert told is not None, "who is not sure was told something"
            end = RunEnd(
                site=site, run=run, status=told["status"], time_ns=told["time"], exit_code=told["exit"]
            )
            if not self._set_status(end, told):
                return False
            self._delivery.is_back()
        return True

    def again(self, run: RunKey) -> None:
        """An event that came late may have reopened the run in its tracker: its state is told once more."""
        told = self._told(*run)
        if told is None or told["status"] == "running":
            return
        self._note(run, {**told, "sure": False})
        if run not in self._unsure:
            self._unsure.append(run)
