"""Real small disks that fill up and get room again; also EIO, EMFILE and a file system that turns read-only.

Root mounts a tmpfs of a megabyte; anybody else's disk fills up at the fault seam only.
"""

import errno
import os
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
import schedule_help as h
from spool_help import make_writer, python, streams, until, write_metrics

from spoolagent.format import layout
from spoolagent.format.spool import create_spool
from spoolagent.serving.registry import load_receiver
from spoolagent.serving.status import read_status
from spoolagent.shipping import shipper
from spoolagent.testing import set_fault


@pytest.fixture
def fault():
    yield set_fault
    set_fault(None)


@pytest.fixture
def disk(tmp_path, request):
    if not h.may_mount():
        pytest.skip(
            "only root can mount a file system of its own; the tests at the fault seam run for everybody"
        )
    with h.small_disk(tmp_path / "disk", getattr(request, "param", "1m")) as made:
        yield made


def finished(spool, count=60, run="run-1", **options):
    """One finished run; returns its stream's directory."""
    writer = make_writer(spool, run=run, **options)
    write_metrics(writer, count)
    writer.append("run_end", {"status": "finished", "exit_code": 0})
    folder = writer._dir
    writer.close()
    return folder


# -- the writer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["process", "interval", "always", "queued"])
def test_a_writer_goes_on_and_puts_the_gap_on_record(disk, durability):
    warned = []
    writer = make_writer(disk.path, durability=durability, segment_bytes=20_000, warn=warned.append)
    write_metrics(writer, 50)
    writer.flush()
    disk.fill(leave=8192)  # some more lines fit, the last of them only in part
    write_metrics(writer, 1000, first=50)
    writer.flush()
    assert 500 < writer.dropped < 1000
    assert len(warned) == 1
    dropped = writer.dropped
    disk.make_room()
    until(lambda: _logs(writer), what="an event that is taken")
    end = writer.seq
    write_metrics(writer, 50, first=2000)
    writer.append("run_end", {"status": "finished", "exit_code": 0})
    writer.close()
    ((events, how),) = streams(disk.path).values()
    assert how == "closed"
    gaps = [event for event in events if event["type"] == "gap"]
    assert sum(gap["dropped"] for gap in gaps) == writer.dropped >= dropped
    assert {gap["reason"] for gap in gaps} <= {"No space left on device", "no space for a whole line"}
    assert all(gap["from"] <= gap["to"] <= gap["time"] for gap in gaps)
    steps = [event["step"] for event in events if event["type"] == "metrics" and event["step"] < 3000]
    assert len(steps) == 1100 - dropped
    assert steps[:50] == list(range(50))
    assert steps[-50:] == list(range(2000, 2050))
    assert end < events[-1]["seq"]


def _logs(writer):
    """One more event; True when it was written."""
    before = writer.dropped
    write_metrics(writer, 1, first=3000)
    writer.flush()
    return writer.dropped == before


# -- the agent's own state, and its receivers' folders ---------------------------------------------------------


SPECS = {
    "jsonl": "jsonl:{}/events.jsonl",
    "tensorboard": "tensorboard:{}/tb",
    "wandb": "wandb:offline:{}/wandb",
}


def found_in(kind, folder):
    """How often each step of `loss` is there."""
    if kind == "jsonl":
        import json

        with open(os.path.join(folder, "events.jsonl"), encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        return Counter(line["step"] for line in lines if line["type"] == "metrics")
    if kind == "tensorboard":
        return h.steps_in_tensorboard(os.path.join(folder, "tb"))
    return h.steps_in_wandb(os.path.join(folder, "wandb"))


@pytest.mark.parametrize(
    (
        "disk",
        "what",
        "kind",
    ),  # the other two keep so little that their cursors come through: see the next test
    [("1m", "the target", kind) for kind in SPECS] + [("8m", "the cursors", "wandb")],
    indirect=["disk"],
)
def test_a_worker_stops_accepting_and_goes_on_by_itself(tmp_path, disk, what, kind):
    spool = disk.path if what == "the cursors" else tmp_path / "spool"
    out = tmp_path / "out" if what == "the cursors" else disk.path
    for run in range(6):
        finished(spool, 200, run=f"run-{run}")
    receiver = load_receiver(SPECS[kind].format(out), {})
    inner, batches, waits = receiver.deliver, [], []

    def deliver(batch):
        batches.append(batch.stream.key)
        if (
            len(batches) >= 5 and len(waits) < 12
        ):  # the worker has just named it; somebody else takes every byte
            disk.fill()
        return inner(batch)

    def on_wait(number):
        if disk.free == 0:
            waits.append(number)
            if len(waits) == 12:
                disk.make_room()
                room_at.append(clock.now)

    room_at, clock = [], h.Clock()
    receiver.deliver = deliver
    done = h.deliver(spool, receiver, on_wait=on_wait, max_events=20, clock=clock)
    assert len(waits) == 12, "the disk was no obstacle"
    assert done.drained
    assert (done.dead, done.lost) == (0, 0), done.said
    assert any("everything is kept" in line for line in done.said), done.said
    assert any("reached again" in line for line in done.said)
    assert clock.now - room_at[0] < 40, "the longest back-off"
    assert found_in(kind, out) == Counter(dict.fromkeys(range(200), 6))
    h.assert_sound(done.folder)


def test_the_cursor_store_gives_back_the_space_of_its_own_log(tmp_path, disk):
    """A tenth of what SQLite's log takes by default: the disk is full of it again and again."""
    for run in range(6):
        finished(disk.path, 200, run=f"run-{run}")
    disk.fill(leave=400_000)
    done = h.deliver(disk.path, SPECS["jsonl"].format(tmp_path), max_events=2)
    assert done.drained
    assert not any("full" in line for line in done.said), done.said
    assert found_in("jsonl", tmp_path) == Counter(dict.fromkeys(range(200), 6))
    h.assert_sound(done.folder)


def test_serve_waits_for_room_and_goes_on(tmp_path, disk):
    """A whole `serve` that begins on a full disk; SQLite cannot even make its tables there."""
    finished(disk.path, 100)
    disk.fill()
    out = tmp_path / "out"
    with h.Service(
        tmp_path, "serve", "serve", "--spool", disk.path, "--to", f"jsonl:{out}/events.jsonl"
    ) as serve:
        until(lambda: "everything is kept" in serve.log or "restarting in" in serve.log, what="a complaint")
        assert serve.process.poll() is None
        disk.make_room()
        until(
            lambda: h.in_jsonl(out / "events.jsonl") == (h.issued(disk.path), ["finished"]), what="all of it"
        )
        assert serve.stop() == 0
    assert "Traceback" not in serve.log
    (status,) = read_status(disk.path)
    assert (status.applied, status.dead, status.lost) == (102, 0, 0)
    h.assert_sound(status.folder)


def test_a_full_target_of_a_shipper(tmp_path, disk, monkeypatch):
    from shipping_help import Following, shipped_files

    monkeypatch.setattr(shipper, "backoff_s", lambda failures: 0.05)
    source = tmp_path / "source"
    for run in range(4):
        finished(source, 300, run=f"run-{run}", segment_bytes=10_000)
    target = os.path.join(disk.path, "target")
    disk.fill(leave=4096 * 12)
    with Following(source, target) as following:
        until(lambda: following.told.texts("away"), what="a complaint")
        assert "No space left" in following.told.texts("away")[0]
        partly = shipped_files(target)
        disk.make_room()
        until(lambda: shipped_files(target) == shipped_files(source), what="all of it")
        until(lambda: following.told.texts("back"), what="the good news")
    assert 0 < len(partly) < len(shipped_files(source))
    assert following.report.exit_code == 0


# -- EIO, EMFILE, read-only ------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["append", "write", "fsync", "create", "rename", "mkdir"])
def test_a_writer_whose_disk_fails(tmp_path, fault, operation):
    """Every third operation of one kind gives EIO, in the middle of a run and at its rotations."""
    warned, count = [], [0]
    writer = make_writer(tmp_path / "spool", segment_bytes=3000, durability="always", warn=warned.append)
    write_metrics(writer, 10)

    def fail(what, path):
        if what == operation:
            count[0] += 1
            if count[0] % 3 == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    fault(fail)
    write_metrics(writer, 200, first=10)
    fault(None)
    write_metrics(writer, 10, first=1000)
    dropped = writer.dropped
    writer.append("run_end", {"status": "finished", "exit_code": 0})
    writer.close()
    ((events, how),) = streams(tmp_path / "spool").values()
    assert how == "closed"
    metrics = [event["step"] for event in events if event["type"] == "metrics"]
    assert len(metrics) == 220 - dropped
    assert metrics == sorted(set(metrics))
    assert metrics[-10:] == list(range(1000, 1010))
    assert sum(event["dropped"] for event in events if event["type"] == "gap") == dropped
    if operation == "append":
        assert dropped > 50
        assert len(warned) == 1
    if operation == "fsync":  # what is written stays, and is written and synced again
        assert count[0] > 150
        assert dropped < 20


@pytest.mark.parametrize("kind", list(SPECS))
@pytest.mark.parametrize("operation", ["commit", "write", "fsync", "create", "mkdir"])
def test_a_worker_whose_disk_fails_now_and_then(tmp_path, fault, kind, operation):
    """Every fourth operation of one kind gives EIO: nothing is lost, doubled or refused."""
    spool = tmp_path / "spool"
    for run in range(2):
        finished(spool, 60, run=f"run-{run}")
    count, failed = [0], [0]

    def fail(what, path):
        if what == operation:
            count[0] += 1
            if count[0] % 4 == 0 and failed[0] < 25:
                failed[0] += 1
                if what == "commit":
                    raise sqlite3.OperationalError("disk I/O error")
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    receiver = load_receiver(SPECS[kind].format(tmp_path), {})
    inner = receiver.deliver
    receiver.deliver = lambda batch: (fault(fail), inner(batch))[1]  # from the first batch on
    done = h.deliver(spool, receiver, passes=2000)
    fault(None)
    assert failed[0] > 0 or operation == "mkdir" or (operation, kind) == ("create", "jsonl")
    assert done.drained, done.said
    assert (done.dead, done.lost) == (0, 0), done.said
    assert found_in(kind, tmp_path) == Counter(dict.fromkeys(range(60), 2))
    if kind == "wandb":
        assert h.exits_in_wandb(tmp_path / "wandb") == [0, 0]
    h.assert_sound(done.folder)


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_checkpoint_that_the_disk_refuses_makes_no_dead_letters(tmp_path, fault, kind):
    """A receiver commits its state in the middle of a call (a new file, an end): that is our trouble, not the event's."""
    finished(tmp_path / "spool", 40)
    receiver = load_receiver(SPECS[kind].format(tmp_path), {})
    refused = []

    def failing(call, most):
        def full(operation, path):
            if operation == "commit" and len(refused) < most:
                refused.append(path)
                raise sqlite3.OperationalError("database or disk is full")

        def inner(what):
            fault(full)
            try:
                return call(what)
            finally:
                fault(None)

        return inner

    receiver.deliver = failing(receiver.deliver, 3)
    receiver.set_status = failing(receiver.set_status, 6)
    done = h.deliver(tmp_path / "spool", receiver, passes=1000)
    assert len(refused) == (6 if kind == "wandb" else 3)
    assert (done.drained, done.dead, done.lost) == (True, 0, 0), done.said
    assert found_in(kind, tmp_path) == Counter(dict.fromkeys(range(40), 1))
    if kind == "wandb":
        assert h.exits_in_wandb(tmp_path / "wandb") == [0]


def test_damage_is_kept_aside_before_anything_is_delivered(tmp_path, fault):
    """A disk that refuses the quarantine: the worker does not end over it, and delivers nothing twice."""
    folder = finished(tmp_path / "spool", 20)
    finished(tmp_path / "spool", 20, run="run-2")
    path = os.path.join(folder, layout.segment_name(1))
    with open(path, "r+b") as file:
        data = file.read()
        file.seek(data.index(b'"step":7'))
        file.write(b"x")
    refuse, switch = h.refuse("create", code=errno.ENOSPC, where="quarantine")
    fault(refuse)

    def on_wait(number):
        if number == 30:
            switch["on"] = False

    done = h.deliver(
        tmp_path / "spool", SPECS["jsonl"].format(tmp_path), patience_s=1.0, on_wait=on_wait, passes=400
    )
    assert switch["count"] > 1
    assert done.drained
    assert (done.dead, done.lost) == (0, 1)
    assert found_in("jsonl", tmp_path) == Counter({step: 2 - (step == 7) for step in range(20)})


EMFILE_WRITER = """
import os, resource, sys
sys.path.insert(0, sys.argv[2])
from spool_help import make_writer, write_metrics
writer = make_writer(sys.argv[1], segment_bytes=2000, durability="process", warn=lambda text: print(text, flush=True))
write_metrics(writer, 10)
held = []
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 12,) * 2)
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
write_metrics(writer, 200, first=10)
print("dropped", writer.dropped, flush=True)
for fd in held:
    os.close(fd)
write_metrics(writer, 10, first=1000)
writer.append("run_end", {"status": "finished", "exit_code": 0})
writer.close()
print("dropped", writer.dropped, flush=True)
"""


def test_a_writer_without_file_descriptors(tmp_path):
    """It cannot open its next segment: a gap, and on it goes when descriptors are free."""
    process = python(EMFILE_WRITER, tmp_path, os.path.dirname(__file__))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Too many open files" in out
    ((events, how),) = streams(tmp_path).values()
    dropped = int(out.split()[-1])
    assert how == "closed"
    assert 0 < dropped < 200
    steps = [event["step"] for event in events if event["type"] == "metrics"]
    assert len(steps) == 220 - dropped
    assert steps[-10:] == list(range(1000, 1010))
    assert sum(event["dropped"] for event in events if event["type"] == "gap") == dropped


EMFILE_WORKER = """
import os, resource, sys
sys.path.insert(0, sys.argv[3])
import schedule_help as h
from spoolagent.serving.registry import load_receiver
receiver = load_receiver(sys.argv[2], {})
inner, held, waits = receiver.deliver, [], []
def take():
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
def deliver(batch):
    if len(waits) < 10:
        take()
    return inner(batch)
def on_wait(number):
    waits.append(number)
    if len(waits) == 10:
        for fd in held:
            os.close(fd)
receiver.deliver = deliver
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30,) * 2)
done = h.deliver(sys.argv[1], receiver, on_wait=on_wait, passes=1000)
print("result", done.drained, done.dead, done.lost, len(waits) >= 10, flush=True)
"""


@pytest.mark.parametrize("kind", ["jsonl", "tensorboard"])
def test_a_worker_without_file_descriptors(tmp_path, kind):
    spool = tmp_path / "spool"
    for run in range(3):
        finished(spool, 60, run=f"run-{run}")
    process = python(EMFILE_WORKER, spool, SPECS[kind].format(tmp_path), os.path.dirname(__file__))
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err + out
    assert out.splitlines()[-1] == "result True 0 0 True", out
    assert found_in(kind, tmp_path) == Counter(dict.fromkeys(range(60), 3))


def test_a_target_that_turns_read_only(tmp_path, disk):
    """The kernel remounts a failing disk read-only; somebody mends it."""
    from shipping_help import shipped_files

    spool = tmp_path / "spool"
    create_spool(str(spool))
    writer = make_writer(spool)
    write_metrics(writer, 50)
    out, copy = os.path.join(disk.path, "out"), os.path.join(disk.path, "copy")
    to = f"jsonl:{out}/events.jsonl"
    os.mkdir(out)
    Path(
        out, ".spoolagent"
    ).touch()  # no mirror there: a disk with a file open to be written cannot be remounted
    with (
        h.Service(tmp_path, "serve", "serve", "--spool", spool, "--to", to) as serve,
        h.Service(tmp_path, "ship", "ship", "--spool", spool, "--to", copy) as ship,
    ):
        until(lambda: h.in_jsonl(f"{out}/events.jsonl")[0] == h.issued(spool), what="the first events")
        until(lambda: shipped_files(copy) == shipped_files(spool), what="the first bytes")
        until(lambda: _remounts(disk), what="a moment in which nobody writes")
        write_metrics(writer, 50, first=50)
        until(lambda: "Read-only file system" in serve.log, what="serve's complaint")
        until(lambda: "Read-only file system" in ship.log, what="ship's complaint")
        disk.remount("rw")
        writer.append("run_end", {"status": "finished", "exit_code": 0})
        writer.close()
        until(
            lambda: h.in_jsonl(f"{out}/events.jsonl") == (h.issued(spool), ["finished"]),
            what="all the events",
        )
        until(lambda: shipped_files(copy) == shipped_files(spool), what="all the bytes")
        assert (serve.stop(), ship.stop()) == (0, 0)
    assert "Traceback" not in serve.log + ship.log


def _remounts(disk):
    import subprocess

    try:
        disk.remount("ro")
    except subprocess.CalledProcessError:
        return False
    return True


def test_a_spool_that_is_read_only_when_training_begins(disk):
    create_spool(disk.path)
    disk.remount("ro")
    warned = []
    writer = make_writer(disk.path, warn=warned.append)
    write_metrics(writer, 20)
    assert (writer.dropped, len(warned)) == (20, 1)
    assert "Read-only file system" in warned[0]
    disk.remount("rw")
    until(lambda: _logs(writer), what="an event that is taken")
    writer.close()
    ((events, how),) = streams(disk.path).values()
    assert how == "closed"
    assert [event["type"] for event in events] == ["run_start", "gap", "metrics"]
    assert events[1]["dropped"] == writer.dropped >= 20
