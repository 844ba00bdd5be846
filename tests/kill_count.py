"""What was issued, read by the plain reader, and what each tracker holds, read by its own reader; for test_kill."""

import glob
import json
import os
import struct
from collections import Counter, defaultdict
from itertools import groupby

from wandb_help import read_records, rows_of

EXIT_CODES = {"finished": 0, "killed": 255}


class Issued:
    """Everything in a client's spool: `streams` as by `spool_help.streams`."""

    def __init__(self, streams):
        self.streams = streams
        self.runs = defaultdict(list)
        """(site, run) -> its streams' events, in the order of their attempts; streams without any left out."""
        for key, (events, _) in sorted(streams.items(), key=lambda item: first_time(item[1][0])):
            if events:
                self.runs[key.site, key.run].append(events)

    def status(self, run):
        """How a run ended: its latest attempt decides."""
        last = self.runs[run][-1][-1]
        return last["status"] if last["type"] == "run_end" else "killed"

    def metrics(self, run):
        """(name, value, step, time ns) of each point of a run."""
        for events in self.runs[run]:
            for event in events:
                if event["type"] == "metrics":
                    for name, number in event["metrics"].items():
                        yield name, float(number), event["step"], event["time"]

    def tensorboard(self, run):
        """Points as TensorBoard keeps them."""
        return Counter(
            (name, step, ns / 1_000_000_000, float32(number)) for name, number, step, ns in self.metrics(run)
        )

    def mlflow(self, run):
        """Points as MLflow keeps them: those equal in all of these are one."""
        found = {(name, ns // 1_000_000, step, number) for name, number, step, ns in self.metrics(run)}
        return Counter(dict.fromkeys(found, 1))

    def wandb(self, run):
        """Rows as W&B keeps them: (step, names and values)."""
        rows = Counter()
        for events in self.runs[run]:
            points = [event for event in events if event["type"] == "metrics"]
            for step, group in groupby(points, key=lambda event: event["step"]):
                row = {}
                for event in group:
                    row |= event["metrics"]
                rows[step, frozenset(row.items())] += 1
        return rows


def first_time(events):
    """When a stream's first event was, 0 without any."""
    return events[0]["time"] if events else 0


def float32(number):
    """As TensorBoard keeps it."""
    return struct.unpack("<f", struct.pack("<f", number))[0]


def in_tensorboard(logdir, run):
    """The points that TensorBoard's own reader finds of a run, in all of its directories."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points = Counter()
    for folder, _, names in os.walk(os.path.join(logdir, *run)):
        if any("tfevents" in name for name in names):
            reader = EventAccumulator(folder, size_guidance={"scalars": 0})
            reader.Reload()
            for tag in reader.Tags()["scalars"]:
                points.update((tag, e.step, e.wall_time, e.value) for e in reader.Scalars(tag))
    return points


def in_mlflow(client, experiment):
    """{(site, run): [(status, points)]}: one entry per MLflow run that claims to be this run."""
    from mlflow.entities import ViewType

    held, token = defaultdict(list), None
    where = [client.get_experiment_by_name(experiment).experiment_id]
    while True:
        page = client.search_runs(where, run_view_type=ViewType.ALL, page_token=token)
        for run in page:
            points = Counter()
            for key in run.data.metrics:
                history = client.get_metric_history(run.info.run_id, key)
                points.update((m.key, m.timestamp, m.step, m.value) for m in history)
            tags = run.data.tags
            held[tags["spoolagent.site"], tags["spoolagent.run"]].append((run.info.status, points))
        token = page.token
        if not token:
            return held


def in_wandb(folder, run):
    """(rows, exit codes): of all of a run's logs, in their order. Nothing may follow an exit record."""
    rows, exits = Counter(), []
    for path in sorted(glob.glob(os.path.join(folder, f"offline-run-*-{'--'.join(run)}", "run-*.wandb"))):
        records = read_records(path)
        for row in rows_of(records):
            step = row.get("global_step", row["_step"])
            found = {n: v for n, v in row.items() if not n.startswith("_") and n != "global_step"}
            rows[step, frozenset(found.items())] += 1
        kinds = [record.WhichOneof("record_type") for record in records]
        assert "exit" not in kinds[:-1], f"{path}: what follows an exit record is never read: {kinds[-5:]}"
        exits.append(records[-1].exit.exit_code if kinds[-1] == "exit" else None)
    return rows, exits


def in_jsonl(path):
    """(events by (site, run, writer), last state by (site, run)) of a JSON-lines file and its successors."""
    events, states = defaultdict(list), {}
    stem, extension = os.path.splitext(path)
    assert not glob.glob(f"{stem}-*{extension}"), (
        "a later-named file was begun: the tail of the first did not match"
    )
    with open(path, encoding="utf-8") as file:
        for line in file:
            data = json.loads(line)
            if data["type"] == "run_state":
                states[data["site"], data["run"]] = data["status"]
            else:
                events[data.pop("site"), data.pop("run"), data.pop("writer")].append(data)
    return events, states
