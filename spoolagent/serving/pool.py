"""The streams that a worker has at hand. Of all the others it knows what their rows in the database say, and no more.

A stream comes in when it is new, or when something of it may have changed; it goes out when it has ended, or has
rested for a while. So memory is taken by what happens, and not by how many streams there are or ever were.
"""

from collections.abc import Iterable

from spoolagent.format.layout import StreamKey
from spoolagent.serving.task import Task

RunKey = tuple[str, str]
"""(site, run)"""
MOST_RESTING = 128
"""Streams at their end that are kept at hand: those that something came of last."""
_REST_S = 10.0
"""How long they are kept."""


class Pool:
    """The tasks at hand, by stream and by run."""

    def __init__(self) -> None:
        self._tasks: dict[StreamKey, Task] = {}
        self._runs: dict[RunKey, dict[StreamKey, Task]] = {}
        self._resting: dict[StreamKey, float] = {}
        """Since when (monotonic, in s), the longest first."""

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, key: StreamKey) -> bool:
        return key in self._tasks

    def get(self, key: StreamKey) -> Task | None:
        """The task of a stream that is at hand."""
        return self._tasks.get(key)

    def tasks(self) -> list[Task]:
        """All of them."""
        return list(self._tasks.values())

    def of_run(self, run: RunKey) -> Iterable[Task]:
        """Those of one run."""
        return self._runs.get(run, {}).values()

    def add(self, task: Task) -> None:
        """Takes a stream in."""
        self._tasks[task.key] = task
        self._runs.setdefault(task.key[:2], {})[task.key] = task

    def remove(self, key: StreamKey) -> None:
        """Lets a stream go."""
        del self._tasks[key]
        self._resting.pop(key, None)
        siblings = self._runs[key[:2]]
        del siblings[key]
        if not siblings:
            del self._runs[key[:2]]

    def rest(self, tasks: Iterable[Task], now: float) -> None:
        """After a look at `tasks`: those that rest are kept for a while, for what may come next; then they go."""
        for task in tasks:
            if not task.may_rest:
                self._resting.pop(task.key, None)
            elif task.key not in self._resting:
                self._resting[task.key] = now
        while self._resting:
            key, since = next(iter(self._resting.items()))
            if len(self._resting) <= MOST_RESTING and now - since < _REST_S:
                return
            self.remove(key)

    def stir(self, key: StreamKey) -> None:
        """Something came of a stream: its rest begins anew."""
        self._resting.pop(key, None)
