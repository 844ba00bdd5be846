"""The loop of `spoolagent ship`: look at every stream, carry what is new, wait, come back; for ever or once."""

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from spoolagent.errors import Locked, SpoolError, Unreachable, UsageError
from spoolagent.format import layout
from spoolagent.format.ends import DeathWatch, end_dead_stream
from spoolagent.format.layout import StreamKey
from spoolagent.format.spool import Spool, open_spool
from spoolagent.settings import AgentSettings, ShipSettings
from spoolagent.shipping.blobs import BlobCarrier
from spoolagent.shipping.carry import StreamCarrier
from spoolagent.shipping.directory import open_target
from spoolagent.shipping.places import KnownTarget, check_apart
from spoolagent.shipping.report import Note, ShipReport, Tally, Tell
from spoolagent.shipping.source import SourceError, reading, signature
from spoolagent.shipping.target import AnotherSpool, Away, OffsetRefused, Target
from spoolagent.shipping.walk import State
from spoolagent.watching import Watcher

_SLICE_S = 0.2
"""How soon `stop` is noticed."""
_ONCE_PAUSE_S = 0.2
_MAX_PAUSE_S = 10.0
_RECHECK_S = 60.0
"""How often streams that left the sweep are looked at again (a writer that was thought dead may go on)."""
_IN_A_ROW = 3
"""Streams that fail one after the other before the whole target counts as failing."""


class Stop(Protocol):
    """What `threading.Event` has."""

    def is_set(self) -> bool:
        """True when the shipper should end."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it should end, at most `timeout` s."""
        ...


def backoff_s(failures: int, *, spread: Callable[[], float] = random.random) -> float:
    """How long to wait after so many failures in a row: 0.5 s, doubled up to 60 s, half of it by chance."""
    full = min(60.0, 0.5 * 2.0 ** min(failures - 1, 10))
    return full * (0.5 + 0.5 * spread())


def ship(settings: ShipSettings, *, stop: Stop, report: Tell, target: Target | None = None) -> ShipReport:
    """Ships the spool to the target until `stop` is set, or `once`: what is there now.

    `report` gets each Note as it happens. Raises UsageError when spool or target are not fit, and with `once`
    Unreachable (or AnotherSpool) when the target cannot be reached or does not take what is shipped.
    """
    spool = open_spool(settings.agent.spool)
    if target is None:
        target = open_target(settings.target)
        check_apart(spool.path, settings.target)
    shipper = Shipper(spool, target, settings.agent, report, stop)
    return shipper.once() if settings.once else shipper.follow()


class Shipper:
    """One session between one spool and one target."""

    def __init__(
        self,
        spool: Spool,
        target: Target,
        settings: AgentSettings,
        tell: Tell,
        stop: Stop,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spool, self._target, self._settings, self._clock = spool, target, settings, clock
        self._stop = stop
        self._tally = Tally(tell=tell)
        self._known = KnownTarget(spool, target)
        self._blobs = BlobCarrier(spool.path, target, self._tally)
        self._deaths = DeathWatch(stale_after_s=settings.stale_after_s)
        self._carriers: dict[StreamKey, StreamCarrier] = {}
        self._done: dict[StreamKey, int] = {}
        self._blobs_looked_at: set[str] = set()
        self._recheck_at = clock() + _RECHECK_S
        self._failing = 0
        self._is_open = False

    # -- once ----------------------------------------------------------------------------------------------

    def once(self) -> ShipReport:
        """Ships what is there. What may still heal is waited for, at most the patience of the settings."""
        self._open()
        failed = self._sweep(None)
        deadline = self._clock() + self._settings.patience_s + 5.0
        while (
            not failed
            and (self._keys("more") or self._is_worth_waiting(deadline))
            and not self._stop.is_set()
        ):
            failed = self._sweep(self._keys("more", "waiting"))
        if failed is not None:
            raise failed
        return self.report()

    def _is_worth_waiting(self, deadline: float) -> bool:
        """Pauses while something may still heal. False when there is nothing, or the time is over."""
        if not self._keys("waiting") or self._clock() >= deadline:
            return False
        self._stop.wait(_ONCE_PAUSE_S)
        return True

    def report(self) -> ShipReport:
        """What was done so far."""
        return self._tally.report(len(self._done))

    def _keys(self, *states: State) -> list[StreamKey]:
        return [key for key, carrier in self._carriers.items() if carrier.state in states]

    # -- following -----------------------------------------------------------------------------------------

    def follow(self) -> ShipReport:
        """Ships until `stop` is set; comes through every outage of the target by itself."""
        failures = 0
        with Watcher(self._spool.path, self._settings.poll) as watcher:
            hints: Iterable[StreamKey] | None = None
            while not self._stop.is_set():
                try:
                    self._open()
                    failed = self._sweep(hints)
                except SpoolError as error:
                    if isinstance(error, UsageError) and not isinstance(error, AnotherSpool):
                        raise
                    failed, self._is_open = error, False
                if failed is not None and (not self._is_open or self._failing >= _IN_A_ROW):
                    failures += 1
                    self._tally.note("away", None, str(failed))
                    self._stop.wait(backoff_s(failures))
                    for carrier in self._carriers.values():
                        carrier.retry_at = 0.0  # the target's back-off stands for all of theirs
                    hints = None
                    continue
                if failures:
                    failures = 0
                    self._tally.clear("away", None)
                    self._tally.tell(
                        Note("back", None, f"the target takes data again: {self._target.identity}")
                    )
                hints = self._wait(watcher)
                more = self._keys("more")
                hints = {*hints, *more} if hints is not None and more else hints
        return self.report()

    def _wait(self, watcher: Watcher) -> set[StreamKey] | None:
        """Until hints come, or the sweep is due (None)."""
        now = self._clock()
        self._sweep_at = max(now, self._sweep_at)
        while not self._stop.is_set():
            rest = 0.0 if self._keys("more") else self._sweep_at - self._clock()
            hints = watcher.wait(max(0.0, min(rest, _SLICE_S)))
            if hints or (hints is not None and self._keys("more")):
                return hints
            if hints is None or self._clock() >= self._sweep_at:
                return None
        return set()

    _sweep_at = 0.0

    # -- one sweep -----------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Opens the target when it is not, and then forgets what was verified: it may have been restored."""
        if self._is_open:
            return
        self._check_source()
        self._known.open()
        self._is_open = True
        self._failing = 0
        self._done.clear()
        self._blobs_looked_at.clear()
        for carrier in self._carriers.values():
            carrier.forget()
            carrier.retry_at, carrier.failures = 0.0, 0

    def _check_source(self) -> None:
        """Raises SourceError when the spool is away: nothing may be made where it was. UsageError when it is another one."""
        try:
            uuid = open_spool(self._spool.path).uuid
        except SpoolError as error:
            raise SourceError(f"{error}; mount it or put it back: ship goes on by itself") from error
        if uuid != self._spool.uuid:
            raise UsageError(
                f"{self._spool.path} is another spool now ({uuid}, before {self._spool.uuid}): start ship again"
            )

    def _sweep(self, keys: Iterable[StreamKey] | None) -> SpoolError | None:
        """Looks at the streams `keys`, or all (None). The target's refusal, if any stream met one."""
        refusal: SpoolError | None = None
        began = self._clock()
        try:
            if keys is None:
                self._check_places()
            for key in self._all() if keys is None else keys:
                if self._stop.is_set():
                    break
                if keys is None and key in self._done:
                    continue
                refusal = self._look_at(key) or refusal
            if keys is None:
                self._tally.clear("error", None, about=self._spool.path)
        except (Away, AnotherSpool) as error:
            self._is_open = False
            return error
        except Unreachable as error:
            return error
        except SourceError as error:
            self._tally.note("error", None, str(error), about=self._spool.path)
        if keys is None:  # tens of thousands of streams take longer to look at: then less often
            pause_s = max(self._settings.sweep_interval_s, min(_MAX_PAUSE_S, 4.0 * (self._clock() - began)))
            self._sweep_at = self._clock() + pause_s
        return refusal

    def _check_places(self) -> None:
        """Whether spool and target are still there, and still the same; what went on, is asked for, or was late."""
        self._check_source()
        if self._clock() >= self._recheck_at:
            self._recheck_at = self._clock() + _RECHECK_S
            self._recheck()
        self._known.open()  # also with nothing to ship
        self._blobs.retry_missing()
        self._take_requests()

    def _take_requests(self) -> None:
        """Takes back into the sweep what a reader at the target found damaged. What is not of this spool others have."""
        for site, sha256 in self._target.asked_blobs():
            self._blobs.carry_again(site, sha256)
        for key in self._target.asked():
            if os.path.isdir(layout.stream_dir(self._spool.path, key)):
                with contextlib.suppress(SourceError):
                    carrier = self._carrier(key)
                    if not carrier.in_full:
                        carrier.compare_in_full()
                    self._done.pop(key, None)

    def _recheck(self) -> None:
        """Takes back into the sweep what has changed since it left: a writer that was thought dead went on."""
        for key, seen in list(self._done.items()):
            with contextlib.suppress(SourceError):
                if hash(signature(layout.stream_dir(self._spool.path, key))) != seen:
                    del self._done[key]

    def _all(self) -> Iterable[StreamKey]:
        """Every stream, site by site; a site that cannot be read is reported and hides no other."""
        with reading(self._spool.path):
            sites = layout.list_names(os.path.join(self._spool.path, "sites"))
        for site in sites:
            try:
                with reading(self._spool.path):
                    if site not in self._blobs_looked_at:
                        self._blobs.carry_all(site)
                        self._blobs_looked_at.add(site)
                    yield from layout.iter_streams(self._spool.path, site)
            except SourceError as error:
                self._tally.note("error", None, f"{site}: {error}", about=site)
            else:
                self._tally.clear("error", None, about=site)

    def _look_at(self, key: StreamKey) -> Unreachable | None:
        """Carries one stream. Its own troubles stay its own; the target's are returned, in a row raised."""
        self._tally.streams.add(key)
        try:
            carrier = self._carrier(key)
            if self._clock() < carrier.retry_at:
                return None
            self._carry(carrier)
        except (Away, AnotherSpool):
            raise
        except Unreachable as error:
            self._failing += 1
            self._put_off(key, error)
            if self._failing >= _IN_A_ROW:
                raise
            return error
        except SpoolError as error:
            self._put_off(key, error)
        else:
            self._failing = 0
        return None

    def _carrier(self, key: StreamKey) -> StreamCarrier:
        if key not in self._carriers:
            self._carriers[key] = StreamCarrier(
                self._spool.path,
                self._spool.uuid,
                key,
                self._target,
                self._blobs,
                self._tally,
                patience_s=self._settings.patience_s,
                clock=self._clock,
            )
        return self._carriers[key]

    def _carry(self, carrier: StreamCarrier) -> None:
        key = carrier.key
        self._done.pop(key, None)
        try:
            self._end_if_dead(carrier)
            state = carrier.carry(self._stop.is_set)
        except (OffsetRefused, Locked) as error:  # another shipper is at it: next time
            carrier.forget()
            carrier.state = "waiting"
            self._tally.note("waiting", key, str(error))
            return
        carrier.failures = 0
        self._tally.clear("error", key)
        if carrier.in_full and state in ("done", "current"):
            self._target.answer(key)
            carrier.in_full = False
        if state == "done":
            self._done[key] = hash(carrier.seen)
            del self._carriers[key]
            self._deaths.forget(carrier.path)

    def _end_if_dead(self, carrier: StreamCarrier) -> None:
        """Only what is quiet is asked about: whoever writes lives."""
        if carrier.is_home() and (carrier.is_quiet() or carrier.state == "waiting" or carrier.seen is None):
            with reading(carrier.path):
                end_dead_stream(carrier.path, self._deaths)

    def _put_off(self, key: StreamKey, error: SpoolError) -> None:
        self._tally.note("error", key, f"{key}: {error}")
        carrier = self._carriers.get(key)
        if carrier is not None:
            carrier.forget()
            carrier.failures += 1
            carrier.retry_at = self._clock() + backoff_s(carrier.failures)
