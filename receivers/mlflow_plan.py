"""What a batch becomes in MLflow, decided before anything is sent.

Metrics keep their milliseconds and step. Of params the first value applied wins. Of tags, summary and config the
last by (time, writer, seq) wins. What was decided is kept in the receiver's state, but put there only after the
server took it (`Plan.commit`), so that a plan can be thrown away and made again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from spoolagent.contract import Outcome, State
from spoolagent.receivers.mlflow_media import File
from spoolagent.receivers.mlflow_names import escape

MAX_TAG = 8000
RESERVED = frozenset({"spoolagent.site", "spoolagent.run"})
"""Tags that the receiver finds its runs by: no event may set them."""
PARENT_TAG = "mlflow.parentRunId"
NAME_TAG = "mlflow.runName"

Point = tuple[str, float, int, int]
"""Key, value, timestamp in ms, step: the arguments of mlflow.entities.Metric."""


@dataclass(kw_only=True, slots=True)
class Upload:
    """A file to put into the run's artifacts, and the event it comes from."""

    seq: int
    path: str
    """As MLflow takes it (escaped)."""
    file: File


@dataclass(kw_only=True)
class Plan:
    """The requests that a batch becomes, and what the state will say when they are done."""

    state: State
    run: str
    """`<site>/<run>`: prefix of all keys of the run in the state."""
    points: list[Point] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    uploads: dict[str, Upload] = field(default_factory=dict)
    outcome: Outcome = field(default_factory=Outcome)
    parent: str | None = None
    """Run id, within the site, of the run's parent."""
    run_name: str | None = None
    _puts: dict[str, Any] = field(default_factory=dict)

    def get(self, kind: str, name: str) -> Any:
        """What the state will hold under `<kind>/<run>/<name>`."""
        key = f"{kind}/{self.run}/{name}"
        return self._puts[key] if key in self._puts else self.state.get(key)

    def put(self, kind: str, name: str, value: Any) -> None:
        """Remembers the value for `commit`."""
        self._puts[f"{kind}/{self.run}/{name}"] = value

    def scan(self, kind: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Names under `prefix` with their values, in order, with what this plan adds."""
        start = f"{kind}/{self.run}/"
        held = dict(self.state.scan(start + prefix))
        held |= {key: value for key, value in self._puts.items() if key.startswith(start + prefix)}
        for key in sorted(held):
            yield key[len(start) :], held[key]

    def commit(self) -> None:
        """Puts everything into the state; the worker commits it with the cursor."""
        for key, value in self._puts.items():
            self.state.put(key, value)

    def wins(self, kind: str, name: str, order: list[Any]) -> bool:
        """True when `order` (time, writer, seq) is not before the one that set `name` last; then it is kept."""
        held = self.get(kind, name)
        if held is not None and held > order:
            return False
        self.put(kind, name, order)
        return True

    def name(self, original: str) -> str:
        """`original` as MLflow takes it; the first time in a run, a tag with the original goes along."""
        escaped = escape(original)
        if escaped != original and not self.get("name", escaped):
            self.put("name", escaped, 1)
            self.tags[f"spoolagent.name.{escaped}"] = cut(original, MAX_TAG)
        return escaped

    def die(self, seq: int, reason: str) -> None:
        """Makes the event a dead letter; several reasons are joined."""
        dead = self.outcome.dead
        dead[seq] = f"{dead[seq]}; {reason}" if seq in dead else reason


def cut(text: str, limit: int) -> str:
    """`text` as MLflow stores it: cut to its limit, and without NUL, which its databases refuse."""
    return text[:limit].replace("\0", "\u2400")
