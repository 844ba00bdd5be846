"""Shipping from directory to directory, with real writers, and real processes that are killed."""

import contextlib
import os
import random
import shutil
import stat
import threading

import orjson
import pytest
import shipping_help as h
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from report_facts import add
from sizes import KILLS

from spoolagent.errors import Unreachable, UsageError
from spoolagent.format import blobs, durable, ends, layout
from spoolagent.format.facts import run_facts
from spoolagent.format.layout import StreamKey
from spoolagent.format.lines import encode_line
from spoolagent.format.spool import create_spool, open_spool
from spoolagent.fsck import fsck
from spoolagent.shipping import compare, shipper, walk
from spoolagent.shipping.directory import DirectoryTarget
from spoolagent.shipping.target import AnotherSpool, OffsetRefused
from spoolagent.testing import set_fault

LIVES = max(10, KILLS // 10)
"""How often the shipper is killed."""


@pytest.fixture
def fault():
    yield set_fault
    set_fault(None)


# -- plain copies ------------------------------------------------------------------------------------------


def test_a_ship_copies_every_byte(source, target):
    keys = [
        h.write_stream(source, 200, segment_bytes=2000, blob=b"pixels", site=f"site-{n}") for n in range(3)
    ]
    report = h.ship_once(source, target)
    assert report.exit_code == 0
    assert report.streams == report.complete == 3
    assert report.shipped_blobs == 3
    files = h.shipped_files(source)
    assert len(files) > 20
    assert h.shipped_files(target) == files
    assert report.shipped_bytes == sum(len(d) for name, d in files.items() if name.endswith(".jsonl"))
    assert report.shipped_lines == sum(d.count(b"\n") for name, d in files.items() if name.endswith(".jsonl"))
    for key in keys:
        assert h.events_in(target, key) == (list(range(1, 203)), "closed")


def test_a_second_ship_has_nothing_to_do(source, target):
    h.write_stream(source, 50, segment_bytes=2000)
    h.ship_once(source, target)
    report = h.ship_once(source, target)
    assert (report.streams, report.complete, report.shipped_bytes) == (1, 1, 0)


def test_what_it_makes_is_private_and_has_no_live_and_no_agent_files(source, target):
    writer = h.new_writer(source)
    writer.append("metrics", {"metrics": {"a": 1.0}})
    key = StreamKey(writer.site, writer.run, writer.writer)
    with open(os.path.join(layout.stream_dir(source, key), ".tmp-thing"), "wb") as file:
        file.write(b"x")
    with open(os.path.join(layout.stream_dir(source, key), "notes.txt"), "wb") as file:
        file.write(b"x")
    old = os.umask(0)
    try:
        h.ship_once(source, target)
    finally:
        os.umask(old)
    assert os.path.exists(os.path.join(layout.stream_dir(source, key), "LIVE"))
    assert os.listdir(layout.stream_dir(target, key)) == [layout.segment_name(1)]
    for folder, folders, names in os.walk(target):
        for name in folders:
            assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o700, name
        for name in names:
            assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600, name
    writer.close()


def test_only_whole_lines_ship(source, target):
    writer = h.new_writer(source)
    writer.append("metrics", {"metrics": {"a": 1.0}})
    key = StreamKey(writer.site, writer.run, writer.writer)
    whole = h.read(h.segment(source, key))
    with open(h.segment(source, key), "ab") as file:
        file.write(b'{"seq":3,"ti')
    report = h.ship_once(source, target)
    assert report.exit_code == 0
    assert h.read(h.segment(target, key)) == whole
    writer.close()


def test_a_stream_is_fsynced_before_it_leaves_and_after_it_arrived(source, target, fault):
    h.write_stream(source, 10, blob=b"pixels")
    seen = []
    fault(lambda operation, path: seen.append((operation, path)))
    h.ship_once(source, target)
    name = layout.segment_name(1)
    synced = [
        n
        for n, (op, path) in enumerate(seen)
        if op == "fsync" and path.startswith(source) and path.endswith(name)
    ]
    wrote = [n for n, (op, path) in enumerate(seen) if op == "write" and path.endswith(name)]
    after = [
        n
        for n, (op, path) in enumerate(seen)
        if op == "fsync" and not path.startswith(source) and path.endswith(name)
    ]
    blob = [n for n, (op, path) in enumerate(seen) if op == "rename" and "/blobs/" in path]
    assert synced[0] < wrote[0]
    assert wrote[-1] < after[-1]
    assert blob
    assert blob[0] < wrote[0]


def test_a_blob_leaves_before_the_event_that_names_it(source, target, fault):
    writer = h.new_writer(source)
    writer.append("metrics", {"metrics": {"a": 1.0}})
    agent = h.settings(source, target).agent
    session = shipper.Shipper(
        open_spool(source), DirectoryTarget(target), agent, h.Telling(), threading.Event()
    )
    session._open()
    session._sweep(None)
    ref = blobs.put_bytes(writer.spool, writer.site, b"pixels")
    writer.append("image", {"key": "im", "step": 1, "blob": ref, "encoding": "png"})
    seen = []
    fault(lambda operation, path: seen.append((operation, path)))
    session._sweep(None)
    blob = [
        n
        for n, (op, path) in enumerate(seen)
        if op == "fsync" and path.endswith(f"/blobs/{ref['sha256'][:2]}")
    ]
    event = [
        n for n, (op, path) in enumerate(seen) if op == "write" and path.endswith(layout.segment_name(1))
    ]
    assert len(event) == 1
    assert blob
    assert max(blob) < event[0]
    assert h.shipped_files(target) == h.shipped_files(source)
    writer.close()


# -- following ---------------------------------------------------------------------------------------------


def test_it_follows_a_writer_that_rotates(source, target):
    with h.Following(source, target) as following:
        writer = h.start(h.WRITER, source, 1500, 8000, 0.001, "close")
        name = writer.stdout.readline().strip()
        key = StreamKey("site-1", "run-1", name)
        h.until(lambda: os.path.exists(h.segment(target, key)), "the first segment arrives while it writes")
        assert writer.wait(h.DEADLINE_S) == 0
        writer.stdout.close()
        h.until(lambda: h.shipped_files(source) == h.shipped_files(target), "everything arrives")
    assert len(layout.list_segments(layout.stream_dir(target, key))) > 5
    assert h.events_in(target, key) == (list(range(1, 1517)), "closed")
    assert following.report.exit_code == 0
    assert following.report.shipped_bytes == sum(
        len(data) for name, data in h.shipped_files(target).items() if name.endswith(".jsonl")
    )


def test_a_killed_writer_is_ended_and_its_end_ships(source, target):
    with h.Following(source, target) as following:
        writer = h.start(h.WRITER, source, 20, 8000, 0, "hang")
        key = StreamKey("site-1", "run-1", writer.stdout.readline().strip())
        assert writer.stdout.readline() == "written\n"
        h.until(lambda: h.shipped_files(source) == h.shipped_files(target) != {})
        assert not layout.list_ends(layout.stream_dir(source, key))
        h.kill(writer)
        h.until(lambda: layout.list_ends(layout.stream_dir(target, key)) == [1], "the .end arrives")
        h.until(lambda: following.told.texts("ended"))
    assert h.shipped_files(source) == h.shipped_files(target)
    assert h.events_in(target, key)[1] == "dead"
    assert not os.path.exists(os.path.join(layout.stream_dir(target, key), "LIVE"))
    assert h.ship_once(source, target).complete == 1


def test_torn_bytes_of_a_killed_writer_do_not_ship(source, target):
    key = h.write_stream(source, 5, close=False)
    whole = h.read(h.segment(source, key))
    copy = os.path.join(source, "sites", "site-1", "runs", "run-1", "w-torn")
    os.mkdir(copy)
    torn = StreamKey("site-1", "run-1", "w-torn")
    with open(h.segment(source, torn), "wb") as file:
        file.write(whole + b'{"seq":7,"time":12')
    report = h.ship_once(source, target)
    assert report.exit_code == 0
    assert h.read(h.segment(target, torn)) == whole
    end = ends.read_end(layout.stream_dir(target, torn), 1)
    assert end is not None
    assert end.length == len(whole)


def test_a_stream_born_elsewhere_is_not_ended_here(source, target, tmp_path):
    other = h.make_spool(tmp_path / "other")
    key = h.write_stream(other, 5, close=False)
    h.ship_once(other, source)
    h.ship_once(source, target)
    assert layout.list_ends(layout.stream_dir(target, key)) == []
    assert h.shipped_files(target) == h.shipped_files(source)


# -- kills and rivals --------------------------------------------------------------------------------------


@pytest.mark.kill
def test_a_shipper_that_is_killed_goes_on(source, target):
    rng = random.Random(7)
    writer = h.start(h.WRITER, source, 10**9, 20_000, 0.0005, "close")
    key = StreamKey("site-1", "run-1", writer.stdout.readline().strip())
    for _ in range(LIVES):
        process = h.start(h.SHIPPER, source, target, "follow")
        assert process.stdout.readline() == "up\n"
        threading.Event().wait(rng.random() * 0.15)
        assert process.poll() is None
        h.kill(process)
        if os.path.exists(os.path.join(target, "spool.json")):
            theirs, mine = h.shipped_files(target), h.shipped_files(source)
            assert all(mine[name].startswith(data) for name, data in theirs.items())
    h.kill(writer)
    add("SIGKILLs", **{"shipper, alone": LIVES, "writer, alone": 1})
    report = h.ship_once(source, target)
    assert report.exit_code == 0
    assert report.forks == report.longer == ()
    theirs, mine = h.shipped_files(target), h.shipped_files(source)
    last = max(name for name in mine if name.endswith(".jsonl"))
    mine[last] = mine[last][: mine[last].rfind(b"\n") + 1]  # the writer was killed, too
    assert theirs == mine
    seqs, state = h.events_in(target, key)
    assert seqs == list(range(1, len(seqs) + 1))
    assert state == "dead"
    assert len(layout.list_segments(layout.stream_dir(target, key))) > 1


@pytest.mark.parametrize("operation", ["create", "write", "fsync", "rename", "mkdir"])
def test_a_target_that_refuses_at_any_step_gets_everything_later(source, target, fault, operation):
    h.write_stream(source, 100, segment_bytes=3000, blob=b"pixels", close=False)
    ended = h.write_stream(source, 30)
    create_spool(target)
    where = "/proc/self/fd/"
    refused = 0
    for at in range(12):
        steps = iter(range(1000))

        def refuse(op, path, at=at, steps=steps):
            if op == operation and path.startswith(where) and next(steps) == at:
                raise OSError(28, "No space left on device", path)

        fault(refuse)
        with contextlib.suppress(Unreachable):
            h.ship_once(source, target)
        fault(None)
        refused += next(steps) > at
    assert refused >= 1
    report = h.ship_once(source, target)
    assert report.exit_code == 0
    assert report.forks == ()
    assert h.shipped_files(target) == h.shipped_files(source)
    assert h.events_in(target, ended)[1] == "closed"


def test_two_shippers_at_once_do_no_harm(source, target):
    with h.Following(source, target) as one, h.Following(source, target) as two:
        writer = h.start(h.WRITER, source, 1000, 8000, 0.001, "close")
        key = StreamKey("site-1", "run-1", writer.stdout.readline().strip())
        assert writer.wait(h.DEADLINE_S) == 0
        writer.stdout.close()
        h.until(lambda: h.shipped_files(source) == h.shipped_files(target))
    assert h.events_in(target, key) == (list(range(1, 1012)), "closed")
    total = sum(len(data) for name, data in h.shipped_files(target).items() if name.endswith(".jsonl"))
    assert one.report.shipped_bytes + two.report.shipped_bytes == total
    assert one.told.texts("fork") == two.told.texts("fork") == []


def test_the_target_accepts_only_its_own_length(target):
    place = DirectoryTarget(target)
    place.open(None)
    with place.stream(StreamKey("s", "r", "w")) as copy:
        copy.append(1, 0, b"abc")
        for offset in (0, 2, 4):
            with pytest.raises(OffsetRefused):
                copy.append(1, offset, b"x")
        copy.append(1, 3, b"def")
    assert h.read(h.segment(target, StreamKey("s", "r", "w"))) == b"abcdef"


def test_a_copy_that_stops_at_any_byte_is_completed(source, target):
    key = h.write_stream(source, 6, segment_bytes=700)
    h.ship_once(source, target)
    whole = h.shipped_files(source)
    for first in layout.list_segments(layout.stream_dir(source, key)):
        size = os.path.getsize(h.segment(source, key, first))
        for length in range(0, size, 97):
            for later in layout.list_segments(layout.stream_dir(source, key)):
                if later > first:
                    os.unlink(h.segment(target, key, later)) if os.path.exists(
                        h.segment(target, key, later)
                    ) else None
            os.truncate(h.segment(target, key, first), length)
            told = h.Telling()
            report = h.ship_once(source, target, tell=told, patience_s=3600.0)
            assert report.forks == report.longer == report.errors == ()
            assert {note.kind for note in told} == {
                "shipped"
            }  # half a line at the target is nothing to wait for
            assert h.shipped_files(target) == whole


def test_a_huge_stream_gives_the_others_their_turn(source, target, monkeypatch):
    monkeypatch.setattr(walk, "TURN_BYTES", 1)
    big = h.write_stream(source, 20_000, run="a", segment_bytes=1 << 20)
    small = h.write_stream(source, 5, run="b")
    told = h.Telling()
    assert h.ship_once(source, target, tell=told).exit_code == 0
    order = [note.stream for note in told if note.kind == "shipped"]
    assert order.index(small) == 1
    assert order.count(big) > 2
    assert h.shipped_files(target) == h.shipped_files(source)


def test_stop_ends_a_ship_in_the_midst_of_a_stream(source, target):
    h.write_stream(source, 40_000)
    stop = threading.Event()
    create_spool(target)
    agent = h.settings(source, target).agent
    place = DirectoryTarget(target)
    session = shipper.Shipper(open_spool(source), place, agent, h.Telling(), stop)
    set_fault(
        lambda operation, path: stop.set() if operation == "write" and path.endswith(".jsonl") else None
    )
    try:
        report = session.follow()
    finally:
        set_fault(None)
    assert 0 < report.shipped_bytes <= 1 << 20
    assert h.ship_once(source, target).exit_code == 0
    assert h.shipped_files(target) == h.shipped_files(source)


def test_streams_that_left_the_sweep_come_back_when_they_go_on(source, target, monkeypatch):
    monkeypatch.setattr(shipper, "_RECHECK_S", 0.1)
    key = h.write_stream(source, 5, close=False)
    stream = layout.stream_dir(source, key)
    length, last, sha256 = ends.measure(h.segment(source, key), 1)
    line = encode_line(
        {"length": length, "last": last, "sha256": sha256, "reason": "its writer died", "time": 1}
    )
    durable.write_file(os.path.join(stream, layout.end_name(1)), line)
    agent = h.settings(source, target).agent
    session = shipper.Shipper(
        open_spool(source), DirectoryTarget(target), agent, h.Telling(), threading.Event()
    )
    session._open()
    session._sweep(None)
    assert session.report().complete == 1
    with open(h.segment(source, key), "ab") as file:
        file.write(encode_line({"seq": 7, "time": 6, "type": "metrics", "metrics": {"x": 9.0}}))
    h.until(
        lambda: (
            session._sweep(None)
            or h.shipped_files(target)[os.path.relpath(h.segment(source, key), source)]
            == h.read(h.segment(source, key))
        )
    )


# -- longer, forks, damage ---------------------------------------------------------------------------------


def test_a_longer_target_wins(source, target, tmp_path):
    key = h.write_stream(source, 20, close=False)
    h.ship_once(source, target)
    before = h.read(h.segment(target, key))
    cut = before[: before.rfind(b"\n", 0, -1) + 1]
    with open(h.segment(source, key), "wb") as file:
        file.write(cut)
    report = h.ship_once(source, target)
    assert len(report.longer) == 1
    assert report.exit_code == 0
    assert h.read(h.segment(target, key)) == before
    assert h.read(h.segment(source, key)) == cut


def died(source, events=30, *, segment_bytes=1000):
    """A stream whose writer was killed; returns its key."""
    writer = h.new_writer(source, segment_bytes=segment_bytes)
    for step in range(events):
        writer.append("metrics", {"metrics": {"loss": step / 3}, "step": step})
    writer._close_files()
    return StreamKey(writer.site, writer.run, writer.writer)


def lose(source, key, what):
    """The home loses the last of the stream in a power cut."""
    segments = layout.list_segments(layout.stream_dir(source, key))
    path = h.segment(source, key, segments[-1])
    raw = h.read(path)
    if what == "segment":
        os.unlink(path)
    elif what == "segments":
        os.unlink(path)
        os.unlink(h.segment(source, key, segments[-2]))
    elif what == "header":  # all but the header of the last one
        os.truncate(path, raw.index(b"\n") + 1)
    elif what in ("zeros", "zeros beyond"):  # a file system that made the length durable, not the bytes
        keep = raw.rfind(b"\n", 0, -1) + 1
        with open(path, "wb") as file:
            file.write(raw[:keep] + bytes(len(raw) - keep + (500 if what == "zeros beyond" else 0)))
    elif what == "half a line":
        os.truncate(path, raw.rfind(b"\n", 0, -1) - 20)
    else:
        os.truncate(path, raw.rfind(b"\n", 0, -1) + 1)


def state_of(spool):
    (run,) = run_facts(spool)
    return run.state


LOSSES = ["line", "half a line", "zeros", "zeros beyond", "header", "segment", "segments"]


@pytest.mark.parametrize("relayed", [False, True])
@pytest.mark.parametrize("what", LOSSES)
def test_a_target_learns_that_a_writer_is_dead_of_which_it_has_more(source, target, tmp_path, what, relayed):
    key = died(source)
    server = str(tmp_path / "server") if relayed else target
    copy = str(tmp_path / "whole")
    watch_nothing = ends.DeathWatch(clock=lambda: 0.0)
    watch_nothing.is_dead = lambda stream: False  # the power cut comes before anybody looks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipper, "DeathWatch", lambda **_: watch_nothing)
        h.ship_once(source, target)
        if relayed:
            h.ship_once(target, server)
    assert state_of(server) == "running"
    shutil.copytree(source, copy)
    before = {n: d for n, d in h.shipped_files(server).items() if n.endswith(".jsonl")}
    lose(source, key, what)
    told = h.Telling()
    report = h.ship_once(source, target, tell=told)
    assert report.exit_code == 0 and len(report.longer) == 1 and report.complete == 1
    assert "its home lost" in told.texts("ended")[0]
    if relayed:
        h.ship_once(target, server)
    assert state_of(server) == "killed"
    assert h.events_in(server, key) == (list(range(1, 32)), "dead")
    after = h.shipped_files(server)
    assert {n: d for n, d in after.items() if n.endswith(".jsonl")} == before
    assert [f for f in fsck(server) if f.severity == "error"] == []
    for _ in range(2):
        h.ship_once(source, target)
    assert h.shipped_files(target).keys() == after.keys()
    if not relayed:
        assert h.shipped_files(target) == after  # once

    # A backup of the home's disk is put back: it says the same; then its writer turns out to live.
    shutil.rmtree(source)
    shutil.move(copy, source)
    assert h.ship_once(source, target).longer == ()
    assert state_of(target) == "killed"
    last = layout.list_segments(layout.stream_dir(source, key))[-1]
    with open(h.segment(source, key, last), "ab") as file:
        file.write(encode_line({"seq": 32, "time": 5, "type": "metrics", "metrics": {"x": 1.0}}))
    assert ends.end_dead_stream(layout.stream_dir(source, key), ends.DeathWatch())
    h.ship_once(source, target)
    if relayed:
        h.ship_once(target, server)
    assert h.events_in(server, key) == (list(range(1, 33)), "dead")
    assert [f for f in fsck(server) if f.severity == "error"] == []


@pytest.mark.parametrize("what", ["line", "segment"])
def test_a_target_that_has_the_writers_own_seal_needs_no_end(source, target, what):
    key = h.write_stream(source, 30, segment_bytes=2000)
    h.ship_once(source, target)
    before = h.shipped_files(target)
    lose(source, key, what)
    h.ship_once(source, target)
    assert h.shipped_files(target) == before
    assert state_of(target) is not None
    assert h.events_in(target, key)[1] == "closed"


@pytest.mark.parametrize("what", ["line", "segment"])
def test_a_living_writer_is_not_ended_at_a_longer_target(source, target, what):
    key = h.write_stream(source, 30, segment_bytes=2000, close=False)
    h.ship_once(source, target)
    lose(source, key, what)
    assert len(h.ship_once(source, target).longer) == 1
    assert h.events_in(target, key)[1] == "waiting"


def fork_of(source, other, key, *, keep_lines):
    """Copies a stream to the spool `other` and lets it go on in another way after so many lines."""
    shutil.copytree(layout.stream_dir(source, key), layout.stream_dir(other, key))
    path = h.segment(other, key)
    lines = h.read(path).splitlines(keepends=True)[:keep_lines]
    seq = keep_lines
    mine = [
        encode_line({"seq": seq + n, "time": 5, "type": "metrics", "metrics": {"other": float(n)}})
        for n in range(3)
    ]
    with open(path, "wb") as file:
        file.write(b"".join(lines + mine))
    return path


def test_a_fork_is_kept_beside_and_stays_in_its_place(source, target, tmp_path):
    key = h.write_stream(source, 20)
    h.ship_once(source, target)
    before = h.shipped_files(target)
    other = h.make_spool(tmp_path / "other")
    path = fork_of(source, other, key, keep_lines=8)
    report = h.ship_once(other, target)
    assert len(report.forks) == 1
    assert report.exit_code == 0
    names = os.listdir(os.path.dirname(layout.stream_dir(target, key)))
    fork = next(name for name in names if name != key.writer)
    assert fork.startswith(f"{key.writer}.fork-")
    assert len(fork) == len(key.writer) + len(".fork-") + 8
    assert h.read(h.segment(target, key._replace(writer=fork))) == h.read(path)
    for name, data in before.items():
        assert h.shipped_files(target)[name] == data
    with open(path, "ab") as file:  # it goes on, in another session, to the same place
        file.write(encode_line({"seq": 11, "time": 6, "type": "metrics", "metrics": {"other": 9.0}}))
    h.ship_once(other, target)
    assert h.read(h.segment(target, key._replace(writer=fork))) == h.read(path)
    third = h.make_spool(tmp_path / "third")
    path3 = fork_of(source, third, key, keep_lines=5)
    h.ship_once(third, target)
    names = os.listdir(os.path.dirname(layout.stream_dir(target, key)))
    assert len(names) == 3
    contents = {h.read(h.segment(target, key._replace(writer=name))) for name in names}
    assert contents == {h.read(path), h.read(path3), h.read(h.segment(source, key))}


def test_a_fork_of_a_fork_gets_a_place_of_its_own(source, target, tmp_path):
    key = h.write_stream(source, 20)
    h.ship_once(source, target)
    paths = [h.segment(source, key)]
    for name in ("b", "c"):
        other = h.make_spool(tmp_path / name)
        path = fork_of(source, other, key, keep_lines=8)
        with open(path, "ab") as file:  # the same first lines after the split, then another one
            event = {"seq": 11, "time": 6, "type": "metrics", "metrics": {name: 9.0}}
            file.write(encode_line(event))
        paths.append(path)
        for _ in range(2):
            report = h.ship_once(other, target)
            assert report.exit_code == 0
    run = os.path.dirname(layout.stream_dir(target, key))
    contents = [h.read(h.segment(target, key._replace(writer=name))) for name in sorted(os.listdir(run))]
    assert sorted(contents) == sorted(h.read(path) for path in paths)


@pytest.mark.parametrize("damage", ["torn", "zeros", "flipped", "hole"])
def test_a_target_that_a_crash_has_damaged_is_healed(source, target, damage):
    key = h.write_stream(source, 40)
    h.ship_once(source, target)
    path = h.segment(target, key)
    whole = h.read(path)
    data = bytearray(whole)
    third = len(whole) // 3
    if damage == "torn":
        data = data[: 2 * third + 5]
    elif damage == "zeros":
        data[2 * third :] = bytes(len(whole) - 2 * third)
    elif damage == "flipped":
        data[third] ^= 1
    else:
        data[third : third + 300] = bytes(300)
    with open(path, "wb") as file:
        file.write(data)
    seal_kept = damage in ("flipped", "hole")
    if seal_kept:  # where the seal is whole the copy is taken as whole, so let the source go on without one
        for path_ in (path, h.segment(source, key)):
            content = h.read(path_)
            with open(path_, "wb") as file:
                file.write(content[: content.rfind(b"\n", 0, -1) + 1])
        whole = h.read(h.segment(source, key))
    report = h.ship_once(source, target)
    assert report.forks == report.longer == ()
    assert h.read(path) == whole


def test_a_bad_line_waits_then_ships_as_it_is(source, target):
    key = h.write_stream(source, 40)
    path = h.segment(source, key)
    data = bytearray(h.read(path))
    data[len(data) // 2] ^= 1
    with open(path, "wb") as file:
        file.write(data)
    told = h.Telling()
    report = h.ship_once(source, target, tell=told)
    assert report.exit_code == 0
    assert len(told.texts("waiting")) == 1
    assert h.read(h.segment(target, key)) == bytes(data)
    seqs, state = h.events_in(target, key)
    assert state == "closed"
    assert len(seqs) == 40


def test_a_bad_line_that_heals_never_ships(source, target):
    key = h.write_stream(source, 40)
    path = h.segment(source, key)
    good = h.read(path)
    data = bytearray(good)
    data[len(data) // 2] ^= 1
    with open(path, "wb") as file:
        file.write(data)
    with h.Following(source, target, patience_s=3600.0) as following:
        h.until(lambda: following.told.texts("waiting"))
        until_bad = good.rfind(b"\n", 0, len(good) // 2) + 1
        h.until(lambda: len(h.read(h.segment(target, key))) == until_bad)
        with open(path, "r+b") as file:
            file.write(good)
        h.until(lambda: h.read(h.segment(target, key)) == good)
    assert following.report.exit_code == 0


def test_damage_at_the_source_after_it_was_shipped_makes_no_fork(source, target):
    key = h.write_stream(source, 40, close=False)
    h.ship_once(source, target)
    path = h.segment(source, key)
    good = h.read(path)
    data = bytearray(good)
    data[len(data) // 2] ^= 1
    more = encode_line({"seq": 42, "time": 6, "type": "metrics", "metrics": {"x": 9.0}})
    with open(path, "wb") as file:
        file.write(bytes(data) + more)
    report = h.ship_once(source, target)
    assert report.forks == ()
    assert h.read(h.segment(target, key)) == good + more


def test_a_source_replaced_by_rename_is_compared_again(source, target):
    key = h.write_stream(source, 40, close=False)
    path = h.segment(source, key)
    good = h.read(path)
    with h.Following(source, target) as following:
        h.until(lambda: h.shipped_files(source) == h.shipped_files(target) != {})
        grown = good + encode_line({"seq": 42, "time": 6, "type": "metrics", "metrics": {"x": 9.0}})
        with open(path + ".new", "wb") as file:
            file.write(grown)
        os.rename(path + ".new", path)
        h.until(lambda: h.read(h.segment(target, key)) == grown)
        lines = good.splitlines(keepends=True)
        lines[3] = encode_line({"seq": 3, "time": 6, "type": "metrics", "metrics": {"other": 9.0}})
        with open(path + ".new", "wb") as file:
            file.write(b"".join(lines))
        os.rename(path + ".new", path)
        h.until(lambda: following.told.texts("fork"))
        h.until(lambda: len(os.listdir(os.path.dirname(layout.stream_dir(target, key)))) == 2)
    assert h.read(h.segment(target, key)) == grown


def test_a_damaged_blob_is_refused_and_the_rest_goes_on(source, target):
    key = h.write_stream(source, 10, blob=b"first")
    h.write_stream(source, 10, blob=b"second", run="run-2")
    ours = h.shipped_files(source)
    name = next(n for n, data in ours.items() if data == b"first")
    with open(os.path.join(source, name), "wb") as file:
        file.write(b"f1rst")
    report = h.ship_once(source, target)
    assert report.exit_code == 1
    assert len(report.errors) == 1
    assert name in report.errors[0]
    theirs = h.shipped_files(target)
    assert name not in theirs
    assert theirs == {n: data for n, data in ours.items() if n != name}
    assert not [n for _, _, names in os.walk(os.path.join(target, ".agent", "incoming")) for n in names]
    with open(os.path.join(source, name), "wb") as file:
        file.write(b"first")
    assert h.ship_once(source, target).exit_code == 0
    assert h.shipped_files(target) == ours
    assert h.events_in(target, key)[1] == "closed"


def test_a_blob_that_comes_after_its_event_is_shipped(source, target):
    key = h.write_stream(source, 10, blob=b"late")
    name, data = next((n, d) for n, d in h.shipped_files(source).items() if "/blobs/" in n)
    os.unlink(os.path.join(source, name))
    with h.Following(source, target) as following:
        h.until(lambda: following.told.texts("error"))
        h.until(lambda: os.path.exists(h.segment(target, key)))
        with open(os.path.join(source, name), "wb") as file:
            file.write(data)
        h.until(lambda: h.shipped_files(target) == h.shipped_files(source))
    assert following.report.exit_code == 0


def test_a_newer_format_ships_unread(source, target):
    key = StreamKey("site-1", "run-1", "w-new")
    os.makedirs(layout.stream_dir(source, key))
    data = b'{"format":2,"writer":"w-new"}\nanything at all\n'
    with open(h.segment(source, key), "wb") as file:
        file.write(data + b"torn")
    plain = h.write_stream(source, 5)
    report = h.ship_once(source, target)
    assert report.exit_code == 0
    assert len(report.parked) == 1
    assert h.read(h.segment(target, key)) == data
    assert h.events_in(target, plain)[1] == "closed"


def test_a_next_segment_waits_for_the_one_before_it(source, target):
    key = h.write_stream(source, 60, segment_bytes=2000)
    path = h.segment(source, key)
    good = h.read(path)
    with open(path, "wb") as file:
        file.write(good[: len(good) // 2])
    with h.Following(source, target, patience_s=3600.0) as following:
        h.until(lambda: following.told.texts("waiting"))
        h.until(lambda: os.path.exists(h.segment(target, key)))
        assert layout.list_segments(layout.stream_dir(target, key)) == [1]
        with open(path, "wb") as file:
            file.write(good)
        h.until(lambda: h.shipped_files(target) == h.shipped_files(source))


@pytest.mark.parametrize("part", [0, 0.2])
@pytest.mark.parametrize("is_target_whole", [True, False])
def test_a_source_that_is_short_for_a_moment_makes_no_fork(source, target, part, is_target_whole):
    key = h.write_stream(source, 60, segment_bytes=2000)
    path, size = h.segment(source, key), os.path.getsize(h.segment(source, key))
    good = h.shipped_files(source)
    h.ship_once(source, target)
    if not is_target_whole:
        for first in layout.list_segments(layout.stream_dir(target, key))[1:]:
            os.unlink(h.segment(target, key, first))
        os.truncate(h.segment(target, key), size // 2)
    before = h.shipped_files(target)
    os.truncate(path, int(part * size))
    with h.Following(source, target, patience_s=3600.0) as following:
        h.until(lambda: is_target_whole or following.told.texts("waiting"))
        assert h.shipped_files(target) == before
        with open(path, "r+b") as file:
            file.write(good[os.path.relpath(path, source)])
        h.until(lambda: h.shipped_files(target) == good)
    assert following.report.forks == ()


def test_a_segment_that_stays_incomplete_ships_as_it_is(source, target):
    key = h.write_stream(source, 60, segment_bytes=2000)
    path = h.segment(source, key)
    good = h.read(path)
    with open(path, "wb") as file:
        file.write(good[: len(good) // 2])
    report = h.ship_once(source, target)
    assert report.exit_code == 0
    assert h.shipped_files(target) == h.shipped_files(source)


def test_what_was_pruned_is_told_to_a_target_that_has_not_got_it(source, target, tmp_path):
    key = h.write_stream(source, 100, segment_bytes=2000)
    stream = layout.stream_dir(source, key)
    h.ship_once(source, target)
    segments = layout.list_segments(stream)
    os.unlink(h.segment(source, key))
    line = encode_line({"through": segments[1] - 1, "prev": "0" * 64, "time": 1})
    durable.write_file(os.path.join(stream, layout.PRUNED_FILE), line)
    report = h.ship_once(source, target)
    assert report.exit_code == 0
    assert 1 in layout.list_segments(layout.stream_dir(target, key))
    assert not os.path.exists(os.path.join(layout.stream_dir(target, key), layout.PRUNED_FILE))
    fresh = str(tmp_path / "fresh")
    h.ship_once(source, fresh)
    assert h.shipped_files(fresh) == h.shipped_files(source)
    assert h.events_in(fresh, key) == (list(range(segments[1], 102)), "closed")


# -- names and links ---------------------------------------------------------------------------------------


def test_links_are_not_followed_out_of_the_spool(source, target, tmp_path):
    key = h.write_stream(source, 5)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret\n")
    run = os.path.dirname(layout.stream_dir(source, key))
    os.mkdir(os.path.join(run, "w-link"))
    os.symlink(outside / "secret", os.path.join(run, "w-link", layout.segment_name(1)))
    os.symlink(outside, os.path.join(run, "w-dir"))
    os.makedirs(outside / "run" / "w")
    os.makedirs(os.path.join(source, "sites", "evil"))
    (outside / "run" / "w" / layout.segment_name(1)).write_bytes(b"secret\n")
    os.symlink(outside, os.path.join(source, "sites", "evil", "runs"))
    report = h.ship_once(source, target)
    assert report.exit_code == 1
    assert len(report.errors) == 2
    files = h.shipped_files(target)
    assert set(files) == {os.path.relpath(h.segment(source, key), source)}
    shutil.rmtree(os.path.join(target, "sites", "site-1"))
    os.makedirs(os.path.join(target, "sites", "site-1"))
    os.symlink(outside, os.path.join(target, "sites", "site-1", "runs"))
    before = sorted(os.listdir(outside))
    report = h.ship_once(source, target)
    assert any("is a symbolic link at the target" in error for error in report.errors)
    assert sorted(os.listdir(outside)) == before


def test_names_that_differ_by_case_are_refused_and_the_rest_goes_on(source, target):
    h.write_stream(source, 5, site="Site")
    h.ship_once(source, target)
    shutil.rmtree(os.path.join(source, "sites", "Site"))
    h.write_stream(source, 5, site="site")
    good = h.write_stream(source, 5, site="zzz")
    report = h.ship_once(source, target)
    assert len(report.errors) == 1
    assert "differs only by case" in report.errors[0]
    assert sorted(os.listdir(os.path.join(target, "sites"))) == ["Site", "zzz"]
    assert h.events_in(target, good)[1] == "closed"


def test_one_unreadable_stream_does_not_stop_the_others(source, target):
    bad = h.write_stream(source, 5, site="a")
    good = h.write_stream(source, 5, site="b")
    os.unlink(h.segment(source, bad))
    os.mkdir(h.segment(source, bad))
    report = h.ship_once(source, target)
    assert report.exit_code == 1
    assert len(report.errors) == 1
    assert h.events_in(target, good)[1] == "closed"


# -- places ------------------------------------------------------------------------------------------------


def test_a_target_in_the_spool_is_refused(source):
    for place in (source, os.path.join(source, "sub"), os.path.join(source, "..", "source")):
        with pytest.raises(UsageError, match="lies in the spool"):
            h.ship_once(source, place)
    assert sorted(os.listdir(source)) == ["spool.json"]


def test_a_copied_spool_json_is_refused(source, target):
    os.mkdir(target)
    shutil.copy(os.path.join(source, "spool.json"), target)
    with pytest.raises(UsageError, match=r"remove spool\.json"):
        h.ship_once(source, target)


def test_a_target_that_is_away_is_unreachable_and_nothing_is_made_there(source, target):
    h.write_stream(source, 5)
    h.ship_once(source, target)
    os.rename(target, target + "-away")
    with pytest.raises(Unreachable, match="is away"):
        h.ship_once(source, target)
    assert not os.path.exists(target)
    os.mkdir(target)  # an empty mount point
    with pytest.raises(Unreachable, match=r"holds no spool\.json"):
        h.ship_once(source, target)
    assert os.listdir(target) == []
    create_spool(target)
    with pytest.raises(AnotherSpool) as caught:
        h.ship_once(source, target)
    assert caught.value.exit_code == 2
    assert sorted(os.listdir(target)) == ["spool.json"]


def test_a_target_that_vanishes_and_comes_back(source, target, monkeypatch):
    monkeypatch.setattr(shipper, "backoff_s", lambda failures: 0.05)
    key = h.write_stream(source, 20, close=False)
    with h.Following(source, target) as following:
        h.until(lambda: h.shipped_files(source) == h.shipped_files(target) != {})
        os.rename(target, target + "-away")
        with open(h.segment(source, key), "ab") as file:
            file.write(encode_line({"seq": 22, "time": 6, "type": "metrics", "metrics": {"x": 9.0}}))
        h.until(lambda: following.told.texts("away"))
        assert not os.path.exists(target)
        more = h.write_stream(source, 20, blob=b"pixels", run="run-2")
        os.rename(target + "-away", target)
        h.until(lambda: h.shipped_files(source) == h.shipped_files(target))
        h.until(lambda: following.told.texts("back"))
    assert len(following.told.texts("away")) == 1
    assert following.report.exit_code == 0
    assert h.events_in(target, more)[1] == "closed"


def test_a_target_restored_from_an_old_backup_asks_again(source, target, tmp_path):
    key = h.write_stream(source, 100, segment_bytes=2000, close=False)
    h.ship_once(source, target)
    backup = str(tmp_path / "backup")
    shutil.copytree(target, backup)
    with open(h.segment(source, key, layout.list_segments(layout.stream_dir(source, key))[-1]), "ab") as file:
        file.write(encode_line({"seq": 102, "time": 6, "type": "metrics", "metrics": {"x": 9.0}}))
    h.ship_once(source, target)
    shutil.rmtree(target)
    os.rename(backup, target)
    os.unlink(h.segment(target, key, layout.list_segments(layout.stream_dir(source, key))[-1]))
    report = h.ship_once(source, target)
    assert report.exit_code == 0
    assert h.shipped_files(source) == h.shipped_files(target)


def test_a_target_that_comes_back_restored_asks_again_while_following(source, target, tmp_path, monkeypatch):
    monkeypatch.setattr(shipper, "backoff_s", lambda failures: 0.05)
    key = h.write_stream(source, 100, segment_bytes=2000)
    with h.Following(source, target) as following:
        h.until(lambda: h.shipped_files(source) == h.shipped_files(target) != {})
        os.rename(target, target + "-away")
        h.until(lambda: following.told.texts("away"))
        for first in layout.list_segments(layout.stream_dir(target + "-away", key))[2:]:
            os.unlink(h.segment(target + "-away", key, first))
        os.rename(target + "-away", target)
        h.until(lambda: h.shipped_files(source) == h.shipped_files(target))
    assert following.report.exit_code == 0


def test_an_end_does_not_ship_before_its_bytes(source, target, tmp_path):
    other = h.make_spool(tmp_path / "other")
    key = h.write_stream(other, 20, close=False)
    whole = h.read(h.segment(other, key))
    length, last, sha256 = ends.measure(h.segment(other, key), 1)
    line = encode_line(
        {"length": length, "last": last, "sha256": sha256, "reason": "its writer died", "time": 1}
    )
    os.makedirs(layout.stream_dir(source, key))
    durable.write_file(os.path.join(layout.stream_dir(source, key), layout.end_name(1)), line)
    with open(h.segment(source, key), "wb") as file:
        file.write(whole[: whole.find(b"\n", len(whole) // 2) + 1])
    assert h.ship_once(source, target).complete == 0
    assert layout.list_ends(layout.stream_dir(target, key)) == []
    with open(h.segment(source, key), "wb") as file:
        file.write(whole)
    assert h.ship_once(source, target).complete == 1
    assert h.shipped_files(target) == h.shipped_files(source)
    assert h.events_in(target, key)[1] == "dead"


def test_a_full_target_is_tried_again_while_following(source, target, fault, monkeypatch):
    monkeypatch.setattr(shipper, "backoff_s", lambda failures: 0.02)
    for run in ("r1", "r2", "r3", "r4"):
        h.write_stream(source, 50, run=run)
    full = threading.Event()
    full.set()

    def refuse(operation, path):
        if full.is_set() and operation == "write" and path.endswith(".jsonl"):
            raise OSError(28, "No space left on device", path)

    fault(refuse)
    with h.Following(source, target) as following:
        h.until(lambda: following.told.texts("away"))
        assert not following.told.texts("back")
        full.clear()
        h.until(lambda: h.shipped_files(source) == h.shipped_files(target))
        h.until(lambda: following.told.texts("back"))
    assert following.report.exit_code == 0
    assert "No space left" in following.told.texts("away")[0]


def test_the_memory_of_a_target(source, target):
    h.write_stream(source, 5)
    h.ship_once(source, target)
    (name,) = os.listdir(os.path.join(source, ".agent", "ship"))
    known = orjson.loads(h.read(os.path.join(source, ".agent", "ship", name)))
    assert known["uuid"] == open_spool(target).uuid
    assert known["uuid"] != open_spool(source).uuid


def test_open_files_stay_few(source, target):
    for run in range(5):
        h.write_stream(source, 200, segment_bytes=1500, run=f"r{run}", blob=b"pixels")
    before = len(os.listdir("/proc/self/fd"))
    most = 0

    def tell(note):
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")))

    h.ship_once(source, target, tell=tell)
    assert len(os.listdir("/proc/self/fd")) == before
    assert most - before < 12


def test_backoff_is_bounded():
    waits = [shipper.backoff_s(n, spread=lambda: 1.0) for n in range(1, 50)]
    assert waits[:3] == [0.5, 1.0, 2.0]
    assert max(waits) == waits[-1] == 60.0
    assert shipper.backoff_s(50, spread=lambda: 0.0) == 30.0


# -- compare -----------------------------------------------------------------------------------------------


def lines_of(seqs):
    return [encode_line({"seq": n, "time": n, "type": "metrics", "metrics": {"x": n}}) for n in seqs]


@given(st.data())
@hypothesis_settings(max_examples=150, deadline=None)
def test_damage_is_never_a_fork_and_healing_gives_back_the_source(data):
    source = b"".join(lines_of(range(1, data.draw(st.integers(2, 12)))))
    target = bytearray(source[: data.draw(st.integers(1, len(source)))])
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(target) - 1))
        hole = data.draw(st.integers(1, 60))
        target[at : at + hole] = bytes(len(target[at : at + hole]))
    reading = [lambda at, size, b=bytes(b): b[at : at + size] for b in (source, target)]
    verdict = compare.examine(reading[0], len(source), reading[1], len(target))
    assert verdict.kind in ("append", "cut")
    healed = bytes(target[: verdict.offset]) + source[verdict.offset :]
    assert healed == source


@given(st.integers(1, 10), st.integers(1, 10), st.integers(1, 10))
@hypothesis_settings(max_examples=50, deadline=None)
def test_another_stream_is_a_fork_with_a_mark_that_stays(same, mine, theirs):
    common = lines_of(range(1, same))
    ours = common + lines_of(range(100, 100 + mine))
    other = b"".join(common + lines_of(range(200, 200 + theirs)))
    marks = set()
    for upto in range(same, len(ours) + 1):
        source = b"".join(ours[:upto])
        verdict = compare.examine(
            lambda at, size, b=source: b[at : at + size],
            len(source),
            lambda at, size: other[at : at + size],
            len(other),
        )
        assert verdict.kind == "fork"
        assert verdict.offset == len(b"".join(common))
        marks.add(verdict.mark)
    assert len(marks) == 1


def test_usable_stops_at_the_first_bad_line():
    good = lines_of(range(1, 4))
    data = b"".join(good)
    assert compare.usable(data) == (len(data), "")
    assert compare.usable(data + b"torn") == (len(data), "")
    assert compare.usable(good[0] + b"bad\n" + good[1]) == (len(good[0]), "a bad line")
    assert compare.usable(b"x" * (1 << 20)) == (0, "")
    assert compare.usable(b"x" * ((1 << 20) + 1)) == (0, "a line of over 1 MiB")
