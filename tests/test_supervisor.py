"""The supervisor: workers that are killed, receivers that cannot begin, one target under two names."""

import os
import signal
import sqlite3
import threading

import pytest
from kill_help import children
from mlflow_help import free_port
from spool_help import until
from test_stuck import Serving, events_in
from test_worker import simple

from spoolagent.errors import Unreachable, UsageError
from spoolagent.serving import sums, supervisor
from spoolagent.settings import AgentSettings, ReceiverSettings, ServeSettings

ALL = [("run-1", seq) for seq in range(1, 23)]


def settings(spool, *specs, **more):
    receivers = tuple(
        ReceiverSettings(name=f"r{n}", spec=spec, flush_interval_s=0.0, **more)
        for n, spec in enumerate(specs)
    )
    return ServeSettings(agent=AgentSettings(spool=str(spool)), receivers=receivers)


def test_a_killed_worker_is_started_again_and_goes_on(tmp_path):
    writer = simple(tmp_path / "spool", count=10, end=False)
    out = tmp_path / "out.jsonl"
    with Serving(tmp_path, f"jsonl:{out}", stuck_after_s=60.0) as serving:
        until(lambda: events_in(out) == ALL[:11], what="the first events")
        killed = until(lambda: serving.status("jsonl:").pid, what="the worker's note")
        os.kill(killed, signal.SIGKILL)
        for step in range(10, 20):
            writer.append("metrics", {"metrics": {"loss": step}, "step": step})
        writer.append("run_end", {"status": "finished", "exit_code": 0})
        writer.close()
        until(lambda: events_in(out) == ALL, timeout_s=30, what="the events after the kill")
        until(lambda: serving.status("jsonl:").pid not in (None, killed), what="the new worker's note")
        assert len(serving.heard("was ended by signal 9; restarting in")) == 1
    assert serving.said[-1] == "stopped; every cursor is committed"


def test_one_target_under_two_names_is_refused(tmp_path):
    simple(tmp_path / "spool", count=1)
    twice = settings(tmp_path / "spool", f"jsonl:{tmp_path}/e.jsonl", f"jsonl:{tmp_path}/x/../e.jsonl")
    for run in (supervisor.serve, supervisor.replay):
        stop = threading.Event()
        stop.set()
        with pytest.raises(UsageError, match="r1 and r0 are the same target: give it once"):
            run(twice, stop=stop)
    assert not (tmp_path / "e.jsonl").exists()


def test_nothing_is_delivered_when_one_receiver_cannot_begin(tmp_path):
    simple(tmp_path / "spool", count=20)
    out, said = tmp_path / "out.jsonl", []
    away = f"mlflow:http://127.0.0.1:{free_port()}"
    both = settings(tmp_path / "spool", f"jsonl:{out}", away)
    with pytest.raises((Unreachable, supervisor.SpoolError), match="cannot be reached") as raised:
        supervisor.replay(both, report=said.append)
    assert raised.value.exit_code == 3
    assert events_in(out) == []
    assert supervisor.replay(settings(tmp_path / "spool", f"jsonl:{out}"), report=said.append) == 0
    assert events_in(out) == ALL


def test_a_replay_whose_worker_is_killed_does_not_say_that_all_is_well(tmp_path):
    simple(tmp_path / "spool", count=20)
    out, said = tmp_path / "out.jsonl", []
    chosen = settings(tmp_path / "spool", f"jsonl:{out}")

    def kill(counts):
        for pid in pids():
            os.kill(pid, signal.SIGKILL)

    assert supervisor.replay(chosen, report=said.append, progress=kill) == 1
    assert any("ended early (code -9)" in line and "run the replay again" in line for line in said)
    assert supervisor.replay(chosen, report=said.append) == 0
    assert events_in(out) == ALL


def pids():
    """The workers of this process."""
    found = []
    for pid in children(os.getpid()):
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            found += [pid] if b"spoolagent.serving.child" in file.read() else []
    return found


def test_the_checksum_of_a_row_knows_its_columns():
    """The same bytes in other columns, or as another type, are another row."""
    db = sqlite3.connect(":memory:")
    sums._enable(db)
    rows = ["'ab', 'c'", "'a', 'bc'", "'abc', ''", "'1', 2", "1, '2'", "1, 2", "x'61', 'b'", "'a', 'b'"]
    found = {db.execute(f"SELECT row_sum({row})").fetchone()[0] for row in rows}
    assert len(found) == len(rows)
