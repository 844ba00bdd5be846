"""Where a stream's events go below LOGDIR, decided once and kept in the receiver's state.

TensorBoard's readers take one directory as one run, read its files in the order of their names, and never come
back to an earlier one. So only one stream at a time owns a run's directory. State:

    run  <site> <run>           {"dir", "owner" (writer), "attempt", "over" (ns or null), "shown"}
    stream <site> <run> <writer>  {"dir", "host"}
    dir  <path below LOGDIR>    who holds it
    file <path> <writer>        the record of appendfile: the writer's current file there
"""

import hashlib
import os
import re
import string
from functools import lru_cache
from typing import Any, NamedTuple

from spoolagent.contract import State, Stream
from spoolagent.errors import UsageError
from spoolagent.format.events import Event
from spoolagent.receivers.appendfile import own_names
from spoolagent.receivers.options import nearest

FIELDS = ("site", "run", "writer", "name", "project", "experiment", "group")
DEFAULT_TEMPLATE = "{site}/{run}"
_UNSAFE = re.compile(r"[\x00-\x1f\x7f/]|%(?=[0-9A-Fa-f]{2})|^\.|t(?=fevents)")
_HOST = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST, _DEEPEST, _LONGEST_PATH = 200, 32, 1024


class ForeignFiles(Exception):
    """A directory that is not ours holds event files; its text is the reason of the dead letters."""


class Place(NamedTuple):
    """Where a stream's events go."""

    folder: str
    """Below LOGDIR."""
    host: str
    owner: bool
    """The stream owns the run's own directory."""


def component(text: str) -> str:
    """`text` as one component of a path. What is unsafe in it is percent-escaped, reversibly.

    Unsafe are slashes, control characters, a leading dot, a percent sign that would read as an escape, and
    `tfevents`, which makes TensorBoard take a directory for a file. What is longer than 200 bytes is cut and
    gets a hash, so that two such names stay apart.
    """
    safe = _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", text)
    raw = safe.encode()
    if len(raw) <= _LONGEST:
        return safe
    return raw[: _LONGEST - 20].decode(errors="ignore") + "~" + hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=4096)
def sub_path(name: str) -> str:
    """A sub-run's name as a relative path; its slashes nest."""
    parts = [component(part) for part in name.split("/") if part]
    path = "/".join(parts)
    if not parts or len(parts) > _DEEPEST or len(path.encode()) > _LONGEST_PATH:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        return component(name[:100]) + "~" + digest
    return path


def check_template(template: Any) -> str:
    """The option `directory`, when it can be used. Raises UsageError."""
    if not isinstance(template, str) or not template.strip("/"):
        raise UsageError(f"tensorboard: directory must be a text such as {DEFAULT_TEMPLATE!r}")
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"tensorboard: directory {template!r}: {error}; write {{{{ for a brace") from error
    for _, name, spec, conversion in parsed:
        if name is not None and (name not in FIELDS or spec or conversion):
            raise UsageError(
                f"tensorboard: directory {template!r}: unknown field {name!r}: {nearest(name, FIELDS)}"
            )
    if any(part in (".", "..") for part in template.split("/")) or template.startswith("/"):
        raise UsageError(
            f"tensorboard: directory {template!r} must stay below LOGDIR: leave out '/', '.' and '..'"
        )
    return template


class Placer:
    """Finds and keeps the directories. Every decision is put into the state; nothing is kept in attributes."""

    def __init__(self, root: str, template: str) -> None:
        self._root = root
        self._template = template

    def place(self, state: State, stream: Stream, first: Event) -> Place:
        """The stream's place, decided at its first batch. Raises ForeignFiles."""
        key = stream.key
        stream_key = f"stream\t{key.site}\t{key.run}\t{key.writer}"
        known = state.get(stream_key)
        run = state.get(run_key(key.site, key.run))
        if known is None or run is None:
            known = self._register(state, stream, first, run)
            state.put(stream_key, known)
            run = state.get(run_key(key.site, key.run))
        elif known["dir"] == run["dir"] and run["owner"] != key.writer:
            # A later stream has taken the directory over: readers would not come back to our file.
            known = {**known, "dir": self._own_dir(state, stream, run)}
            state.put(stream_key, known)
        return Place(known["dir"], known["host"], known["dir"] == run["dir"])

    def subdir(self, state: State, folder: str, path: str) -> str:
        """The directory of the sub-run with this `sub_path` of what lies in `folder`. Raises ForeignFiles."""
        return self._claim(state, f"{folder}/{path}", f"{folder}//{path}") if path else folder

    def _register(
        self, state: State, stream: Stream, first: Event, run: dict[str, Any] | None
    ) -> dict[str, Any]:
        key = stream.key
        start = first.data if first.type == "run_start" else {}
        if run is None:
            folder = self._claim(state, self._render(stream, start), f"{key.site}/{key.run}")
            run = {"dir": folder, "owner": None, "attempt": 0, "over": None, "shown": None}
            state.put(run_key(key.site, key.run), run)
        host = (_HOST.sub("-", start.get("host") or "") or "unknown")[:64]
        if stream.role != "main" or start.get("rank") not in (None, 0) or not _may_own(stream, run):
            return {"dir": self._own_dir(state, stream, run), "host": host}
        run = {**run, "owner": key.writer, "attempt": stream.attempt, "over": None}
        state.put(run_key(key.site, key.run), run)
        return {"dir": run["dir"], "host": host}

    def _own_dir(self, state: State, stream: Stream, run: dict[str, Any]) -> str:
        return self._claim(state, f"{run['dir']}/{stream.key.writer}", str(stream.key))

    def _render(self, stream: Stream, start: dict[str, Any]) -> str:
        key = stream.key
        project, experiment = start.get("project"), start.get("experiment")
        values = {
            "site": key.site,
            "run": key.run,
            "writer": key.writer,
            "name": start.get("name") or key.run,
            "project": project or experiment or "default",
            "experiment": experiment or project or "default",
            "group": start.get("group") or "default",
        }
        return "/".join(component(part.format(**values)) for part in self._template.split("/") if part)

    def _claim(self, state: State, folder: str, holder: str) -> str:
        """`folder`, or `folder~2`, `~3` ... where another run of this state holds it."""
        number, candidate = 1, folder
        while (held := state.get(f"dir\t{candidate}")) != holder:
            if held is None:
                self._refuse_foreign(candidate)
                state.put(f"dir\t{candidate}", holder)
                break
            number += 1
            candidate = f"{folder}~{number}"
        return candidate

    def _refuse_foreign(self, folder: str) -> None:
        path = os.path.join(self._root, folder)
        try:
            names = os.listdir(path)
        except FileNotFoundError:
            return
        if any("tfevents" in name for name in names):
            raise ForeignFiles(
                f"{path} holds event files that this spool's receiver did not write: move them away or choose "
                f"another LOGDIR, then retry the dead letters"
            )


def run_key(site: str, run: str) -> str:
    """Where a run's record lies in the state."""
    return f"run\t{site}\t{run}"


def file_key(folder: str, writer: str) -> str:
    """Where the record of a writer's file in `folder` lies in the state."""
    return f"file\t{folder}\t{writer}"


def next_second(state: State, folder: str, wall_ns: int) -> int:
    """The second that a new file in `folder` is named after: later than all of ours that are there."""
    taken = [int(n.split(".")[3]) for _, r in state.scan(f"file\t{folder}\t") for n in own_names(r)]
    return max(wall_ns // 1_000_000_000, max(taken, default=-1) + 1)


def _may_own(stream: Stream, run: dict[str, Any]) -> bool:
    """Whether a main stream may take the run's directory: nobody has it, or whoever had it is over."""
    if run["owner"] is None or stream.attempt > run["attempt"]:
        return True
    over = run["over"]
    return bool(stream.attempt == run["attempt"] and over is not None and stream.created_ns >= over)
