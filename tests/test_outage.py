"""A tracker that is down for a whole run, and comes back: everything arrives, and nobody else was delayed.

One MLflow server of its own, which is first not there, then there, then hangs, then dies in the middle of a replay.
What must happen while it is away is waited for while it is away: the order of things is the proof, not a clock.
"""

import pytest
from acceptance_help import (
    agent,
    assert_delivered_once,
    comparable,
    json_lines,
    last_states,
    mlflow_points,
    mlflow_run,
    points_of,
    run,
    scalars,
    script,
    site_env,
    spool_events,
    spool_streams,
    tensorboard_runs,
    to,
)
from mlflow_help import MlflowServer, client_of
from spool_help import until
from tb_help import f32

SITE = "site-1"
TRAINING = """
import sys
from spoolagent.writers import Run
with Run(project="outage", config={"lr": 0.1}) as run:
    for step in range(int(sys.argv[1])):
        run.log({"loss": 1 / (step + 1), "acc": step / 7}, step)
"""


class Place:
    """A working directory with a spool, three targets, and an MLflow server that is not started yet."""

    def __init__(self, folder):
        self.folder, self.spool, self.tb = folder, folder / "spool", folder / "tb"
        self.jsonl = folder / "events.jsonl"
        self.server = MlflowServer(folder / "mlflow")

    @property
    def client(self):
        return client_of(self.server.uri)

    def train(self, name, steps=200):
        """A whole run, from its first call to its end."""
        training = script(TRAINING, steps, cwd=self.folder, env=site_env(self.spool, SITE, name))
        assert training.wait() == 0, training.said

    def files_have(self, name):
        """JSON lines and TensorBoard hold the whole run, and its end."""
        lines = json_lines(self.jsonl)
        if last_states(lines).get((SITE, name)) != ("finished", 0):
            return False
        runs = tensorboard_runs(self.tb)
        points = points_of(spool_events(self.spool, SITE, name))
        return f"{SITE}/{name}" in runs and len(scalars(runs[f"{SITE}/{name}"])) == len(points)

    def check_files(self, name):
        """The same, value by value."""
        assert_delivered_once(json_lines(self.jsonl), spool_streams(self.spool, SITE, name), SITE, name)
        points = points_of(spool_events(self.spool, SITE, name))
        wanted = [(key, f32(value), step, ns / 10**9) for key, value, step, ns in points]
        assert comparable(scalars(tensorboard_runs(self.tb)[f"{SITE}/{name}"])) == comparable(wanted)

    def mlflow_has(self, name):
        """The status of the run in MLflow is final."""
        found = mlflow_run(self.client, SITE, name)
        return found is not None and found.info.status == "FINISHED"

    def check_mlflow(self, name):
        found = mlflow_run(self.client, SITE, name)
        points = points_of(spool_events(self.spool, SITE, name))
        wanted = {(key, value, step, ns // 1_000_000) for key, value, step, ns in points}
        assert comparable(mlflow_points(self.client, found)) == comparable(wanted)
        assert (found.info.status, found.data.params) == ("FINISHED", {"lr": "0.1"})


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.server.kill()


def test_down_for_a_whole_run_then_back_then_hanging(place):
    place.train("first")
    receivers = [f"mlflow:{place.server.uri}", f"tensorboard:{place.tb}", f"jsonl:{place.jsonl}"]
    with agent("serve", "--spool", place.spool, *to(*receivers), cwd=place.folder, name="serve") as serve:
        until(lambda: place.files_have("first"), what="the files, while MLflow has never been there")
        place.train("second")
        until(lambda: place.files_have("second"), what="the next run's files")
        until(lambda: "everything is kept, trying again" in serve.said, what="word of the outage")
        assert place.server.process is None
        place.server.restart()
        for name in ("first", "second"):
            until(lambda name=name: place.mlflow_has(name), timeout_s=120, what=f"{name} in MLflow")

        place.server.stop_answering()
        try:
            place.train("third")
            until(lambda: place.files_have("third"), what="the files, while MLflow hangs")
        finally:
            place.server.answer_again()
        until(lambda: place.mlflow_has("third"), timeout_s=120, what="third in MLflow")

        place.server.kill()
        place.train("fourth")
        until(lambda: place.files_have("fourth"), what="the files, while MLflow is dead again")
        serve.stop()  # it ends cleanly though a tracker is away
    said = serve.said
    assert said.count("everything is kept, trying again") <= 3  # once an outage, not once a try
    assert "Traceback" not in said

    place.server.restart()
    done = run("replay", place.spool, *to(*receivers), cwd=place.folder)
    assert done.returncode == 0, done.stderr
    for name in ("first", "second", "third", "fourth"):
        place.check_files(name)
        place.check_mlflow(name)


def test_replay_while_mlflow_is_away(place):
    """Exit code 3 and one clear line; another receiver in the same command is not begun; nothing is lost."""
    place.train("first", 5000)
    receivers = [f"mlflow:{place.server.uri}", f"jsonl:{place.jsonl}"]
    before = spool_streams(place.spool, SITE, "first")
    for command in (["replay", place.spool, *to(*receivers[:1])], ["replay", place.spool, *to(*receivers)]):
        done = run(*command, cwd=place.folder)
        assert done.returncode == 3, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("spoolagent: ")
        assert place.server.uri in line
        assert "Traceback" not in done.stdout + done.stderr
        assert json_lines(place.jsonl) == []
    assert spool_streams(place.spool, SITE, "first") == before

    place.server.restart()
    with agent(
        "replay", place.spool, *to(*receivers), "--give-up-after", "1s", cwd=place.folder, name="replay"
    ) as replay:
        until(lambda: _begun(place) or not replay.is_running, what="the first points")
        place.server.kill()
        code = replay.wait()
    assert "Traceback" not in replay.said
    if code != 0:  # it did not get through before the kill
        assert code == 3, replay.said
        assert "run it again, it goes on where it stopped" in replay.said
    assert_delivered_once(json_lines(place.jsonl), before, SITE, "first")  # not held up by the other

    place.server.restart()
    done = run("replay", place.spool, *to(*receivers), cwd=place.folder)
    assert done.returncode == 0, done.stderr
    place.check_mlflow("first")
    assert_delivered_once(json_lines(place.jsonl), before, SITE, "first")


def _begun(place):
    """MLflow has some of the run's points."""
    found = mlflow_run(place.client, SITE, "first")
    return found is not None and "loss" in found.data.metrics
