"""What a receiver is. Whoever writes one reads this file only; docs/receivers.md has a worked example.

A receiver delivers events to one tracker and makes at-least-once delivery take effect once: it may be handed
the same events again after any crash, and then the tracker must end up as if they had come once. What an event
becomes is a pure function of the event: names, ids and times come from (writer, seq), never from a clock.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from spoolagent.format.events import Event
from spoolagent.format.layout import StreamKey

Status = Literal["running", "finished", "failed", "killed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """Which stream a batch comes from, and what its header says."""

    key: StreamKey
    role: str
    """"main" or "aux"; only main streams decide a run's end."""
    attempt: int
    created_ns: int
    spool: str
    """uuid of the spool where the stream was born."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Events of one stream, in rising seq; `again` when they may have been delivered before."""

    stream: Stream
    events: tuple[Event, ...]
    blobs: str
    """The site's blob directory: a blob lies at `blobs/<first two hex digits>/<sha256>`."""
    again: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEnd:
    """The state of a whole run, derived from all its streams."""

    site: str
    run: str
    status: Status
    time_ns: int
    exit_code: int | None


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What became of a batch that was delivered."""

    dead: dict[int, str] = field(default_factory=dict)
    """seq -> why this one event can never be delivered here."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Event type -> how many this tracker has no way to show."""
    damage: list[str] = field(default_factory=list)
    """What was found wrong in the target, one sentence each: what is gone, and where what comes later is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """Where a receiver wants the second copy of its state: with the files that it writes.

    Then an older first copy (a spool that was put back from a backup) is noticed, and nothing is appended twice. A
    receiver whose tracker removes repeats, or that finds what came before in its own files, has no use for it.
    """

    files: str
    """The folder of its files. Absolute."""
    pattern: str
    """A regular expression for the names of its files there: none there, and the copy is of a target that somebody
    emptied."""
    folder: str
    """The copy lies in `<folder>/.spoolagent/`: in the same folder, or above one that people and scripts walk through.
    Absolute."""


class State(Protocol):
    """The receiver's own durable key-value store. What is put is committed together with the cursor.

    When `deliver` raises, everything put since the last commit is undone: keep nothing in attributes that
    depends on it.
    """

    def get(self, key: str) -> Any:
        """The JSON value last put under `key`, or None."""

    def put(self, key: str, value: Any) -> None:
        """Stores `value`."""

    def delete(self, key: str) -> None:
        """Removes `key`; a missing one is fine."""

    def scan(self, prefix: str) -> Iterator[tuple[str, Any]]:
        """Keys that begin with `prefix`, with their values."""
        ...

    def checkpoint(self) -> None:
        """Commits what was put so far now, without moving the cursor (the id of a run just created).

        Before anything is put that only holds once the batch is delivered.
        """


class Receiver(Protocol):
    """Delivers events to one tracker. The factory is called as `factory(target, options)`, cheaply.

    The worker commits which batch it is about to deliver, calls `deliver`, then commits the cursor with the
    state. After a crash it first delivers exactly that batch again, so bytes appended to a file can be
    completed. Every method may raise Unreachable (whole tracker is away) or Transient (try later). An attribute
    `beside: Beside` is optional.
    """

    identity: str
    """Names the target, canonically: one target, one state database."""

    def open(self, state: State) -> None:
        """Checks that the target can be used. Raises Unreachable, or UsageError when the target is wrong."""

    def deliver(self, batch: Batch) -> Outcome:
        """Returns when the tracker has the events durably. Raises Refused when it refuses some for good."""
        ...

    def set_status(self, end: RunEnd) -> Outcome | None:
        """Shows a run's state. Comes after the run's events; comes again when later events reopen it."""
        ...

    def close(self) -> None:
        """Releases what `open` took."""


Options = Mapping[str, Any]
"""A receiver's own settings from the configuration file; it refuses a key that it does not know."""
