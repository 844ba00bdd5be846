"""Telling a receiver how its runs stand: once a change, and again after a crash that may have come between."""

import sqlite3

from spoolagent.contract import RunEnd
from spoolagent.errors import Transient, Unreachable
from spoolagent.serving.changes import Commit
from spoolagent.serving.delivery import Delivery

RunKey = tuple[str, str]
"""(site, run)"""


class Teller:
    """What the receiver was told of each run. What it may not have taken is told first after a restart."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._told = delivery.store.told()
        self._unsure = [key for key, told in self._told.items() if not told["sure"]]

    @property
    def is_done(self) -> bool:
        """False while a state may not have reached the receiver."""
        return not self._unsure

    def tell(self, end: RunEnd, upto: int) -> bool:
        """Tells the receiver a run's state, unless it knows; also the same state again when events came after it."""
        told = self._told.get((end.site, end.run))
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
        self._told[end.site, end.run] = {**content, "sure": False}
        return self._set_status(end)

    def _set_status(self, end: RunEnd) -> bool:
        content = {**self._told[end.site, end.run], "sure": True}
        mark = self._delivery.store.mark()
        self._delivery.activity.begin("telling the state of", f"{end.site}/{end.run}")
        try:
            self._delivery.receiver.set_status(end)
        except (Unreachable, Transient, OSError, sqlite3.Error) as error:
            self._delivery.store.rollback(mark)
            self._delivery.away(str(error))
            self._unsure.append((end.site, end.run))
            return False
        except Exception as error:  # noqa: BLE001 - as in delivery: one run's state must not stop the rest
            self._delivery.store.rollback(mark)
            self._delivery.report(
                f"{self._delivery.name}: the state of {end.site}/{end.run} was refused: {error}"
            )
        self._delivery.pending.append(Commit(told=(end.site, end.run, content)))  # goes with the next commit
        self._told[end.site, end.run] = content
        return True

    def retell(self) -> bool:
        """States that may not have reached the receiver before a crash, first of all. True when they have now."""
        if self._unsure and self._delivery.is_away:
            return False
        while self._unsure:
            site, run = self._unsure.pop()
            told = self._told[site, run]
            end = RunEnd(
                site=site, run=run, status=told["status"], time_ns=told["time"], exit_code=told["exit"]
            )
            if not self._set_status(end):
                return False
            self._delivery.is_back()
        return True

    def again(self, run: tuple[str, str]) -> None:
        """An event that came late may have reopened the run in its tracker: its state is told once more."""
        told = self._told.get(run)
        if told is None or told["status"] == "running":
            return
        self._told[run] = {**told, "sure": False}
        self._delivery.pending.append(Commit(told=(*run, self._told[run])))
        if run not in self._unsure:
            self._unsure.append(run)
