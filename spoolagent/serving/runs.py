"""A run's state, derived from its streams (docs/format.md, "A run's state")."""

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple, cast

from spoolagent.contract import RunEnd, Status
from spoolagent.format.reader import Chunk
from spoolagent.serving.changes import StreamFacts

_WORST = ("failed", "killed", "finished")


class StreamView(NamedTuple):
    """A stream as far as it decides a run's state."""

    facts: StreamFacts
    end: str
    """"" while open; "closed", "dead" or "presumed"."""


def derive(site: str, run: str, streams: Iterable[StreamView]) -> RunEnd:
    """The state of a run. Only the main streams of its latest attempt decide.

    An aux stream may arrive before the main stream of the process that forked it: its attempt has begun all the same.
    """
    views = list(streams)
    latest = max((view.facts.attempt for view in views), default=0)
    deciding = [view for view in views if view.facts.role == "main" and view.facts.attempt == latest]
    time_ns = max((view.facts.last_ns for view in deciding), default=0)
    if not deciding or any(not view.end for view in deciding):
        return RunEnd(site=site, run=run, status="running", time_ns=time_ns, exit_code=None)
    worst = min(deciding, key=lambda view: _WORST.index(_status(view)))
    return RunEnd(site=site, run=run, status=_status(worst), time_ns=time_ns, exit_code=worst.facts.exit_code)


def _status(view: StreamView) -> Status:
    """What one ended stream says: its `run_end`; without one its process was killed."""
    return cast(Status, view.facts.status or "killed")


def facts_after(facts: StreamFacts, held: Chunk) -> StreamFacts:
    """The facts of a stream after this chunk."""
    events = held.events
    new = replace(facts, news_ns=time.time_ns(), last_seq=held.position.next_seq - 1)
    for event in events:
        if event.type == "run_end" and isinstance(event.data.get("status"), str):
            new.status = event.data["status"]
            code = event.data.get("exit_code")
            new.exit_code = code if isinstance(code, int) else None
        elif event.type == "gap" and isinstance(event.data.get("dropped"), int):
            new.gap += event.data["dropped"]
    if events:
        last = events[-1]
        new.last_ns = last.wall_ns if last.type == "run_end" else max(new.last_ns, last.time_ns)
    return new
