"""What is stuck becomes visible: a hanging tracker, a stopped process, a stream that waits, gaps and losses."""

import json
import os
import re
import signal
import threading
import time

import orjson
import pytest
from cli_help import HOME, forked, read, write, write_stream
from spool_help import make_writer, until, write_metrics
from test_worker import Agent, simple

from spoolagent.config import load_config
from spoolagent.errors import Transient, Unreachable, UsageError
from spoolagent.format import layout, live
from spoolagent.format.blobs import put_bytes
from spoolagent.format.spool import create_spool
from spoolagent.serving import supervisor
from spoolagent.serving.activity import HEARTBEAT_FILE, Activity
from spoolagent.serving.status import read_status
from spoolagent.serving.store import target_dir
from spoolagent.settings import AgentSettings, ReceiverSettings, ServeSettings
from spoolagent.testing import MemoryReceiver

PLUGIN = '''
import os, time
from spoolagent.receivers.jsonl import JsonLinesReceiver

class Hanging(JsonLinesReceiver):
    """JSON lines; each call in HANGS (deliver, open) hangs as long as the file FILE.<call> exists."""
    def __init__(self, target, options):
        super().__init__(target, options)
        self.identity = self.identity.replace("jsonl:", "hang:")
        self._hang = target
    def _wait(self, call):
        while os.path.exists(f"{self._hang}.{call}"):
            time.sleep(0.05)
    def open(self, state):
        self._wait("open")
        super().open(state)
    def deliver(self, batch):
        done = super().deliver(batch)
        self._wait("deliver")
        return done
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Installs the receiver kind `hang` for this process and its children."""
    folder = tmp_path / "plugin"
    (folder / "hang-1.0.dist-info").mkdir(parents=True)
    (folder / "hang-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: hang\nVersion: 1.0\n"
    )
    (folder / "hang-1.0.dist-info" / "entry_points.txt").write_text(
        "[spoolagent.receivers]\nhang = hang_receiver:Hanging\n"
    )
    (folder / "hang_receiver.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{HOME}")
    return tmp_path


class Serving:
    """`serve` in a thread, its workers as real processes."""

    def __init__(self, root, *names, stuck_after_s):
        self.spool, self.said, self._stop = str(root / "spool"), [], threading.Event()
        agent = AgentSettings(spool=self.spool, stuck_after_s=stuck_after_s, sweep_interval_s=0.2)
        chosen = [
            ReceiverSettings(name=name.partition(":")[0], spec=name, flush_interval_s=0.0) for name in names
        ]
        settings = ServeSettings(agent=agent, receivers=tuple(chosen))
        self._thread = threading.Thread(
            target=supervisor.serve, args=(settings,), kwargs={"stop": self._stop, "report": self.said.append}
        )

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def status(self, name):
        return next(
            (s for s in read_status(self.spool) if s.name == name or s.identity.startswith(name)), None
        )

    def heard(self, pattern):
        return [line for line in self.said if re.search(pattern, line)]


def events_in(path):
    if not path.exists():
        return []
    found = [json.loads(line) for line in read(path).splitlines()]
    return sorted((e["run"], e["seq"]) for e in found if e["type"] != "run_state")


def test_a_worker_that_hangs_in_a_call_is_killed_and_goes_on(plugin):
    simple(plugin / "spool", count=10)
    want = [("run-1", seq) for seq in range(1, 13)]
    hang, calm = plugin / "hang.jsonl", plugin / "calm.jsonl"
    write(f"{hang}.deliver", b"")
    with Serving(plugin, f"hang:{hang}", f"jsonl:{calm}", stuck_after_s=2.0) as serving:
        until(lambda: events_in(calm) == want, what="the other receiver")
        until(lambda: serving.heard("is stuck"), what="the stuck worker")
        os.unlink(f"{hang}.deliver")
        until(lambda: events_in(hang) == want, what="the receiver that hung")
        until(lambda: serving.status("hang").applied == 12, what="its commit")
    (first, *_) = serving.heard("is stuck")
    assert re.fullmatch(
        r"hang: its worker is stuck, delivering seqs 1 to 12 of site-1/run-1/w\S+ for \d+ s: killed; "
        r"what it had not committed is delivered again",
        first,
    )
    assert serving.heard(r"^hang: its worker was ended by signal 9 \(it was stuck\); restarting in")
    assert not serving.heard("^jsonl: ")
    assert events_in(hang) == want, "what was delivered before the kill came twice"


def test_a_worker_that_hangs_while_it_opens(plugin):
    simple(plugin / "spool", count=3)
    hang = plugin / "hang.jsonl"
    write(f"{hang}.open", b"")
    with Serving(plugin, f"hang:{hang}", stuck_after_s=2.0) as serving:
        until(lambda: serving.heard("is stuck, opening hang for"), what="the stuck worker")
        os.unlink(f"{hang}.open")
        until(lambda: len(events_in(hang)) == 5, what="the receiver that hung")


def test_a_worker_that_is_stopped_is_killed(plugin, monkeypatch):
    monkeypatch.setattr(supervisor, "_SILENT_S", 2.0)
    simple(plugin / "spool", count=3)
    out = plugin / "x.jsonl"
    with Serving(plugin, f"jsonl:{out}", stuck_after_s=2.0) as serving:
        status = until(
            lambda: (s := serving.status("jsonl")) and s.applied == 5 and s.pid and s, what="the events"
        )
        os.kill(status.pid, signal.SIGSTOP)
        until(lambda: serving.heard("is stuck, silent for"), what="the stopped worker")
        write_metrics(writer := make_writer(plugin / "spool", run="run-2"), 3)
        until(lambda: len(events_in(out)) == 9, what="the events after it")
        writer.close()


def test_status_shows_a_call_that_takes_long(plugin):
    simple(plugin / "spool", count=10)
    hang = plugin / "hang.jsonl"
    write(f"{hang}.deliver", b"")
    with Serving(plugin, f"hang:{hang}", stuck_after_s=600.0) as serving:
        until(lambda: (s := serving.status("hang")) and s.doing_s > 3, what="the age of the call")
        status = serving.status("hang")
        assert (status.state, status.is_running, status.error) == ("working", True, "")
        assert status.doing.startswith("delivering seqs 1 to 12 of site-1/run-1/w")
        done = forked("status", "spool", "--json", cwd=plugin)
        (facts,) = json.loads(done.stdout)["receivers"]
        assert (done.returncode, facts["state"], facts["pending"]) == (0, "working", 12)
        assert facts["doing_s"] > 3
        os.unlink(f"{hang}.deliver")
        until(lambda: serving.status("hang").state == "idle", what="rest")
    assert serving.status("hang").state == "not running"


def test_a_replay_that_hangs_ends(plugin):
    simple(plugin / "spool", count=3)
    hang = plugin / "hang.jsonl"
    write(f"{hang}.deliver", b"")
    agent = AgentSettings(spool=str(plugin / "spool"), stuck_after_s=2.0)
    receiver = ReceiverSettings(name="hang", spec=f"hang:{hang}")
    said = []
    assert supervisor.replay(ServeSettings(agent=agent, receivers=(receiver,)), report=said.append) == 1
    assert any("is stuck" in line for line in said)
    assert any("ended early (code -9) it was stuck; run the replay again" in line for line in said)
    os.unlink(f"{hang}.deliver")
    assert supervisor.replay(ServeSettings(agent=agent, receivers=(receiver,)), report=said.append) == 0
    assert events_in(hang) == [("run-1", seq) for seq in range(1, 6)]


def test_a_call_may_take_twice_as_long_after_each_kill():
    settings = ReceiverSettings(name="x", spec="jsonl:x")
    agent = AgentSettings(spool="x", stuck_after_s=300)
    process = supervisor.WorkerProcess(
        job=supervisor.Job(agent=agent, receiver=settings), report=lambda _: None
    )
    seen = []
    for process.stuck in range(12):
        seen.append(process.patience_s)
    assert seen[:4] == [300, 600, 1200, 2400] and seen[-2:] == [86_400, 86_400]


# -- what is only waiting --------------------------------------------------------------------------------------------


class Waits(Agent):
    """An agent that notes for how long it wants to rest."""

    def run(self, **options):
        self.rests = []
        return super().run(**options)

    def wait(self, timeout_s):
        self.rests.append(timeout_s)
        self.stalled_s = self.worker.stalled_s
        super().wait(timeout_s)
        return set()


def with_missing_blob(spool):
    ref = put_bytes(create_spool(str(spool)).path, "site-1", b"payload")
    os.unlink(layout.blob_path(str(spool), "site-1", ref["sha256"]))
    writer = make_writer(spool)
    writer.append("text", {"key": "t", "blob": ref})
    writer.close()
    return ref["sha256"]


def test_a_stream_that_waits_for_a_blob_costs_no_processor_and_is_shown(tmp_path):
    sha256 = with_missing_blob(tmp_path / "spool")
    agent = Waits(tmp_path / "spool", MemoryReceiver())
    agent.run(passes=8, until_drained=False)
    assert min(agent.rests[1:]) > 0.9, "it looks again at the sweep, not at once"
    assert agent.stalled_s == 0
    done = forked("status", "spool", "--json", cwd=tmp_path)
    ((blocked,),) = [r["blocked"] for r in json.loads(done.stdout)["receivers"]]
    assert blocked["blob"] == sha256 and blocked["stream"].startswith("site-1/run-1/")
    assert f"blob {sha256} has not arrived" in forked("status", "spool", cwd=tmp_path).stdout


def test_a_batch_that_waits_for_an_earlier_attempt_costs_no_processor(tmp_path):
    first = simple(tmp_path, count=2, end=False)
    simple(tmp_path, count=2, attempt=2)
    agent = Waits(tmp_path, MemoryReceiver(), max_events=100, flush_interval_s=30.0)
    agent.run(passes=8, until_drained=False)
    assert min(agent.rests[1:]) > 0.5
    first.close()


def test_a_batch_that_is_due_and_never_delivered_is_a_stall(tmp_path, monkeypatch):
    """No receiver hangs and no tracker fails: it would be a fault of ours, and a restart is worth a try."""
    simple(tmp_path, count=2)
    agent = Waits(tmp_path, MemoryReceiver())
    monkeypatch.setattr("spoolagent.serving.worker.Worker._comes_later", lambda self, task: True)
    agent.run(passes=50, until_drained=False)
    assert agent.stalled_s > 30


@pytest.mark.parametrize("error", [Unreachable("away"), Transient("busy", retry_after_s=70)])
def test_a_tracker_that_is_away_is_no_stall_and_status_tells_when_it_is_tried_again(tmp_path, error):
    simple(tmp_path / "spool", count=2)

    def fail(batch):
        raise error

    agent = Waits(tmp_path / "spool", MemoryReceiver(before=fail))
    worker = agent.run(passes=60, until_drained=False)
    assert agent.stalled_s == 0 and worker.is_failing
    worker._note()  # the last one said that it has stopped
    worker._noted_at = -10
    worker._note()
    (status,) = read_status(str(tmp_path / "spool"))
    assert (status.state, status.error, status.is_running) == ("backoff", str(error), True)
    assert 0 < status.retry_in_s <= 75


def test_a_tracker_that_is_away_when_the_service_starts(tmp_path):
    write_stream(tmp_path / "spool", "one", events=3)
    spec = "mlflow:http://127.0.0.1:9"
    with Serving(tmp_path, spec, stuck_after_s=60.0) as serving:
        status = until(lambda: (s := serving.status("mlflow")) and s.error and s, what="the reason")
        assert status.state == "backoff" and "127.0.0.1" in status.error and status.is_running


# -- heartbeats and notes --------------------------------------------------------------------------------------------


def test_activity_counts_only_what_was_not_planned():
    now = [100.0]
    activity = Activity(clock=lambda: now[0])
    activity.begin("idle", allowed_s=5)
    now[0] += 4
    assert activity.is_waiting and activity.age_s == 0
    now[0] += 4
    assert activity.age_s == 3
    activity.begin("delivering", "a/b/c")
    now[0] += 7
    assert (activity.what, activity.age_s, activity.is_waiting) == ("delivering a/b/c", 7, False)


def beat(folder, **more):
    note = {"pid": os.getpid(), "host": live.host_name(), "boot": live.boot_id(), "time": time.time_ns()}
    note |= {"state": "working", "doing": "x", "age_s": 1.0, "stuck_after_s": 300.0, **more}
    write(os.path.join(folder, HEARTBEAT_FILE), orjson.dumps(note))


@pytest.mark.parametrize(
    ("more", "state"),
    [
        ({}, "working"),
        ({"age_s": 301.0}, "stuck"),
        ({"state": "idle", "age_s": 0.0}, "idle"),
        ({"time": 1, "pid": 2**22 + 1}, "not running"),
        ({"time": 1, "boot": "another"}, "not running"),
    ],
)
def test_the_heartbeat_tells_the_state(tmp_path, more, state):
    simple(tmp_path, count=2)
    receiver = MemoryReceiver()
    Agent(tmp_path, receiver).run()
    assert read_status(str(tmp_path))[0].state == "not running"
    beat(target_dir(str(tmp_path), receiver.identity), **more)
    assert read_status(str(tmp_path))[0].state == state


def test_gaps_and_lost_seqs_are_named_in_status(tmp_path):
    stream = write_stream(tmp_path / "spool", "harmed", events=5, end=None, close=False)
    stream.append("gap", {"dropped": 17, "from": 1, "to": 2, "reason": "no space"})
    stream.close()
    (key,) = layout.iter_streams(str(tmp_path / "spool"))
    path = os.path.join(layout.stream_dir(str(tmp_path / "spool"), key), layout.segment_name(1))
    write(path, read(path).replace(b'"step":2', b'"step":9'))
    (tmp_path / "c.toml").write_text("[agent]\npatience = 0\n")
    done = forked("replay", "spool", "--to", "jsonl:x.jsonl", "--config", "c.toml", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    (facts,) = json.loads(forked("status", "spool", "--json", cwd=tmp_path).stdout)["receivers"]
    assert facts["gaps"] == {str(key): 17} and facts["dropped_by_writers"] == 17
    (lost,) = facts["lost_seqs"]
    assert (lost["stream"], lost["first"], lost["last"], facts["lost"]) == (str(key), 4, 4, 1)
    assert facts["quarantined"] == 1 and facts["state"] == "not running"
    text = forked("status", "spool", cwd=tmp_path).stdout
    assert f"{key}: seqs 4 to 4: " in text and f"{key}: 17" in text


def test_the_setting(tmp_path):
    assert load_config(None, {}, {"spool": "x"}).agent_settings().stuck_after_s == 300
    env = {"SPOOLAGENT_STUCK_AFTER": "2m"}
    assert load_config(None, env, {"spool": "x"}).agent_settings().stuck_after_s == 120
    with pytest.raises(UsageError, match="10 to 604800 seconds"):
        load_config(None, {"SPOOLAGENT_STUCK_AFTER": "5s"}, {})
