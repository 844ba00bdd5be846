"""Every operation on files that a training process makes for its log, refused once: no call raises, nothing is torn."""

import errno
import os
from collections import Counter

import numpy as np
import pytest
from writer_help import read_spool

import spoolagent.writers.mlflow as mlflow
import spoolagent.writers.wandb as wandb
from spoolagent.testing import set_fault
from spoolagent.writers import Run
from spoolagent.writers.tensorboard import SummaryWriter

BIG, PIXELS = "x" * 300_000, np.zeros((3, 4, 4), np.uint8)


def native():
    with Run() as run:
        run.log({"a": 1})
        run.log_text("t", BIG)
        run.log_image("i", PIXELS[0])
        run.log_artifact("/etc/hostname")
        run.flush()
    run.reopen()
    run.log({"b": 2})
    run.finish()


def tensorboard():
    with SummaryWriter("logs") as writer:
        writer.add_scalar("a", 1)
        writer.add_text("t", BIG)
        writer.add_image("i", PIXELS)
        writer.add_hparams({"a": 1}, {"m": 1})
        writer.flush()
    writer.add_scalar("b", 1)  # reopens it
    writer.close()


def with_wandb():
    with wandb.init(config={"a": 1}) as run:
        run.log({"a": 1, "t": BIG, "i": wandb.Image(PIXELS[0])})
        run.log({"z": wandb.Table(columns=["a"], data=[[wandb.Image(PIXELS[0])]])})
        run.log_artifact("/etc/hostname")
        run.save("/etc/hostname")
        run.summary["x"] = 1


def with_mlflow():
    with mlflow.start_run():
        mlflow.log_metric("a", 1)
        mlflow.log_text(BIG, "t.txt")
        mlflow.log_image(PIXELS[0], "i.png")
        mlflow.log_artifact("/etc/hostname")
        mlflow.log_table({"a": [1]}, "t.json")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("SPOOLAGENT_SITE", "a")
    monkeypatch.chdir(tmp_path)
    yield
    set_fault(None)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
@pytest.mark.parametrize("session", [native, tensorboard, with_wandb, with_mlflow])
def test_no_refusal_of_the_disk_raises(session, number, place, tmp_path, monkeypatch):
    def play(name, refuse):
        """Counts the operations; the one that `refuse` names, or all of its kind (None), are refused."""
        made = Counter()

        def fault(operation, path):
            made[operation] += 1
            if operation == refuse[0] and refuse[1] in (made[operation], None):
                raise OSError(number, os.strerror(number), path)

        monkeypatch.setenv("SPOOLAGENT_SPOOL", str(tmp_path / name))
        monkeypatch.setenv("SPOOLAGENT_RUN", "r")
        set_fault(fault)
        session()
        set_fault(None)
        return made

    for operation, count in sorted(play("calm", ("", None)).items()):
        for at in (*range(1, count + 1), None):
            name = f"{operation}-{at}"
            play(name, (operation, at))
            read_spool(tmp_path / name)  # its checksums, seqs and payloads
