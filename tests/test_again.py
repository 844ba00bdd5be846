"""What was flipped before a seal at the target: its readers ask for it again, and the next ship mends it."""

import errno
import os
import shutil

import pytest
import shipping_help as h

from spoolagent import again
from spoolagent.errors import Unreachable
from spoolagent.format import durable, layout
from spoolagent.format.blobs import put_bytes
from spoolagent.format.layout import StreamKey
from spoolagent.format.reader import START
from spoolagent.format.spool import open_spool
from spoolagent.format.stream import StreamWriter
from spoolagent.fsck import fsck
from spoolagent.repair import repair
from spoolagent.serving import task as task_module
from spoolagent.serving.changes import StreamFacts
from spoolagent.serving.store import Store
from spoolagent.serving.task import Task
from spoolagent.serving.worker import Worker
from spoolagent.settings import AgentSettings, ReceiverSettings
from spoolagent.shipping.directory import DirectoryTarget
from spoolagent.shipping.target import Away
from spoolagent.testing import MemoryReceiver


def flip(path, at=None):
    data = bytearray(h.read(path))
    data[len(data) // 3 if at is None else at] ^= 4
    with open(path, "wb") as file:
        file.write(data)


def errors(spool):
    return [finding.message for finding in fsck(spool) if finding.severity == "error"]


def request(target, key):
    return os.path.join(target, ".agent", "again", *key)


@pytest.mark.parametrize("where", ["header", "line", "an earlier segment"])
def test_a_flipped_bit_before_a_seal_is_mended_once_fsck_has_found_it(source, target, where):
    key = h.write_stream(source, 200, segment_bytes=12_000)
    h.ship_once(source, target)
    whole = h.shipped_files(source)
    first = layout.list_segments(layout.stream_dir(target, key))
    assert len(first) > 1
    flip(
        h.segment(target, key, first[0] if where != "line" else first[-1]), 10 if where == "header" else None
    )
    damaged = h.shipped_files(target)
    assert h.ship_once(source, target).shipped_bytes == 0  # both end with the same seal, and nobody has asked
    assert h.shipped_files(target) == damaged

    assert errors(target)
    assert list(again.asked(target)) == [key]
    report = h.ship_once(source, target)
    assert (report.exit_code, report.forks, report.longer) == (0, (), ())
    assert report.shipped_bytes > 0
    assert h.shipped_files(target) == whole
    assert os.listdir(os.path.join(target, ".agent", "again")) == []
    assert errors(target) == []
    assert list(again.asked(target)) == []
    assert h.events_in(target, key) == (list(range(1, len(h.events_in(source, key)[0]) + 1)), "closed")


def task_of(target, key):
    """A worker's task for one stream, with a clock that stands still."""
    return Task(
        open_spool(target),
        key,
        START,
        StreamFacts(),
        agent=AgentSettings(spool=target),
        limits=ReceiverSettings(name="memory", spec="memory:"),
        clock=lambda: 1.0,
    )


def test_a_shipper_that_follows_mends_while_a_reader_still_waits(source, target):
    """The worker's side: it asks when it begins to wait, not again at each look, and loses nothing."""
    key = h.write_stream(source, 200)
    h.ship_once(source, target)
    flip(h.segment(target, key))
    task = task_of(target, key)
    task.fill()
    assert task.state == "blocked"
    assert list(again.asked(target)) == [key]
    again.answer(target, key)
    task.fill()
    assert task.state == "blocked"
    assert list(again.asked(target)) == []

    with h.Following(source, target) as shipper:
        h.until(lambda: shipper.told or os.path.isdir(os.path.join(source, ".agent", "ship")))
        again.ask(target, key)
        h.until(lambda: h.read(h.segment(target, key)) == h.read(h.segment(source, key)))
        h.until(lambda: not os.path.exists(request(target, key)))
    task.fill()
    assert task.state == "closed"
    assert task.held.lost == task.held.bad == []
    assert [event.seq for event in task.held.events] == h.events_in(source, key)[0]


def test_a_stream_that_the_source_cannot_better_is_asked_for_once(source, target):
    key = h.write_stream(source, 100)
    flip(h.segment(source, key))
    h.ship_once(source, target)
    assert h.shipped_files(target) == h.shipped_files(source)
    assert errors(target)
    assert os.path.exists(request(target, key))
    assert h.ship_once(source, target).exit_code == 0
    assert not os.path.exists(request(target, key))
    assert h.shipped_files(target) == h.shipped_files(source)


def test_a_request_for_what_the_source_does_not_have_is_left_to_who_has_it(source, target, tmp_path):
    other = h.make_spool(tmp_path / "other")
    h.write_stream(source, 50, site="site-1")
    theirs = h.write_stream(other, 50, site="site-2")
    h.ship_once(source, target)
    h.ship_once(other, target)
    flip(h.segment(target, theirs))
    assert errors(target)
    report = h.ship_once(source, target)
    assert (report.exit_code, report.shipped_bytes) == (0, 0)
    assert os.path.exists(request(target, theirs))
    assert h.ship_once(other, target).exit_code == 0
    assert errors(target) == []
    assert not os.path.exists(request(target, theirs))


def _directory(path, tmp_path):
    os.makedirs(os.path.join(path, "inner"))


def _garbage(path, tmp_path):
    os.makedirs(os.path.dirname(path))
    with open(path, "wb") as file:
        file.write(os.urandom(5000))


def _link(path, tmp_path):
    os.makedirs(os.path.dirname(path))
    os.symlink(tmp_path / "precious", path)


def _linked_folder(path, tmp_path):
    """`.agent/again` leads elsewhere, where a file has just the name of a request."""
    folder = os.path.dirname(os.path.dirname(os.path.dirname(path)))
    away = tmp_path / "away"
    precious = os.path.join(away, os.path.relpath(path, folder))
    os.makedirs(os.path.dirname(precious))
    shutil.copy(tmp_path / "precious", precious)
    os.symlink(away, folder)


def _file_for_a_folder(path, tmp_path):
    with open(os.path.dirname(os.path.dirname(os.path.dirname(path))), "wb") as file:
        file.write(b"x")


def _illegal_names(path, tmp_path):
    folder = os.path.dirname(os.path.dirname(os.path.dirname(path)))
    for names in (
        (".x", "r", "w"),
        ("site-1", "run-1", ".tmp-w"),
        ("site-1", "run-1", "\udcff"),
        ("no", "such", "one"),
    ):
        os.makedirs(os.path.join(folder, *names[:2]), exist_ok=True)
        with open(os.path.join(folder, *names), "wb") as file:
            file.write(b"x")


@pytest.mark.parametrize(
    "make", [_directory, _garbage, _link, _linked_folder, _file_for_a_folder, _illegal_names]
)
def test_a_hostile_request_harms_nobody(source, target, tmp_path, make):
    key = h.write_stream(source, 100)
    h.write_stream(source, 50, run="run-2")
    (tmp_path / "precious").write_bytes(b"precious")
    h.ship_once(source, target)
    make(request(target, key), tmp_path)
    before = h.shipped_files(source)
    report = h.ship_once(source, target)
    assert (report.exit_code, report.streams, report.complete, report.shipped_bytes) == (0, 2, 2, 0)
    flip(h.segment(target, key))
    assert errors(target)
    assert h.ship_once(source, target).exit_code == 0
    assert h.shipped_files(source) == before
    mended = make not in (_directory, _linked_folder, _file_for_a_folder)  # there nobody can ask
    assert (h.shipped_files(target) == before) == mended
    for folder, _, names in os.walk(tmp_path):
        for name in names:
            if name == "precious" or folder.startswith(str(tmp_path / "away")):
                assert h.read(os.path.join(folder, name)) == b"precious"


def test_two_shippers_at_once_mend_it_once(source, target):
    keys = [h.write_stream(source, 300, run=f"run-{n}") for n in range(4)]
    h.ship_once(source, target)
    with h.Following(source, target) as one, h.Following(source, target) as two:
        for key in keys * 3:
            flip(h.segment(target, key))
            again.ask(target, key)
            h.until(lambda: h.shipped_files(target) == h.shipped_files(source))
        h.until(lambda: list(again.asked(target)) == [])
    assert one.told.texts("fork") == two.told.texts("fork") == []
    assert one.told.texts("error") == two.told.texts("error") == []
    assert errors(target) == []


def test_a_shipper_that_is_stopped_compares_in_full_the_next_time(source, target):
    key = h.write_stream(source, 100)
    h.ship_once(source, target)
    flip(h.segment(target, key))
    again.ask(target, key)
    with h.Following(source, target):
        pass  # stopped at once, wherever it is
    assert h.shipped_files(target) == h.shipped_files(source) or os.path.exists(request(target, key))
    h.ship_once(source, target)
    assert h.shipped_files(target) == h.shipped_files(source)


def test_nothing_is_asked_for_where_a_stream_is_at_home_or_nobody_ships_to(source, target, tmp_path):
    key = h.write_stream(source, 100)
    h.ship_once(source, target)
    copy = str(tmp_path / "copy")
    shutil.copytree(target, copy, ignore=shutil.ignore_patterns(".agent"))
    os.makedirs(os.path.join(source, ".agent", "incoming"))
    for spool in (source, copy):
        flip(h.segment(spool, key))
        assert errors(spool)
        assert not os.path.exists(os.path.join(spool, ".agent", "again"))


class _Shipping:
    """Hints of a worker that waits: each time it does, the shipper has its round, and the clock moves on."""

    sees_all = False

    def __init__(self, source, target):
        self.source, self.target = source, target
        self.now, self.rounds = 1000.0, 0

    def watch(self, key):
        """Nothing is hinted."""

    def forget(self, key):
        """Nothing is."""

    def wait(self, timeout_s):
        self.rounds += 1
        self.now += max(timeout_s, 0.001)
        h.ship_once(self.source, self.target)


def test_a_worker_loses_nothing_to_a_flipped_bit_while_its_shipper_is_at_work(source, target):
    keys = [h.write_stream(source, 200, run=f"run-{n}", segment_bytes=9000) for n in range(3)]
    h.ship_once(source, target)
    for key in keys[:2]:
        flip(h.segment(target, key))
    flip(h.segment(target, keys[2]), 10)  # its header
    receiver, hints = MemoryReceiver(), _Shipping(source, target)
    with Store(target, receiver.identity) as store:
        receiver.open(store)
        worker = Worker(
            open_spool(target),
            receiver,
            store,
            agent=AgentSettings(spool=target),
            limits=ReceiverSettings(name="memory", spec="memory:"),
            hints=hints,
            report=lambda text: None,
            clock=lambda: hints.now,
            should_stop=lambda: hints.rounds > 200,
        )
        worker.run(until_drained=True)
        assert store.count("lost") == store.count("dead") == 0
    assert hints.now - 1000.0 < AgentSettings(spool=target).patience_s
    for key in keys:
        assert sorted(receiver.events[key]) == h.events_in(source, key)[0]
    assert h.shipped_files(target) == h.shipped_files(source)


# -- blobs -------------------------------------------------------------------------------------------------------


def with_blob(spool, content=b"pixels" * 500, run="run-1"):
    """A finished run that names one blob; (its stream, the SHA-256)."""
    writer = StreamWriter(str(spool), "site-1", run, lambda: {"api": "native"})
    ref = put_bytes(str(spool), "site-1", content)
    writer.append("text", {"key": "t", "blob": ref})
    writer.close()
    return StreamKey("site-1", run, writer.writer), ref["sha256"]


def asked_file(target, sha256):
    return os.path.join(target, ".agent", "again-blobs", "site-1", sha256)


@pytest.mark.parametrize("how", ["fsck", "fsck --repair"])
@pytest.mark.parametrize("what", ["flipped", "removed"])
def test_a_bad_blob_is_shipped_again_once_fsck_has_found_it(source, target, how, what):
    """Also by a shipper that has been running all the time: for it a blob of the right length is the right one."""
    _, sha256 = with_blob(source)
    path = layout.blob_path(target, "site-1", sha256)
    with h.Following(source, target):
        h.until(lambda: h.shipped_files(target) == h.shipped_files(source))
        flip(path) if what == "flipped" else os.unlink(path)
        if how == "fsck":
            assert errors(target)
        else:
            assert list(repair(target)) or what == "removed"
            list(fsck(target))
        h.until(lambda: os.path.exists(path) and h.read(path) == b"pixels" * 500)
        h.until(lambda: not os.path.exists(os.path.dirname(asked_file(target, sha256))))
    assert errors(target) == []


def test_a_worker_waits_for_a_damaged_blob_and_gets_it(source, target):
    key, sha256 = with_blob(source)
    h.ship_once(source, target)
    path = layout.blob_path(target, "site-1", sha256)
    flip(path)
    said, receiver, hints = [], MemoryReceiver(), _Shipping(source, target)
    hints.wait = lambda timeout_s: (said.extend(worker.blocked()), _Shipping.wait(hints, timeout_s))[1]
    with Store(target, receiver.identity) as store:
        receiver.open(store)
        worker = Worker(
            open_spool(target),
            receiver,
            store,
            agent=AgentSettings(spool=target),
            limits=ReceiverSettings(name="memory", spec="memory:", flush_interval_s=0.0),
            hints=hints,
            clock=lambda: hints.now,
            should_stop=lambda: hints.rounds > 200,
        )
        worker.run(until_drained=True)
        assert store.count("dead") == 0
    assert (str(key), f"blob {sha256} is damaged") in said
    assert sorted(receiver.events[key]) == h.events_in(source, key)[0]
    assert h.read(path) == b"pixels" * 500
    assert not os.path.exists(asked_file(target, sha256))


def test_a_blob_that_the_source_cannot_better_is_asked_for_once(source, target, tmp_path):
    _, sha256 = with_blob(source)
    h.ship_once(source, target)
    for spool in (source, target):
        flip(layout.blob_path(spool, "site-1", sha256))
    again.ask_blob(target, "site-1", sha256)
    report = h.ship_once(source, target)
    assert "its content does not match its name; it was not shipped" in report.errors[0]
    assert not os.path.exists(asked_file(target, sha256))
    other = str(tmp_path / "other")  # who has no such blob leaves the request to others
    h.write_stream(other, 3, site="site-2")
    again.ask_blob(target, "site-1", sha256)
    assert h.ship_once(other, target).exit_code == 0
    assert list(again.asked_blobs(target)) == [("site-1", sha256)]


@pytest.mark.parametrize("whose", ["source", "target"])
def test_a_blob_that_cannot_be_carried_just_now_stays_asked_for_and_stops_no_stream(source, target, whose):
    _, sha256 = with_blob(source)
    h.ship_once(source, target)
    whole = layout.blob_path(source, "site-1", sha256)
    path = layout.blob_path(target, "site-1", sha256)
    flip(path)
    again.ask_blob(target, "site-1", sha256)
    key = h.write_stream(source, 30, run="run-2")
    refused = []

    def refuse(operation, at):
        if at == whole if whose == "source" else operation == "write" and "incoming" in at and sha256 in at:
            refused.append(at)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), at)

    durable.set_fault(refuse)
    try:
        report = h.ship_once(source, target)
    finally:
        durable.set_fault(None)
    assert refused and any("Stale file handle" in error for error in report.errors)
    assert h.events_in(target, key)[1] == "closed"
    assert list(again.asked_blobs(target)) == [("site-1", sha256)]
    assert h.read(path) != h.read(whole)

    h.ship_once(source, target)
    assert h.read(path) == h.read(whole)
    assert list(again.asked_blobs(target)) == []


def test_a_target_that_goes_away_in_the_middle_of_a_blob_ends_the_round(source, target, monkeypatch):
    _, sha256 = with_blob(source)
    h.ship_once(source, target)
    again.ask_blob(target, "site-1", sha256)

    def away(self, site, sha256, chunks):
        raise Away("the mount is gone")

    carried = []
    with monkeypatch.context() as patched:
        patched.setattr(DirectoryTarget, "put_blob", away)
        patched.setattr(DirectoryTarget, "asked", lambda self: carried.append(self) or [])
        with pytest.raises(Unreachable, match="the mount is gone"):
            h.ship_once(source, target)
    assert carried == []
    assert list(again.asked_blobs(target)) == [("site-1", sha256)]


def test_a_large_blob_is_read_once_while_its_event_waits(source, target, monkeypatch):
    key, sha256 = with_blob(source)
    h.ship_once(source, target)
    looked = []
    monkeypatch.setattr(task_module, "check_blob", lambda path, name: looked.append(path) or True)
    task = task_of(target, key)
    task.fill()
    assert [task.missing_blob() for _ in range(5)] == [None] * 5
    assert looked == [layout.blob_path(target, "site-1", sha256)]
    os.utime(looked[0], ns=(1, 1))  # another one came in its place
    assert task.missing_blob() is None
    assert len(looked) == 2


def test_a_link_in_a_blobs_way_stops_no_shipper(source, target, tmp_path):
    _, sha256 = with_blob(source)
    h.ship_once(source, target)
    folder = os.path.dirname(layout.blob_path(target, "site-1", sha256))
    os.rename(folder, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", folder)
    again.ask_blob(target, "site-1", sha256)
    key = h.write_stream(source, 30, run="run-2")
    report = h.ship_once(source, target)
    assert any("is a symbolic link at the target: remove it there" in error for error in report.errors)
    assert h.events_in(target, key)[1] == "closed"
