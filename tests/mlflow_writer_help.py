"""The same calls to mlflow and to spoolagent.writers.mlflow, and what MLflow then shows of each."""

import io
import math
import os
import re

import numpy as np
from writer_help import read_spool

from spoolagent.contract import Batch, RunEnd, Stream
from spoolagent.testing import MemoryState

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def replay(spool, uri, size=5):
    """Delivers every stream of the spool to a fresh MlflowReceiver, then each run's status."""
    from spoolagent.receivers.mlflow import MlflowReceiver

    receiver, state, ends = MlflowReceiver(uri, {}), MemoryState(), {}
    receiver.open(state)
    for key, (header, events) in read_spool(spool).items():
        blobs = os.path.join(str(spool), "sites", key.site, "blobs")
        about = {
            "role": header.role,
            "attempt": header.attempt,
            "created_ns": header.created_ns,
            "spool": header.spool,
        }
        stream = Stream(key=key, **about)
        for at in range(0, len(events), size):
            outcome = receiver.deliver(
                Batch(stream=stream, events=tuple(events[at : at + size]), blobs=blobs)
            )
            assert not outcome.dead
            assert not outcome.skipped
            state.commit()
        if header.role == "main":
            last = events[-1]
            assert last.type == "run_end", f"{key} has no end"
            held = ends.setdefault((key.site, key.run), [])
            held.append((header.attempt, last))
    for (site, run), found in ends.items():
        latest = [event for attempt, event in found if attempt == max(a for a, _ in found)]
        worst = max(latest, key=lambda e: ("finished", "killed", "failed").index(e.data["status"]))
        receiver.set_status(
            RunEnd(
                site=site,
                run=run,
                status=worst.data["status"],
                time_ns=worst.wall_ns,
                exit_code=worst.data["exit_code"],
            )
        )
    receiver.close()


def shown(client, experiment):
    """Run name -> all that MLflow shows of it, for the runs of one experiment."""
    found = client.get_experiment_by_name(experiment)
    assert found is not None, f"no experiment {experiment}"
    runs = client.search_runs([found.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    assert len(set(names.values())) == len(runs)
    return {run.info.run_name: _run(client, run, names) for run in runs}


def _run(client, run, names):
    ident = run.info.run_id
    tags = {
        k: v
        for k, v in run.data.tags.items()
        if not k.startswith(("spoolagent.", "mlflow.source.git", "mlflow.parentRunId"))
    }
    return {
        "status": run.info.status,
        "start": run.info.start_time,
        "end": run.info.end_time,
        "user": run.info.user_id,
        "params": run.data.params,
        "metrics": {key: history(client, ident, key) for key in run.data.metrics},
        "latest": {k: _plain(v) for k, v in run.data.metrics.items()},
        "tags": tags,
        "parent": names.get(run.data.tags.get("mlflow.parentRunId")),
        "files": files(client, ident),
    }


def history(client, ident, key):
    points = [(m.timestamp, m.step, _plain(m.value)) for m in client.get_metric_history(ident, key)]
    return sorted(points, key=str)


def _plain(value):
    return "nan" if math.isnan(value) else value


def files(client, ident):
    """Path -> content of every artifact: pixels for images, bytes for the rest; made-up uuids blotted out."""
    found = {}

    def walk(path):
        for item in client.list_artifacts(ident, path):
            if item.is_dir:
                walk(item.path)
                continue
            with open(client.download_artifacts(ident, item.path), "rb") as file:
                found[UUID.sub("uuid", item.path)] = _content(item.path, file.read())

    walk(None)
    return found


def _content(path, data):
    if not path.endswith((".png", ".jpg", ".webp")):
        return data
    from PIL import Image

    image = Image.open(io.BytesIO(data))
    if path.endswith(".png"):
        return image.size, np.asarray(image).tobytes()
    return image.size, image.format
