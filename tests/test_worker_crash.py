"""After a crash the batch that was named goes first, exactly as it was: nothing may come between."""

import json
import os
from collections import Counter

import pytest
from spool_help import make_writer, write_metrics
from tb_help import without_fsync
from test_worker import Agent, Crash

from spoolagent.errors import Transient
from spoolagent.format.ends import DeathWatch, end_dead_stream
from spoolagent.receivers.jsonl import JsonLinesReceiver
from spoolagent.settings import Selection
from spoolagent.testing import MemoryReceiver, set_fault

EVERYTHING = Selection()


def finish(writer):
    writer.append("run_end", {"status": "finished", "exit_code": 0})
    writer.close()


def crash_at(point):
    """A fault that ends the worker at the point-th durable operation."""
    left = [point]

    def fault(operation, path):
        if left[0] == 0:
            raise Crash(operation)
        left[0] -= 1

    return fault


def interrupted(folder, selection, point):
    """One replay with a crash at `point`; False when it came to its end before."""
    set_fault(crash_at(point))
    try:
        Agent(folder, out(folder), selection=selection).run()
    except Crash:
        return True
    finally:
        set_fault(None)
    return False


def out(folder):
    return JsonLinesReceiver(os.path.join(folder, "out", "events.jsonl"), {})


def lines(folder):
    """How often each event stands in the JSON-lines files, and the files' names."""
    names = sorted(os.listdir(folder / "out")) if (folder / "out").exists() else []
    names = [name for name in names if name != ".spoolagent"]
    found = Counter()
    for name in names:
        for line in (folder / "out" / name).read_text().splitlines():
            data = json.loads(line)
            if "seq" in data:
                found[data["run"], data["writer"], data["seq"]] += 1
    return found, names


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Selection(runs=("run-a",)), Selection(runs=("run-b",))),
        (Selection(types=frozenset(["metrics"])), EVERYTHING),
        (EVERYTHING, Selection(types=frozenset(["param"]))),
    ],
    ids=["another run", "more types", "fewer types"],
)
def test_an_interrupted_replay_of_a_part_is_completed_by_any_other(tmp_path, first, second):
    """The bytes that the first had in hand lie in the file already; the second's own selection must not change them."""
    point = 0
    while True:
        folder = tmp_path / str(point)
        for run in ("run-a", "run-b"):
            writer = make_writer(folder, run=run)
            write_metrics(writer, 5)
            writer.append("param", {"params": {"a": 1}})
            write_metrics(writer, 4, first=5)
            finish(writer)
        with without_fsync():
            if not interrupted(folder, first, point):
                break
            for selection in (second, EVERYTHING):
                Agent(folder, out(folder), selection=selection).run()
        found, names = lines(folder)
        assert names == ["events.jsonl"], f"a file was given up after a crash at operation {point}"
        assert set(found.values()) == {1}, f"doubled after a crash at operation {point}"
        if EVERYTHING not in (first, second):
            assert found.total() == 24
        point += 1
    assert point > 20


def test_a_batch_that_was_not_taken_is_tried_again_though_an_earlier_stream_has_ended(tmp_path):
    """It waited for the earlier stream, which waited for it: for ever."""
    early, late = make_writer(tmp_path), make_writer(tmp_path)
    write_metrics(early, 3)
    write_metrics(late, 3)
    busy = [2]

    def before(batch):
        if batch.stream.key.writer == late.writer and busy[0]:
            busy[0] -= 1
            if busy[0]:
                write_metrics(early, 3, first=3)
                finish(early)
            raise Transient("not now")

    receiver = MemoryReceiver(before=before)
    Agent(tmp_path, receiver).run(passes=3000, until_drained=False)
    finish(late)
    assert {key.writer: len(held) for key, held in receiver.events.items()} == {
        early.writer: 8,
        late.writer: 4,
    }


def test_a_named_batch_goes_before_an_earlier_stream_that_has_ended(tmp_path):
    early, late = make_writer(tmp_path), make_writer(tmp_path)
    write_metrics(early, 3)
    write_metrics(late, 3)

    def crash(batch):
        if batch.stream.key.writer == late.writer:
            raise Crash

    receiver = MemoryReceiver(after=crash)
    with pytest.raises(Crash):
        Agent(tmp_path, receiver).run()
    write_metrics(early, 3, first=3)
    finish(early)
    batches = []
    receiver.after = lambda batch: batches.append((batch.stream.key.writer, batch.events[0].seq, batch.again))
    Agent(tmp_path, receiver).run()
    assert batches[0] == (late.writer, 1, True)
    assert receiver.repeats == 4


def test_a_dead_stream_that_went_on_and_then_a_crash(tmp_path):
    """Its named batch is as it was, though its cursor says that the stream has ended."""
    writer = make_writer(tmp_path)
    write_metrics(writer, 3)
    stream = tmp_path / "sites" / "site-1" / "runs" / "run-1" / writer.writer
    watch = DeathWatch()
    watch.is_dead = lambda path: True  # a writer on another machine, out of sight for a while
    assert end_dead_stream(str(stream), watch)
    receiver = MemoryReceiver()
    Agent(tmp_path, receiver).run()
    assert receiver.statuses["site-1", "run-1"].status == "killed"
    write_metrics(writer, 3, first=3)

    def crash(batch):
        raise Crash

    receiver.after = crash
    with pytest.raises(Crash):
        Agent(tmp_path, receiver).run()
    write_metrics(writer, 10, first=6)
    finish(writer)
    batches = []
    receiver.after = lambda batch: batches.append(([event.seq for event in batch.events], batch.again))
    Agent(tmp_path, receiver).run()
    assert batches[0] == ([5, 6, 7], True)
    assert receiver.statuses["site-1", "run-1"].status == "finished"
    assert sorted(receiver.events.popitem()[1]) == list(range(1, 19))


def test_a_stop_under_load_comes_to_an_end(tmp_path):
    """What is held is delivered, not what a busy writer logs meanwhile: the supervisor waits half a minute only."""
    writer = make_writer(tmp_path)
    write_metrics(writer, 3)
    batches = []

    def log_on(batch):
        batches.append([event.seq for event in batch.events])
        assert len(batches) < 50, "it never ends"
        write_metrics(writer, 1, first=batch.events[-1].seq)

    agent = Agent(tmp_path, MemoryReceiver(before=log_on), max_events=100, flush_interval_s=10.0)
    agent.run(passes=1, until_drained=False)
    assert batches == [[1, 2, 3, 4]]


def test_a_tracker_slower_than_a_writer_keeps_no_other_run_waiting(tmp_path):
    """A stream that always has a next batch must not keep new streams from being found."""
    busy, batches = make_writer(tmp_path, run="busy"), []
    write_metrics(busy, 3)

    def slow(batch):
        batches.append(batch.stream.key.run)
        agent.clock.now += 0.1
        if len(batches) == 5:
            other = make_writer(tmp_path, run="other")
            write_metrics(other, 1)
            finish(other)
        if batch.stream.key.run == "other":
            agent.passes = 1
        if len(batches) > 100:
            agent.passes = 0
        write_metrics(busy, 4, first=batch.events[-1].seq)

    receiver = MemoryReceiver(before=slow)
    agent = Agent(tmp_path, receiver)
    agent.run(until_drained=False)
    assert "other" in batches[:20]
    assert receiver.statuses["site-1", "other"].status == "finished"
