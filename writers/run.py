"""The native API: one `Run`, over which every mimicked API is written.

    from spoolagent.writers import Run

    with Run(project="digits", name="baseline", config={"lr": 0.1}) as run:
        run.log({"loss": 0.5}, step=1)

A call appends one line to the spool and returns. It raises only for the caller's own mistake (TypeError,
ValueError); what the disk refuses is dropped, counted and put on record as a gap.
"""

import errno
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import orjson

from spoolagent.format import attempts, blobs
from spoolagent.format.lines import MAX_LINE
from spoolagent.format.live import host_name
from spoolagent.format.names import check_name, new_run_id
from spoolagent.format.stream import StreamOptions, StreamWriter
from spoolagent.format.values import clean_text, metric_value, to_json
from spoolagent.writers import process
from spoolagent.writers.media import histogram, image_payload

_STATUSES = ("finished", "failed", "killed")
_ONCE = ("tags", "labels", "notes", "config")
"""What only a run's first stream says at its start: it may be changed since."""
_LARGE = MAX_LINE // 2
"""Bytes of JSON or text from which a payload goes to a blob rather than into its line."""
_SHORT = 4000
"""Characters that are kept of a text that describes the run, where they do not all fit in its first line."""
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO))
"""What a disk says that is full or broken, the temporary directory's too."""
_STEPS = range(-(1 << 63), 1 << 63)
"""What a step can be."""


class _Shared:
    """One stream of this process, shared by all handles on the same run (two loggers in one script)."""

    def __init__(self, place: process.Place, run: str, start: dict[str, Any], attempt: int | None) -> None:
        launch = attempts.launch_id(os.environ)
        parent = _attempt_of_parent(place, run)
        if attempt is None:
            attempt = _attempt_of(place, run, launch, parent)
        self.start = {**start, "attempt": attempt}
        self._pid = os.getpid()
        self.handles = 0
        self.status = "finished"
        self.exit_code = 0
        self.at_ns: int | None = None
        self.stream = StreamWriter(
            place.spool,
            place.site,
            run,
            self.start_fields,
            role="main" if parent is None else "aux",
            attempt=attempt,
            launch=launch,
            options=StreamOptions(durability=place.durability),
        )

    def start_fields(self) -> dict[str, Any]:
        """The `run_start` payload, of the process that writes it.

        A forked child's stream begins later: it must not set again what has been changed since.
        """
        pid = os.getpid()
        start = self.start if pid == self._pid else {k: v for k, v in self.start.items() if k not in _ONCE}
        return {**start, "pid": pid}

    def end(self) -> None:
        """Writes `run_end` (main streams only: an aux stream decides nothing) and seals the stream."""
        self.stream.check_files()
        if self.stream.role == "main":
            end = {"status": self.status, "exit_code": self.exit_code, "at": self.at_ns}
            self.stream.append("run_end", optional(**end))
        self.stream.close()


_open: dict[tuple[str, str, str], _Shared] = {}
_attempts: dict[tuple[str, str, str], int] = {}
_guard = threading.RLock()
_hooked = False


def _attempt_of_parent(place: process.Place, run: str) -> int | None:
    """The attempt of the process that this one helps: its parent logs to the same run, and decides its state."""
    pid = process.parent_pid()
    try:
        return None if pid is None else attempts.attempt_of_parent(place.spool, place.site, run, pid)
    except OSError:
        return None


def _attempt_of(place: process.Place, run: str, launch: str | None, parent: int | None) -> int:
    given = os.environ.get("SPOOLAGENT_ATTEMPT", "")
    if given.isascii() and given.isdigit() and int(given) > 0:
        return int(given)
    if parent is not None:
        return parent
    known = _attempts.get((place.spool, place.site, run))
    if known is not None:
        return known + 1  # this process ended the run, and now begins it again
    try:
        return attempts.next_attempt(place.spool, place.site, run, launch)
    except OSError:
        return 1  # an unreadable spool is the stream writer's to complain about


class Run:
    """A handle on one run. Thread-safe; usable in forked children (they write a stream of their own).

    `run` is the run's id (default: `SPOOLAGENT_RUN`, else a new one); a process that gives the id of an
    earlier run adds an attempt to it. `name` is free text. `config` becomes the run's parameters. `tags` are
    names with texts, `labels` bare words. Raises NameRefused (a ValueError) for an illegal site or run id. Of a
    name or notes that do not fit in a line the beginning is kept.
    """

    def __init__(
        self,
        *,
        project: str | None = None,
        experiment: str | None = None,
        name: str | None = None,
        run: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        notes: str | None = None,
        tags: Mapping[str, str] | None = None,
        labels: Sequence[str] | None = None,
        config: Mapping[str, Any] | None = None,
        parent: str | None = None,
        spool: str | None = None,
        site: str | None = None,
        durability: str | None = None,
        api: str = "native",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        env = dict(os.environ)
        for key, value in (("SPOOL", spool), ("SITE", site), ("RUN", run), ("DURABILITY", durability)):
            if value is not None:
                env[f"SPOOLAGENT_{key}"] = value
        place = process.place_from(env)
        self.id: str = check_name("run", place.run or new_run_id())
        self.name = name
        self.spool, self.site = place.spool, place.site
        self._place = place
        start = {
            "api": api,
            "project": project,
            "experiment": experiment,
            "name": name,
            "group": group,
            "job_type": job_type,
            "notes": notes,
            "tags": None if tags is None else {str(k): str(v) for k, v in tags.items()},
            "labels": None if labels is None else [str(label) for label in labels],
            "host": host_name(),
            "rank": process.rank_from(os.environ),
            "parent": parent,
            **(extra or {}),
        }
        self._start: dict[str, Any] = {k: to_json(v) for k, v in start.items() if v is not None}
        config_json = to_json(dict(config or {}))
        if config_json and len(repr(config_json)) < _LARGE // 4:
            self._start["config"] = config_json
            config_json = {}
        moved, cut = _fit(self._start)
        self._shared = self._join()
        for what in cut:
            self.drop(_cut_message(what))
        if "tags" in moved:
            self.event("tag", {"tags": moved["tags"]})
        if "labels" in moved:
            self.event("custom", {"name": "wandb.run", "data": {"labels": moved["labels"]}})
        if config_json:
            self.event("param", {"params": config_json, "overwrite": True})

    def _join(self, attempt: int | None = None) -> _Shared:
        key = (self.spool, self.site, self.id)
        with _guard:
            _hook_exit()
            shared = _open.get(key)
            if shared is None:
                shared = _open[key] = _Shared(self._place, self.id, self._start, attempt)
                _attempts[key] = shared.stream.attempt
                shared.handles = 1
                shared.stream.open()
            else:
                shared.handles += 1
                self._tell_more(shared)
        self.finished = False
        return shared

    def _tell_more(self, shared: _Shared) -> None:
        """A second handle on an open run: what it adds to the run's start goes in as events of their own."""
        config = {
            k: v for k, v in self._start.get("config", {}).items() if k not in shared.start.get("config", {})
        }
        if config:
            shared.stream.append("param", {"params": config, "overwrite": True})
        if self._start.get("tags"):
            shared.stream.append("tag", {"tags": self._start["tags"]})

    # -- what can be logged ------------------------------------------------------------------------------

    def log(self, metrics: Mapping[str, Any], step: int | None = None, *, at_ns: int | None = None) -> None:
        """Logs numbers by name at one step. Raises TypeError for a value that is no number, or a step that is no int."""
        values = {}
        for name, value in metrics.items():
            if type(name) is not str:
                raise TypeError(f"a metric's name must be a str, got {name!r}")
            values[name] = value if type(value) is float and value - value == 0.0 else metric_value(value)
        event: dict[str, Any] = {"seq": 0, "time": 0, "type": "metrics", "metrics": values}
        if step is not None:
            event["step"] = step if type(step) is int and step in _STEPS else check_step(step)
        if at_ns is not None:
            if type(at_ns) is not int or at_ns not in _STEPS:
                raise TypeError(f"at_ns must be an int of 64 bits, got {at_ns!r:.80}")
            event["at"] = at_ns
        self._shared.stream.append_event(event)

    def event(self, kind: str, fields: dict[str, Any]) -> None:
        """Appends an event of any type of docs/format.md; `fields` must be JSON (`to_json`) and of its shape."""
        self._shared.stream.append(kind, fields)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Logs the run's parameters; the first value of a name stays."""
        self.event("param", {"params": to_json(dict(params))})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Sets tags; the last value of a name stays. None removes it."""
        self.event(
            "tag",
            {
                "tags": {
                    clean_text(str(k)): None if v is None else clean_text(str(v)) for k, v in tags.items()
                }
            },
        )

    def log_text(self, key: str, text: str, step: int | None = None, *, path: str | None = None) -> None:
        """Logs a text under a key, or as the file `path` of the run."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}")
        text = clean_text(text)
        fields: dict[str, Any] = {"key": clean_text(key), **optional(step=check_step(step), path=path)}
        data = text.encode()
        if len(data) < _LARGE // 6:  # JSON may need six bytes for one
            self.event("text", {**fields, "text": text})
        else:
            self.with_blob("text", fields, data)

    def log_histogram(self, key: str, values: Any, step: int | None = None, bins: int = 64) -> None:
        """Logs the distribution of an array or sequence of numbers (uses numpy)."""
        self.event(
            "histogram",
            {"key": clean_text(key), **histogram(values, bins), **optional(step=check_step(step))},
        )

    def log_image(self, key: str, image: Any, step: int | None = None, *, caption: str | None = None) -> None:
        """Logs an image: a path, encoded bytes, a PIL image, or an array of height x width (x channels).

        Float arrays are taken as 0..1. Nothing is encoded here: pixels are stored raw, the agent encodes them.
        """
        data, fields = image_payload(image)
        self.with_blob(
            "image",
            {"key": clean_text(key), **fields, **optional(step=check_step(step), caption=caption)},
            data,
        )

    def log_artifact(
        self, source: str | os.PathLike[str], path: str | None = None, *, kind: str | None = None
    ) -> None:
        """Logs a file, or all files of a directory, under the folder `path` of the run's artifacts.

        The content is copied into the spool now. Raises FileNotFoundError for a source that is not there.
        """
        self.log_files("artifact", list_files(os.fspath(source)), optional(path=path, kind=kind))

    def log_files(self, kind: str, files: Sequence[tuple[str, str]], fields: dict[str, Any]) -> None:
        """An `artifact` or `model` event of files given as (path inside the artifact, source on this machine)."""
        listed = []
        for inside, source in files:
            try:
                listed.append({"path": inside, "blob": blobs.put_file(self.spool, self.site, source)})
            except FileNotFoundError:
                if not os.path.exists(source):
                    raise
                self.drop(f"{source}: not copied")
                return
            except OSError as error:
                self.drop(f"{source}: {error.strerror}")
                return
        self.event(kind, {**to_json(fields), "files": listed})

    def log_made(self, kind: str, what: str, make: Callable[[str], None], fields: dict[str, Any]) -> None:
        """As `log_files`, of the files that `make` puts into a directory of that path, which it makes and which goes again.

        A full or broken temporary directory makes it a drop; what else `make` raises is the caller's.
        """
        import tempfile

        try:
            with tempfile.TemporaryDirectory(prefix="spoolagent-") as folder:
                place = os.path.join(folder, "made")
                make(place)
                self.log_files(kind, list_files(place), fields)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self.drop(f"{what}: {error.strerror}")

    def with_blob(self, kind: str, fields: dict[str, Any], data: bytes) -> None:
        """Stores `data` as a blob, then appends the event that names it. A disk that refuses makes it a drop."""
        try:
            ref = blobs.put_bytes(self.spool, self.site, data)
        except OSError as error:
            self.drop(f"{kind}: {error.strerror}")
            return
        self.event(kind, {**fields, "blob": ref})

    def shorten(self, what: str, text: str) -> str:
        """`text`, which describes the run; cut, and counted as dropped, where it does not fit in a line."""
        if len(text) < _LARGE // 6:
            return text
        self.drop(_cut_message(what))
        return text[:_SHORT]

    def drop(self, reason: str) -> None:
        """Counts one event that could not be stored."""
        self._shared.stream.drop(reason)

    # -- state ---------------------------------------------------------------------------------------------

    @property
    def stream(self) -> StreamWriter:
        """The stream that this process writes."""
        return self._shared.stream

    @property
    def dropped(self) -> int:
        """How many events of this process the disk refused."""
        return self._shared.stream.dropped

    @property
    def dir(self) -> str:
        """The directory of the run in the spool."""
        return os.path.join(self.spool, "sites", self.site, "runs", self.id)

    def flush(self) -> None:
        """Returns when all that was logged so far is on disk (or was dropped and counted)."""
        self._shared.stream.flush()

    def finish(
        self, status: str = "finished", exit_code: int | None = None, *, at_ns: int | None = None
    ) -> None:
        """Ends the run: "finished", "failed" or "killed". A second call does nothing.

        `at_ns`: the end time to show, when it is not now. When the process has other handles on this run, it ends with the last, in the worst status.
        """
        if status not in _STATUSES:
            raise ValueError(f"status {status!r} is not one of {', '.join(_STATUSES)}")
        with _guard:
            if self.finished:
                return
            self.finished = True
            shared = self._shared
            shared.handles -= 1
            shared.at_ns = at_ns
            if status != "finished" and shared.status != "failed":
                shared.status = status
                shared.exit_code = exit_code if exit_code is not None else 1
            if shared.handles > 0:
                return
            _open.pop((self.spool, self.site, self.id), None)
        shared.end()

    def reopen(self) -> None:
        """After `finish`: goes on with the same run and attempt, in a new stream."""
        if self.finished:
            for name in _ONCE:
                self._start.pop(name, None)
            self._shared = self._join(self._shared.stream.attempt)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code = status_of(kind, error)
        self.finish("failed" if code else "finished", code)


def _cut_message(what: str) -> str:
    return f"the run's {what} does not fit in a line of the spool: {_SHORT} characters are kept"


def _fit(start: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Makes a run's start fit in a line: what was taken out to be told later, and the names of texts that were cut."""
    moved: dict[str, Any] = {}
    cut: list[str] = []
    while len(orjson.dumps(start)) > _LARGE:
        name = max(start, key=lambda name: len(orjson.dumps(start[name])))
        if isinstance(start[name], str):
            start[name] = start[name][:_SHORT]
            cut.append(name)
        else:
            moved[name] = start.pop(name)
    return moved, cut


def status_of(kind: type[BaseException] | None, error: BaseException | None) -> int:
    """The exit code that leaving by this exception stands for: 0 when the work is done."""
    if kind is None:
        return 0
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    return 255 if issubclass(kind, KeyboardInterrupt) else 1


def check_step(step: Any) -> int | None:
    """`step` as an int or None. Raises TypeError for a float, a str or a bool, ValueError beyond 64 bits."""
    if step is None or (type(step) is int and step in _STEPS):
        return step
    index = getattr(step, "__index__", None)  # numpy's and torch's integers
    if index is None or isinstance(step, bool):
        raise TypeError(f"step must be an int, got {step!r}")
    number = int(index())
    if number not in _STEPS:
        raise ValueError(f"step must fit in 64 bits, got {number}")
    return number


def optional(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def list_files(source: str) -> list[tuple[str, str]]:
    """(path inside, path here) of a file, or of all files below a directory. Raises FileNotFoundError."""
    if not os.path.isdir(source):
        if not os.path.exists(source):
            raise FileNotFoundError(2, "No such file or directory", source)
        return [(os.path.basename(source), source)]
    found = []
    for folder, _, names in sorted(os.walk(source)):
        inside = os.path.relpath(folder, source)
        found += [(os.path.normpath(os.path.join(inside, n)), os.path.join(folder, n)) for n in sorted(names)]
    return found


def _hook_exit() -> None:
    global _hooked  # noqa: PLW0603 - once a process
    if not _hooked:
        _hooked = True
        process.on_exit(finish_all)


def finish_all() -> None:
    """Ends every run of this process that is still open, as the process's exit code says."""
    code = process.exit_code()
    with _guard:
        left = list(_open.values())
        _open.clear()
    for shared in left:
        if code and shared.status != "failed":
            shared.status, shared.exit_code = "failed", code
        shared.end()


def _after_fork_in_child() -> None:
    global _guard  # noqa: PLW0603 - the child's own
    _guard = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = ["Run", "check_step", "finish_all", "list_files", "optional", "status_of"]
