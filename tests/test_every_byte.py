"""A file cut at every byte, and a bit flipped at every byte: through the worker, the shipper, the cursor store, a target.

What is promised:

- Segments and `pruned.json`, at home and shipped: every seq is applied once with the value it was issued with, or on
  record as lost, or still to come; never two of these, never another value. Bad bytes are in quarantine. Other streams
  are not delayed.
- The cursor database: what is damaged is noticed when a worker starts (SQLite's own integrity check, and our checksums
  over every row). Then nothing is delivered, one line names the file and the next step, `status` says the same, and
  with the database put back everything arrives once. The end of the write-ahead log may be cut or damaged without
  being noticed: that is an older committed state, and what is delivered again has no second effect in the memory,
  JSON lines and TensorBoard receivers.
- A target's file that somebody cut below the length that we know: what comes later goes to a later-named file, whole.
  What was cut is not delivered again: `verify` and the tracker's own reader tell. A flipped bit in what was delivered
  is not looked for: the file goes on with the same bytes as without the damage.

All positions with SPOOLAGENT_EVERY_BYTE=1; else every position of the small files and a sample of the large ones.
"""

import contextlib
import copy
import json
import os
import shutil
import sqlite3
import tempfile

import pytest
import shipping_help
from cli_help import forked
from plain_reader import read_stream
from report_facts import counted
from sizes import EVERY_BYTE as EVERY
from spool_help import make_writer, write_metrics
from tb_help import event_files, records, without_fsync
from test_worker import Agent, Crash, simple
from wandb_help import read_records, rows_of

from spoolagent.errors import SpoolError
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


@pytest.fixture
def place(tmp_path):
    """A directory in memory where there is one: these tests make thousands of commits."""
    home = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(tmp_path)
    with tempfile.TemporaryDirectory(dir=home) as path, without_fsync():
        yield path


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def sampled(size, step):
    """Every position, or one in each `step`, at a place that moves."""
    return (
        range(size)
        if EVERY
        else sorted({min(at + at // step % step, size - 1) for at in range(0, size, step)})
    )


def damages(whole, step=1):
    """(kind, position, bytes): cut there, and with one bit of that byte flipped."""
    for at in sampled(len(whole), step):
        yield "cut", at, whole[:at]
        flipped = bytearray(whole)
        flipped[at] ^= 1 << ((at * 5 + at // 8) % 8)
        yield "flipped", at, bytes(flipped)


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


def test_a_segment_through_the_worker(place):
    hurt = Hurt(place)
    assert len(hurt.segments) >= 3
    seen = {"lost": 0, "waited": 0, "bad": 0}
    for path in hurt.segments:
        whole, is_last = read(path), path == hurt.segments[-1]
        for kind, at, damaged in counted("a segment, through the worker", damages(whole, 11)):
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


def test_a_segment_that_was_cut_is_ended_and_counted(place):
    """The last segment of a closed stream, cut: the agent at home ends it, and all that is whole is delivered."""
    hurt = Hurt(place)
    path = hurt.segments[-1]
    whole = read(path)
    for at in counted("a last segment that was cut", sampled(len(whole), 9)):
        hurt.forget()
        write(path, whole[:at])
        end_dead_stream(hurt.folder, DeathWatch())
        receiver = MemoryReceiver()
        work(place, receiver)
        waits, lost, _ = conserved(hurt, place, receiver, at)
        lines = whole[:at].count(b"\n")
        assert len(waits) == len(hurt.issued) - len(receiver.events[hurt.key]) and not lost
        assert lines == 0 or len(receiver.events[hurt.key]) >= min(hurt.issued) + lines - 2


def test_a_segment_through_ship(place):
    home, away = os.path.join(place, "home"), os.path.join(place, "away")
    hurt = Hurt(home)
    refused = 0
    for path in hurt.segments:
        whole = read(path)
        for kind, at, damaged in counted("a segment, through ship", damages(whole, 131)):
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


# -- the cursor database -------------------------------------------------------------------------------------------


class Dying:
    """A receiver whose process is killed in its nth delivery, when the batch is in the tracker."""

    def __init__(self, inner, at, then):
        self.inner, self.at, self.then = inner, at, then
        self.identity = inner.identity
        self.open, self.close, self.set_status = inner.open, inner.close, inner.set_status

    def deliver(self, batch):
        done = self.inner.deliver(batch)
        self.at -= 1
        if self.at == 0:
            self.then()
            raise Crash
        return done


class Memory:
    """The memory receiver as a target that outlives its worker."""

    def __init__(self, place):
        self.receiver = MemoryReceiver()

    def make(self):
        return self.receiver

    def keep(self):
        self.kept = copy.deepcopy((self.receiver.events, self.receiver.order, self.receiver.statuses))

    def put_back(self):
        events, order, statuses = copy.deepcopy(self.kept)
        self.receiver.events, self.receiver.order, self.receiver.statuses = events, order, statuses

    def content(self):
        events = {key: {seq: e.data for seq, e in held.items()} for key, held in self.receiver.events.items()}
        return copy.deepcopy((events, self.receiver.order))


class Files:
    """A target that is a directory."""

    kind = ""

    def __init__(self, place):
        self.path = os.path.join(place, "target")
        os.makedirs(self.path)

    def make(self):
        return load_receiver(f"{self.kind}:{self.path}", {})

    def keep(self):
        shutil.copytree(self.path, self.path + ".kept")

    def put_back(self):
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.path + ".kept", self.path)

    def content(self):
        found = {}
        for folder, below, names in os.walk(self.path):
            below[:] = [name for name in below if name != ".spoolagent"]  # the mirror
            found.update({os.path.join(folder, name): read(os.path.join(folder, name)) for name in names})
        return found


class TensorBoard(Files):
    kind = "tensorboard"


class Jsonl(Files):
    kind = "jsonl"

    def make(self):
        return load_receiver(f"jsonl:{self.path}/events.jsonl", {})


class Interrupted:
    """A spool half delivered: cursors and target as a kill left them, to be put back as often as one likes."""

    def __init__(self, place, target, log):
        self.spool, self.target = os.path.join(place, "spool"), target
        self.agent = os.path.join(self.spool, ".agent")
        simple(self.spool, count=8)
        identity = target.make().identity
        self.folder = target_dir(self.spool, identity)
        self.database = os.path.join(self.folder, "state.sqlite")
        with contextlib.suppress(Crash):
            self.run(Dying(target.make(), 3, self.keep if log else lambda: None))
        if not log:
            self.keep()
        self.put_back()
        self.run(target.make())
        self.want, self.applied = target.content(), self.delivered()
        assert self.applied == 10
        self.put_back()

    def keep(self):
        shutil.copytree(self.agent, self.agent + ".kept")
        self.target.keep()

    def put_back(self):
        shutil.rmtree(self.agent, ignore_errors=True)
        shutil.copytree(self.agent + ".kept", self.agent)
        self.target.put_back()

    def run(self, receiver):
        Agent(self.spool, receiver, max_events=2).run()
        receiver.close()

    def delivered(self):
        (status,) = read_status(self.spool)
        return status.applied

    def try_with(self, name, damaged, why):
        """Works with a damaged file. True when it was noticed: then the mirror took over, and nobody had to come."""
        self.put_back()
        write(self.database + name, damaged)
        self.run(self.target.make())
        assert self.target.content() == self.want, f"{why}: lost, or delivered twice"
        assert self.delivered() == self.applied, why
        (status,) = read_status(self.spool)
        assert not status.error, (why, status)
        return "its mirror has taken its place" in status.recovered

    def without_mirror(self, damaged, why):
        """Both are damaged: nothing is delivered, and one line says what to do."""
        self.put_back()
        mirror = os.path.join(self.folder, "state.mirror")
        for path in (self.database, mirror):
            write(path, damaged)
            for side in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path + side)
        before = self.target.content()
        with pytest.raises(SpoolError) as caught:
            self.run(self.target.make())
        said = str(caught.value)
        assert self.database in said and "ut a backup" in said and "\n" not in said, (why, said)
        assert self.target.content() == before, f"{why}: something was delivered"
        (status,) = read_status(self.spool)
        assert status.state == "damaged", (why, said, status)


def step_of(target, memory, files):
    """How far apart the positions are. With SPOOLAGENT_EVERY_BYTE: all for the memory receiver, a dense sample for files."""
    if EVERY:
        return 1 if target is Memory else memory
    return memory if target is Memory else files


def positions(whole, step):
    """Of a database: page headers and used bytes densely, unused ones now and then."""
    if step == 1:
        return range(len(whole))
    used = [at for at in range(len(whole)) if whole[at] or at % 4096 < 16]
    idle = [at for at in range(0, len(whole), 997) if not whole[at]]
    return sorted({*range(100), *used[::step], *idle})


def flip(whole, at, bit=None):
    changed = bytearray(whole)
    changed[at] ^= 1 << ((at * 5 + at // 8) % 8 if bit is None else bit)
    return bytes(changed)


@pytest.mark.parametrize("target", [Memory, Jsonl, TensorBoard])
def test_a_flipped_bit_in_the_cursor_database(place, target):
    case = Interrupted(place, target(place), log=False)
    whole = read(case.database)
    noticed, silent = 0, []
    for number, at in enumerate(positions(whole, step_of(target, 17, 151))):
        if case.try_with("", flip(whole, at), at):
            noticed += 1
            if number % 40 == 0:
                case.without_mirror(flip(whole, at), at)
        else:
            silent.append(at)
    # Bytes that mean nothing: counters of the file's header, unused space, lengths of free blocks, sequence numbers.
    used = [at for at in silent if at >= 100 and whole[at]]
    assert noticed > 9 * len(used), (noticed, [(at // 4096, at % 4096) for at in used])


@pytest.mark.parametrize("target", [Memory, Jsonl, TensorBoard])
def test_the_cursor_database_cut(place, target):
    case = Interrupted(place, target(place), log=False)
    whole = read(case.database)
    step = step_of(target, 97, 997)
    last = len(whole) - 4096
    ends = (
        range(len(whole))
        if step == 1
        else sorted(
            {
                0,
                1,
                15,
                16,
                99,
                100,
                511,
                512,
                *range(0, 4096, step),
                *range(4096, last, 4096),
                *range(last, len(whole), step),
            }
        )
    )
    for number, at in enumerate(ends):
        assert case.try_with("", whole[:at], at), f"cut at {at}, unnoticed"
        if number % 40 == 0:
            case.without_mirror(whole[:at], at)


@pytest.mark.parametrize("target", [Memory, Jsonl, TensorBoard])
def test_the_log_of_the_cursor_database(place, target):
    case = Interrupted(place, target(place), log=True)
    log = read(case.database + "-wal")
    assert len(log) > 4096
    step = step_of(target, 499, 2999)
    frames = {
        32 + n * 4120 + byte
        for n in range(len(log) // 4120)
        for byte in ((0, 4, 8, 16, 23, 24) if target is Memory else (5, 20))
    }
    ends = sorted({*range(0, 32, 3), *frames, *range(0, len(log), step)})
    for at in ends:
        case.try_with("-wal", log[:at], ("cut", at))
        case.try_with("-wal", flip(log, at), ("flipped", at))
    case.put_back()
    os.unlink(case.database + "-wal")  # all of it
    case.run(case.target.make())
    assert case.target.content() == case.want


def test_the_database_beside_its_log(place):
    """A page of the database damaged while the log holds later ones: used right, or noticed."""
    case = Interrupted(place, Jsonl(place), log=True)
    whole = read(case.database)
    for at in positions(whole, 17 if EVERY else 519):
        case.try_with("", flip(whole, at), at)


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
        self.spec = f"{kind}:{self.target}"
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


def test_a_damaged_event_file(place):
    half = Half(place, "tensorboard", "tfevents")
    later = [(step, "loss", step / 8) for step in range(6, 12)]
    for at in counted("an event file, cut", sampled(len(half.half), 7)):
        files = half.after(half.half[:at])
        assert files[0] == half.file and len(files) == 2, at
        assert read(half.file) == half.half[:at], "what is there is left alone"
        assert event_files(os.path.dirname(half.file)) == files, "the new one comes later"
        assert scalars(files[1]) == later
    for at in counted("an event file, flipped", sampled(len(half.half), 23)):
        assert half.after(flip(half.half, at)) == [half.file]
        assert read(half.file) == flip(half.whole, at)


def test_a_damaged_wandb_log(place):
    half = Half(place, "wandb:offline", ".wandb")
    first = half.file
    for at in counted("a .wandb log, cut", sampled(len(half.half), 31)):
        files = [path for path in half.after(half.half[:at]) if path != first]
        assert read(first) == half.half[:at], "what is there is left alone"
        assert len(files) == 1, (at, files)
        rows = [(row["_step"], row["loss"]) for row in rows_of(read_records(files[0])) if "loss" in row]
        assert rows == [(step, step / 8) for step in range(5, 12)], (at, rows)  # 5 was open yet
    for at in counted("a .wandb log, flipped", sampled(len(half.half), 97)):
        assert half.after(flip(half.half, at)) == [first]
        assert read(first) == flip(half.whole, at)
