"""Dead letters: retried by the worker exactly once through any crash, refused again, gone, dropped; the command."""

import contextlib
import json
import os
import shutil
import sqlite3
from collections import Counter
from typing import ClassVar

import pytest
from cli_help import forked, read, segment_of, write, write_stream
from spool_help import make_writer, until, write_metrics
from test_contract import TARGETS, Dying, fill, work
from test_stuck import Serving
from test_worker import Agent, Crash, assert_all_there, simple

from spoolagent.errors import Locked, Refused, SpoolError, Transient, Unreachable
from spoolagent.format import durable, layout
from spoolagent.format.blobs import put_bytes
from spoolagent.format.lines import encode_line
from spoolagent.format.spool import create_spool
from spoolagent.receivers.jsonl import JsonLinesReceiver
from spoolagent.serving.dead_letters import Choice, mark, read_letters
from spoolagent.serving.schema import SCHEMA, VERSION
from spoolagent.serving.store import Store, target_dir
from spoolagent.serving.sums import Damaged
from spoolagent.settings import Selection
from spoolagent.testing import MemoryReceiver, set_fault


def refusing(*seqs, run=None):
    """A `before` that refuses these seqs."""

    def before(batch):
        if (run is None or batch.stream.key.run == run) and any(e.seq in seqs for e in batch.events):
            raise Refused("no thanks")

    return before


def folder_of(spool, receiver):
    return target_dir(str(spool), receiver.identity)


def letters(spool, receiver, **choice):
    return list(read_letters(folder_of(spool, receiver), Choice(**choice)))


def marked(spool, receiver, state="retry", **choice):
    return mark(folder_of(spool, receiver), Choice(**choice), state)


def applied(spool, receiver):
    with sqlite3.connect(os.path.join(folder_of(spool, receiver), "state.sqlite")) as db:
        return db.execute("SELECT coalesce(sum(applied), 0) FROM streams").fetchone()[0]


def with_dead(tmp_path, *seqs, count=20, **options):
    """A delivered stream of which the tracker refused `seqs`; (receiver, key)."""
    simple(tmp_path, count=count, **options)
    receiver = MemoryReceiver(before=refusing(*seqs))
    Agent(tmp_path, receiver).run()
    receiver.before = None
    (key,) = layout.iter_streams(str(tmp_path))
    assert [letter.seq for letter in letters(tmp_path, receiver)] == sorted(seqs)
    return receiver, key


# -- the worker ------------------------------------------------------------------------------------------------------


def test_a_marked_letter_is_delivered_and_no_other(tmp_path):
    receiver, key = with_dead(tmp_path, 3, 8, 9, segment_bytes=900)
    before = applied(tmp_path, receiver)
    seen = []
    receiver.before = lambda batch: seen.append(([e.seq for e in batch.events], batch.again))
    Agent(tmp_path, receiver).run()
    assert seen == [], "nobody asked for a retry"
    assert marked(tmp_path, receiver, seqs=(8, 3)) == 2
    receiver.statuses.clear()
    agent = Agent(tmp_path, receiver)
    agent.run()
    assert seen == [([3], True), ([8], True)]
    assert [(x.seq, x.state) for x in letters(tmp_path, receiver)] == [(9, "dead")]
    assert applied(tmp_path, receiver) == before + 2 == 21
    assert agent.dead == 1 and agent.worker.delivered == 2 and receiver.repeats == 0
    assert any("2 dead letters were retried and delivered" in line for line in agent.said)
    assert sorted(receiver.events[key]) == [s for s in range(1, 23) if s != 9]
    # It is told once more: in its tracker the late event may have reopened the run.
    assert receiver.statuses["site-1", "run-1"].status == "finished"


def test_a_running_worker_takes_it_up_at_its_next_sweep(tmp_path):
    simple(tmp_path)
    receiver = MemoryReceiver(before=refusing(5))
    agent = Agent(tmp_path, receiver)
    (key,) = layout.iter_streams(str(tmp_path))
    passes = []

    def wait(timeout_s):
        passes.append(timeout_s)
        if len(passes) == 3:  # the worker has the database open and locked
            receiver.before = None
            receiver.statuses.clear()
            assert marked(tmp_path, receiver) == 1
        Agent.wait(agent, timeout_s)
        return set()

    agent.wait = wait
    agent.run(passes=8, until_drained=False)
    assert sorted(receiver.events[key]) == list(range(1, 23))
    assert letters(tmp_path, receiver) == []
    assert receiver.statuses["site-1", "run-1"].status == "finished"


def test_a_letter_that_is_refused_again_keeps_the_new_reason(tmp_path):
    receiver, key = with_dead(tmp_path, 4, 6)

    def refuse(batch):
        raise Refused("still not")

    for times in (1, 2):
        marked(tmp_path, receiver, seqs=(4,))
        receiver.before = refuse
        agent = Agent(tmp_path, receiver)
        agent.run()
        four, six = letters(tmp_path, receiver)
        assert (four.state, four.reason, four.retries) == ("dead", "still not", times)
        assert (six.state, six.reason, six.retries) == ("dead", "no thanks", 0)
    assert 4 not in receiver.events[key] and agent.dead == 2


def test_hundreds_of_letters_of_many_streams(tmp_path):
    for run in ("a", "b"):
        simple(tmp_path, run=run, count=400, segment_bytes=5000)
    receiver = MemoryReceiver(before=refusing(*range(2, 390, 2)))
    Agent(tmp_path, receiver).run(passes=4000)
    receiver.before = None
    assert len(letters(tmp_path, receiver)) == 2 * 194
    assert marked(tmp_path, receiver) == 2 * 194
    Agent(tmp_path, receiver).run()
    got = {(key.run, seq): e.data for key, held in receiver.events.items() for seq, e in held.items()}
    assert len(got) == 2 * 402 and letters(tmp_path, receiver) == []
    assert receiver.repeats == 0 and applied(tmp_path, receiver) == 2 * 402


def test_unknown_and_malformed_events_stay_dead(tmp_path):
    writer = make_writer(tmp_path)
    writer.append("teleport", {"x": 1})
    writer.close()
    receiver = MemoryReceiver()
    Agent(tmp_path, receiver).run()
    marked(tmp_path, receiver)
    Agent(tmp_path, receiver).run()
    (letter,) = letters(tmp_path, receiver)
    assert (letter.state, letter.retries) == ("dead", 1) and "teleport" in letter.reason


@pytest.mark.parametrize("how", ["pruned", "damaged", "removed"])
def test_bytes_that_are_gone_are_told_so(tmp_path, how):
    receiver, key = with_dead(tmp_path, 3, 4, segment_bytes=900)
    folder = layout.stream_dir(str(tmp_path), key)
    path = os.path.join(folder, layout.segment_name(1))
    if how == "pruned":
        os.unlink(path)
        second = layout.list_segments(folder)[0]
        write(
            os.path.join(folder, "pruned.json"), encode_line({"through": second - 1, "prev": "0", "time": 1})
        )
    elif how == "damaged":
        write(path, read(path).replace(b'"step":1,', b'"step":7,').replace(b'"step":2,', b'"step":7,'))
    else:
        shutil.rmtree(os.path.join(tmp_path, "sites"))
    reasons = {
        "pruned": "it was pruned from the spool",
        "damaged": "its bytes are damaged or missing",
        "removed": "its stream is no longer in the spool",
    }
    for times in (1, 2):
        assert marked(tmp_path, receiver) == 2
        Agent(tmp_path, receiver, patience_s=0).run(passes=20)
        found = letters(tmp_path, receiver)
        assert [(x.seq, x.state, x.retries) for x in found] == [(3, "dead", times), (4, "dead", times)]
        want = f"it can no longer be retried: {reasons[how]}; refused before: no thanks"
        assert {x.reason for x in found} == {want}
    assert {3, 4}.isdisjoint(receiver.events[key])


def test_an_outage_in_a_retry_lets_nothing_come_between(tmp_path):
    receiver, _key = with_dead(tmp_path, 3)
    more = make_writer(tmp_path, run="run-2")
    write_metrics(more, 3)
    marked(tmp_path, receiver)
    seen = []

    def away(batch):
        seen.append((batch.stream.key.run, [e.seq for e in batch.events]))
        if len(seen) in (2, 3, 4):
            raise Unreachable("away")

    receiver.before = away
    Agent(tmp_path, receiver, max_events=100).run()
    assert seen == [("run-2", [1, 2, 3, 4]), *[("run-1", [3])] * 4]
    write_metrics(more, 3, 3)
    more.close()
    Agent(tmp_path, receiver).run()
    assert_events(tmp_path, receiver)
    assert letters(tmp_path, receiver) == []


def assert_events(spool, receiver, without=()):
    """As assert_all_there, for streams with retried letters: their order is not that of the seqs."""
    receiver.order = []
    assert_all_there(spool, receiver, without)


def test_a_tracker_that_says_not_now_holds_the_run_and_no_other(tmp_path):
    receiver, _key = with_dead(tmp_path, 3)
    marked(tmp_path, receiver)
    seen = []

    def busy(batch):
        seen.append((batch.stream.key.run, [e.seq for e in batch.events]))
        if [e.seq for e in batch.events] == [3]:
            if len(seen) == 1:
                same, other = make_writer(tmp_path), make_writer(tmp_path, run="run-2")
                for writer in (same, other):
                    write_metrics(writer, 1)
                    writer.close()
            if sum(events == [3] for _, events in seen) < 4:
                raise Transient("busy")

    receiver.before = busy
    Agent(tmp_path, receiver).run()
    runs = [run for run, _ in seen]
    last = max(i for i, x in enumerate(seen) if x == ("run-1", [3]))
    assert runs.index("run-2") < last, "another run does not wait"
    assert all(events == [3] for run, events in seen[: last + 1] if run == "run-1"), seen
    assert seen[last + 1 :] == [("run-1", [1, 2])]
    assert letters(tmp_path, receiver) == []
    assert_events(tmp_path, receiver)


def test_a_letter_waits_for_the_batch_of_its_run(tmp_path):
    receiver, _key = with_dead(tmp_path, 3)
    marked(tmp_path, receiver)
    more = make_writer(tmp_path)
    write_metrics(more, 1)
    more.close()
    seen = []

    def busy(batch):
        seen.append([e.seq for e in batch.events])
        if len(seen) < 4:
            raise Transient("busy")

    receiver.before = busy
    Agent(tmp_path, receiver).run()
    assert seen == [[1, 2]] * 4 + [[3]]


def test_a_selection_leaves_other_letters_marked(tmp_path):
    for run in ("a", "b"):
        simple(tmp_path, run=run)
    receiver = MemoryReceiver(before=refusing(2, 3))
    Agent(tmp_path, receiver).run()
    receiver.before = None
    marked(tmp_path, receiver)
    Agent(tmp_path, receiver, selection=Selection(runs=("a",), steps=(1, 5))).run()
    assert [(x.key.run, x.seq, x.state) for x in letters(tmp_path, receiver)] == [
        ("a", 2, "retry"),
        ("b", 2, "retry"),
        ("b", 3, "retry"),
    ]
    Agent(tmp_path, receiver).run()
    assert letters(tmp_path, receiver) == []
    assert_events(tmp_path, receiver)


# -- crashes ---------------------------------------------------------------------------------------------------------


class Picky(JsonLinesReceiver):
    """JSON lines that refuse some seqs at first."""

    refused: frozenset[int] = frozenset()
    calls: ClassVar[Counter] = Counter()

    def deliver(self, batch):
        if any(e.seq in self.refused for e in batch.events):
            raise Refused("no thanks")
        done = super().deliver(batch)
        if batch.again:
            Picky.calls[batch.events[0].seq] += 1
        return done


@pytest.mark.parametrize("torn", [False, True])
def test_a_crash_at_every_operation_of_a_retry(tmp_path, torn):
    """File receivers compare bytes: whatever the crash point, each event is one whole line of one file."""
    spool, out = tmp_path / "spool", tmp_path / "out"
    create_spool(str(spool))
    simple(spool, count=9)
    first = Picky(str(out / "events.jsonl"), {})
    first.refused = frozenset({3, 5})
    Agent(spool, first).run()
    assert len(letters(spool, first)) == 2
    more = make_writer(spool, run="run-2")
    write_metrics(more, 3)
    more.close()
    marked(spool, first)
    shutil.copytree(tmp_path, tmp_path / "before", ignore=shutil.ignore_patterns("before"))
    Picky.calls.clear()
    at, wants = 0, None
    while True:
        at += 1
        for name in ("spool", "out"):
            shutil.rmtree(tmp_path / name)
            shutil.copytree(tmp_path / "before" / name, tmp_path / name)
        durable._sure.clear()  # an inode that is used again would change how many operations there are
        count = [0]

        def fault(operation, path, count=count, at=at):
            count[0] += 1
            if count[0] == at:
                crash = Crash()
                if torn and operation == "write":
                    crash.written = 40
                raise crash

        crashed = False
        set_fault(fault)
        try:
            Agent(spool, Picky(str(out / "events.jsonl"), {})).run()
        except Crash:
            crashed = True
        finally:
            set_fault(None)
        late = make_writer(spool, run="run-0")  # whatever it is, it must not come between
        write_metrics(late, 1)
        late.close()
        Agent(spool, Picky(str(out / "events.jsonl"), {})).run()
        assert [name for name in os.listdir(out) if name[0] != "."] == ["events.jsonl"], at
        got = [json.loads(line) for line in read(out / "events.jsonl").splitlines()]
        events = sorted((e["run"], e["seq"]) for e in got if e["type"] != "run_state")
        runs = {"run-0": 2, "run-1": 11, "run-2": 4}
        wants = wants or [(run, s) for run, last in runs.items() for s in range(1, last + 1)]
        assert events == wants, at
        assert letters(spool, first) == [] and applied(spool, first) == len(wants)
        if not crashed:
            break
    assert at > 12
    assert Picky.calls[3] > at and Picky.calls[5] > at, (
        "no repeated attempt was seen: the test proves nothing"
    )


def test_a_letter_dropped_while_its_retry_is_under_way_is_resolved_once(tmp_path):
    receiver, _key = with_dead(tmp_path, 3)
    marked(tmp_path, receiver)

    def crash(batch):
        raise Crash

    receiver.after = crash
    with pytest.raises(Crash):
        Agent(tmp_path, receiver).run()
    receiver.after = None
    assert marked(tmp_path, receiver, "dropped") == 1
    Agent(tmp_path, receiver).run()
    assert (
        letters(tmp_path, receiver) == [] and receiver.repeats == 1
    )  # it was applied: that is what is on record
    assert_events(tmp_path, receiver)


class Refusing(Dying):
    """A receiver of test_contract that refuses some seqs, and dies before or after its nth call."""

    seqs: frozenset[int] = frozenset()

    def deliver(self, batch):
        if any(e.seq in self.seqs for e in batch.events):
            raise Refused("no thanks")
        return super().deliver(batch)


@pytest.fixture(scope="module")
def contract_spool(tmp_path_factory):
    path = tmp_path_factory.mktemp("letters") / "spool"
    with pytest.MonkeyPatch.context() as patch:
        fill(path, patch)
    return path


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "mlflow"])
def test_crashes_around_each_retry_in_each_tracker(kind, contract_spool, tmp_path):
    """The tracker ends as if nothing had happened: metrics, params, texts and images among the letters."""
    shots = []
    for name in ("calm", "rough"):
        shutil.rmtree(contract_spool / ".agent", ignore_errors=True)
        (tmp_path / name).mkdir()
        target = TARGETS[kind](tmp_path / name)
        first = Refusing(target.make(), 0, "never")
        first.seqs = frozenset({4, 13, 16, 17})
        assert work(contract_spool, first).dead == 8
        assert marked(contract_spool, first) == 8
        again = 0
        for at in range(60):
            receiver = Refusing(target.make(), 2 + at % 3, ("after", "before")[at % 2])
            if name == "calm":  # never dies
                receiver.left = 0
            try:
                assert work(contract_spool, receiver).dead == 0
                break
            except Crash:
                again += receiver.again
        shots.append(target.snapshot())
        assert letters(contract_spool, first) == [] and (again > 8) == (name == "rough"), again
    if (
        kind == "wandb"
    ):  # the run is ended again after each life, so its rows are spread over more directories
        shots = [values_of(shot) for shot in shots]
        assert sum(shots[0].values()) > 40
    assert shots[1] == shots[0]


def values_of(snapshot):
    """How often each value was logged in all logs of a W&B run, whatever its row."""
    rows = [row for rows, _, _ in snapshot.values() for row in rows]
    return Counter(
        (k, repr(v))
        for row in rows
        for k, v in row.items()
        if "step" not in k and k[0] != "_" and k != "rank"
    )


# -- the database ----------------------------------------------------------------------------------------------------


def old_database(tmp_path):
    """What an agent of version 1 left: a stream delivered but for two letters. Returns (receiver, key)."""
    simple(tmp_path)
    (key,) = layout.iter_streams(str(tmp_path))
    receiver = MemoryReceiver(before=refusing(3, 4))
    Agent(tmp_path, receiver).run()
    receiver.before = None
    path = os.path.join(folder_of(tmp_path, receiver), "state.sqlite")
    with sqlite3.connect(path) as new:
        tables = [row[0] for row in new.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: new.execute(f"SELECT * FROM {name}").fetchall() for name in tables}
    os.unlink(path)
    mirror = os.path.join(os.path.dirname(path), "state.mirror")
    for leftover in (f"{path}-wal", f"{path}-shm", mirror, f"{mirror}-wal", f"{mirror}-shm"):
        if os.path.exists(leftover):
            os.unlink(leftover)
    with sqlite3.connect(path) as old:
        old.executescript(SCHEMA)
        old.execute("PRAGMA user_version=1")
        for name in ("meta", "kv", "streams", "dead", "told"):
            for row in rows[name]:
                width = len(row) - 2 if name == "dead" else len(row)
                old.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * width)})", row[:width])
    return receiver, key


def version(spool, receiver):
    with sqlite3.connect(os.path.join(folder_of(spool, receiver), "state.sqlite")) as db:
        return db.execute("PRAGMA user_version").fetchone()[0]


def test_the_schema_of_version_1_never_changes():
    """Databases of it exist: what is new is a step."""
    assert "state TEXT" not in SCHEMA and "retries" not in SCHEMA and VERSION == 4


def test_a_database_of_version_1_is_read_and_brought_up_to_date(tmp_path):
    receiver, _key = old_database(tmp_path)
    assert [(x.seq, x.state, x.reason) for x in letters(tmp_path, receiver)] == [
        (3, "dead", "no thanks"),
        (4, "dead", "no thanks"),
    ]
    assert version(tmp_path, receiver) == 1
    Agent(tmp_path, receiver).run()
    assert version(tmp_path, receiver) == VERSION
    assert [x.state for x in letters(tmp_path, receiver)] == ["dead", "dead"] and receiver.repeats == 0
    marked(tmp_path, receiver)
    Agent(tmp_path, receiver).run()
    assert letters(tmp_path, receiver) == []
    assert_events(tmp_path, receiver)


def test_a_database_of_version_3_is_brought_up_to_date_and_its_damage_noticed_all_the_same(tmp_path):
    simple(tmp_path, count=3)
    receiver = MemoryReceiver()
    Agent(tmp_path, receiver).run()
    folder = folder_of(tmp_path, receiver)
    path, mirror = os.path.join(folder, "state.sqlite"), os.path.join(folder, "state.mirror")
    for change, expected in (("", None), ("UPDATE streams SET next_seq = 3;", "checksum")):
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.executescript(
                f"DROP TABLE damage; DELETE FROM sums WHERE name = 'damage'; {change} PRAGMA user_version=3;"
            )
        for name in (mirror, f"{mirror}-wal", f"{mirror}-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        if expected is None:
            Agent(tmp_path, receiver).run()
            assert version(tmp_path, receiver) == VERSION
        else:
            with pytest.raises(SpoolError, match=expected):
                Agent(tmp_path, receiver).run()
    assert receiver.repeats == 0


def test_marking_in_a_database_of_version_1(tmp_path):
    receiver, _ = old_database(tmp_path)
    folder = folder_of(tmp_path, receiver)
    from filelock import FileLock

    with FileLock(os.path.join(folder, "lock"), mode=0o600), pytest.raises(Locked, match="another version"):
        marked(tmp_path, receiver)
    assert version(tmp_path, receiver) == 1
    assert marked(tmp_path, receiver, seqs=(4,)) == 1
    assert [(x.seq, x.state) for x in letters(tmp_path, receiver)] == [(3, "dead"), (4, "retry")]


def test_a_later_database_is_refused(tmp_path):
    receiver, _ = with_dead(tmp_path, 3)
    for name in ("state.sqlite", "state.mirror"):
        with sqlite3.connect(os.path.join(folder_of(tmp_path, receiver), name)) as db:
            db.execute("PRAGMA user_version=9")
    with pytest.raises(SpoolError, match="version 9, this version uses 4: upgrade"):
        Store(str(tmp_path), receiver.identity)


def test_a_step_that_fails_leaves_version_1(tmp_path):
    receiver, _ = old_database(tmp_path)
    with sqlite3.connect(os.path.join(folder_of(tmp_path, receiver), "state.sqlite")) as db:
        db.execute("CREATE TABLE retrying (x)")  # in the way of the step's last statement
    with pytest.raises(Damaged, match="retrying already exists"):
        Store(str(tmp_path), receiver.identity)
    assert version(tmp_path, receiver) == 1
    assert [x.state for x in letters(tmp_path, receiver)] == ["dead", "dead"]


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path):
    """A spool replayed into TensorBoard, which refused a text whose blob is damaged; and into JSON lines."""
    spool = str(tmp_path / "spool")
    create_spool(spool)
    ref = put_bytes(spool, "site-a", b"the note")
    stream = write_stream(spool, "one", events=3, end=None, close=False)
    stream.append("text", {"key": "note", "blob": ref, "step": 1})
    stream.append("hologram", {"x": "\x1b[31m"})
    stream.close()
    write(layout.blob_path(spool, "site-a", ref["sha256"]), b"the nose")
    done = forked("replay", "spool", "--to", "tensorboard:tb", "--to", "jsonl:x.jsonl", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    return tmp_path


def dead(*args, cwd, code=0):
    done = forked("dead-letters", *args, "--spool", "spool", cwd=cwd)
    assert done.returncode == code, done
    return done.stdout


def listed(*args, cwd, code=1):
    *found, summary = [
        json.loads(line) for line in dead("list", "--json", *args, cwd=cwd, code=code).splitlines()
    ]
    return found, summary


def test_list_shows_every_receivers_letters(place):
    found, summary = listed(cwd=place)
    assert [(x["receiver"], x["run"], x["seq"], x["type"], x["state"]) for x in found] == [
        ("jsonl:x.jsonl", "one", 6, "hologram", "dead"),
        ("tensorboard:tb", "one", 5, "text", "dead"),
        ("tensorboard:tb", "one", 6, "hologram", "dead"),
    ]
    assert "is damaged" in found[1]["reason"] and found[1]["time_ns"] > 1.7e18
    assert summary == {"spool": str(place / "spool"), "dead": 3, "retry": 0, "dropped": 0}
    text = dead("list", "--receiver", "tensorboard:tb", "--type", "text", cwd=place, code=1)
    lines = text.splitlines()
    assert lines[0] == "tensorboard:tb" and len(lines) == 2
    assert lines[1].startswith("  dead    site-a/one/") and " seq 5 text, " in lines[1]
    assert listed("--type", "image", cwd=place, code=0)[0] == []
    assert listed("--state", "dropped", cwd=place, code=0)[0] == []


def test_show_decodes_the_event(place):
    text = dead("show", "--type", "hologram", "--receiver", f"jsonl:{place}/x.jsonl", cwd=place)
    assert '"type": "hologram"' in text and "\x1b" not in text
    (one,) = [json.loads(x) for x in dead("show", "--seq", "5", "--json", cwd=place).splitlines()]
    assert one["event"]["key"] == "note" and one["missing"] is None
    path = segment_of(place / "spool")
    write(path, read(path).replace(b'"hologram"', b'"hologrum"'))
    assert "cannot be shown: its bytes are damaged" in dead("show", "--seq", "6", cwd=place, code=1)


def test_retry_after_the_blob_was_mended(place):
    (blob,) = (place / "spool/sites/site-a/blobs").rglob("*/*")
    write(blob, b"the note")
    said = dead("retry", "--type", "text", cwd=place)
    assert said == "1 dead letters are to be retried; the next serve or replay retries them\n"
    assert listed("--state", "retry", cwd=place)[1]["retry"] == 1
    assert dead("retry", "--type", "text", cwd=place).startswith("0 dead letters")
    done = forked("replay", "spool", "--to", "tensorboard:tb", cwd=place)
    assert done.returncode == 1, done.stderr  # the hologram is still dead
    assert "tensorboard:tb: 1 events delivered, 1 dead letters" in done.stderr
    assert [x["seq"] for x in listed("--receiver", "tensorboard:tb", cwd=place)[0]] == [6]
    from tb_help import accumulate

    assert accumulate(place / "tb/site-a/one").Reload().Tensors("note/text_summary")[0].step == 1


def test_a_running_service_retries_at_its_next_sweep(place):
    (blob,) = (place / "spool/sites/site-a/blobs").rglob("*/*")
    write(blob, b"the note")
    with Serving(place, f"tensorboard:{place}/tb", stuck_after_s=60.0) as serving:
        until(lambda: (s := serving.status("tensorboard")) and s.is_running, what="the worker")
        said = dead("retry", "--type", "text", "--receiver", f"tensorboard:{place}/tb", cwd=place)
        assert said == "1 dead letters are to be retried; the worker retries them at its next sweep\n"
        until(lambda: serving.status("tensorboard").dead == 1, what="the retry")
        assert serving.status("tensorboard").applied == 5
    assert serving.heard("1 dead letters were retried and delivered")


def test_dropped_letters_are_on_record_and_fail_no_script(place):
    assert dead("drop", "--all", cwd=place) == "3 dead letters dropped\n"
    found, summary = listed(cwd=place, code=0)
    assert {x["state"] for x in found} == {"dropped"} and summary["dropped"] == 3
    done = forked("replay", "spool", "--to", "tensorboard:tb", cwd=place)
    assert done.returncode == 0, done.stderr
    assert dead("retry", "--all", cwd=place).startswith("0 dead letters")
    assert json.loads(dead("retry", "--all", "--dropped", "--json", cwd=place))["retry"] == 3
    assert forked("replay", "spool", "--to", "jsonl:x.jsonl", cwd=place).returncode == 1
    (letter,) = listed("--receiver", "jsonl:x.jsonl", cwd=place)[0]
    assert (letter["state"], letter["retries"]) == ("dead", 1)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["retry"], "which ones? give --site, --run, --writer, --type, --seq or --reason, or --all"),
        (["drop"], "which ones?"),
        (
            ["retry", "--run", "none"],
            "has no such dead letter; 'spoolagent dead-letters list' shows what there is",
        ),
        (["show", "--seq", "99"], "has no such dead letter"),
        (["list", "--state", "ded"], "--state: no state 'ded': did you mean 'dead'?"),
        (["list", "--receiver", "jsonl:y.jsonl"], "--receiver: jsonl:y.jsonl was never used with "),
        (["list", "--receiver", "jsnl:x"], "--receiver: unknown receiver kind 'jsnl'"),
    ],
)
def test_wrong_commands(place, args, said):
    done = forked("dead-letters", *args, "--spool", "spool", cwd=place)
    assert (done.returncode, done.stdout) == (2, "") and said in done.stderr


def test_a_spool_that_was_never_served(tmp_path):
    create_spool(str(tmp_path / "spool"))
    assert "no dead letters" in dead("list", cwd=tmp_path)
    assert dead("retry", "--all", cwd=tmp_path) == "0 dead letters are to be retried\n"
