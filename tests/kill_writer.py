"""A training process for tests/test_kill.py: logs to one run with one API, at its own pace, until done or killed.

    python kill_writer.py API SEED FIRST COUNT ACKS

Where it logs comes from `SPOOLAGENT_*`. It appends one byte to the file ACKS after each call that returned: `o` for
the run's opening, `.` for a point, `e` for the end. A byte there means that the call was acknowledged.
"""

import os
import random
import sys
import time
import zlib


def value(seed, name, step):
    """The value that a point must have: no float32 holds it, and none is like another."""
    return zlib.crc32(f"{seed}/{name}/{step}".encode()) / 7.0


def open_run(api):
    """(log(step, {name: value}) -> calls, finish) of one API; `calls` has one entry per call of the API."""
    project = os.environ["KILL_PROJECT"]
    if api == "native":
        from spoolagent.writers import Run

        run = Run(project=project, config={"lr": 0.1})
        return lambda step, point: [lambda: run.log(point, step=step)], run.finish
    if api == "tensorboard":
        from spoolagent.writers.tensorboard import SummaryWriter

        writer = SummaryWriter(os.environ["KILL_LOGDIR"])
        calls = lambda step, point: [  # noqa: E731 - beside its brothers
            (lambda name=name, number=number: writer.add_scalar(name, number, step))
            for name, number in point.items()
        ]
        return calls, writer.close
    if api == "mlflow":
        import spoolagent.writers.mlflow as mlflow

        mlflow.set_experiment(project)
        mlflow.start_run(run_name="kill")
        return lambda step, point: [lambda: mlflow.log_metrics(point, step=step)], mlflow.end_run
    import spoolagent.writers.wandb as wandb

    run = wandb.init(project=project, dir=os.environ["KILL_LOGDIR"], config={"lr": 0.1})
    return lambda step, point: [lambda: run.log(point, step=step)], run.finish


def main():
    """Writes."""
    api, seed, first, count, path = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
    acks = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    pace = random.Random(seed)
    calls_for, finish = open_run(api)
    os.write(acks, b"o")
    rest = 0
    for step in range(first, first + count):
        if rest == 0:  # bursts: a kill meets a writer that writes, and receivers that have a batch in hand
            time.sleep(pace.uniform(0.02, 0.8))
            rest = pace.randint(1, 24)
        rest -= 1
        for call in calls_for(step, {name: value(seed, name, step) for name in ("train/loss", "train/acc")}):
            call()
            os.write(acks, b".")
    finish()
    os.write(acks, b"e")


if __name__ == "__main__":
    main()
