"""MLflow's log_batch of 1000 metrics: through our worker, beside the raw client on the same backend."""

import itertools
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.rounds import Subject, interleave
from benchmarks.rows import Row, at_least
from benchmarks.spools import deliver, write_spool

BATCH = 1000
DIRECT, OVER_HTTP = 10, 3
"""Batches of a run, each way."""
ROUNDS = 3
_START_S = 120.0


def mlflow_batch(place: str) -> list[Row]:
    """SQLite directly, then a real server over HTTP."""
    rows = [_compare(place, f"sqlite:///{place}/batch.db", "SQLite", DIRECT)]
    with _server(place) as uri:
        rows.append(_compare(place, uri, "HTTP", OVER_HTTP))
    return rows


def _compare(place: str, uri: str, word: str, batches: int) -> Row:
    from spoolagent.receivers.mlflow import MlflowReceiver

    events = batches * BATCH
    number = itertools.count()
    spools: list[str] = []

    def prepare() -> None:
        spools.append(os.path.join(place, f"mlflow-{word}-{next(number)}"))
        write_spool(spools[-1], events, run=f"run-{len(spools)}")

    def ours() -> None:
        deliver(spools[-1], MlflowReceiver(uri), events + 2)

    def theirs() -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        client = MlflowClient(tracking_uri=uri)
        run = client.create_run("0").info.run_id
        for first in range(0, events, BATCH):
            now = time.time_ns() // 1_000_000
            points = [Metric("loss", 0.5 + step, now, step) for step in range(first, first + BATCH)]
            client.log_batch(run, metrics=points)
        client.set_terminated(run)

    us = Subject(name=f"MLflow log_batch of {BATCH}, {word}", count=events, run=ours, before=prepare)
    peer = Subject(name=f"raw client, {word}", count=events, run=theirs)
    interleave([us, peer], ROUNDS)
    return at_least(us, peer, 0.85, "/s", "as fast")


@contextmanager
def _server(place: str) -> Iterator[str]:
    """A `mlflow server` on loopback over SQLite; ended at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{place}/server.db"]
    command += ["--artifacts-destination", os.path.join(place, "artifacts")]
    with open(os.path.join(place, "server.log"), "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=place, start_new_session=True)
    try:
        _wait_for(uri, process)
        yield uri
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def _wait_for(uri: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (OSError, urllib.error.URLError):
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("mlflow server did not start")
        time.sleep(0.1)
