"""`wandb:online`: the logs are the acknowledgement, children upload them, and one bad run harms no other."""

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb_backend
from wandb_help import comparable, read_log, server_config

from spoolagent.contract import RunEnd
from spoolagent.errors import FormatError, UsageError
from spoolagent.receivers import wandb_log
from spoolagent.receivers.wandb import open_wandb
from spoolagent.receivers.wandb_children import Limits
from spoolagent.receivers.wandb_upload import EXIT_LOCKED
from spoolagent.testing import MemoryState, make_batch, make_stream

START = 1_700_000_000_000_000_000


@pytest.fixture
def backend(tmp_path, monkeypatch):
    with wandb_backend.serve() as served:
        for name, value in wandb_backend.environment(served, str(tmp_path / "home")).items():
            monkeypatch.setenv(name, value)
        (tmp_path / "home").mkdir()
        yield served


class Target:
    def __init__(self, folder, state=None, **limits):
        self.folder = Path(folder)
        self.state = state or MemoryState()
        self.receiver = open_wandb("online", {"dir": str(folder), "linger": 0, "close_wait": 60})
        self.receiver._limits = Limits(**{"linger_s": 0.0, "close_s": 60.0, "first_delay_s": 0.2, **limits})
        self.receiver.open(self.state)

    def deliver(self, run, *events, first=1):
        outcome = self.receiver.deliver(make_batch(make_stream("s", run), *events, first_seq=first))
        self.state.commit()
        assert outcome.dead == {}

    def end(self, run, status="finished", exit_code=None):
        time_ns = START + 60 * 10**9
        self.receiver.set_status(
            RunEnd(site="s", run=run, status=status, time_ns=time_ns, exit_code=exit_code)
        )
        self.state.commit()

    def close(self):
        self.receiver.close()


def start(**fields):
    return ("run_start", {"api": "native", "project": "p", "host": "h", "pid": 1, "attempt": 1, **fields})


def metrics(step, **values):
    return ("metrics", {"metrics": values, "step": step})


def until(true, what, seconds=90):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


def values(run, *names):
    return [tuple(row.get(name) for name in names) for row in run.rows]


def test_upload_resume_and_end(backend, tmp_path, monkeypatch):
    for name in ("RUN_ID", "NAME", "NOTES", "TAGS", "PROJECT", "ENTITY", "RUN_GROUP", "JOB_TYPE"):
        monkeypatch.setenv(f"WANDB_{name}", "of-the-agent")
    target = Target(tmp_path / "state")
    target.deliver(
        "r",
        start(name="n", group="g", labels=["t"], config={"lr": 0.1}),
        ("define_metric", {"name": "a", "summary": "max"}),
        ("text", {"key": "k", "path": "notes.txt", "text": "hello"}),
        ("custom", {"name": "wandb.chart", "data": {"key": "c", "panel": {"panel_type": "Vega2"}}}),
        *[metrics(step, a=step, bad="NaN") for step in range(4)],
    )
    until(lambda: len(backend.runs.get("s--r", wandb_backend.FakeRun("", "")).history) == 3, "three rows")
    assert backend.runs["s--r"].exit_codes == []
    target.deliver(
        "r", metrics(4, a=2), ("param", {"params": {"p": 2}}), ("summary", {"summary": {"best": 9}}), first=9
    )
    target.end("r", "failed", 3)
    target.close()
    run = backend.runs["s--r"]
    assert values(run, "_step", "a") == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 2)]
    assert [row["_timestamp"] for row in run.rows] == [(1_700_000_000_005 + n) / 1000 for n in range(5)]
    assert run.rows_sent == 5
    assert comparable(run.rows[0]["bad"]) == "NaN"
    assert run.exit_codes == [3]
    assert server_config(run) == {"lr": 0.1, "p": 2}
    assert run.config["_wandb"]["value"]["visualize"] == {"c": {"panel_type": "Vega2"}}
    assert (run.summary["a"], run.summary["best"], run.summary["_step"]) == ({"max": 3}, 9, 4)
    assert (run.fields["displayName"], run.fields["groupName"], run.fields["tags"]) == ("n", "g", ["t"])
    assert (run.fields.get("notes"), run.fields.get("jobType"), run.project) == (None, None, "p")
    assert run.files["notes.txt"] == b"hello"
    assert list(backend.runs) == ["s--r"]

    # the run goes on, with a receiver that starts anew
    again = Target(tmp_path / "state", target.state)
    again.deliver("r", metrics(5, a=7), first=12)
    again.end("r")
    again.close()
    assert values(run, "_step", "a") == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 2), (5, 7)]
    assert run.rows_sent == 6
    assert run.exit_codes[-1] == 0
    upserts = run.upserts
    Target(tmp_path / "state", target.state).close()
    assert run.upserts == upserts  # nothing to do


def test_a_killed_upload_sends_no_row_twice(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "0.5")
    target = Target(tmp_path / "state", linger_s=300.0)
    target.deliver("r", start(), *[metrics(step, a=step) for step in range(5)])
    until(lambda: "s--r" in backend.runs and len(backend.runs["s--r"].history) == 4, "four rows")
    os.killpg(target.receiver._children._jobs["s--r"].child.pid, signal.SIGKILL)
    target.deliver("r", metrics(5, a=5), first=7)
    target.end("r")
    run = backend.runs["s--r"]
    until(lambda: run.exit_codes == [0], "the end")
    target.close()
    assert values(run, "a") == [(step,) for step in range(6)]
    assert run.rows_sent == 6
    assert not list((tmp_path / "state").rglob("wandb/run-*"))


def test_a_hung_and_a_refused_run_harm_no_other(backend, tmp_path):
    backend.hang.add("s--hung")
    backend.refuse.add("s--refused")
    target = Target(tmp_path / "state", uploads=1, stuck_s=6.0, close_s=0.5)
    for run in ("hung", "refused", "good"):
        target.deliver(run, start(), metrics(1, a=1))
        target.end(run)
    until(
        lambda: backend.runs.get("s--good") is not None and backend.runs["s--good"].exit_codes == [0],
        "good's end",
    )
    begun = time.monotonic()
    target.close()
    assert time.monotonic() - begun < 30
    assert values(backend.runs["s--good"], "a") == [(1,)]
    for run in ("hung", "refused"):
        assert not backend.runs.get(f"s--{run}") or not backend.runs[f"s--{run}"].rows
    # and when the server answers again, they arrive
    backend.hang.clear()
    backend.refuse.clear()
    backend.ended.set()
    Target(tmp_path / "state", target.state).close()
    for run in ("hung", "refused"):
        assert values(backend.runs[f"s--{run}"], "a") == [(1,)], run
        assert backend.runs[f"s--{run}"].exit_codes == [0]


def test_one_upload_of_a_run_at_a_time(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    plan = {"home": str(home), "logs": [], "ended": False, "linger_s": 0, "round_s": 1}
    with (home / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [sys.executable, "-m", "spoolagent.receivers.wandb_upload", json.dumps(plan)],
            stdin=subprocess.DEVNULL,
            timeout=100,
            check=False,
        )
    assert done.returncode == EXIT_LOCKED


def test_an_unreachable_server_delays_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", wandb_backend.API_KEY)
    target = Target(tmp_path / "state", close_s=0.0)
    target.deliver("r", start(), metrics(1, a=1))
    target.end("r")
    target.close()
    (log,) = (tmp_path / "state").rglob("offline-run-*/*.wandb")
    assert read_log(log.read_bytes())[1] == 0


def test_options(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    receiver = open_wandb("online", {"entity": "e", "project": "p"})
    assert receiver.identity == "wandb:online:https://api.wandb.ai/e/p"
    assert Path(receiver._offline.folder).parent == Path(os.path.realpath(tmp_path)) / "spoolagent" / "wandb"
    for wrong in (
        {"max_uploads": 0},
        {"linger": "x"},
        {"stuck_after": -1},
        {"close_wait": True},
        {"lingr": 1},
    ):
        with pytest.raises(UsageError, match="wandb"):
            open_wandb("online", wrong)


def test_our_own_reader_of_logs():
    records = [b"a" * size for size in (0, 1, 40_000, 32_700, 3, 70_000, 5)]
    data = wandb_log.encode_log(0, records)

    class File(io.BytesIO):
        name = "log"

    got = list(wandb_log.read_log(File(data), 0))
    assert [record for record, _ in got] == records
    assert got[-1][1] == len(data)
    for place, (_, end) in enumerate(got):
        assert [r for r, _ in wandb_log.read_log(File(data), end)] == records[place + 1 :]
    for cut in (0, 3, 7, 12, 20, 32_768, 40_060, len(data) - 1):
        whole = [end for _, end in got if end <= cut]
        assert [end for _, end in wandb_log.read_log(File(data[:cut]), 0)] == whole
    bad = bytearray(data)
    bad[50] ^= 1
    with pytest.raises(FormatError, match="damaged"):
        list(wandb_log.read_log(File(bytes(bad)), 0))
    with pytest.raises(FormatError, match="not a W&B log"):
        list(wandb_log.read_log(File(json.dumps([]).encode() * 9), 0))
