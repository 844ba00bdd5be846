"""Receivers of the model: a tracker with keys that remembers everything, and moods for it and for real receivers."""

from model_process import Crash, Violation

from spoolagent.contract import Outcome
from spoolagent.errors import Refused, Transient, Unreachable

MOODS = ("ok", "down", "busy", "late", "late-busy", "crash", "crash-after")
FILE_MOODS = ("ok", "down", "late", "crash", "crash-after")
"""A receiver whose files take bytes of all runs in one order never says "not now" of a single run."""


class Tracker:
    """The durable side of a keyed tracker: survives every worker."""

    def __init__(self, refuses):
        self.refuses = refuses
        self.events = {}
        """key -> {seq: data}"""
        self.statuses = {}
        self.may_be_late = lambda key, seq: False
        """True for an event that a later one may come before: a dead letter, or cursors were put back."""


class ModelReceiver:
    """Applies events under (stream, seq); the same again changes nothing, another content is a violation."""

    def __init__(self, name, tracker):
        self.identity = f"model:{name}"
        self._tracker = tracker

    def open(self, state):
        self._state = state

    def deliver(self, batch):
        if self._tracker.refuses and any(e.data.get("metrics", {}).get("refuse") for e in batch.events):
            raise Refused("this one not")
        held = self._tracker.events.setdefault(batch.stream.key, {})
        for event in batch.events:
            known = held.get(event.seq)
            late = known is None and held and event.seq < max(held)
            if late and not self._tracker.may_be_late(batch.stream.key, event.seq):
                raise Violation(f"order: {batch.stream.key} seq {event.seq} came after {max(held)}")
            if known is not None and known != event.data:
                raise Violation(f"{batch.stream.key} seq {event.seq} came twice: {known} and {event.data}")
            held[event.seq] = event.data
        self._state.put("count", (self._state.get("count") or 0) + len(batch.events))
        return Outcome()

    def set_status(self, end):
        self._tracker.statuses[end.site, end.run] = end

    def close(self):
        self._state = None


class Moody:
    """Wraps a receiver: each call's outcome is the next of `moods`, "ok" when there is none left."""

    def __init__(self, world, name, inner, process):
        self._inner, self._process, self._world, self._name = inner, process, world, name
        self.moods = world.moods[name]
        self.identity, self.beside = inner.identity, getattr(inner, "beside", None)
        self._attempts, self._stats = world.attempts[name], world.stats

    def open(self, state):
        self._before(self._next(opening=True))
        self._inner.open(state)

    def deliver(self, batch):
        mood = self._next()
        self._comes_again({(batch.stream.key, e.seq) for e in batch.events})
        if self._name == "home":
            self._world.check_handed_out(batch.stream.key, [e.seq for e in batch.events])
        self._before(mood)
        seen = self._attempts.setdefault(batch.stream.key, set())
        again = [e.seq for e in batch.events if e.seq in seen]
        self._gives_up(batch)
        self._stats["repeats"] += len(again)
        seen.update(e.seq for e in batch.events)
        outcome = self._inner.deliver(batch)
        self._after(mood)
        self._world.in_flight.pop(self._name, None)
        return outcome

    def _comes_again(self, given):
        """What was in flight must come again, and first; where it cannot be read any more, it may stand twice."""
        before = self._world.in_flight.get(self._name)
        if before and given != before and self._world.damage:
            self._world.excused[self._name] |= before
        self._world.in_flight[self._name] = given

    def _gives_up(self, batch):
        """Notes what this batch leaves out, between the cursor and its end."""
        key, held = batch.stream.key, {event.seq for event in batch.events}
        begin = self._world.cursors[self._name].get(key, 1)
        self._world.given_up |= {(key, seq) for seq in range(begin, max(held, default=0)) if seq not in held}

    def set_status(self, end):
        mood = self._next()
        self._comes_again(self._world.in_flight.get(self._name, set()) if not self._world.damage else set())
        self._before(mood)
        self._inner.set_status(end)
        self._after(mood)

    def close(self):
        self._inner.close()

    def _next(self, opening=False):
        mood = self.moods[0] if self.moods else "ok"
        if self.moods and mood != "always down" and not (opening and mood not in ("down", "crash")):
            self.moods.pop(0)
        return mood

    def _before(self, mood):
        if mood in ("down", "always down"):
            raise Unreachable("the tracker is away")
        if mood == "busy":
            raise Transient("not now", retry_after_s=2.0)
        if mood == "crash":
            self._die()

    def _after(self, mood):
        if mood == "late":
            raise Unreachable("no answer in time")
        if mood == "late-busy":
            raise Transient("no answer in time")
        if mood == "crash-after":
            self._die()

    def _die(self):
        self._process.dead = True
        raise Crash
