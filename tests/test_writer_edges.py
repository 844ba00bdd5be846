"""What a training process may do to a writer: it goes on, and says the truth about the run."""

import subprocess
import sys

import numpy as np
import orjson
import pytest
from cli_help import clean_env
from writer_help import only

import spoolagent.writers.wandb as wandb
from spoolagent.cli.common import print_json
from spoolagent.errors import EventTooLarge
from spoolagent.writers import Run


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


@pytest.mark.parametrize("more", [{"name": "x" * 3_000_000}, {"tags": {"t": "x" * 3_000_000}}])
def test_a_start_that_fits_in_no_line_is_refused_before_anything_happens(place, more):
    with pytest.raises(EventTooLarge, match="what describes the run"):
        Run(**more)
    assert not place.exists()


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
