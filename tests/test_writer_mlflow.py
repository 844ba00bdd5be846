"""spoolagent.writers.mlflow beside the real library: signatures, refusals, and what MLflow shows in the end."""

import inspect
import io
import os
import pathlib
import subprocess
import sys
import textwrap
import threading
import uuid
from decimal import Decimal

import numpy as np
import pytest
from mlflow_help import tracking_uri
from mlflow_writer_help import replay, shown
from writer_help import Clock, fields, full_disk, only, read_spool

from spoolagent.testing import set_fault
from spoolagent.writers import mlflow as ours
from spoolagent.writers.run import finish_all


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A URI of a SQLite store that the real library and the receiver share, and the real library."""
    folder = tmp_path_factory.mktemp("mlflow-store")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    here = os.getcwd()
    os.chdir(folder)  # where MLflow's store of a local database puts its artifacts
    import mlflow

    from spoolagent.receivers.mlflow import MlflowReceiver
    from spoolagent.testing import MemoryState

    uri = f"sqlite:///{folder}/mlflow.db"
    receiver = MlflowReceiver(uri, {})
    receiver.open(MemoryState())
    receiver.close()
    with tracking_uri(uri):
        yield uri, mlflow
    os.chdir(here)


@pytest.fixture
def spool(tmp_path, monkeypatch):
    """A fresh spool for the writer; all runs of the test are ended afterwards."""
    folder = tmp_path / "spool"
    monkeypatch.setenv("SPOOLAGENT_SPOOL", str(folder))
    monkeypatch.setenv("SPOOLAGENT_SITE", "site-1")
    for name in ("EXPERIMENT_NAME", "EXPERIMENT_ID", "RUN_ID", "TRACKING_URI", "RUN_CONTEXT"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    for name in ("RUN", "ATTEMPT", "RANK"):
        monkeypatch.delenv(f"SPOOLAGENT_{name}", raising=False)
    yield folder
    while ours.active_run():
        ours.end_run()
    finish_all()


@pytest.fixture
def experiment():
    return f"exp {uuid.uuid4().hex[:12]}"


def end_all(m):
    while m.active_run():
        m.end_run()


# -- signatures ------------------------------------------------------------------------------------------------


def shape(function):
    kinds = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in kinds]


FLUENT = [name for name in ours.__all__ if inspect.isfunction(getattr(ours, name))]
CLIENT = [n for n, v in vars(ours.MlflowClient).items() if inspect.isfunction(v) and n != "__getattr__"]
ENTITIES = ["Metric", "Param", "RunTag", "ExperimentTag", "RunInfo", "RunData", "Run", "Experiment"]


@pytest.mark.parametrize("name", FLUENT)
def test_fluent_signature(store, name):
    assert shape(getattr(ours, name)) == shape(getattr(store[1], name))


@pytest.mark.parametrize("name", CLIENT)
def test_client_signature(store, name):
    assert shape(getattr(ours.MlflowClient, name)) == shape(getattr(store[1].MlflowClient, name))


@pytest.mark.parametrize("name", ENTITIES)
def test_entity_signature(store, name):
    mine, theirs = getattr(ours.entities, name), getattr(store[1].entities, name)
    assert shape(mine) == shape(theirs)


def test_the_essential_surface_is_there():
    fluent = """start_run end_run active_run set_tracking_uri get_tracking_uri set_experiment log_metric log_metrics
        log_param log_params set_tag log_artifact set_tags log_artifacts log_text log_dict log_figure log_image log_table
        create_experiment get_experiment_by_name get_run get_artifact_uri autolog"""
    client = """create_run log_batch log_metric log_param set_tag set_terminated get_run get_experiment_by_name
        create_experiment"""
    assert set(fluent.split()) <= set(FLUENT)
    assert set(client.split()) <= set(CLIENT)


# -- refusals: the same calls, the same outcome ------------------------------------------------------------------

VALUES = {
    "none": None,
    "word": "x",
    "number as text": "1.5",
    "nan": float("nan"),
    "inf": float("inf"),
    "int": 3,
    "wide int": 2**70,
    "too wide": 10**400,
    "bool": True,
    "list": [1.0],
    "float32": np.float32(0.1),
    "array": np.array([[2.0]]),
    "two": np.array([1.0, 2.0]),
    "decimal": Decimal("1.1"),
    "complex": 1j,
    "object": object(),
}
KEYS = [
    "a//b",
    "/x",
    "../x",
    ".",
    "a/../b",
    "a/",
    "m@5",
    "l%",
    "a:b",
    "a b",
    "",
    None,
    5,
    "é",
    "a\nb",
    "k" * 251,
]
STEPS = {"text": "1", "none": None, "numpy": np.int64(4), "negative": -3, "list": [1], "empty": ""}
STAMPS = {
    "text": "x",
    "negative": -3,
    "zero": 0,
    "numpy": np.int64(7),
    "float": 1.5,
    "year 5000": 10**14,
    "last": 2**63 - 1,
}


def calls(m):
    """(name, call) of everything whose outcome must be the same; each is made in a run of its own."""
    c, E = m.MlflowClient(), m.entities

    def ident():
        return m.active_run().info.run_id

    def after(first, then):
        first()
        return then()

    for name, value in VALUES.items():
        yield f"metric {name}", lambda value=value: m.log_metric("v", value)
        yield (
            f"batch {name}",
            lambda value=value: c.log_batch(ident(), metrics=[E.Metric("v", value, 5, 1)]),
        )
    for key in KEYS:
        yield f"metric key {key}", lambda key=key: m.log_metric(key, 1.0)
        yield f"metrics key {key}", lambda key=key: m.log_metrics({"good": 1.0, key: 1.0})
        yield f"param key {key}", lambda key=key: m.log_params({key: 1})
        yield f"tags key {key}", lambda key=key: m.set_tags({key: 1})
    for name, step in STEPS.items():
        yield f"step {name}", lambda step=step: m.log_metric("k", 1.0, step=step)
        yield f"client step {name}", lambda step=step: c.log_metric(ident(), "k", 1.0, step=step)
        yield f"batch step {name}", lambda step=step: c.log_batch(ident(), [E.Metric("k", 1.0, 5, step)])
    for name, stamp in STAMPS.items():
        yield f"time {name}", lambda stamp=stamp: m.log_metric("k", 1.0, timestamp=stamp)
        yield f"batch time {name}", lambda stamp=stamp: c.log_batch(ident(), [E.Metric("k", 1.0, stamp, 1)])
    for name, value in {"none": None, "list": [1], "dict": {"a": 1}, "long": "v" * 6001}.items():
        yield f"param {name}", lambda value=value: m.log_param("p", value)
    yield "same", lambda: after(lambda: m.log_param("p", 1), lambda: m.log_param("p", 1))
    yield "same text", lambda: after(lambda: m.log_param("p", 1), lambda: m.log_param("p", "1"))
    yield "other", lambda: after(lambda: m.log_param("p", 1), lambda: m.log_param("p", 2))
    yield "others", lambda: after(lambda: m.log_params({"p": 1, "q": 2}), lambda: m.log_params({"q": 3}))
    yield "twice in a batch", lambda: c.log_batch(ident(), params=[E.Param("a", "1"), E.Param("a", "1")])
    yield "params list", lambda: m.log_params([("a", 1)])
    yield "metrics list", lambda: m.log_metrics([("a", 1)])
    yield "metrics none", lambda: m.log_metrics({})
    yield "second start", m.start_run
    yield "two names", lambda: c.create_run("0", tags={"mlflow.runName": "a"}, run_name="b")
    yield "no such experiment", lambda: c.create_run("424242")
    yield "experiment as int", lambda: c.create_run(0).info.experiment_id
    yield "run id", lambda: c.get_run("a b/c")
    yield "end", lambda: m.end_run("NOPE")
    yield "end lower", lambda: m.end_run("failed")
    yield "terminate", lambda: c.set_terminated(ident(), "NOPE")
    yield "no experiment", m.set_experiment
    yield "two experiments", lambda: m.set_experiment("a", experiment_id="0")
    yield "empty experiment", lambda: m.set_experiment("")
    yield "long experiment", lambda: m.set_experiment("x" * 501)
    yield "experiment int", lambda: m.set_experiment(5)
    yield "experiment id", lambda: m.set_experiment(experiment_id="99999")
    yield "experiment id word", lambda: m.set_experiment(experiment_id="abc")
    yield "experiment id float", lambda: m.start_run(experiment_id=1.5, nested=True)
    yield "notes", lambda: m.start_run(nested=True, description="x", tags={"mlflow.note.content": "y"})
    yield "parent", lambda: m.start_run(nested=True, parent_run_id="f" * 32)
    yield "resume", lambda: m.start_run(nested=True, run_id="a b")
    yield "name", lambda: m.start_run(nested=True, tags={"mlflow.runName": "zz"}).info.run_name
    yield (
        "names",
        lambda: m.start_run(nested=True, run_name="yy", tags={"mlflow.runName": "z"}).info.run_name,
    )
    yield "unknown name", lambda: c.get_experiment_by_name("nobody made this")
    yield "unknown id", lambda: c.get_experiment("4242")
    yield "no file", lambda: m.log_artifact("/nonexistent/x")
    yield "no directory", lambda: m.log_artifacts("/nonexistent/x")
    for path in ("../x", "/x", "a//b", "", pathlib.Path("b")):
        yield f"artifact to {path}", lambda path=path: m.log_artifact(__file__, path)
    for path in ("a//b.txt", "../b.txt", "/b.txt", "d/"):
        yield f"text to {path}", lambda path=path: m.log_text("x", path)
    yield "text to nowhere", lambda: m.log_text("x", "")
    yield "no text", lambda: m.log_text(5, "b.txt")
    grey = np.zeros((2, 2), np.uint8)
    yield "image", lambda: m.log_image(grey)
    yield "image twice", lambda: m.log_image(grey, "a.png", key="k")
    yield "image key", lambda: m.log_image(grey, key="k@")
    yield "image str", lambda: m.log_image("x", "a.png")
    yield "image channels", lambda: m.log_image(np.zeros((2, 2, 5), np.uint8), "a.png")
    yield "image line", lambda: m.log_image(np.zeros(2, np.uint8), "a.png")
    yield "image range", lambda: m.log_image(np.full((2, 2), 300), "a.png")
    yield "image type", lambda: m.log_image(np.zeros((2, 2), complex), "a.png")
    yield "image extension", lambda: m.log_image(grey, "a.zzz")
    yield "figure", lambda: m.log_figure(object(), "a.png")
    yield "table extension", lambda: m.log_table({"a": [1]}, "a.csv")
    yield "table name", lambda: m.log_table({"a": [1]}, "a,b.json")
    yield "table list", lambda: m.log_table([1], "a.json")
    yield "no tag", lambda: m.delete_tag("nope")
    yield (
        "rename",
        lambda: after(lambda: m.set_tag("mlflow.runName", "new"), lambda: c.get_run(ident()).info.run_name),
    )
    yield "async", lambda: m.log_metrics({"a": 1.0}, synchronous=False).wait()
    yield "ended", lambda: ended(m, c)
    yield "log to ended", lambda: logged_to_ended(m)
    yield "last", lambda: last(m)
    yield "end twice", lambda: (m.end_run(), m.end_run())
    yield "data", lambda: data(m)


def ended(m, client):
    run = m.active_run()
    m.end_run()
    return run.info.status, client.get_run(run.info.run_id).info.status


def logged_to_ended(m):
    ident = m.active_run().info.run_id
    m.end_run()
    m.log_metric("a", 1.0, run_id=ident)
    run = m.get_run(ident)
    return run.data.metrics, run.info.status


def last(m):
    ident = m.active_run().info.run_id
    m.end_run()
    return m.last_active_run().info.run_id == ident, m.last_active_run().info.status, m.active_run()


def data(m):
    m.log_param("p", 1)
    m.set_tag("t", 1)
    for value, step in ((2, 3), (9, 1), (4, 3), (float("nan"), 2)):
        m.log_metric("m", value, step=step, timestamp=1000 + value if value == value else 1)
    found = m.get_run(m.active_run().info.run_id).data
    return found.params, found.metrics, found.tags["t"]


def outcome(call):
    try:
        return "returned", call()
    except Exception as error:
        return type(error).__name__, getattr(error, "error_code", None)


def outcomes(m):
    found = {}
    for name, call in calls(m):
        end_all(m)
        m.start_run()
        found[name] = outcome(call)
    end_all(m)
    return found


@pytest.mark.filterwarnings("ignore")
def test_every_call_ends_as_in_the_real_library(store, spool):
    theirs, mine = outcomes(store[1]), outcomes(ours)
    different = {name: (theirs[name], mine[name]) for name in theirs if theirs[name] != mine[name]}
    assert different == {}
    assert len({o[0] for o in mine.values()}) >= 6  # several kinds of error were met


def test_an_error_reads_as_in_the_real_library():
    error = ours.exceptions.MlflowException.invalid_parameter_value("no")
    assert (str(error), error.error_code, error.get_http_status_code()) == (
        "no",
        "INVALID_PARAMETER_VALUE",
        400,
    )
    assert ours.MlflowException("x").error_code == "INTERNAL_ERROR"
    assert ours.MlflowException("x", error_code=3002).error_code == "RESOURCE_DOES_NOT_EXIST"


@pytest.mark.parametrize("step", [1.5, 2.0, np.float32(2), True, float("nan")])
def test_a_step_that_is_no_int_is_a_type_error(spool, step):
    """As with an MLflow server; straight into SQLite the real library stores a float step."""
    with ours.start_run(), pytest.raises(TypeError):
        ours.log_metric("k", 1.0, step=step)
    assert only(spool, "metrics") == []


@pytest.mark.parametrize(("step", "stamp"), [(2**63, None), (-(2**63) - 1, None), (1, 2**63)])
def test_numbers_beyond_64_bits_are_refused(spool, step, stamp):
    with ours.start_run(), pytest.raises(ours.MlflowException, match="invalid value"):
        ours.log_metric("k", 1.0, step=step, timestamp=stamp)
    assert only(spool, "metrics") == []


def test_a_time_after_2262_is_the_last_that_there_is(spool, capsys, monkeypatch):
    """MLflow takes milliseconds of 64 bits: the value must not be lost for its time."""
    monkeypatch.setattr("spoolagent.writers.process._warned", set())
    with ours.start_run():
        for step, stamp in enumerate((10**14, 2**63 - 1)):
            ours.log_metric("k", 1.0, step=step, timestamp=stamp)
    last = (2**63 - 1) // 1_000_000 * 1_000_000
    assert [(e["step"], e["at"]) for e in only(spool, "metrics")] == [(0, last), (1, last)]
    assert capsys.readouterr().err.count("2262") == 1


# -- what cannot work offline ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["register_model", "log_input", "evaluate", "no_such_thing"])
def test_the_rest_says_that_it_is_not_supported_offline(name):
    with pytest.raises(AttributeError, match=f"{name} is not supported offline"):
        getattr(ours, name)
    with pytest.raises(NotImplementedError):
        getattr(ours, name)
    with pytest.raises(AttributeError, match=r"MlflowClient\.search_traces is not supported offline"):
        _ = ours.MlflowClient().search_traces
    assert not hasattr(ours, name)


def test_tags_of_an_experiment_stay_here_and_a_warning_says_so(spool, capsys, monkeypatch):
    monkeypatch.setattr("spoolagent.writers.process._warned", set())
    chosen = ours.set_experiment("tagged")
    ours.set_experiment_tag("a", 1)
    ours.set_experiment_tags({"b": "x"})
    ours.MlflowClient().set_experiment_tag(chosen.experiment_id, "c", "y")
    assert ours.get_experiment_by_name("tagged").tags == {"a": "1", "b": "x", "c": "y"}
    assert capsys.readouterr().err.count("stay here: set them in MLflow") == 1


def test_autolog_names_the_alternative(spool):
    with pytest.raises(NotImplementedError, match=r"mlflow\.autolog is not supported offline.*callback"):
        ours.autolog()
    with pytest.raises(NotImplementedError, match=r"sklearn\.autolog is not supported offline.*callback"):
        ours.sklearn.autolog(log_models=True)
    ours.autolog(disable=True)
    ours.sklearn.autolog(disable=True)
    ours.pytorch.autolog(log_models=False, disable=True)
    with pytest.raises(AttributeError, match=r"xgboost\.load_model is not supported offline"):
        _ = ours.xgboost.load_model


def test_settings_of_system_metrics_are_taken_and_a_warning_says_so(spool, capsys, monkeypatch):
    monkeypatch.setattr("spoolagent.writers.process._warned", set())
    ours.set_system_metrics_sampling_interval(1)
    ours.set_system_metrics_samples_before_logging(2)
    ours.set_system_metrics_node_id("n")
    assert capsys.readouterr().err.count("system metrics are not collected") == 1


def test_a_full_temporary_directory_costs_the_model_and_not_the_training(spool, monkeypatch):
    from sklearn.linear_model import LinearRegression

    model = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    with ours.start_run() as run:
        with monkeypatch.context() as patch:
            patch.setattr("tempfile.TemporaryDirectory", full_disk)
            info = ours.sklearn.log_model(model, name="net")
        ours.log_metric("m", 1.0)
    assert info.model_uri == f"runs:/{run.info.run_id}/net"
    assert only(spool, "model") == []
    assert [(e["dropped"], e["reason"]) for e in only(spool, "gap")] == [
        (1, "model net: No space left on device")
    ]


def test_a_model_is_saved_by_its_flavor_and_logged_as_a_folder(spool, tmp_path, monkeypatch):
    """What MLflow loads again from the files in the spool predicts the same."""
    import mlflow.sklearn
    from sklearn.linear_model import LinearRegression
    from spoolagent.writers.mlflow.models import infer_signature

    x = np.arange(8.0).reshape(4, 2)
    model = LinearRegression().fit(x, x[:, 0] * 2)
    signature = infer_signature(x, model.predict(x))
    kept = {"signature": signature, "serialization_format": "cloudpickle"}
    with ours.start_run() as run:
        info = ours.sklearn.log_model(model, name="net", registered_model_name="r", **kept)
        ours.sklearn.log_model(model, "by/place", **kept)
        ours.sklearn.log_model(sk_model=model, artifact_path="by keyword", **kept)
        ours.sklearn.log_model(model, **kept)
    assert (info.model_uri, info.run_id) == (f"runs:/{run.info.run_id}/net", run.info.run_id)
    found = only(spool, "model")
    assert [event["path"] for event in found] == ["net", "by/place", "by keyword", "model"]
    assert {event["flavor"] for event in found} == {"sklearn"}
    for number, event in enumerate(found):
        for file in event["files"]:
            digest = file["blob"]["sha256"]
            (here,) = spool.glob(f"sites/*/blobs/{digest[:2]}/{digest}")
            place = tmp_path / f"model-{number}" / file["path"]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(here.read_bytes())
        again = mlflow.sklearn.load_model(str(tmp_path / f"model-{number}"))
        assert again.predict(x).tolist() == model.predict(x).tolist()
        assert mlflow.models.get_model_info(str(tmp_path / f"model-{number}")).signature == signature
    monkeypatch.setitem(sys.modules, "mlflow.sklearn", None)
    with pytest.raises(
        NotImplementedError, match=r"sklearn\.log_model is not supported offline.*log_artifacts"
    ):
        ours.sklearn.log_model(model, "model")


def test_submodules_can_be_imported_by_name():
    from spoolagent.writers.mlflow.client import MlflowClient as B
    from spoolagent.writers.mlflow.entities import Metric
    from spoolagent.writers.mlflow.exceptions import MlflowException
    from spoolagent.writers.mlflow.tracking import MlflowClient as A
    from spoolagent.writers.mlflow.tracking.context.registry import resolve_tags
    from spoolagent.writers.mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
    from spoolagent.writers.mlflow.utils.validation import MAX_METRICS_PER_BATCH

    assert (MLFLOW_RUN_NAME, MAX_METRICS_PER_BATCH) == ("mlflow.runName", 1000)
    assert resolve_tags is ours.utils.resolve_tags
    assert A is B is ours.MlflowClient
    assert Metric is ours.entities.Metric
    assert MlflowException is ours.MlflowException


# -- what MLflow shows in the end --------------------------------------------------------------------------------


def everything(m, experiment, tick, folder):
    """One script that uses the whole surface."""
    chosen = m.set_experiment(experiment)
    assert (chosen.name, chosen.lifecycle_stage) == (experiment, "active")
    tags = {"team": "a", "n": 3}
    with m.start_run(run_name="first", tags=tags, description="about it") as run:
        assert (run.info.status, run.info.run_name) == ("RUNNING", "first")
        assert run.info.experiment_id == chosen.experiment_id
        log_numbers(m, tick)
        log_words(m, tick)
        log_files(m, tick, folder)
        with m.start_run(nested=True, run_name="child") as child:
            m.log_metric("inner", 1)
            tick()
        with m.start_run(nested=True, run_name="named child", parent_run_id=run.info.run_id):
            m.log_metric("other", 5.5, run_id=child.info.run_id)
        tick()
        m.log_metric("last", 1)
    with pytest.raises(RuntimeError, match="bad"):
        breaks(m)
    m.start_run(run_name="killed")
    m.end_run("KILLED")
    states(m, tick)
    with m.start_run(run_id=run.info.run_id, tags={"again": "yes"}, description="more") as again:
        assert again.info.run_id == run.info.run_id
        tick()
        m.log_metric("late", 1, step=7)
        m.log_param("lr", 0.1)
    by_client(m, chosen, tick)


def breaks(m):
    with m.start_run(run_name="broken", tags={"mlflow.user": "me"}):
        m.log_param("p", 1)
        raise RuntimeError("bad")


def states(m, tick):
    client = m.MlflowClient()

    def begin(name, status):
        ident = m.start_run(run_name=name).info.run_id
        m.end_run(status)
        tick()  # streams are replayed in the order of their creation
        return ident

    with m.start_run(run_id=begin("tried again", "FAILED")):
        m.log_metric("m", 1)
    m.log_metric("m", 1, run_id=begin("failed, then logged to", "FAILED"))
    m.log_metric("m", 1, run_id=begin("finished, then logged to", "FINISHED"))
    ident = begin("changed twice", "FINISHED")
    client.set_terminated(ident, "FAILED")
    tick()
    client.set_tag(ident, "t", 1)
    tick()
    client.set_terminated(ident, "KILLED")
    ident = begin("better after all", "FAILED")
    client.log_metric(ident, "m", 2)
    tick()
    client.set_terminated(ident)
    client.update_run(begin("renamed", "FINISHED"), status="FAILED", name="renamed and failed")


def log_numbers(m, tick):
    m.log_metric("loss", 0.5)
    tick()
    for step in (3, 1, 1, -2, 2**40):
        m.log_metric("loss", 1 / (step + 7), step=step)
        tick()
    m.log_metric("odd", float("nan"), step=1)
    m.log_metric("odd", float("inf"), step=2)
    m.log_metric("odd", float("-inf"), step=3)
    m.log_metric("types", np.float32(0.1), step=1)
    m.log_metric("types", np.array([7]), step=2)
    m.log_metric("types", True, step=3)
    m.log_metric("types", "2.5", step=4)
    m.log_metric("at", 1.0, step=1, timestamp=1_600_000_000_123)
    m.log_metric("a/b c:d.e-f_é", 1e300)
    m.log_metrics({"x": 1, "y": -0.0, "z": 1e-320}, step=2)
    tick()
    m.log_metrics({f"many/{i}": float(i) for i in range(30)}, step=1, timestamp=1_600_000_000_999)


def log_words(m, tick):
    m.log_params({"lr": 0.1, "one": 1.0, "big": 1e22, "small": 1e-7, "n": 7, "wide": 2**70, "flag": True})
    m.log_params(
        {"none": None, "list": [1, "a"], "dict": {"a": (1, 2)}, "nan": float("nan"), "text": "Ünï\n"}
    )
    m.log_param("np", np.float32(0.1))
    m.log_param("lr", "0.1")
    m.log_param("long", "p" * 6001)
    m.log_params({f"p{i}": i for i in range(130)})
    m.set_tag("k", 1)
    m.set_tag("k", [2])
    tick()
    m.set_tags({"long": "t" * 8001, "team": "b", "none": None, "gone": 1})
    tick()
    m.delete_tag("gone")


def log_files(m, tick, folder):
    m.log_artifact(folder / "one.txt")
    m.log_artifact(str(folder / "one.txt"), "deep/er")
    m.log_artifact(str(folder / "tree"))
    m.log_artifact(str(folder / "tree") + "/", "in")
    m.log_artifacts(folder / "tree", "flat")
    m.log_text("<b>é</b>", "page/index.html")
    m.log_text("v1", "twice.txt")
    tick()
    m.log_text("v2", "twice.txt")
    m.log_dict({"a": [1, {2: None}], "when": pathlib.PurePosixPath("x")}, "d/dict.json")
    m.log_dict({"a": [1, {"b": "é"}]}, "d/dict.yaml")
    m.log_dict([1, 2], "list")
    m.log_stream(io.BytesIO(bytes(range(256)) * 300), "bin/raw.bin")
    log_pictures(m)
    m.log_table({"q": ["a", "b"], "score": [0.5, None]}, "tables/eval.json")
    tick()
    m.log_table({"q": "c", "score": 2.0}, "tables/eval.json")


def log_pictures(m):
    from PIL import Image

    rng = np.random.default_rng(0)
    m.log_image(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8), "im/rgb.png")
    m.log_image(rng.random((4, 6)), "im/grey.png")
    m.log_image(rng.random((4, 6, 1)) > 0.5, "im/mask.png")
    m.log_image(Image.fromarray(rng.integers(0, 256, (3, 4, 4), dtype=np.uint8)), "im/rgba.png")
    m.log_image(Image.fromarray(rng.integers(0, 60000, (3, 4)).astype(np.uint16)), "im/deep.png")
    m.log_image(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8), "im/photo.jpg")
    m.log_image(rng.integers(0, 256, (30, 7, 3), dtype=np.uint8), key="val/dogs", step=3)
    m.log_image(Image.new("L", (8, 5), 77), key="cat", timestamp=1_600_000_000_555)
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([1, 2, 4])
    m.log_figure(figure, "fig/line.png")
    m.log_figure(figure, "fig/tight.png", save_kwargs={"bbox_inches": "tight", "dpi": 50})


def by_client(m, chosen, tick):
    """The calls of Lightning's MLFlowLogger, and a parent set by tag."""
    client, E = m.MlflowClient(), m.entities
    assert client.get_experiment_by_name(chosen.name).experiment_id == chosen.experiment_id
    tags = {"mlflow.runName": "lightning", "mlflow.source.name": "train.py", "k": "v"}
    run = client.create_run(experiment_id=chosen.experiment_id, tags=tags)
    ident = run.info.run_id
    assert client.get_run(ident).info.status == "RUNNING"
    client.log_batch(run_id=ident, params=[E.Param(key=f"h/{i}", value=str(i)[:250]) for i in range(3)])
    for step in range(4):
        points = [
            E.Metric(key=k, value=step / 3, timestamp=1_650_000_000_000 + step, step=step)
            for k in ("train_loss", "epoch")
        ]
        client.log_batch(run_id=ident, metrics=points)
    client.log_batch(
        ident, metrics=[E.Metric("train_loss", 9.0, 1_650_000_000_000, 1)] * 2, tags=[E.RunTag("b", "1")]
    )
    client.log_metric(ident, "one", 2, timestamp=1_650_000_000_777, step=5)
    client.log_param(ident, "p", 0.25)
    client.set_tag(ident, "t", 1.5)
    client.log_text(ident, "hello", "a/b.txt")
    tick()
    client.set_terminated(ident, "FINISHED", end_time=1_650_000_009_999)
    under = client.create_run(chosen.experiment_id, run_name="under", tags={"mlflow.parentRunId": ident})
    client.set_terminated(under.info.run_id, status="FAILED")
    client.update_run(under.info.run_id, name="under it")


@pytest.mark.filterwarnings("ignore")
def test_mlflow_shows_what_direct_logging_shows(store, spool, experiment, tmp_path):
    uri, real = store
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "one.txt").write_text("one")
    (tmp_path / "tree" / "a.txt").write_text("a" * 3000)
    (tmp_path / "tree" / "sub" / "b.bin").write_bytes(b"\0\xff")
    for m, name in ((real, experiment), (ours, f"{experiment}-ours")):
        with pytest.MonkeyPatch.context() as patch:
            clock = Clock(patch)
            everything(m, name, clock.tick, tmp_path)
    finish_all()
    replay(spool, uri)
    client = real.MlflowClient()
    theirs, mine = shown(client, experiment), shown(client, f"{experiment}-ours")
    assert set(mine) == set(theirs)
    assert len(theirs["first"]["files"]) >= 25
    for name, run in theirs.items():
        for part, value in run.items():
            assert mine[name][part] == value, (name, part)


FILTERS = [
    "",
    "metrics.acc > 0.85",
    "metrics.acc >= 0.9 and params.lr = '0.01'",
    "metrics.`two words` = 3 AND tags.grp != 'x'",
    "metric.acc < 1 and param.lr LIKE '0.0%'",
    "params.opt ILIKE 'ADA_'",
    "tags.\"a.b\" = 'c d'",
    "attributes.status = 'FINISHED'",
    "status != 'FAILED'",
    "attributes.run_name = 'run 1'",
    "attributes.`run name` LIKE 'run%'",
    "metrics.nope > 0",
    "params.none IS NULL",
    'params.lr IS NOT NULL and tags.grp = "x"',
    "metrics.acc > 'x'",
    "params.lr = 0.1",
    "nonsense.a = 'b'",
    "metrics.acc >",
    "metrics.acc > 1 or metrics.acc < 1",
    "attributes.nope = 'x'",
]
ORDERS = [
    None,
    ["metrics.acc DESC"],
    ["metrics.acc ASC", "params.lr DESC"],
    ["metrics.odd"],
    ["params.lr ASC"],
    ["tags.grp", "metrics.acc desc"],
    ["attributes.run_name DESC"],
    ["run_name"],
    ["start_time ASC"],
    ["metrics.`two words` DESC"],
    ["metrics.acc SIDEWAYS"],
]


def searches(m, experiment, tick):
    """What each filter and each order finds among four runs."""
    ident = m.set_experiment(experiment).experiment_id
    for number, lr in enumerate((0.1, 0.01, 0.001, 0.0001)):
        tick()
        with m.start_run(run_name=f"run {number}"):
            m.log_params(
                {"lr": lr, "opt": "Adam" if number else "sgd"} | ({"none": 1} if number == 3 else {})
            )
            m.log_metrics({"acc": (0.8, 0.9, 0.9, 0.95)[number], "two words": number})
            if number != 2:
                m.log_metric("odd", (5.0, float("nan"), 0, float("inf"))[number])
            m.set_tags({"grp": "xyxy"[number], "a.b": "c d"} if number else {"grp": "x"})
    tick()
    m.MlflowClient().set_terminated(m.start_run(run_name="run 4").info.run_id, "FAILED")
    m.end_run("FAILED")
    said = []
    for of, given in [("filter_string", f) for f in FILTERS] + [("order_by", o) for o in ORDERS]:
        try:
            found = m.search_runs([ident], output_format="list", **{of: given})
            said.append((given, [run.info.run_name for run in found]))
        except m.MlflowException as error:
            said.append((given, error.error_code))
    best = m.MlflowClient().search_runs([ident], order_by=["metrics.acc DESC"], max_results=1)
    said.append([(run.info.run_name, run.data.metrics, run.data.params) for run in best])
    table = m.search_runs(experiment_names=[experiment], order_by=["run_name"])
    said.append(
        (sorted(c for c in table.columns if not c.startswith("tags.mlflow")), str(table.dtypes["start_time"]))
    )
    said.append(
        [table[c].fillna("-").tolist() for c in ("metrics.acc", "metrics.odd", "params.none", "tags.a.b")]
    )
    said.append(m.search_runs(experiment_names=["no such experiment"]).shape[0])
    return said


@pytest.mark.filterwarnings("ignore")
def test_searches_find_what_mlflow_finds(store, spool, experiment):
    _, real = store
    said = []
    for m, name in ((real, experiment), (ours, f"{experiment}-ours")):
        with pytest.MonkeyPatch.context() as patch:
            said.append(searches(m, name, Clock(patch).tick))
    assert [(mine, theirs) for theirs, mine in zip(*said, strict=True) if mine != theirs] == []
    finish_all()


SCRIPT = """
    if {real}:
        import mlflow
        mlflow.set_tracking_uri({uri!r})
    else:
        import spoolagent.writers.mlflow as mlflow
    mlflow.set_experiment({experiment!r})
    mlflow.log_metric("a", 1.5, timestamp=5000)       # starts a run
    mlflow.set_tag("mlflow.runName", "left open")
    mlflow.log_param("p", "x")
"""


def test_a_script_that_never_ends_its_run(store, spool, experiment, tmp_path):
    uri, real = store
    for direct, name in ((True, experiment), (False, f"{experiment}-ours")):
        text = SCRIPT.format(real=direct, uri=uri, experiment=name)
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(text))
        subprocess.run([sys.executable, str(path)], check=True, cwd=tmp_path, timeout=120)
    replay(spool, uri)
    client = real.MlflowClient()
    theirs, mine = shown(client, experiment), shown(client, f"{experiment}-ours")
    theirs, mine = theirs["left open"], mine["left open"]
    assert mine.pop("start") >= theirs.pop("start")
    assert mine.pop("end") >= theirs.pop("end")
    assert mine == theirs
    assert mine["status"] == "FINISHED"
    assert mine["tags"]["mlflow.source.name"].endswith("script.py")


# -- runs and experiments ------------------------------------------------------------------------------------------


def test_names_and_ids_are_made_up_as_there(spool, monkeypatch):
    runs = [ours.MlflowClient().create_run("0") for _ in range(5)]
    names = [run.info.run_name for run in runs]
    assert all(len(name.split("-")) == 3 and name.split("-")[2].isdigit() for name in names)
    assert len(set(names)) > 1
    assert [start["name"] for start in only(spool, "run_start")] == names
    assert {start["experiment"] for start in only(spool, "run_start")} == {"Default"}
    ident = ours.create_experiment("ids follow from names " + uuid.uuid4().hex)
    assert ident.isdigit()
    assert len(ident) == 18
    with pytest.raises(ours.MlflowException) as caught:
        ours.create_experiment(ours.get_experiment(ident).name)
    assert caught.value.error_code == "RESOURCE_ALREADY_EXISTS"


def test_the_environment_chooses_run_and_experiment(spool, monkeypatch, experiment):
    monkeypatch.setattr("spoolagent.writers.mlflow_active._active.experiment", None)
    monkeypatch.setattr("spoolagent.writers.mlflow_book._taken", set())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    first = f"job-{uuid.uuid4().hex}"
    monkeypatch.setenv("SPOOLAGENT_RUN", first)
    assert ours.get_tracking_uri() == "http://127.0.0.1:9"
    with ours.start_run() as run, ours.start_run(nested=True) as child:
        assert run.info.run_id == first
        assert child.info.run_id != first
    with ours.start_run() as other:
        assert other.info.run_id not in (first, child.info.run_id)
    starts = only(spool, "run_start")
    assert [start["experiment"] for start in starts] == [experiment] * 3
    assert [start.get("parent") for start in starts] == [None, first, None]
    monkeypatch.setenv("MLFLOW_RUN_ID", other.info.run_id)
    with ours.start_run() as again:
        assert again.info.run_id == other.info.run_id
        assert "MLFLOW_RUN_ID" not in os.environ
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    with pytest.raises(ours.MlflowException, match="MLFLOW_EXPERIMENT_ID=77"):
        ours.start_run()


def test_set_experiment_reaches_processes_started_from_here(spool, monkeypatch, experiment):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "before")
    monkeypatch.setattr("spoolagent.writers.mlflow_active._active.experiment", None)
    ours.set_experiment(experiment)
    code = "import spoolagent.writers.mlflow as m; m.log_metric('a', 1)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert [start["experiment"] for start in only(spool, "run_start")] == [experiment]
    assert only(spool, "run_start")[0]["tags"]["mlflow.source.name"] == "-c"


def test_another_process_goes_on_with_a_run(spool, experiment):
    with ours.start_run(experiment_id=ours.create_experiment(experiment), run_name="mine") as run:
        ours.log_metric("a", 1, step=1)
    ident = run.info.run_id
    code = f"""
        import spoolagent.writers.mlflow as m
        old = m.get_run({ident!r})
        assert (old.info.run_name, old.data.tags["mlflow.source.type"]) == ("mine", "LOCAL"), old
        assert m.MlflowClient().get_experiment(old.info.experiment_id).name == {experiment!r}
        with m.start_run(run_id={ident!r}) as run:
            assert run.info.run_name == "mine"
            m.log_metric("a", 2, step=2)
        m.MlflowClient().log_metric("run-of-another-machine", "b", 3)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)
    streams = list(read_spool(spool).items())
    assert [(k.run, header.attempt) for k, (header, _) in streams] == [
        (ident, 1),
        (ident, 2),
        ("run-of-another-machine", 1),
    ]
    second = streams[1][1][1][0].data
    assert (second["experiment"], second["name"], second.get("tags")) == (experiment, "mine", None)
    assert [(e["metrics"], e["step"]) for e in only(spool, "metrics")] == [
        ({"a": 1.0}, 1),
        ({"a": 2.0}, 2),
        ({"b": 3.0}, 0),
    ]
    with pytest.raises(ours.MlflowException, match="not found"):
        ours.get_run("never-heard-of")


def test_a_run_belongs_to_its_experiment(spool, monkeypatch, experiment):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "any")
    monkeypatch.setattr("spoolagent.writers.mlflow_active._active.experiment", None)
    with ours.start_run() as run:
        pass
    ours.set_experiment(experiment)
    with pytest.raises(ours.MlflowException, match="belongs to experiment 'any'"):
        ours.start_run(run_id=run.info.run_id)


# -- events ----------------------------------------------------------------------------------------------------------


def test_events_hold_values_that_give_mlflows_text(spool):
    with ours.start_run(tags={"a": 1}, description="d"):
        ours.log_params({"f": 1.0, "i": 3, "b": False, "n": None, "s": "x", "l": [1], "np": np.float32(0.1)})
        ours.log_metric("m", np.float32(0.1))
        ours.log_metric("m", float("nan"), step=2, timestamp=1_600_000_000_001)
    start = only(spool, "run_start")[0]
    assert (start["api"], start["notes"], start["tags"]["a"]) == ("mlflow", "d", "1")
    assert set(start["tags"]) >= {"mlflow.user", "mlflow.source.name", "mlflow.source.type"}
    assert not {"mlflow.runName", "mlflow.note.content", "mlflow.parentRunId"} & set(start["tags"])
    params, first, second = fields(spool)
    assert params["params"] == {"f": 1.0, "i": 3, "b": False, "n": "None", "s": "x", "l": "[1]", "np": "0.1"}
    assert first == {"metrics": {"m": float(np.float32(0.1))}, "step": 0}
    assert second == {"metrics": {"m": "NaN"}, "step": 2, "at": 1_600_000_000_001_000_000}


def test_large_calls_are_split_and_kept_whole(spool):
    tags = {f"t{i}": "é" * 8000 for i in range(40)}
    params = {f"p{i}": "\x01" * 6000 for i in range(60)}
    names = {("é" * 240) + str(i): float(i) for i in range(1200)}
    with ours.start_run(tags=tags, description="é" * 20_000):
        ours.log_params(params)
        ours.log_metrics(names)
        ours.log_text("é" * 2_000_000, "big.txt")
        ours.log_table({"c": ["x" * 1000] * 2000}, "big.json")
    found = {"tags": {}, "params": {}, "metrics": {}}
    for event in only(spool, "tag", "param", "metrics"):
        for kind in set(found) & set(event):
            found[kind] |= event[kind]
    assert {k: v for k, v in found["tags"].items() if k.startswith("t")} == tags
    assert found["params"] == params
    assert found["metrics"] == names
    assert [(e["type"], e["blob"]["size"] > 10**6) for e in only(spool, "text", "table")] == [
        ("text", True),
        ("table", True),
    ]


def test_a_batch_that_is_refused_logs_nothing(spool):
    entities, client = ours.entities, ours.MlflowClient()
    good, bad = entities.Metric("m", 1, 5, 1), entities.Metric("a//b", 1, 5, 1)
    with ours.start_run() as run:
        param, tag = entities.Param("p", "1"), entities.RunTag("t", "1")
        for batch in (
            ([good, bad], [param], [tag]),
            ([good], [entities.Param("/p", "1")], [tag]),
            ([good], [param], [entities.RunTag("a@b", "1")]),
        ):
            with pytest.raises(ours.MlflowException):
                client.log_batch(run.info.run_id, *batch)
        assert fields(spool) == []
        client.log_batch(run.info.run_id, [good], [param], [tag])
    assert fields(spool) == [
        {"params": {"p": "1"}},
        {"metrics": {"m": 1.0}, "step": 1, "at": 5_000_000},
        {"tags": {"t": "1"}},
    ]


def test_an_image_is_stored_as_pixels(spool):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    with ours.start_run():
        ours.log_image(pixels, "a/b.png")
        ours.log_image(pixels, key="k", step=4, timestamp=1000)
    whole = {
        "encoding": "raw",
        "height": 2,
        "width": 4,
        "channels": 3,
        "blob": {"sha256": only(spool)[0]["blob"]["sha256"], "size": 24},
    }
    assert fields(spool) == [
        {"key": "a/b.png", "path": "a/b.png", **whole},
        {"key": "k", "step": 4, "at": 10**9, **whole},
    ]


# -- threads, forks, disks -------------------------------------------------------------------------------------------


def test_each_thread_has_its_own_active_run(spool):
    seen, failures = {}, []

    def work(i):
        try:
            assert ours.active_run() is None
            with ours.start_run(run_name=f"t{i}") as run:
                seen[i] = run.info.run_id
                for step in range(50):
                    ours.log_metric("m", float(i), step=step)
                    ours.log_metric(f"shared/{i}", float(step), step=step, run_id=shared)
        except BaseException as error:
            failures.append(error)

    with ours.start_run(run_name="main") as main:
        shared = main.info.run_id
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ours.active_run().info.run_id == shared
    assert failures == []
    found = {key.run: events for key, (_, events) in read_spool(spool).items()}
    for i, ident in seen.items():
        points = [(e.data["metrics"], e.step) for e in found[ident] if e.type == "metrics"]
        assert points == [({"m": float(i)}, step) for step in range(50)]
        shared_points = [e for e in found[shared] if f"shared/{i}" in e.data.get("metrics", {})]
        assert [e.step for e in shared_points] == list(range(50))
    assert found[shared][-1].data["status"] == "finished"


def test_a_forked_child_has_no_active_run_and_may_log_to_the_parents(spool):
    with ours.start_run() as run:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if ours.active_run() is None:
                    ours.log_metric("child", 1.0, run_id=run.info.run_id)
                    code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        ours.log_metric("parent", 1.0)
    roles = {header.role: events for header, events in read_spool(spool).values()}
    assert [e.data["metrics"] for e in roles["aux"] if e.type == "metrics"] == [{"child": 1.0}]
    assert [e.data["metrics"] for e in roles["main"] if e.type == "metrics"] == [{"parent": 1.0}]


def test_nothing_raises_for_a_full_disk(spool, tmp_path, capfd):
    source = tmp_path / "f.txt"
    source.write_text("x")
    with ours.start_run():
        set_fault(_full)
        try:
            ours.log_metric("m", 1.0)
            ours.log_param("p", 1)
            ours.set_tag("t", 1)
            ours.log_text("x" * 10, "a.txt")
            ours.log_artifact(source)
            ours.log_image(np.zeros((2, 2), np.uint8), "a.png")
            ours.log_stream(io.BytesIO(b"x"), "b.bin")
            ours.log_table({"a": [1]}, "t.json")
            with ours.start_run(nested=True):
                ours.log_metric("m", 2.0)
        finally:
            set_fault(None)
    assert capfd.readouterr().err.count("cannot write to the spool") >= 1


def _full(operation, path):
    raise OSError(28, "No space left on device", path)


# -- cost ------------------------------------------------------------------------------------------------------------

HEAVY = "mlflow logging tempfile socket subprocess numpy pandas PIL random getpass yaml json matplotlib"


def test_the_import_is_light():
    code = "import sys, spoolagent.writers.mlflow; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    bare = subprocess.run(
        [sys.executable, "-c", "import sys, orjson; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert "spoolagent.writers.mlflow" in loaded
    assert set(HEAVY.split()) & (set(loaded) - set(bare)) == set()
    assert not [name for name in loaded if name.startswith("mlflow")]
