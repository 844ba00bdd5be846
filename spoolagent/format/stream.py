"""The writer of one stream: the hot path of a training process.

It raises only for a caller's mistake. What the disk refuses is counted, and written as a `gap` event when the
disk takes events again. Threads share a StreamWriter; a forked child goes on with a stream of its own.
"""

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from zlib import crc32

import orjson
from orjson import dumps

from spoolagent.errors import SpoolError, UsageError
from spoolagent.format import durable, keeper, large, layout, live
from spoolagent.format.clock import now_ns, within
from spoolagent.format.lines import MAX_LINE, encode_line, seal
from spoolagent.format.names import check_case, new_writer_id
from spoolagent.format.segment import Origin, Segment
from spoolagent.format.spool import create_spool
from spoolagent.format.write_queue import WriteQueue

DURABILITIES = ("process", "interval", "always", "queued")
_MAX_BODY = MAX_LINE - 64
_RETRY_S = 1.0
_DRAIN_S = 30.0

Warn = Callable[[str], None]


class StreamOptions(NamedTuple):
    """How a stream is written."""

    durability: str = "interval"
    segment_bytes: int = 16 << 20
    segment_age_s: float = 3600.0


_DEFAULTS = StreamOptions()


class _Gap(NamedTuple):
    dropped: int
    first_ns: int
    last_ns: int
    reason: str


def warn_on_stderr(message: str) -> None:
    """The default for warnings: one line on standard error, whatever has become of it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full or None: it must not hurt
        sys.stderr.write(f"spoolagent: {message}\n")


_ENDED = "the run has ended"


class _TooLarge(Exception):
    """The event does not fit in a line."""


def blank(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """An event for `StreamWriter.append_event`, its seq and time still to be filled in."""
    return {"seq": 0, "time": 0, "type": kind, **fields}


class StreamWriter:
    """Appends events to one stream of a run, in seq order.

    `start` gives the payload of the `run_start` event, with which every stream begins. Nothing touches the
    disk before `open` or the first event.
    """

    __slots__ = (  # more attributes than Python keeps in its quick layout; found by slot they cost less
        "__weakref__",
        "_born_ns",
        "_busy",
        "_deferred",
        "_dir",
        "_dirty",
        "_doubts",
        "_fast",
        "_fresh_at",
        "_gap",
        "_limit",
        "_live",
        "_lock",
        "_named",
        "_origin",
        "_prev",
        "_queue",
        "_reason",
        "_refused",
        "_renew_at",
        "_retired",
        "_retry_at",
        "_segment",
        "_start",
        "_sync_lock",
        "_unnamed",
        "_warn",
        "_warned",
        "attempt",
        "closed",
        "dropped",
        "launch",
        "options",
        "role",
        "run",
        "seq",
        "site",
        "spool",
        "writer",
    )

    def __init__(
        self,
        spool: str,
        site: str,
        run: str,
        start: Callable[[], dict[str, Any]],
        *,
        role: str = "main",
        attempt: int = 1,
        launch: str | None = None,
        options: StreamOptions = _DEFAULTS,
        warn: Warn = warn_on_stderr,
    ) -> None:
        if options.durability not in DURABILITIES:
            raise UsageError(f"durability {options.durability!r} is not one of {', '.join(DURABILITIES)}")
        self.spool, self.site, self.run = os.path.abspath(spool), site, run
        self.role, self.attempt, self.launch = role, attempt, launch
        self.options = options
        self.dropped = 0
        """Events that could not be written in this process, so far."""
        self._start = start
        self._warn = warn
        self._reset()
        keeper.know(self)

    def _reset(self) -> None:
        self.writer = new_writer_id()
        self._born_ns = now_ns()
        self.seq = 0
        """seq of the last event written."""
        self.closed = False
        self._lock = threading.RLock()
        self._sync_lock = threading.RLock()
        self._busy = False
        self._deferred: list[bytes] = []
        self._refused: deque[tuple[str, int]] = deque()
        """Drops of a thread that could not have the lock: (reason, time)."""
        self._segment: Segment | None = None
        self._prev: str | None = None
        """The hash of the segment before the next one."""
        self._named: Segment | None = None
        """With `always`: the segment whose name is on disk for sure."""
        self._fast: Segment | None = None
        """The segment, while the next event may go straight into it."""
        self._limit = self.options.segment_bytes
        self._live: live.Live | None = None
        self._dir = layout.run_dir(self.spool, self.site, self.run)
        self._retired: list[Segment] = []
        self._dirty = False
        """Something was appended that may not be durable yet."""
        self._doubts = False
        """It was told that the disk does not sync."""
        self._fresh_at = 0.0
        self._unnamed: set[str] = set()
        """Directories in which names that we made may not be durable yet."""
        self._gap: _Gap | None = None
        self._reason = "the spool could not be written"
        self._retry_at = 0.0
        self._warned = False
        self._renew_at = 0.0
        self._queue: WriteQueue | None = None
        if self.options.durability == "queued":
            self._queue = WriteQueue(self._write_queued, self._drop_queued)

    # -- appending ---------------------------------------------------------------------------------------

    def append(self, kind: str, fields: dict[str, Any]) -> None:
        """Appends one event; `fields` must be JSON already (see `spoolagent.format.values`).

        Raises TypeError for what orjson cannot write, before anything happens. What is larger than a line (1 MiB)
        becomes several events, or counts as dropped (`spoolagent.format.large`).
        """
        self.append_event(blank(kind, fields))

    def append_event(self, event: dict[str, Any]) -> None:
        """As `append`, with a whole event that begins with seq, time and type; seq and time are filled in here."""
        if self._queue is not None:  # its thread may hang in a write, with the lock
            self._append_slowly(event)
            return
        with self._lock:
            segment = self._fast
            if segment is None or self._busy or segment.size > self._limit:
                self._append_slowly(event)
                return
            # The hot path: everything is ready, nobody else is in here.
            self._busy = True
            before, seq = segment.size, self.seq + 1
            try:
                event["seq"], event["time"] = seq, time.time_ns()
                body = dumps(event)[:-1]
                if len(body) > _MAX_BODY:
                    raise _TooLarge  # noqa: TRY301 - a call would cost the hot path
                segment.append(b'%b,"crc":"%08x"}\n' % (body, crc32(body)))
                self.seq = seq
                self._dirty = True
                if self._deferred:
                    self._write_deferred()
            except (_TooLarge, TypeError):  # also a clock that says more than 64 bits hold
                if segment.size > before:  # a signal handler's, just after the write
                    self._fast, segment.broken = None, True
                    raise
                self._busy = False
                self._append_slowly(event)
            except BaseException as error:
                # Also a KeyboardInterrupt, perhaps just after the write, and perhaps a second one with the next call:
                # the file tells what was written (`_rotate`).
                was_written = segment.size > before
                self._fast, segment.broken = None, segment.broken or was_written
                if not isinstance(error, OSError):
                    segment.broken = True
                    raise
                if not was_written:
                    self._failed(error)
                    self._count_drop(now_ns())
            finally:
                self._busy = False

    def _append_slowly(self, event: dict[str, Any]) -> None:
        """Whatever is unusual: the first event, a full segment, a refusing disk, `always`, a queue."""
        del event["seq"]  # only writing gives it one
        event["time"] = now_ns()
        body = dumps(event)
        if len(body) > _MAX_BODY:
            self._append_parts(event, len(body))
        elif self._queue is not None:
            self._queue.put(body)
        else:
            self._append_body(body)

    def _append_parts(self, event: dict[str, Any], size: int) -> None:
        """An event of `size` bytes as several that fit, or as a drop."""
        kind, at_ns = event["type"], event["time"]
        fields = {name: value for name, value in event.items() if name not in ("seq", "time", "type")}
        parts = list(large.split(kind, fields, at_ns))
        if len(parts) == 1:
            self.drop(large.describe(kind, fields, size))
            return
        for part in parts:
            self.append(kind, part)

    def _append_body(self, body: bytes) -> None:
        with self._lock:
            if self._busy:  # a signal handler logs while its own thread is in here
                self._deferred.append(body)
                return
            self._busy = True
            try:
                self._write(body)
                self._write_deferred()
            finally:
                self._busy = False
                self._choose_path()

    def _write_deferred(self) -> None:
        while self._deferred:
            self._write(self._deferred.pop(0))

    def _choose_path(self) -> None:
        """Opens the hot path when nothing stands against it."""
        segment = self._segment
        plain = self._queue is None and self.options.durability != "always" and self._gap is None
        is_open = segment is not None and not segment.broken and not self.closed
        self._fast = segment if plain and is_open else None

    def _write(self, body: bytes) -> None:
        """Writes one event given as JSON without its seq, or counts it as dropped."""
        if self._refused:
            self._count_refused()
        segment = None if self.closed else self._segment
        if segment is None or segment.broken or self._gap is not None or segment.size > self._limit:
            segment = self._ready()
            if segment is None:
                self._count_drop(orjson.loads(body)["time"])
                return
        line = seal(b'{"seq":%d,%b' % (self.seq + 1, body[1:-1]))
        try:
            self._append_next(segment, line)
        except OSError as error:
            self._failed(error)
            self._count_drop(orjson.loads(body)["time"])
            return
        if self.options.durability == "always":
            self._sync_line(segment, line)

    def _append_next(self, segment: Segment, line: bytes) -> None:
        """Appends the line of the next seq. Written whole, it has that seq, whatever else happens."""
        before, seq = segment.size, self.seq + 1
        try:
            segment.append(line)
        finally:
            if segment.size > before:
                self.seq = seq
                self._dirty = True

    def _sync_line(self, segment: Segment, line: bytes) -> None:
        try:
            segment.sync(line)
            if self._named is not segment:  # also one that the keeper began, by age
                durable.fsync_dir(self._dir)
                self._named = segment
        except OSError as error:
            self._sync_failed(segment, error)
        else:
            self._dirty = False

    def _sync_failed(self, segment: Segment, error: OSError) -> None:
        """What is written stays, and is synced again each second; the next event begins a new segment, seldom enough."""
        self._dirty = True
        self._doubt(error)
        now = time.monotonic()
        if now >= self._fresh_at:
            self._fresh_at = now + _RETRY_S
            segment.broken = True
            self._fast = None

    # -- opening, rotating, failing ------------------------------------------------------------------------

    def open(self) -> None:
        """Creates the stream now rather than at the first event."""
        if self._queue is not None:
            return  # its thread does
        with self._lock:
            if not self._busy and self._segment is None:
                self._busy = True
                try:
                    self._ready()
                finally:
                    self._busy = False
                    self._choose_path()

    def _ready(self) -> Segment | None:
        """A segment that takes the next event, with any gap before it on record; None while the disk refuses."""
        now = time.monotonic()
        if self.closed:
            self._complain(_ENDED)
            return None
        if now < self._retry_at:
            return None
        try:
            if self._live is None:
                self._create()
            elif self._segment is None:
                self._next_segment()
            elif self._segment.broken or self._segment.size > self.options.segment_bytes:
                self._rotate()
            if self._unnamed and self.options.durability == "always":
                self._sync_names()
            if self._gap is not None:
                self._write_gap(self._gap)
        except OSError as error:
            self._failed(error)
            self._retry_at = now + _RETRY_S if self._live is None else 0.0
            return None
        except SpoolError as error:
            self._reason = str(error)
            self._complain(self._reason)
            self._retry_at = now + _RETRY_S
            return None
        return self._segment

    def _create(self) -> None:
        """Makes the directory under a dot name, locks it, writes header and start, and renames it into view."""
        told = time.time_ns()
        if told != within(told):
            self._warn(
                f"this machine's clock is wrong, it says {told} ns since 1970: events get the nearest time"
            )
        spool = create_spool(self.spool)
        runs = os.path.dirname(self._dir_of_run())
        check_case("site", os.path.dirname(os.path.dirname(runs)), self.site)
        check_case("run", runs, self.run)
        durable.make_dirs(self._dir_of_run())
        hidden = os.path.join(self._dir_of_run(), f".tmp-{self.writer}")
        final = os.path.join(self._dir_of_run(), self.writer)
        held = segment = None
        try:
            durable.fault_point("mkdir", hidden)
            os.mkdir(hidden, layout.DIR_MODE)
            held = live.Live(hidden)
            self._origin: Origin = Origin(
                spool.uuid, self.run, self.writer, self.role, self.attempt, self.launch
            )
            segment = Segment(hidden, 1, self._origin, None, now_ns())
            start = {"seq": 1, "time": self._born_ns, "type": "run_start", **self._start()}
            segment.append(encode_line(start))
            segment.sync()
            durable.fsync_dir(hidden)
            durable.rename(hidden, final)
        except BaseException as error:
            if not (held and segment and os.path.isdir(final)):
                self._give_up(hidden, held, segment)
                raise
            self._unnamed.add(self._dir_of_run())  # it is in view; only that was not made durable
            self._take_up(held, segment, final)
            if not isinstance(error, OSError):
                raise
        else:
            self._take_up(held, segment, final)

    def _take_up(self, held: live.Live, segment: Segment, final: str) -> None:
        held.published(final)
        segment.path = os.path.join(final, os.path.basename(segment.path))
        self._dir, self._live, self._segment, self.seq = final, held, segment, 1
        self._renew_at = time.monotonic() + live.RENEW_S
        keeper.keep(self)

    def _give_up(self, hidden: str, held: live.Live | None, segment: Segment | None) -> None:
        """After a failed creation: the next try has another name, as this one may be taken or in view."""
        self.writer = new_writer_id()
        if segment is not None:
            segment.close()
        if held is not None:
            held.release()
        with contextlib.suppress(OSError):
            if segment is not None:
                durable.discard(segment.path)
            durable.discard_dir(hidden)

    def _dir_of_run(self) -> str:
        return layout.run_dir(self.spool, self.site, self.run)

    def _rotate(self) -> None:
        segment = self._segment
        assert segment is not None
        if segment.broken:  # an exception may have come between a write and our count of it
            self.seq = max(self.seq, segment.read_last_seq())
            if segment.first_seq > self.seq:
                # No event is in it: the next one has its name, and its place in the chain.
                self._prev, self._segment = segment.prev, None
                self._free(segment)
                self._next_segment()
                return
        else:
            before = segment.size
            try:
                segment.seal(self.seq, closed=False)
            finally:  # a KeyboardInterrupt just after it: it must not get a second one
                segment.broken = segment.broken or segment.size > before
        self._prev = segment.sha256()  # also for the next try, should this one fail from here on
        self._retired.append(segment)  # first: an exception may come in between
        self._segment = None
        self._next_segment()

    def _next_segment(self) -> None:
        self._segment = Segment(self._dir, self.seq + 1, self._origin, self._prev, now_ns())
        self._unnamed.add(self._dir)

    def _write_gap(self, gap: _Gap) -> None:
        assert self._segment is not None
        fields = {"dropped": gap.dropped, "from": gap.first_ns, "to": gap.last_ns, "reason": gap.reason}
        event = {"seq": self.seq + 1, "time": now_ns(), "type": "gap", **fields}
        try:
            self._append_next(self._segment, encode_line(event))
        finally:
            if self.seq == event["seq"]:
                self._gap = None

    def _failed(self, error: OSError) -> None:
        self._reason = error.strerror or str(error)
        self._complain(f"{error.filename or self._dir}: {self._reason}")

    def _complain(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(
                f"cannot write to the spool ({message}). Training goes on, events are dropped and counted."
            )

    def _doubt(self, error: OSError) -> None:
        if not self._doubts:
            self._doubts = True
            self._warn(
                f"what was logged is written, but the disk does not sync it ({error.filename or self._dir}: "
                f"{error.strerror or error}): a power cut may lose it. Training goes on, it is tried again."
            )

    def _count_drop(self, at_ns: int, count: int = 1) -> None:
        self._fast = None  # the gap goes on record first
        self.dropped += count
        old = self._gap
        if old is None:
            self._gap = _Gap(count, at_ns, at_ns, self._reason)
        else:
            self._gap = _Gap(old.dropped + count, old.first_ns, at_ns, self._reason)

    def drop(self, reason: str) -> None:
        """Puts one event on record that could not even be prepared (its blob was refused)."""
        if self._queue is not None:
            self._drop_later(reason, now_ns())
            return
        with self._lock:
            self._reason = reason
            self._complain(reason)
            self._count_drop(now_ns())

    # -- queued -----------------------------------------------------------------------------------------------

    def _write_queued(self, body: bytes) -> None:
        self._append_body(body)

    def _drop_queued(self, body: bytes) -> None:
        full = "the queue was full: the spool's file system is too slow"
        reason = _ENDED if self._queue is not None and self._queue.is_closed else full
        self._drop_later(reason, orjson.loads(body)["time"])

    def _drop_later(self, reason: str, at_ns: int) -> None:
        """As `drop`, without waiting for the queue's thread: it counts what it finds here before its next write."""
        self._refused.append((reason, at_ns))
        if self._lock.acquire(blocking=False):
            try:
                self._count_refused()
            finally:
                self._lock.release()

    def _count_refused(self) -> None:
        while self._refused:
            self._reason, at_ns = self._refused.popleft()
            self._complain(self._reason)
            self._count_drop(at_ns)

    @contextlib.contextmanager
    def _both_locks(self) -> Iterator[None]:
        """Both locks, without waiting for the second with the first in hand.

        A signal handler that ends the run may have interrupted an append, which has the other.
        """
        while True:
            with self._sync_lock:
                if self._lock.acquire(timeout=0.05):
                    try:
                        yield
                    finally:
                        self._lock.release()
                    return
            time.sleep(0.001)  # let the other have it

    # -- the keeper ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Called each second by the keeper's thread: fsync, LIVE, rotation by age."""
        try:
            self.check_files()
            self._sync_quietly()
            self._rotate_by_age()
            held = self._live  # close() may take it away
            if time.monotonic() >= self._renew_at and held is not None:
                self._renew_at = time.monotonic() + live.RENEW_S
                held.renew()
        except OSError as error:
            self._failed(error)

    def check_files(self) -> None:
        """Notices what others did to the stream's files; the next event then begins a segment, or a stream, anew."""
        with self._both_locks():
            segment = self._segment
            if self._busy or self.closed or segment is None:
                return
            if self._live is not None:
                with contextlib.suppress(OSError):  # the next second tries again
                    self._live.keep()
            if segment.check_descriptor() and not segment.is_removed():
                return
            self._fast = None  # also after a daemon that closes all descriptors
            segment.broken = True
            if not os.path.isdir(self._dir):
                self._begin_anew(segment)
            elif segment.fd >= 0:
                self._complain(f"somebody removed {segment.path}: what nobody had read of it is lost")

    def _begin_anew(self, removed: Segment) -> None:
        """The stream is gone, with all that was in it: another takes its place, and says how much was lost."""
        lost = self.seq - max(removed.first_seq, 2) + 1  # the first is its start, which is written again
        self._reason = f"somebody removed {self._dir}"
        self._complain(self._reason)
        for segment in (removed, *self._retired):
            self._free(segment)
        if self._live is not None:
            self._live.release()
        self.writer, self.seq = new_writer_id(), 0
        self._live = self._segment = None
        self._retired.clear()
        self._unnamed.clear()
        self._dirty = False
        if lost > 0:
            self._count_drop(now_ns(), lost)

    def _sync_quietly(self) -> None:
        try:
            if self.options.durability == "process":
                self._finish_full()
            else:
                self.sync()
        except OSError as error:
            self._doubt(error)

    def _rotate_by_age(self) -> None:
        with self._lock:
            segment = self._segment
            if self._busy or self.closed or segment is None or segment.first_seq > self.seq:
                return
            if now_ns() - segment.created_ns > self.options.segment_age_s * 1e9:
                self._fast = None
                self._rotate()

    def sync(self) -> None:
        """Makes what was appended so far durable. Raises OSError; then it stays, and is tried again later."""
        with contextlib.ExitStack() as held:
            # The keeper and a flush() may be here at once; only in here are segments closed.
            with self._both_locks():
                held.enter_context(self._sync_lock)
                segment, dirty, self._dirty = self._segment, self._dirty, False
                full = len(self._retired)
            failed = self._finish_retired(full)
            if dirty and segment is not None:
                try:
                    segment.sync()
                except OSError as error:
                    self._sync_failed(segment, error)
                    failed = error
            self._sync_names()
        if failed is not None:
            raise failed

    def _sync_names(self) -> None:
        while self._unnamed:
            folder = self._unnamed.pop()
            try:
                durable.fsync_dir(folder)
            except OSError:
                self._unnamed.add(folder)
                raise

    def _finish_retired(self, count: int) -> OSError | None:
        """Makes the first `count` full segments durable and closes them, each one whatever becomes of the others.

        Not those that are retired meanwhile: one of them may be what `sync` is about to make durable.
        """
        failed = None
        for _ in range(count):
            if not self._retired:  # a signal handler was here meanwhile
                break
            segment = self._retired.pop(0)  # at once: no lock, see `_both_locks`
            try:
                segment.sync()
            except OSError as error:
                failed = error
            finally:
                self._free(segment)
        return failed

    def _free(self, segment: Segment) -> None:
        """Closes it. NFS may tell of a full quota only now."""
        try:
            segment.close()
        except OSError as error:
            self._doubt(error)

    def _finish_full(self) -> None:
        with self._sync_lock:
            failed = self._finish_retired(len(self._retired))
        if failed is not None:
            raise failed

    def _close_retired(self) -> None:
        with self._lock:
            retired, self._retired = self._retired, []
        for old in retired:
            self._free(old)

    def flush(self) -> None:
        """Makes what was logged so far durable (waits for the queue first); never raises for the disk."""
        if self._queue is not None:
            self._queue.drain(_DRAIN_S)
        try:
            self.sync()
        except OSError as error:
            self._doubt(error)

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Seals the stream and frees LIVE. A second call does nothing."""
        if self._queue is not None:
            self._queue.close(_DRAIN_S)
        with self._lock:
            if self.closed:
                return
            if self._busy:
                # A signal handler, in the middle of an append: the file tells how far that came (`_rotate`).
                self._busy = False
                if self._segment is not None:
                    self._segment.broken = True
            if self._refused:
                self._count_refused()
            self._write_deferred()
            try:
                if self._gap is not None:
                    self._retry_at = 0.0
                    self._ready()
                if self._segment is not None and not self._segment.broken:
                    self._segment.seal(self.seq, closed=True)
            except OSError as error:
                self._failed(error)
            if self._gap is not None:  # the last chance to tell it anybody; why was told when it began
                who = f"{self.site}/{self.run}/{self.writer}"
                self._warn(
                    f"{self._gap.dropped} events of {who} were dropped, and the spool took no record of it."
                )
            self.closed = True
            self._fast = None
        self._close_files()

    def _close_files(self) -> None:
        keeper.release(self)
        with self._sync_lock:  # a tick that began before may still be in there
            try:
                if self.options.durability == "process":
                    self._close_retired()
                else:
                    self._dirty = self._segment is not None
                    self.sync()
            except OSError as error:
                self._doubt(error)
            with self._lock:
                segment, self._segment, self._fast = self._segment, None, None
            if segment is not None:
                self._free(segment)
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.release()
            self._live = None

    def after_fork(self) -> None:
        """In a forked child: leaves the parent's stream alone; the child's first event begins its own, role aux."""
        for segment in (self._segment, *self._retired):
            if segment is not None:
                segment.close()
        if self._live is not None:
            self._live.release()
        live.forget_after_fork()
        closed = self.closed
        self.role = "aux"
        self.dropped = 0
        self._reset()
        self.closed = closed
