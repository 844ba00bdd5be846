"""A receiver of one's own: the last value of each metric, in one JSON file a run.

Installed with an entry point it serves `lastvalues:DIR` (see docs/receivers.md). The last value by (time, writer,
seq) wins, so a batch that comes again changes nothing: that is all that exactly-once effect takes here.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from spoolagent.contract import Batch, Outcome, RunEnd, State
from spoolagent.errors import UsageError
from spoolagent.format.durable import make_dirs, write_file


class LastValues:
    """`lastvalues:DIR`."""

    def __init__(self, target: str, options: Mapping[str, Any]) -> None:
        if options:
            raise UsageError(f"lastvalues has no option {min(options)!r}")
        self._dir = os.path.abspath(target)
        self.identity = f"lastvalues:{os.path.realpath(target)}"

    def open(self, state: State) -> None:
        """Makes the directory; the state holds the winners."""
        self._state = state
        make_dirs(self._dir)

    def deliver(self, batch: Batch) -> Outcome:
        """Takes over what is newer, then writes the run's file anew, durably."""
        key = batch.stream.key
        name = f"{key.site}/{key.run}"
        outcome = Outcome()
        held: dict[str, Any] = self._state.get(name) or {"values": {}, "status": "running"}
        for event in batch.events:
            if event.type == "metrics":
                order = [event.time_ns, key.writer, event.seq]
                for metric, value in event.data["metrics"].items():
                    if metric not in held["values"] or held["values"][metric][0] <= order:
                        held["values"][metric] = [order, value]
            elif event.type not in ("run_start", "run_end"):
                outcome.skipped[event.type] = outcome.skipped.get(event.type, 0) + 1
        self._write(name, held)
        return outcome

    def set_status(self, end: RunEnd) -> None:
        """Shows how the run stands."""
        name = f"{end.site}/{end.run}"
        held = self._state.get(name) or {"values": {}}
        self._write(name, {**held, "status": end.status})

    def close(self) -> None:
        """Nothing is kept open."""

    def _write(self, name: str, held: dict[str, Any]) -> None:
        self._state.put(name, held)
        shown = {"status": held["status"], **{metric: value for metric, (_, value) in held["values"].items()}}
        path = os.path.join(self._dir, name.replace("/", "--") + ".json")
        write_file(path, json.dumps(shown, sort_keys=True).encode())
