"""What a worker has at hand: what happens, and not what there is or was. And what it finds without any hint."""

import os

import pytest
from spool_help import make_writer, write_metrics
from test_worker import Agent, assert_all_there, simple

from spoolagent.errors import Unreachable
from spoolagent.format import durable, layout
from spoolagent.format.listing import Listing
from spoolagent.format.marks import Marks
from spoolagent.format.spool import open_spool
from spoolagent.serving import patrol, pool
from spoolagent.serving.store import Store
from spoolagent.testing import MemoryReceiver
from spoolagent.undertaker import Undertaker
from spoolagent.watching import Watcher

MANY = 3 * pool.MOST_RESTING


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """These tests make many streams, and are not about the disk."""
    monkeypatch.setattr(durable.os, "fsync", lambda fd: None)
    monkeypatch.setattr(durable.os, "fdatasync", lambda fd: None)


class Hinted(Agent):
    """An agent with hints: they come from `hints` and are believed, the clock moves by a second a pass."""

    sees_all = True

    def __init__(self, *args, on_wait=lambda number: set(), **options):
        super().__init__(*args, **options)
        self.on_wait, self.number, self.watched, self.most = on_wait, 0, set(), 0

    def watch(self, key):
        self.watched.add(key)

    def forget(self, key):
        self.watched.discard(key)

    def wait(self, timeout_s):
        super().wait(timeout_s)
        self.number += 1
        self.most = max(self.most, len(self.worker._pool))
        return self.on_wait(self.number)


def open_streams(spool, count, events=1):
    """Streams whose writers live, but hold no file here: each a run of its own."""
    made = []
    for number in range(count):
        writer = make_writer(spool, run=f"run-{number:04d}", durability="process")
        write_metrics(writer, events)
        made.append(writer)
    return made


def key_of(writer):
    return layout.StreamKey("site-1", os.path.basename(os.path.dirname(writer._dir)), writer.writer)


def test_of_idle_streams_nothing_is_at_hand_and_a_change_is_found_all_the_same(tmp_path):
    writers, sizes = open_streams(tmp_path, MANY), []

    def on_wait(number):
        if not sizes and agent.clock.now > 1030:
            sizes.append(len(agent.worker._pool))
            write_metrics(writers[77], 1, first=1)
            agent.passes = (
                3 + 4 * MANY * patrol._STREAM // patrol._PAGE
            )  # the round under way, and a whole one
        return set()

    receiver = MemoryReceiver()
    agent = Hinted(tmp_path, receiver, on_wait=on_wait)
    agent.sees_all = False  # a network mount: each sweep looks at all of them
    agent.run(passes=1000, until_drained=False)
    assert sizes == [0]
    assert agent.most <= pool.MOST_RESTING + patrol._PAGE // patrol._STREAM
    assert_all_there(tmp_path, receiver)


def test_a_hint_that_is_lost_costs_half_a_minute(tmp_path, monkeypatch):
    writers, looks, found_at = open_streams(tmp_path, 20), [], []
    real = patrol.has_changed
    monkeypatch.setattr(
        patrol, "has_changed", lambda spool, cursor: looks.append(cursor) or real(spool, cursor)
    )

    def on_wait(number):
        if number == 60:
            looks.clear()
            wrote.append(agent.clock.now)
            write_metrics(writers[7], 1, first=1)
        if number > 60 and not found_at and len(receiver.events[key_of(writers[7])]) == 3:
            found_at.append(agent.clock.now)
        return set()

    receiver, wrote = MemoryReceiver(), []
    agent = Hinted(tmp_path, receiver, on_wait=on_wait)
    agent.run(passes=100, until_drained=False)
    assert agent.watched == set(map(key_of, writers))
    assert found_at[0] - wrote[0] <= patrol.SLOW_S + 1
    assert len(looks) <= 2 * len(writers), "looks at idle streams within forty seconds"


def test_a_hinted_stream_is_looked_at_at_once_and_no_other(tmp_path, monkeypatch):
    writers = open_streams(tmp_path, 20)

    def on_wait(number):
        if number == 50:
            monkeypatch.setattr(patrol, "has_changed", lambda spool, cursor: looks.append(cursor))
            write_metrics(writers[7], 1, first=1)
            return {key_of(writers[7])}
        if number == 51:
            looks.append(len(receiver.events[key_of(writers[7])]))
        return set()

    receiver, looks = MemoryReceiver(), []
    Hinted(tmp_path, receiver, on_wait=on_wait).run(passes=51, until_drained=False)
    assert looks == [3]


def test_finished_streams_are_never_at_hand_again(tmp_path, monkeypatch):
    for number in range(60):
        simple(tmp_path, count=1, run=f"run-{number}", durability="process")
    receiver = MemoryReceiver()
    agent = Hinted(tmp_path, receiver)
    agent.run(passes=50)
    assert agent.watched == set()
    assert len(receiver.statuses) == 60
    monkeypatch.setattr("spoolagent.serving.worker.Task", None)  # a second worker makes no use of it
    agent = Hinted(tmp_path, receiver)
    agent.run(passes=100, until_drained=False)
    assert (agent.worker.delivered, agent.most, agent.watched) == (0, 0, set())


def test_few_streams_wait_for_company_at_a_time(tmp_path):
    """What each of them holds takes memory: beyond so many, a batch goes out before its time."""
    open_streams(tmp_path, MANY)
    receiver, held = MemoryReceiver(), []

    def on_wait(number):
        held.append(sum(task.held is not None for task in agent.worker._pool.tasks()))
        return set()

    agent = Hinted(tmp_path, receiver, on_wait=on_wait, flush_interval_s=3600.0, max_events=100)
    agent.run(passes=20, until_drained=False)
    assert pool.MOST_RESTING // 2 < max(held) <= pool.MOST_RESTING + patrol._PAGE // patrol._STREAM
    assert_all_there(tmp_path, receiver)  # a stop waits for nothing


def test_an_outage_does_not_pile_up_streams(tmp_path):
    writers, is_down, sizes = open_streams(tmp_path, MANY), [False], []

    def away(batch):
        if is_down[0]:
            raise Unreachable("away")

    def on_wait(number):
        if is_down[0]:
            sizes.append(len(agent.worker._pool))
        is_down[0] = 40 <= number < 140
        if 40 <= number <= 40 + MANY // 10:
            some = writers[10 * (number - 40) : 10 * (number - 39)]
            for writer in some:
                write_metrics(writer, 1, first=1)
            return set(map(key_of, some))
        return set()

    receiver = MemoryReceiver(before=away)
    agent = Hinted(tmp_path, receiver, on_wait=on_wait)
    agent.run(passes=400, until_drained=False)
    assert pool.MOST_RESTING <= max(sizes) < pool.MOST_RESTING + 20
    assert_all_there(tmp_path, receiver)


def test_after_a_restart_what_goes_on_and_what_is_new_does_not_wait_for_a_long_history(tmp_path, monkeypatch):
    for number in range(20):
        simple(tmp_path, run=f"old-{number:02}")
    going_on = make_writer(tmp_path, run="open", durability="process")
    write_metrics(going_on, 1)
    Agent(tmp_path, MemoryReceiver()).run(passes=60, until_drained=False)
    write_metrics(going_on, 1, first=1)
    new = make_writer(tmp_path, run="new", durability="process")
    write_metrics(new, 1)
    monkeypatch.setattr(patrol, "_PAGE", patrol._STREAM)
    before_the_end = []

    def on_wait(number):
        if not agent.worker._patrol.has_been_round:
            before_the_end.append({key.run for key, _ in receiver.order})
        return set()

    receiver = MemoryReceiver()
    agent = Hinted(tmp_path, receiver, on_wait=on_wait)
    agent.run(passes=80, until_drained=False)
    assert agent.worker._patrol.has_been_round
    assert before_the_end[5] == {"open", "new"}, "of more than forty pages"
    assert len(before_the_end) > 40


def test_a_stream_of_an_earlier_attempt_that_nobody_hinted_goes_first(tmp_path):
    first = make_writer(tmp_path, attempt=1, durability="process")
    write_metrics(first, 1)

    def on_wait(number):
        if number == 20:
            write_metrics(first, 5, first=1)
            second = make_writer(tmp_path, attempt=2, durability="process")
            write_metrics(second, 5)
            return {key_of(second)}
        return set()

    receiver = MemoryReceiver()
    Hinted(tmp_path, receiver, on_wait=on_wait).run(passes=22, until_drained=False)
    assert [key.writer for key, _ in receiver.order] == [first.writer] * 7 + [
        key.writer
        for key in sorted(receiver.events, key=lambda k: k.writer == first.writer)
        if key.writer != first.writer
    ] * 6


def test_cursors_come_by_whole_runs_and_by_how_their_streams_ended(tmp_path):
    for run in range(4):
        for rank in range(5):
            simple(tmp_path, count=1, run=f"run-{run}", end=rank < 3, durability="process")
    agent = Agent(tmp_path, MemoryReceiver())
    agent.run(passes=60, until_drained=False)
    with Store(str(tmp_path), "memory:") as store:
        pages, after = [], ("", "")
        while page := store.cursors(after, 7):
            pages.append([cursor.key.run for cursor in page])
            after = page[-1].key[:2]
        assert pages == [[f"run-{run}"] * 5 for run in range(4)]
        assert len(store.cursors(("", ""), 1000)) == 20
        assert len(store.cursors_of("site-1", "run-2", "open")) == 2
        assert len(store.cursors(("", ""), 3, "not closed")) == 2, "of the first run"
        assert [cursor.key.run for cursor in store.cursors(("site-1", "run-2"), 9, "open")] == ["run-3"] * 2


# -- directories -------------------------------------------------------------------------------------------------


def test_a_settled_run_is_listed_again_when_its_directory_changes(tmp_path):
    for run in ("run-1", "run-2"):
        simple(tmp_path, run=run)
    later = [10**10]
    listing = Listing(str(tmp_path), now_ns=lambda: os.stat(tmp_path).st_mtime_ns + later[0])

    def listed():
        found = [run for run in listing.runs() if run is not None]
        for run in found:
            listing.settled(run)
        return [(run.run, len(run.writers)) for run in found]

    assert listed() == [("run-1", 1), ("run-2", 1)]
    assert listed() == []
    simple(tmp_path, run="run-2")
    assert listed() == [("run-2", 2)]
    later[0] = (
        0  # it has changed just now, and may change again within the same tick of the file system's clock
    )
    simple(tmp_path, run="run-1")
    assert listed() == listed() == [("run-1", 2)]


def remember(marks, count):
    """Adds those that are not known; how many those were."""
    new = [number for number in range(count) if not marks.has(f"run-{number}", number)]
    for number in new:
        marks.add(f"run-{number}", number)
    return len(new)


def test_marks_of_a_hundred_thousand_things_are_all_kept():
    """Round after round: else each of those that are forgotten costs a look, for ever."""
    marks = Marks()
    assert remember(marks, 100_000) == 100_000
    assert remember(marks, 100_000) < 2_000
    assert remember(marks, 100_000) < 2_000
    assert not any(marks.has("another", number) for number in range(100_000))
    marks.discard("run-7", 7)
    marks.discard("run-8", 7)
    assert not marks.has("run-7", 7)
    assert marks.has("run-8", 8)
    marks.clear()
    assert remember(marks, 1000) == 1000


def test_marks_take_a_fixed_amount_of_memory_at_most(monkeypatch):
    monkeypatch.setattr("spoolagent.format.marks._MOST", 1 << 13)
    marks = Marks()
    assert remember(marks, 100_000) == 100_000
    assert marks.has("run-99999", 99_999)
    kept = sum(marks.has(f"run-{number}", number) for number in range(100_000))
    assert 8_000 < kept <= 8192


def test_an_undertaker_that_remembers_nothing_only_looks_more_often(tmp_path, monkeypatch):
    """Each mark pushed out by another: the same ends are written, and none twice."""
    for name in ("_FEWEST", "_MOST", "_WAYS"):
        monkeypatch.setattr(f"spoolagent.format.marks.{name}", 1)
    simple(tmp_path, run="closed")
    dead = make_writer(tmp_path, run="dead")
    write_metrics(dead, 3)
    dead.flush()
    dead._close_files()
    said = []
    undertaker = Undertaker(open_spool(str(tmp_path)), stale_after_s=60.0, report=said.append)
    for _ in range(3):
        undertaker.sweep()
    assert [name for _, _, names in os.walk(tmp_path) for name in names if name.endswith(".end")] == [
        layout.end_name(1)
    ]
    assert said == []


# -- watches -----------------------------------------------------------------------------------------------------


def test_streams_are_watched_on_request_and_new_ones_are_hinted(tmp_path):
    old, other = open_streams(tmp_path, 2)
    with Watcher(str(tmp_path), streams=False) as watcher:
        write_metrics(old, 1)
        assert watcher.wait(0.1) == set()
        watcher.watch(key_of(old))
        write_metrics(other, 1)
        write_metrics(old, 1)
        assert watcher.wait(10) == {key_of(old)}
        write_metrics(old, 1)
        assert watcher.wait(10) == {key_of(old)}, "it is armed again"
        watcher.forget(key_of(old))
        watcher.forget(key_of(other))
        write_metrics(old, 1)
        assert watcher.wait(0.1) == set()
        assert watcher._places.keys() and not any("/run-" in place for place in watcher._places.values())
        new = make_writer(tmp_path, run="run-0001")
        write_metrics(new, 1)
        assert watcher.wait(10) == {key_of(new)}
        assert watcher.sees_all


def test_a_stream_of_a_run_whose_name_is_not_remembered_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("spoolagent.watching._MOST_RUNS", 2)
    open_streams(tmp_path, 10)
    with Watcher(str(tmp_path), streams=False) as watcher:
        assert len(watcher._runs) == 2
        for number in range(10):
            new = make_writer(tmp_path, run=f"run-{number:04d}")
            write_metrics(new, 1)
            assert watcher.wait(10) == {key_of(new)}
        for number in range(10):
            write_metrics(make_writer(tmp_path, run=f"run-{number:04d}"), 1)
        assert watcher.wait(10) is None, "too many: everything is to be looked at"


def test_at_the_limit_of_watches_hints_are_not_believed(tmp_path, monkeypatch):
    (writer,) = open_streams(tmp_path, 1)
    with Watcher(str(tmp_path), streams=False) as watcher:
        real = type(watcher._inotify).add

        def add(self, path, mask):
            if path.endswith(writer.writer):
                raise OSError(28, "no space left")
            return real(self, path, mask)

        monkeypatch.setattr(type(watcher._inotify), "add", add)
        assert watcher.sees_all
        watcher.watch(key_of(writer))
        assert watcher.has_hints and not watcher.sees_all
