"""The cursor database and its log, cut at every byte and with a bit flipped at every byte.

What is damaged is noticed when a worker starts (SQLite's own integrity check, and our checksums over every row), and
the mirror takes over; or it is harmless: every row of every table is what it was. The end of the log may be cut or
damaged without being noticed: that is an older committed state, and the mirror, which knows of more commits, takes
over as well. When both are damaged nothing is delivered, and one line names the file and the next step.

At every byte the code that decides is asked, `open_checked`. A whole worker with its mirror runs at a sample of the
bytes whose damage is noticed, for after that its way is the same, and at every byte that is used whose damage is not.
"""

import contextlib
import copy
import os
import shutil
from unittest import mock

import pytest
from damage_help import EVERY, SLICES, flip, in_slices, read, write
from report_facts import counted
from test_worker import Agent, Crash, simple

from spoolagent.errors import SpoolError
from spoolagent.format.layout import StreamKey
from spoolagent.format.reader import Lost
from spoolagent.serving import store as store_module
from spoolagent.serving import sums
from spoolagent.serving.changes import Commit, StreamFacts
from spoolagent.serving.database import MIRROR, NAME, SIDE_FILES, open_checked
from spoolagent.serving.registry import load_receiver
from spoolagent.serving.schema import NewerVersion
from spoolagent.serving.status import read_status
from spoolagent.serving.store import Store, target_dir
from spoolagent.testing import MemoryReceiver

pytestmark = pytest.mark.bytes

PAGE = 4096
HEADER = 100
"""Bytes of a database's own header."""
COUNTERS = "sqlite_sequence"
"""SQLite's own table."""
FRAME = 24 + PAGE
"""Bytes of a page in the log, behind the log's header of 32."""


# -- a delivery that was interrupted -------------------------------------------------------------------------------


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
    """A target in a directory, and with it the mirror."""

    spec = ""

    def __init__(self, place):
        self.path = os.path.join(place, "target")
        os.makedirs(self.path)

    def make(self):
        kind, name = self.spec.split(":")
        return load_receiver(f"{kind}:{self.path}/{name}", {})

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
    spec = "tensorboard:tb"


class Jsonl(Files):
    spec = "jsonl:events.jsonl"


targets = pytest.mark.parametrize("target", [Memory, Jsonl, TensorBoard])


def content(db):
    """All rows of all tables."""
    return {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in (*sums.TABLES, "sums", COUNTERS)}


class Interrupted:
    """A spool half delivered: cursors and target as a kill left them, to be put back as often as one likes.

    With `log`, what was committed since the start is in the log of the database; without, all is in the database.
    """

    def __init__(self, place, target, *, log):
        self.spool, self.target = os.path.join(place, "spool"), target
        self.agent = os.path.join(self.spool, ".agent")
        simple(self.spool, count=8)
        self.identity = target.make().identity
        self.folder = target_dir(self.spool, self.identity)
        self.database, self.mirror = os.path.join(self.folder, NAME), os.path.join(self.folder, MIRROR)
        committed = []
        with mock.patch.object(store_module, "transact", recording(committed)):
            self.fill()
            with contextlib.suppress(Crash):
                self.run(Dying(target.make(), 3, self.keep if log else lambda: None))
        if not log:
            self.keep()
        self.states = committed
        """What the database held after each commit, the last one at the kill."""
        self.put_back()
        self.whole, self.log = read(self.database), read(self.database + "-wal") if log else b""
        self.run(target.make())
        self.want, self.applied = target.content(), self.delivered()
        assert self.applied == 10
        self.put_back()

    def fill(self):
        """Rows in more tables, of a stream that is gone."""
        done = Commit(
            key=StreamKey("site-0", "run-0", "w-0"),
            facts=StreamFacts(end="closed", status="failed", exit_code=3),
            dead=[(1, "metrics", "no thanks"), (4, "image", "too large")],
            lost=[Lost(2, 3, "destroyed")],
            quarantined=[(1, 700, 99, "bad line")],
            skipped={"system": 12},
            told=("site-0", "run-0", {"status": "failed", "sure": True}),
        )
        with Store(self.spool, self.identity) as store:
            store.put("before", {"as": "all receivers do"})
            store.commit([done])

    def keep(self):
        shutil.copytree(self.agent, self.agent + ".kept", symlinks=True)
        self.target.keep()

    def put_back(self):
        shutil.rmtree(self.agent, ignore_errors=True)
        shutil.copytree(self.agent + ".kept", self.agent, symlinks=True)
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
        for path in (self.database, os.path.realpath(self.mirror)):
            write(path, damaged)
            for side in SIDE_FILES:
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


def recording(committed):
    """`transact`, that also notes what the database then holds."""
    real = store_module.transact

    def transact(db, path, change):
        real(db, path, change)
        committed.append(content(db))

    return transact


# -- the code that decides -----------------------------------------------------------------------------------------


class Asked:
    """Would a worker start with this database? Without a worker, and without its mirror."""

    def __init__(self, place):
        self.path = os.path.join(place, "asked.sqlite")

    def holds(self, database, log=None):
        """What it holds, or None when it is found damaged."""
        for side in SIDE_FILES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path + side)
        write(self.path, database)
        if log is not None:
            write(self.path + "-wal", log)
        try:
            with mock.patch.object(sums, "keep", keep_nothing):  # a Mock would take as long
                db = open_checked(self.path, was_made=True)
        except (sums.Damaged, NewerVersion):
            return None
        with contextlib.closing(db):
            return content(db)


def keep_nothing(db):
    """In the place of the triggers that count what is written from now on: they decide nothing, and take longest."""


def rows(held):
    """What we wrote: without SQLite's own counters, of which only a worker tells whether it minds them."""
    return {name: found for name, found in held.items() if name != COUNTERS}


def used(whole):
    """The positions that mean something, or may: those with a value, and the heads of pages."""
    return [at for at in range(len(whole)) if whole[at] or at < HEADER or at % PAGE < 16]


def positions(whole, part, step):
    """Every byte of this part; else used bytes densely, unused ones now and then."""
    if EVERY:
        return range(part, len(whole), SLICES)
    idle = [at for at in range(0, len(whole), 997) if not whole[at]]
    return sorted({*range(HEADER), *used(whole)[::step], *idle})


@pytest.fixture
def case(place, request):
    """A delivery that was interrupted: into TensorBoard, whose receiver puts most into the database; into memory for
    the log, which others have SQLite empty when they make a file."""
    is_log = request.param == "log"
    return Interrupted(place, (Memory if is_log else TensorBoard)(place), log=is_log)


alone = pytest.mark.parametrize("case", ["database"], indirect=True)
with_log = pytest.mark.parametrize("case", ["log"], indirect=True)


@in_slices
@alone
def test_a_flipped_bit_is_noticed_or_harmless(place, case, part):
    asked, noticed, unnoticed = Asked(place), 0, []
    for at in counted("a cursor database, flipped", positions(case.whole, part, 5)):
        held = asked.holds(flip(case.whole, at))
        assert held is None or rows(held) == rows(case.states[-1]), at
        noticed += held is None
        if held is not None and at >= HEADER and case.whole[at]:
            unnoticed.append(at)
    # Bytes that mean nothing: unused space, lengths of free blocks, sequence numbers.
    assert noticed > 9 * len(unnoticed), (noticed, [(at // PAGE, at % PAGE) for at in unnoticed])


@in_slices
@alone
def test_a_cut_is_noticed_or_harmless(place, case, part):
    """SQLite reads what is missing of the last page as zeros: where that is free space, nothing is missing."""
    asked = Asked(place)
    for at in counted("a cursor database, cut", positions(case.whole, part, 29)):
        held = asked.holds(case.whole[:at])
        in_last_page = at > len(case.whole) - PAGE
        assert held is None or (in_last_page and rows(held) == rows(case.states[-1])), (
            f"cut at {at}, unnoticed"
        )


@in_slices
@with_log
def test_a_damaged_log_is_noticed_or_leads_to_an_older_state(place, case, part):
    asked, states, older = Asked(place), [rows(held) for held in case.states], set()
    assert asked.holds(case.whole, case.log) == case.states[-1]
    for at in counted("a cursor database's log, cut and flipped", positions(case.log, part, 61)):
        for kind, log in (("cut", case.log[:at]), ("flipped", flip(case.log, at))):
            held = asked.holds(case.whole, log)
            assert held is None or rows(held) in states, (kind, at)
            if held is not None:
                older.add(states.index(rows(held)))
    assert len(older) > 2, older


@in_slices
@with_log
def test_a_damaged_database_beside_its_log(place, case, part):
    """A page of the database damaged while the log holds later ones: used right, or noticed."""
    asked, right = Asked(place), rows(case.states[-1])
    for at in counted("a cursor database beside its log, cut and flipped", positions(case.whole, part, 37)):
        for kind, whole in (("cut", case.whole[:at]), ("flipped", flip(case.whole, at))):
            held = asked.holds(whole, case.log)
            assert held is None or rows(held) == right, (kind, at)


# -- a whole worker ------------------------------------------------------------------------------------------------


def tried(what, given, is_noticed, *, one_in):
    """(number, position, whether it is noticed): one in so many of those that are, all of those that are not."""
    number = 0
    for at in given:
        found = is_noticed(at)
        number += found
        if not found or number % one_in == 1:
            yield from ((number // one_in, tried_at, found) for tried_at in counted(what, [at]))


@targets
def test_a_worker_with_a_flipped_bit_in_its_database(place, target):
    case, asked = Interrupted(place, target(place), log=False), Asked(place)
    given = used(case.whole)[:: 1 if EVERY else 7]
    ask = lambda at: asked.holds(flip(case.whole, at)) is None  # noqa: E731 - used once
    for number, at, is_noticed in tried("a worker, database flipped", given, ask, one_in=17):
        assert case.try_with("", flip(case.whole, at), at) == is_noticed, at
        if is_noticed and number % 8 == 0:
            case.without_mirror(flip(case.whole, at), at)


@targets
def test_a_worker_with_a_cut_database(place, target):
    case, asked = Interrupted(place, target(place), log=False), Asked(place)
    ends = {0, 1, 15, 16, 99, 100, 511, 512, *range(0, len(case.whole), 331 if EVERY else 3011)}
    ends |= {
        *range(PAGE, len(case.whole), PAGE),
        *range(len(case.whole) - 64, len(case.whole), 1 if EVERY else 9),
    }
    for number, at in enumerate(counted("a worker, database cut", sorted(ends))):
        is_noticed = asked.holds(case.whole[:at]) is None
        assert case.try_with("", case.whole[:at], at) == is_noticed, at
        if is_noticed and number % 20 == 0:
            case.without_mirror(case.whole[:at], at)


@targets
def test_a_worker_with_a_damaged_log(place, target):
    case, asked = Interrupted(place, target(place), log=True), Asked(place)
    frames = {
        32 + n * FRAME + byte
        for n in range(len(case.log) // FRAME)
        for byte in ((0, 4, 8, 16, 23, 24) if target is Memory else (5, 20))
    }
    ends = sorted({*range(0, 32, 3), *frames, *range(0, len(case.log), 199 if EVERY else 2999)})
    for at in counted("a worker, log cut and flipped", ends):
        for kind, log in (("cut", case.log[:at]), ("flipped", flip(case.log, at))):
            held = asked.holds(case.whole, log)
            is_noticed = held is None or rows(held) != rows(case.states[-1])
            assert case.try_with("-wal", log, (kind, at)) == is_noticed, (kind, at)
    case.put_back()
    os.unlink(case.database + "-wal")  # all of it
    case.run(case.target.make())
    assert case.target.content() == case.want


@targets
def test_a_worker_with_a_damaged_database_beside_its_log(place, target):
    case, asked = Interrupted(place, target(place), log=True), Asked(place)
    given = used(case.whole)[:: 1 if EVERY else 19]
    ask = lambda at: asked.holds(flip(case.whole, at), case.log) is None  # noqa: E731 - used once
    for _, at, is_noticed in tried("a worker, database flipped beside its log", given, ask, one_in=17):
        assert case.try_with("", flip(case.whole, at), at) == is_noticed, at
