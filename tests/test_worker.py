"""The worker's loop with the memory receiver: order, commits, faults, run states."""

import os
import shutil

import pytest
from spool_help import NoHints, make_writer, write_metrics

from spoolagent.contract import Outcome
from spoolagent.errors import Locked, Refused, Transient, Unreachable
from spoolagent.format import durable, layout
from spoolagent.format.blobs import put_bytes
from spoolagent.format.ends import DeathWatch, end_dead_stream
from spoolagent.format.lines import encode_line
from spoolagent.format.spool import create_spool, open_spool
from spoolagent.serving.store import Store, open_store
from spoolagent.serving.worker import Worker
from spoolagent.settings import AgentSettings, ReceiverSettings, Selection
from spoolagent.testing import MemoryReceiver, set_fault


class Crash(BaseException):
    """Ends a worker in the middle, as SIGKILL would: nothing of it may run any more."""


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Agent(NoHints):
    """A worker over a real store, with a clock that moves when it waits."""

    def __init__(self, spool, receiver, *, patience_s=60.0, selection=None, **limits):
        self.path, self.receiver, self.clock = str(spool), receiver, Clock()
        self.patience_s, self.selection = patience_s, selection
        self.limits = {"max_events": 4, "flush_interval_s": 0.0, **limits}
        self.said, self.passes = [], 0

    def run(self, passes=400, until_drained=True):
        spool = open_spool(self.path)
        self.passes = passes
        with open_store(spool, self.receiver) as self.store:
            self.receiver.open(self.store)
            self.worker = Worker(
                spool,
                self.receiver,
                self.store,
                agent=AgentSettings(spool=spool.path, patience_s=self.patience_s),
                limits=ReceiverSettings(name="memory", spec="memory:", **self.limits),
                hints=self,
                selection=self.selection,
                report=self.said.append,
                clock=self.clock,
                should_stop=lambda: self.passes <= 0,
            )
            self.worker.run(until_drained=until_drained)
            self.dead = self.store.count("dead")
            self.lost = self.store.count("lost")
        return self.worker

    def wait(self, timeout_s):
        self.passes -= 1
        self.clock.now += max(timeout_s, 0.001)


def issued(spool, key):
    from plain_reader import read_stream

    return {e["seq"]: e for e in read_stream(layout.stream_dir(str(spool), key))[0]}


def assert_all_there(spool, receiver, without=()):
    for key in layout.iter_streams(str(spool)):
        want = {seq: e for seq, e in issued(spool, key).items() if (key, seq) not in without}
        got = {seq: event.data for seq, event in receiver.events.get(key, {}).items()}
        assert got == want
    for key in receiver.events:  # first applications have rising seq
        seqs = [seq for k, seq in receiver.order if k == key]
        assert seqs == sorted(seqs)


def simple(spool, count=20, end=True, **options):
    writer = make_writer(spool, **options)
    write_metrics(writer, count)
    if end:
        writer.append("run_end", {"status": "finished", "exit_code": 0})
        writer.close()
    return writer


def test_everything_arrives_once_and_a_second_run_does_nothing(tmp_path):
    simple(tmp_path, segment_bytes=900)
    receiver = MemoryReceiver()
    Agent(tmp_path, receiver).run()
    assert_all_there(tmp_path, receiver)
    assert receiver.statuses["site-1", "run-1"].status == "finished"
    receiver.statuses.clear()
    again = Agent(tmp_path, receiver).run()
    assert again.delivered == 0 and receiver.repeats == 0 and not receiver.statuses


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("batch", range(1, 8))
def test_a_crash_around_any_batch(tmp_path, where, batch):
    simple(tmp_path)
    receiver, seen = MemoryReceiver(), []

    def crash(current):
        seen.append([e.seq for e in current.events])
        if len(seen) == batch:
            raise Crash

    setattr(receiver, where, crash)
    try:
        Agent(tmp_path, receiver).run()
    except Crash:
        pass
    setattr(receiver, where, None)
    seen_again = []
    receiver.before = lambda current: seen_again.append(([e.seq for e in current.events], current.again))
    # More events and another batch size: the batch that was named comes again exactly, and first.
    Agent(tmp_path, receiver, max_events=1000).run()
    assert_all_there(tmp_path, receiver)
    if len(seen) == batch:
        assert seen_again[0] == (seen[-1], True)
        assert receiver.repeats == (len(seen[-1]) if where == "after" else 0)


def test_a_crash_at_every_durable_operation(tmp_path):
    """Every commit, write, fsync, rename of the agent: crash there, start again, nothing lost or doubled."""
    simple(tmp_path, count=9)
    total, at, repeats = [0], 0, 0
    while True:
        at += 1
        agent_dir = tmp_path / ".agent"
        shutil.rmtree(agent_dir, ignore_errors=True)
        durable._sure.clear()  # an inode that is used again would change how many operations there are
        receiver = MemoryReceiver()
        count = [0]

        def fault(operation, path, count=count, at=at):
            count[0] += 1
            if count[0] == at:
                raise Crash

        crashed = False
        set_fault(fault)
        try:
            Agent(tmp_path, receiver).run()
        except Crash:
            crashed = True
        finally:
            set_fault(None)
        Agent(tmp_path, receiver).run()
        assert_all_there(tmp_path, receiver)
        assert receiver.statuses["site-1", "run-1"].status == "finished"
        repeats += receiver.repeats
        total[0] = count[0]
        if not crashed:
            break
    assert at > 10
    assert repeats > 0, "no repeated attempt was seen: the test proves nothing"


def test_an_unreachable_tracker_loses_nothing_and_is_asked_again(tmp_path):
    simple(tmp_path)
    calls = []

    def away(batch):
        calls.append([e.seq for e in batch.events])
        if len(calls) % 3:
            raise Unreachable("tracker is away")

    receiver = MemoryReceiver(before=away)
    agent = Agent(tmp_path, receiver)
    agent.run()
    assert_all_there(tmp_path, receiver)
    assert calls[0] == calls[1] == calls[2]  # the same batch first
    assert any("is away" in line for line in agent.said) and any(
        "reached again" in line for line in agent.said
    )


def test_a_transient_failure_of_one_run_does_not_delay_another(tmp_path):
    simple(tmp_path, run="good")
    simple(tmp_path, run="bad")

    def fail(batch):
        if batch.stream.key.run == "bad":
            raise Transient("busy", retry_after_s=5)

    receiver = MemoryReceiver(before=fail)
    Agent(tmp_path, receiver).run(passes=5)
    (good, bad) = sorted(layout.iter_streams(str(tmp_path)), reverse=True)[::-1][::-1]
    by_run = {key.run: receiver.events.get(key, {}) for key in (good, bad)}
    assert len(by_run["good"]) == 22 and not by_run["bad"]
    receiver.before = None
    Agent(tmp_path, receiver).run()
    assert_all_there(tmp_path, receiver)


def test_a_refused_event_becomes_a_dead_letter_and_the_rest_goes_on(tmp_path):
    simple(tmp_path)
    (key,) = layout.iter_streams(str(tmp_path))

    def refuse(batch):
        if any(e.seq in (3, 8) for e in batch.events):
            raise Refused("no thanks")

    receiver = MemoryReceiver(before=refuse)
    agent = Agent(tmp_path, receiver, max_events=16)
    agent.run()
    assert agent.dead == 2
    assert_all_there(tmp_path, receiver, without={(key, 3), (key, 8)})


def test_a_receiver_that_chokes_on_an_event_is_no_reason_to_stop(tmp_path):
    simple(tmp_path)
    (key,) = layout.iter_streams(str(tmp_path))

    def choke(batch):
        if any(e.seq == 5 for e in batch.events):
            raise ZeroDivisionError("a bug in a receiver")

    receiver = MemoryReceiver(before=choke)
    agent = Agent(tmp_path, receiver)
    agent.run()
    assert agent.dead == 1 and any("ZeroDivisionError" in line for line in agent.said)
    assert_all_there(tmp_path, receiver, without={(key, 5)})


def test_malformed_and_unknown_events_are_dead_letters(tmp_path):
    writer = make_writer(tmp_path)
    writer.append("metrics", {"metrics": {"a": "not a number"}})
    writer.append("teleport", {"x": 1})
    writer.append("metrics", {"metrics": [1, 2]})
    writer.append(
        "artifact", {"files": [{"path": "../../etc/passwd", "blob": {"sha256": "0" * 64, "size": 1}}]}
    )
    writer.append("metrics", {"metrics": {"a": 1.0}, "step": 1})
    writer.close()
    receiver = MemoryReceiver()
    agent = Agent(tmp_path, receiver)
    agent.run()
    (key,) = layout.iter_streams(str(tmp_path))
    assert agent.dead == 4 and sorted(receiver.events[key]) == [1, 6]


def test_state_put_for_a_refused_batch_is_undone(tmp_path):
    simple(tmp_path, count=3)

    class Stateful(MemoryReceiver):
        def open(self, state):
            self.state = state

        def deliver(self, batch):
            for event in batch.events:
                self.state.put(f"seen/{event.seq}", True)
            if len(batch.events) > 1 and any(e.seq == 2 for e in batch.events):
                raise Refused("halve it")
            self.state.put("total", (self.state.get("total") or 0) + len(batch.events))
            return Outcome()

    receiver = Stateful()
    Agent(tmp_path, receiver, max_events=10).run()
    with Store(str(tmp_path), receiver.identity) as store:
        assert store.get("total") == 5
        assert [k for k, _ in store.scan("seen/")] == [f"seen/{n}" for n in range(1, 6)]


def test_two_workers_for_one_target_are_refused(tmp_path):
    spool = create_spool(str(tmp_path))
    with Store(spool.path, "x:y"), pytest.raises(Locked, match="another process"):
        Store(spool.path, "x:y")


def test_an_event_waits_for_its_blob(tmp_path):
    spool = create_spool(str(tmp_path))
    ref = put_bytes(spool.path, "site-1", b"payload")
    hidden = layout.blob_path(spool.path, "site-1", ref["sha256"])
    os.rename(hidden, hidden + "x")
    writer = make_writer(tmp_path)
    writer.append("text", {"key": "t", "blob": ref})
    writer.close()
    receiver = MemoryReceiver()
    agent = Agent(tmp_path, receiver)
    agent.run(passes=5)
    assert not receiver.events and "has not arrived" in agent.worker.blocked()[0][1]
    os.rename(hidden + "x", hidden)
    Agent(tmp_path, receiver).run()
    assert_all_there(tmp_path, receiver)


def test_flush_interval_waits_for_company_but_not_for_ever(tmp_path):
    writer = simple(tmp_path, count=2, end=False)
    receiver = MemoryReceiver()
    agent = Agent(tmp_path, receiver, max_events=100, flush_interval_s=5.0)
    sizes = []
    receiver.before = lambda batch: sizes.append(len(batch.events))
    added = []

    def wait(timeout_s):
        if not added:
            added.append(True)
            write_metrics(writer, 3, 2)
        Agent.wait(agent, min(timeout_s, 1.0))

    agent.wait = wait
    agent.run(passes=20, until_drained=False)
    assert sizes == [6]
    writer.close()


def run_state(tmp_path, receiver):
    agent = Agent(tmp_path, receiver)
    agent.run()
    end = receiver.statuses.get(("site-1", "run-1"))
    return None if end is None else end.status


def killed(spool, **options):
    """A stream whose writer is gone without a word, and whose agent has noticed."""
    writer = make_writer(spool, **options)
    write_metrics(writer, 2)
    folder = os.path.join(layout.run_dir(str(spool), writer.site, writer.run), writer.writer)
    writer._close_files()
    assert end_dead_stream(folder, DeathWatch())


def test_run_states(tmp_path):
    receiver = MemoryReceiver()
    first = simple(tmp_path, count=2, end=False)
    assert run_state(tmp_path, receiver) is None  # running is not announced
    first.append("run_end", {"status": "failed", "exit_code": 3})
    first.close()
    assert run_state(tmp_path, receiver) == "failed" and receiver.statuses["site-1", "run-1"].exit_code == 3
    second = simple(tmp_path, count=2, end=False, attempt=2)
    assert run_state(tmp_path, receiver) == "running"
    second.append("run_end", {"status": "finished", "exit_code": 0})
    second.close()
    assert run_state(tmp_path, receiver) == "finished"
    killed(tmp_path, attempt=3)
    assert run_state(tmp_path, receiver) == "killed"


def test_the_worst_rank_decides_and_aux_streams_do_not(tmp_path):
    receiver = MemoryReceiver()
    simple(tmp_path, count=1)
    killed(tmp_path, role="aux")
    assert run_state(tmp_path, receiver) == "finished"
    killed(tmp_path)
    assert run_state(tmp_path, receiver) == "killed"


def test_a_run_of_another_spool_without_news_is_presumed_dead_until_news(tmp_path, monkeypatch):
    writer = simple(tmp_path / "client", count=2, end=False)
    shutil.copytree(tmp_path / "client" / "sites", tmp_path / "server" / "sites")
    create_spool(str(tmp_path / "server"))
    receiver = MemoryReceiver()
    assert run_state(tmp_path / "server", receiver) is None
    import time

    real = time.time_ns
    monkeypatch.setattr("time.time_ns", lambda: real() + 2 * 86_400 * 10**9)
    agent = Agent(tmp_path / "server", receiver)
    agent.run(passes=3, until_drained=False)
    assert receiver.statuses["site-1", "run-1"].status == "killed"
    write_metrics(writer, 1, 2)
    for path in (tmp_path / "client").rglob("*.jsonl"):
        shutil.copy(path, tmp_path / "server" / path.relative_to(tmp_path / "client"))
    monkeypatch.setattr("time.time_ns", real)
    assert run_state(tmp_path / "server", receiver) == "running"
    writer.close()


def test_attempts_come_in_order_and_live_ranks_do_not_wait(tmp_path):
    simple(tmp_path, count=30)
    simple(tmp_path, count=30, attempt=2)
    receiver = MemoryReceiver()
    Agent(tmp_path, receiver).run()
    attempts = [key for key, _ in receiver.order]
    assert attempts == sorted(attempts, key=attempts.index) and attempts[0] != attempts[-1]
    boundary = attempts.index(attempts[-1])
    assert set(attempts[:boundary]) == {attempts[0]}, "the second attempt came before the first was delivered"

    ranks = [simple(tmp_path / "live", count=40, end=False) for _ in range(3)]
    receiver = MemoryReceiver()
    Agent(tmp_path / "live", receiver).run()
    firsts = [
        next(i for i, (key, _) in enumerate(receiver.order) if key.writer == rank.writer) for rank in ranks
    ]
    assert max(firsts) < 20, "ranks that are alive are served in turn"
    for rank in ranks:
        rank.close()


def test_lost_seqs_and_bad_bytes_are_on_record(tmp_path):
    simple(tmp_path, count=10)
    (key,) = layout.iter_streams(str(tmp_path))
    path = os.path.join(layout.stream_dir(str(tmp_path), key), layout.segment_name(1))
    lines = open(path, "rb").read().splitlines(keepends=True)
    broken = lines[5].replace(b'"loss"', b'"lost"')
    open(path, "wb").write(b"".join([*lines[:5], broken, *lines[6:]]))
    receiver = MemoryReceiver()
    agent = Agent(tmp_path, receiver)
    agent.run()
    assert agent.lost == 1 and sorted(receiver.events[key]) == [s for s in range(1, 13) if s != 5]
    kept = list((tmp_path / ".agent" / "quarantine").rglob("*-*"))
    assert [p.read_bytes() for p in kept if p.is_file()] == [broken]
    assert any("are lost" in line for line in agent.said)


def test_a_selection_leaves_other_runs_untouched(tmp_path):
    simple(tmp_path, run="a")
    simple(tmp_path, run="b")
    receiver = MemoryReceiver()
    Agent(tmp_path, receiver, selection=Selection(runs=("a",))).run()
    assert {key.run for key in receiver.events} == {"a"}
    Agent(tmp_path, receiver).run()
    assert_all_there(tmp_path, receiver)
    assert receiver.repeats == 0


def test_a_full_disk_under_the_cursor_store_only_delays(tmp_path):
    import sqlite3

    simple(tmp_path)
    left = [3]

    def full(operation, path):
        if operation == "commit" and left[0]:
            left[0] -= 1
            raise sqlite3.OperationalError("database or disk is full")

    receiver = MemoryReceiver(before=lambda _: set_fault(full))
    try:
        Agent(tmp_path, receiver).run()
    finally:
        set_fault(None)
    assert_all_there(tmp_path, receiver)
    assert left == [0]


def test_a_later_format_is_parked_and_the_rest_goes_on(tmp_path):
    simple(tmp_path)
    folder = tmp_path / "sites" / "site-1" / "runs" / "later" / "w-1"
    folder.mkdir(parents=True)
    (folder / layout.segment_name(1)).write_bytes(encode_line({"format": 2, "spool": "x"}))
    receiver = MemoryReceiver()
    agent = Agent(tmp_path, receiver)
    worker = agent.run()
    assert [note for _, note in worker.blocked() if "format 2" in note]
    assert {key.run for key in receiver.events} == {"run-1"}
