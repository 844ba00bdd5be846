"""SIGKILL of writer, shipper, worker, supervisor and MLflow server at random moments, under load, again and again.

One pipeline of real processes: writers with four APIs -> client spool -> `ship` -> server spool -> two `serve`, one
to TensorBoard, W&B offline and JSON lines, one to an MLflow server over HTTP. Then every tracker is read with its
own reader and counted under its own identity of a point. SPOOLAGENT_KILLS says how many of our processes die, a
quarter of them of each kind; the MLflow server dies once for each hundred of these, and hangs as often.
"""

import os
import random
import time
from collections import Counter

import pytest
from kill_count import EXIT_CODES, Issued, in_jsonl, in_mlflow, in_tensorboard, in_wandb
from kill_help import KINDS, OUTAGES, RECEIVERS, Crew, count, query, told
from kill_writer import value
from mlflow_help import client_of
from report_facts import add
from sizes import KILLS, fresh_seed
from spool_help import streams, until

SEED = fresh_seed()
QUOTA = dict.fromkeys(KINDS, -(-KILLS // len(KINDS))) | dict.fromkeys(OUTAGES, KILLS // 100)
QUOTA["MLflow server"] = max(1, QUOTA["MLflow server"])
DEADLINE_S = 300 + 4 * KILLS

pytestmark = [pytest.mark.kill, pytest.mark.timeout(3 * DEADLINE_S)]


def torment(crew):
    """Kills each kind as often as QUOTA says while everything is at work."""
    done, deadline = Counter(dict.fromkeys(QUOTA, 0)), time.monotonic() + DEADLINE_S
    while any(done[kind] < QUOTA[kind] for kind in QUOTA):
        assert time.monotonic() < deadline, f"killed only {done} in {DEADLINE_S} s"
        crew.keep()
        crew.write()
        time.sleep(crew.rng.uniform(0.02, 0.3))  # not a synchronisation: the moment of the kill is chance
        kind = crew.rng.choice(due(done))
        done[kind] += crew.kill(kind)
    return done


def due(done):
    """Kinds whose turn it may be. In step: restarts of workers back off more and more while their supervisor lives."""
    least = min(done[kind] for kind in KINDS)
    kinds = [kind for kind in KINDS if done[kind] < min(QUOTA[kind], least + 4)]
    share = sum(done[kind] for kind in KINDS) / sum(QUOTA[kind] for kind in KINDS)
    return kinds + [
        kind for kind in OUTAGES if done[kind] < QUOTA[kind] and done[kind] <= share * QUOTA[kind]
    ]


def settle(crew):
    """Lets everything arrive, while the agents are kept alive: every stream ended, resolved and its run told."""
    for launch in crew.launches:
        launch.process.wait(60)
    until(lambda: crew.keep() or crew.all_ended(), what="the end of every stream")
    issued = streams(crew.client)
    lengths = {tuple(key): len(events) for key, (events, _) in issued.items()}
    runs = {key[:2] for key, (events, _) in issued.items() if events}

    def has_all():
        crew.keep()
        folders = [folder for _, folder in crew.notes()]
        return len(folders) == len(RECEIVERS) and all(_has_all(folder, lengths, runs) for folder in folders)

    until(has_all, timeout_s=DEADLINE_S, what="the arrival of everything")


def _has_all(folder, lengths, runs):
    rows = query(folder, "SELECT site, run, writer, next_seq, json_extract(facts, '$.end') FROM streams")
    resolved = {row[:3]: row[3] - 1 for row in rows if row[4]}
    states = told(folder)
    return resolved == lengths and all(states.get(run) not in (None, "running") for run in runs)


def test_random_kills_lose_nothing_and_double_nothing(tmp_path, mlflow_server, capsys):
    rng = random.Random(SEED)
    crew = Crew(tmp_path, mlflow_server, f"kill-{os.getpid()}-{SEED}", rng)
    began = time.monotonic()
    try:
        done = torment(crew)
        tormented = time.monotonic()
        settle(crew)
        codes = crew.stop()
    finally:
        crew.stop()
        if not mlflow_server.is_answering():  # it is the session's
            mlflow_server.restart()
    drained_at = time.monotonic()
    issued = Issued(streams(crew.client))
    tell(crew, done)
    add("kill loop", writers=len(crew.launches), runs=len(issued.runs))
    totals = check_all(crew, issued)
    assert codes == {"ship": 0, "files": 0, "mlflow": 0}
    assert crew.surprises() == []
    with capsys.disabled():
        print(
            f"\nseed {SEED}: kills {dict(done)} ({dict(crew.killed_workers)}), {len(crew.launches)} writers, "
            f"{len(issued.runs)} runs, {totals}; died with a batch named: {dict(crew.named)} of {crew.looks} looks; "
            f"outages with a batch in flight: {dict(crew.tracker.in_flight)}, in the store: "
            f"{dict(crew.tracker.applied)}; {tormented - began:.0f} s of kills, {drained_at - tormented:.0f} s to "
            f"drain, {time.monotonic() - drained_at:.0f} s to count"
        )
    if KILLS >= 80:
        assert sum(crew.named.values()) >= 1, "no kill met a worker between naming and committing a batch"
        assert sum(crew.tracker.in_flight.values()) >= 1, "no outage of MLflow met a batch in flight"


def tell(crew, done):
    """For the report."""
    frozen = OUTAGES[1]
    add("SIGKILLs", **{kind: number for kind, number in done.items() if kind != frozen})
    add("kill loop", seed=[SEED], **{frozen: done[frozen]})
    add("workers killed", **crew.killed_workers)
    add("workers killed with a batch in flight", **crew.named)
    add("MLflow's outages with a batch in flight", **crew.tracker.in_flight)
    add("batches in MLflow's store though nobody had said so", **crew.tracker.applied)


def check_all(crew, issued):
    """Every tracker against the plain reader's view of the client's spool."""
    check_acknowledged(crew, issued)
    assert streams(crew.server) == issued.streams
    for _, folder in crew.notes():
        assert {table: count(folder, table) for table in ("named", "dead", "lost", "quarantine")} == {
            "named": 0,
            "dead": 0,
            "lost": 0,
            "quarantine": 0,
        }
    return {
        "jsonl": check_jsonl(crew, issued),
        "tensorboard": check_tensorboard(crew, issued),
        "wandb": check_wandb(crew, issued),
        "mlflow": check_mlflow(crew, issued),
    }


def check_acknowledged(crew, issued):
    """Each call that returned is in the spool, with its value; at most the call under way came on top."""
    by_pid = {}
    for key, (events, end) in issued.streams.items():
        if events:
            assert events[0]["type"] == "run_start"
            by_pid[key.site, key.run, events[0]["pid"]] = events, end
    for launch in crew.launches:
        acks = launch.acks
        events, end = by_pid.pop((launch.site, launch.run, launch.process.pid), ([], None))
        assert events or not acks, f"{launch} acknowledged {len(acks)} calls and left no stream"
        points = [
            (name, event["step"], number)
            for event in events
            if event["type"] == "metrics"
            for name, number in event["metrics"].items()
        ]
        per_call = 1 if launch.site == "tensorboard" else 2
        names = ("train/loss", "train/acc")
        calls = acks.count(".")
        assert calls * per_call <= len(points) <= (calls + launch.killed) * per_call
        assert points == [
            (names[i % 2], launch.first + i // 2, value(launch.seed, names[i % 2], launch.first + i // 2))
            for i in range(len(points))
        ]
        if "e" in acks:
            assert (end, events[-1]["type"], events[-1]["status"]) == ("closed", "run_end", "finished")
        if not launch.killed:
            assert acks.endswith("e")
    assert not by_pid, f"streams of nobody: {by_pid.keys()}"


def check_jsonl(crew, issued):
    events, states = in_jsonl(crew.path("events.jsonl"))
    want = {
        tuple(key): [{name: item for name, item in event.items() if name != "crc"} for event in found]
        for key, (found, _) in issued.streams.items()
        if found
    }
    assert events == want
    assert {run: states.get(run) for run in issued.runs} == {run: issued.status(run) for run in issued.runs}
    return tally("jsonl", sum(map(len, want.values())), sum(map(len, events.values())))


def check_tensorboard(crew, issued):
    want = {run: issued.tensorboard(run) for run in issued.runs}
    return compared("tensorboard", want, {run: in_tensorboard(crew.path("tb"), run) for run in issued.runs})


def check_wandb(crew, issued):
    want, have = {run: issued.wandb(run) for run in issued.runs}, {}
    for run in issued.runs:
        have[run], exits = in_wandb(crew.path("wandb"), run)
        assert exits[-1] == EXIT_CODES[issued.status(run)], (run, exits, issued.status(run))
        assert None not in exits, (run, exits)
    return compared("wandb", want, have)


def check_mlflow(crew, issued):
    held = in_mlflow(client_of(crew.uri), crew.experiment)
    assert held.keys() == issued.runs.keys()
    assert {run: len(found) for run, found in held.items()} == dict.fromkeys(issued.runs, 1)
    states = {run: found[0][0] for run, found in held.items()}
    assert states == {run: issued.status(run).upper() for run in issued.runs}
    return compared(
        "mlflow",
        {run: issued.mlflow(run) for run in issued.runs},
        {run: held[run][0][1] for run in issued.runs},
    )


def compared(name, want, have):
    """Fails with what is lost, doubled and wrong, run by run; else how many were issued and delivered."""
    found = {run: differences(want[run], have[run]) for run in want}
    totals = {
        kind: sum(runs[kind].total() for runs in found.values()) for kind in ("lost", "doubled", "wrong")
    }
    add("points", **{name: totals})
    assert not any(totals.values()), [
        (run, kind, items.most_common(3))
        for run, kinds in found.items()
        for kind, items in kinds.items()
        if items
    ]
    return tally(name, sum(c.total() for c in want.values()), sum(c.total() for c in have.values()))


def differences(want, have):
    """Issued and not there; there more often than issued; never issued."""
    more = have - want
    return {
        "lost": want - have,
        "doubled": Counter({item: n for item, n in more.items() if item in want}),
        "wrong": Counter({item: n for item, n in more.items() if item not in want}),
    }


def tally(name, issued, delivered):
    """For the line that is printed."""
    add("points", **{name: {"issued": issued, "delivered": delivered}})
    assert issued == delivered > 0
    return f"{issued} = {delivered}"
