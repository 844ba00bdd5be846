"""Single promises of the invariants that a mutation showed to be tested by long random runs only."""

import os

import pytest
import shipping_help as h
from spool_help import make_writer, write_metrics
from test_worker import Agent, assert_all_there

from spoolagent.errors import FormatError, Refused, Transient, Unreachable
from spoolagent.format import durable, layout
from spoolagent.format.blobs import put_bytes, read_blob
from spoolagent.format.ends import DeathWatch, end_dead_stream
from spoolagent.format.layout import StreamKey
from spoolagent.format.lines import encode_line
from spoolagent.format.reader import Lost, Position, StreamReader
from spoolagent.serving.changes import Commit, StreamFacts
from spoolagent.serving.store import Store
from spoolagent.testing import MemoryReceiver, set_fault


def open_files():
    return len(os.listdir("/proc/self/fd"))


def stream_of(spool):
    (key,) = layout.iter_streams(str(spool))
    return layout.stream_dir(str(spool), key)


def closed(spool, count, **options):
    writer = make_writer(spool, **options)
    write_metrics(writer, count)
    writer.append("run_end", {"status": "finished", "exit_code": 0})
    writer.close()
    return writer


def test_a_seq_that_stands_there_twice_is_read_once(tmp_path):
    writer = make_writer(tmp_path)
    write_metrics(writer, 5)
    path = os.path.join(stream_of(tmp_path), layout.segment_name(1))
    lines = open(path, "rb").read().splitlines(keepends=True)
    with open(path, "wb") as file:
        file.write(b"".join([*lines[:4], lines[2], *lines[4:]]))
    chunk = StreamReader(stream_of(tmp_path), at_home=True, patience_s=0.0).read()
    assert [event.seq for event in chunk.events] == list(range(1, 7))
    assert [bad.data for bad in chunk.bad] == [lines[2]] and not chunk.lost
    writer.close()


def test_a_read_that_fails_leaves_the_position(tmp_path):
    """What it had already taken for lost would be on no record else."""
    closed(tmp_path, 30, segment_bytes=900)
    stream = stream_of(tmp_path)
    first, second, *_ = layout.list_segments(stream)
    os.unlink(os.path.join(stream, layout.segment_name(first)))
    line = encode_line({"through": second - 1, "prev": "0" * 64, "time": 1})
    durable.write_file(os.path.join(stream, layout.PRUNED_FILE), line)
    reader = StreamReader(stream, at_home=True)
    before = reader.position

    def refuse(operation, path):
        if operation == "fsync":
            raise OSError(5, "Input/output error", path)

    set_fault(refuse)
    try:
        with pytest.raises(OSError, match="Input/output"):
            reader.read()
    finally:
        set_fault(None)
    assert reader.position == before
    assert [(lost.first, lost.last) for lost in reader.read().lost] == [(1, second - 1)]


def test_the_torn_line_of_a_dead_writer_is_kept_aside(tmp_path):
    writer = make_writer(tmp_path)
    write_metrics(writer, 3)
    writer._close_files()  # as a death does, without a seal
    stream = stream_of(tmp_path)
    with open(os.path.join(stream, layout.segment_name(1)), "ab") as file:
        file.write(b'{"seq":5,"ti')
    assert end_dead_stream(stream, DeathWatch())
    receiver = MemoryReceiver()
    agent = Agent(tmp_path, receiver)
    agent.run()
    kept = [path for path in (tmp_path / ".agent" / "quarantine").rglob("*-*") if path.is_file()]
    assert [path.read_bytes() for path in kept] == [b'{"seq":5,"ti']
    assert [sorted(events) for events in receiver.events.values()] == [[1, 2, 3, 4]]
    assert agent.lost == agent.dead == 0


def test_sweeps_leave_no_file_open(tmp_path):
    writer = make_writer(tmp_path, run="open")
    write_metrics(writer, 5)
    closed(tmp_path, 40, segment_bytes=900)
    counts = []
    agent = Agent(tmp_path, MemoryReceiver())
    wait = agent.wait

    def counting(timeout_s):
        counts.append(open_files())
        write_metrics(writer, 1, first=len(counts))
        wait(timeout_s)

    agent.wait = counting
    agent.run(passes=30, until_drained=False)
    assert len(counts) == 30
    assert max(counts) == counts[0]
    writer.close()


def test_what_was_put_for_a_batch_that_failed_is_undone(tmp_path):
    """Refused, in whole or for one event; and not taken for a while: a second time must count once."""
    closed(tmp_path, 10)
    answers = [Transient("not now"), Unreachable("away"), OSError(5, "Input/output error")]

    class Counting(MemoryReceiver):
        def open(self, state):
            self.state = state

        def deliver(self, batch):
            seqs = [event.seq for event in batch.events]
            self.state.put(f"batch/{seqs[0]}-{seqs[-1]}", True)
            self.state.put("count", (self.state.get("count") or 0) + len(seqs))
            if 3 in seqs:
                raise Refused("no thanks")
            if 6 in seqs and answers:
                raise answers.pop()
            return super().deliver(batch)

    receiver = Counting()
    agent = Agent(tmp_path, receiver)
    agent.run()
    assert agent.dead == 1 and not answers
    with Store(str(tmp_path), receiver.identity) as store:
        assert store.get("count") == 11
        assert sorted(key for key, _ in store.scan("batch/")) == [
            "batch/1-2",
            "batch/4-4",
            "batch/5-8",
            "batch/9-12",
        ]


def test_a_commit_is_all_or_nothing(tmp_path):
    """A kill between two of its statements leaves neither; here the second one cannot be made."""
    key = StreamKey("site-1", "run-1", "w-1")
    good = Commit(key=key, position=Position(1, 100, 5), facts=StreamFacts(last_seq=4), applied=4)
    good.lost.append(Lost(5, 6, "gone"))
    with Store(str(tmp_path), "memory:") as store:
        store.put("count", 4)
        with pytest.raises(TypeError):
            store.commit([good, Commit(told=("site-1", "run-1", {"status": object()}))])
        assert store.cursor(key) is None and store.count("lost") == 0
        store.commit([good])
        assert store.cursor(key).position == (1, 100, 5) and store.count("lost") == 2
        assert store.get("count") == 4


def test_what_no_hint_told_of_is_found_by_the_sweep(tmp_path):
    """An overflowing inotify queue, a network mount: no event comes for a new run, nor for a known stream."""
    known = make_writer(tmp_path, run="known")
    write_metrics(known, 3)
    receiver = MemoryReceiver()
    agent = Agent(tmp_path, receiver)
    wait, others = agent.wait, []

    def silent(timeout_s):
        wait(timeout_s)
        if not others and receiver.order:
            others.append(closed(tmp_path, 3, run="new"))
            write_metrics(known, 2, first=3)
        return set()

    agent.wait = silent
    agent.run(passes=50, until_drained=False)
    assert {key.run: len(events) for key, events in receiver.events.items()} == {"known": 6, "new": 5}
    known.close()


@pytest.mark.parametrize("durability", ["process", "interval"])
def test_full_segments_are_closed(tmp_path, durability):
    before = open_files()
    writer = make_writer(tmp_path, segment_bytes=500, durability=durability)
    write_metrics(writer, 100)
    assert len(layout.list_segments(stream_of(tmp_path))) > 20
    writer.tick()
    assert open_files() <= before + 2  # the segment and LIVE
    writer.close()
    assert open_files() == before


@pytest.mark.parametrize("segment_bytes", [900, 1 << 20])
def test_no_batch_is_larger_than_its_limit(tmp_path, segment_bytes):
    closed(tmp_path, 50, segment_bytes=segment_bytes)
    sizes = []
    receiver = MemoryReceiver(before=lambda batch: sizes.append(len(batch.events)))
    Agent(tmp_path, receiver, max_events=7).run()
    assert_all_there(tmp_path, receiver)
    assert max(sizes) == 7 and sum(sizes) == 52


def test_a_damaged_blob_is_not_read(tmp_path):
    ref = put_bytes(str(tmp_path), "site-1", b"payload")
    path = layout.blob_path(str(tmp_path), "site-1", ref["sha256"])
    assert read_blob(path, ref) == b"payload"
    for damaged in (b"paylaod", b"payload!", b"payloa"):
        with open(path, "wb") as file:
            file.write(damaged)
        with pytest.raises(FormatError, match="is damaged"):
            read_blob(path, ref)


def test_a_link_in_the_target_is_not_written_through(tmp_path):
    source, target = h.make_spool(tmp_path / "source"), str(tmp_path / "target")
    key = h.write_stream(source, 5)
    h.make_spool(target)
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    os.makedirs(layout.stream_dir(target, key))
    os.symlink(outside, h.segment(target, key))
    (error,) = h.ship_once(source, target).errors
    assert "is no plain file at the target" in error
    assert outside.read_bytes() == b""
