"""Frameworks that import their tracker themselves: the imports and calls of Lightning and Hugging Face, as they make them.

Each script runs in a process of its own, once with the real library and once after `frameworks.use`.
"""

import json
import os
import subprocess
import sys

import pytest
from wandb_writer_help import environment
from writer_help import read_spool

from spoolagent.writers import frameworks

_MLFLOW = """
import mlflow
from mlflow.tracking import MlflowClient, context
from mlflow.tracking.context import registry
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
note(hasattr(context, "registry"), MLFLOW_RUN_NAME, sorted(resolve_tags({"a": "b"})), mlflow.__version__)
note(mlflow.utils.validation.MAX_PARAM_VAL_LENGTH, mlflow.utils.validation.MAX_PARAMS_TAGS_PER_BATCH)
import mlflow.utils.mlflow_tags as tags
note(tags.MLFLOW_PARENT_RUN_ID, tags.MLFLOW_USER, tags.MLFLOW_SOURCE_NAME)
client = MlflowClient()
found = client.get_experiment_by_name("lightning")
ident = client.create_experiment("lightning") if found is None else found.experiment_id
run = client.create_run(experiment_id=ident, tags=resolve_tags({"mlflow.runName": "r"}))
client.log_batch(run.info.run_id, metrics=[Metric("loss", 0.5, 1_700_000_000_000, 3)], params=[Param("lr", "0.1")])
client.set_terminated(run.info.run_id, "FINISHED")
note(client.get_run(run.info.run_id).data.metrics)
"""
_WANDB = """
import wandb
from wandb import Artifact
from wandb.sdk.lib import RunDisabled
from wandb.sdk.lib.config_util import ConfigError
from wandb.wandb_run import Run
import wandb.sdk.wandb_run
wandb.require("service")
run = wandb.init(project="p", name="n")
run._label(code="transformers_trainer")
note(isinstance(run, Run), issubclass(ConfigError, wandb.Error), wandb.run is run, wandb.sdk.wandb_run.Run is Run)
wandb.log({"loss": 0.5})
note(dict(wandb.summary)["loss"])
wandb.finish()
"""
_TENSORBOARD = """
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
import torch
with SummaryWriter("logs") as writer:
    writer.add_scalar("x", 1.0, 1)
    writer.add_graph(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    for one in hparams({"lr": 0.1}, {"m": 1}):
        writer.file_writer.add_summary(one)
note(type(writer).__name__)
"""
_HEAD = """
import json, os, sys
noted = []
def note(*values):
    noted.append(values)
if sys.argv[1] != "real":
    from spoolagent.writers import frameworks
    frameworks.use(sys.argv[2])
"""
_TAIL = """
print("SAID" + json.dumps(noted))
"""


@pytest.mark.parametrize(
    ("name", "script"), [("mlflow", _MLFLOW), ("wandb", _WANDB), ("tensorboard", _TENSORBOARD)]
)
def test_the_imports_of_frameworks_find_ours(name, script, tmp_path):
    said = {}
    for which in ("real", "ours"):
        folder = tmp_path / which
        folder.mkdir()
        env = environment(folder, which) | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        command = [sys.executable, "-W", "ignore", "-c", _HEAD + script + _TAIL, which, name]
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr
        said[which] = json.loads(done.stdout.partition("SAID")[2])
    assert said["ours"] == said["real"]
    ((_, events),) = read_spool(tmp_path / "ours" / "spool").values()
    assert [e.data["api"] for e in events if e.type == "run_start"] == [name]
    assert "metrics" in {e.type for e in events}
    left = [n for _, _, names in os.walk(tmp_path / "ours") for n in names]
    assert not [n for n in left if "tfevents" in n or n.endswith((".wandb", ".db"))]


def test_models_of_a_replaced_mlflow_say_so(tmp_path):
    """The real one cannot be imported any more: no endless search for it."""
    script = """
from spoolagent.writers import frameworks
frameworks.use("mlflow")
import mlflow.sklearn
import mlflow.models
for use in (lambda: mlflow.sklearn.log_model(1, "m"), lambda: mlflow.models.infer_signature, lambda: mlflow.sklearn.save_model):
    try:
        use()
    except NotImplementedError as error:
        assert "in the place of mlflow" in str(error), error
    else:
        raise AssertionError
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(tmp_path, "ours"),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="'aim' is not one of"):
        frameworks.use("aim")
