"""What one logging call costs the training thread: ours, the peers, and `orjson.dumps` + `os.write` alone.

Each group has the bare cost in it, measured in the same rounds: a peer that is loaded (threads, caches) slows
everything a little.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import orjson

from benchmarks.rounds import Subject, interleave
from benchmarks.rows import Row, at_least, at_most, bare

CALLS = 1000
ROUNDS = 60
NATIVE, MIMICKED = 4.0, 6.0


@contextmanager
def bare_subject(place: str) -> Iterator[Subject]:
    """The cheapest that a durable call can be: the event as JSON, in the kernel when the call returns."""
    fd = os.open(os.path.join(place, "bare"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def calls() -> None:
        write, dumps, now, newline = os.write, orjson.dumps, time.time_ns, orjson.OPT_APPEND_NEWLINE
        for step in range(CALLS):
            write(
                fd,
                dumps(
                    {"time": now(), "type": "metrics", "metrics": {"loss": 0.5 + step}, "step": step},
                    None,
                    newline,
                ),
            )

    try:
        yield Subject(name="bare orjson.dumps + os.write", count=CALLS, run=calls)
    finally:
        os.close(fd)


def tensorboard(place: str) -> list[Row]:
    """The native API, and both of our SummaryWriters, beside torch's."""
    from torch.utils.tensorboard import SummaryWriter as TorchWriter

    from spoolagent.writers import nvflare
    from spoolagent.writers.run import Run
    from spoolagent.writers.tensorboard import SummaryWriter

    def native_calls() -> None:
        log = run.log
        for step in range(CALLS):
            log({"loss": 0.5 + step}, step=step)

    def scalars(writer: object, count: int) -> None:
        add_scalar = writer.add_scalar  # type: ignore[attr-defined] # three classes with one method in common
        for step in range(count):
            add_scalar("loss", 0.5 + step, step)

    with bare_subject(place) as least, Run(run="native") as run, SummaryWriter("runs/ours") as ours:
        flare, peer = nvflare.SummaryWriter(), TorchWriter(os.path.join(place, "torch"))
        native = Subject(name="Run.log, native", count=CALLS, run=native_calls)
        scalar = Subject(name="SummaryWriter.add_scalar", count=CALLS, run=lambda: scalars(ours, CALLS))
        flared = Subject(
            name="nvflare SummaryWriter.add_scalar", count=CALLS, run=lambda: scalars(flare, CALLS)
        )
        torch = Subject(name="torch add_scalar", count=500, run=lambda: scalars(peer, 500), after=peer.flush)
        interleave([least, native, scalar, flared, torch], ROUNDS)
        nvflare.shutdown()
        peer.close()
    return [
        bare(least),
        at_most(native, least, NATIVE),
        at_most(scalar, least, MIMICKED),
        at_least(scalar, torch, 10, "us", "cheaper"),
        at_most(flared, least, MIMICKED),
    ]


def mlflow(place: str) -> list[Row]:
    """mlflow.log_metric, beside MLflow's own on SQLite."""
    import mlflow as real

    from spoolagent.writers import mlflow as ours

    def calls(module: object, count: int) -> None:
        log_metric = module.log_metric  # type: ignore[attr-defined] # two modules with one function in common
        for step in range(count):
            log_metric("loss", 0.5 + step, step=step)

    real.set_tracking_uri(f"sqlite:///{place}/calls.db")
    with bare_subject(place) as least, real.start_run(), ours.start_run():
        mine = Subject(name="mlflow.log_metric", count=CALLS, run=lambda: calls(ours, CALLS))
        theirs = Subject(name="MLflow log_metric, SQLite", count=10, run=lambda: calls(real, 10))
        interleave([least, mine, theirs], ROUNDS // 2)
    return [at_most(mine, least, MIMICKED), at_least(mine, theirs, None, "us", "cheaper")]


def wandb(place: str) -> list[Row]:
    """run.log, beside W&B's own offline."""
    from spoolagent.writers import wandb as ours

    def calls(run: object, count: int) -> None:
        log = run.log  # type: ignore[attr-defined] # two classes with one method in common
        for step in range(count):
            log({"loss": 0.5 + step})

    theirs = _real_wandb().init(project="bench", mode="offline", dir=place)
    mine = ours.init(project="bench", mode="offline", dir=place)
    with bare_subject(place) as least:
        us = Subject(name="wandb run.log", count=CALLS, run=lambda: calls(mine, CALLS))
        peer = Subject(name="wandb run.log, offline", count=1000, run=lambda: calls(theirs, 1000))
        interleave([least, us, peer], ROUNDS // 2)
    mine.finish()
    theirs.finish()
    return [at_most(us, least, MIMICKED), at_least(us, peer, 30, "us", "cheaper")]


def _real_wandb() -> ModuleType:
    import wandb

    return wandb
