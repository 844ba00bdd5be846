"""What is on disk before what: nothing is acknowledged, delivered or named that a power cut could still take away."""

import errno
import os
import shutil

import pytest
import shipping_help
from spool_help import make_writer, write_metrics
from test_worker import Agent

from spoolagent.format import durable, layout
from spoolagent.format.blobs import put_bytes
from spoolagent.format.ends import DeathWatch, end_dead_stream
from spoolagent.serving.store import Store
from spoolagent.testing import MemoryReceiver, set_fault


@pytest.fixture
def seen():
    """Every durable operation, as (operation, path)."""
    log = []
    set_fault(lambda operation, path: log.append((operation, path)))
    yield log
    set_fault(None)


def folder_of(writer):
    return os.path.join(layout.run_dir(writer.spool, writer.site, writer.run), writer.writer)


def test_nothing_is_delivered_that_the_machine_could_still_forget(tmp_path, seen):
    writer = make_writer(tmp_path, durability="process")
    write_metrics(writer, 3)
    stream = folder_of(writer)
    segment = os.path.join(stream, layout.segment_name(1))
    receiver = MemoryReceiver(before=lambda batch: seen.append(("deliver", batch.events[-1].seq)))
    seen.clear()
    Agent(tmp_path, receiver).run()
    first = seen.index(("deliver", 4))
    for path in (segment, stream, os.path.dirname(stream)):
        assert ("fsync", path) in seen[:first], path
    write_metrics(writer, 2, first=3)
    seen.clear()
    Agent(tmp_path, receiver).run()
    assert ("fsync", segment) in seen[: seen.index(("deliver", 6))]
    writer.close()


def test_a_sync_makes_every_segment_and_its_name_durable(tmp_path, seen):
    writer = make_writer(tmp_path, segment_bytes=500)
    writer.open()
    stream = folder_of(writer)
    seen.clear()
    write_metrics(writer, 20)
    written = layout.list_segments(stream)
    assert len(written) > 3
    writer.sync()  # or the keeper's thread, just before
    synced = {path for operation, path in seen if operation == "fsync"}
    assert {os.path.join(stream, layout.segment_name(first)) for first in written} <= synced
    assert stream in synced
    writer.close()


def test_what_a_killed_shipper_left_at_the_target_is_synced_before_it_counts(tmp_path, seen):
    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    writer = make_writer(source)
    write_metrics(writer, 3)
    writer.close()
    shipping_help.ship_once(source, target)
    stream = os.path.relpath(folder_of(writer), source)
    shutil.rmtree(os.path.join(source, ".agent"))  # it was killed before its fsync, and kept no receipt
    seen.clear()
    report = shipping_help.ship_once(source, target)
    assert report.complete == 1
    there = [path for operation, path in seen if operation == "fsync" and not path.startswith(source)]
    assert [path[-len(stream) :] for path in there if not path.endswith(".jsonl")] == [stream]
    assert [path for path in there if path.endswith(os.path.join(stream, layout.segment_name(1)))]


def test_with_always_a_segment_begun_by_age_has_its_name_on_disk_before_the_call_returns(tmp_path, seen):
    writer = make_writer(tmp_path, durability="always", segment_age_s=0.0)
    write_metrics(writer, 1)
    writer._rotate_by_age()  # as the keeper does, between two of its syncs
    stream = folder_of(writer)
    assert len(layout.list_segments(stream)) > 1
    seen.clear()
    write_metrics(writer, 1, first=1)
    assert ("fsync", stream) in seen
    seen.clear()
    write_metrics(writer, 1, first=2)
    assert ("fsync", stream) not in seen, "once a segment"
    writer.close()


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_published_file_is_whole_before_it_has_its_name(tmp_path, seen, exclusive):
    path = str(tmp_path / "file")
    durable.write_file(path, b"content", exclusive=exclusive)
    operations = [operation for operation, _ in seen]
    appears = "link" if exclusive else "rename"
    assert operations[:5] == ["create", "write", "fsync", appears, "fsync"]
    temp = seen[0][1]
    assert [where for _, where in seen[:5]] == [temp, temp, temp, path, str(tmp_path)]


def test_a_dead_stream_is_on_disk_before_its_end_is(tmp_path, seen):
    writer = make_writer(tmp_path, durability="process")
    write_metrics(writer, 2)
    stream = folder_of(writer)
    writer._close_files()  # as a death does, without a seal
    seen.clear()
    assert end_dead_stream(stream, DeathWatch())
    named = seen.index(("link", os.path.join(stream, layout.end_name(1))))
    before = [path for operation, path in seen[:named] if operation == "fsync"]
    assert before[:2] == [os.path.join(stream, layout.segment_name(1)), stream]


def test_a_commit_of_the_store_is_fsynced(tmp_path):
    """SQLite's own fsyncs pass no fault point; what it was told must be 2, FULL: an fsync in each commit."""
    with Store(str(tmp_path), "memory:") as store:
        assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_blob_whose_fsync_fails_has_no_name(tmp_path):
    """And so no event can name it."""
    put_bytes(str(tmp_path), "site-1", b"first")  # makes the spool

    def refuse(operation, path):
        if operation == "fsync" and ".tmp-" in path:
            raise OSError(5, "Input/output error", path)

    set_fault(refuse)
    try:
        with pytest.raises(OSError, match="Input/output"):
            put_bytes(str(tmp_path), "site-1", b"second")
    finally:
        set_fault(None)
    blobs = [name for _, _, names in os.walk(tmp_path / "sites" / "site-1" / "blobs") for name in names]
    assert len(blobs) == 1


def test_a_directory_of_ours_whose_parent_cannot_be_fsynced_is_not_taken_for_durable(tmp_path):
    """The target's disk gave EACCES twice; the second time it was taken for a directory above the spool."""
    path = tmp_path / "spool" / "sites"
    path.parent.mkdir(mode=0o700)

    def refused(operation, name):
        if operation == "fsync" and name == str(path.parent):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)

    set_fault(refused)
    try:
        for _ in range(3):
            with pytest.raises(PermissionError):
                durable.make_dirs(str(path))
    finally:
        set_fault(None)
    durable.make_dirs(str(path))


def test_a_directory_that_is_named_by_a_descriptor_has_no_parent_to_fsync(tmp_path, seen, monkeypatch):
    """So a shipper names its target; a new process asked the kernel to fsync /proc/self/fd."""
    monkeypatch.setattr(durable, "_sure", set())
    spool = tmp_path / "spool"
    spool.mkdir(mode=0o700)
    fd = os.open(spool, os.O_RDONLY)
    try:
        durable.make_dirs(f"/proc/self/fd/{fd}/sites/a")
    finally:
        os.close(fd)
    assert (spool / "sites" / "a").is_dir()
    root = f"/proc/self/fd/{fd}"
    assert [path for operation, path in seen if operation == "fsync"] == [root, f"{root}/sites"]


def test_a_directory_above_the_spool_may_refuse_its_fsync(tmp_path):
    path = tmp_path / "others" / "spool"
    path.parent.mkdir(mode=0o755)
    path.mkdir(mode=0o700)

    def refused(operation, name):
        if operation == "fsync" and name == str(path.parent):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)

    set_fault(refused)
    try:
        durable.make_dirs(str(path))
    finally:
        set_fault(None)
