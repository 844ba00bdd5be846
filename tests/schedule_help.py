"""Helpers of test_schedules, test_disk_full and test_filesystem: small file systems, workers, and what trackers hold."""

import contextlib
import errno
import glob
import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter

from kill_help import children, is_dead, query
from spool_help import NoHints, clean_env, until

from spoolagent.contract import Outcome
from spoolagent.format import durable, layout
from spoolagent.format.lines import encode_line
from spoolagent.format.spool import open_spool
from spoolagent.serving.registry import load_receiver
from spoolagent.serving.store import open_store
from spoolagent.serving.worker import Worker
from spoolagent.settings import AgentSettings, ReceiverSettings


class Crash(BaseException):
    """Ends a worker in the middle, as SIGKILL would."""


class Disk:
    """A real, small file system of its own (a tmpfs)."""

    def __init__(self, path, size):
        self.path, self.size = str(path), size
        self._filler = os.path.join(self.path, ".filler")

    def fill(self, leave=0):
        """Takes all of its space but `leave` bytes."""
        fd = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            with contextlib.suppress(OSError):
                while True:
                    os.write(fd, bytes(4096))
            if leave:
                os.ftruncate(fd, max(0, os.fstat(fd).st_size // 4096 * 4096 - leave))
        finally:
            os.close(fd)

    def make_room(self):
        """Gives the space back."""
        os.unlink(self._filler)

    @property
    def free(self):
        """Bytes that can still be written."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def remount(self, mode):
        """`ro` or `rw`. Refused by the kernel while a file on it is open for writing."""
        subprocess.run(["mount", "-o", f"remount,{mode}", self.path], check=True, capture_output=True)


@contextlib.contextmanager
def small_disk(path, size="1m"):
    """Mounts a tmpfs of `size` at `path`. Only root can: anybody else's test uses the fault seam."""
    os.makedirs(path)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, f"root must be able to mount a tmpfs for these tests: {made.stderr}"
    try:
        yield Disk(path, size)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, capture_output=True)


def may_mount():
    """True for root; a root that cannot mount is a failure, not a reason to skip."""
    return os.geteuid() == 0


class Clock:
    """Monotonic seconds that only move when told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Passes(NoHints):
    """The worker's hints: each wait moves the clock and may call `on_wait(number)`; ends after `most` waits."""

    def __init__(self, clock, most, on_wait):
        self.clock, self.left, self.on_wait, self.number = clock, most, on_wait, 0

    def wait(self, timeout_s):
        self.left -= 1
        self.number += 1
        self.clock.now += max(timeout_s, 0.001)
        if self.on_wait is not None:
            self.on_wait(self.number)

    def is_over(self):
        return self.left <= 0


class Delivered:
    """What is left of a worker that ran."""

    def __init__(self, worker, store, said):
        self.worker, self.said = worker, said
        self.drained, self.blocked = worker.is_drained(), worker.blocked()
        self.delivered = worker.delivered
        self.dead, self.lost = store.count("dead"), store.count("lost")
        self.folder = store.folder


def deliver(
    spool,
    receiver,
    options=None,
    *,
    passes=300,
    patience_s=60.0,
    on_wait=None,
    clock=None,
    drain=True,
    **limits,
):
    """A worker over the spool, in this process, until all is delivered (or `passes` waits): with a clock of its own.

    `receiver` is a spec or an object.
    """
    opened = open_spool(str(spool))
    made = load_receiver(receiver, options or {}) if isinstance(receiver, str) else receiver
    clock = clock or Clock()
    hints, said = Passes(clock, passes, on_wait), []
    with open_store(opened, made) as store:
        made.open(store)
        try:
            worker = Worker(
                opened,
                made,
                store,
                agent=AgentSettings(spool=opened.path, patience_s=patience_s),
                limits=ReceiverSettings(
                    name="it", spec="it:", **{"max_events": 7, "flush_interval_s": 0.0, **limits}
                ),
                hints=hints,
                report=lambda line: (said.append(line), print(line, clock.now)),
                clock=clock,
                should_stop=hints.is_over,
            )
            worker.run(until_drained=drain)
            return Delivered(worker, store, said)
        finally:
            made.close()


def crashing(receiver, at, where="after"):
    """The receiver, which ends the process at its `at`-th batch: before, or after the tracker has it."""
    inner, count = receiver.deliver, [0]

    def crash(batch):
        count[0] += 1
        if count[0] == at and where == "before":
            raise Crash
        outcome = inner(batch)
        if count[0] == at:
            raise Crash
        return outcome

    receiver.deliver = crash
    return receiver


class Counting:
    """A receiver that keeps nothing but counts."""

    def __init__(self, identity="memory:counting"):
        self.identity, self.events, self.statuses = identity, 0, {}

    def open(self, state):
        """Nothing to check."""

    def deliver(self, batch):
        self.events += len(batch.events)
        return Outcome()

    def set_status(self, end):
        self.statuses[end.site, end.run] = end.status

    def close(self):
        """Nothing to release."""


class Service:
    """`python -m spoolagent ARGS` as a process, ended with the test whatever happens; its log in `log`."""

    def __init__(self, folder, name, *args, **env):
        self.path = os.path.join(str(folder), f"{name}.log")
        with open(self.path, "ab") as log:
            command = [sys.executable, "-m", "spoolagent", *map(str, args)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=clean_env(**env))

    @property
    def log(self):
        """What it said so far."""
        with open(self.path, encoding="utf-8") as file:
            return file.read()

    def workers(self):
        """The pids of its children."""
        return children(self.process.pid)

    def stop(self):
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(60)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        left = self.workers()
        self.process.kill()
        self.process.wait()
        until(lambda: all(map(is_dead, left)), what="the end of the workers")


def in_jsonl(path):
    """(how often each (writer, seq), states in order) of a JSON-lines file and its successors."""
    stem, extension = os.path.splitext(str(path))
    events, states = Counter(), []
    for name in sorted([str(path)] * os.path.exists(path) + glob.glob(f"{stem}-*{extension}")):
        with open(name, encoding="utf-8") as file:
            for line in file:
                data = json.loads(line)
                if data["type"] == "run_state":
                    states.append(data["status"])
                else:
                    events[data["writer"], data["seq"]] += 1
    return events, states


def issued(spool):
    """Each event of the spool, once, as `in_jsonl` counts them."""
    from spool_help import streams

    found = streams(spool).items()
    return Counter({(key.writer, event["seq"]): 1 for key, (events, _) in found for event in events})


def steps_in_jsonl(path):
    """How often each step of `loss` is in a JSON-lines file and its successors."""
    stem, extension = os.path.splitext(str(path))
    found = Counter()
    for name in sorted([str(path)] * os.path.exists(path) + glob.glob(f"{stem}-*{extension}")):
        with open(name, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        found.update(line["step"] for line in lines if "loss" in line.get("metrics", {}))
    return found


def steps_in_tensorboard(folder):
    """How often each step of `loss` is in the run's directories, by TensorBoard's own reader."""
    from tb_help import accumulate

    found = Counter()
    for place, _, names in os.walk(folder):
        if any("tfevents" in name for name in names):
            reader = accumulate(place).Reload()
            if "loss" in reader.Tags()["scalars"]:
                found.update(point.step for point in reader.Scalars("loss"))
    return found


def steps_in_wandb(folder):
    """How often each step of `loss` is in all of a folder's logs."""
    from wandb_help import read_records, rows_of

    found = Counter()
    for path in sorted(glob.glob(os.path.join(folder, "offline-run-*", "run-*.wandb"))):
        for row in rows_of(read_records(path)):
            if "loss" in row:
                found[row.get("global_step", row["_step"])] += 1
    return found


def exits_in_wandb(folder):
    """The exit code with which each log ends, None without one, oldest first."""
    from wandb_help import read_records

    ends = [
        read_records(path)[-1] for path in sorted(glob.glob(os.path.join(folder, "offline-run-*", "*.wandb")))
    ]
    return [end.exit.exit_code if end.WhichOneof("record_type") == "exit" else None for end in ends]


def prune(stream, count):
    """Removes the first `count` segments of a stream, as `spoolagent prune` will: pruned.json before it unlinks.

    Returns the last seq that was removed.
    """
    import hashlib

    segments = layout.list_segments(stream)
    gone, kept = segments[:count], segments[count]
    with open(os.path.join(stream, layout.segment_name(gone[-1])), "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    line = encode_line({"through": kept - 1, "prev": digest, "time": 1})
    durable.write_file(os.path.join(stream, layout.PRUNED_FILE), line)
    for first in gone:
        durable.unlink(os.path.join(stream, layout.segment_name(first)))
    return kept - 1


def assert_sound(folder):
    """A receiver's cursor database passes SQLite's own check, with nothing half done."""
    with contextlib.closing(sqlite3.connect(os.path.join(folder, "state.sqlite"))) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert query(folder, "SELECT count(*) FROM named") == [(0,)]


def refuse(*operations, code=errno.EIO, where=""):
    """(a fault hook that fails these operations while its switch is on, the switch)."""
    switch = {"on": True, "count": 0}

    def fault(operation, path):
        if switch["on"] and operation in operations and where in path:
            switch["count"] += 1
            if operation == "commit":
                raise sqlite3.OperationalError("disk I/O error")
            raise OSError(code, os.strerror(code), path)

    return fault, switch
