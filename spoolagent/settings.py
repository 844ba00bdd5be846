"""Settings as plain frozen values. `spoolagent.config` makes them; the core gets them and reads nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from spoolagent.format.events import Event


@dataclass(frozen=True, kw_only=True, slots=True)
class ReceiverSettings:
    """One receiver of a `serve` or `replay`."""

    name: str
    """How it is called in messages and status; the spec itself when it has no name in the configuration."""
    spec: str
    """`kind:target`, for example `tensorboard:/srv/tb`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The receiver's own settings."""
    max_events: int = 1000
    max_bytes: int = 1 << 20
    flush_interval_s: float = 1.0
    """The longest that an event waits for others to share its batch; 0 delivers at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentSettings:
    """How an agent looks at its spool."""

    spool: str
    sweep_interval_s: float = 1.0
    """The periodic look at every stream, which is the truth; file-system events only make it sooner."""
    stale_after_s: float = 60.0
    """When a writer on another machine whose LIVE does not change counts as dead."""
    presume_dead_after_s: float = 86_400.0
    """When a run of another spool without any news is shown as killed (revocably)."""
    patience_s: float = 60.0
    """How long a bad line is read again before its seqs are lost."""
    stuck_after_s: float = 300.0
    """When a worker that makes no progress, though there is work, is ended and started again."""
    poll: bool | None = None
    """True: never use file-system events. None: poll where the spool lies on a network file system."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings:
    """`serve` and `replay`."""

    agent: AgentSettings
    receivers: tuple[ReceiverSettings, ...]
    give_up_after_s: float | None = None
    """`replay` only: the longest time without progress while a tracker fails."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShipSettings:
    """`ship`."""

    agent: AgentSettings
    target: str
    once: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which part of a spool a `replay` delivers. Empty or None: all of it.

    `run_start` and `run_end` events are always taken: a tracker must know what the run is, and how it ended.
    """

    sites: tuple[str, ...] = ()
    """Names of sites, or patterns with `*` and `?`."""
    runs: tuple[str, ...] = ()
    """Run ids, or patterns."""
    since_ns: int | None = None
    """The first time (the one that a tracker shows) that is taken."""
    until_ns: int | None = None
    """The first time that is no longer taken."""
    types: frozenset[str] = frozenset()
    steps: tuple[int | None, int | None] | None = None
    """First and last step that are taken, None for open. Events without a step are taken."""

    def takes_run(self, site: str, run: str) -> bool:
        """True when streams of this run are looked at."""
        return _matches(site, self.sites) and _matches(run, self.runs)

    def takes_event(self, event: Event) -> bool:
        """True when the event is delivered. A malformed one is taken, to become a dead letter."""
        if event.type in ("run_start", "run_end"):
            return True
        if self.types and event.type not in self.types:
            return False
        return _within(
            event.wall_ns, self.since_ns, None if self.until_ns is None else self.until_ns - 1
        ) and (self.steps is None or _within(event.step, *self.steps))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _within(value: object, low: int | None, high: int | None) -> bool:
    if type(value) is not int:
        return True
    return (low is None or value >= low) and (high is None or value <= high)
