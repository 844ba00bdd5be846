"""A stream's end, and its file descriptor: nothing goes behind the seal, or into somebody else's file."""

import json
import os
import threading
import time

import pytest
from spool_help import make_writer, python, streams, until, write_metrics
from test_stream_writer import fsck_errors, only


@pytest.mark.parametrize("durability", ["process", "interval", "always", "queued"])
def test_a_close_while_other_threads_log(tmp_path, durability):
    """What came before the seal is there, what came after it is counted, and the next files stay as they are."""
    warned = []
    for round_ in range(5):
        spool = tmp_path / f"s{round_}"
        writer = make_writer(spool, durability=durability, warn=warned.append)
        done, logged = threading.Event(), [0, 0]

        def log(index, writer=writer, done=done, logged=logged):
            while not done.is_set():
                write_metrics(writer, 1, logged[index])
                logged[index] += 1
                if logged[index] % 20 == 0:
                    time.sleep(0.001)  # the others want the interpreter, too

        threads = [threading.Thread(target=log, args=(index,)) for index in (0, 1)]
        for thread in threads:
            thread.start()
        until(lambda logged=logged: min(logged) >= 20)
        writer.close()
        others = [open(tmp_path / f"other {round_} {number}", "wb") for number in range(4)]
        more = sum(logged) + 50
        until(lambda logged=logged, more=more: sum(logged) >= more)
        done.set()
        for thread in threads:
            thread.join()
        assert [os.fstat(other.fileno()).st_size for other in others] == [0, 0, 0, 0]
        for other in others:
            other.close()
        events, how = only(spool)
        assert how == "closed" and fsck_errors(spool) == []
        assert sum(e["type"] == "metrics" for e in events) + writer.dropped == sum(logged)
        assert writer.dropped >= 50
    assert warned and all("the run has ended" in line for line in warned)


def test_descriptors_that_somebody_closed_are_noticed(tmp_path):
    """As a daemon does. What goes on is in a segment of its own; whoever has the number now keeps it."""
    writer = make_writer(tmp_path / "s", durability="process")
    write_metrics(writer, 3)
    number = writer._segment.fd
    os.close(number)
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    if other != number:
        os.dup2(other, number)
    try:
        writer.tick()
        write_metrics(writer, 5, 3)
        writer.close()
        assert os.fstat(number).st_size == 0, "written into, or cut"
    finally:
        os.close(other)
        if other != number:
            os.close(number)
    events, how = only(tmp_path / "s")
    assert how == "closed" and [e["step"] for e in events[1:]] == list(range(8))
    assert fsck_errors(tmp_path / "s") == []


def test_a_descriptor_that_was_closed_and_fails_a_write(tmp_path):
    """Even before the keeper looks: its number is nobody's, the write is refused, and the disk is not to blame."""
    writer = make_writer(tmp_path / "s", durability="process", warn=lambda _: None)
    write_metrics(writer, 3)
    os.close(writer._segment.fd)
    write_metrics(writer, 5, 3)
    writer.close()
    events, how = only(tmp_path / "s")
    assert how == "closed" and writer.dropped <= 1
    assert [e["step"] for e in events if e["type"] == "metrics"][-4:] == [4, 5, 6, 7]


def test_two_exceptions_in_one_call_keep_seqs_right(tmp_path, monkeypatch):
    """The second one lands while the first is being dealt with: what the file holds decides."""
    from spoolagent.format import durable
    from spoolagent.format.segment import Segment

    writer = make_writer(tmp_path / "s", durability="process")
    write_metrics(writer, 3)

    def written_then_interrupted(fd, data):
        os.write(fd, data)
        raise KeyboardInterrupt

    def interrupted_again(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(durable, "append", written_then_interrupted)
        patch.setattr(Segment, "_reconcile", interrupted_again)
        with pytest.raises(KeyboardInterrupt):
            write_metrics(writer, 1, 3)
    write_metrics(writer, 3, 4)
    writer.close()
    events, how = only(tmp_path / "s")
    assert how == "closed" and [e["seq"] for e in events] == list(range(1, 9))
    assert [e["step"] for e in events[1:]] == list(range(7))
    assert fsck_errors(tmp_path / "s") == []


SIGNALS = """
import random, signal, sys
from spoolagent.writers import Run
run = Run(run="run-1", spool=sys.argv[1], site="site-1")
armed = False
class Interrupted(Exception): pass
def handle(*_):
    if armed: raise Interrupted
signal.signal(signal.SIGALRM, handle)
count, seen, acknowledged = 0, 0, []
while seen < 1500:
    count += 1
    try:
        armed = True
        # One exception somewhere in the call, and others while that is on its way out.
        signal.setitimer(signal.ITIMER_REAL, 1e-6 + random.random() * 2e-5, 1.5e-5)
        run.log({"m": count}, step=count)
        armed = False
        acknowledged.append(count)
    except (Interrupted, SystemError):  # Debian's Python 3.11.2 makes the second of the first in os.fstat
        armed = False
        seen += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
run.finish()
print(acknowledged)
"""


def test_a_storm_of_exceptions_from_a_signal_handler(tmp_path):
    process = python(SIGNALS, str(tmp_path / "s"))
    acknowledged, said = process.communicate()
    assert process.returncode == 0, said
    ((events, how),) = streams(tmp_path / "s").values()
    logged = [e["step"] for e in events if e["type"] == "metrics"]
    assert len(logged) == len(set(logged))
    assert set(logged) >= set(json.loads(acknowledged))
    assert how == "closed" and fsck_errors(tmp_path / "s") == []
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
