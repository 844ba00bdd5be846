"""The mirror that lies with a target's files: cursors that are older than the files are noticed."""

import contextlib
import json
import os
import shutil
import stat

import pytest
from cli_help import forked
from spool_help import make_writer, write_metrics
from test_mirror import damage, remove

from spoolagent.errors import Locked
from spoolagent.format.spool import open_spool
from spoolagent.receivers.jsonl import JsonLinesReceiver
from spoolagent.serving import sums
from spoolagent.serving.database import existing
from spoolagent.serving.store import open_store, target_dir


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
