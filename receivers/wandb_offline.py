"""`wandb:offline:DIR`: one `.wandb` log per run, as the SDK writes it offline, for `wandb sync DIR/...`.

    DIR/offline-run-<YYYYMMDD_HHMMSS>-<run id>/run-<run id>.wandb
                                               files/...

Nothing that follows an exit record is read by `wandb sync`, and a log beside which a `.synced` file lies is not
read again. What comes after either goes to a further directory of the same run (its *part*), which holds only what
is new and asks W&B to continue the run.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from spoolagent.contract import Batch, Beside, Options, Outcome, RunEnd, State, Stream
from spoolagent.errors import Unreachable, UsageError
from spoolagent.format.durable import make_dirs
from spoolagent.format.events import Event
from spoolagent.receivers.appendfile import Append, append, cut, own_names
from spoolagent.receivers.options import check_options
from spoolagent.receivers.wandb_events import apply
from spoolagent.receivers.wandb_log import encode_log
from spoolagent.receivers.wandb_media import write_files
from spoolagent.receivers.wandb_names import folder_name
from spoolagent.receivers.wandb_records import NS, Records, RunInfo, proto
from spoolagent.receivers.wandb_rows import Rows
from spoolagent.receivers.wandb_session import Session
from spoolagent.receivers.wandb_start import OPTIONS, Templates, run_info, saved_info
from spoolagent.receivers.wandb_summary import Latest, Summary


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLogs:
    """Where a run's logs lie, oldest first, and whether the last of them has its end."""

    wandb_id: str
    logs: tuple[str, ...]
    ended: bool


class WandbOffline:
    """The receiver. Options: see `wandb_start.OPTIONS`."""

    def __init__(self, folder: str, options: Options) -> None:
        check_options("wandb", options, OPTIONS)
        self.folder = os.path.realpath(os.path.expanduser(folder))
        self.identity = f"wandb:offline:{self.folder}"
        self.beside = Beside(files=self.folder, pattern=r"offline-run-.*", folder=self.folder)
        self._templates = Templates(options)
        self._state: State | None = None

    def open(self, state: State) -> None:
        """Makes the directory. Raises UsageError without wandb, and when the directory cannot be used."""
        proto()
        try:
            make_dirs(self.folder)
        except OSError as error:
            raise UsageError(f"wandb: {self.folder}: {error.strerror}: choose another DIR") from error
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise UsageError(f"wandb: {self.folder} cannot be written to: choose another DIR")
        self._state = state

    def deliver(self, batch: Batch) -> Outcome:
        """Appends the batch's records, fsynced."""
        self._check_there()
        run = self._run(batch.stream)
        run.finish_end()
        outcome = Outcome()
        refusal = run.load(batch.stream, batch.events[0] if batch.events else None)
        if refusal:
            outcome.dead = {event.seq: refusal for event in batch.events}
            return outcome
        for event in batch.events:
            self._apply(run.session, event, batch, outcome)
        run.conclude(batch.stream)
        outcome.damage = run.damage
        return outcome

    @staticmethod
    def _apply(session: Session, event: Event, batch: Batch, outcome: Outcome) -> None:
        try:
            shown = apply(session, event, batch.stream.key.writer, batch.blobs)
        except ValueError as error:  # Unusable, or a value that is not what the format says
            outcome.dead[event.seq] = str(error)
            return
        if not shown:
            outcome.skipped[event.type] = outcome.skipped.get(event.type, 0) + 1

    def set_status(self, end: RunEnd) -> Outcome:
        """Ends the run's log, unless it says so already. A run that goes on is simply not ended."""
        self._check_there()
        run = _Run(self.folder, self._templates, self._open_state(), end.site, end.run)
        if end.status != "running" and run.known():
            run.finish_end()
            run.begin_end(end)
            run.finish_end()
        return Outcome(damage=run.damage)

    def close(self) -> None:
        """Nothing to release."""
        self._state = None

    def logs(self, site: str, run: str) -> RunLogs | None:
        """The logs of a run, or None when nothing of it was delivered."""
        meta = self._open_state().get(f"run/{site}/{run}")
        return None if meta is None else self._logs(f"{site}/{run}", meta)

    def all_logs(self) -> Iterator[RunLogs]:
        """The logs of every run."""
        for key, meta in self._open_state().scan("run/"):
            yield self._logs(key.removeprefix("run/"), meta)

    def _logs(self, name: str, meta: dict[str, Any]) -> RunLogs:
        state = self._open_state()
        part = state.get(f"part/{name}") or {"number": 0}
        records = [state.get(f"file/{name}/{number}") for number in range(1, part["number"] + 1)]
        names = [log for record in records if record for log in own_names(record)]
        return RunLogs(
            wandb_id=meta["info"]["wandb_id"],
            logs=tuple(os.path.join(self.folder, log) for log in names),
            ended=meta["ended"] == part["number"],
        )

    def _open_state(self) -> State:
        if self._state is None:
            raise RuntimeError("the receiver is not open")
        return self._state

    def _check_there(self) -> None:
        if not os.path.isdir(self.folder):  # not made anew: it may be a mount that is away
            raise Unreachable(f"wandb: {self.folder} is gone: mount it, or make it again")

    def _run(self, stream: Stream) -> "_Run":
        return _Run(self.folder, self._templates, self._open_state(), stream.key.site, stream.key.run)


class _Run:
    """One run's records in the state, for the time of one call.

    `run/<site>/<run>` holds its facts and open rows, `config/`, `tags/` and `summary/` what they say, `part/` which
    log is the current one, `file/.../<part>` that log's committed length.
    """

    session: Session
    begins_log: bool
    """What is written now begins a new log."""
    damage: list[str]
    """What was found wrong with the run's logs."""
    _part: dict[str, Any]
    _says: str

    def __init__(self, root: str, templates: Templates, state: State, site: str, run: str) -> None:
        self._root, self._templates, self._state = root, templates, state
        self._name = f"{site}/{run}"
        self.wandb_id = templates.wandb_id(site, run)
        self._meta: dict[str, Any] = state.get(f"run/{self._name}") or {}
        self.damage, self._says = [], ""

    def known(self) -> bool:
        """True when something of the run was delivered."""
        return bool(self._meta)

    def load(self, stream: Stream, first: Event | None) -> str:
        """Makes `session` from the state, or for a new run from its first event. Why not, when its id is taken."""
        if not self._meta:
            owner = self._state.get(f"id/{self.wandb_id}")
            if owner is not None and owner != self._name:
                return f"W&B run id {self.wandb_id!r} belongs to another site's run: set run_id to a template with {{site}}"
            if self._state.get(f"file/{self._name}/1") is None and (foreign := self._foreign_log()):
                return f"{foreign} was not written by this spool's receiver: move it away, then retry the dead letters"
            self._state.put(f"id/{self.wandb_id}", self._name)
            info = run_info(self._templates, stream, first)
            self._meta = {
                "info": asdict(info),
                "rows": {},
                "number": 2,
                "attempt": 0,
                "ended": 0,
                "end": None,
                "told": None,
            }
        if stream.role == "main":
            self._meta["attempt"] = max(self._meta["attempt"], stream.attempt)
        self._load()
        return ""

    def _foreign_log(self) -> str:
        """A log of the run that is there before ours: with two of them, W&B would show each row twice."""
        with os.scandir(self._root) as entries:
            found = [
                e.path
                for e in entries
                if e.name.startswith("offline-run-") and e.name.endswith(f"-{self.wandb_id}")
            ]
        logs = (os.path.join(folder, f"run-{self.wandb_id}.wandb") for folder in found)
        return next((log for log in logs if os.path.exists(log)), "")

    def _load(self) -> None:
        self._says = ""
        state, name, meta = self._state, self._name, self._meta
        info = saved_info(meta["info"])
        self._part = self._current(state.get(f"part/{name}"), info)
        held = state.get(self._file_key())
        # also after a crash that left the log's name in the state, and of its bytes none or some
        self.begins_log = held is None or held["length"] == 0
        self.session = Session(
            info=info,
            rows=Rows(meta["rows"]),
            config=Latest.load(state.get(f"config/{name}") or {}),
            tags=Latest.load(state.get(f"tags/{name}") or {}),
            summary=Summary(state.get(f"summary/{name}")),
            records=Records(info.wandb_id, meta["number"]),
            fresh=self.begins_log and self._part["number"] == 1,
            folder=os.path.join(self._folder(), "files"),
        )

    def begin_end(self, end: RunEnd) -> None:
        """Commits the intent to end the run, so that a crash in between ends it in the same bytes."""
        part = self._state.get(f"part/{self._name}") or {"number": 0}
        told = self._meta["told"] or {}
        same = (told.get("status"), told.get("exit_code")) == (end.status, end.exit_code)
        if same and self._meta["ended"] == part["number"]:
            return
        self._meta["end"] = asdict(end)
        self._state.put(f"run/{self._name}", self._meta)
        self._state.checkpoint()

    def finish_end(self) -> None:
        """Writes the end that was begun, if there is one."""
        if not self._meta or self._meta["end"] is None:
            return
        end = RunEnd(**self._meta["end"])
        self._load()
        self.session.end(end, whole=self.begins_log)
        self._meta |= {"end": None, "told": asdict(end)}
        self.write(ends=True)

    def conclude(self, stream: Stream) -> None:
        """Writes what a batch made.

        What comes late to an ended run, from a stream that does not decide its end, is followed by that end again:
        nobody will tell it. A stream that does decide reopens the run.
        """
        session, meta = self.session, self._meta
        # An aux stream of a later attempt, too: that attempt has begun, though none of its main streams is here yet.
        newer = stream.attempt > meta["attempt"]
        decides = newer or (stream.role == "main" and stream.attempt == meta["attempt"])
        told: dict[str, Any] = meta["told"] or {}
        late = bool(told) and not decides
        if late:
            session.emit(session.rows.close_all())
        news = bool(session.records.made or session.summary.changed)
        if late and news:
            session.end(RunEnd(**told), whole=self.begins_log)
        elif news or session.fresh:
            session.flush_summary(whole=self.begins_log)
        if decides and (news or session.rows.is_open(stream.key.writer)):
            meta["told"] = None
        self.write(ends=late and news)

    def write(self, *, ends: bool = False) -> None:
        """Appends what the session made, and puts the run's new state."""
        session, name = self.session, self._name
        if session.records.made or session.fresh:
            self._append()
        if ends:
            self._meta["ended"] = self._part["number"]
        said = {"info": asdict(session.info), "rows": session.rows.save(), "number": session.records.number}
        self._meta |= said
        self._state.put(f"run/{name}", self._meta)
        self._state.put(f"config/{name}", session.config.save())
        self._state.put(f"tags/{name}", session.tags.save())
        self._state.put(f"summary/{name}", session.summary.save())

    def _append(self) -> None:
        session, part, key = self.session, self._part, self._file_key()
        self._state.put(f"part/{self._name}", part)
        made = list(session.records.made)
        before = self._state.get(key)
        planned = self._folder()
        write_files(os.path.join(planned, "files"), session.files)
        file = Append(
            key=key,
            folder=self._root,
            name=lambda number: self._log_name(part, number),
            encode=lambda offset: encode_log(offset, made),
            head=self._head(resume=part["number"] > 1 or bool(before and before["length"])),
            says=self._says,
        )
        self.damage += append(self._state, file)
        if (actual := self._folder()) != planned:  # the log was not as it should be, and another was begun
            write_files(os.path.join(actual, "files"), session.files)

    def _file_key(self) -> str:
        return f"file/{self._name}/{self._part['number']}"

    def _current(self, part: dict[str, Any] | None, info: RunInfo) -> dict[str, Any]:
        """The log to append to: the one of before while it is there, neither ended nor synced; else the next."""
        if part is None:
            return {"number": 1, "start_ns": info.start_ns}
        record = self._state.get(f"file/{self._name}/{part['number']}")
        if self._meta["ended"] != part["number"] and (record is None or not self._gone(record)):
            return part
        number = record["number"] if record else 1
        return {"number": part["number"] + 1, "start_ns": part["start_ns"] + number * NS}

    def _gone(self, record: dict[str, Any]) -> bool:
        """True when nothing may be added to the log: it was removed or cut, or W&B has read it to its end."""
        path, length = os.path.join(self._root, record["name"]), int(record["length"])
        try:
            size = os.path.getsize(path)
        except FileNotFoundError:
            return length > 0
        if size < length:
            self._says = cut(path, length, size)
        if size != length:  # bytes beyond it are a batch that a crash interrupted: it is completed first
            return size < length
        return length > 0 and os.path.exists(path + ".synced")

    def _head(self, *, resume: bool) -> bytes:
        """What a log of the run begins with."""
        records = Records(self.session.info.wandb_id)
        records.header()
        start_ns = self._part["start_ns"]  # each part later than the one before: `wandb sync` goes by it
        info = replace(self.session.info, start_ns=start_ns)
        records.run(info, self.session.whole_config(), resume=resume)
        if not self.session.fresh:  # W&B forgets definitions that a continued run does not repeat
            for made in self.session.summary.definitions.values():
                records.metric(made)
        return encode_log(0, records.made)

    def _log_name(self, part: dict[str, Any], number: int) -> str:
        folder = folder_name(part["start_ns"] + (number - 1) * NS, self.wandb_id)
        return f"{folder}/run-{self.wandb_id}.wandb"

    def _folder(self) -> str:
        record = self._state.get(self._file_key())
        name = self._log_name(self._part, 1) if record is None else record["name"]
        return os.path.join(self._root, os.path.dirname(name))
