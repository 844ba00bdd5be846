"""What people get wrong: one clear line that names the next step, the right exit code, no traceback, nothing lost.

tests/test_cli.py has the rows of unknown receivers, misspelt keys and spools of format 2 for the reading verbs; here
are those of training scripts, of `ship`, `serve` and `replay` into every kind of target, and that nothing is lost.
"""

import os

import pytest
from acceptance_help import assert_delivered_once, json_lines, run, script, site_env, spool_streams, to
from cli_help import forked
from mlflow_help import free_port
from tb_help import tree

TRAINING = """
from spoolagent.writers import Run
with Run() as run:
    for step in range(20):
        run.log({"loss": step / 8}, step)
    print("trained", run.dropped)
"""


@pytest.fixture
def place(tmp_path):
    """A working directory with `spool`, a run in it, and `file`, which is no directory."""
    training = script(TRAINING, cwd=tmp_path, env=site_env(tmp_path / "spool", "site-1", "run-1"))
    assert training.wait() == 0, training.said
    (tmp_path / "file").write_text("mine")
    return tmp_path


def says(code, *args, cwd, env=None):
    """The one line that a command says on standard error before it exits with `code`."""
    done = forked(*args, cwd=cwd, env=env)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("spoolagent: ")
    return line.removeprefix("spoolagent: ")


def kept(place):
    """Everything in the spool but what agents keep for themselves."""
    return {k: v for k, v in tree(place / "spool").items() if not k.startswith(".agent/")}


def targets(place):
    """Each kind of receiver with a file where it needs a directory."""
    return {
        "tensorboard": f"tensorboard:{place}/file",
        "tensorboard below": f"tensorboard:{place}/file/tb",
        "wandb": f"wandb:offline:{place}/file",
        "wandb below": f"wandb:offline:{place}/file/wandb",
        "jsonl below": f"jsonl:{place}/file/events.jsonl",
        "jsonl": f"jsonl:{place}/file",
        "mlflow": f"mlflow:sqlite:///{place}/file/mlflow.db",
    }


@pytest.mark.parametrize(
    "kind", ["tensorboard", "tensorboard below", "wandb", "wandb below", "jsonl", "jsonl below", "mlflow"]
)
def test_a_file_where_a_directory_should_be(kind, place):
    before = kept(place)
    line = says(2, "replay", "spool", "--to", targets(place)[kind], cwd=place)
    assert f"{place}/file" in line
    assert ": " in line
    assert any(word in line for word in ("choose", "give", "name", "write", "make", "move")), line
    assert kept(place) == before
    assert (place / "file").read_text() == "mine"


@pytest.mark.parametrize("verb", ["replay", "serve", "ship"])
def test_a_spool_that_is_a_file_or_of_format_2(verb, place):
    target = ["--to", "target", "--once"] if verb == "ship" else ["--to", "jsonl:out.jsonl"]
    spool = (lambda path: [path]) if verb == "replay" else (lambda path: ["--spool", path])
    line = says(2, verb, *spool("file"), *target, cwd=place)
    assert f"{place}/file is a file, not a spool directory" in line
    (place / "spool/spool.json").write_text('{"format":2,"spool":"x"}')
    before = kept(place)
    line = says(1, verb, *spool("spool"), *target, cwd=place)
    assert line == f"{place}/spool/spool.json says format 2, this version reads format 1: upgrade spoolagent"
    assert kept(place) == before
    assert not (place / "out.jsonl").exists()


def test_ship_into_a_spool_of_format_2(place):
    (place / "target").mkdir()
    (place / "target/spool.json").write_text('{"format":2,"spool":"x"}')
    line = says(1, "ship", "--spool", "spool", "--to", "target", "--once", cwd=place)
    assert "format 2" in line
    assert "upgrade" in line
    assert os.listdir(place / "target") == ["spool.json"]


def test_an_unknown_receiver_in_every_place(place):
    before = kept(place)
    expected = "unknown receiver kind 'mlflo': did you mean 'mlflow'?"
    for verb in (["replay", "spool"], ["serve", "--spool", "spool"]):
        assert says(2, *verb, *to("jsonl:out.jsonl", "mlflo:http://h"), cwd=place) == f"--to: {expected}"
    (place / "c.toml").write_text(
        'spool = "spool"\n[receivers.m]\nto = "mlflo:http://h"\n[serve]\nto = ["m"]\n'
    )
    for verb in (["replay"], ["serve"], ["config", "check"]):
        assert says(2, *verb, "--config", "c.toml", cwd=place) == f"c.toml: receivers.m.to: {expected}"
    assert kept(place) == before
    assert not (place / "out.jsonl").exists()


def test_a_misspelt_key_in_every_table(place):
    for text, said in {
        'spol = "x"\n': "unknown key 'spol': did you mean 'spool'?",
        "[agent]\nsweep_intervall = 1\n": "unknown key 'agent.sweep_intervall': did you mean 'sweep_interval'?",
        '[shipp]\nto = "x"\n': "unknown key 'shipp': did you mean 'ship'?",
        '[receivers.a]\nto = "jsonl:x"\nmax_event = 1\n': "receivers.a.max_event: unknown key: did you mean 'max_events'?",
        '[receivers.a]\nto = "jsonl:x"\n[serve]\nto = ["b"]\n': "serve.to: no receiver is called 'b'",
    }.items():
        (place / "spoolagent.toml").write_text(text)
        line = says(2, "replay", "spool", cwd=place)
        assert line.startswith("spoolagent.toml: ")
        assert said in line


def test_an_unreachable_mlflow(place):
    before, uri = kept(place), f"http://127.0.0.1:{free_port()}"
    line = says(3, "replay", "spool", *to(f"mlflow:{uri}", "jsonl:out.jsonl"), cwd=place)
    assert uri in line
    assert kept(place) == before
    assert json_lines(place / "out.jsonl") == []
    done = run("replay", "spool", "--to", "jsonl:out.jsonl", cwd=place)
    assert done.returncode == 0, done.stderr
    streams = spool_streams(place / "spool", "site-1", "run-1")
    assert_delivered_once(json_lines(place / "out.jsonl"), streams, "site-1", "run-1")


def test_an_agent_directory_that_cannot_be_made(place):
    """The agent keeps its cursors in the spool: where it cannot, it says so and delivers nothing."""
    (place / "spool/.agent").write_text("in the way")
    before = kept(place)
    line = says(1, "replay", "spool", "--to", "jsonl:out.jsonl", cwd=place)
    assert f"{place}/spool/.agent" in line
    assert kept(place) == before
    assert json_lines(place / "out.jsonl") == []


# -- training scripts: they go on, and say it once ---------------------------------------------------------------------


APIS = {
    "native": TRAINING,
    "tensorboard": """
from spoolagent.writers.tensorboard import SummaryWriter
import numpy as np
with SummaryWriter("logs") as run:
    for step in range(20):
        run.add_scalar("loss", step / 8, step)
    run.add_image("pic", np.zeros((3, 2, 2), dtype=np.uint8), 1)
print("trained")
""",
    "mlflow": """
import spoolagent.writers.mlflow as mlflow
with mlflow.start_run():
    mlflow.log_param("lr", 0.1)
    for step in range(20):
        mlflow.log_metric("loss", step / 8, step=step)
    mlflow.log_text("a", "a.txt")
print("trained")
""",
    "wandb": """
import spoolagent.writers.wandb as wandb
with wandb.init(project="p", dir=".") as run:
    for step in range(20):
        run.log({"loss": step / 8})
print("trained")
""",
}


def _unwritable(kind, place):
    """A spool that cannot be written to, also by root."""
    if kind == "a file":
        return place / "file"
    if kind == "below a file":
        return place / "file/spool"
    if kind == "a read-only file system":
        return "/proc/spool"
    (place / "newer").mkdir()
    (place / "newer/spool.json").write_text('{"format":2,"spool":"x"}')
    return place / "newer"


@pytest.mark.parametrize("kind", ["a file", "below a file", "a read-only file system", "format 2"])
@pytest.mark.parametrize("api", list(APIS))
def test_training_goes_on_without_a_spool(api, kind, place):
    """Exit code 0; it says once what is wrong, at the end how much was dropped, and touches nothing that is there."""
    spool = _unwritable(kind, place)
    training = script(APIS[api], cwd=place, env=site_env(spool, "site-1", "run-2"), name="training")
    assert training.wait() == 0, training.said
    assert "Traceback" not in training.said
    assert "trained" in training.said
    warnings = [line for line in training.said.splitlines() if str(spool) in line]
    assert len(warnings) == 1, training.said
    assert training.said.count("were dropped, and the spool took no record of it") == 1, training.said
    assert (place / "file").read_text() == "mine"
    if kind == "format 2":
        assert os.listdir(spool) == ["spool.json"]
        assert "upgrade" in warnings[0]


@pytest.mark.parametrize("api", list(APIS))
def test_an_illegal_site_is_the_callers_mistake(api, place):
    """A name is never cleaned up into a legal one: the script fails at once, by an exception that names it."""
    training = script(APIS[api], cwd=place, env=site_env(place / "spool", "../x", "run-2"), name="training")
    assert training.wait() == 1, training.said
    assert "'../x'" in training.said.splitlines()[-1]
    assert "trained" not in training.said
