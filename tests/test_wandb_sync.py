"""The real `wandb sync` reads our logs, and the real SDK, offline, writes the same ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import wandb_backend
from wandb_help import (
    comparable,
    config_of,
    one_of,
    read_records,
    rows_of,
    run_wandb,
    server_config,
    summary_of,
)

from spoolagent.contract import RunEnd
from spoolagent.receivers.wandb import open_wandb
from spoolagent.testing import MemoryState, make_batch, make_stream

START = 1_700_000_000_000_000_000


@pytest.fixture
def backend():
    with wandb_backend.serve() as served:
        yield served


class Target:
    def __init__(self, folder):
        self.folder = Path(folder)
        self.state = MemoryState()
        self.receiver = open_wandb(f"offline:{folder}", {})
        self.receiver.open(self.state)

    def deliver(self, stream, *events, first=1):
        outcome = self.receiver.deliver(make_batch(stream, *events, first_seq=first))
        self.state.commit()
        assert outcome.dead == {}

    def end(self, run, status="finished", exit_code=None, seconds=60):
        time_ns = START + seconds * 10**9
        self.receiver.set_status(
            RunEnd(site="s", run=run, status=status, time_ns=time_ns, exit_code=exit_code)
        )
        self.state.commit()

    def folders(self):
        return [str(path) for path in sorted(self.folder.iterdir())]


def metrics(step, **values):
    return ("metrics", {"metrics": values, "step": step})


def start(**fields):
    return (
        "run_start",
        {"api": "native", "project": "digits", "host": "h", "pid": 1, "attempt": 1, **fields},
    )


def times_taken(row):
    return {name: value for name, value in row.items() if name not in ("_timestamp", "_runtime")}


def test_what_is_delivered_is_what_the_server_has(backend, tmp_path):
    target = Target(tmp_path / "logs")
    ends = {"done": ("finished", 0, 0), "broken": ("failed", 3, 3), "gone": ("killed", None, 255)}
    for run, (status, given, _) in ends.items():
        rows = [metrics(step, loss=1.0 / step, bad="NaN", up="-Infinity") for step in range(1, 500)]
        target.deliver(
            make_stream("s", run),
            start(config={"lr": 0.1, "net": {"depth": 3}}, name=f"name of {run}", group="g", labels=["t"]),
            *rows,
            ("text", {"key": "k", "path": "notes.txt", "text": "hello"}),
            ("summary", {"summary": {"best": 7}}),
            ("log", {"message": "a line", "level": "INFO"}),
            ("alert", {"title": "look", "text": "here"}),
            metrics(3, late=1.5),
        )
        target.end(run, status, given)
    run_wandb(backend, tmp_path / "home", "sync", *target.folders())
    assert backend.unknown == []
    assert sorted(backend.runs) == ["s--broken", "s--done", "s--gone"]
    for run, (_, _, code) in ends.items():
        held = backend.runs[f"s--{run}"]
        assert held.exit_codes == [code]
        assert held.rows_sent == 500
        want = [
            {"loss": 1.0 / step, "bad": "NaN", "up": float("-inf"), "global_step": step, "_step": step,
             "_timestamp": (START // 10**6 + step + 1) / 1000, "_runtime": step / 1000}
            for step in range(1, 500)
        ]  # fmt: skip
        want.append(
            {"late": 1.5, "global_step": 3, "_step": 500, "_timestamp": 1_700_000_000.505, "_runtime": 0.504}
        )
        assert comparable(held.rows) == want
        assert server_config(held) == {"lr": 0.1, "net": {"depth": 3}}
        assert comparable(held.summary) == {
            "loss": 1.0 / 499, "bad": "NaN", "up": float("-inf"), "late": 1.5, "best": 7, "_step": 500,
            "_timestamp": 1_700_000_000.505, "_runtime": 59, "_wandb": {"runtime": 59},
        }  # fmt: skip
        assert held.files["notes.txt"] == b"hello"
        fields = held.fields
        assert [line.split(" ", 1)[-1] for line in held.output.values()] == ["INFO: a line"]
        assert fields["alerts"] == ["look"]
        assert (fields["displayName"], fields["groupName"], fields["tags"]) == (f"name of {run}", "g", ["t"])
        assert (held.project, fields["host"]) == ("digits", "h")


@pytest.mark.parametrize("between", [True, False], ids=["synced in between", "synced at the end"])
def test_a_resumed_run_is_whole_on_the_server(backend, tmp_path, between):
    target = Target(tmp_path / "logs")
    stream = make_stream("s", "r")
    defined = ("define_metric", {"name": "a", "summary": "max"})
    target.deliver(stream, start(config={"lr": 1}), defined, metrics(1, a=5, b=1), metrics(2, a=2))
    target.end("r", "killed")
    if between:
        run_wandb(backend, tmp_path / "home", "sync", *target.folders())
        assert backend.runs["s--r"].exit_codes == [255]
    target.deliver(stream, metrics(3, a=3), ("param", {"params": {"p": 2}}), metrics(4, a=4), first=5)
    target.end("r")
    run_wandb(backend, tmp_path / "home", "sync", *target.folders())
    held = backend.runs["s--r"]
    assert [(row["_step"], row["a"]) for row in held.rows] == [(1, 5), (2, 2), (3, 3), (4, 4)]
    assert held.exit_codes == [255, 0]
    assert server_config(held) == {"lr": 1, "p": 2}
    assert held.config["_wandb"]["value"]["m"] == [{"1": "a", "6": [3], "7": [2]}]
    assert (held.summary["a"], held.summary["b"]) == ({"max": 5}, 1)


def test_a_run_that_was_synced_while_it_ran(backend, tmp_path):
    target = Target(tmp_path / "logs")
    stream = make_stream("s", "r")
    target.deliver(stream, start(), metrics(1, a=1), metrics(2, a=2))
    run_wandb(backend, tmp_path / "home", "sync", *target.folders())
    assert backend.runs["s--r"].exit_codes == [1]
    target.deliver(stream, metrics(3, a=3), first=4)
    target.end("r")
    run_wandb(backend, tmp_path / "home", "sync", *target.folders())
    assert [row["a"] for row in backend.runs["s--r"].rows] == [1, 2, 3]
    assert backend.runs["s--r"].exit_codes == [1, 0]


DIRECT = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import wandb

run = wandb.init(project="p", group="g", name="n", notes="no", tags=["a", "b"], job_type="j", id="abc",
                 config={"lr": 0.1, "net": {"depth": 3}}, dir=sys.argv[2])
run.define_metric("val/*", step_metric="epoch", summary="min")
run.define_metric("acc", summary="max,mean,last")
for call, kwargs in json.loads(sys.argv[3]):
    run.log(call, **kwargs)
run.config.update({"z": 3})
run.summary["q"] = 5
run.finish(exit_code=4)
"""
CALLS = [
    ({"loss": 1.5, "acc": 0.1}, {}),
    ({"n": {"x": 1, "y": {"z": 2}}}, {}),
    ({"loss": 0.5}, {"step": 5}),
    ({"acc": 0.7}, {"step": 5}),
    ({"acc": 0.6}, {"step": 7}),
    ({"epoch": 1, "val/loss": 3.0}, {"step": 9}),
    ({"val/loss": 2.0}, {"step": 10}),
    ({"val/loss": 2.5, "word": "x"}, {"step": 11, "commit": True}),
    ({"last": True}, {}),
]


def spooled_calls():
    """What the W&B writer makes of CALLS: numbers as metrics, the rest by their own types."""
    for call, kwargs in CALLS:
        numbers = {name: value for name, value in call.items() if type(value) in (int, float)}
        for name, value in call.items():
            if name not in numbers:
                kind = "text" if isinstance(value, str) else "custom"
                fields = (
                    {"key": name, "text": value}
                    if kind == "text"
                    else {"name": "wandb.value", "data": {"key": name, "value": value}}
                )
                yield kind, {**fields, "step": kwargs.get("step"), "commit": False}
        yield "metrics", {"metrics": numbers, **kwargs}


def test_the_sdk_writes_the_same_rows_config_and_summary(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", DIRECT, os.path.dirname(__file__), str(home), json.dumps(CALLS)],
        env={**os.environ, "WANDB_MODE": "offline", "HOME": str(home), "WANDB_ERROR_REPORTING": "false"},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (direct,) = home.rglob("*.wandb")
    target = Target(tmp_path / "ours")
    fields = {"api": "wandb", "project": "p", "group": "g", "name": "n", "notes": "no", "labels": ["a", "b"]}
    target.deliver(
        make_stream("s", "abc"),
        start(**fields, job_type="j", config={"lr": 0.1, "net": {"depth": 3}}),
        ("define_metric", {"name": "val/*", "step_metric": "epoch", "summary": "min"}),
        ("define_metric", {"name": "acc", "summary": "max,mean,last"}),
        *spooled_calls(),
        ("param", {"params": {"z": 3}, "overwrite": True}),
        ("summary", {"summary": {"q": 5}}),
    )
    target.end("abc", "failed", 4)
    (ours,) = target.folder.rglob("*.wandb")
    want, got = read_records(direct), read_records(ours)
    assert [times_taken(row) for row in rows_of(got)] == [times_taken(row) for row in rows_of(want)]
    assert {k: v for k, v in config_of(want).items() if k != "_wandb"} == config_of(got)
    assert without_times(summary_of(got)) == without_times(summary_of(want))
    assert one_of(got, "exit").exit_code == one_of(want, "exit").exit_code == 4
    mine, theirs = one_of(got, "run"), one_of(want, "run")
    for name in ("project", "run_group", "job_type", "display_name", "notes", "tags"):
        assert getattr(mine, name) == getattr(theirs, name), name
    assert [metric_of(r) for r in got if r.HasField("metric")] == [
        metric_of(r) for r in want if r.HasField("metric")
    ]


def metric_of(record):
    metric = record.metric
    kinds = sorted(field.name for field, _ in metric.summary.ListFields())
    return metric.name, metric.glob_name, metric.step_metric, metric.options.step_sync, kinds


def without_times(summary):
    return {
        name: value for name, value in summary.items() if name not in ("_timestamp", "_runtime", "_wandb")
    }
