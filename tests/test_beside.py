"""The mirror that lies with a target's files: cursors that are older than the files are noticed."""

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import stat

import pytest
from cli_help import forked
from spool_help import make_writer, write_metrics
from tb_help import accumulate, points
from test_mirror import damage, remove
from test_worker import Agent

from spoolagent.errors import Locked
from spoolagent.format import durable
from spoolagent.format.spool import open_spool
from spoolagent.receivers.jsonl import JsonLinesReceiver
from spoolagent.receivers.tensorboard import TensorBoardReceiver
from spoolagent.serving import beside, mirror, sums
from spoolagent.serving.database import existing
from spoolagent.serving.place import Moved
from spoolagent.serving.store import open_store, target_dir
from spoolagent.serving.worker import Worker
from spoolagent.settings import AgentSettings, ReceiverSettings
from spoolagent.watching import Watcher


class Place:
    """A spool of two streams that take turns, and a JSON lines file that gets it."""

    def __init__(self, path):
        self.spool, self.out = str(path / "spool"), path / "out" / "events.jsonl"
        self.writers = [make_writer(self.spool, run=f"run-{n}") for n in (1, 2)]
        self.written = 2

    def log(self, count=4):
        for number in range(count):
            write_metrics(self.writers[number % 2], 1, number)
        self.written += count

    def replay(self, spool=None):
        done = forked("replay", spool or self.spool, "--to", f"jsonl:{self.out}", cwd=self.out.parent.parent)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def open(self, spool=None):
        """The store of a worker, in this process."""
        return open_store(open_spool(spool or self.spool), JsonLinesReceiver(str(self.out), {}))

    def work(self, store, spool=None):
        """A worker with that store, until there is no more."""
        receiver = JsonLinesReceiver(str(self.out), {})
        receiver.open(store)
        agent = AgentSettings(spool=spool or self.spool)
        limits = ReceiverSettings(name="jsonl", spec=f"jsonl:{self.out}")
        with Watcher(agent.spool, agent.poll, streams=False) as hints:
            worker = Worker(open_spool(agent.spool), receiver, store, agent=agent, limits=limits, hints=hints)
            worker.run(until_drained=True)

    def events(self):
        """(run, seq) of each line, of all the files."""
        lines = [
            json.loads(x) for path in self.out.parent.glob("*.jsonl") for x in path.read_text().splitlines()
        ]
        return sorted((x["run"], x["seq"]) for x in lines if "seq" in x)

    def once(self):
        return sorted((f"run-{n}", seq) for n in (1, 2) for seq in range(1, self.written // 2 + 1))

    @property
    def folder(self):
        return target_dir(os.path.realpath(self.spool), JsonLinesReceiver(str(self.out), {}).identity)

    @property
    def link(self):
        return os.path.join(self.folder, "state.mirror")

    @property
    def kept(self):
        return self.out.parent / ".spoolagent"

    @property
    def mirror(self):
        (path,) = self.kept.glob("*.mirror")
        return str(path)

    def agree(self):
        """Both copies hold the same, and both are private."""
        assert os.path.realpath(self.link).startswith(os.path.realpath(self.kept))
        assert stat.S_IMODE(os.stat(self.kept).st_mode) == 0o700
        paths = (os.path.join(self.folder, "state.sqlite"), self.link)
        assert all(stat.S_IMODE(os.stat(path).st_mode) == 0o600 for path in paths)
        one, other = (contextlib.closing(existing(path, "ro")) for path in paths)
        with one as db, other as copy:
            return sums.same(db, copy)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_a_spool_that_is_put_back_from_a_backup(place, tmp_path):
    """All of it, cursors and segments. What the clients have is there again later."""
    place.log()
    place.replay()
    shutil.copytree(place.spool, tmp_path / "backup", symlinks=True)
    place.log(10)
    place.replay()
    assert place.events() == place.once()
    segments = shutil.copytree(os.path.join(place.spool, "sites"), tmp_path / "later")
    shutil.rmtree(place.spool)
    shutil.copytree(tmp_path / "backup", place.spool, symlinks=True)
    forked("replay", place.spool, "--to", f"jsonl:{place.out}", "--give-up-after", "0", cwd=tmp_path)
    assert place.events() == place.once(), "nothing twice"
    shutil.copytree(segments, os.path.join(place.spool, "sites"), dirs_exist_ok=True)
    place.replay()
    assert place.events() == place.once() and place.agree()


@pytest.mark.parametrize("what", ["agent", "folder", "database"])
def test_cursors_that_are_gone(place, what):
    place.log()
    place.replay()
    gone = {"agent": os.path.join(place.spool, ".agent"), "folder": place.folder}.get(what)
    if gone is None:
        remove(os.path.join(place.folder, "state.sqlite"))
    else:
        shutil.rmtree(gone)
    place.log()
    assert "its mirror has taken its place" in place.replay()
    assert place.events() == place.once() and place.agree()
    assert "mirror" not in place.replay(), "it is said once"


def test_a_target_that_is_emptied_with_its_cursors_begins_anew(place):
    place.log()
    place.replay()
    shutil.rmtree(os.path.join(place.spool, ".agent"))
    place.out.unlink()
    assert "mirror" not in place.replay()
    assert place.events() == place.once() and place.agree()


def test_a_copy_of_the_spool_goes_on_where_the_other_stood(place, tmp_path):
    place.log()
    place.replay()
    place.log()
    copy = shutil.copytree(place.spool, tmp_path / "copy", ignore=shutil.ignore_patterns(".agent", "LIVE"))
    assert "its mirror has taken its place" in place.replay(copy)
    assert place.events() == place.once()
    assert "its mirror has taken its place" in place.replay(), "the copy was further"
    assert place.events() == place.once()


def test_two_copies_at_once(place, tmp_path):
    place.log()
    copy = shutil.copytree(place.spool, tmp_path / "copy", ignore=shutil.ignore_patterns(".agent", "LIVE"))
    receiver = JsonLinesReceiver(str(place.out), {})
    first = open_store(open_spool(place.spool), receiver)
    place.out.parent.mkdir()
    first.put("some", "thing")
    first.commit([])
    with first, pytest.raises(Locked, match="a copy of this spool"):
        open_store(open_spool(str(copy)), receiver)
    open_store(open_spool(str(copy)), receiver).close()


def test_a_damaged_database_in_the_spool_and_a_damaged_mirror(place):
    place.log()
    place.replay()
    damage(os.path.join(place.folder, "state.sqlite"))
    shown = forked("status", place.spool, cwd=place.out.parent.parent)
    assert "its mirror takes its place when a worker starts" in shown.stdout
    place.log()
    place.replay()
    assert place.events() == place.once() and place.agree()
    damage(os.path.realpath(place.link))
    place.log()
    place.replay()
    assert place.events() == place.once() and place.agree()


def test_the_mirror_of_an_earlier_release_moves(place):
    """It lay beside the database, and is all there is when that is damaged before the first start of this one."""
    place.log()
    place.replay()
    os.rename(os.path.realpath(place.link), place.link + ".moved")
    os.replace(place.link + ".moved", place.link)
    shutil.rmtree(place.kept)
    damage(os.path.join(place.folder, "state.sqlite"))
    place.log()
    assert "its mirror has taken its place" in place.replay()
    assert place.events() == place.once() and place.agree()


def test_a_folder_that_takes_no_mirror(place):
    """Then it lies with the database, and moves when it can."""
    place.out.parent.mkdir()
    place.kept.write_text("in the way")
    place.log()
    place.replay()
    assert os.path.isfile(place.link) and not os.path.islink(place.link)
    place.kept.unlink()
    place.log()
    place.replay()
    assert place.events() == place.once() and place.agree()


def test_a_target_that_is_away_has_its_mirror_with_the_database(place):
    """A mount that is missing: its folder is not made anew. When it is back, the newer copy is kept."""
    place.log()
    place.replay()
    away = place.out.parent.rename(place.out.parent.with_name("away"))
    with open_store(open_spool(place.spool), JsonLinesReceiver(str(place.out), {})) as store:
        assert not place.out.parent.exists()
        store.put("more", 1)
        store.commit([])
        assert os.path.isfile(place.link) and not os.path.islink(place.link)
    away.rename(place.out.parent)
    with open_store(open_spool(place.spool), JsonLinesReceiver(str(place.out), {})) as store:
        assert store.get("more") == 1 and not store.news
        store.put("more", 2)
        store.commit([])
    assert place.agree()


def test_a_full_disk_of_the_spool_leaves_the_targets_mirror_alone(place):
    """It lies elsewhere; with it, cursors that are put back later would not be noticed."""
    place.log()
    place.replay()
    with place.open() as store:
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL
        refused = []

        def refuse(operation, path):
            if operation == "commit" and path == store.path and not refused:
                refused.append(path)
                raise full

        durable.set_fault(refuse)
        store.put("some", "thing")
        store.commit([])
        durable.set_fault(None)
        assert refused and place.agree()


def test_a_disk_without_symbolic_links(place, monkeypatch):
    """A spool on exFAT or CIFS: the mirror beside the target follows all the same."""

    def refuse(source, target):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), target)

    monkeypatch.setattr(os, "symlink", refuse)
    place.log()
    place.out.parent.mkdir()
    for count in (3, 2):  # made anew, and found
        with place.open() as store:
            for number in range(count):
                store.put("some", [count, number])
                store.commit([])
                with contextlib.closing(existing(place.mirror, "ro")) as copy:
                    assert sums.same(store._db, copy)
    assert not os.path.lexists(place.link)


@pytest.mark.parametrize("first_is", ["at work", "done"])
def test_two_copies_that_are_open_before_the_first_commit(place, tmp_path, first_is):
    """After an update from a release that had its mirror in the spool: none has the place beside the target yet."""
    place.log()
    place.replay()
    os.replace(shutil.copy(place.mirror, tmp_path), place.link)
    shutil.rmtree(place.kept)
    place.log()
    copy = str(shutil.copytree(place.spool, tmp_path / "copy", symlinks=True))
    with place.open() as first, place.open(copy) as second:
        place.work(first)
        if first_is == "done":
            first.close()
        with pytest.raises(Moved, match="a copy of this spool"):
            place.work(second, copy)
        assert place.events() == place.once(), "nothing twice"
    assert "its mirror has taken its place" in place.replay(copy)
    assert place.events() == place.once(), "nothing twice"


@pytest.mark.parametrize("what", ["folder", "kept"])
def test_a_target_that_is_made_again_under_an_open_store(place, tmp_path, what):
    """Its mirror is made again, too, and nobody else gets its place."""
    place.log()
    place.out.parent.mkdir()
    with place.open() as store:
        store.put("some", "thing")
        store.commit([])
        shutil.rmtree(place.out.parent if what == "folder" else place.kept)
        place.out.parent.mkdir(exist_ok=True)
        for number in range(2):
            store.put("more", number)
            store.commit([])
            assert place.agree()
            copy = shutil.copytree(
                place.spool, tmp_path / str(number), ignore=shutil.ignore_patterns(".agent")
            )
            with pytest.raises(Locked, match="a copy of this spool"):
                place.open(str(copy))


def test_a_lock_that_is_removed_under_an_open_store(place):
    """Somebody else could have had the place meanwhile."""
    place.log()
    place.out.parent.mkdir()
    with place.open() as store:
        store.put("some", "thing")
        store.commit([])
        os.unlink(place.mirror + ".lock")
        for _ in range(2):
            store.put("some", "other thing")
            with pytest.raises(Moved, match="a copy of this spool"):
                store.commit([])
    place.out.touch()
    with place.open() as store:
        assert store.get("some") == "thing" and place.agree()


@pytest.mark.parametrize("other", ["events.old.jsonl", "events-val.jsonl", "events-2.jsonl.gz"])
def test_what_only_looks_like_the_targets_file_keeps_nobody_from_beginning_anew(place, other):
    place.log()
    place.replay()
    shutil.rmtree(os.path.join(place.spool, ".agent"))
    place.out.rename(place.out.with_name(other))
    assert "mirror" not in place.replay()
    place.out.with_name(other).unlink()
    assert place.events() == place.once() and place.agree()


def test_a_target_whose_first_file_was_moved_away_is_not_empty(place):
    place.log()
    place.replay()
    shutil.rmtree(os.path.join(place.spool, ".agent"))
    place.out.rename(place.out.with_name("events-2.jsonl"))
    assert "its mirror has taken its place" in place.replay()
    assert place.events() == place.once() and place.agree()


def test_a_damaged_mirror_is_named_when_it_is_all_there_is(place):
    place.log()
    place.replay()
    shutil.rmtree(os.path.join(place.spool, ".agent"))
    damage(place.mirror)
    done = forked("replay", place.spool, "--to", f"jsonl:{place.out}", cwd=place.out.parent.parent)
    assert done.returncode != 0
    assert place.mirror in done.stderr and os.path.join(place.folder, "state.sqlite") not in done.stderr


def test_a_database_that_is_lost_with_the_targets_files(place):
    """Not begun anew: its folder is still there and says that there was one."""
    place.log()
    place.replay()
    remove(os.path.join(place.folder, "state.sqlite"))
    place.out.unlink()
    assert "its mirror has taken its place" in place.replay()
    assert place.events() == [] and place.agree()


def test_a_mirror_that_cannot_be_reached_just_now(place, monkeypatch):
    """The worker fails and comes again: without the mirror, it would not notice cursors that were put back."""
    place.log()
    place.replay()
    shutil.rmtree(os.path.join(place.spool, ".agent"))

    def refuse(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    with monkeypatch.context() as patched:
        patched.setattr(beside, "make_dirs", refuse)
        with pytest.raises(OSError, match="Input/output error"):
            place.open()
    assert "its mirror has taken its place" in place.replay()
    assert place.events() == place.once() and place.agree()


def test_a_file_system_on_which_sqlite_keeps_no_log(place, monkeypatch):
    """As through FUSE or 9p, without shared memory. The worker goes on without a mirror, at the next start, too."""
    place.log()
    place.out.parent.mkdir()
    real = mirror.open_checked

    def refuse(path, *, was_made):
        if path.endswith(".mirror"):
            raise sqlite3.OperationalError("disk I/O error")
        return real(path, was_made=was_made)

    monkeypatch.setattr(mirror, "open_checked", refuse)
    for number in range(2):
        with place.open() as store:
            assert store.get("some") == (number or None)
            store.put("some", number + 1)
            store.commit([])
    assert not list(place.kept.glob("*.mirror"))
    monkeypatch.undo()
    place.replay()
    assert place.agree()


# -- TensorBoard's lies above LOGDIR -----------------------------------------------------------------------------


class Logs:
    """A spool of one run, and a LOGDIR that gets it."""

    def __init__(self, path):
        self.path, self.spool, self.logs = path, path / "spool", path / "tb"
        self.writer, self.written = make_writer(self.spool), 0

    def log(self, count=3):
        write_metrics(self.writer, count, self.written)
        self.written += count

    def replay(self):
        done = forked("replay", self.spool, "--to", f"tensorboard:{self.logs}", cwd=self.path)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def is_shown_once(self):
        (folder,) = {path.parent for path in self.logs.rglob("*tfevents*")}
        return [step for _, step, _ in points(accumulate(folder), "loss")] == list(range(self.written))


def test_a_logdir_stays_free_of_it(tmp_path):
    logs = Logs(tmp_path)
    logs.log()
    logs.replay()
    assert [path.name for path in logs.logs.iterdir()] == ["site-1"]
    shutil.rmtree(logs.spool / ".agent")
    logs.log()
    assert "its mirror has taken its place" in logs.replay()
    assert logs.is_shown_once()


@pytest.mark.parametrize("what", ["its files", "all of it"])
def test_a_logdir_that_is_emptied_with_its_cursors_begins_anew(tmp_path, what):
    logs = Logs(tmp_path)
    logs.log()
    logs.replay()
    shutil.rmtree(logs.spool / ".agent")
    shutil.rmtree(logs.logs)
    if what == "its files":
        logs.logs.mkdir()
    assert "mirror" not in logs.replay()
    assert logs.is_shown_once()


def test_a_folder_above_that_takes_no_mirror(tmp_path):
    (tmp_path / ".spoolagent").write_text("in the way")
    logs = Logs(tmp_path)
    logs.log()
    logs.replay()
    logs.log()
    logs.replay()
    assert logs.is_shown_once()


def test_a_sandbox_in_which_only_logdir_may_be_written(tmp_path, monkeypatch):
    """As with `ProtectSystem=strict` and `ReadWritePaths=LOGDIR`."""
    logs = Logs(tmp_path)
    tried = []

    def refuse(operation, path):
        if operation == "mkdir" and path == str(tmp_path / ".spoolagent"):
            tried.append(path)
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(durable, "_fault", refuse)
    for _ in range(2):
        logs.log()
        receiver = TensorBoardReceiver(str(logs.logs), {})
        Agent(logs.spool, receiver).run()
        receiver.close()
    assert tried and logs.is_shown_once()
