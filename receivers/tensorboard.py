"""`tensorboard:LOGDIR`: one directory per run with one event file, as torch's SummaryWriter would have made it.

Values are float32, wall times the recorded ones. tb_place decides on directories, tb_events on records, and
appendfile makes what is appended take effect once.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from spoolagent.contract import Batch, Beside, Options, Outcome, RunEnd, State
from spoolagent.errors import Unreachable, UsageError
from spoolagent.format.durable import make_dirs, write_file
from spoolagent.format.events import Event
from spoolagent.format.values import number
from spoolagent.receivers.appendfile import Append, append
from spoolagent.receivers.options import check_options
from spoolagent.receivers.tb_place import (
    DEFAULT_TEMPLATE,
    ForeignFiles,
    Place,
    Placer,
    check_template,
    file_key,
    next_second,
    run_key,
    sub_path,
)

try:
    from spoolagent.receivers import tb_encode, tb_events
except ImportError as _error:  # google-crc32c is in the extra
    raise UsageError(
        f"tensorboard: {_error.name} is missing: pip install 'spoolagent[tensorboard]'"
    ) from _error


@dataclass(kw_only=True, slots=True)
class _Part:
    """What a batch adds to one sub-run."""

    first: Event
    chunks: list[bytes] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)


class TensorBoardReceiver:
    """Appends to event files below LOGDIR, exactly once.

    Option `directory`: the template of a run's directory below LOGDIR, default `{site}/{run}`; also known are
    `{writer}`, `{name}`, `{project}`, `{experiment}` and `{group}`. Two runs with the same directory get
    `<directory>` and `<directory>~2`.
    """

    def __init__(self, target: str, options: Options) -> None:
        check_options("tensorboard", options, ("directory",))
        if not target:
            raise UsageError("tensorboard: no LOGDIR: write tensorboard:LOGDIR")
        self._root = os.path.realpath(os.path.expanduser(target))
        self.identity = f"tensorboard:{self._root}"
        self.beside = Beside(files=self._root, pattern=".*", folder=os.path.dirname(self._root))
        self._placer = Placer(self._root, check_template(options.get("directory", DEFAULT_TEMPLATE)))
        self._state: State | None = None

    def open(self, state: State) -> None:
        """Creates LOGDIR when it is missing. Raises UsageError when it cannot be used."""
        try:
            make_dirs(self._root)
        except OSError as error:
            raise UsageError(f"tensorboard: {self._root}: {error.strerror}: choose another LOGDIR") from error
        if not os.access(self._root, os.R_OK | os.W_OK | os.X_OK):
            raise UsageError(f"tensorboard: {self._root} cannot be written to: choose another LOGDIR")
        self._state = state

    def deliver(self, batch: Batch) -> Outcome:
        """Returns when all event files are fsynced. Raises Unreachable."""
        state = self._checked_state()
        outcome = Outcome()
        if not batch.events:
            return outcome
        try:
            place = self._placer.place(state, batch.stream, batch.events[0])
        except ForeignFiles as error:
            outcome.dead = dict.fromkeys((event.seq for event in batch.events), str(error))
            return outcome
        parts = _encode(batch, place, outcome)
        outcome.damage = append(state, *self._appends(batch, place, parts, outcome))
        for event in filter(tb_events.is_beside, batch.events):
            self._put_beside(event, batch.blobs, place, outcome)
        if place.owner:
            _note_end(state, batch)
        return outcome

    def set_status(self, end: RunEnd) -> Outcome:
        """Shows a run that was killed or failed as the text `run/state`; once per change."""
        state, outcome = self._checked_state(), Outcome()
        key = run_key(end.site, end.run)
        run = state.get(key)
        if run is None or run["owner"] is None:
            return outcome
        shown = end.status if end.status in ("killed", "failed") or run["shown"] is not None else None
        if end.status == "running":
            shown = run["shown"]
        elif shown != run["shown"]:
            assert shown is not None
            place = Place(run["dir"], "unknown", owner=True)
            data = tb_events.text_record(end.time_ns, 0, "run/state", shown.encode())
            file = self._append(place.folder, place, run["owner"], end.time_ns, 0, data)
            outcome.damage = append(state, file)
        over = run["over"] if end.status == "running" or run["over"] is not None else end.time_ns
        if (shown, over) != (run["shown"], run["over"]):
            state.put(key, {**run, "shown": shown, "over": over})
        return outcome

    def close(self) -> None:
        """No file stays open between two batches."""
        self._state = None

    def _checked_state(self) -> State:
        assert self._state is not None, "open() comes first"
        if not os.path.isdir(self._root):  # not made anew: it may be a mount that is away
            raise Unreachable(f"tensorboard: {self._root} is gone: mount it, or make it again")
        return self._state

    def _appends(self, batch: Batch, place: Place, parts: dict[str, _Part], outcome: Outcome) -> list[Append]:
        """The parts as files. Events of a sub-run whose directory is not ours become dead letters."""
        assert self._state is not None
        made: dict[str, Append] = {}
        for path, part in parts.items():
            try:
                folder = self._placer.subdir(self._state, place.folder, path)
            except ForeignFiles as error:
                outcome.dead.update(dict.fromkeys(part.seqs, str(error)))
                continue
            writer, first = batch.stream.key.writer, part.first
            made[folder] = self._append(
                folder, place, writer, first.wall_ns, first.seq, b"".join(part.chunks)
            )
        return list(made.values())

    def _put_beside(self, event: Event, blobs: str, place: Place, outcome: Outcome) -> None:
        """Files beside the event file; the same again when the batch is delivered again."""
        assert self._state is not None
        name = tb_events.subrun(event)
        try:
            folder = self._placer.subdir(self._state, place.folder, sub_path(name) if name else "")
            for inside, data in tb_events.beside(event, blobs).items():
                path = os.path.join(self._root, folder, inside)
                if os.path.isdir(path):
                    raise tb_events.Undeliverable(f"{path} is a directory")
                make_dirs(os.path.dirname(path))
                write_file(path, data)
        except (ForeignFiles, ValueError, FileExistsError, NotADirectoryError) as error:
            outcome.dead[event.seq] = str(error)

    def _append(self, folder: str, place: Place, writer: str, wall_ns: int, seq: int, data: bytes) -> Append:
        assert self._state is not None
        return Append(
            key=file_key(folder, writer),
            folder=os.path.join(self._root, folder),
            name=_namer(self._state, folder, wall_ns, f"{place.host}.{writer}.{seq}"),
            encode=lambda _offset: data,
            head=tb_encode.file_version(wall_ns / tb_encode.NS),
            whole=tb_encode.whole_records,
        )


def _namer(state: State, folder: str, wall_ns: int, rest: str) -> Callable[[int], str]:
    """File names that sort after all of ours in `folder`; asked for only when a file is begun."""
    begin: list[int] = []

    def name(count: int) -> str:
        if not begin:
            begin.append(next_second(state, folder, wall_ns) - count)
        return f"events.out.tfevents.{begin[0] + count:010d}.{rest}"

    return name


def _encode(batch: Batch, place: Place, outcome: Outcome) -> dict[str, _Part]:
    """The batch's records by path of the sub-run. An owner's own file is there from the run's first event on, as torch's is."""
    parts: dict[str, _Part] = {}
    if place.owner:
        parts[""] = _Part(first=batch.events[0])
    scalar = tb_encode.scalar
    for event in batch.events:
        data = event.data
        if event.type == "metrics" and data.get("context") is None and data.get("tensor") is None:
            main = parts.get("") or parts.setdefault("", _Part(first=event))
            wall_ns, step = event.wall_ns, event.step
            for name, value in data["metrics"].items():
                main.chunks.append(
                    scalar(wall_ns, step, name, value if type(value) is float else number(value))
                )
            main.seqs.append(event.seq)
        elif event.type not in tb_events.QUIET:
            _encode_other(event, batch.blobs, parts, outcome)
    return parts


def _encode_other(event: Event, blobs: str, parts: dict[str, _Part], outcome: Outcome) -> None:
    try:
        made = tb_events.encode(event, blobs)
    except ValueError as error:
        outcome.dead[event.seq] = str(error)
        return
    if made is None:
        outcome.skipped[event.type] = outcome.skipped.get(event.type, 0) + 1
        return
    name, data = made
    path = sub_path(name) if name else ""
    part = parts.get(path) or parts.setdefault(path, _Part(first=event))
    part.chunks.append(data)
    part.seqs.append(event.seq)


def _note_end(state: State, batch: Batch) -> None:
    """Keeps when the owner's stream ended, so that a stream begun later may follow it in the directory."""
    key = run_key(batch.stream.key.site, batch.stream.key.run)
    run = state.get(key)
    last = batch.events[-1]
    over = last.time_ns if last.type == "run_end" else None
    if run["over"] != over:
        state.put(key, {**run, "over": over})
