"""Delivering dead letters again that somebody marked: those that were named before all else, the rest after it."""

from collections import Counter
from collections.abc import Callable

from spoolagent.contract import Batch, Outcome
from spoolagent.format.events import check
from spoolagent.format.layout import blob_dir
from spoolagent.serving.changes import Commit, Retried
from spoolagent.serving.delivery import Delivery
from spoolagent.serving.retries import Retries, Retry
from spoolagent.serving.telling import Teller


class RetryRound:
    """A worker's turns with the dead letters in `retries`; `on_applied` is called for each that was taken."""

    def __init__(
        self,
        spool: str,
        retries: Retries,
        delivery: Delivery,
        teller: Teller,
        *,
        should_stop: Callable[[], bool],
        on_applied: Callable[[], None],
    ) -> None:
        self._spool, self._retries, self._delivery, self._teller = spool, retries, delivery, teller
        self._should_stop, self._on_applied = should_stop, on_applied

    def first(self) -> None:
        """Before all else, what went out and was not committed: nothing may come between."""
        try:
            named = self._retries.named()
        except OSError as error:  # whether it was applied can only be known by delivering it again
            self._delivery.away(f"a dead letter that was being retried cannot be read: {error}")
            return
        self._each(named, None)

    def last(self, until: float) -> None:
        """After everything else that is due, the next page of what is marked in the database."""
        if self._delivery.is_away or self._should_stop():
            return
        if (
            any(change.retried is not None for change in self._delivery.pending)
            and not self._delivery.commit()
        ):
            return
        self._each(self._retries.due(), until)

    def _each(self, retries: list[Retry], until: float | None) -> None:
        """In their order, until the next sweep is due; at least one."""
        ends: Counter[str] = Counter()
        for retry in retries:
            if self._delivery.is_away or (self._should_stop() and not retry.named):
                break
            if self._delivery.clock() < retry.retry_at or self._delivery.is_held(retry):
                continue
            ends[self._retry(retry)] += 1
            if until is not None and self._delivery.clock() >= until:
                break
        if applied := ends["applied"]:
            self._delivery.report(f"{self._delivery.name}: {applied} dead letters were retried and delivered")
        if again := ends["refused"]:
            self._delivery.report(
                f"{self._delivery.name}: {again} dead letters were retried and are still dead letters"
            )

    def _retry(self, retry: Retry) -> str:
        """Delivers one dead letter again: "applied", "refused", or "" when it is to be tried again."""
        event, why, outcome = retry.event, retry.why, Outcome()
        if event is not None:
            why = check(event) or ""
        if event is not None and not why:
            if not retry.named and not self._delivery.commit(retry=retry.letter):
                return ""
            retry.named = True
            blobs = blob_dir(self._spool, retry.key.site)
            stream = self._retries.stream(retry)
            if not self._delivery.deliver(
                retry, Batch(stream=stream, events=(event,), blobs=blobs, again=True), outcome
            ):
                return ""
            why = outcome.dead.get(event.seq, "")
        self._retries.resolved(retry)
        letter = retry.letter
        self._delivery.pending.append(
            Commit(
                retried=Retried(letter.key, letter.seq, why), skipped=outcome.skipped, damage=outcome.damage
            )
        )
        self._delivery.say_damage(outcome.damage)
        if why:
            return "refused"
        self._on_applied()
        self._teller.again((letter.key.site, letter.key.run))
        return "applied"
