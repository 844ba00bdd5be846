"""Services that are stopped, killed and doubled: SIGTERM to `serve`, two `serve` on one spool, interrupted `replay`."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter

import pytest
from kill_help import children, count, is_dead
from report_facts import add
from sizes import KILLS
from spool_help import clean_env, make_writer, streams, until, write_metrics

from spoolagent.format.spool import create_spool
from spoolagent.serving.status import read_status

EVENTS = 800

pytestmark = pytest.mark.kill


class Service:
    """`python -m spoolagent ARGS`, ended with the test whatever happens; its log in `log`."""

    def __init__(self, folder, name, *args):
        self.log_path = folder / f"{name}.log"
        with open(self.log_path, "ab") as log:
            command = [sys.executable, "-m", "spoolagent", *map(str, args)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=clean_env())
        self.pid = self.process.pid

    @property
    def log(self):
        return self.log_path.read_text()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        left = children(self.pid)
        self.process.kill()
        self.process.wait()
        until(lambda: all(map(is_dead, left)), what="the end of the workers")


def held(path):
    """(events by (writer, seq), run states) of a JSON-lines file."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    states = [line["status"] for line in lines if line["type"] == "run_state"]
    return Counter((line["writer"], line["seq"]) for line in lines if "seq" in line), states


def expected(spool):
    """Each event of the spool once."""
    found = streams(spool).items()
    return Counter({(key.writer, event["seq"]): 1 for key, (events, _) in found for event in events})


def configured(tmp_path, spool, **settings):
    """A configuration with the receiver `out`, a JSON-lines file."""
    path, out = tmp_path / "agent.toml", tmp_path / "out" / "events.jsonl"
    lines = [f"spool = {json.dumps(str(spool))}", "[serve]", 'to = ["out"]', "[receivers.out]"]
    lines += [f"{key} = {json.dumps(item)}" for key, item in {"to": f"jsonl:{out}", **settings}.items()]
    path.write_text("\n".join(lines) + "\n")
    return path, out


def running(spool):
    """The status of the only receiver, once a worker of it runs."""
    found = [status for status in read_status(str(spool)) if status.is_running]
    return found[0] if found else None


def test_sigterm_delivers_what_is_held_and_exits_0(tmp_path):
    spool = tmp_path / "spool"
    create_spool(str(spool))
    config, out = configured(tmp_path, spool, flush_interval=3600)
    writer = make_writer(spool)
    writer.open()
    write_metrics(writer, 50)
    with Service(tmp_path, "serve", "serve", "--config", config) as serve:
        until(lambda: running(spool), what="a worker that has looked at the spool")
        assert held(out) == (Counter(), [])  # it waits for company
        workers = children(serve.pid)
        assert len(workers) == 1
        serve.process.terminate()
        assert serve.process.wait(60) == 0
        assert all(map(is_dead, workers))
    assert held(out) == (expected(spool), [])
    assert expected(spool).total() == 51
    assert "stopped" in serve.log
    assert "Traceback" not in serve.log
    (status,) = read_status(str(spool))
    assert (status.is_running, status.applied, count(status.folder, "named")) == (False, 51, 0)
    writer.append("run_end", {"status": "finished", "exit_code": 0})
    writer.close()
    assert replay(config).returncode == 0
    assert held(out) == (expected(spool), ["finished"])


def test_a_second_serve_does_no_harm_and_takes_over(tmp_path):
    spool = tmp_path / "spool"
    create_spool(str(spool))
    config, out = configured(tmp_path, spool, flush_interval=0, max_events=5)
    writer = make_writer(spool)
    writer.open()
    write_metrics(writer, 100)
    with Service(tmp_path, "first", "serve", "--config", config) as first:
        status = until(lambda: running(spool), what="the first worker")
        assert status.pid in children(first.pid)
        with Service(tmp_path, "second", "serve", "--config", config) as second:
            until(lambda: children(second.pid), what="a worker of the second")
            write_metrics(writer, 100, first=100)
            until(lambda: held(out)[0] == expected(spool), what="the first two hundred")
            assert running(spool).pid == status.pid
            first.process.kill()
            first.process.wait()
            write_metrics(writer, 100, first=200)
            until(
                lambda: (now := running(spool)) and now.pid in children(second.pid),
                timeout_s=120,
                what="the second to take over",
            )
            write_metrics(writer, 100, first=300)
            writer.append("run_end", {"status": "finished", "exit_code": 0})
            writer.close()
            until(lambda: held(out) == (expected(spool), ["finished"]), what="all of it, and the run's end")
            second.process.terminate()
            assert second.process.wait(60) == 0
    assert held(out) == (expected(spool), ["finished"])
    assert "Traceback" not in first.log + second.log


def replay(config):
    """Runs `replay` to its end."""
    command = [sys.executable, "-m", "spoolagent", "replay", "--config", str(config)]
    return subprocess.run(command, env=clean_env(), capture_output=True, text=True, timeout=200, check=False)


def delivered(text):
    """The number of events that a replay says it delivered."""
    return int(re.search(r"out: (\d+) events delivered", text)[1])


def test_replay_twice(tmp_path):
    spool = tmp_path / "spool"
    finished_run(spool, 300)
    config, out = configured(tmp_path, spool)
    once = replay(config)
    assert (once.returncode, delivered(once.stderr)) == (0, 302)
    before = out.read_bytes()
    assert held(out) == (expected(spool), ["finished"])
    again = replay(config)
    assert (again.returncode, delivered(again.stderr)) == (0, 0)
    assert out.read_bytes() == before


def finished_run(spool, metrics):
    """One run with `metrics` metrics events, a start and an end."""
    create_spool(str(spool))
    writer = make_writer(spool)
    writer.open()
    write_metrics(writer, metrics)
    writer.append("run_end", {"status": "finished", "exit_code": 0})
    writer.close()


@pytest.mark.parametrize("victim", ["replay", "its worker"])
def test_a_replay_that_is_killed_goes_on_where_it_was(tmp_path, victim):
    """Each life is killed after some more progress; the last one is let to its end."""
    spool, rng = tmp_path / "spool", random.Random(7)
    finished_run(spool, EVENTS)
    config, out = configured(tmp_path, spool, max_events=3)
    applied, named, kills = 0, 0, min(KILLS // 4, 10)
    for life in range(kills):
        goal = applied + rng.randint(1, EVENTS // kills // 2)
        with Service(tmp_path, f"replay-{life}", "replay", "--config", config) as run:
            until(lambda goal=goal: sum(s.applied for s in read_status(str(spool))) >= goal, what="progress")
            workers = children(run.pid)
            for pid in workers if victim == "its worker" else [run.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            code = run.process.wait(60)
            until(lambda workers=workers: all(map(is_dead, workers)), what="the worker's end")
            assert code == (1 if victim == "its worker" else -signal.SIGKILL)
        (status,) = read_status(str(spool))
        assert status.applied >= applied  # a cursor never goes back
        applied = status.applied
        named += count(status.folder, "named")
    assert applied < EVENTS, "the last replay has nothing left to do"
    add("SIGKILLs", **{victim: kills})
    last = replay(config)
    assert last.returncode == 0
    assert applied + delivered(last.stderr) == EVENTS + 2
    assert held(out) == (expected(spool), ["finished"])
    if victim == "its worker" and kills >= 10:
        assert named >= 1, "no kill met a worker with a batch in hand"
