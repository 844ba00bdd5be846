"""The stream writer: format on disk, rotation, failures of the disk, threads, forks, signals."""

import contextlib
import errno
import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading

import pytest
from plain_reader import read_stream
from spool_help import make_writer, python, streams, until, write_metrics
from writer_help import read_spool

from spoolagent.errors import NameRefused, UsageError
from spoolagent.format import attempts, layout, live
from spoolagent.format.durable import set_fault
from spoolagent.format.ends import DeathWatch, end_dead_stream
from spoolagent.format.events import check
from spoolagent.format.names import is_legal, new_run_id
from spoolagent.format.reader import StreamReader
from spoolagent.format.stream import StreamWriter
from spoolagent.fsck import fsck


@pytest.fixture
def fault():
    yield set_fault
    set_fault(None)


def only(spool):
    found = streams(spool)
    assert len(found) == 1
    return next(iter(found.values()))


def test_a_stream_reads_back_with_the_plain_reader(tmp_path):
    writer = make_writer(tmp_path / "s", start={"name": "x"})
    write_metrics(writer, 10)
    writer.close()
    events, end = only(tmp_path / "s")
    assert end == "closed"
    assert events[0]["type"] == "run_start" and events[0]["name"] == "x"
    assert [(e["step"], e["metrics"]["loss"]) for e in events[1:]] == [(i, i / 8) for i in range(10)]
    assert all(a["time"] <= b["time"] for a, b in itertools.pairwise(events))


@pytest.mark.parametrize("durability", ["process", "interval", "always", "queued"])
def test_every_durability_writes_the_same_stream(tmp_path, durability):
    writer = make_writer(tmp_path / "s", durability=durability)
    write_metrics(writer, 500)
    writer.close()
    events, end = only(tmp_path / "s")
    assert end == "closed" and [e["step"] for e in events[1:]] == list(range(500))


def test_always_syncs_before_it_returns_and_process_does_not(tmp_path, fault):
    for durability, expected in (("always", True), ("process", False)):
        writer = make_writer(tmp_path / durability, durability=durability)
        writer.open()
        seen = []
        fault(lambda operation, path, seen=seen: seen.append(operation))
        write_metrics(writer, 1)
        fault(None)
        assert ("fsync" in seen) is expected
        writer.close()


def test_rotation_keeps_the_chain(tmp_path):
    writer = make_writer(tmp_path / "s", segment_bytes=2000)
    write_metrics(writer, 200)
    writer.close()
    (key,) = streams(tmp_path / "s")
    assert len(layout.list_segments(layout.stream_dir(str(tmp_path / "s"), key))) > 5
    assert [e["seq"] for e in only(tmp_path / "s")[0]] == list(range(1, 202))


def test_rotation_by_age(tmp_path):
    writer = make_writer(tmp_path / "s", segment_age_s=0.0)
    write_metrics(writer, 3)
    writer.tick()
    write_metrics(writer, 3, 3)
    writer.close()
    (key,) = streams(tmp_path / "s")
    assert len(layout.list_segments(layout.stream_dir(str(tmp_path / "s"), key))) == 2


def test_everything_is_private(tmp_path):
    old = os.umask(0)
    try:
        writer = make_writer(tmp_path / "s")
        write_metrics(writer, 1)
        writer.close()
    finally:
        os.umask(old)
    for folder, _, names in os.walk(tmp_path / "s"):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        for name in names:
            assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600


def test_a_full_disk_drops_counts_and_leaves_a_gap(tmp_path, fault):
    warnings = []
    writer = make_writer(tmp_path / "s", warn=warnings.append)
    write_metrics(writer, 3)

    def full(operation, path):
        if operation == "append":
            raise OSError(errno.ENOSPC, "No space left on device", path)

    fault(full)
    write_metrics(writer, 4, 3)
    fault(None)
    write_metrics(writer, 2, 7)
    writer.close()
    events, end = only(tmp_path / "s")
    assert end == "closed" and writer.dropped == 4 and len(warnings) == 1
    assert [e.get("step") for e in events] == [None, 0, 1, 2, None, 7, 8]
    gap = events[4]
    assert (
        (gap["type"], gap["dropped"]) == ("gap", 4)
        and "No space" in gap["reason"]
        and gap["from"] <= gap["to"]
    )


@pytest.mark.parametrize("durability", ["process", "interval", "queued"])
@pytest.mark.parametrize("logged_before", [0, 3])
def test_what_no_gap_could_record_is_told_at_the_end(tmp_path, fault, durability, logged_before):
    """The disk refuses until the process ends: the terminal is the only place that is left."""
    warnings = []
    writer = make_writer(tmp_path / "s", durability=durability, warn=warnings.append)
    write_metrics(writer, logged_before)
    writer.flush()

    def full(operation, path):
        if operation in ("append", "mkdir"):
            raise OSError(errno.ENOSPC, "No space left on device", path)

    fault(full)
    write_metrics(writer, 4, 3)
    writer.close()
    why, told = warnings
    assert "No space left on device" in why
    who = f"site-1/run-1/{writer.writer}"
    assert told == f"4 events of {who} were dropped, and the spool took no record of it."


def test_half_a_line_is_cut_back(tmp_path, monkeypatch):
    writer = make_writer(tmp_path / "s")
    write_metrics(writer, 2)
    calls = []

    def short(fd, data):
        calls.append(len(data))
        return os.write(fd, data[: len(data) // 2]) if len(calls) == 1 else os.write(fd, data)

    monkeypatch.setattr("spoolagent.format.durable.append", short)
    write_metrics(writer, 3, 2)
    writer.close()
    events, end = only(tmp_path / "s")
    assert end == "closed" and [e.get("step") for e in events] == [None, 0, 1, None, 3, 4]


def test_a_line_that_cannot_be_cut_back_begins_a_new_segment(tmp_path, monkeypatch, fault):
    writer = make_writer(tmp_path / "s")
    write_metrics(writer, 2)
    state = {"left": 1}

    def short(fd, data):
        if state["left"]:
            state["left"] = 0
            return os.write(fd, data[: len(data) // 2])
        return os.write(fd, data)

    def no_truncate(operation, path):
        if operation == "truncate":
            raise OSError(errno.EIO, "Input/output error", path)

    fault(no_truncate)
    monkeypatch.setattr("spoolagent.format.durable.append", short)
    write_metrics(writer, 2, 2)
    writer.close()
    key = next(layout.iter_streams(str(tmp_path / "s")))
    folder = layout.stream_dir(str(tmp_path / "s"), key)
    assert layout.list_segments(folder) == [1, 4]
    assert (
        open(os.path.join(folder, layout.segment_name(1)), "rb").read()[-1:] != b"\n"
    )  # the torn bytes stay
    events, end = read_stream(folder)  # checks prev over the torn bytes, too
    assert end == "closed" and [e["type"] for e in events[3:]] == ["gap", "metrics"]


def refuse_fsyncs(times):
    """A fault: so many fsyncs of segments fail."""
    left = [times]

    def broken(operation, path):
        if operation == "fsync" and path.endswith(".jsonl") and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error", path)

    return broken


@pytest.mark.parametrize("failures", [1, 2, 7, 1000])
@pytest.mark.parametrize("durability", ["always", "interval", "process", "queued"])
def test_what_a_reader_may_have_seen_keeps_its_seq_when_an_fsync_fails(tmp_path, fault, durability, failures):
    """A reader's own fsync can succeed after the writer's failed: the kernel tells of an error once."""
    warnings, seen = [], set()
    writer = make_writer(tmp_path / "s", durability=durability, warn=warnings.append, segment_bytes=700)

    def look():
        for path in tmp_path.rglob("*.jsonl"):
            for line in path.read_bytes().splitlines(keepends=True):
                if line.startswith(b'{"seq":') and line.endswith(b'"}\n'):
                    seen.add((int(line[7 : line.index(b",")]), line))

    broken = refuse_fsyncs(failures)

    def fault_and_look(operation, path):
        if operation in ("fsync", "truncate", "append", "write"):
            look()
        broken(operation, path)

    write_metrics(writer, 1)
    writer.flush()
    fault(fault_and_look)
    for step in range(1, 12):
        write_metrics(writer, 1, step)
        if step % 3 == 0:
            writer.flush()
    writer.close()
    fault(None)
    look()
    assert [e["step"] for e in only(tmp_path / "s")[0][1:]] == list(range(12))
    assert writer.dropped == 0 and sorted(seq for seq, _ in seen) == list(range(1, 14))
    assert len(warnings) <= 1 and all("power cut" in text for text in warnings)


def test_after_a_failed_fsync_the_bytes_are_written_again(tmp_path, fault):
    """Only a new write makes the kernel try again: an fsync alone reports success, and nothing is on the disk."""
    warnings, written = [], []
    writer = make_writer(tmp_path / "s", durability="always", warn=warnings.append)
    write_metrics(writer, 1)
    broken = refuse_fsyncs(1)

    def watch(operation, path):
        if operation in ("write", "fsync") and path.endswith(".jsonl"):
            written.append(operation)
        broken(operation, path)

    fault(watch)
    write_metrics(writer, 1, 1)
    assert written == ["fsync", "write", "fsync"] and warnings == []
    write_metrics(writer, 1, 2)
    fault(None)
    writer.close()
    assert [e.get("step") for e in only(tmp_path / "s")[0]] == [None, 0, 1, 2]


def test_a_disk_that_never_syncs_gets_few_segments(tmp_path, fault):
    warnings = []
    writer = make_writer(tmp_path / "s", durability="always", warn=warnings.append)
    write_metrics(writer, 1)
    fault(refuse_fsyncs(10**9))
    write_metrics(writer, 300, 1)
    fault(None)
    writer.tick()  # by and by the disk does: nothing is left to be forgotten
    assert not writer._dirty and len(warnings) == 1
    writer.close()
    (key,) = streams(tmp_path / "s")
    assert len(layout.list_segments(layout.stream_dir(str(tmp_path / "s"), key))) < 30
    assert [e["step"] for e in only(tmp_path / "s")[0][1:]] == list(range(301))


@pytest.mark.parametrize("kind", ["plain", "gap"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_whole_line_counts_whatever_the_write_said(tmp_path, monkeypatch, error, kind):
    writer = make_writer(tmp_path / "s", warn=lambda _: None)
    write_metrics(writer, 1)
    if kind == "gap":
        writer.drop("the test says so")
    real, calls = os.write, []

    def written_all_the_same(fd, data):
        calls.append(data)
        real(fd, data)
        if len(calls) == 1:
            raise error
        return len(data)

    monkeypatch.setattr("spoolagent.format.durable.append", written_all_the_same)
    try:
        write_metrics(writer, 1, 1)
    except KeyboardInterrupt:
        pass
    write_metrics(writer, 1, 2)
    writer.close()
    events = only(tmp_path / "s")[0]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    steps = [e["step"] for e in events if e["type"] == "metrics"]
    gaps = [e["dropped"] for e in events if e["type"] == "gap"]
    interrupted = kind == "gap" and isinstance(error, KeyboardInterrupt)  # before its own event was written
    assert steps == ([0, 2] if interrupted else [0, 1, 2])
    assert gaps == ([1] if kind == "gap" else [])


def test_a_full_segment_that_cannot_be_read_back_stops_nobody(tmp_path, fault, monkeypatch):
    """The writer needs its hash for the next header; then the one that it kept has to do."""
    writer = make_writer(tmp_path / "s", warn=lambda _: None)
    write_metrics(writer, 3)
    fault(refuse_fsyncs(2))
    writer.flush()
    fault(None)
    real = open

    def unreadable(path, *rest, **named):
        if str(path).endswith(".jsonl"):
            raise OSError(errno.EIO, "Input/output error", path)
        return real(path, *rest, **named)

    monkeypatch.setattr("builtins.open", unreadable)
    write_metrics(writer, 3, 3)
    monkeypatch.undo()
    writer.close()
    assert writer.dropped == 0
    assert [e["step"] for e in only(tmp_path / "s")[0][1:]] == list(range(6))


def test_an_unwritable_spool_never_raises_and_recovers(tmp_path, fault, monkeypatch):
    monkeypatch.setattr("spoolagent.format.stream._RETRY_S", 0.0)
    (tmp_path / "s").write_text("a file where the spool should be")
    warnings = []
    writer = make_writer(tmp_path / "s", warn=warnings.append)
    write_metrics(writer, 3)
    assert writer.dropped == 3 and len(warnings) == 1 and "a part of it is a file" in warnings[0]
    (tmp_path / "s").unlink()
    write_metrics(writer, 1, 3)
    writer.close()
    events, _ = only(tmp_path / "s")
    assert [e["type"] for e in events] == ["run_start", "gap", "metrics"] and events[1]["dropped"] == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
def test_interrupt_between_write_and_bookkeeping_keeps_seqs_right(tmp_path, monkeypatch, error):
    """TimeoutError is what a signal handler raises, and an OSError."""
    writer = make_writer(tmp_path / "s")
    write_metrics(writer, 1)
    real, state = os.write, {"n": 0}

    def interrupted(fd, data):
        written = real(fd, data)
        state["n"] += 1
        if state["n"] == 1:
            raise error
        return written

    monkeypatch.setattr("spoolagent.format.durable.append", interrupted)
    with contextlib.suppress(KeyboardInterrupt):
        write_metrics(writer, 1, 1)
    write_metrics(writer, 1, 2)
    writer.close()
    events = only(tmp_path / "s")[0]
    assert [e["step"] for e in events if e["type"] == "metrics"] == [0, 1, 2]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))


def test_interrupt_while_the_running_hash_is_brought_up_to_date(tmp_path):
    writer = make_writer(tmp_path / "s")
    write_metrics(writer, 1)
    segment = writer._segment

    class Interrupted:
        def __init__(self, sha):
            self.sha, self.hexdigest = sha, sha.hexdigest

        def update(self, data):
            self.sha.update(data)
            segment._sha = self.sha
            raise KeyboardInterrupt

    segment._sha = Interrupted(segment._sha)
    with pytest.raises(KeyboardInterrupt):
        write_metrics(writer, 2000, 1)  # enough bytes for the hash to be brought up to date
    write_metrics(writer, 2000, 3000)
    writer.close()
    assert fsck_errors(tmp_path / "s") == []


@pytest.mark.parametrize("places", [["_takes_over"], ["_takes_over", "out_of_the_way"]])
def test_interrupts_while_a_segment_without_events_is_replaced(tmp_path, monkeypatch, places):
    """What replaces it has its name, too, and comes after the same segment."""
    writer = make_writer(tmp_path / "s")
    write_metrics(writer, 2)
    writer._segment.broken = True  # as an interrupted call leaves it
    assert writer._ready().first_seq == 4
    writer._segment.broken, writer._fast = True, None
    owners = {
        "_takes_over": "spoolagent.format.segment.Segment.",
        "out_of_the_way": "spoolagent.format.durable.",
    }
    for place in places:
        with monkeypatch.context() as patch:
            patch.setattr(owners[place] + place, interrupt)
            with pytest.raises(KeyboardInterrupt):
                write_metrics(writer, 1, 9)
    write_metrics(writer, 2, 2)
    writer.close()
    assert fsck_errors(tmp_path / "s") == []
    events = only(tmp_path / "s")[0]
    assert [event["step"] for event in events if event["type"] == "metrics"] == [0, 1, 2, 3]


def test_an_interrupt_between_two_segments_and_a_pause_after_it(tmp_path, monkeypatch):
    """A Ctrl-C in a notebook, and the next cell a minute later: the keeper has closed the full segment meanwhile."""
    writer = make_writer(tmp_path / "s")
    for round_ in range(2):
        write_metrics(writer, 2, 2 * round_)
        writer._segment.broken, writer._fast = True, None
        with monkeypatch.context() as patch:
            patch.setattr(StreamWriter, "_next_segment", interrupt)
            with pytest.raises(KeyboardInterrupt):
                write_metrics(writer, 1, 9)
        writer.tick()
    write_metrics(writer, 1, 4)
    writer.close()
    assert fsck_errors(tmp_path / "s") == []
    events = only(tmp_path / "s")[0]
    assert [event["step"] for event in events if event["type"] == "metrics"] == [0, 1, 2, 3, 4]


def test_an_interrupt_does_not_keep_the_queue_locked(tmp_path):
    writer = make_writer(tmp_path / "s", durability="queued")

    class Interrupted(threading.Condition):
        """A signal is noticed at the beginning of every function of Python's, this one, too."""

        def __exit__(self, *args):
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            return super().__exit__(*args)

    queue = writer._queue
    queue._changed = Interrupted(queue._changed._lock)
    with contextlib.suppress(KeyboardInterrupt):
        write_metrics(writer, 3)
    until(lambda: writer.seq == 4, what="the queue's thread to write")  # the run's start, too
    writer.close()
    assert len(only(tmp_path / "s")[0]) == 4


def test_an_interrupt_while_the_queues_thread_starts_makes_no_second_one(tmp_path, monkeypatch):
    writer = make_writer(tmp_path / "s", durability="queued")
    start = threading.Thread.start

    def interrupted(thread):
        start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_metrics(writer, 1)
    write_metrics(writer, 1, 1)
    second = writer._queue._thread
    until(lambda: not second.is_alive(), what="the end of the second thread")
    write_metrics(writer, 1, 2)
    writer.close()
    assert [event["step"] for event in only(tmp_path / "s")[0] if event["type"] == "metrics"] == [0, 1, 2]


def interrupt(*_):
    raise KeyboardInterrupt


def fsck_errors(spool):
    return [finding.message for finding in fsck(str(spool)) if finding.severity == "error"]


def test_a_signal_handler_may_log_in_the_middle_of_a_call(tmp_path, monkeypatch):
    writer = make_writer(tmp_path / "s")
    write_metrics(writer, 1)
    real, state = os.write, {"n": 0}

    def signalled(fd, data):
        state["n"] += 1
        if state["n"] == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return real(fd, data)

    old = signal.signal(signal.SIGUSR1, lambda *_: write_metrics(writer, 1, 100))
    monkeypatch.setattr("spoolagent.format.durable.append", signalled)
    try:
        write_metrics(writer, 1, 1)
    finally:
        signal.signal(signal.SIGUSR1, old)
    writer.close()
    assert [e.get("step") for e in only(tmp_path / "s")[0]] == [None, 0, 1, 100]


def test_threads_share_a_stream(tmp_path):
    writer = make_writer(tmp_path / "s", segment_bytes=20_000)
    threads = [threading.Thread(target=write_metrics, args=(writer, 500, 1000 * n)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    events, _ = only(tmp_path / "s")
    assert sorted(e["step"] for e in events[1:]) == sorted(1000 * n + i for n in range(8) for i in range(500))
    for n in range(8):  # each thread's own order is kept
        mine = [e["step"] for e in events[1:] if e["step"] // 1000 == n]
        assert mine == sorted(mine)


def test_a_forked_child_gets_a_stream_of_its_own(tmp_path):
    writer = make_writer(tmp_path / "s")
    write_metrics(writer, 2)
    child = os.fork()
    if child == 0:
        write_metrics(writer, 3, 10)
        os._exit(0)
    os.waitpid(child, 0)
    write_metrics(writer, 1, 2)
    writer.close()
    found = streams(tmp_path / "s")
    steps = sorted([e["step"] for e in events[1:]] for events, _ in found.values())
    assert steps == [[0, 1, 2], [10, 11, 12]]


def test_a_fork_without_a_log_call_makes_no_stream_and_frees_no_lock(tmp_path):
    writer = make_writer(tmp_path / "s")
    write_metrics(writer, 1)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    key = next(layout.iter_streams(str(tmp_path / "s")))
    folder = layout.stream_dir(str(tmp_path / "s"), key)
    probe = python(
        "import sys; from spoolagent.format import live; print(live.is_locked(sys.argv[1]))", folder
    )
    assert probe.communicate()[0].strip() == "True"
    writer.close()
    assert len(streams(tmp_path / "s")) == 1


WRITE = """
import sys, os
sys.path.insert(0, sys.argv[2])
from spool_help import make_writer, write_metrics
w = make_writer(sys.argv[1], segment_bytes=3000)
write_metrics(w, 100)
print("ready", flush=True)
sys.stdin.read() if len(sys.argv) > 3 else None
os.kill(os.getpid(), 9)
"""


def test_the_agent_ends_a_killed_writers_stream_once(tmp_path):
    process = python(WRITE, tmp_path / "s", os.path.dirname(__file__))
    process.communicate()
    key = next(layout.iter_streams(str(tmp_path / "s")))
    folder = layout.stream_dir(str(tmp_path / "s"), key)
    before = {
        n: open(os.path.join(folder, n), "rb").read() for n in os.listdir(folder) if n.endswith(".jsonl")
    }
    assert end_dead_stream(folder, DeathWatch())
    (side,) = [n for n in os.listdir(folder) if n.endswith(".end")]
    content = open(os.path.join(folder, side), "rb").read()
    assert end_dead_stream(folder, DeathWatch())
    assert open(os.path.join(folder, side), "rb").read() == content
    assert {n: open(os.path.join(folder, n), "rb").read() for n in before} == before
    events, end = read_stream(folder)
    assert end == "dead" and [e["step"] for e in events[1:]] == list(range(100))


def test_torn_bytes_stay_and_are_not_in_the_end(tmp_path):
    process = python(WRITE, tmp_path / "s", os.path.dirname(__file__))
    process.communicate()
    key = next(layout.iter_streams(str(tmp_path / "s")))
    folder = layout.stream_dir(str(tmp_path / "s"), key)
    last = os.path.join(folder, layout.segment_name(layout.list_segments(folder)[-1]))
    with open(last, "ab") as file:
        file.write(b'{"seq":102,"time":1,"ty')
    assert end_dead_stream(folder, DeathWatch())
    events, end = read_stream(folder)
    assert end == "dead" and len(events) == 101
    assert open(last, "rb").read().endswith(b'"ty')


def test_a_living_writer_of_another_process_is_left_alone(tmp_path):
    import subprocess
    import sys

    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(tmp_path / "s"), os.path.dirname(__file__), "wait"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    key = next(layout.iter_streams(str(tmp_path / "s")))
    folder = layout.stream_dir(str(tmp_path / "s"), key)
    watch = DeathWatch()
    assert not end_dead_stream(folder, watch)
    assert live.is_locked(folder)
    process.stdin.close()
    process.wait()
    assert end_dead_stream(folder, watch)


def test_a_writer_of_another_host_is_timed_by_our_own_clock(tmp_path, monkeypatch):
    process = python(WRITE, tmp_path / "s", os.path.dirname(__file__))
    process.communicate()
    key = next(layout.iter_streams(str(tmp_path / "s")))
    folder = layout.stream_dir(str(tmp_path / "s"), key)
    monkeypatch.setattr(live, "host_name", lambda: "another-host")
    now = [0.0]
    watch = DeathWatch(stale_after_s=60, clock=lambda: now[0])
    assert not end_dead_stream(folder, watch)
    now[0] = 59
    assert not end_dead_stream(folder, watch)
    with open(os.path.join(folder, "LIVE"), "r+b") as file:  # it was renewed
        file.write(b'{"host":"h","boot":"b","pid":1,"time":2}')
    now[0] = 61
    assert not end_dead_stream(folder, watch)
    now[0] = 122
    assert end_dead_stream(folder, watch)


def test_attempts(tmp_path):
    spool = str(tmp_path / "s")
    assert attempts.next_attempt(spool, "site-1", "run-1", None) == 1
    first = make_writer(spool)
    write_metrics(first, 1)
    assert attempts.next_attempt(spool, "site-1", "run-1", None) == 1  # it lives: join it
    first.close()
    assert attempts.next_attempt(spool, "site-1", "run-1", None) == 2
    job = make_writer(spool, attempt=2, launch="slurm:1.0:1")
    write_metrics(job, 1)
    assert attempts.next_attempt(spool, "site-1", "run-1", "slurm:1.0:2") == 3  # requeued, whatever lingers
    job.close()
    assert attempts.next_attempt(spool, "site-1", "run-1", "slurm:1.0:1") == 2  # a rank that comes late


def test_launch_ids():
    assert attempts.launch_id({}) is None
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    assert attempts.launch_id(slurm) != attempts.launch_id({**slurm, "SLURM_RESTART_COUNT": "1"})
    elastic = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "0"}
    assert attempts.launch_id(elastic) == attempts.launch_id(dict(elastic))


@pytest.mark.parametrize("name", ["", ".x", "a/b", "../x", "a b", "x" * 129, "ä", "a\n"])
def test_illegal_names_are_refused(name):
    from spoolagent.format.names import check_name

    with pytest.raises(NameRefused):
        check_name("run", name)


def test_names_that_differ_by_case_are_refused(tmp_path):
    first = make_writer(tmp_path / "s", run="Run")
    write_metrics(first, 1)
    first.close()
    warnings = []
    second = make_writer(tmp_path / "s", run="run", warn=warnings.append)
    write_metrics(second, 1)
    second.close()
    assert "differs only by case" in warnings[0]
    assert [key.run for key in streams(tmp_path / "s")] == ["Run"]


LEVELS = ("process", "interval", "always", "queued")


@pytest.mark.parametrize("durability", LEVELS)
@pytest.mark.parametrize("first", [True, False])
def test_a_value_that_fits_in_no_line_is_a_drop_on_record(tmp_path, durability, first):
    warnings = []
    writer = make_writer(tmp_path / "s", durability=durability, warn=warnings.append)
    if not first:  # then it comes by the hot path
        writer.append("custom", {"name": "x", "data": 0})
    writer.append("custom", {"name": "x", "data": "y" * (1 << 20)})
    writer.append("custom", {"name": "x", "data": "y" * 1000})
    writer.close()
    assert writer.dropped == 1
    assert len(warnings) == 1
    events = only(tmp_path / "s")[0]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    (gap,) = (e for e in events if e["type"] == "gap")
    assert gap["dropped"] == 1
    assert gap["reason"].startswith("a custom event of 1048")
    assert [len(str(e["data"])) for e in events if e["type"] == "custom"][-1] == 1000


@pytest.mark.parametrize("durability", LEVELS)
@pytest.mark.parametrize("step", [None, 5])
def test_names_that_fit_in_no_line_are_written_in_several(tmp_path, durability, step):
    """With one time, and as one row of W&B: the last part says what the caller said of it."""
    writer = make_writer(tmp_path / "s", durability=durability, warn=pytest.fail)
    values = {f"name/{i}": i / 7 for i in range(100_000)}
    fields = {"metrics": values} if step is None else {"metrics": values, "step": step, "commit": True}
    writer.append("metrics", {"metrics": {"a": 1.0}})
    writer.append("metrics", fields)
    writer.close()
    _, _, *parts = (e for e in only(tmp_path / "s")[0] if e["type"] != "run_end")
    assert len(parts) > 2
    assert {name: value for part in parts for name, value in part["metrics"].items()} == values
    assert len({part["at"] for part in parts}) == 1
    assert {part.get("step") for part in parts} == {step}
    assert [part.get("commit") for part in parts] == [False] * (len(parts) - 1) + [fields.get("commit")]


def test_of_many_names_only_those_that_fit_nowhere_are_dropped(tmp_path):
    writer = make_writer(tmp_path / "s", warn=lambda _: None)
    texts = {"a": "x" * 600_000, "b": "y" * 600_000, "c": "z" * 1_100_000, "d": "w"}
    writer.append("param", {"params": texts, "overwrite": True})
    writer.append("tag", {"tags": dict.fromkeys(texts)})
    writer.close()
    events = only(tmp_path / "s")[0]
    params = [e for e in events if e["type"] == "param"]
    assert {name for e in params for name in e["params"]} == {"a", "b", "d"}
    assert all(e["overwrite"] for e in params)
    (gap,) = (e for e in events if e["type"] == "gap")
    assert "param event 'c' of 1100" in gap["reason"]


def test_unknown_durability_is_refused(tmp_path):
    with pytest.raises(UsageError, match="sometimes"):
        make_writer(tmp_path, durability="sometimes")


def test_the_queue_drops_rather_than_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("spoolagent.format.write_queue.MAX_EVENTS", 5)
    gate = threading.Event()
    real = StreamWriter._write_queued
    monkeypatch.setattr(StreamWriter, "_write_queued", lambda self, body: (gate.wait(), real(self, body)))
    writer = make_writer(tmp_path / "s", durability="queued", warn=lambda _: None)
    write_metrics(writer, 20)
    dropped = writer.dropped
    assert dropped >= 14
    gate.set()
    writer.close()
    events, end = only(tmp_path / "s")
    assert end == "closed"
    assert sum(e.get("dropped", 0) for e in events) == dropped
    assert sum(e["type"] == "metrics" for e in events) == 20 - dropped


def test_interval_syncs_in_the_background(tmp_path, fault):
    seen = []
    writer = make_writer(tmp_path / "s")
    writer.open()
    fault(lambda operation, path: seen.append((operation, threading.current_thread().name)))
    write_metrics(writer, 1)
    until(lambda: ("fsync", "spoolagent-keeper") in seen, 10)
    assert ("fsync", "MainThread") not in seen
    fault(None)
    writer.close()


def test_a_segment_that_fills_while_it_is_synced_stays_open_until_the_next_sync(tmp_path, monkeypatch):
    """The keeper took this segment to sync; the training thread retires it before the fsync comes."""
    warnings = []
    writer = make_writer(tmp_path / "s", segment_bytes=2000, warn=warnings.append)
    write_metrics(writer, 3)
    real = StreamWriter._finish_retired

    def slow(self, count):
        write_metrics(writer, 60, 3)
        return real(self, count)

    monkeypatch.setattr(StreamWriter, "_finish_retired", slow)
    writer.sync()
    monkeypatch.undo()
    writer.close()
    assert warnings == [] and writer.dropped == 0
    assert [e["step"] for e in only(tmp_path / "s")[0][1:]] == list(range(63))


def test_a_child_forked_before_the_stream_exists_has_one_of_its_own(tmp_path):
    """With a queue, or a disk that refuses, nothing is made at the start: parent and child would share a name."""
    writer = make_writer(tmp_path / "s", durability="queued", warn=pytest.fail)
    writer.open()
    child = os.fork()
    if child == 0:
        write_metrics(writer, 2)
        writer.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    write_metrics(writer, 3)
    writer.close()
    found = {header.role: events for header, events in read_spool(tmp_path / "s").values()}
    assert [e.type for e in found["main"]] == ["run_start"] + ["metrics"] * 3
    assert [e.type for e in found["aux"]] == ["run_start"] + ["metrics"] * 2


def test_a_queue_whose_thread_does_not_start_is_written_at_the_end(tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    writer = make_writer(tmp_path / "s", durability="queued", warn=pytest.fail)
    write_metrics(writer, 3)
    writer.close()
    assert [e["type"] for e in only(tmp_path / "s")[0]] == ["run_start"] + ["metrics"] * 3


@pytest.mark.parametrize("durability", LEVELS)
@pytest.mark.parametrize(
    ("told", "kept"),
    [(-5, 0), (-(10**19), 0), (2**63, 2**63 - 1), (2**64 - 1, 2**63 - 1), (32 * 10**18, 2**63 - 1)],
)
def test_a_clock_that_is_wrong_costs_no_event(tmp_path, monkeypatch, durability, told, kept):
    """Before 1970, after 2262, beyond 64 bits: every reader gets the nearest time that an event can have."""
    warnings = []
    monkeypatch.setattr("time.time_ns", lambda: told)
    assert is_legal(new_run_id())
    writer = make_writer(tmp_path / "s", durability=durability, warn=warnings.append)
    write_metrics(writer, 600)  # more than the reader's fast lane takes at once
    writer.close()
    monkeypatch.undo()
    assert writer.dropped == 0
    assert len(warnings) == 1
    assert "clock is wrong" in warnings[0]
    (key,) = streams(tmp_path / "s")
    chunk = StreamReader(layout.stream_dir(str(tmp_path / "s"), key), at_home=True).read()
    assert not chunk.bad
    assert len(chunk.events) == 601
    assert {event.time_ns for event in chunk.events} == {kept}
    assert {check(event) for event in chunk.events} == {None}
    assert not list(fsck(str(tmp_path / "s")))


@pytest.mark.parametrize("durability", LEVELS)
def test_a_spool_that_somebody_removed_is_begun_anew_and_what_it_held_is_on_record(tmp_path, durability):
    warnings = []
    writer = make_writer(tmp_path / "s", durability=durability, warn=warnings.append)
    write_metrics(writer, 5)
    writer.flush()
    shutil.rmtree(tmp_path / "s")
    writer.check_files()  # as the keeper does each second
    write_metrics(writer, 3)
    writer.close()
    assert writer.dropped == 5
    assert len(warnings) == 1
    events, end = only(tmp_path / "s")
    assert end == "closed"
    assert [e["type"] for e in events] == ["run_start", "gap", "metrics", "metrics", "metrics"]
    assert events[1]["dropped"] == 5
    assert "somebody removed" in events[1]["reason"]


def test_a_segment_that_somebody_removed_is_followed_by_another(tmp_path):
    """As `rsync --remove-source-files` does: the stream goes on, its missing seqs tell what is gone."""
    warnings = []
    writer = make_writer(tmp_path / "s", warn=warnings.append)
    write_metrics(writer, 5)
    (key,) = streams(tmp_path / "s")
    folder = layout.stream_dir(str(tmp_path / "s"), key)
    os.unlink(os.path.join(folder, layout.segment_name(1)))
    writer.check_files()
    write_metrics(writer, 3)
    writer.close()
    assert len(warnings) == 1
    assert writer.writer == key.writer
    chunk = StreamReader(folder, at_home=True, patience_s=0.0).read()
    assert [e.seq for e in chunk.events] == [7, 8, 9]
    assert [(lost.first, lost.last) for lost in chunk.lost] == [(1, 6)]


DAEMON = """
import fcntl, os, sys, time
from spoolagent.format import live
from spoolagent.format.stream import StreamWriter
live.RENEW_S = 0.0
writer = StreamWriter(sys.argv[1], "a", "r", dict)
writer.append("metrics", {"metrics": {"a": 1.0}})
os.closerange(3, 65536)
mine = [open(f"mine-{i}", "w+") for i in range(20)]  # they get the lowest numbers that are free
for i in range(100):
    writer.append("metrics", {"metrics": {"b": i}})
writer.tick()
print("locked", live.is_held_here(writer._dir), flush=True)
sys.stdin.readline()
writer.append("metrics", {"metrics": {"c": 1.0}})
writer.close()
for number, file in enumerate(mine):
    file.write("hello")
    file.close()
print([open(f"mine-{i}").read() for i in range(20)] == ["hello"] * 20)
"""


def test_a_daemon_that_closes_all_descriptors_keeps_its_own_files_and_its_lock(tmp_path):
    """The numbers that were ours may be anybody's: nothing is written to them, and nothing closed."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(tmp_path / "s")],
        cwd=tmp_path, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout.readline() == "locked True\n"
    (key,) = streams(tmp_path / "s")
    assert live.is_locked(layout.stream_dir(str(tmp_path / "s"), key)) is True
    said, complaint = child.communicate("\n")
    assert (said, child.returncode) == ("True\n", 0), complaint
    events, end = only(tmp_path / "s")
    assert end == "closed"
    logged = [e["metrics"] for e in events if e["type"] == "metrics"]
    assert (logged[0], logged[-1]) == ({"a": 1.0}, {"c": 1.0})
    assert sum(e.get("dropped", 0) for e in events) == 102 - len(logged) == 1
