"""What the acceptance tests share: training scripts and agents as real processes, and what each tracker holds.

Every tracker is read with its own reader: EventAccumulator, MlflowClient, W&B's protobuf messages.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

from cli_help import clean_env
from plain_reader import read_stream
from tb_help import accumulate
from wandb_help import read_records

from spoolagent.format import layout

PATIENCE_S = 120.0


def site_env(spool, site, run, **more):
    """The environment of a training script: where it logs to, and nothing of the caller's trackers."""
    foreign = ("MLFLOW_", "WANDB_", "SLURM_", "TORCHELASTIC_", "RANK")
    env = {k: v for k, v in clean_env().items() if not k.startswith(foreign)}
    env |= {
        "SPOOLAGENT_SPOOL": str(spool),
        "SPOOLAGENT_SITE": site,
        "SPOOLAGENT_RUN": run,
        "WANDB_SILENT": "true",
    }
    return env | {k: str(v) for k, v in more.items()}


class Process:
    """A process of ours, its output in a file. Leaving the context ends it by SIGKILL if it still runs."""

    def __init__(self, command, cwd, *, env=None, name="process"):
        self.log = Path(cwd) / f"{name}.log"
        with open(self.log, "ab") as log:
            self.popen = subprocess.Popen(command, cwd=cwd, env=env or clean_env(), stdout=log, stderr=log)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.kill()

    @property
    def pid(self):
        return self.popen.pid

    @property
    def said(self):
        """What it printed so far."""
        return self.log.read_text(errors="replace")

    @property
    def is_running(self):
        return self.popen.poll() is None

    def kill(self):
        """SIGKILL, to this process only."""
        if self.is_running:
            self.popen.kill()
        self.popen.wait()

    def wait(self, timeout_s=PATIENCE_S):
        """Its exit code."""
        return self.popen.wait(timeout_s)

    def stop(self):
        """SIGTERM; it has to end with exit code 0, having said nothing of a traceback."""
        self.popen.send_signal(signal.SIGTERM)
        assert self.wait() == 0, self.said
        assert "Traceback" not in self.said

    def children(self):
        """The pids of its child processes."""
        try:
            found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except FileNotFoundError:
            return []
        return [int(pid) for pid in found.split()]


def script(code, *args, cwd, env, name="script"):
    """Starts a Python script, as a user's training."""
    return Process([sys.executable, "-c", code, *map(str, args)], cwd, env=env, name=name)


def agent(*args, cwd, name):
    """Starts `python -m spoolagent ARGS`."""
    return Process([sys.executable, "-m", "spoolagent", *map(str, args)], cwd, name=name)


def run(*args, cwd, env=None):
    """Runs `python -m spoolagent ARGS` to its end; returns the finished process, with text output."""
    command = [sys.executable, "-m", "spoolagent", *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=env or clean_env(), capture_output=True, text=True, timeout=240, check=False
    )


def to(*receivers):
    """`--to` for each receiver."""
    return [word for receiver in receivers for word in ("--to", receiver)]


# -- the spool, read without our own reader -----------------------------------------------------------------------


def spool_streams(spool, site, run):
    """The (events, end) of each stream of a run, by writer."""
    keys = layout.iter_streams(str(spool), site, run)
    return {key.writer: read_stream(layout.stream_dir(str(spool), key)) for key in keys}


def spool_events(spool, site, run):
    """All events of a run, ordered by stream."""
    return [event for events, _ in spool_streams(spool, site, run).values() for event in events]


def points_of(events):
    """(name, value, step, time to show in ns) of every metric point, in order."""
    made = []
    for event in events:
        for name, value in event["metrics"].items() if event["type"] == "metrics" else ():
            made.append((name, float(value), event.get("step"), event.get("at") or event["time"]))
    return made


# -- the trackers --------------------------------------------------------------------------------------------------


def comparable(points):
    """A sorted list of tuples, NaN as a text so that it equals itself."""
    return sorted((tuple("NaN" if x != x else x for x in point) for point in points), key=repr)


def tensorboard_runs(logdir):
    """Folder below LOGDIR -> its EventAccumulator, loaded, for every folder with event files."""
    found = {}
    for folder, _, names in os.walk(logdir):
        if any("tfevents" in name for name in names):
            found[os.path.relpath(folder, logdir)] = accumulate(folder).Reload()
    return found


def scalars(accumulator):
    """(tag, value, step, wall time) of all scalars, tag by tag, in the order of the files."""
    return [
        (tag, point.value, point.step, point.wall_time)
        for tag in accumulator.Tags()["scalars"]
        for point in accumulator.Scalars(tag)
    ]


def texts(accumulator):
    """Tag -> the texts of the text plugin."""
    try:
        tags = accumulator.PluginTagToContent("text")
    except KeyError:
        return {}
    return {tag: [p.tensor_proto.string_val[0].decode() for p in accumulator.Tensors(tag)] for tag in tags}


def tensorboard_state(logdir, site, run):
    """What the text `run/state` says last, or None."""
    found = accumulate(Path(logdir) / site / run).Reload()
    if "run/state/text_summary" not in found.Tags()["tensors"]:
        return None
    return found.Tensors("run/state/text_summary")[-1].tensor_proto.string_val[0].decode()


def mlflow_run(client, site, run):
    """The one MLflow run of a run of a site, deleted ones counted too; None when there is none."""
    from mlflow.entities import ViewType

    experiments = [e.experiment_id for e in client.search_experiments(view_type=ViewType.ALL)]
    wanted = f"tags.`spoolagent.site` = '{site}' and tags.`spoolagent.run` = '{run}'"
    found = client.search_runs(experiments, wanted, run_view_type=ViewType.ALL)
    assert len(found) <= 1, [item.info.run_id for item in found]
    return found[0] if found else None


def mlflow_points(client, run):
    """(key, value, step, ms) of all points of an MLflow run."""
    return [
        (m.key, m.value, m.step, m.timestamp)
        for key in run.data.metrics
        for m in client.get_metric_history(run.info.run_id, key)
    ]


def mlflow_files(client, run, path=None):
    """All artifact files of a run."""
    found = []
    for item in client.list_artifacts(run.info.run_id, path):
        found += mlflow_files(client, run, item.path) if item.is_dir else [item.path]
    return sorted(found)


def mlflow_file(client, run, path):
    """The bytes of an artifact file."""
    return Path(client.download_artifacts(run.info.run_id, path)).read_bytes()


def wandb_logs(folder, wandb_id):
    """The records of each `.wandb` file of a W&B run, in the order in which they were begun."""
    paths = sorted(Path(folder).glob(f"offline-run-*-{wandb_id}/run-{wandb_id}.wandb"))
    logs = [read_records(path) for path in paths]
    ids = {r.run.run_id for log in logs for r in log if r.WhichOneof("record_type") == "run"}
    assert ids <= {wandb_id}, ids
    return logs


def wandb_exits(folder, wandb_id):
    """The exit codes that the logs end with, None for one without; nothing may follow an exit record."""
    codes = []
    for records in wandb_logs(folder, wandb_id):
        kinds = [record.WhichOneof("record_type") for record in records]
        assert "exit" not in kinds[:-1]
        codes.append(records[-1].exit.exit_code if kinds[-1] == "exit" else None)
    return codes


def json_lines(path):
    """The objects of a JSON-lines file; an unfinished last line is left out."""
    data = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def last_states(lines):
    """(site, run) -> (status, exit code) that a JSON-lines file says last."""
    return {(e["site"], e["run"]): (e["status"], e["exit_code"]) for e in lines if e["type"] == "run_state"}


def assert_delivered_once(lines, streams, site, run):
    """A JSON-lines file holds every event of the run's streams exactly once, in order, as it is in the spool."""
    for writer, (events, _) in streams.items():
        mine = [e for e in lines if (e["site"], e["run"], e.get("writer")) == (site, run, writer)]
        extra = {"site": site, "run": run, "writer": writer}
        assert mine == [{**extra, **{k: v for k, v in e.items() if k != "crc"}} for e in events]
    writers = {e["writer"] for e in lines if (e["site"], e["run"]) == (site, run) and "writer" in e}
    assert writers == set(streams)


def mlflow_value(value):
    """A value as MLflow keeps it."""
    return math.copysign(1.7976931348623157e308, value) if math.isinf(value) else value


def kill_if_alive(pid):
    """SIGKILL to a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
