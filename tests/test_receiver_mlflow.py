import dataclasses
import hashlib
import io
import json
import math
import os
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow_help import client_of, free_port, history, runs_in, tracking_uri

from spoolagent.contract import RunEnd
from spoolagent.errors import Refused, SpoolError, Transient, Unreachable, UsageError
from spoolagent.receivers import mlflow_errors
from spoolagent.receivers.mlflow import MlflowReceiver
from spoolagent.receivers.mlflow_calls import split
from spoolagent.receivers.mlflow_names import clean_path, escape, escape_path, unescape
from spoolagent.receivers.mlflow_runs import render
from spoolagent.testing import MemoryState, make_batch, make_stream

T0 = 1_700_000_000_000  # ms of the helper streams' creation


@pytest.fixture
def name():
    return f"exp-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def client(mlflow_server):
    return client_of(mlflow_server.uri)


class Rig:
    """An open receiver with its state, and deliveries as the worker makes them."""

    def __init__(self, uri, **options):
        self.state = MemoryState()
        self.receiver = MlflowReceiver(uri, options)
        self.receiver.open(self.state)

    def deliver(self, batch, times=1):
        """Delivers; with `times` > 1 as after crashes between the server's answer and the commit."""
        for _ in range(times - 1):
            self.receiver.deliver(batch)
            self.state.rollback()
        outcome = self.receiver.deliver(batch)
        self.state.commit()
        return outcome


@pytest.fixture
def rig(mlflow_server):
    return Rig(mlflow_server.uri)


def start(experiment, **more):
    return "run_start", {
        "api": "native",
        "experiment": experiment,
        "name": "my run",
        "host": "h",
        "pid": 1,
        "attempt": 1,
        **more,
    }


def metrics(values, **more):
    return "metrics", {"metrics": values, **more}


def put_blob(folder, content):
    digest = hashlib.sha256(content).hexdigest()
    path = os.path.join(folder, digest[:2], digest)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
    return {"sha256": digest, "size": len(content)}


def only_run(client, experiment):
    (run,) = runs_in(client, experiment)
    return run


def download(client, run_id, path, folder):
    with open(client.download_artifacts(run_id, path, str(folder)), "rb") as file:
        return file.read()


def tree(client, run_id, path=None):
    found = []
    for item in client.list_artifacts(run_id, path):
        found += tree(client, run_id, item.path) if item.is_dir else [item.path]
    return sorted(found)


# --- values ---------------------------------------------------------------------------------------------------


def full_batch(name):
    return make_batch(
        make_stream(),
        start(
            name,
            tags={"mlflow.user": "ada", "mlflow.source.name": "train.py", "color": "red"},
            labels=["baseline"],
            notes="a note",
            group="g1",
            config={"lr": 0.1, "net": {"depth": 3, "act": None}},
        ),
        metrics({"loss": 0.5, "acc": 1}, step=3),
        metrics({"loss": "NaN"}, step=4),
        metrics({"loss": "Infinity"}, step=5),
        metrics({"loss": "-Infinity"}),
        metrics({"loss": 0.25}, step=-2, at=1_600_000_000_123_456_789),
        (
            "param",
            {"params": {"flag": True, "none": None, "dict": {"x": 1}, "nan": {"$float": "NaN"}, "empty": ""}},
        ),
        ("tag", {"tags": {"color": "blue", "gone": "x"}}),
        ("tag", {"tags": {"gone": None}}),
        metrics({"f1": 0.7}, step=1, context={"subrun": "train"}),
        ("system", {"metrics": {"cpu": 12.5}}),
        ("hparams", {"hparams": {"bs": 32}, "metrics": {"hp/acc": 0.9}}),
        ("summary", {"summary": {"best": 0.9, "deep": {"x": "y"}}}),
        (
            "histogram",
            {
                "key": "h",
                "min": 0,
                "max": 1,
                "num": 1,
                "sum": 1,
                "sum_squares": 1,
                "limits": [1],
                "counts": [1],
            },
        ),
        ("log", {"message": "hello"}),
        ("gap", {"dropped": 3, "from": 1, "to": 2, "reason": "disk full"}),
        ("run_end", {"status": "finished", "exit_code": 0}),
    )


def check_full(client, name):
    run = only_run(client, name)
    ident = run.info.run_id
    big = 1.7976931348623157e308
    points = history(client, ident, "loss")
    nan = [p for p in points if math.isnan(p[2])]
    assert nan == [(T0 + 3, 4, pytest.approx(math.nan, nan_ok=True))]
    assert [p for p in points if not math.isnan(p[2])] == [
        (1_600_000_000_123, -2, 0.25),
        (T0 + 2, 3, 0.5),
        (T0 + 4, 5, big),
        (T0 + 5, 0, -big),
    ]
    assert history(client, ident, "acc") == [(T0 + 2, 3, 1.0)]
    assert history(client, ident, "train/f1") == [(T0 + 10, 1, 0.7)]
    assert history(client, ident, "system/cpu") == [(T0 + 11, 0, 12.5)]
    assert history(client, ident, "hp/acc") == [(T0 + 12, 0, 0.9)]
    assert run.data.params == {
        "lr": "0.1",
        "net.depth": "3",
        "net.act": "None",
        "flag": "True",
        "none": "None",
        "dict": "{'x': 1}",
        "nan": "nan",
        "empty": "",
        "bs": "32",
    }
    tags = dict(run.data.tags)
    assert tags == {
        "spoolagent.site": "site-1",
        "spoolagent.run": "run-1",
        "spoolagent.dropped": "3",
        "mlflow.runName": "my run",
        "mlflow.user": "ada",
        "mlflow.source.name": "train.py",
        "mlflow.note.content": "a note",
        "color": "blue",
        "baseline": "",
        "group": "g1",
        "summary.best": "0.9",
        "summary.deep.x": "y",
    }
    assert run.info.start_time == T0 + 1
    assert run.info.status == "RUNNING"


def test_everything_arrives_once_although_it_was_delivered_three_times(rig, client, name):
    outcome = rig.deliver(full_batch(name), times=3)
    assert outcome.dead == {}
    assert outcome.skipped == {"histogram": 1, "log": 1}
    check_full(client, name)


def test_a_database_without_a_server(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("store")
    rig = Rig("sqlite:///store/mlflow.db")
    assert rig.receiver.identity == f"mlflow:sqlite:///{tmp_path}/store/mlflow.db"
    blobs = str(tmp_path / "blobs")
    outcome = rig.deliver(full_batch(name), times=2)
    assert outcome.dead == {}
    client = client_of(f"sqlite:///{tmp_path}/store/mlflow.db")
    check_full(client, name)
    ident = only_run(client, name).info.run_id
    files = [{"path": "odd#?%20 name.txt", "blob": put_blob(blobs, b"abc")}]
    late = make_batch(make_stream(), ("artifact", {"path": "d", "files": files}), first_seq=18, blobs=blobs)
    assert rig.deliver(late, times=2).dead == {}
    assert download(client, ident, "d/odd_ux0023__ux003f__ux0025_20 name.txt", tmp_path) == b"abc"
    assert os.path.isdir(tmp_path / "store" / "mlartifacts" / name)
    assert not os.path.exists("mlruns")
    assert not os.path.exists(tmp_path / "mlruns")
    default = Rig("sqlite:///store/mlflow.db")
    default.deliver(make_batch(make_stream(run="plain"), ("run_start", {"api": "mlflow"}), metrics({"a": 1})))
    assert only_run(client, "Default").info.run_name == "plain"
    assert client.get_experiment_by_name("Default").artifact_location.startswith(
        str(tmp_path / "store" / "mlartifacts")
    )


@pytest.mark.parametrize(
    ("status", "shown"),
    [("finished", "FINISHED"), ("failed", "FAILED"), ("killed", "KILLED"), ("running", "RUNNING")],
)
def test_status_and_end_time(rig, client, name, status, shown):
    rig.deliver(make_batch(make_stream(run=f"r-{status}"), start(name), metrics({"a": 1})))
    end = RunEnd(
        site="site-1", run=f"r-{status}", status=status, time_ns=1_700_000_123_456_789_000, exit_code=None
    )
    for _ in range(2):
        rig.receiver.set_status(end)
    info = only_run(client, name).info
    assert info.status == shown
    assert info.end_time == (None if status == "running" else 1_700_000_123_456)


def test_a_reopened_run_is_running_until_it_ends_again(rig, client, name):
    rig.deliver(make_batch(make_stream(), start(name), metrics({"a": 1})))
    end = RunEnd(site="site-1", run="run-1", status="killed", time_ns=5_000_000_000, exit_code=None)
    rig.receiver.set_status(end)
    second = make_stream(writer="w-2", attempt=2)
    rig.deliver(make_batch(second, start(name, attempt=2), metrics({"a": 2})))
    rig.receiver.set_status(dataclasses.replace(end, status="running", time_ns=6_000_000_000))
    info = only_run(client, name).info
    assert (info.status, info.end_time) == ("RUNNING", 5_000)
    rig.receiver.set_status(dataclasses.replace(end, status="finished", time_ns=7_000_000_000))
    info = only_run(client, name).info
    assert (info.status, info.end_time) == ("FINISHED", 7_000)
    assert [value for _, _, value in history(client, info.run_id, "a")] == [1.0, 2.0]


def test_a_status_of_a_run_without_events_changes_nothing(rig):
    rig.receiver.set_status(RunEnd(site="site-1", run="none", status="failed", time_ns=1, exit_code=1))


def test_more_than_a_request_holds(rig, client, name):
    events = [
        start(name, config={f"p{i:03d}": i for i in range(150)}, tags={f"t{i:03d}": "x" for i in range(150)})
    ]
    events += [metrics({"m": i}, step=i) for i in range(2300)]
    events += [metrics({"x" * 240 + f"{i:04d}": i for i in range(1500)})]
    assert rig.deliver(make_batch(make_stream(), *events)).dead == {}
    run = only_run(client, name)
    assert run.data.params == {f"p{i:03d}": str(i) for i in range(150)}
    assert sum(key.startswith("t") for key in run.data.tags) == 150
    page = client.get_metric_history(run.info.run_id, "m")
    assert sorted((m.step, m.value, m.timestamp) for m in page) == [
        (i, float(i), T0 + i + 2) for i in range(2300)
    ]
    assert len(run.data.metrics) == 1501


def test_long_values_are_cut_as_mlflow_does(rig, client, name):
    batch = make_batch(
        make_stream(),
        start(name),
        ("param", {"params": {"p": "é" * 7000}}),
        ("tag", {"tags": {"t": "x" * 9000}}),
    )
    assert rig.deliver(batch, times=2).dead == {}
    data = only_run(client, name).data
    assert data.params["p"] == "é" * 6000
    assert data.tags["t"] == "x" * 8000


# --- params and tags ------------------------------------------------------------------------------------------


def test_the_first_param_wins_and_another_is_a_dead_letter(rig, client, name):
    first = make_batch(
        make_stream(), start(name), ("param", {"params": {"lr": 0.1}}), ("param", {"params": {"lr": 0.1}})
    )
    assert rig.deliver(first, times=2).dead == {}
    again = make_batch(
        make_stream(), ("param", {"params": {"lr": 0.2, "new": 1}}), metrics({"a": 1}), first_seq=4
    )
    dead = rig.deliver(again, times=2).dead
    assert list(dead) == [4]
    assert "'0.1'" in dead[4]
    assert "'0.2'" in dead[4]
    run = only_run(client, name)
    assert run.data.params == {"lr": "0.1", "new": "1"}
    assert run.data.metrics == {"a": 1.0}


def test_a_param_that_somebody_else_logged_is_found_out(rig, client, name):
    rig.deliver(make_batch(make_stream(), start(name)))
    run_id = only_run(client, name).info.run_id
    client.log_param(run_id, "lr", "theirs")
    batch = make_batch(
        make_stream(), ("param", {"params": {"lr": "ours", "b": 2}}), metrics({"loss@1": 1}), first_seq=2
    )
    dead = rig.deliver(batch).dead
    assert list(dead) == [2]
    assert "'theirs'" in dead[2]
    run = client.get_run(run_id)
    assert run.data.params == {"lr": "theirs", "b": "2"}
    assert run.data.tags["spoolagent.name.loss_ux0040_1"] == "loss@1"


def test_config_may_change(rig, client, name):
    stream = make_stream()
    rig.deliver(make_batch(stream, start(name, config={"lr": 1, "same": {"a": 1}})))
    change = make_batch(
        stream, ("param", {"params": {"lr": 2, "same": {"a": 1}}, "overwrite": True}), first_seq=2
    )
    assert rig.deliver(change, times=2).dead == {}
    data = only_run(client, name).data
    assert data.params == {"lr": "1", "same.a": "1"}
    assert data.tags["config.lr"] == "2"
    assert "config.same.a" not in data.tags
    back = make_batch(stream, ("param", {"params": {"lr": 1}, "overwrite": True}), first_seq=3)
    rig.deliver(back, times=2)
    assert only_run(client, name).data.tags["config.lr"] == "1"


def test_the_last_tag_by_time_wins_whatever_comes_last(rig, client, name):
    early, late = make_stream(writer="w-1"), make_stream(writer="w-2")
    late = dataclasses.replace(late, created_ns=late.created_ns + 1_000_000_000)
    rig.deliver(make_batch(late, start(name), ("tag", {"tags": {"t": "late", "u": None}})))
    rig.deliver(
        make_batch(early, start(name), ("tag", {"tags": {"t": "early", "u": "early", "v": "early"}})), times=2
    )
    tags = only_run(client, name).data.tags
    assert tags["t"] == "late"
    assert "u" not in tags
    assert tags["v"] == "early"


def test_no_event_sets_the_tags_by_which_runs_are_found(rig, client, name):
    batch = make_batch(
        make_stream(), start(name), ("tag", {"tags": {"spoolagent.site": "evil", "fine": "1"}})
    )
    assert list(rig.deliver(batch).dead) == [2]
    tags = only_run(client, name).data.tags
    assert tags["spoolagent.site"] == "site-1"
    assert tags["fine"] == "1"


# --- runs and experiments -------------------------------------------------------------------------------------


def test_streams_attempts_and_sites(rig, client, name):
    for site, writer in (("site-1", "w-1"), ("site-1", "w-2"), ("site-2", "w-3")):
        stream = make_stream(site=site, writer=writer)
        rig.deliver(make_batch(stream, start(name, api="nvflare", name="r"), metrics({f"m-{writer}": 1})))
    runs = {run.info.run_name: run for run in runs_in(client, name)}
    assert sorted(runs) == ["site-1-run-1-r", "site-2-run-1-r"]
    assert sorted(runs["site-1-run-1-r"].data.metrics) == ["m-w-1", "m-w-2"]


def test_a_new_state_finds_the_run_again(mlflow_server, client, name):
    batch = make_batch(make_stream(), start(name), metrics({"a": 1}), ("param", {"params": {"p": 1}}))
    for _ in range(2):
        assert Rig(mlflow_server.uri).deliver(batch).dead == {}
    assert history(client, only_run(client, name).info.run_id, "a") == [(T0 + 2, 0, 1.0)]


def test_templates_and_tags_of_the_options(mlflow_server, client, name):
    rig = Rig(
        mlflow_server.uri,
        experiment=name + "-{site}",
        run_name="{group}-{name}-{attempt}",
        experiment_tags={"mlflow.note.content": "all sites"},
        run_tags={"team": "a"},
    )
    rig.deliver(
        make_batch(make_stream(), ("run_start", {"api": "tensorboard", "name": "n"}), metrics({"a": 1}))
    )
    run = only_run(client, f"{name}-site-1")
    assert run.info.run_name == "n-1"
    assert run.data.tags["team"] == "a"
    assert client.get_experiment_by_name(f"{name}-site-1").tags["mlflow.note.content"] == "all sites"


def test_a_project_is_an_experiment(rig, client, name):
    rig.deliver(make_batch(make_stream(), ("run_start", {"api": "wandb", "project": name})))
    assert only_run(client, name).info.run_name == "run-1"


def test_parents_before_and_after_their_children(rig, client, name):
    def batch(run, **more):
        return make_batch(make_stream(run=run), start(name, name=run, **more))

    rig.deliver(batch("child-1", parent="parent"), times=2)
    rig.deliver(batch("parent"), times=2)
    rig.deliver(batch("child-2", parent="parent"), times=2)
    runs = {run.info.run_name: run for run in runs_in(client, name)}
    parent = runs["parent"].info.run_id
    assert runs["child-1"].data.tags["mlflow.parentRunId"] == parent
    assert runs["child-2"].data.tags["mlflow.parentRunId"] == parent
    assert list(rig.state.scan("waits/")) == []
    rig.deliver(batch("child-3"))
    tag = ("tag", {"tags": {"mlflow.parentRunId": "parent"}})  # set_tag with the id that the writer knows
    rig.deliver(make_batch(make_stream(run="child-3"), tag, first_seq=2), times=2)
    runs = {run.info.run_name: run for run in runs_in(client, name)}
    assert runs["child-3"].data.tags["mlflow.parentRunId"] == parent


def test_a_create_whose_answer_is_lost_makes_one_run(rig, client, name, monkeypatch):
    from mlflow import MlflowClient

    real, calls = MlflowClient.create_run, []

    def lost(self, *args, **kwargs):
        calls.append(real(self, *args, **kwargs))
        from mlflow.exceptions import MlflowException
        from requests.exceptions import ReadTimeout

        raise MlflowException("API request failed with timeout") from ReadTimeout("read timed out")

    batch = make_batch(make_stream(), start(name), metrics({"a": 1}))
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", lost)
        with pytest.raises(Unreachable):
            rig.receiver.deliver(batch)
        rig.state.rollback()
    assert len(calls) == 1
    assert rig.state.get("intent/site-1/run-1") == 1
    rig.deliver(batch)
    assert only_run(client, name).info.run_id == calls[0].info.run_id
    assert rig.state.get("intent/site-1/run-1") is None


def test_a_create_that_a_slow_server_carries_out_late_leaves_one_live_run(rig, client, name, monkeypatch):
    from mlflow import MlflowClient

    real = MlflowClient.create_run
    late = {}

    def slow(self, *args, **kwargs):
        late["create"] = lambda: real(self, *args, **kwargs)
        from requests.exceptions import ReadTimeout

        raise ReadTimeout("read timed out")

    def both(self, *args, **kwargs):
        late["run"] = late["create"]()
        return real(self, *args, **kwargs)

    batch = make_batch(make_stream(), start(name), metrics({"a": 1}))
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", slow)
        with pytest.raises(Unreachable):
            rig.receiver.deliver(batch)
        rig.state.rollback()
        patch.setattr(MlflowClient, "create_run", both)
        rig.deliver(batch)
    runs = runs_in(client, name)
    assert len(runs) == 2
    (alive,) = [run for run in runs if run.info.lifecycle_stage == "active"]
    assert alive.data.metrics == {"a": 1.0}


def test_a_deleted_run_makes_dead_letters_until_it_is_restored(rig, client, name, tmp_path):
    rig.deliver(make_batch(make_stream(), start(name), metrics({"a": 1})))
    run_id = only_run(client, name).info.run_id
    client.delete_run(run_id)
    text = make_batch(make_stream(), ("text", {"key": "k", "text": "t", "path": "t.txt"}), first_seq=3)
    for batch in (make_batch(make_stream(), metrics({"a": 2}), metrics({"a": 3}), first_seq=3), text):
        outcome = rig.deliver(batch)
        assert list(outcome.dead) == [event.seq for event in batch.events]
        assert "deleted" in outcome.dead[3]
    rig.receiver.set_status(RunEnd(site="site-1", run="run-1", status="finished", time_ns=1, exit_code=0))
    fresh = Rig(rig.receiver._uri)
    assert sorted(fresh.deliver(make_batch(make_stream(), start(name))).dead) == [1]
    assert len(runs_in(client, name)) == 1
    client.restore_run(run_id)
    assert tree(client, run_id) == []
    assert rig.deliver(text).dead == {}
    assert tree(client, run_id) == ["t.txt"]


def test_a_deleted_experiment_is_not_created_again(rig, client, name):
    rig.deliver(make_batch(make_stream(), start(name), metrics({"a": 1})))
    experiment = client.get_experiment_by_name(name).experiment_id
    client.delete_experiment(experiment)
    for known in (rig, Rig(rig.receiver._uri)):
        outcome = known.deliver(make_batch(make_stream(run="new"), start(name), metrics({"a": 1})))
        assert sorted(outcome.dead) == [1, 2]
        assert "restore" in outcome.dead[1]
        later = known.deliver(make_batch(make_stream(run="new"), metrics({"a": 2}), first_seq=3))
        assert sorted(later.dead) == [3]  # and it does not go to another experiment either
    assert sorted(rig.deliver(make_batch(make_stream(), metrics({"a": 2}), first_seq=3)).dead) == [3]
    client.restore_experiment(experiment)
    assert len(runs_in(client, name)) == 1


def test_an_experiment_name_that_mlflow_refuses(rig):
    outcome = rig.deliver(make_batch(make_stream(run="bad"), start("x" * 501), metrics({"a": 1})))
    assert sorted(outcome.dead) == [1, 2]


# --- names ----------------------------------------------------------------------------------------------------

ODD = [
    "mAP@0.5",
    "loss%",
    "a//b",
    "/x",
    "x/",
    "..",
    "../x",
    "a/./b",
    "._.",
    "漢字",
    "x\ny",
    "_ux0040_",
    "é@",
    "n" * 300,
]


def test_odd_names_are_escaped_and_kept_in_a_tag(rig, client, name):
    batch = make_batch(
        make_stream(),
        start(name),
        metrics(dict.fromkeys(ODD, 1)),
        ("param", {"params": dict.fromkeys(ODD, "v")}),
    )
    assert rig.deliver(batch, times=2).dead == {}
    run = only_run(client, name)
    assert set(run.data.metrics) == set(run.data.params) == {escape(n) for n in ODD}
    for odd in ODD:
        if escape(odd) != odd:
            assert run.data.tags[f"spoolagent.name.{escape(odd)}"] == odd
    later = make_batch(make_stream(), metrics({"mAP@0.5": 2}), metrics({"": 3, "ok": 1}), first_seq=4)
    assert list(rig.deliver(later).dead) == [5]
    assert only_run(client, name).data.metrics["mAP_ux0040_0.5"] == 2.0


@given(st.text(max_size=260) | st.text("/._ux0-@a", max_size=30))
def test_escape_is_reversible_and_legal(text):
    from mlflow.utils.validation import _validate_metric_name

    if not text:
        with pytest.raises(ValueError, match="empty"):
            escape(text)
        return
    out = escape(text)
    _validate_metric_name(out)
    assert len(out) <= 250
    if len(out) < 200:
        assert unescape(out) == text
    tag = escape(f"spoolagent.name.{out}")
    assert len(tag) <= 250


@given(st.text("ab/._ux0#?%:\n é", min_size=1, max_size=30))
def test_escape_path_is_reversible(text):
    from mlflow.utils.uri import validate_path_is_safe

    try:
        path = clean_path(text)
    except ValueError:
        return
    out = escape_path(path)
    assert unescape(out) == path
    assert validate_path_is_safe(out) == out


# --- files ----------------------------------------------------------------------------------------------------


def test_files_with_odd_names_come_back_byte_by_byte(rig, client, name, tmp_path):
    names = [
        "plain.bin",
        "a#b?.txt",
        "100%.txt",
        "a%20b",
        "c:x",
        "sub dir/é漢;&=+,'\".txt",
        "x" * 300 + ".bin",
        "z\ty",
        " s ",
    ]
    contents = {n: n.encode() * 3 for n in names}
    blobs = str(tmp_path / "blobs")
    files = [{"path": n, "blob": put_blob(blobs, c)} for n, c in contents.items()]
    batch = make_batch(make_stream(), start(name), ("artifact", {"path": "out", "files": files}), blobs=blobs)
    bare = make_batch(make_stream(), ("model", {"files": files[:5]}), first_seq=3, blobs=blobs)
    assert rig.deliver(batch, times=2).dead == {}
    assert rig.deliver(bare, times=2).dead == {}
    run = only_run(client, name)
    for path, content in contents.items():
        stored = escape_path(f"out/{path}")
        assert download(client, run.info.run_id, stored, tmp_path) == content
        if stored != f"out/{path}":
            assert run.data.tags[escape(f"spoolagent.file.out/{path}")] == f"out/{path}"
    assert len(tree(client, run.info.run_id)) == len(names) + 5


def test_texts_and_media(rig, client, name, tmp_path):
    blobs = str(tmp_path / "blobs")
    wav = put_blob(blobs, b"RIFF....WAVE")
    batch = make_batch(
        make_stream(),
        start(name),
        ("text", {"key": "notes", "text": "hé\n", "path": "docs//./a.txt"}),
        ("text", {"key": "sample/0", "text": "step text", "step": 7}),
        ("text", {"key": "long", "blob": put_blob(blobs, b"blob text"), "path": "long.txt"}),
        ("audio", {"key": "a", "blob": wav, "encoding": "wav", "step": 1}),
        ("text", {"key": "evil", "text": "x", "path": "../../evil.txt"}),
        ("text", {"key": "abs", "text": "x", "path": "/etc/evil"}),
        ("audio", {"key": "a", "blob": {"sha256": "0" * 64, "size": 3}, "encoding": "wav"}),
        ("text", {"key": "in a file", "text": "x", "path": "long.txt/inner"}),
        ("text", {"key": "on a folder", "text": "x", "path": "docs"}),
        blobs=blobs,
    )
    outcome = rig.deliver(batch, times=2)
    assert sorted(outcome.dead) == [6, 7, 8, 9, 10]
    run_id = only_run(client, name).info.run_id
    expected = {
        "docs/a.txt": "hé\n".encode(),
        "text/sample/0/00000007-w-1-00000003.txt": b"step text",
        "long.txt": b"blob text",
        "audio/a/00000001-w-1-00000005.wav": b"RIFF....WAVE",
    }
    assert tree(client, run_id) == sorted(expected)
    for path, content in expected.items():
        assert download(client, run_id, path, tmp_path) == content


def test_images_are_named_as_log_image_names_them(rig, client, name, tmp_path):
    from PIL import Image

    blobs = str(tmp_path / "blobs")
    pixels = bytes(range(2 * 3 * 3))
    raw = {"blob": put_blob(blobs, pixels), "encoding": "raw", "height": 2, "width": 3, "channels": 3}
    empty = {"blob": put_blob(blobs, b""), "encoding": "raw", "height": 0, "width": 3, "channels": 3}
    batch = make_batch(
        make_stream(),
        start(name),
        ("image", {"key": "val/dogs#1", "step": 5, **raw}),
        ("image", {"key": "fig", "path": "plots/fig.png", **raw}),
        ("image", {"key": "fig", "path": "plots/fig.jpg", **raw}),
        ("image", {"key": "none", "path": "none.png", **empty}),
        blobs=blobs,
    )
    assert list(rig.deliver(batch, times=3).dead) == [5]
    run = only_run(client, name)
    assert run.data.tags["mlflow.loggedImages"] == "True"
    files = tree(client, run.info.run_id)
    assert len(files) == 4
    small, full = sorted(files[:2])
    stem = f"images/val~dogs_ux0023_1+step+5+timestamp+{T0 + 2}+"
    assert full.startswith(stem)
    assert full.endswith(".png")
    assert small == full.removesuffix(".png") + "+compressed.webp"
    assert run.data.tags["spoolagent.name.val/dogs_ux0023_1"] == "val/dogs#1"
    for path, form in ((full, "PNG"), ("plots/fig.png", "PNG"), ("plots/fig.jpg", "JPEG"), (small, "WEBP")):
        image = Image.open(io.BytesIO(download(client, run.info.run_id, path, tmp_path)))
        assert image.format == form
        if form == "PNG":
            assert image.convert("RGB").tobytes() == pixels


def test_tables_grow_and_do_not_double(mlflow_server, rig, client, name, tmp_path):
    blobs = str(tmp_path / "blobs")
    blob = put_blob(blobs, json.dumps({"columns": ["q", "b"], "data": [["x", {"$float": "NaN"}]]}).encode())
    stream = make_stream()
    rig.deliver(
        make_batch(
            stream,
            start(name),
            ("table", {"key": "t", "path": "t.json", "columns": ["q", "a"], "data": [["1", 2]]}),
        ),
        times=2,
    )
    rig.deliver(
        make_batch(stream, ("table", {"key": "t", "path": "t.json", "blob": blob}), first_seq=3, blobs=blobs),
        times=3,
    )
    rig.deliver(
        make_batch(
            stream, ("table", {"key": "w", "step": 2, "columns": ["c"], "data": [[None]]}), first_seq=4
        )
    )
    run = only_run(client, name)
    held = json.loads(download(client, run.info.run_id, "t.json", tmp_path))
    assert held == {"columns": ["q", "a", "b"], "data": [["1", 2, None], ["x", None, None]]}
    with tracking_uri(mlflow_server.uri):  # load_table asks the default server
        assert client.load_table(run.info.experiment_id, "t.json", [run.info.run_id]).shape == (2, 3)
    own = "table/w/00000002-w-1-00000004.json"
    assert json.loads(download(client, run.info.run_id, own, tmp_path)) == {
        "columns": ["c"],
        "data": [[None]],
    }
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "t.json", "type": "table"},
        {"path": own, "type": "table"},
    ]


# --- errors ---------------------------------------------------------------------------------------------------


def test_a_server_that_is_not_there():
    began = time.monotonic()
    receiver = MlflowReceiver(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Unreachable, match="refused"):
        receiver.open(MemoryState())
    assert time.monotonic() - began < 30


def test_a_server_that_dies_hangs_and_comes_back(mlflow_server, name, monkeypatch):
    try:
        fail_and_recover(mlflow_server, name, monkeypatch)
    finally:  # the other tests need it
        mlflow_server.answer_again()
        if mlflow_server.process is None:
            mlflow_server.restart()


def fail_and_recover(server, name, monkeypatch):
    rig = Rig(server.uri, timeout_s=2)
    stream = make_stream()
    assert rig.deliver(make_batch(stream, start(name), metrics({"a": 1}))).dead == {}
    server.stop_answering()
    batch = make_batch(stream, metrics({"a": 2}), first_seq=3)
    with pytest.raises((Unreachable, Transient)):
        rig.deliver(batch)
    rig.state.rollback()
    server.kill()
    with pytest.raises(Unreachable):
        rig.deliver(batch)
    rig.state.rollback()
    server.restart()
    assert rig.deliver(batch).dead == {}
    client = client_of(server.uri)
    points = history(client, only_run(client, name).info.run_id, "a")
    assert [value for _, _, value in points] == [1.0, 2.0]
    lose_a_create(server, rig, client, name, monkeypatch)


def lose_a_create(server, rig, client, name, monkeypatch):
    """The server freezes with the create in its hands; whether it carries it out later is up to it."""
    from mlflow import MlflowClient

    real = MlflowClient.create_run

    def freeze(self, *args, **kwargs):
        server.stop_answering()
        return real(self, *args, **kwargs)

    batch = make_batch(make_stream(run="lost"), start(name, name="lost"), metrics({"a": 1}))
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", freeze)
        with pytest.raises(Unreachable):
            rig.deliver(batch)
    rig.state.rollback()
    server.answer_again()
    assert rig.deliver(batch).dead == {}
    alive = [run.info.run_name for run in runs_in(client, name) if run.info.lifecycle_stage == "active"]
    assert sorted(alive) == ["lost", "my run"]


def test_a_refusal_of_the_server_is_refused_and_harmless(rig, client, name, monkeypatch):
    from spoolagent.receivers import mlflow_plan

    monkeypatch.setattr(mlflow_plan, "escape", lambda text: text)
    batch = make_batch(make_stream(), start(name), metrics({"bad@name": 1}), metrics({"good": 1}))
    with pytest.raises(Refused, match="bad@name"):
        rig.deliver(batch)
    rig.state.rollback()
    for event in batch.events:  # as the worker bisects
        part = dataclasses.replace(batch, events=(event,))
        if event.seq == 2:
            with pytest.raises(Refused):
                rig.deliver(part)
            rig.state.rollback()
        else:
            rig.deliver(part)
    assert only_run(client, name).data.metrics == {"good": 1.0}


class Answer:
    """A server that gives one answer to everything."""

    def __init__(self, status, body=b"", headers=()):
        import http.server
        import threading

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                for key, value in headers:
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self.uri

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, b"no", Unreachable),
        (403, b"Permission denied", Transient),
        (404, b"<html>", Unreachable),
        (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "m"}', Refused),
        (413, b"too large", Refused),
        (
            400,
            b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "too many 404 error responses"}',
            Refused,
        ),
        (400, b'{"error_code": "BRAND_NEW_CODE", "message": "m"}', Transient),
        (409, b'{"error_code": "ABORTED", "message": "m"}', Transient),
        (429, b"", Transient),
        (500, b"oops", Transient),
        (500, b'{"error_code": "INTERNAL_ERROR", "message": "m"}', Transient),
        (503, b"", Transient),
        (200, b"<html>a login page</html>", Transient),
    ],
)
def test_what_an_answer_means(rig, name, status, body, expected):
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    with Answer(status, body) as uri:
        with pytest.raises(Exception) as raised:
            MlflowClient(uri).log_batch("0" * 32, metrics=[Metric("a", 1, 1, 1)])
        error = mlflow_errors.translate(raised.value, "testing")
        assert type(error) is expected or (expected is Refused and isinstance(error, Refused))
        with pytest.raises(Unreachable):  # at the start every one of them means: no MLflow here
            MlflowReceiver(uri).open(MemoryState())


def test_messages_hold_no_credentials():
    receiver = MlflowReceiver("http://user:secret@127.0.0.1:1/base/")
    assert receiver.identity == "mlflow:http://127.0.0.1:1/base"
    with pytest.raises(Unreachable) as raised:
        receiver.open(MemoryState())
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("./mlruns", {}, "file store is not a target"),
        ("file:///tmp/mlruns", {}, "file store is not a target"),
        ("databricks://x", {}, "not supported"),
        ("http://", {}, "no host"),
        ("sqlite:///", {}, "no database"),
        ("http://h", {"experimnt": "x"}, "'experiment'"),
        ("http://h", {"run_name": "{sit}"}, "'sit'"),
        ("http://h", {"run_name": "{site.__class__}"}, "known ones"),
        ("http://h", {"run_tags": {"spoolagent.run": "x"}}, "finds its runs"),
        ("http://h", {"timeout_s": 0}, "seconds"),
    ],
)
def test_wrong_targets_and_options(target, options, words):
    with pytest.raises(UsageError, match=words):
        MlflowReceiver(target, options)


def test_a_database_in_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        MlflowReceiver(f"sqlite:///{tmp_path}/no/mlflow.db").open(MemoryState())


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "x.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(UsageError, match=r"x\.db cannot be used"):
        MlflowReceiver(f"sqlite:///{tmp_path}/x.db").open(MemoryState())


def test_spellings_of_one_target_have_one_identity():
    same = ["http://Host:80/", "http://host", "http://u:p@host/"]
    assert {MlflowReceiver(target).identity for target in same} == {"mlflow:http://host:80"}


def test_templates_leave_out_empty_parts():
    values = {"site": "s", "run": "r-1", "name": ""}
    assert render("{site}-{run}-{name}", values) == "s-r-1"
    assert render("x-{name}{site}-y", values) == "x-s-y"


@given(
    st.integers(0, 2500),
    st.integers(0, 250),
    st.integers(0, 250),
    st.sampled_from(["k", "é" * 100, "x" * 200]),
)
def test_requests_stay_within_the_limits(points, params, tags, key):
    requests = list(
        split(
            [(key + str(i), 1.0, 1, i) for i in range(points)],
            {f"{key}{i}": key for i in range(params)},
            {f"{key}{i}": key for i in range(tags)},
        )
    )
    for p, q, t in requests:
        body = {"metrics": [dict(zip(("key", "value", "timestamp", "step"), x, strict=True)) for x in p]}
        body |= {
            "params": [{"key": k, "value": v} for k, v in q],
            "tags": [{"key": k, "value": v} for k, v in t],
        }
        assert len(json.dumps(body)) <= 1_000_000
        assert 1 <= len(p) + len(q) + len(t) <= 1000
        assert len(q) <= 100
        assert len(t) <= 100
    assert [x[3] for p, _, _ in requests for x in p] == list(range(points))
    assert sum(len(q) for _, q, _ in requests) == params
    assert sum(len(t) for _, _, t in requests) == tags


def test_every_error_is_one_of_ours():
    for error in (OSError("disk"), ValueError("odd"), RuntimeError("boto")):
        assert isinstance(mlflow_errors.translate(error, "x"), SpoolError)


def test_no_answer_is_never_a_refusal():
    """Whatever error code MLflow puts around it: a dead letter for it would be a loss."""
    import requests
    from mlflow.exceptions import MlflowException

    from spoolagent.receivers.mlflow_errors import translate

    for lost in (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
        for code in (1, 1000, 4004):  # INTERNAL_ERROR, INVALID_PARAMETER_VALUE, BAD_REQUEST
            error = MlflowException("API request failed", error_code=code)
            error.__cause__ = lost("gone")
            assert type(translate(error, "logging")) is Unreachable, (lost, code)


def test_a_time_before_1970_is_1970(rig, client, name):
    """TensorBoard takes such a time, MLflow refuses the whole request for it."""
    points = [metrics({"m": 1.0 + step}, step=step, at=at) for step, at in enumerate((-5 * 10**9, -1, 0))]
    outcome = rig.deliver(make_batch(make_stream(), start(name), *points))
    assert not outcome.dead
    (run,) = runs_in(client, name)
    assert [(p.timestamp, p.value) for p in client.get_metric_history(run.info.run_id, "m")] == [
        (0, 1.0),
        (0, 2.0),
        (0, 3.0),
    ]
