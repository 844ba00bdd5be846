"""Settings as plain frozen values. `spoolagent.config` makes them; the core gets them and reads nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
