"""A file cut at every byte, and a bit flipped at every byte: through the worker, the shipper, the commands, a target.

What is promised:

- Segments and `pruned.json`, at home and shipped: every seq is applied once with the value it was issued with, or on
  record as lost, or still to come; never two of these, never another value. Bad bytes are in quarantine. Other streams
  are not delayed.
- A target's file that somebody cut below the length that we know: what comes later goes to a later-named file, whole.
  What was cut is not delivered again: `verify` and the tracker's own reader tell. A flipped bit in what was delivered
  is not looked for: the file goes on with the same bytes as without the damage.

The cursor database is in `test_cursor_bytes.py`; here is what the commands say of a damaged one. All positions with
SPOOLAGENT_EVERY_BYTE=1; else every position of the small files and a sample of the large ones.
"""

import contextlib
import json
import os
import shutil
import sqlite3

import pytest
import shipping_help
from cli_help import forked
from damage_help import EVERY, damages, flip, in_slices, read, sampled, write
from plain_reader import read_stream
from report_facts import counted
from spool_help import make_writer, write_metrics
from tb_help import event_files, records
from test_worker import Agent, simple
from wandb_help import read_records, rows_of

from spoolagent.format import layout
from spoolagent.format.ends import DeathWatch, end_dead_stream
from spoolagent.format.header import read_segment_header
from spoolagent.format.lines import encode_line
from spoolagent.format.spool import create_spool
from spoolagent.serving import sums
from spoolagent.serving.changes import Commit, StreamFacts
from spoolagent.serving.database import open_checked
from spoolagent.serving.registry import load_receiver
from spoolagent.serving.status import read_status
from spoolagent.serving.store import Store, target_dir
from spoolagent.testing import MemoryReceiver

pytestmark = pytest.mark.bytes


# -- segments and pruned.json, through the worker and the shipper --------------------------------------------------


class Hurt:
    """A spool with a stream of some small segments, and another stream that must never wait for it."""

    def __init__(self, path):
        self.path = path
        writer = make_writer(path, segment_bytes=600)
        write_metrics(writer, 8)
        writer.append("run_end", {"status": "finished", "exit_code": 0})
        writer.close()
        (self.key,) = layout.iter_streams(path)
        self.folder = layout.stream_dir(path, self.key)
        self.issued = issued(path, self.key)
        simple(path, run="run-2", count=1)
        (self.other,) = (key for key in layout.iter_streams(path) if key != self.key)
        self.others = issued(path, self.other)

    @property
    def segments(self):
        return [os.path.join(self.folder, layout.segment_name(n)) for n in layout.list_segments(self.folder)]

    def forget(self):
        shutil.rmtree(os.path.join(self.path, ".agent"), ignore_errors=True)
        for first in layout.list_ends(self.folder):
            os.unlink(os.path.join(self.folder, layout.end_name(first)))


def issued(spool, key):
    return {event["seq"]: event for event in read_stream(layout.stream_dir(spool, key))[0]}


def resolved(spool, key, receiver):
    """The seqs of a stream that are (applied, dead, lost), each seq as often as it is on record, and bad bytes."""
    db = sqlite3.connect(os.path.join(target_dir(spool, receiver.identity), "state.sqlite"))
    with contextlib.closing(db):
        dead = [row[0] for row in db.execute("SELECT seq FROM dead WHERE writer = ?", (key.writer,))]
        lost = [
            seq
            for first, last in db.execute("SELECT first, last FROM lost WHERE writer = ?", (key.writer,))
            for seq in range(first, last + 1)
        ]
        (bad,) = db.execute("SELECT count(*) FROM quarantine WHERE writer = ?", (key.writer,)).fetchone()
    return sorted(receiver.events.get(key, {})), dead, lost, bad


def conserved(hurt, spool, receiver, why):
    """Checks what was delivered, value by value; returns (seqs not resolved, lost, bad)."""
    got = receiver.events.get(hurt.key, {})
    assert all(hurt.issued[seq] == event.data for seq, event in got.items()), why
    applied, dead, lost, bad = resolved(spool, hurt.key, receiver)
    done = [*applied, *dead, *lost]
    assert len(done) == len(set(done)) and set(done) <= set(hurt.issued), (why, applied, dead, lost)
    assert receiver.repeats == 0, why
    others = {seq: event.data for seq, event in receiver.events[hurt.other].items()}
    assert others == hurt.others, f"{why}: another stream waited"
    return sorted(set(hurt.issued) - set(done)), lost, bad


def work(spool, receiver):
    """Until nothing moves any more, with a clock that flies."""
    Agent(spool, receiver, max_events=3, patience_s=5.0).run(passes=60)


class Patient(Agent):
    """An hour goes by at each wait: also what a server waits a day for is given up."""

    def wait(self, timeout_s):
        super().wait(3600.0)


@in_slices
def test_a_segment_through_the_worker(place, part):
    hurt = Hurt(place)
    assert len(hurt.segments) >= 3
    seen = {"lost": 0, "waited": 0, "bad": 0}
    for path in hurt.segments:
        whole, is_last = read(path), path == hurt.segments[-1]
        for kind, at, damaged in counted("a segment, through the worker", damages(whole, 11, part)):
            hurt.forget()
            write(path, damaged)
            receiver, why = MemoryReceiver(), (os.path.basename(path), kind, at)
            work(place, receiver)
            waits, lost, bad = conserved(hurt, place, receiver, why)
            assert not waits or is_last, why
            if kind == "flipped" and not waits:
                assert len(lost) <= 2, why
                torn = is_last and at == len(whole) - 1  # the seal's newline: it may still come
                assert bad or torn or at <= whole.index(b"\n"), why
            if waits:  # nobody knows yet that there was more: its agent ends it, or the bytes come back
                seen["waited"] += 1
                assert waits == list(range(waits[0], max(hurt.issued) + 1)), why
                if kind == "cut":
                    write(path, whole)
                else:  # a newline before the seal: both are one bad line, which was given up
                    assert end_dead_stream(hurt.folder, DeathWatch()), why
                work(place, receiver)
                left, lost, bad = conserved(hurt, place, receiver, why)
                assert left == [], why
                assert kind == "flipped" or not lost, why
            kept = os.path.join(place, ".agent", "quarantine")
            files = sum(len(names) for _, _, names in os.walk(kept))
            assert files >= min(bad, 1), why
            seen["lost"] += len(lost)
            seen["bad"] += bad
        write(path, whole)
    assert all(seen.values()), seen


@in_slices
def test_a_segment_that_was_cut_is_ended_and_counted(place, part):
    """The last segment of a closed stream, cut: the agent at home ends it, and all that is whole is delivered."""
    hurt = Hurt(place)
    path = hurt.segments[-1]
    whole = read(path)
    for at in counted("a last segment that was cut", sampled(len(whole), 9, part)):
        hurt.forget()
        write(path, whole[:at])
        end_dead_stream(hurt.folder, DeathWatch())
        receiver = MemoryReceiver()
        work(place, receiver)
        waits, lost, _ = conserved(hurt, place, receiver, at)
        lines = whole[:at].count(b"\n")
        assert len(waits) == len(hurt.issued) - len(receiver.events[hurt.key]) and not lost
        assert lines == 0 or len(receiver.events[hurt.key]) >= min(hurt.issued) + lines - 2


@in_slices
def test_a_segment_through_ship(place, part):
    home, away = os.path.join(place, "home"), os.path.join(place, "away")
    hurt = Hurt(home)
    refused = 0
    for path in hurt.segments:
        whole = read(path)
        for kind, at, damaged in counted("a segment, through ship", damages(whole, 131, part)):
            hurt.forget()
            shutil.rmtree(away, ignore_errors=True)
            write(path, damaged)
            why = (os.path.basename(path), kind, at)
            report = shipping_help.ship_once(home, away, patience_s=0.0)
            receiver = MemoryReceiver()
            work(away, receiver)
            waits, _, _ = conserved(hurt, away, receiver, why)
            write(path, whole)  # the bytes are back
            again = shipping_help.ship_once(home, away, patience_s=0.0)
            work(away, receiver)
            left, lost, _ = conserved(hurt, away, receiver, why)
            if left and again.exit_code == 0 and again.complete == again.streams:
                # A bad line was given up, but what became of the seq in it is not known without the seal that was
                # glued to it. The bytes that came since are behind the cursor.
                Patient(away, receiver, max_events=3, patience_s=5.0).run(passes=60)
                left, lost, _ = conserved(hurt, away, receiver, why)
                assert left == [] and len(lost) == 1, (why, left, lost)
            refused += report.exit_code != 0 or report.complete < report.streams or bool(waits)
        write(path, whole)
    assert refused > 10


def test_any_damage_to_pruned_json(place):
    home, away = os.path.join(place, "home"), os.path.join(place, "away")
    hurt = Hurt(home)
    second = layout.list_segments(hurt.folder)[1]
    prev = read_segment_header(hurt.segments[1]).prev
    os.unlink(hurt.segments[0])
    path = os.path.join(hurt.folder, layout.PRUNED_FILE)
    whole = encode_line({"through": second - 1, "prev": prev, "time": 7})
    tried = counted("pruned.json", [("whole", 0, whole), *damages(whole)])
    for number, (kind, at, damaged) in enumerate(tried, 7):
        hurt.forget()
        write(path, damaged)
        receiver = MemoryReceiver()
        work(home, receiver)
        waits, lost, _ = conserved(hurt, home, receiver, (kind, at))
        assert waits == [] and lost == list(range(1, second)), (kind, at)
        if number % 16 == 7 or EVERY:
            shutil.rmtree(away, ignore_errors=True)
            shipping_help.ship_once(home, away, patience_s=0.0)
            receiver = MemoryReceiver()
            work(away, receiver)
            waits, lost, _ = conserved(hurt, away, receiver, (kind, at))
            assert [*lost, *waits][: second - 1] == list(range(1, second)), (kind, at)


# -- the cursor database, in the commands ----------------------------------------------------------------------------


def test_a_log_that_lost_its_end_after_it_was_copied_into_the_database(place):
    """SQLite then shows old pages beside new ones, and says nothing."""
    create_spool(place)
    key = layout.StreamKey("site-1", "run-1", "w-1")
    with Store(place, "memory:") as store:
        store.put("a", 1)
        store.commit([])
        first = os.path.getsize(store.path + "-wal")
        store.commit([Commit(key=key, facts=StreamFacts(), dead=[(1, "metrics", "no thanks")])])
        with contextlib.closing(sqlite3.connect(store.path)) as db:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            database, log = read(store.path), read(store.path + "-wal")
    for cut in (first, first + 4120):
        write(store.path, database)
        write(store.path + "-wal", log[:cut])
        with pytest.raises(sums.Damaged, match="checksum"):
            open_checked(store.path, was_made=True)
    write(store.path, database)
    write(store.path + "-wal", log)
    with Store(place, "memory:") as store:
        assert store.get("a") == 1 and store.count("dead") == 1


def damage_to(path, damage):
    whole = read(path)
    if damage == "row":
        assert whole.count(b'"number":1') == 1
        write(path, whole.replace(b'"number":1', b'"number":3'))
    elif damage == "missing":
        os.unlink(path)
    elif damage == "schema":
        write(path, whole.replace(b"CREATE TABLE kv ", b"CREATE TABLE jv ", 1))
    else:
        write(path, b"" if damage == "empty" else whole[: len(whole) // 2])


def delivered_and_more(place):
    """A spool that is delivered, and in which a second run was written since: (its path, the target, its bytes, folder)."""
    spool, out = os.path.join(place, "spool"), os.path.join(place, "events.jsonl")
    simple(spool, count=8)
    assert forked("replay", spool, "--to", f"jsonl:{out}", cwd=place).returncode == 0
    (folder,) = (s.folder for s in read_status(spool))
    want = read(out)
    writer = make_writer(spool, run="run-2")
    write_metrics(writer, 2)
    writer.close()
    return spool, out, want, folder


DAMAGES = ["row", "missing", "empty", "malformed", "schema"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_database_in_the_commands(place, damage):
    """`replay` says in one line that the mirror took over, and goes on; `status` keeps it on record."""
    spool, out, want, folder = delivered_and_more(place)
    path = os.path.join(folder, "state.sqlite")
    damage_to(path, damage)
    shown = forked("status", spool, cwd=place)
    assert shown.returncode == 0 and "its mirror takes its place when a worker starts" in shown.stdout
    (status,) = read_status(spool)
    assert status.state == "damaged" and status.applied == 10, status
    done = forked("replay", spool, "--to", f"jsonl:{out}", cwd=place)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if "was found damaged" in line]
    assert path in line and "its mirror has taken its place" in line
    assert os.path.exists(os.path.join(folder, "damaged.sqlite")) == (damage != "missing")
    more = [json.loads(line) for line in read(out).removeprefix(want).splitlines()]
    assert [x.get("seq") for x in more] == [1, 2, 3, None] and {x["run"] for x in more} == {"run-2"}
    (status,) = read_status(spool)
    assert status.state == "not running" and not status.error and "was found damaged" in status.recovered
    again = forked("replay", spool, "--to", f"jsonl:{out}", cwd=place)
    assert again.returncode == 0 and "damaged" not in again.stderr, "it is said once"


@pytest.mark.parametrize("damage", DAMAGES)
def test_both_copies_damaged_in_the_commands(place, damage):
    """`replay` ends with one line and code 1, `status` says the same, and both are well again with the backup."""
    spool, out, want, folder = delivered_and_more(place)
    path, mirror = os.path.join(folder, "state.sqlite"), os.path.join(folder, "state.mirror")
    whole = read(path)
    damage_to(path, damage)
    damage_to(os.path.realpath(mirror), damage)
    done = forked("replay", spool, "--to", f"jsonl:{out}", cwd=place)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "is damaged" in line]
    assert path in line and "Put a backup" in line and read(out) == want
    (status,) = read_status(spool)
    assert status.state == "damaged" and path in status.error
    shown = forked("status", spool, cwd=place)
    assert shown.returncode == 0 and "is damaged" in shown.stdout, shown
    write(path, whole)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(mirror)
    done = forked("replay", spool, "--to", f"jsonl:{out}", cwd=place)
    assert done.returncode == 0, done.stderr
    more = [json.loads(line) for line in read(out).removeprefix(want).splitlines()]
    assert [x.get("seq") for x in more] == [1, 2, 3, None] and {x["run"] for x in more} == {"run-2"}
    (status,) = read_status(spool)
    assert status.state == "not running"


def test_every_table_is_watched_and_every_change_counted(place):
    """Rows that are added, replaced, changed and removed, in every table."""
    simple(place, count=3)
    receiver = MemoryReceiver()
    work(place, receiver)
    with Store(place, receiver.identity) as store:
        db = store._db
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        assert {row[0] for row in db.execute(query)} == {*sums.TABLES, "sums"}
        for table in sums.TABLES:
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            values = [7 if c in ("number", "n") else str(i) for i, c in enumerate(columns)]
            marks = ", ".join("?" * len(values))
            for statement, given in (
                (f"INSERT INTO {table} VALUES ({marks})", values),
                (f"REPLACE INTO {table} VALUES ({marks})", values),
                (f"UPDATE {table} SET {columns[-1]} = 9", ()),
                (f"DELETE FROM {table}", ()),
            ):
                db.execute(statement, given)
                sums.check(db, store.path)
        with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as stranger:
            stranger.execute("INSERT INTO kv VALUES ('a', '1')")
        with pytest.raises(sums.Damaged, match="table kv"):
            sums.check(db, store.path)


# -- a target's file -----------------------------------------------------------------------------------------------


class Half:
    """A spool of which the first half is in a target, and the second half is written since."""

    def __init__(self, place, kind, pattern):
        self.spool, self.target = os.path.join(place, "spool"), os.path.join(place, "target")
        self.spec = f"{kind}:{self.target}/logs"  # the mirror lies above TensorBoard's, and goes back with it
        self.pattern = pattern
        writer = make_writer(self.spool, start={"host": "h", "pid": 1, "attempt": 1})
        write_metrics(writer, 6)
        self.deliver()
        shutil.copytree(self.spool, self.spool + ".half")
        shutil.copytree(self.target, self.target + ".half")
        write_metrics(writer, 6, 6)
        writer.append("run_end", {"status": "finished", "exit_code": 0})
        writer.close()
        (self.file,) = self.files()
        self.half = read(self.file)
        self.deliver()
        self.whole = read(self.file)
        assert self.files() == [self.file] and self.whole.startswith(self.half)

    def files(self):
        found = []
        for folder, _, names in os.walk(self.target):
            found += [os.path.join(folder, name) for name in names if self.pattern in name]
        return sorted(found)

    def deliver(self):
        receiver = load_receiver(self.spec, {})
        agent = Agent(self.spool, receiver, max_events=3)
        agent.run(passes=60)
        receiver.close()
        assert not agent.worker.is_failing and agent.dead == 0, agent.said
        return agent

    def after(self, damaged):
        """The files after the second half came to a damaged first one."""
        shutil.rmtree(self.target)
        shutil.copytree(self.target + ".half", self.target)
        agent = os.path.join(self.spool, ".agent")
        shutil.rmtree(agent)
        shutil.copytree(os.path.join(self.spool + ".half", ".agent"), agent)
        write(self.file, damaged)
        agent = self.deliver()
        assert agent.worker.is_drained()
        gone, said = len(self.half) - len(damaged), [line for line in agent.said if "gone" in line]
        (status,) = read_status(self.spool)
        if gone:
            (line,) = said
            assert f"the last {gone} bytes that were delivered to {self.file} are gone" in line
            assert status.damage == (line.removeprefix("memory: "),) and status.damaged == 1
            assert line.endswith(f"what comes later is in {self.files()[-1]}")
        else:
            assert not said and status.damaged == 0
        self.deliver()  # once is enough
        assert read_status(self.spool)[0].damaged == status.damaged
        return self.files()


def scalars(path):
    return [
        (e.step, v.tag, v.simple_value) for e in records(path) for v in e.summary.value if v.tag == "loss"
    ]


@in_slices
def test_a_damaged_event_file(place, part):
    half = Half(place, "tensorboard", "tfevents")
    later = [(step, "loss", step / 8) for step in range(6, 12)]
    for at in counted("an event file, cut", sampled(len(half.half), 7, part)):
        files = half.after(half.half[:at])
        assert files[0] == half.file and len(files) == 2, at
        assert read(half.file) == half.half[:at], "what is there is left alone"
        assert event_files(os.path.dirname(half.file)) == files, "the new one comes later"
        assert scalars(files[1]) == later
    for at in counted("an event file, flipped", sampled(len(half.half), 23, part)):
        assert half.after(flip(half.half, at)) == [half.file]
        assert read(half.file) == flip(half.whole, at)


@in_slices
def test_a_damaged_wandb_log(place, part):
    half = Half(place, "wandb:offline", ".wandb")
    first = half.file
    for at in counted("a .wandb log, cut", sampled(len(half.half), 31, part)):
        files = [path for path in half.after(half.half[:at]) if path != first]
        assert read(first) == half.half[:at], "what is there is left alone"
        assert len(files) == 1, (at, files)
        rows = [(row["_step"], row["loss"]) for row in rows_of(read_records(files[0])) if "loss" in row]
        assert rows == [(step, step / 8) for step in range(5, 12)], (at, rows)  # 5 was open yet
    for at in counted("a .wandb log, flipped", sampled(len(half.half), 97, part)):
        assert half.after(flip(half.half, at)) == [first]
        assert read(first) == flip(half.whole, at)
