"""The watcher: hints come, are few, and their absence harms nobody."""

import errno
import logging
import os
import threading
import time

import pytest

from spoolagent import watching
from spoolagent.format.layout import StreamKey, stream_dir
from spoolagent.watching import Watcher, file_system, is_network

KEY = StreamKey("site-1", "run-1", "w-1")


@pytest.fixture
def spool(tmp_path):
    os.makedirs(stream_dir(str(tmp_path), KEY))
    return str(tmp_path)


def append(spool, key=KEY, data=b"x\n", name="00000000000000000001.jsonl"):
    with open(os.path.join(stream_dir(spool, key), name), "ab") as file:
        file.write(data)


def wait_for(watcher, key, limit_s=20.0):
    """Waits until `key` is hinted (None, sweep everything, counts)."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        hints = watcher.wait(1.0)
        if hints is None or key in hints:
            return True
    return False


def test_a_change_ends_the_wait(spool):
    with Watcher(spool) as watcher:
        assert watcher.has_hints
        assert watcher.wait(0) == set()
        threading.Timer(0.05, append, [spool]).start()
        before = time.monotonic()
        assert watcher.wait(30) == {KEY}
        assert time.monotonic() - before < 20


def test_a_watch_is_armed_again_after_each_hint(spool):
    with Watcher(spool) as watcher:
        for _ in range(5):
            append(spool)
            assert wait_for(watcher, KEY)


def test_a_flood_is_one_hint(spool):
    other = KEY._replace(writer="w-2")
    os.makedirs(stream_dir(spool, other))
    with Watcher(spool) as watcher:
        for _ in range(3000):
            append(spool)
            append(spool, other)
        assert watcher.wait(10) == {KEY, other}
        assert watcher.wait(0) == set()
        assert len(watcher._places) + len(watcher._runs) == 7


def test_hints_of_a_writing_thread_are_gathered(spool):
    with Watcher(spool) as watcher:
        append(spool)
        assert watcher.wait(10) == {KEY}
        append(spool)
        before = time.monotonic()
        assert watcher.wait(10) == {KEY}
        assert time.monotonic() - before >= watching.GATHER_S * 0.5


def test_a_new_stream_site_and_run_are_hinted(spool):
    with Watcher(spool) as watcher:
        new = StreamKey("site-2", "run-9", "w-9")
        os.makedirs(stream_dir(spool, new))
        assert wait_for(watcher, new)
        append(spool, new)
        assert wait_for(watcher, new)


def test_a_stream_renamed_into_view_is_hinted(spool):
    run = os.path.dirname(stream_dir(spool, KEY))
    with Watcher(spool) as watcher:
        os.mkdir(os.path.join(run, ".tmp-w-3"))
        assert watcher.wait(0.1) == set()
        os.rename(os.path.join(run, ".tmp-w-3"), os.path.join(run, "w-3"))
        assert wait_for(watcher, KEY._replace(writer="w-3"))
        append(spool, KEY._replace(writer="w-3"))
        assert wait_for(watcher, KEY._replace(writer="w-3"))


def test_what_is_no_stream_gives_no_hint(spool):
    with Watcher(spool) as watcher:
        os.makedirs(os.path.join(spool, ".agent", "locks"))
        os.makedirs(os.path.join(spool, "sites", "site-1", "blobs", "aa"))
        os.makedirs(os.path.join(spool, "sites", "..bad", "runs", "r", "w"))
        os.symlink(stream_dir(spool, KEY), os.path.join(spool, "sites", "site-1", "runs", "run-1", "w-link"))
        assert watcher.wait(0.2) == set()


def test_interrupt_ends_the_wait_and_keeps_hints(spool):
    with Watcher(spool) as watcher:
        threading.Timer(0.05, watcher.interrupt).start()
        before = time.monotonic()
        assert watcher.wait(30) == set()
        assert time.monotonic() - before < 20
        watcher.interrupt()
        assert watcher.wait(30) == set()
        assert watcher.wait(0) == set()


def test_interrupt_while_only_sleeping(spool):
    with Watcher(spool, poll=True) as watcher:
        assert not watcher.has_hints
        watcher.interrupt()
        before = time.monotonic()
        assert watcher.wait(30) == set()
        append(spool)
        assert watcher.wait(0.1) == set()
        assert time.monotonic() - before < 20


def test_an_overflow_means_sweep_everything(spool, monkeypatch):
    with Watcher(spool) as watcher:
        real = watcher._inotify.read
        monkeypatch.setattr(watcher._inotify, "read", lambda: iter([*real(), (-1, watching._OVERFLOW, "")]))
        append(spool)
        assert watcher.wait(10) is None
        assert wait_for(watcher, KEY)
        append(spool)
        assert wait_for(watcher, KEY)
        assert watcher.has_hints


def test_no_inotify_means_sleeping_with_one_warning(spool, monkeypatch, caplog):
    def refuse(self, result):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(watching._Inotify, "_checked", refuse)
    with caplog.at_level(logging.WARNING), Watcher(spool) as watcher:
        append(spool)
        assert watcher.wait(0.05) == set()
        assert not watcher.has_hints
    assert [r.message for r in caplog.records if "periodic sweep" in r.message] == [
        r.message for r in caplog.records
    ]
    assert len(caplog.records) == 1


def test_the_watch_limit_keeps_the_watches_that_there_are(spool, monkeypatch, caplog):
    real = watching._Inotify.add

    def limited(self, path, mask):
        if path.endswith(("w-8", "w-9")):
            raise OSError(errno.ENOSPC, "inotify watch limit reached")
        return real(self, path, mask)

    monkeypatch.setattr(watching._Inotify, "add", limited)
    for writer in ("w-8", "w-9"):
        os.makedirs(stream_dir(spool, KEY._replace(writer=writer)))
    with caplog.at_level(logging.WARNING), Watcher(spool) as watcher:
        append(spool, KEY._replace(writer="w-9"))
        append(spool)
        assert watcher.wait(10) == {KEY}
    assert len(caplog.records) == 1
    assert "max_user_watches" in caplog.text


def test_a_forgotten_stream_is_quiet(spool):
    with Watcher(spool) as watcher:
        watcher.forget(KEY)
        append(spool)
        assert watcher.wait(0.1) == set()


def test_a_spool_that_is_renamed_away_and_comes_back(spool):
    away = spool + "-away"
    with Watcher(spool) as watcher:
        os.rename(spool, away)
        assert watcher.wait(10) is None
        watcher.wait(0.01)
        os.rename(away, spool)
        deadline = time.monotonic() + 20
        while not watcher.has_hints and time.monotonic() < deadline:
            watcher.wait(0.1)
        assert watcher.has_hints
        watcher.wait(0)
        append(spool)
        assert wait_for(watcher, KEY)


def test_descriptors_are_freed_and_not_inherited(spool):
    before = len(os.listdir("/proc/self/fd"))
    with Watcher(spool) as watcher:
        assert not os.get_inheritable(watcher._inotify.fd)
        assert not os.get_inheritable(watcher._wakeup)
    watcher.close()
    watcher.interrupt()
    assert len(os.listdir("/proc/self/fd")) == before


def test_ten_thousand_streams(tmp_path):
    for index in range(10_000):
        os.makedirs(stream_dir(str(tmp_path), StreamKey("s", f"r{index // 1000}", f"w{index}")))
    with Watcher(str(tmp_path)) as watcher:
        key = StreamKey("s", "r7", "w7123")
        append(str(tmp_path), key)
        assert watcher.wait(10) == {key}


def test_network_file_systems_are_known(tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "22 21 0:40 / /mnt/my\\040share rw,relatime shared:3 master:1 - nfs4 server:/x rw\n"
        "23 22 0:41 / /mnt/my\\040share/local rw - xfs /dev/sdb rw\n"
        "24 21 0:42 / /fuse rw - fuse.sshfs host: rw\n"
    )
    kinds = {
        p: file_system(p, str(mounts))
        for p in ("/data", "/mnt/my share/spool", "/mnt/my share/local/a", "/fuse", "/mnt/my sharex")
    }
    assert list(kinds.values()) == ["ext4", "nfs4", "xfs", "fuse.sshfs", "ext4"]
    assert [is_network(kind) for kind in kinds.values()] == [False, True, False, True, False]
    assert file_system("/data", str(tmp_path / "none")) == ""
    assert file_system(str(tmp_path)) != ""


def test_on_a_network_file_system_it_only_sleeps(spool, monkeypatch, caplog):
    monkeypatch.setattr(watching, "file_system", lambda path: "nfs4")
    with caplog.at_level(logging.WARNING), Watcher(spool) as watcher:
        assert not watcher.has_hints
    assert len(caplog.records) == 1
    with Watcher(spool, poll=False) as watcher:
        assert watcher.has_hints
