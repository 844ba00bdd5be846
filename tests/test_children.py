"""Children that Python's multiprocessing starts anew (spawn, forkserver, joblib, torch) and that log to a run."""

import subprocess
import sys
from collections import Counter

import pytest
from cli_help import clean_env
from writer_help import read_spool

from spoolagent.format.ends import DeathWatch, end_dead_stream
from spoolagent.format.facts import run_facts
from spoolagent.format.layout import iter_streams, stream_dir

SCRIPT = """
import multiprocessing, os, signal, sys, time
from spoolagent.writers import Run

def work(number):
    with Run() as run:  # a handle for each task, as a library in the child would make one
        run.log({"work": number}, step=number)
    return number

def meet(number, count=2):
    open(f"here-{number}", "w").close()
    while len([name for name in os.listdir() if name.startswith("here-")]) < count:
        time.sleep(0.005)

def hang(number):
    Run().log({"work": number})
    meet(number)
    if number:
        os._exit(0)
    time.sleep(600)

def own(number):
    Run(run=f"own-{number}").log({"work": number})

def rank(number):
    run = Run()
    meet(number)  # as ranks do in init_process_group
    run.log({"work": number})
    run.finish()

def mapped(method):
    with multiprocessing.get_context(method).Pool(2) as pool:  # ended by SIGTERM
        assert pool.map(work, range(6)) == list(range(6))

def left(method):
    children = [multiprocessing.get_context(method).Process(target=hang, args=(n,)) for n in (0, 1)]
    for child in children:
        child.start()
    children[1].join()
    children[0].kill()

def own_runs(method):
    child = multiprocessing.get_context(method).Process(target=own, args=(1,))
    child.start()
    child.join()

def joblib(method):
    from joblib import Parallel, delayed
    assert Parallel(2)(delayed(work)(n) for n in range(6)) == list(range(6))

def ranks(method):
    from torch.multiprocessing import spawn
    spawn(rank, nprocs=2)

if __name__ == "__main__":
    what, method, first = sys.argv[1:]
    run = None
    if first == "parent":
        run = Run()
        run.log({"main": 1})
    globals()[what](method)
    if run is not None:
        run.log({"main": 2})
"""


def play(tmp_path, *args):
    """Runs the script; the roles and attempts of the streams of each run, and each run's state."""
    path, spool = tmp_path / "script.py", tmp_path / "spool"
    path.write_text(SCRIPT)
    env = clean_env(SPOOLAGENT_SPOOL=str(spool), SPOOLAGENT_SITE="a", SPOOLAGENT_RUN="r", RANK="0")
    done = subprocess.run(
        [sys.executable, str(path), *args], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = read_spool(spool)
    for key in iter_streams(str(spool)):
        end_dead_stream(stream_dir(str(spool), key), DeathWatch())
    kinds = {}
    for key, (header, _) in found.items():
        kinds.setdefault(key.run, []).append((header.role, header.attempt))
    values = Counter(
        e.data["metrics"]["work"]
        for _, events in found.values()
        for e in events
        if e.type == "metrics" and "work" in e.data["metrics"]
    )
    return kinds, {facts.run: facts.state for facts in run_facts(str(spool))}, values


@pytest.mark.parametrize(
    ("what", "method"),
    [*((w, m) for w in ("mapped", "left") for m in ("spawn", "forkserver", "fork")), ("joblib", "")],
)
def test_a_child_whose_parent_logs_to_the_run_does_not_decide_its_state(tmp_path, what, method):
    """However it ends, and in the parent's attempt however often it begins."""
    kinds, states, values = play(tmp_path, what, method, "parent")
    assert states == {"r": "finished"}
    assert kinds["r"].count(("main", 1)) == 1
    assert set(kinds["r"]) == {("main", 1), ("aux", 1)}
    assert values == dict.fromkeys(range(2 if what == "left" else 6), 1)


@pytest.mark.parametrize(("first", "role"), [("parent", "aux"), ("nobody", "main")])
def test_ranks_that_torch_spawns_are_the_run_unless_their_parent_is(tmp_path, first, role):
    kinds, states, values = play(tmp_path, "ranks", "", first)
    assert states == {"r": "finished"}
    assert kinds["r"].count((role, 1)) == 2
    assert values == {0: 1, 1: 1}


def test_a_child_with_a_run_of_its_own_decides_that(tmp_path):
    kinds, states, _ = play(tmp_path, "own_runs", "spawn", "parent")
    assert kinds == {"r": [("main", 1)], "own-1": [("main", 1)]}
    assert states == {"r": "finished", "own-1": "finished"}
