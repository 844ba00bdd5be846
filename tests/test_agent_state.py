"""What an operator can do to an agent's own files under its hands: remove them, replace them, put something in their place."""

import itertools
import os
import shutil
import subprocess
import sys

import pytest
from acceptance_help import agent, json_lines
from cli_help import forked
from shipping_help import shipped_files
from spool_help import make_writer, python, streams, until, write_metrics
from tb_help import accumulate, points
from test_stuck import Serving, events_in
from test_worker import Agent, simple

from spoolagent.format.spool import open_spool
from spoolagent.serving.place import Moved
from spoolagent.serving.status import read_status
from spoolagent.serving.store import target_dir
from spoolagent.testing import MemoryReceiver
from spoolagent.undertaker import Undertaker


def seqs(path):
    return [(line["run"], line["seq"]) for line in json_lines(path) if "seq" in line]


# -- removed or replaced while it is open ------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["lock", "state.sqlite", "its folder", ".agent", "replaced by a copy"])
def test_nothing_goes_out_that_no_cursor_will_know_of(tmp_path, what):
    spool = tmp_path / "spool"
    simple(spool, count=10)
    folder = target_dir(str(spool), "memory:")

    def remove(_batch):
        receiver.before = None
        if what in ("lock", "state.sqlite"):
            os.unlink(os.path.join(folder, what))
        elif what == "replaced by a copy":  # by others: to open the database here would free its locks
            command = f"cp -a {folder} {folder}.new && rm -r {folder} && mv {folder}.new {folder}"
            subprocess.run(command, shell=True, check=True)
        else:
            shutil.rmtree(spool / ".agent" if what == ".agent" else folder)

    receiver = MemoryReceiver(before=remove)
    worker = Agent(spool, receiver)
    with pytest.raises(Moved, match="while it was in use"):
        worker.run()
    assert len(receiver.order) == 4, "the batch that was under way"
    worker.run()
    assert len(receiver.order) == 12 and receiver.repeats == 4


def test_an_idle_worker_notices_at_its_sweep(tmp_path):
    simple(tmp_path, count=3)
    worker = Agent(tmp_path, MemoryReceiver())

    def wait(timeout_s):
        Agent.wait(worker, timeout_s)
        shutil.rmtree(tmp_path / ".agent", ignore_errors=True)

    worker.wait = wait
    with pytest.raises(Moved, match="lock is gone while it was in use"):
        worker.run(until_drained=False, passes=100)
    assert worker.passes >= 98


def test_serve_goes_on_when_agent_is_removed(tmp_path):
    """By the mirrors with the targets' files."""
    spool, out = tmp_path / "spool", tmp_path / "out.jsonl"
    writer = make_writer(spool)
    write_metrics(writer, 10)
    to = ("--to", "jsonl:out.jsonl", "--to", "tensorboard:tb")
    with agent("serve", "--spool", "spool", *to, cwd=tmp_path, name="serve") as serve:
        until(lambda: len(seqs(out)) == 11, what="the events")
        until(lambda: [x.applied for x in read_status(str(spool))] == [11, 11], what="their count")
        shutil.rmtree(spool / ".agent")
        until(lambda: serve.said.count("lock is gone while it was in use") == 2, what="the lines")
        write_metrics(writer, 10, first=10)
        until(lambda: len(seqs(out)) == 21, what="the rest")
        until(lambda: serve.said.count("its mirror has taken its place") == 2, what="the lines")
        until(lambda: [x.applied for x in read_status(str(spool))] == [21, 21], what="their count")
        serve.stop()
    writer.close()
    assert seqs(out) == [("run-1", seq) for seq in range(1, 22)]
    (folder,) = {path.parent for path in (tmp_path / "tb").rglob("*tfevents*")}
    assert [step for _, step, _ in points(accumulate(folder), "loss")] == list(range(20))


def test_serve_comes_through_a_spool_that_is_moved_away_and_back(tmp_path):
    spool, away, out = tmp_path / "spool", tmp_path / "away", tmp_path / "out.jsonl"
    simple(spool, count=10)
    with agent("serve", "--spool", "spool", "--to", "jsonl:out.jsonl", cwd=tmp_path, name="serve") as serve:
        until(lambda: len(seqs(out)) == 12, what="the events")
        os.rename(spool, away)
        until(lambda: "is gone while it was in use" in serve.said, what="the line")
        until(lambda: "is not a spool: it does not exist" in serve.said, what="the supervisor's tries")
        simple(away, run="run-2", count=10)
        os.rename(away, spool)
        until(lambda: len(seqs(out)) == 24, what="the rest")
        serve.stop()
    assert len(set(seqs(out))) == len(seqs(out)) == 24


def test_another_spool_in_the_place_of_the_first(tmp_path):
    """Its dead writers are its own agent's to bury: this one's, now."""
    spool = tmp_path / "spool"
    simple(spool, count=1)
    undertaker = Undertaker(open_spool(str(spool)), stale_after_s=60.0)
    undertaker.sweep()
    os.rename(spool, tmp_path / "first")
    undertaker.sweep()
    code = "import os, sys; from spool_help import *; write_metrics(make_writer(sys.argv[1]), 5); os._exit(9)"
    process = python(code, spool, PYTHONPATH=os.pathsep.join(sys.path))
    assert process.wait(60) == 9
    undertaker.sweep()
    assert [how for _, how in streams(spool).values()] == ["dead"]


# -- something else in their place -------------------------------------------------------------------------------

MAKERS = {
    "directory": os.mkdir,
    "FIFO": os.mkfifo,
    "dangling link": lambda path: os.symlink("nowhere", path),
    "file": lambda path: open(path, "x").close(),
}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        *itertools.product(["lock", "state.sqlite"], ["directory", "FIFO", "dangling link"]),
        *itertools.product(
            ["state.mirror"], ["directory", "FIFO"]
        ),  # a link leads to where a target's files are
    ],
)
def test_only_that_receiver_stops(tmp_path, name, make):
    spool = tmp_path / "spool"
    simple(spool, count=10)
    folder = target_dir(str(spool), f"jsonl:{tmp_path}/bad.jsonl")
    os.makedirs(folder)
    path = os.path.join(folder, name)
    MAKERS[make](path)
    with Serving(
        tmp_path, f"jsonl:{tmp_path}/bad.jsonl", f"jsonl:{tmp_path}/good.jsonl", stuck_after_s=60.0
    ) as serving:
        until(lambda: len(events_in(tmp_path / "good.jsonl")) == 12, what="the other receiver")
        (line, *_) = until(lambda: serving.heard("ended with code 1"), what="the line")
        found = "is a link to nowhere, which is no file" if make == "dangling link" else "is no file"
        assert f"{path} {found}: move it away" in line
        done = forked("status", "spool", cwd=tmp_path)
        assert done.returncode == 0 and f"{path} {found}: move it away" in done.stdout
        done = forked("dead-letters", "list", "--spool", "spool", cwd=tmp_path)
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "bad.jsonl").exists()
        (os.rmdir if make == "directory" else os.unlink)(path)
        until(lambda: len(events_in(tmp_path / "bad.jsonl")) == 12, what="it, when that is gone")
    assert not os.path.exists(os.path.join(folder, "nowhere")), "nothing is made behind a link"


@pytest.mark.parametrize("make", ["file", "FIFO", "dangling link"])
@pytest.mark.parametrize("name", [".agent", ".agent/receivers"])
def test_something_else_than_the_agents_folder(tmp_path, name, make):
    spool = tmp_path / "spool"
    simple(spool, count=10)
    (spool / name).parent.mkdir(exist_ok=True)
    MAKERS[make](spool / name)
    for verb, to in (("replay", ("--to", "jsonl:a.jsonl", "--to", "jsonl:b.jsonl")), ("status", ())):
        done = forked(verb, *to, "--spool", "spool", cwd=tmp_path)
        assert done.returncode == (verb == "replay")
        assert "Traceback" not in done.stderr
        if verb == "replay":
            assert f"{spool / name} is " in done.stderr and "move it away" in done.stderr
    assert not (spool / "nowhere").exists() and not (tmp_path / "a.jsonl").exists()


# -- the same for a shipper --------------------------------------------------------------------------------------


def test_a_shipper_comes_through_a_spool_that_is_moved_away_and_back(tmp_path):
    """It makes nothing where the spool was: that would be in the way when it comes back, or below a mount point."""
    spool, away, server = tmp_path / "spool", tmp_path / "away", tmp_path / "server"
    writer = make_writer(spool)
    write_metrics(writer, 10)
    with agent("ship", "--spool", "spool", "--to", "server", cwd=tmp_path, name="ship") as ship:
        until(lambda: shipped_files(server) == shipped_files(spool), what="the first bytes")
        shutil.rmtree(spool / ".agent")
        write_metrics(writer, 10, first=10)
        until(lambda: shipped_files(server) == shipped_files(spool), what="the next ones, without .agent")
        os.rename(spool, away)
        until(lambda: "is not a spool: it does not exist" in ship.said, what="the line")
        write_metrics(writer, 10, first=20)  # training has its files open
        assert not spool.exists()
        os.rename(away, spool)
        until(lambda: shipped_files(server) == shipped_files(spool), what="the rest")
        shutil.rmtree(server / ".agent")
        write_metrics(writer, 10, first=30)
        until(lambda: shipped_files(server) == shipped_files(spool), what="it without the server's .agent")
        ship.stop()
    writer.close()


def test_a_shipper_ends_when_another_spool_is_in_the_place_of_its_own(tmp_path):
    simple(tmp_path / "spool", count=1)
    with agent("ship", "--spool", "spool", "--to", "server", cwd=tmp_path, name="ship") as ship:
        until(lambda: shipped_files(tmp_path / "server") == shipped_files(tmp_path / "spool"), what="it")
        os.rename(tmp_path / "spool", tmp_path / "first")
        simple(tmp_path / "spool", run="run-2", count=1)
        assert ship.wait() == 2
        assert "is another spool now" in ship.said and ship.said.endswith("start ship again\n")
