"""How long an import takes, over that of a Python that imports nothing. Bytecode is compiled before."""

import compileall
import os
import subprocess
import sys

import spoolagent
from benchmarks.rounds import Subject, interleave
from benchmarks.rows import Row, under

LIMIT_S = 0.060
ROUNDS = 10
PEER_ROUNDS = 1
PEERS = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
WRITERS = ("run", "tensorboard", "nvflare", "mlflow", "wandb")


def imports(place: str) -> list[Row]:
    """A row for each writer; where it mimics a library that is installed, with that library's import."""
    del place
    package = os.path.dirname(spoolagent.__file__)
    for folder in (package, os.path.join(package, "writers"), os.path.join(package, "receivers")):
        compileall.compile_dir(folder, quiet=1)
    least = _subject("bare Python", "pass")
    ours = {name: _subject(name, f"import spoolagent.writers.{name}") for name in WRITERS}
    theirs = {name: _subject(module, f"import {module}") for name, module in PEERS.items()}
    interleave([least, *ours.values()], ROUNDS)
    interleave(list(theirs.values()), PEER_ROUNDS)
    rows = []
    for name in WRITERS:
        peer = theirs.get(name)
        reference = (peer.name, peer.best_s - least.best_s) if peer else ("bare Python", least.best_s)
        rows.append(
            under(f"import spoolagent.writers.{name}", ours[name].best_s - least.best_s, LIMIT_S, *reference)
        )
    return rows


def _subject(name: str, code: str) -> Subject:
    command = [sys.executable, "-c", code]
    return Subject(name=name, count=1, run=lambda: subprocess.run(command, check=True, capture_output=True))
