"""A writer whose call is interrupted: by a handler that logs, flushes or ends the run, by an exception, by a slow disk."""

import contextlib
import errno
import os
import resource
import shutil
import threading
import time
from types import SimpleNamespace

import pytest
from plain_reader import read_stream
from spool_help import make_writer, python, streams, write_metrics

from spoolagent.format import layout, stream, write_queue
from spoolagent.format.durable import set_fault

APPEND = "spoolagent.format.durable.append"

SCRIPT = """
import os, signal, sys, time
from spoolagent.format import durable
from spoolagent.writers import Run

when, how = sys.argv[1:]
run = Run(run="r")
run.log({"a": 0.0})

def handler(*_):
    if how == "waits":  # as long as it takes the keeper to come by, in the middle of its second
        while run.stream._sync_lock.acquire(blocking=False):
            run.stream._sync_lock.release()
            time.sleep(0.001)
    run.log({"preempted": 1.0})
    run.finish("failed", 3)
    if how == "exits":
        sys.exit(3)

def signalled(fd, line):
    durable.append = os.write
    if when == "after":
        written = os.write(fd, line)
    os.kill(os.getpid(), signal.SIGTERM)
    return written if when == "after" else os.write(fd, line)

signal.signal(signal.SIGTERM, handler)
durable.append = signalled
run.log({"a": 1.0})
print(run.dropped)
"""


def end_of(process):
    """Its exit code, output and errors; it does not outlive a test that is given up."""
    try:
        output, errors = process.communicate()
    finally:
        process.kill()
    return process.returncode, output, errors


@pytest.mark.parametrize("durability", ["interval", "process", "always"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["exits", "returns", "waits"])
def test_a_handler_may_log_and_end_the_run_in_the_middle_of_a_call(tmp_path, how, when, durability):
    spool = tmp_path / "s"
    process = python(SCRIPT, when, how, SPOOLAGENT_SPOOL=spool, SPOOLAGENT_DURABILITY=durability)
    code, output, errors = end_of(process)
    assert (code, "Traceback" in errors) == (3 if how == "exits" else 0, False)
    ((events, end),) = streams(spool).values()
    values = [e["metrics"] for e in events if e["type"] == "metrics"]
    logged = [{"a": 0.0}, {"a": 1.0}, {"preempted": 1.0}]
    assert values == (logged if when == "after" else [logged[0], logged[2]])
    assert (events[-1]["type"], events[-1]["status"], events[-1]["exit_code"]) == ("run_end", "failed", 3)
    assert end == "closed"
    if how != "exits":  # the event whose write came after the end is on record, to the caller at least
        assert output == ("0\n" if when == "after" else "1\n")


def once(monkeypatch, act, *, after=False):
    """The next append of a line calls `act`, before or after its write."""

    def acting(fd, line):
        monkeypatch.setattr(APPEND, os.write)
        written = os.write(fd, line) if after else 0
        act()
        return written or os.write(fd, line)

    monkeypatch.setattr(APPEND, acting)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("keepers", ["sync", "check_files", "tick"])
def test_neither_waits_for_the_other_with_a_lock_in_hand(tmp_path, monkeypatch, keepers):
    """The handler has the lock of the append that it interrupted, and needs the keeper's; the keeper the other way round."""
    writer = make_writer(tmp_path / "s")
    write_metrics(writer, 1)
    keeper = threading.Thread(target=getattr(writer, keepers), daemon=True)

    def end():
        keeper.start()
        while writer._sync_lock.acquire(blocking=False):
            writer._sync_lock.release()
            time.sleep(0.001)
        writer.close()

    once(monkeypatch, end, after=True)
    write_metrics(writer, 1, 1)
    keeper.join()
    ((events, _),) = streams(tmp_path / "s").values()
    assert [e.get("step") for e in events] == [None, 0, 1]
    assert (writer.closed, writer.dropped) == (True, 0)


def test_what_a_handler_logs_is_kept_when_it_raises(tmp_path, monkeypatch):
    writer = make_writer(tmp_path / "s", role="aux")
    write_metrics(writer, 1)

    def handler():
        write_metrics(writer, 1, 100)
        raise KeyboardInterrupt

    once(monkeypatch, handler)
    with pytest.raises(KeyboardInterrupt):
        write_metrics(writer, 1, 1)
    writer.close()
    ((events, end),) = streams(tmp_path / "s").values()
    assert ([e.get("step") for e in events], end) == ([None, 0, 100], "closed")


def test_a_handler_may_flush_in_the_middle_of_a_flush(tmp_path):
    writer = make_writer(tmp_path / "s", durability="process", segment_bytes=1000)
    write_metrics(writer, 60)
    full, synced = len(writer._retired), []

    def handler(operation, path):
        if operation == "fsync" and path.endswith(".jsonl"):
            synced.append(path)
            if len(synced) == 1:
                writer.flush()

    set_fault(handler)
    try:
        writer.flush()
    finally:
        set_fault(None)
    assert full > 2
    assert len(set(synced)) == full + 1
    assert writer._retired == []
    writer.close()


@contextlib.contextmanager
def no_descriptor_left():
    """No file can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("is_ours_closed", [False, True])
def test_no_seq_is_used_twice_when_descriptors_run_out_after_an_exception(
    tmp_path, monkeypatch, is_ours_closed
):
    """The exception came between a write and its count: only the file tells of it."""
    writer = make_writer(tmp_path / "s")
    write_metrics(writer, 2)
    once(monkeypatch, interrupt, after=True)
    with pytest.raises(KeyboardInterrupt):
        write_metrics(writer, 1, 2)
    if is_ours_closed:
        os.close(writer._segment.fd)
    with no_descriptor_left():
        write_metrics(writer, 1, 3)
    write_metrics(writer, 1, 4)
    writer.close()
    ((events, _),) = streams(tmp_path / "s").values()  # the reader checks each seq
    assert [(e["type"], e.get("step", e.get("dropped"))) for e in events[1:]] == [
        ("metrics", 0), ("metrics", 1), ("metrics", 2), ("gap", 1), ("metrics", 4)
    ]  # fmt: skip


def test_a_segment_is_sealed_once_when_an_exception_comes_just_after(tmp_path, monkeypatch):
    writer = make_writer(tmp_path / "s", segment_bytes=1000)
    sealed = []

    def append(fd, line):
        written = os.write(fd, line)
        if line.startswith(b'{"seal":'):
            sealed.append(line)
            if len(sealed) == 1:
                raise KeyboardInterrupt
        return written

    monkeypatch.setattr(APPEND, append)
    with pytest.raises(KeyboardInterrupt):
        write_metrics(writer, 60)
    write_metrics(writer, 60, 100)
    writer.close()
    (key,) = streams(tmp_path / "s")
    folder = layout.stream_dir(str(tmp_path / "s"), key)
    firsts = layout.list_segments(folder)
    assert len(sealed) == len(firsts) > 2
    events, end = read_stream(folder)
    assert ([e["step"] for e in events[-60:]], end) == (list(range(100, 160)), "closed")


def test_a_stream_that_is_closed_in_the_middle_of_a_tick_costs_no_error(tmp_path, monkeypatch):
    """The keeper's thread would end with it."""
    writer = make_writer(tmp_path / "s")
    write_metrics(writer, 1)
    writer._renew_at = 0.0
    calls = []

    def monotonic():
        calls.append(writer.closed)
        if len(calls) == 2:
            writer.close()
        return time.monotonic()

    monkeypatch.setattr(
        stream, "time", SimpleNamespace(monotonic=monotonic, time_ns=time.time_ns, sleep=time.sleep)
    )
    writer.tick()
    assert len(calls) >= 2
    assert writer.closed


# -- what blocks, or refuses late ------------------------------------------------------------------------------------


@contextlib.contextmanager
def hanging(writer, monkeypatch):
    """The queue's thread hangs in the write of step 1 until the gate that this yields is set."""
    gate, hangs = threading.Event(), threading.Event()

    def hang():
        hangs.set()
        gate.wait()

    once(monkeypatch, hang)
    try:
        write_metrics(writer, 1, 1)
        hangs.wait()
        yield gate
    finally:
        gate.set()


def test_queued_waits_for_nothing_while_its_thread_hangs_in_a_write(tmp_path, monkeypatch):
    monkeypatch.setattr(write_queue, "MAX_EVENTS", 3)
    writer = make_writer(tmp_path / "s", durability="queued", warn=lambda _: None)
    write_metrics(writer, 1)
    writer.flush()
    with hanging(writer, monkeypatch) as gate:
        write_metrics(writer, 3, 2)  # as many as the queue holds
        write_metrics(writer, 2, 5)  # dropped
        writer.drop("its blob was refused")
        write_metrics(writer, 1, 7)
        assert not gate.is_set()  # and here we are
    writer.close()
    ((events, end),) = streams(tmp_path / "s").values()
    assert sorted(e["step"] for e in events if e["type"] == "metrics") == [0, 1, 2, 3, 4]
    assert sum(e["dropped"] for e in events if e["type"] == "gap") == writer.dropped == 4
    assert end == "closed"


def test_a_drop_that_no_later_write_counts_is_counted_at_the_end(tmp_path, monkeypatch):
    writer = make_writer(tmp_path / "s", durability="queued", warn=lambda _: None)
    write_metrics(writer, 1)
    writer.flush()
    with hanging(writer, monkeypatch):
        writer.drop("its blob was refused")
    writer.close()
    ((events, _),) = streams(tmp_path / "s").values()
    assert [(e["dropped"], e["reason"]) for e in events if e["type"] == "gap"] == [
        (1, "its blob was refused")
    ]


def closing_fails(monkeypatch):
    """From now on close(2) frees a descriptor, and says EDQUOT of it, as NFS does."""
    real = os.close

    def close(fd):
        real(fd)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("spoolagent.format.segment.os", SimpleNamespace(**{**vars(os), "close": close}))


@pytest.mark.parametrize("durability", ["interval", "process"])
def test_what_close_says_is_told_and_ends_nothing_halfway(tmp_path, monkeypatch, durability):
    warnings = []
    writer = make_writer(tmp_path / "s", durability=durability, segment_bytes=1000, warn=warnings.append)
    write_metrics(writer, 60)
    files = {s.fd for s in (writer._segment, *writer._retired)}
    assert len(files) > 2
    closing_fails(monkeypatch)
    writer.close()
    ((_, end),) = streams(tmp_path / "s").values()
    assert (end, writer._live, writer._retired) == ("closed", None, [])
    assert not files & {int(fd) for fd in os.listdir("/proc/self/fd")}
    assert len(warnings) == 1
    assert "Disk quota exceeded" in warnings[0]


def test_all_is_synced_whatever_close_says(tmp_path, monkeypatch):
    writer = make_writer(tmp_path / "s", segment_bytes=1000, warn=lambda _: None)
    write_metrics(writer, 60)
    paths = {s.path for s in (writer._segment, *writer._retired)}
    closing_fails(monkeypatch)
    synced = set()
    set_fault(lambda operation, path: synced.add(path) if operation == "fsync" else None)
    try:
        writer.flush()
    finally:
        set_fault(None)
    assert paths <= synced
    writer.close()


def test_a_removed_stream_is_begun_anew_whatever_close_says(tmp_path, monkeypatch):
    writer = make_writer(tmp_path / "s", warn=lambda _: None)
    write_metrics(writer, 3)
    shutil.rmtree(writer._dir)
    closing_fails(monkeypatch)
    writer.check_files()
    write_metrics(writer, 1, 3)
    writer.close()
    ((events, end),) = streams(tmp_path / "s").values()
    assert [(e["type"], e.get("step", e.get("dropped"))) for e in events[1:]] == [("gap", 3), ("metrics", 3)]
    assert end == "closed"
