"""What `ship --once` says of a target that cannot be used: what happened, where, what to do. One line that people read."""

import errno
import os
import shutil

import pytest
import schedule_help as h
from cli_help import forked, write_stream

from spoolagent.shipping.directory import DirectoryTarget
from spoolagent.testing import set_fault


@pytest.fixture
def place(tmp_path):
    for number in range(4):
        write_stream(tmp_path / "spool", f"run-{number}", events=1000)
    return tmp_path


def ship(place, code):
    """Ships once; the last line that is said."""
    done = forked("ship", "--spool", "spool", "--to", "target/srv", "--once", cwd=place)
    assert done.returncode == code, done.stderr
    assert "/proc/self" not in done.stderr and "Traceback" not in done.stderr and "()" not in done.stderr
    return done.stderr.splitlines()[-1]


needs_root = pytest.mark.skipif(not h.may_mount(), reason="only root can mount a file system of its own")


@needs_root
def test_a_full_disk(place):
    with h.small_disk(place / "target", "300k"):
        said = ship(place, 3)
        begin = f"spoolagent: the target {place}/target/srv cannot be written: No space left on device ("
        assert said.startswith(f"{begin}{place}/target/srv/sites/site-a/runs/run-")
        assert said.endswith("): make room there; ship goes on where it stopped")


@needs_root
def test_a_disk_that_is_mounted_read_only(place):
    with h.small_disk(place / "target", "10m") as disk:
        assert "4 of 4 streams" in ship(place, 0)
        write_stream(place / "spool", "run-new")
        disk.remount("ro")
        said = ship(place, 3)
        assert "Read-only file system" in said and f"({place}/target/srv/" in said
        assert said.endswith("mount it so that it can be written; ship goes on where it stopped")


@pytest.mark.parametrize(
    ("make", "code", "said"),
    [
        ("file", 2, "cannot be a spool: it or a part of it is a file; choose another path"),
        ("file in .agent", 3, "Not a directory (PLACE/.agent/locks): remove what is in a directory's place"),
        ("file in sites", 3, "Not a directory (PLACE/sites/site-a): remove what is in a directory's place"),
        ("bad spool.json", 1, "PLACE/spool.json is damaged"),
        ("directory as spool.json", 1, "PLACE/spool.json is no plain file"),
        ("gone", 3, "the target PLACE is away (No such file or directory): mount or connect it"),
        ("empty", 3, "it was a spool and now holds no spool.json; mount or connect it (to begin anew"),
    ],
)
def test_something_else_in_its_place(place, make, code, said):
    target = place / "target" / "srv"
    if make == "file":
        target.parent.mkdir()
        target.touch()
    else:
        ship(place, 0)
    if make.startswith("file in"):
        shutil.rmtree(target / make.split()[-1])
        (target / make.split()[-1]).touch()
    elif make.endswith("spool.json"):
        (target / "spool.json").unlink()
        (target / "spool.json").mkdir() if "directory" in make else (target / "spool.json").write_text("x")
    elif make in ("gone", "empty"):
        shutil.rmtree(target)
        target.mkdir() if make == "empty" else None
    assert said.replace("PLACE", str(target)) in ship(place, code)


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (errno.EACCES, "check its owner and mode"),
        (errno.EDQUOT, "raise its quota, or make room there"),
        (errno.EIO, "look at its disk"),
    ],
    ids=["EACCES", "EDQUOT", "EIO"],
)
def test_a_target_that_refuses(place, number, step):
    def refuse(operation, path):
        if operation == "create" and "/proc/self/fd" in path:
            raise OSError(number, os.strerror(number), path)

    set_fault(refuse)
    try:
        said = ship(place, 3)
    finally:
        set_fault(None)
    assert f"{os.strerror(number)} ({place}/target/srv/" in said
    assert said.endswith(f"): {step}; ship goes on where it stopped")


def test_a_target_that_goes_away_in_the_middle(place, monkeypatch):
    """Renamed away while a stream is written: what was begun goes to the directory that it was, the next one is told."""
    real = DirectoryTarget.stream
    moved = []

    def stream(self, key):
        if not moved:
            moved.append(os.rename(place / "target", place / "away"))
        return real(self, key)

    monkeypatch.setattr(DirectoryTarget, "stream", stream)
    said = ship(place, 3)
    assert said.startswith(f"spoolagent: the target {place}/target/srv is away (No such file or directory)")
    assert not (place / "target").exists()
    os.rename(place / "away", place / "target")
    monkeypatch.setattr(DirectoryTarget, "stream", real)
    assert "4 of 4 streams are ended and complete" in ship(place, 0)
