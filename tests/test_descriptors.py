"""A training process that has no file descriptor left: it goes on, and so does the log when there are some again."""

import subprocess
import sys

import pytest
from cli_help import clean_env
from writer_help import read_spool

BEGIN = """
import os, resource, time, traceback
import numpy as np
held = []

def exhaust(left):
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    while True:
        try:
            held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            break
    for _ in range(left):
        os.close(held.pop())

def free():
    while held:
        os.close(held.pop())
    time.sleep(1.1)  # a spool that refused is tried again after a second

pixels, big = np.zeros((3, 4, 4), np.uint8), "x" * 300_000
"""
SCRIPTS = {
    "native": """
from spoolagent.writers import Run
START
run = Run(config={"a": 1})
def log(step):
    run.log({"a": step}, step=step)
def more():
    run.log_text("t", big)
    run.log_image("i", pixels[0])
    run.log_histogram("h", [1, 2])
    run.log_artifact("/etc/hostname")
    run.log_params({"a": 1})
    run.flush()
end = run.finish
""",
    "tensorboard": """
from spoolagent.writers.tensorboard import SummaryWriter
START
run = SummaryWriter("logs")
def log(step):
    run.add_scalar("a", step, step)
def more():
    run.add_text("t", big)
    run.add_image("i", pixels)
    run.add_histogram("h", pixels)
    run.add_hparams({"a": 1}, {"b": 1})
    run.flush()
end = run.close
""",
    "wandb": """
import spoolagent.writers.wandb as wandb
START
run = wandb.init(config={"a": 1})
def log(step):
    run.log({"a": step})
def more():
    run.log({"t": big, "i": wandb.Image(pixels[0]), "h": wandb.Histogram([1, 2])})
    run.log({"x": wandb.Table(columns=["a"], data=[[1]])})
    run.log_artifact("/etc/hostname")
    run.save("/etc/hostname")
    run.config.update({"b": 1})
    run.summary.update({"q": 1})
    run.alert("a", "b")
end = run.finish
""",
    "mlflow": """
import spoolagent.writers.mlflow as mlflow
START
mlflow.set_experiment("e")
run_id = mlflow.start_run(run_id="r").info.run_id
def log(step):
    mlflow.log_metric("a", step, step=step, run_id=run_id)
def more():
    mlflow.log_text(big, "t.txt")
    mlflow.log_image(pixels[0], "i.png")
    mlflow.log_artifact("/etc/hostname")
    mlflow.log_params({"a": 1})
    mlflow.log_table({"a": [1]}, "t.json")
    mlflow.set_tag("a", "b")
end = mlflow.end_run
""",
}
END = """
LATER
log(1)
more()
child = os.fork()
if child == 0:
    try:
        log(2)
        free()
        log(3)
    except BaseException:
        traceback.print_exc()
        os._exit(3)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
free()
log(4)
more()
end()
"""


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("when", ["before the run", "after it"])
@pytest.mark.parametrize("api", SCRIPTS)
def test_a_process_without_descriptors_goes_on_and_so_does_its_log(api, when, left, tmp_path):
    """Also that of a child that is forked meanwhile, which has a stream of its own."""
    start, later = (f"exhaust({left})", "") if when == "before the run" else ("", f"log(0)\nexhaust({left})")
    text = BEGIN + SCRIPTS[api].replace("START", start) + END.replace("LATER", later)
    env = clean_env(SPOOLAGENT_SPOOL=str(tmp_path / "spool"), SPOOLAGENT_SITE="a", SPOOLAGENT_RUN="r")
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 1 <= done.stderr.count("cannot write to the spool") <= 2, (
        done.stderr
    )  # one warning for each process that had to drop
    streams = {header.role: events for header, events in read_spool(tmp_path / "spool").values()}
    assert sorted(streams) == ["aux", "main"]
    logged = {
        role: [
            e.data["metrics"]["a"]
            for e in events
            if e.type == "metrics" and e.data["metrics"].keys() == {"a"}
        ]
        for role, events in streams.items()
    }
    assert logged["main"][-1] == 4
    assert logged["aux"][-1] == 3
    assert any(e.type == "gap" for events in streams.values() for e in events)
    assert streams["main"][-1].data["status"] == "finished"
