"""File-system hints: which streams of a spool have changed, sooner than the caller's periodic sweep finds out.

Hints may be missing (an inotify queue overflows, a network mount sends none); the sweep is the truth. A stream's
directory is watched *one-shot*: the kernel says "changed" once and is quiet until `wait` arms it again. A training
process that writes 100,000 lines a second therefore costs one event per wait here and nothing at its own write()
(watchdog's Observer, tried, needs a whole core for that flood; only its bindings to inotify are used).

A spool's finished runs cost nothing here but the kernel's own watch: of run directories only so many names are
remembered, and what comes up in another one is looked for.
"""

import contextlib
import ctypes
import errno
import logging
import os
import select
import struct
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from spoolagent.format.layout import StreamKey, list_names, site_dir, stream_dir
from spoolagent.format.names import is_legal

GATHER_S = 0.05
"""The least time between two waits that end because of hints: a flood wakes the caller 20 times a second."""
_REBUILD_S = 1.0
_MOST_RUNS = 4096
"""Run directories whose names are remembered, those last watched."""
_MOST_STRANGERS = 4
"""New streams of other runs that are looked for, one by one, at a time; more of them mean: sweep everything."""
_NETWORK = frozenset(
    ("nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "9p", "afs")
)
_EVENT = struct.Struct("iIII")
# From <sys/inotify.h>.
_MODIFY, _MOVED_TO, _CREATE = 0x2, 0x80, 0x100
_DELETE_SELF, _MOVE_SELF = 0x400, 0x800
_OVERFLOW, _IGNORED, _ISDIR = 0x4000, 0x8000, 0x40000000
_ONLYDIR, _DONT_FOLLOW, _ONESHOT = 0x01000000, 0x02000000, 0x80000000
_FOLDER_MASK = _CREATE | _MOVED_TO | _DELETE_SELF | _MOVE_SELF | _ONLYDIR | _DONT_FOLLOW
_STREAM_MASK = _MODIFY | _CREATE | _MOVED_TO | _ONLYDIR | _DONT_FOLLOW | _ONESHOT
_STREAM_DEPTH = 5  # sites / <site> / runs / <run> / <writer>

_log = logging.getLogger(__name__)


class Watcher:
    """Waits for changes in the streams of `spool`. One thread waits; any thread or signal handler interrupts.

    `poll`: True never asks the kernel, None does not where the spool lies on a network file system, False always
    asks. Where no hints can be had it says so in one warning, and `wait` merely sleeps. `streams`: False watches the
    directories of streams only when asked to, by `watch`; new ones are hinted all the same.
    """

    def __init__(
        self,
        spool: str,
        poll: bool | None = None,
        *,
        streams: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spool = os.path.abspath(spool)
        self._clock = clock
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._inotify: _Inotify | None = None
        self._streams = streams
        self._places: dict[int, str] = {}
        """The kernel's watch -> what it watches, below the spool."""
        self._runs: dict[int, str] = {}
        """The same for run directories, those last watched."""
        self._refused = False
        self._quiet_until = 0.0
        self._rebuild_at: float | None = None
        self._warned = False
        kind = file_system(self.spool) if poll is None else ""
        if is_network(kind):
            self._warn(f"{self.spool} lies on a network file system ({kind})")
        elif not poll:
            self._build()

    @property
    def has_hints(self) -> bool:
        """False when `wait` only sleeps."""
        return self._inotify is not None

    @property
    def sees_all(self) -> bool:
        """True when every stream that is watched will be hinted, as far as can be known."""
        return self._inotify is not None and not self._refused

    def wait(self, timeout_s: float) -> set[StreamKey] | None:
        """The streams that have changed since the last wait; None when that is unknown: sweep everything.

        Returns when something has changed, after `interrupt`, or after `timeout_s` (then the set is empty).
        What changes after this returned is hinted by the next wait.
        """
        deadline = self._clock() + timeout_s
        if self._rebuild_at is not None and self._clock() >= self._rebuild_at:
            self._build()
            self._quiet_until = self._clock() + GATHER_S
            return None
        while True:
            now = self._clock()
            quiet = self._quiet_until - now
            if self._interrupted(
                max(0.0, min(deadline - now, quiet) if quiet > 0 else deadline - now), quiet <= 0
            ):
                return self._read()
            now = self._clock()
            if now < deadline and now < self._quiet_until:
                continue
            hints = self._read()
            if hints is None or hints or now >= deadline:
                self._quiet_until = self._clock() + GATHER_S if hints or hints is None else 0.0
                return hints

    def interrupt(self) -> None:
        """Ends the wait under way, or the next one. For signal handlers and other threads."""
        with contextlib.suppress(OSError, ValueError):  # closed, or interrupted a great many times
            os.eventfd_write(self._wakeup, 1)

    def watch(self, key: StreamKey) -> None:
        """From now on a change of this stream is hinted. To be called before the stream is looked at."""
        if self._inotify is not None:
            self._arm(_place(key))

    def forget(self, key: StreamKey) -> None:
        """Gives back the kernel's watch of a stream that has ended (it comes back when its directory is replaced)."""
        if self._inotify is None:
            return
        with contextlib.suppress(OSError):  # its directory is gone, and the watch with it
            # Adding it once more tells which one it is.
            wd = self._inotify.add(os.path.join(self.spool, _place(key)), _STREAM_MASK)
            self._places.pop(wd, None)
            self._inotify.remove(wd)

    def close(self) -> None:
        """Frees the descriptors. A second call does nothing."""
        self._drop()
        if self._wakeup >= 0:
            os.close(self._wakeup)
            self._wakeup = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- waiting -------------------------------------------------------------------------------------------

    def _interrupted(self, timeout_s: float, hints_too: bool) -> bool:
        poller = select.poll()
        poller.register(self._wakeup, select.POLLIN)
        if hints_too and self._inotify is not None:
            poller.register(self._inotify.fd, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(timeout_s * 1000 + 0.5)}
        if self._wakeup not in ready:
            return False
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wakeup)
        return True

    def _read(self) -> set[StreamKey] | None:
        """Takes the waiting events, and arms what they have disarmed *before* the caller looks at the streams."""
        if self._inotify is None:
            return set()
        hints: set[StreamKey] = set()
        fired: set[str] = set()
        strangers: set[str] = set()
        lost = False
        for wd, mask, name in self._inotify.read():
            place = self._places.get(wd, self._runs.get(wd))
            if mask & _OVERFLOW:
                lost = True
            elif place is None:
                strangers.update([name] if mask & _ISDIR and is_legal(name) else ())
            elif place.count("/") == _STREAM_DEPTH - 1:
                self._places.pop(wd)  # it has fired
                fired.add(place)
            else:
                lost = self._take(wd, place, mask, name, hints) or lost
        for place in fired:
            _, site, _, run, writer = place.split("/")
            hints.add(StreamKey(site, run, writer))
            self._arm(place)
        if lost:
            self._rebuild_at = self._clock()
            self._drop()
            return None
        if len(strangers) > _MOST_STRANGERS:
            return None
        for name in strangers:
            self._search(name, hints)
        return hints

    def _take(self, wd: int, place: str, mask: int, name: str, hints: set[StreamKey]) -> bool:
        """Handles one event of a directory that holds no segments. True when the spool itself went away."""
        parts = place.split("/") if place else []
        if mask & (_DELETE_SELF | _MOVE_SELF | _IGNORED):
            self._places.pop(wd, None)
            self._runs.pop(wd, None)
            return len(parts) < 2
        if mask & _ISDIR:
            self._appeared((*parts, name), hints)
        return False

    def _appeared(self, parts: tuple[str, ...], hints: set[StreamKey]) -> None:
        """A directory came into view: what is in it may be older than its watch, so it is hinted."""
        if _is_wanted(parts):
            hints.update(StreamKey(p[1], p[3], p[4]) for p in self._arm_tree(parts))

    def _search(self, writer: str, hints: set[StreamKey]) -> None:
        """A stream came into view in a run whose name is not remembered: it is looked for."""
        for site in list_names(os.path.join(self.spool, "sites")):
            for run in list_names(os.path.join(site_dir(self.spool, site), "runs")):
                if os.path.isdir(stream_dir(self.spool, StreamKey(site, run, writer))):
                    self._arm(_place(StreamKey(site, run, writer)).rpartition("/")[0])
                    self._appeared(("sites", site, "runs", run, writer), hints)

    # -- watches -------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self._drop()
        self._rebuild_at, self._refused = None, False
        try:
            self._inotify = _Inotify()
            if not self._arm(""):
                raise FileNotFoundError(errno.ENOENT, "it is not there", self.spool)
            for _ in self._arm_tree(("sites",), _STREAM_DEPTH if self._streams else _STREAM_DEPTH - 1):
                pass
        except (OSError, ImportError) as error:
            self._drop()
            missing = isinstance(error, FileNotFoundError)
            self._rebuild_at = self._clock() + _REBUILD_S if missing else None
            self._warn(f"the kernel gives no file-system events for {self.spool} ({error})")

    def _arm_tree(self, parts: tuple[str, ...], depth: int = _STREAM_DEPTH) -> Iterator[tuple[str, ...]]:
        """Watches a directory and those below it; yields those that are `depth` deep: by default, streams."""
        is_watched = self._streams or len(parts) < _STREAM_DEPTH
        if is_watched and not self._arm("/".join(parts)):
            return
        if len(parts) == depth:
            yield parts
            return
        for name in list_names(os.path.join(self.spool, *parts)):
            if _is_wanted((*parts, name)):
                yield from self._arm_tree((*parts, name), depth)

    def _arm(self, place: str) -> bool:
        """Watches one directory. False when it is not there. At the kernel's limit the others are kept."""
        assert self._inotify is not None
        depth = place.count("/") + 1
        mask = _STREAM_MASK if depth == _STREAM_DEPTH else _FOLDER_MASK
        try:
            wd = self._inotify.add(os.path.join(self.spool, place), mask)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._refused = True
                self._warn("the kernel's limit fs.inotify.max_user_watches is reached (raise it with sysctl)")
                return True
            return False
        if depth == _STREAM_DEPTH - 1:
            self._runs.pop(wd, None)
            self._runs[wd] = place
            if len(self._runs) > _MOST_RUNS:
                del self._runs[next(iter(self._runs))]
        else:
            self._places[wd] = place
        return True

    def _drop(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
        self._places.clear()
        self._runs.clear()

    def _warn(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("%s: changes are found by the periodic sweep only", why)


class _Inotify:
    """One inotify descriptor. Raises OSError; ImportError where watchdog has no inotify."""

    def __init__(self) -> None:
        from watchdog.observers import inotify_c  # fails to import where libc has no inotify

        self._calls: Any = inotify_c
        self.fd = self._checked(inotify_c.inotify_init())
        os.set_inheritable(self.fd, False)
        os.set_blocking(self.fd, False)

    @staticmethod
    def _checked(result: int) -> int:
        if result == -1:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    def add(self, path: str, mask: int) -> int:
        wd: int = self._checked(self._calls.inotify_add_watch(self.fd, os.fsencode(path), mask))
        return wd

    def remove(self, wd: int) -> None:
        self._calls.inotify_rm_watch(self.fd, wd)  # one that has fired is gone already

    def read(self) -> Iterator[tuple[int, int, str]]:
        """The waiting events as (watch, mask, name)."""
        while True:
            try:
                data = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                wd, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size
                yield wd, mask, os.fsdecode(data[at : at + length].rstrip(b"\0"))
                at += length

    def close(self) -> None:
        os.close(self.fd)


def _place(key: StreamKey) -> str:
    return f"sites/{key.site}/runs/{key.run}/{key.writer}"


def _is_wanted(parts: tuple[str, ...]) -> bool:
    """True for `sites/<site>/runs/<run>/<writer>` and what leads there."""
    fixed = {0: "sites", 2: "runs"}
    return len(parts) <= _STREAM_DEPTH and all(
        part == fixed[at] if at in fixed else is_legal(part) for at, part in enumerate(parts)
    )


def is_network(kind: str) -> bool:
    """True for the name of a file-system type whose changes may be made on another machine."""
    return kind in _NETWORK or kind == "fuse" or kind.startswith("fuse.")


def file_system(path: str, mounts: str = "/proc/self/mountinfo") -> str:
    """The name of the type of the file system on which `path` lies, as the kernel calls it; "" when unknown."""
    real = os.path.realpath(path)
    best, kind = -1, ""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = _unescape(fields.split(" ")[4]) if fields.count(" ") >= 4 else ""
        inside = point in ("/", real) or real.startswith(point + "/")
        if point and inside and len(point) >= best:  # a later mount on the same point covers the earlier
            best, kind = len(point), rest.split(" ")[0]
    return kind


def _unescape(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text
