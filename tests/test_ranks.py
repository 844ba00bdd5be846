"""Eight ranks and a forked data loader log to one run while it is requeued once.

Three such runs at once, one per writer API, through a shipper and a serving agent that run all the while. The first
launch is killed by SIGKILL, all ranks in the middle of their work; the second goes on under the same run id and
finishes. Each tracker must show one run, all points, and the right state.
"""

from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest
from acceptance_help import (
    agent,
    assert_delivered_once,
    comparable,
    json_lines,
    last_states,
    mlflow_points,
    mlflow_run,
    mlflow_value,
    points_of,
    scalars,
    script,
    site_env,
    spool_events,
    spool_streams,
    tensorboard_runs,
    tensorboard_state,
    to,
    wandb_exits,
    wandb_logs,
)
from mlflow_help import client_of
from spool_help import until
from tb_help import event_files, f32
from wandb_help import rows_of

from spoolagent.contract import RunEnd
from spoolagent.format.spool import create_spool
from spoolagent.receivers.wandb_offline import WandbOffline
from spoolagent.serving.changes import StreamFacts
from spoolagent.serving.runs import StreamView, derive
from spoolagent.testing import MemoryState, make_batch, make_stream

RANKS = 8
SITE = "cluster-1"
RUNS = ["tensorboard", "mlflow", "wandb"]
LOADED = 25
"""Points that a loader child logs."""
STEPS = 40
"""Steps of each rank in the second launch."""

RANK = """
import multiprocessing, os, sys, time
api, launch, place = sys.argv[1], int(sys.argv[2]), sys.argv[3]
rank = int(os.environ["RANK"])
acks = os.open(os.path.join(place, f"acks-{launch}-{rank}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

if api == "tensorboard":
    from spoolagent.writers.tensorboard import SummaryWriter
    run = SummaryWriter("logs")
    def log(name, value, step):
        run.add_scalar(name, value, step)
    end = run.close
elif api == "mlflow":
    import spoolagent.writers.mlflow as mlflow
    mlflow.set_experiment("ranks")
    run = mlflow.start_run(run_name="eight ranks")
    mlflow.log_param("lr", 0.1)
    run_id = run.info.run_id
    def log(name, value, step):
        mlflow.log_metric(name, value, step=step, run_id=run_id)
    end = mlflow.end_run
else:
    import spoolagent.writers.wandb as wandb
    run = wandb.init(project="ranks", name="eight ranks", dir=place, config={"lr": 0.1})
    def log(name, value, step):
        run.log({name: value}, step=step)
    end = run.finish

def load():
    for i in range(25):
        log("loader/queue", launch * 1000 + rank * 100 + i, i)
    os._exit(0)

open(os.path.join(place, f"joined-{launch}-{rank}"), "w").close()
while len([name for name in os.listdir(place) if name.startswith(f"joined-{launch}-")]) < 8:
    time.sleep(0.005)  # as the ranks of a real job wait for each other

if rank in (0, 5):
    if launch == 1:
        child = os.fork()
        if child == 0:
            load()
        assert os.waitpid(child, 0)[1] == 0
    else:
        child = multiprocessing.get_context("fork").Process(target=load)
        child.start()
        child.join()
        assert child.exitcode == 0

step = 0 if launch == 1 else 30
while launch == 1 or step < 70:
    log("train/loss", rank + launch / 10 + step / 1000, step)
    os.write(acks, f"{step}\\n".encode())
    step += 1
    time.sleep(0.01)
end()
"""

LAUNCHES = {
    "tensorboard": lambda _launch: {},  # no launcher says anything
    "mlflow": lambda launch: {"SLURM_JOB_ID": 77, "SLURM_STEP_ID": 0, "SLURM_RESTART_COUNT": launch - 1},
    "wandb": lambda launch: {"TORCHELASTIC_RUN_ID": "job-9", "TORCHELASTIC_RESTART_COUNT": launch - 1},
}


class Job:
    """One run's ranks."""

    def __init__(self, api, folder):
        self.api, self.spool = api, folder / "spool"
        self.place = folder / api
        self.place.mkdir()
        self.ranks = []

    def launch(self, number, stack):
        """Starts all ranks."""
        self.ranks = []
        for rank in range(RANKS):
            env = site_env(self.spool, SITE, self.api, RANK=rank, **LAUNCHES[self.api](number))
            started = script(
                RANK, self.api, number, self.place, cwd=self.place, env=env, name=f"rank-{number}-{rank}"
            )
            stack.append(started)
            self.ranks.append(started)

    def acknowledged(self, number):
        """Steps whose log call returned, by rank."""
        found = {}
        for rank in range(RANKS):
            path = self.place / f"acks-{number}-{rank}"
            data = path.read_text() if path.exists() else ""
            found[rank] = [int(line) for line in data[: data.rfind("\n") + 1].split()]
        return found

    def are_busy(self):
        """Every rank has logged a good deal."""
        return all(len(steps) >= 20 for steps in self.acknowledged(1).values())

    def is_shown_as(self, status, jsonl):
        return last_states(json_lines(jsonl)).get((SITE, self.api), ("",))[0] == status


class Story:
    """The whole of it, told once for all tests below."""

    def __init__(self, folder, server):
        self.folder, self.spool, self.server = folder, folder / "spool", folder / "server-spool"
        self.tb, self.wandb, self.jsonl = folder / "tb", folder / "wandb-logs", folder / "events.jsonl"
        self.client = client_of(server.uri)
        self.jobs = {api: Job(api, folder) for api in RUNS}
        self.killed_status = {}
        create_spool(str(self.server))
        create_spool(str(self.spool))
        started = []
        try:
            self._tell(server, started)
        finally:
            for process in started:
                process.kill()

    def _tell(self, server, started):
        receivers = [f"tensorboard:{self.tb}", f"mlflow:{server.uri}"]
        receivers += [f"wandb:offline:{self.wandb}", f"jsonl:{self.jsonl}"]
        serve = agent("serve", "--spool", self.server, *to(*receivers), cwd=self.folder, name="serve")
        ship = agent("ship", "--spool", self.spool, "--to", self.server, cwd=self.folder, name="ship")
        started += [serve, ship]
        for job in self.jobs.values():
            job.launch(1, started)
        for job in self.jobs.values():
            until(job.are_busy, what=f"the first launch of {job.api}")
        for job in self.jobs.values():
            for rank in job.ranks:
                rank.kill()
        # Two jobs are requeued at once, one only when every tracker shows it as killed.
        self.jobs["mlflow"].launch(2, started)
        self.jobs["wandb"].launch(2, started)
        until(lambda: self._shows_killed("tensorboard"), what="the state killed in every tracker")
        self.killed_status = self._states("tensorboard")
        self.jobs["tensorboard"].launch(2, started)
        for job in self.jobs.values():
            codes = [rank.wait() for rank in job.ranks]
            assert codes == [0] * RANKS, [rank.said for rank in job.ranks]
        for job in self.jobs.values():
            until(lambda job=job: job.is_shown_as("finished", self.jsonl), what=f"the end of {job.api}")
            try:
                until(
                    lambda job=job: self._shows_finished(job.api), what=f"the state of {job.api} everywhere"
                )
            except AssertionError as error:
                raise AssertionError(f"{error}: {self._states(job.api)}; {serve.said}") from None
        serve.stop()
        ship.stop()

    def _states(self, run):
        """The state that each tracker shows."""
        found = mlflow_run(self.client, SITE, run)
        folder = self.tb / SITE / run
        return {
            "mlflow": None if found is None else found.info.status,
            "tensorboard": tensorboard_state(self.tb, SITE, run) if folder.exists() else None,
            "wandb": wandb_exits(self.wandb, f"{SITE}--{run}")[-1:],
        }

    def _shows_killed(self, run):
        return self._states(run) == {"mlflow": "KILLED", "tensorboard": "killed", "wandb": [255]}

    def _shows_finished(self, run):
        found = self._states(run)
        return (found["mlflow"], found["wandb"], found["tensorboard"] in (None, "finished")) == (
            "FINISHED",
            [0],
            True,
        )

    def events(self, run):
        return spool_events(self.spool, SITE, run)


@pytest.fixture(scope="module")
def story(tmp_path_factory, mlflow_server):
    return Story(tmp_path_factory.mktemp("ranks"), mlflow_server)


@pytest.mark.parametrize("run", RUNS)
def test_the_spool_holds_every_acknowledged_step(run, story):
    """Two attempts of eight main streams, and a closed or open aux stream for each loader child; nothing torn."""
    job = story.jobs[run]
    streams = spool_streams(story.spool, SITE, run)
    kinds = Counter()
    got = {}
    for writer, (events, end) in streams.items():
        header = (Path(story.spool) / "sites" / SITE / "runs" / run / writer).glob("*.jsonl")
        role = '"role":"aux"' if b'"role":"aux"' in min(header).read_bytes().split(b"\n")[0] else "main"
        attempt = events[0]["attempt"]
        kinds[role == "main", attempt, end] += 1
        rank = events[0]["rank"]
        steps = [step for name, _, step, _ in points_of(events) if name == "train/loss"]
        if role == "main":
            got[attempt, rank] = steps
        else:
            loaded = [(value, step) for name, value, step, _ in points_of(events) if name == "loader/queue"]
            assert loaded == [(attempt * 1000 + rank * 100 + i, i) for i in range(LOADED)]
    assert kinds == {
        (True, 1, "dead"): 8,
        (True, 2, "closed"): 8,
        (False, 1, "dead"): 2,
        (False, 2, "dead"): 2,
    }
    for attempt in (1, 2):
        for rank, steps in job.acknowledged(attempt).items():
            assert got[attempt, rank][: len(steps)] == steps
            assert len(got[attempt, rank]) - len(steps) in (0, 1)  # the call that the kill met
    assert all(got[2, rank] == list(range(30, 30 + STEPS)) for rank in range(RANKS))


@pytest.mark.parametrize("run", RUNS)
def test_jsonl_has_every_event_once(run, story):
    lines = json_lines(story.jsonl)
    assert_delivered_once(lines, spool_streams(story.spool, SITE, run), SITE, run)
    assert last_states(lines)[SITE, run] == ("finished", 0)


@pytest.mark.parametrize("run", RUNS)
def test_mlflow_has_one_run_with_all_points(run, story):
    found = mlflow_run(story.client, SITE, run)
    assert found.info.status == "FINISHED"
    points = points_of(story.events(run))
    wanted = {(name, mlflow_value(value), step, ns // 1_000_000) for name, value, step, ns in points}
    assert comparable(mlflow_points(story.client, found)) == comparable(wanted)
    assert found.data.params == ({} if run == "tensorboard" else {"lr": "0.1"})


@pytest.mark.parametrize("run", RUNS)
def test_tensorboard_has_one_run_with_all_points(run, story):
    """One directory for the run; below it one for each further stream. No directory has two files of one attempt."""
    folders = {k: v for k, v in tensorboard_runs(story.tb).items() if k.startswith(f"{SITE}/{run}")}
    assert all(folder.startswith(f"{SITE}/{run}/") or folder == f"{SITE}/{run}" for folder in folders)
    got = [point for accumulator in folders.values() for point in scalars(accumulator)]
    wanted = [(name, f32(value), step, ns / 10**9) for name, value, step, ns in points_of(story.events(run))]
    assert comparable(got) == comparable(wanted)
    for folder in folders:
        names = [Path(path).name.split(".")[4:] for path in event_files(story.tb / folder)]
        assert len(names) <= 2


@pytest.mark.parametrize("run", RUNS)
def test_wandb_has_one_run_with_all_points(run, story):
    """All logs carry the run's one id; steps rise through all of them; only the last may be followed by nothing."""
    logs = wandb_logs(story.wandb, f"{SITE}--{run}")
    rows = [row for log in logs for row in rows_of(log)]
    got = Counter()
    for row in rows:
        for group, names in row.items():
            for name, value in names.items() if isinstance(names, dict) else ():
                got[f"{group}/{name}", float(value)] += 1
            if not isinstance(names, dict) and not group.startswith(("_", "global_step", "rank")):
                got[group, float(names)] += 1
    assert got == Counter((name, value) for name, value, _, _ in points_of(story.events(run)))
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps))
    assert wandb_exits(story.wandb, f"{SITE}--{run}")[-1] == 0
    times = {(row.get("_timestamp")) for row in rows}
    assert times <= {ns / 10**9 for *_, ns in points_of(story.events(run))}


def test_the_first_launch_was_shown_as_killed(story):
    assert story.killed_status == {"mlflow": "KILLED", "tensorboard": "killed", "wandb": [255]}
    lines = [e for e in json_lines(story.jsonl) if e["type"] == "run_state" and e["run"] == "tensorboard"]
    # A server that is behind may see ranks end before it sees others begin: the same state is then told again.
    told = [e["status"] for e in lines if e["status"] != "running"]
    assert [status for status, _ in groupby(told)] == ["killed", "finished"]
    exits = wandb_exits(story.wandb, f"{SITE}--tensorboard")
    assert [code for code, _ in groupby(exits) if code is not None] == [255, 0]


# -- the order in which streams arrive, without processes ---------------------------------------------------------------


def _view(role, attempt, end, status=""):
    return StreamView(StreamFacts(role=role, attempt=attempt, status=status, last_ns=attempt), end)


def test_a_loader_that_arrives_first_shows_that_the_next_attempt_has_begun():
    """Its parent's stream may still be on its way; the state of the attempt before is over all the same."""
    killed = [_view("main", 1, "dead"), _view("aux", 1, "dead")]
    assert derive("s", "r", killed).status == "killed"
    assert derive("s", "r", [*killed, _view("aux", 2, "dead")]).status == "running"
    both = [*killed, _view("aux", 2, "dead"), _view("main", 2, "closed", "finished")]
    assert derive("s", "r", both).status == "finished"


def test_wandb_does_not_end_the_run_again_for_a_loader_of_the_next_attempt(tmp_path):
    """A loader of the attempt that was killed comes late to its end; one of the next attempt does not."""
    state, receiver = MemoryState(), WandbOffline(str(tmp_path), {})
    receiver.open(state)
    started = ("run_start", {"api": "native", "host": "h", "pid": 1, "attempt": 1})

    def deliver(writer, role, attempt):
        stream = make_stream(writer=writer, role=role, attempt=attempt)
        points = [("metrics", {"metrics": {"loss": 1.0}, "step": step}) for step in (1, 2)]
        receiver.deliver(make_batch(stream, started, *points))
        state.commit()

    def tell(status, code):
        receiver.set_status(RunEnd(site="site-1", run="run-1", status=status, time_ns=10**18, exit_code=code))
        state.commit()

    deliver("w-1", "main", 1)
    tell("killed", None)
    deliver("w-2", "aux", 1)
    assert wandb_exits(tmp_path, "site-1--run-1") == [255, 255]
    deliver("w-3", "aux", 2)
    assert wandb_exits(tmp_path, "site-1--run-1") == [255, 255, None]
    deliver("w-4", "main", 2)
    tell("finished", 0)
    assert wandb_exits(tmp_path, "site-1--run-1") == [255, 255, 0]
