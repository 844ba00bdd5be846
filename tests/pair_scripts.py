"""The training scripts of test_pairs.py: the same numbers through each writer API, and five ways to end.

Each script gets the calls as JSON, and how to leave: finished, with (an exception leaves the context manager),
uncaught (an exception at the top level), exit-3 (sys.exit(3)), killed (SIGKILL).
"""

_HEAD = """
import json, os, signal, sys
import numpy as np
calls, how = json.loads(sys.argv[1]), sys.argv[2]
pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
def leave():
    if how in ("with", "uncaught"):
        raise RuntimeError("lost a GPU")
    if how == "exit-3":
        sys.exit(3)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""
_TAIL = """
if how in ("finished", "with"):
    with begin() as run:
        log(run)
        leave()
else:
    run = begin()
    log(run)
    leave()
"""

_TENSORBOARD = """
from spoolagent.writers.tensorboard import SummaryWriter
def begin():
    return SummaryWriter("logs/baseline")
def log(run):
    for metrics, step, at in calls:
        for name, value in metrics.items():
            run.add_scalar(name, value, step, walltime=at)
    if how == "finished":
        run.add_scalars("heads", {"a": 1.5, "b": 2.5}, 2000000)
        run.add_text("note", "a *note*", 3000000)
        run.add_image("pic", pixels, 3000001, dataformats="HWC")
"""

_MLFLOW = """
import spoolagent.writers.mlflow as mlflow
mlflow.set_experiment("pairs-mlflow")
def begin():
    return mlflow.start_run(run_name="baseline", tags={"team": "blue"})
def log(run):
    mlflow.log_params({"lr": 0.1, "layers": [3, 4]})
    mlflow.set_tag("phase", "one")
    mlflow.set_tag("phase", "two")
    for metrics, step, at in calls:
        stamp = None if at is None else int(at * 1000)
        mlflow.log_metrics(metrics, step=step, timestamp=stamp)
    if how == "finished":
        mlflow.log_text("a *note*", "notes/note.txt")
        mlflow.log_image(pixels, key="pic", step=3000001)
        with open("card.txt", "w") as file:
            file.write("a card")
        mlflow.log_artifact("card.txt", "data")
        for name in ("mAP@0.5", "a//b"):
            try:
                mlflow.log_metric(name, 1.0)
            except mlflow.MlflowException:
                continue
            raise AssertionError("MLflow refuses this name")
"""

_WANDB = """
import spoolagent.writers.wandb as wandb
def begin():
    return wandb.init(project="pairs-wandb", name="baseline", config={"lr": 0.1, "net": {"layers": [3, 4]}},
                      tags=["blue"], dir=os.getcwd())
def log(run):
    run.config.update({"lr": 0.2}, allow_val_change=True)
    for metrics, step, at in calls:
        run.log(metrics if at is None else {**metrics, "_timestamp": at}, step=step)
    if how == "finished":
        run.log({"note": "a *note*", "pic": wandb.Image(pixels), "net": {"depth": 2}}, step=3000001)
        run.summary["best"] = 0.125
        with open("card.txt", "w") as file:
            file.write("a card")
        run.log_artifact("card.txt", name="card", type="dataset")
"""

_NATIVE = """
from spoolagent.writers import Run
def begin():
    return Run(project="pairs-native", name="baseline", tags={"team": "blue"}, config={"lr": 0.1, "layers": [3, 4]})
def log(run):
    run.set_tags({"phase": "one"})
    run.set_tags({"phase": "two"})
    for metrics, step, at in calls:
        run.log(metrics, step, at_ns=None if at is None else int(at * 1000) * 10**6)
    if how == "finished":
        run.log_text("note", "a *note*", 3000000)
        run.log_image("pic", pixels, 3000001)
        with open("card.txt", "w") as file:
            file.write("a card")
        run.log_artifact("card.txt", "data")
"""

_NVFLARE = """
import contextlib
from spoolagent.writers import nvflare
from spoolagent.writers.nvflare import AnalyticsDataType, MLflowWriter, SummaryWriter, WandBWriter
@contextlib.contextmanager
def begin_with():
    yield None
    nvflare.shutdown()
def begin():
    return begin_with()
def log(run):
    MLflowWriter().log_params({"lr": 0.1, "layers": [3, 4]})
    MLflowWriter().set_tags({"team": "blue", "phase": "two"})
    for metrics, step, at in calls:
        if at is not None:
            for name, value in metrics.items():
                nvflare.log(name, value, AnalyticsDataType.SCALAR, global_step=step, walltime=at)
        elif len(metrics) == 1:
            ((name, value),) = metrics.items()
            SummaryWriter().add_scalar(name, value, step)
        elif step == 1:
            MLflowWriter().log_metrics(metrics, step)
        else:
            WandBWriter().log(metrics, step)
    if how == "finished":
        SummaryWriter().add_scalars("heads", {"a": 1.5, "b": 2.5}, 2000000)
        MLflowWriter().log_text("a *note*", "notes/note.txt")
        nvflare.log("pic", pixels, AnalyticsDataType.IMAGE, global_step=3000001, dataformats="HWC")
"""

SCRIPTS = {
    "tensorboard": _HEAD + _TENSORBOARD + _TAIL,
    "mlflow": _HEAD + _MLFLOW + _TAIL,
    "wandb": _HEAD + _WANDB + _TAIL,
    "nvflare": _HEAD + _NVFLARE + _TAIL,
    "native": _HEAD + _NATIVE + _TAIL,
}
ENDS = {
    "finished": (0, "finished", 0),
    "with": (1, "failed", 1),
    "uncaught": (1, "failed", 1),
    "exit-3": (3, "failed", 3),
    "killed": (-9, "killed", None),
}
"""How a script leaves -> its exit code, and the state and exit code that its run must have."""
