"""A live TensorBoard reads a run's directory while the receiver is killed ten times and starts again.

Once with TensorBoard's fast loader (a Rust data server), once without: it must end up showing every point once, with
its own step, value and time, and never show one twice on the way.
"""

import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from acceptance_help import (
    Process,
    agent,
    kill_if_alive,
    points_of,
    scalars,
    script,
    site_env,
    spool_events,
    tensorboard_runs,
)
from cli_help import clean_env
from mlflow_help import free_port
from spool_help import until
from tb_help import event_files, f32

KILLS = 10
LOADERS = ["true", "false"]
"""--load_fast"""
RUN = "site-1/live"
TAGS = ["loss", "acc/val"]

TRAINING = """
import os, sys, time
from spoolagent.writers.tensorboard import SummaryWriter
stop, enough = sys.argv[1], int(sys.argv[2])
step = 0
with SummaryWriter("logs") as run:
    while step < enough or not os.path.exists(stop):
        for _ in range(5):
            run.add_scalar("loss", 1 / (step + 1), step)
            run.add_scalar("acc/val", step / 7, step)
            step += 1
        time.sleep(0.02)
"""


class TensorBoard(Process):
    """A TensorBoard that reloads every second and keeps every scalar."""

    def __init__(self, logdir, fast, cwd):
        self.port = free_port()
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--reload_interval", "1", "--load_fast", fast]
        command += [
            "--samples_per_plugin",
            "scalars=1000000",
        ]  # 0, said to keep all, makes the plugin show none
        super().__init__(command, cwd, env=clean_env(), name=f"tensorboard-{fast}")

    def points(self, tag):
        """(step, value, wall time) of every point that it shows now; None while it shows nothing of the run."""
        query = urllib.parse.urlencode({"run": RUN, "tag": tag})
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/data/plugin/scalars/scalars?{query}", timeout=30
            ) as answer:
                found = json.loads(answer.read())
        except (OSError, urllib.error.HTTPError):
            assert self.is_running, self.said
            return None
        return [(step, value, wall) for wall, step, value in found]


class Receiver:
    """`spoolagent serve` with one worker. `kill_worker` and `kill_all` are SIGKILLs."""

    def __init__(self, folder):
        self.folder = folder
        config = (
            f'spool = "spool"\n[receivers.live]\nto = "tensorboard:{folder}/tb"\nflush_interval = "20ms"\n'
        )
        (folder / "live.toml").write_text(config + '[serve]\nto = ["live"]\n')
        self.kills = 0
        self.start()

    def start(self):
        self.serve = agent("serve", "--config", "live.toml", cwd=self.folder, name="serve")

    def worker(self):
        """The pid of the worker process, when there is one now."""
        found = self.serve.children()
        assert len(found) <= 1
        return found[0] if found else None

    def kill_worker(self):
        pid = until(self.worker, what="a worker process")
        kill_if_alive(pid)
        self.kills += 1

    def kill_all(self):
        """The supervisor first, so that it cannot start another worker; then the worker itself."""
        pid = until(self.worker, what="a worker process")
        self.serve.kill()
        kill_if_alive(pid)
        self.kills += 1


def written(folder):
    """Bytes of the event files."""
    place = folder / "tb" / RUN
    return sum(os.path.getsize(path) for path in event_files(place)) if place.exists() else 0


def wait_for_growth(folder):
    """Until the receiver has appended something new."""
    before = written(folder)
    until(lambda: written(folder) > before, what="new bytes in the event file")


def assert_each_once(points):
    steps = [step for step, _, _ in points or ()]
    assert len(steps) == len(set(steps))


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """The whole of it, for both loaders at once: folder, what each showed at the end, by tag."""
    folder = tmp_path_factory.mktemp("live")
    (folder / "tb").mkdir()
    stop = folder / "stop"
    training = script(TRAINING, stop, 500, cwd=folder, env=site_env(folder / "spool", "site-1", "live"))
    until((folder / "spool/spool.json").exists, what="a spool")
    receiver = Receiver(folder)
    boards = {fast: TensorBoard(folder / "tb", fast, folder) for fast in LOADERS}
    try:
        for fast, board in boards.items():
            until(lambda board=board: board.points("loss"), timeout_s=120, what=f"TensorBoard {fast}")
        while receiver.kills < KILLS:
            wait_for_growth(folder)
            receiver.kill_worker()  # the supervisor starts another
            wait_for_growth(folder)
            receiver.kill_all()
            receiver.start()
            for board in boards.values():
                assert_each_once(board.points("loss"))
        wait_for_growth(folder)
        stop.touch()
        assert training.wait() == 0, training.said
        expected = points_of(spool_events(folder / "spool", "site-1", "live"))
        shown = {
            fast: {tag: _settled(board, expected, tag) for tag in TAGS} for fast, board in boards.items()
        }
        receiver.serve.stop()
        return folder, expected, shown, {fast: board.said for fast, board in boards.items()}
    finally:
        for process in (training, receiver.serve, *boards.values()):
            process.kill()


def _settled(board, expected, tag):
    """What the board shows once it shows as many points as there are, and after another reload."""
    count = sum(name == tag for name, *_ in expected)
    until(lambda: len(board.points(tag) or ()) >= count, timeout_s=90, what=f"{count} points of {tag}")
    return board.points(tag)


@pytest.mark.parametrize("fast", LOADERS)
def test_every_point_is_shown_once(fast, story):
    _, expected, shown, _ = story
    for tag in TAGS:
        wanted = [(step, f32(value), ns / 10**9) for name, value, step, ns in expected if name == tag]
        assert len(wanted) >= 500
        assert shown[fast][tag] == wanted


@pytest.mark.parametrize("fast", LOADERS)
def test_the_loader_is_the_one_that_was_asked_for(fast, story):
    *_, said = story
    assert "Traceback" not in said[fast]
    assert (
        re.search(r"out of order|DATA_LOSS|corrupt|truncated record|checksum", said[fast], re.IGNORECASE)
        is None
    )


def test_the_receiver_wrote_one_file(story):
    """No crash left anything behind that readers would have to pass over."""
    folder, expected, *_ = story
    assert len(event_files(Path(folder) / "tb" / RUN)) == 1
    ((place, accumulator),) = tensorboard_runs(folder / "tb").items()
    assert place == RUN
    assert len(scalars(accumulator)) == len(expected)
