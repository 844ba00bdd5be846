"""What was issued and what each tracker holds, as multisets of points under that tracker's own identity.

A point of TensorBoard is (tag, step, wall time, float32 value); of MLflow (key, ms, step, value), where equal
points are one; of a W&B run (name, value), since its rows carry a step axis of their own.
"""

import glob
import os
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

from spoolagent.format.events import Event
from spoolagent.format.layout import iter_streams, stream_dir
from spoolagent.format.reader import StreamReader
from spoolagent.format.values import number

Points = Counter[tuple[Any, ...]]


def issued_events(spool: str) -> Iterator[Event]:
    """Every event of every stream of a spool."""
    for key in iter_streams(spool):
        reader = StreamReader(stream_dir(spool, key), at_home=True)
        while True:
            chunk = reader.read()
            yield from chunk.events
            if chunk.state != "more":
                break


def _metrics(spool: str) -> Iterator[tuple[str, float, int, int]]:
    """(name, value, step, wall ns) of every point issued."""
    for event in issued_events(spool):
        if event.type == "metrics":
            for name, value in event.data["metrics"].items():
                yield name, float(number(value)), event.step or 0, event.wall_ns


def float32(value: float) -> float:
    """The value as TensorBoard keeps it."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def issued(spool: str, tracker: str) -> Points:
    """The points that `tracker` should hold of a site's spool."""
    found = list(_metrics(spool))
    if tracker == "tensorboard":
        return Counter((name, step, ns / 1_000_000_000, float32(value)) for name, value, step, ns in found)
    if tracker == "mlflow":
        return Counter({(name, ns // 1_000_000, step, value): 1 for name, value, step, ns in found})
    return Counter((name, value) for name, value, _, _ in found)


def in_tensorboard(logdir: str, site: str) -> Points:
    """Read with TensorBoard's EventAccumulator, every event file of the site."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: Points = Counter()
    for folder, _, names in os.walk(os.path.join(logdir, site)):
        if any("tfevents" in name for name in names):
            reader = EventAccumulator(folder, size_guidance={"scalars": 0})
            reader.Reload()
            for tag in reader.Tags()["scalars"]:
                points.update((tag, e.step, e.wall_time, e.value) for e in reader.Scalars(tag))
    return points


def in_mlflow(uri: str, site: str) -> Points:
    """Read with MlflowClient: the metric histories of the site's runs."""
    import mlflow
    from mlflow.entities import ViewType

    client = mlflow.MlflowClient(uri)
    experiments = [e.experiment_id for e in client.search_experiments(view_type=ViewType.ALL)]
    runs = client.search_runs(experiments, f"tags.`spoolagent.site` = '{site}'", run_view_type=ViewType.ALL)
    points: Points = Counter()
    for run in runs:
        for key in run.data.metrics:
            points.update(
                (m.key, m.timestamp, m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)
            )
    return points


def in_wandb(folder: str, site: str) -> Points:
    """Decode the history rows of the site's `.wandb` files with W&B's own protobuf messages."""
    import orjson
    from wandb.proto import wandb_internal_pb2 as pb

    from spoolagent.receivers.wandb_log import read_log

    points: Points = Counter()
    for path in glob.glob(os.path.join(folder, f"offline-run-*-{site}--*", "run-*.wandb")):
        with open(path, "rb") as file:
            for raw, _ in read_log(file, 7):
                record = pb.Record.FromString(raw)  # pyright: ignore[reportAttributeAccessIssue] - made by protobuf
                for item in record.history.item:
                    name = item.key or ".".join(item.nested_key)
                    value = orjson.loads(item.value_json)
                    if "/" in name and isinstance(value, (int, float)):
                        points[name, float(value)] += 1
    return points
