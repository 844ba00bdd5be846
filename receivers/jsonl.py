"""`jsonl:FILE`: one line of JSON per event. The reference receiver: no tracker, nothing lost in translation."""

import os
import re

import orjson

from spoolagent.contract import Batch, Beside, Options, Outcome, RunEnd, State
from spoolagent.errors import Unreachable, UsageError
from spoolagent.format.durable import make_dirs
from spoolagent.receivers.appendfile import Append, append, own_names
from spoolagent.receivers.options import check_options

_KEY = "file"


class JsonLinesReceiver:
    """Appends `{"site","run","writer","seq","time","type",...}` per event, exactly once.

    A run's state is a line `{"site","run","type":"run_state","status","time","exit_code"}`. Should FILE be cut or
    removed, a later-named file (`FILE-2`) goes on; what is there is never overwritten.
    """

    def __init__(self, target: str, options: Options) -> None:
        check_options("jsonl", options, ())
        if not target or target.endswith(os.sep):
            raise UsageError("jsonl: no file name: write jsonl:FILE")
        self._path = os.path.realpath(os.path.expanduser(target))
        self.identity = f"jsonl:{self._path}"
        folder, name = os.path.split(self._path)
        stem, extension = os.path.splitext(name)
        pattern = rf"{re.escape(stem)}(-[0-9]+)?{re.escape(extension)}"
        self.beside = Beside(files=folder, pattern=pattern, folder=folder)
        self._state: State | None = None

    def open(self, state: State) -> None:
        """Creates FILE's directory. Raises UsageError when FILE cannot be written or is not ours."""
        folder, name = os.path.split(self._path)
        try:
            make_dirs(folder)
        except OSError as error:
            raise UsageError(f"jsonl: {folder}: {error.strerror}: choose another place") from error
        if os.path.isdir(self._path):
            raise UsageError(f"jsonl: {self._path} is a directory: name a file in it, such as events.jsonl")
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise UsageError(f"jsonl: {folder} cannot be written to: choose another place")
        record = state.get(_KEY)
        if os.path.lexists(self._path) and (record is None or name not in own_names(record)):
            raise UsageError(
                f"jsonl: {self._path} was not written by this spool's receiver, and is left alone: choose another FILE"
            )
        self._state = state

    def deliver(self, batch: Batch) -> Outcome:
        """Returns when the lines are fsynced. Raises Unreachable."""
        damage: list[str] = []
        if batch.events:
            site, run, writer = batch.stream.key
            damage = self._append(
                b"".join(
                    orjson.dumps(
                        {"site": site, "run": run, "writer": writer, **_without_crc(event.data)},
                        option=orjson.OPT_APPEND_NEWLINE,
                    )
                    for event in batch.events
                )
            )
        return Outcome(damage=damage)

    def set_status(self, end: RunEnd) -> Outcome:
        """Appends the run's state, once per change."""
        assert self._state is not None, "open() comes first"
        key = f"status\t{end.site}\t{end.run}"
        line = {
            "site": end.site,
            "run": end.run,
            "type": "run_state",
            "status": end.status,
            "time": end.time_ns,
            "exit_code": end.exit_code,
        }
        if self._state.get(key) == line:
            return Outcome()
        damage = self._append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        self._state.put(key, line)
        return Outcome(damage=damage)

    def close(self) -> None:
        """No file stays open between two batches."""
        self._state = None

    def _append(self, data: bytes) -> list[str]:
        assert self._state is not None, "open() comes first"
        folder = os.path.dirname(self._path)
        if not os.path.isdir(folder):  # not made anew: it may be a mount that is away
            raise Unreachable(f"jsonl: {folder} is gone: mount it, or make it again")
        return append(
            self._state,
            Append(key=_KEY, folder=folder, name=self._name, encode=lambda _offset: data, whole=_whole_lines),
        )

    def _name(self, count: int) -> str:
        stem, extension = os.path.splitext(os.path.basename(self._path))
        return f"{stem}{extension}" if count == 1 else f"{stem}-{count}{extension}"


def _without_crc(data: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in data.items() if name != "crc"}


def _whole_lines(data: bytes) -> int:
    return data.rfind(b"\n") + 1
