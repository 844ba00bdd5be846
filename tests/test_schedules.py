"""The hard schedules, with real writers, receivers and trackers: who sleeps too long, who comes back, who forgets."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections import Counter

import pytest
import schedule_help as h
import shipping_help
from mlflow_help import client_of, history, runs_in
from spool_help import clean_env, make_writer, streams, until, write_metrics

from spoolagent.errors import UsageError
from spoolagent.format import layout, live
from spoolagent.format.ends import DeathWatch, end_dead_stream, read_end
from spoolagent.format.facts import run_facts
from spoolagent.format.spool import create_spool, open_spool
from spoolagent.serving.registry import load_receiver
from spoolagent.undertaker import Undertaker

TRACKERS = ("jsonl", "tensorboard", "wandb", "mlflow")


class Tracker:
    """One of the four, with what it holds of a run by its own reader."""

    def __init__(self, kind, folder, uri):
        self.kind, self.folder, self.uri = kind, str(folder), uri
        self.experiment = f"schedules-{uuid.uuid4().hex[:8]}"
        self.spec = {
            "jsonl": f"jsonl:{folder}/events.jsonl",
            "tensorboard": f"tensorboard:{folder}/tb",
            "wandb": f"wandb:offline:{folder}/wandb",
            "mlflow": f"mlflow:{uri}",
        }[kind]
        self.options = {"experiment": self.experiment} if kind == "mlflow" else {}

    def receiver(self):
        return load_receiver(self.spec, self.options)

    def deliver(self, spool, **kw):
        return h.deliver(spool, self.receiver(), **kw)

    def steps(self):
        """How often each step of `loss` is there, in all runs."""
        if self.kind == "jsonl":
            return h.steps_in_jsonl(f"{self.folder}/events.jsonl")
        if self.kind == "tensorboard":
            return h.steps_in_tensorboard(f"{self.folder}/tb")
        if self.kind == "wandb":
            return h.steps_in_wandb(f"{self.folder}/wandb")
        client, found = client_of(self.uri), Counter()
        for run in runs_in(client, self.experiment):
            found.update(step for _, step, _ in history(client, run.info.run_id, "loss"))
        return found

    def shown(self, steps, *, running):
        """What `steps` must give: of a run that goes on, W&B's last row waits for the next step."""
        steps = sorted(steps)
        return Counter(dict.fromkeys(steps[:-1] if running and self.kind == "wandb" else steps, 1))

    def state(self):
        """The state that it shows of its only run; None where it shows none."""
        if self.kind == "jsonl":
            states = h.in_jsonl(f"{self.folder}/events.jsonl")[1]
            return states[-1] if states else "running"
        if self.kind == "wandb":
            code = h.exits_in_wandb(f"{self.folder}/wandb")[-1]
            return {0: "finished", None: "running", 255: "killed", 1: "failed"}[code]
        if self.kind == "mlflow":
            (run,) = runs_in(client_of(self.uri), self.experiment)
            return run.info.status.lower()
        return None


@pytest.fixture
def tracker(request, tmp_path):
    uri = request.getfixturevalue("mlflow_server").uri if request.param == "mlflow" else ""
    return Tracker(request.param, tmp_path / "out", uri)


every_tracker = pytest.mark.parametrize("tracker", TRACKERS, indirect=True)


def finished(writer):
    writer.append("run_end", {"status": "finished", "exit_code": 0})
    writer.close()


# -- writers that seem dead ------------------------------------------------------------------------------------

WRITER = """
import os, sys
sys.path.insert(0, sys.argv[2])
from spool_help import make_writer, write_metrics
from spoolagent.format import keeper, live
host, locks = sys.argv[3], sys.argv[4]
if host:
    live.host_name = lambda: host
if locks == "none":
    import errno
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")
    live.fcntl.lockf = refuse
live.RENEW_S = keeper.TICK_S = 0.05
writer = make_writer(sys.argv[1], segment_bytes=3000)
writer.open()
print(writer._dir, flush=True)
first = 0
for line in sys.stdin:
    if line.strip() == "end":
        writer.append("run_end", {"status": "finished", "exit_code": 0})
        writer.close()
    else:
        write_metrics(writer, int(line), first=first)
        first += int(line)
        writer.flush()
    print("done", flush=True)
"""


class Training:
    """A writer process that does what it is told: of this host, or of another by its word; with locks or none."""

    def __init__(self, spool, *, host="", locks="real"):
        create_spool(str(spool))
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(spool), os.path.dirname(__file__), host, locks],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_env(),
        )
        self.dir = self.process.stdout.readline().strip()

    def tell(self, what):
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def suspend(self):
        os.kill(self.process.pid, signal.SIGSTOP)

    def wake(self):
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def live(self):
        with open(os.path.join(self.dir, "LIVE"), "rb") as file:
            return file.read()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()


def sweep_until(undertaker, clock, condition, what, step_s=5.0):
    """Sweeps, the clock moving `step_s` each time, until the condition holds."""

    def look():
        clock.now += step_s
        undertaker.sweep()
        return condition()

    until(look, what=what)


def has_end(folder):
    return bool(layout.list_ends(folder))


def test_a_writer_of_another_host_that_was_suspended_goes_on(tmp_path):
    """SIGSTOP past `stale_after`: taken for dead, wakes, goes on, is killed at last; the state follows each time."""
    spool, out = tmp_path / "spool", tmp_path / "events.jsonl"
    clock = h.Clock()
    with Training(spool, host="another-host") as training:
        undertaker = Undertaker(open_spool(str(spool)), stale_after_s=60.0, clock=clock)
        training.tell(20)
        undertaker.sweep()
        training.suspend()
        sweep_until(undertaker, clock, lambda: has_end(training.dir), "the death")
        h.deliver(spool, f"jsonl:{out}")
        assert h.in_jsonl(out) == (h.issued(spool), ["killed"])
        before = training.live()
        training.wake()
        training.tell(50)
        until(lambda: training.live() != before, what="a renewed LIVE")
        undertaker.sweep()
        h.deliver(spool, f"jsonl:{out}")
        assert h.in_jsonl(out) == (h.issued(spool), ["killed", "running"])
        assert sum(h.issued(spool).values()) == 71
        training.kill()
        last = layout.list_segments(training.dir)[-1]
        sweep_until(undertaker, clock, lambda: last in layout.list_ends(training.dir), "the second death")
        h.deliver(spool, f"jsonl:{out}")
    assert h.in_jsonl(out) == (h.issued(spool), ["killed", "running", "killed"])


def test_a_suspended_writer_of_this_host_is_never_taken_for_dead(tmp_path):
    """Its lock says that it lives, however old its LIVE is."""
    clock = h.Clock()
    with Training(tmp_path) as training:
        training.tell(5)
        training.suspend()
        undertaker = Undertaker(open_spool(str(tmp_path)), stale_after_s=60.0, clock=clock)
        for _ in range(50):
            clock.now += 10
            undertaker.sweep()
        assert not has_end(training.dir)
        training.wake()
        training.tell("end")
    assert [how for _, how in streams(tmp_path).values()] == ["closed"]


def test_a_lock_that_seems_free_is_believed_once(tmp_path, monkeypatch):
    """A network file system that shows no locks: the writer is declared dead, goes on, and is then timed."""
    spool, out = tmp_path / "spool", tmp_path / "events.jsonl"
    monkeypatch.setattr(live, "is_locked", lambda stream: False)
    clock = h.Clock()
    undertaker = Undertaker(create_spool(str(spool)), stale_after_s=600.0, clock=clock)
    with Training(spool) as training:
        training.tell(20)
        undertaker.sweep()
        assert has_end(training.dir)
        h.deliver(spool, f"jsonl:{out}")
        for number in range(1, 6):  # again and again it writes, with segments of a few lines
            training.tell(30)
            ends = layout.list_ends(training.dir)
            renewed = training.live()
            until(lambda renewed=renewed: training.live() != renewed, what="a renewed LIVE")
            clock.now += 40
            undertaker.sweep()
            assert layout.list_ends(training.dir) == ends
            h.deliver(spool, f"jsonl:{out}")
            assert sum(h.in_jsonl(out)[0].values()) == 21 + 30 * number
        training.tell("end")
        undertaker.sweep()
        h.deliver(spool, f"jsonl:{out}")
    events, states = h.in_jsonl(out)
    assert events == h.issued(spool)
    assert states == ["killed", "running", "finished"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Training logs all the same; nobody asks for the lock, and LIVE's content is timed on this host, too."""
    clock = h.Clock()
    with Training(tmp_path, locks="none") as training:
        training.tell(20)
        monkeypatch.setattr(live, "is_locked", lambda stream: pytest.fail("nobody may ask"))
        undertaker = Undertaker(open_spool(str(tmp_path)), stale_after_s=60.0, clock=clock)
        for _ in range(10):
            renewed = training.live()
            until(lambda renewed=renewed: training.live() != renewed, what="a renewed LIVE")
            clock.now += 50
            undertaker.sweep()
        assert not has_end(training.dir)
        training.kill()
        sweep_until(undertaker, clock, lambda: has_end(training.dir), "the death")
    ((events, how),) = streams(tmp_path).values()
    assert (len(events), how) == (21, "dead")


@pytest.mark.parametrize("broken", ["F_GETLK fails", "LIVE cannot be opened"])
def test_a_lock_that_cannot_be_asked_is_no_evidence(tmp_path, monkeypatch, broken):
    """The content is timed instead: a living writer is left alone, a dead one is found."""
    clock = h.Clock()

    def fail(*args, **kw):
        raise OSError(37, "No locks available")

    def refuse(path, *args, **kw):
        if str(path).endswith("LIVE") and args[0] & os.O_RDWR:  # as it is opened to ask for the lock
            raise OSError(24, "Too many open files")
        return real(path, *args, **kw)

    real = os.open
    with Training(tmp_path) as training:
        training.tell(20)
        if broken == "F_GETLK fails":
            monkeypatch.setattr(fcntl, "fcntl", fail)
        else:
            monkeypatch.setattr(os, "open", refuse)
        undertaker = Undertaker(open_spool(str(tmp_path)), stale_after_s=60.0, clock=clock)
        for _ in range(5):
            renewed = training.live()
            until(lambda renewed=renewed: training.live() != renewed, what="a renewed LIVE")
            clock.now += 50
            undertaker.sweep()
        assert not has_end(training.dir)
        training.kill()
        sweep_until(undertaker, clock, lambda: has_end(training.dir), "the death")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_a_live_that_cannot_be_read_is_no_evidence(tmp_path, monkeypatch, number):
    """However long that lasts, nobody ends the stream for it: neither the agent nor a shipper, nor says that it is dead."""
    clock, said, real = h.Clock(), [], os.open

    def refuse(path, *args, **kw):
        if str(path).endswith("LIVE"):
            raise OSError(number, os.strerror(number), path)
        return real(path, *args, **kw)

    with Training(tmp_path) as training:
        training.tell(20)
        spool, watch = open_spool(str(tmp_path)), DeathWatch(stale_after_s=60.0, clock=clock)
        undertaker = Undertaker(spool, stale_after_s=60.0, report=said.append, clock=clock)
        monkeypatch.setattr(os, "open", refuse)
        for _ in range(5):
            clock.now += 50
            undertaker.sweep()
            assert not end_dead_stream(training.dir, watch)
        (run,) = run_facts(str(tmp_path))
        assert [stream.alive for stream in run.streams] == [None]
        assert not has_end(training.dir)
        assert len(said) == 1 and "cannot tell whether its writer lives" in said[0]
        monkeypatch.setattr(os, "open", real)
        undertaker.sweep()
        assert not has_end(training.dir)
        training.kill()
        sweep_until(undertaker, clock, lambda: has_end(training.dir), "the death")


def test_a_wrong_end_makes_the_next_one_wait(tmp_path, monkeypatch):
    """Once a `.end` turned out void, also an agent that has just started does not believe the free lock."""
    monkeypatch.setattr(live, "is_locked", lambda stream: False)
    with Training(tmp_path) as training:
        training.tell(5)
        assert end_dead_stream(training.dir, DeathWatch())
        first_end = read_end(training.dir, 1)
        training.tell(2)  # still in the same segment
        clock = h.Clock()
        watch = DeathWatch(stale_after_s=60.0, clock=clock)
        assert not end_dead_stream(training.dir, watch)
        training.kill()
        assert not end_dead_stream(training.dir, watch)  # perhaps it was renewed once more
        clock.now += 59
        assert not end_dead_stream(training.dir, watch)
        clock.now += 1
        assert end_dead_stream(training.dir, watch)
    assert read_end(training.dir, 1).last == first_end.last + 2


# -- power cuts and backups ------------------------------------------------------------------------------------


def cut_back(folder, lines):
    """The last segment without its last lines: what a power cut takes of a writer that syncs each second."""
    path = os.path.join(folder, layout.segment_name(layout.list_segments(folder)[-1]))
    with open(path, "rb") as file:
        kept = file.read().splitlines(keepends=True)[:-lines]
    with open(path, "wb") as file:
        file.write(b"".join(kept))


@every_tracker
def test_a_client_that_loses_its_last_second_after_the_server_got_it(tmp_path, tracker):
    """The server keeps what it has; the requeued job goes on as the run's next attempt."""
    client, server = tmp_path / "client", tmp_path / "server"
    writer = make_writer(client)
    write_metrics(writer, 50)
    writer.flush()
    shipping_help.ship_once(client, server)
    folder = writer._dir
    writer._close_files()
    tracker.deliver(server)
    cut_back(folder, 10)
    told = shipping_help.Telling()
    report = shipping_help.ship_once(client, server, tell=told)
    assert report.longer
    assert "it was kept" in told.texts("longer")[0]
    assert has_end(folder)
    assert told.texts("ended")
    tracker.deliver(server)
    assert tracker.state() in ("killed", None)
    second = make_writer(client, attempt=2)
    write_metrics(second, 20, first=100)
    finished(second)
    shipping_help.ship_once(client, server)
    done = tracker.deliver(server)
    assert (done.dead, done.lost) == (0, 0), done.said
    assert tracker.steps() == Counter(dict.fromkeys([*range(50), *range(100, 120)], 1))
    assert tracker.state() in ("finished", None)


@every_tracker
@pytest.mark.parametrize("with_cursors", [True, False])
def test_a_server_restored_from_an_old_backup(tmp_path, tracker, with_cursors):
    """With its cursors (they go back with it), or without (they are ahead of the streams)."""
    client, server, backup = tmp_path / "client", tmp_path / "server", tmp_path / "backup"
    writer = make_writer(client, segment_bytes=3000)
    write_metrics(writer, 30)
    writer.flush()
    shipping_help.ship_once(client, server)
    tracker.deliver(server)
    shutil.copytree(server, backup)
    write_metrics(writer, 60, first=30)
    writer.flush()
    shipping_help.ship_once(client, server)
    tracker.deliver(server, max_events=25)
    if with_cursors:
        shutil.rmtree(server)
        shutil.copytree(backup, server)
    else:
        shutil.rmtree(server / "sites")
        shutil.copytree(backup / "sites", server / "sites")
    done = tracker.deliver(server, passes=3, drain=False)
    assert (done.dead, done.lost) == (0, 0)
    shipping_help.ship_once(client, server)
    tracker.deliver(server, max_events=11)
    write_metrics(writer, 10, first=90)
    finished(writer)
    shipping_help.ship_once(client, server)
    done = tracker.deliver(server)
    assert done.drained
    assert (done.dead, done.lost) == (0, 0), done.said
    if tracker.kind == "wandb" and with_cursors:
        # Its log has records that hang on how events came in batches, so the lost cursor cannot be found again
        # in it: a further log begins, with rows that are in the first one, too.
        assert set(tracker.steps()) == set(range(100))
    else:
        assert tracker.steps() == Counter(dict.fromkeys(range(100), 1))
    assert tracker.state() in ("finished", None)


def test_a_fork_is_never_delivered(tmp_path):
    """A copied client that went on by itself: its stream lies beside the first one, and only that is shown."""
    client, copy, server = tmp_path / "client", tmp_path / "copy", tmp_path / "server"
    writer = make_writer(client)
    write_metrics(writer, 20)
    writer.flush()
    shutil.copytree(client, copy)
    write_metrics(writer, 10, first=20)
    finished(writer)
    shipping_help.ship_once(client, server)
    from spoolagent.format.lines import encode_line

    folder = writer._dir.replace(str(client), str(copy))
    with open(os.path.join(folder, layout.segment_name(1)), "ab") as file:
        for seq in range(22, 30):
            event = {"seq": seq, "time": seq, "type": "metrics", "metrics": {"loss": 9.0}, "step": 1000 + seq}
            file.write(encode_line(event))
    told = shipping_help.Telling()
    shipping_help.ship_once(copy, server, tell=told)
    assert told.texts("fork")
    done = h.deliver(server, f"jsonl:{tmp_path}/events.jsonl")
    assert done.drained
    assert (done.dead, done.lost) == (0, 0)
    assert h.steps_in_jsonl(tmp_path / "events.jsonl") == Counter(dict.fromkeys(range(30), 1))
    assert h.in_jsonl(tmp_path / "events.jsonl")[1] == ["finished"]


# -- bad lines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heals_at_s", [4.0, None])
def test_a_bad_line_is_read_again_for_as_long_as_the_operator_wants(tmp_path, heals_at_s):
    """Patience is 5 s here: a line that heals within it is delivered, else lost; nobody else waits."""
    writer = make_writer(tmp_path / "spool")
    write_metrics(writer, 20)
    folder = writer._dir
    finished(writer)
    other = make_writer(tmp_path / "spool", run="run-2")
    write_metrics(other, 20, first=100)
    finished(other)
    path = os.path.join(folder, layout.segment_name(1))
    with open(path, "rb") as file:
        whole = file.read()
    at = whole.index(b'"step":7')
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b"\0" * 8)  # a hole, as network file systems show them
    clock, waiting = h.Clock(), []

    def on_wait(number):
        if clock.now < 1004:
            waiting.append(sum(h.in_jsonl(tmp_path / "events.jsonl")[0].values()))
        elif heals_at_s is not None:
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(whole[at : at + 8])

    done = h.deliver(
        tmp_path / "spool", f"jsonl:{tmp_path}/events.jsonl", patience_s=5.0, on_wait=on_wait, clock=clock
    )
    assert done.drained
    assert waiting[-1] == 22 + 8  # all of the other run, and what stands before the line
    lost = 0 if heals_at_s else 1
    assert (done.dead, done.lost) == (0, lost)
    want = [step for step in (*range(20), *range(100, 120)) if not (lost and step == 7)]
    assert h.steps_in_jsonl(tmp_path / "events.jsonl") == Counter(dict.fromkeys(want, 1))
    assert clock.now - 1000 < 5.0 + 3


# -- several writers of one run --------------------------------------------------------------------------------

RANK = """
import os, sys, time
sys.path.insert(0, sys.argv[2])
from spool_help import make_writer, write_metrics
rank, gate = int(sys.argv[3]), sys.argv[4]
writer = make_writer(sys.argv[1], start={"name": "four", "rank": rank, "tags": {"who": str(rank)}})
open(f"{gate}-{rank}", "w").close()
while not os.path.exists(gate):
    time.sleep(0.001)
write_metrics(writer, 25, first=100 * rank)
writer.append("run_end", {"status": "finished", "exit_code": 0})
writer.close()
"""


@pytest.mark.parametrize("crash_at", [None, 1, 3])
def test_four_streams_of_one_run_that_start_at_once(tmp_path, mlflow_server, crash_at):
    """One MLflow run, whichever of them creates it, and though the worker is killed right after that."""
    tracker = Tracker("mlflow", tmp_path, mlflow_server.uri)
    gate = tmp_path / "gate"
    create_spool(str(tmp_path / "spool"))
    command = [sys.executable, "-c", RANK, str(tmp_path / "spool"), os.path.dirname(__file__)]
    ranks = [subprocess.Popen([*command, str(n), str(gate)], env=clean_env()) for n in range(4)]
    until(lambda: all((tmp_path / f"gate-{n}").exists() for n in range(4)), what="four ranks")
    gate.touch()
    assert [rank.wait(60) for rank in ranks] == [0] * 4
    if crash_at is not None:
        with pytest.raises(h.Crash):
            h.deliver(tmp_path / "spool", h.crashing(tracker.receiver(), crash_at))
    done = tracker.deliver(tmp_path / "spool")
    assert (done.drained, done.dead, done.lost) == (True, 0, 0)
    (run,) = runs_in(client_of(tracker.uri), tracker.experiment)
    assert run.info.status == "FINISHED"
    want = [100 * rank + step for rank in range(4) for step in range(25)]
    assert tracker.steps() == Counter(dict.fromkeys(want, 1))


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("first", ["the later", "the earlier"])
def test_a_tag_set_by_two_writers_around_a_crash(tmp_path, mlflow_server, first, where):
    """The value that was set last wins, whichever stream is delivered first, with a kill between the two."""
    tracker = Tracker("mlflow", tmp_path, mlflow_server.uri)
    spool = tmp_path / "spool"
    early, late = make_writer(spool), make_writer(spool)
    early.open()
    late.open()
    early.append("tag", {"tags": {"stage": "train", "early": "yes"}})
    late.append("tag", {"tags": {"stage": "test", "late": "yes"}})
    one, other = (late, early) if first == "the later" else (early, late)
    aside = str(tmp_path / "aside")
    os.rename(other._dir, aside)  # its bytes come later, as those of another machine
    tracker.deliver(spool)
    os.rename(aside, other._dir)
    with pytest.raises(h.Crash):
        h.deliver(spool, h.crashing(tracker.receiver(), 1, where))
    for writer in (one, other):
        finished(writer)
    done = tracker.deliver(spool)
    assert (done.drained, done.dead) == (True, 0)
    (run,) = runs_in(client_of(tracker.uri), tracker.experiment)
    tags = run.data.tags
    assert (tags["stage"], tags["early"], tags["late"]) == ("test", "yes", "yes")


# -- runs that come back ---------------------------------------------------------------------------------------


@every_tracker
@pytest.mark.parametrize("crash", [None, "before", "after"])
def test_a_run_resumed_after_it_was_finished(tmp_path, tracker, crash):
    """Two lives: finished and shown so; running again; finished again. No point twice, none missing."""
    spool = tmp_path / "spool"
    first = make_writer(spool, start={"name": "twice"})
    write_metrics(first, 30)
    finished(first)
    tracker.deliver(spool)
    assert tracker.state() in ("finished", None)
    second = make_writer(spool, attempt=2, start={"name": "twice"})
    write_metrics(second, 10, first=30)
    second.flush()
    if crash:
        with pytest.raises(h.Crash):
            h.deliver(spool, h.crashing(tracker.receiver(), 1, crash))
    tracker.deliver(spool)
    assert tracker.state() in ("running", None)
    assert tracker.steps() == tracker.shown(range(40), running=True)
    write_metrics(second, 10, first=40)
    finished(second)
    done = tracker.deliver(spool)
    assert (done.drained, done.dead, done.lost) == (True, 0, 0)
    assert tracker.steps() == Counter(dict.fromkeys(range(50), 1))
    assert tracker.state() in ("finished", None)
    assert tracker.deliver(spool).delivered == 0


def test_a_run_that_someone_deleted_in_mlflow(tmp_path, mlflow_server):
    """Its events are dead letters, also the state at its end; nothing is created again; other runs go on."""
    tracker = Tracker("mlflow", tmp_path, mlflow_server.uri)
    spool, client = tmp_path / "spool", client_of(mlflow_server.uri)
    doomed, other = make_writer(spool, run="doomed"), make_writer(spool, run="other")
    for writer in (doomed, other):
        write_metrics(writer, 10)
        writer.flush()
    tracker.deliver(spool)
    ids = {run.data.tags["spoolagent.run"]: run.info.run_id for run in runs_in(client, tracker.experiment)}
    client.delete_run(ids["doomed"])
    for writer in (doomed, other):
        write_metrics(writer, 10, first=10)
        finished(writer)
    done = tracker.deliver(spool)
    assert done.drained
    assert (done.dead, done.lost) == (11, 0)
    assert any("was deleted in MLflow" in line for line in done.said)
    found = {run.info.run_id: run for run in runs_in(client, tracker.experiment)}
    assert set(found) == set(ids.values())
    assert found[ids["doomed"]].info.lifecycle_stage == "deleted"
    assert found[ids["other"]].info.status == "FINISHED"
    assert [step for _, step, _ in history(client, ids["other"], "loss")] == list(range(20))
    again = tracker.deliver(spool)
    assert (again.drained, again.delivered, again.dead) == (True, 0, 11)


# -- several replays into one target -----------------------------------------------------------------------------


def replay(spool, tracker, name):
    config = os.path.join(tracker.folder, f"{name}.toml")
    os.makedirs(tracker.folder, exist_ok=True)
    with open(config, "w", encoding="utf-8") as file:
        options = "".join(f'{key} = "{value}"\n' for key, value in tracker.options.items())
        file.write(f'[serve]\nto = ["it"]\n[receivers.it]\nto = "{tracker.spec}"\n{options}')
    command = [sys.executable, "-m", "spoolagent", "replay", str(spool), "--config", config]
    return subprocess.Popen(
        command, env=clean_env(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@every_tracker
def test_two_replays_at_once_and_a_third_after_them(tmp_path, tracker):
    """Each waits for the one before or says who is at work; together they deliver everything once."""
    spool = tmp_path / "spool"
    for run in ("run-1", "run-2"):
        writer = make_writer(spool, run=run, start={"name": run})
        write_metrics(writer, 300, first=1000 * int(run[-1]))
        finished(writer)
    both = [replay(spool, tracker, "a"), replay(spool, tracker, "b")]
    said = [process.communicate(timeout=120)[0] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 0], [0, 1]), said
    if codes == [0, 1]:
        assert any("another process is replaying this spool" in text for text in said), said
    assert not any("Traceback" in text for text in said), said
    want = Counter(dict.fromkeys([*range(1000, 1300), *range(2000, 2300)], 1))
    assert tracker.steps() == want
    third = replay(spool, tracker, "c")
    text, _ = third.communicate(timeout=120)
    assert third.returncode == 0, text
    assert "0 events delivered" in text
    assert tracker.steps() == want


@every_tracker
def test_a_replay_of_a_shipped_copy_into_the_same_target(tmp_path, tracker):
    """Another spool, with cursors of its own: what is in the target already is never written to or doubled."""
    spool, copy = tmp_path / "spool", tmp_path / "copy"
    writer = make_writer(spool, start={"name": "one"})
    write_metrics(writer, 40)
    finished(writer)
    shipping_help.ship_once(spool, copy)
    tracker.deliver(spool)
    before = {} if tracker.kind == "mlflow" else files_below(tracker.folder)
    if tracker.kind == "jsonl":
        with pytest.raises(UsageError, match="was not written by this spool's receiver"):
            tracker.deliver(copy)
    else:
        done = tracker.deliver(copy)
        assert done.drained
        # MLflow's run is found by its tags, and repeats are the same points.
        assert done.dead == (0 if tracker.kind == "mlflow" else 42), done.said
    if tracker.kind != "mlflow":
        after = files_below(tracker.folder)
        assert after == before
    assert tracker.steps() == Counter(dict.fromkeys(range(40), 1))


def files_below(folder):
    """Path -> bytes, without the mirror of the cursors."""
    found = {}
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if name != ".spoolagent"]
        for name in names:
            with open(os.path.join(place, name), "rb") as file:
                found[os.path.join(place, name)] = file.read()
    return found


# -- a receiver that comes late --------------------------------------------------------------------------------


@every_tracker
@pytest.mark.parametrize("when", ["finished", "running"])
def test_a_receiver_added_after_prune(tmp_path, tracker, when):
    """What was pruned is on record as lost for it; the rest arrives, though nobody says any more how the run began."""
    spool = tmp_path / "spool"
    writer = make_writer(spool, segment_bytes=2000, start={"name": "pruned", "project": tracker.experiment})
    write_metrics(writer, 100)
    writer.flush()
    through = h.prune(writer._dir, 3)
    if when == "finished":
        finished(writer)
    done = tracker.deliver(spool, patience_s=0.0)
    assert done.drained, done.blocked
    assert (done.dead, done.lost) == (0, through)
    kept = range(through - 1, 100)  # seq 2 is step 0
    assert tracker.steps() == tracker.shown(kept, running=when == "running")
    if when == "running":
        write_metrics(writer, 10, first=100)
        finished(writer)
        done = tracker.deliver(spool)
        assert (done.drained, done.dead, done.lost) == (True, 0, through)
        assert tracker.steps() == Counter(dict.fromkeys([*kept, *range(100, 110)], 1))
    assert tracker.state() in ("finished", None)


@every_tracker
def test_a_receiver_that_was_in_the_middle_of_what_is_pruned(tmp_path, tracker):
    """It had delivered a part of the segments that are removed now."""
    spool = tmp_path / "spool"
    writer = make_writer(spool, segment_bytes=2000, start={"name": "pruned", "project": tracker.experiment})
    write_metrics(writer, 100)
    writer.flush()
    receiver, clock = tracker.receiver(), h.Clock()
    inner = receiver.deliver

    def slow(batch):
        clock.now += 2.0  # so that a round ends with each batch
        return inner(batch)

    receiver.deliver = slow
    part = h.deliver(spool, receiver, clock=clock, passes=3, drain=False, max_events=5).delivered
    through = h.prune(writer._dir, 3)
    assert 0 < part < through < 100
    finished(writer)
    done = tracker.deliver(spool, patience_s=0.0, max_events=5)
    assert done.drained, done.blocked
    assert (done.dead, done.lost) == (0, through - part)
    assert tracker.steps() == Counter(dict.fromkeys([*range(part - 1), *range(through - 1, 100)], 1))
    assert tracker.state() in ("finished", None)
