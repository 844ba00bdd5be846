"""What a training process may do to a writer: it goes on, and says the truth about the run."""

import subprocess
import sys

import numpy as np
import orjson
import pytest
from cli_help import clean_env
from writer_help import only

import spoolagent.writers.mlflow as mlflow
import spoolagent.writers.wandb as wandb
from spoolagent.cli.common import print_json
from spoolagent.writers import Run
from spoolagent.writers.tensorboard import SummaryWriter


def script(tmp_path, text):
    """Runs a training script in a process of its own; its spool is `tmp_path/spool`."""
    env = clean_env(SPOOLAGENT_SPOOL=str(tmp_path / "spool"), SPOOLAGENT_SITE="a", SPOOLAGENT_RUN="r")
    return subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )


def test_sys_exit_in_a_thread_does_not_fail_the_run(tmp_path):
    done = script(
        tmp_path,
        "import sys, threading\n"
        "from spoolagent.writers import Run\n"
        "Run()\n"
        "thread = threading.Thread(target=lambda: sys.exit(3))\n"
        "thread.start(); thread.join()\n",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert only(tmp_path / "spool", "run_end")[0]["status"] == "finished"


def test_a_working_directory_that_is_gone_costs_events_and_not_the_training(tmp_path):
    done = script(
        tmp_path,
        "import os\n"
        "os.mkdir('x'); os.chdir('x'); os.rmdir('../x')\n"
        "os.environ['SPOOLAGENT_SPOOL'] = 'spool'\n"
        "from spoolagent.writers import Run\n"
        "run = Run(); run.log({'a': 1}); print(run.dropped)\n",
    )
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert "cannot write to the spool" in done.stderr


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("SPOOLAGENT_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("SPOOLAGENT_SITE", "a")
    return tmp_path / "spool"


def test_what_describes_a_run_and_fits_in_no_line_is_cut_or_told_later(place):
    tags = {f"t{i}": "x" * 100 for i in range(20_000)}
    labels = [f"label-{i}" for i in range(60_000)]
    config = {f"k{i}": "v" * 100 for i in range(20_000)}
    with Run(name="n" * 3_000_000, notes="ü" * 3_000_000, tags=tags, labels=labels, config=config) as run:
        run.log({"a": 1.0})
    (start,) = only(place, "run_start")
    assert (start["name"], start["notes"]) == ("n" * 4000, "ü" * 4000)
    assert {k: v for e in only(place, "tag") for k, v in e["tags"].items()} == tags
    assert {k: v for e in only(place, "param") for k, v in e["params"].items()} == config
    assert [e["data"] for e in only(place, "custom")] == [{"labels": labels}]
    assert run.dropped == 2  # each text that was cut is on record
    assert sum(e["dropped"] for e in only(place, "gap")) == 2


@pytest.mark.parametrize("step", [1 << 63, (1 << 64) - 1, 1 << 64, -(1 << 63) - 1, np.uint64((1 << 64) - 1)])
def test_a_step_beyond_64_bits_is_refused_and_the_run_goes_on(place, step):
    with Run() as run:
        with pytest.raises(ValueError, match="64 bits"):
            run.log({"a": 1}, step=step)
        run.log({"a": 1}, step=7)
    mine = wandb.init(id="w")
    with pytest.raises(ValueError, match="64 bits"):
        wandb.log({"a": 1}, step=step)
    wandb.log({"a": 1})
    mine.finish()
    assert [event["step"] for event in only(place, "metrics")] == [7, 0]


BIG = "x" * (2 << 20)
"""A text of 2 MiB: what every real library takes without a word."""


def _wandb(call):
    def run():
        with wandb.init(project="p") as run:
            call(run)

    return run


def _mlflow(call):
    def run():
        with mlflow.start_run():
            call()

    return run


def _board(call):
    def run():
        with SummaryWriter() as writer:
            call(writer)

    return run


HUGE = {
    "wandb config value": _wandb(lambda run: run.config.update({"a": BIG, "b": 1})),
    "wandb config names": _wandb(lambda run: run.config.update({f"k{i}": i for i in range(100_000)})),
    "wandb summary value": _wandb(lambda run: run.summary.update({"a": BIG, "b": 1})),
    "wandb metrics": _wandb(lambda run: run.log({f"m{i}": i / 7 for i in range(100_000)})),
    "wandb text": _wandb(lambda run: run.log({"t": BIG})),
    "wandb name of a metric": _wandb(lambda run: run.log({BIG: 1.0})),
    "wandb list": _wandb(lambda run: run.log({"t": [BIG]})),
    "wandb name": _wandb(lambda run: setattr(run, "name", BIG)),
    "wandb notes": _wandb(lambda run: setattr(run, "notes", BIG)),
    "wandb tags": _wandb(lambda run: setattr(run, "tags", [f"t{i}" for i in range(200_000)])),
    "wandb alert": _wandb(lambda run: run.alert("t", BIG)),
    "wandb define_metric": _wandb(lambda run: run.define_metric(BIG)),
    "wandb table": _wandb(lambda run: run.log({"t": wandb.Table(columns=["a"], data=[[BIG]])})),
    "wandb init": lambda: wandb.init(
        name=BIG, notes=BIG, group=BIG, job_type=BIG, config={"a": BIG}
    ).finish(),
    "wandb artifact": _wandb(
        lambda run: run.log_artifact(wandb.Artifact("a", "t", description=BIG, metadata={"m": BIG}))
    ),
    "mlflow params": _mlflow(lambda: mlflow.log_params({f"k{i}": "y" * 5000 for i in range(300)})),
    "mlflow param": _mlflow(lambda: mlflow.log_param("k", BIG)),
    "mlflow tags": _mlflow(lambda: mlflow.set_tags({f"k{i}": "y" * 5000 for i in range(300)})),
    "mlflow tag": _mlflow(lambda: mlflow.set_tag("k", BIG)),
    "mlflow name": _mlflow(lambda: mlflow.set_tag("mlflow.runName", BIG)),
    "mlflow dict": _mlflow(lambda: mlflow.log_dict({"a": BIG}, "d.json")),
    "mlflow text": _mlflow(lambda: mlflow.log_text(BIG, "d.txt")),
    "mlflow table": _mlflow(lambda: mlflow.log_table({"a": [BIG]}, "t.json")),
    "mlflow metrics": _mlflow(lambda: mlflow.log_metrics({f"m{i}": 1.0 for i in range(100_000)})),
    "tensorboard tag": _board(lambda writer: writer.add_scalar(BIG, 1.0)),
    "tensorboard text": _board(lambda writer: writer.add_text("t", BIG)),
    "tensorboard hparams": _board(lambda writer: writer.add_hparams({"t": BIG}, {"m": 1.0})),
    "tensorboard histogram": _board(
        lambda writer: writer.add_histogram("h", np.arange(300_000.0), bins=200_000)
    ),
}
"""Calls of more than a line holds; each one was tried with the real library, which takes it."""
DROPPED = {
    *("wandb config value", "wandb summary value", "wandb name of a metric", "wandb name", "wandb notes"),
    *("wandb tags", "wandb alert", "wandb define_metric", "wandb init", "wandb artifact", "tensorboard tag"),
    *("tensorboard hparams", "tensorboard histogram"),
}
"""Those of which a value fits in no line and has no blob: on record as dropped."""

KEPT = {
    "wandb config value": 1,
    "wandb config names": 100_000,
    "wandb summary value": 1,
    "wandb metrics": 100_000,
    "mlflow params": 300,
    "mlflow tags": 300,
    "mlflow metrics": 100_000,
}
"""How many names are stored of those that have many."""


@pytest.mark.parametrize("what", HUGE)
def test_more_than_a_line_holds_is_stored_or_a_drop_on_record(what, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    HUGE[what]()
    found = only(place)
    assert any(e["type"] == "gap" for e in found) == (what in DROPPED)
    fields = ("params", "tags", "summary", "metrics")
    names = {name for e in found for field in fields for name in e.get(field) or ()}
    assert len(names) >= KEPT.get(what, 0)


def test_a_time_that_is_no_int_is_refused(place):
    with Run() as run, pytest.raises(TypeError, match="at_ns must be an int"):
        run.log({"a": 1}, at_ns=1.5)  # type: ignore[arg-type]


def test_numpys_long_double_is_a_number_for_wandb(place):
    run = wandb.init(id="w", config={"c": np.longdouble(1.5)})
    wandb.log({"a": np.longdouble(2.5), "b": np.array([np.longdouble(3.5)])})
    run.finish()
    assert only(place, "metrics")[0]["metrics"] == {"a": 2.5, "b": 3.5}


def test_json_of_a_name_that_is_no_utf8(capfdbinary):
    print_json({"path": b"a\xff".decode("utf-8", "surrogateescape"), "more": [1, None]}, line=True)
    assert orjson.loads(capfdbinary.readouterr().out) == {"path": "a\\xff", "more": [1, None]}
