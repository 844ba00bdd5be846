"""Cursors that are put back to an earlier commit, as with a spool that is restored from a backup, change nothing.

The mirror beside the files of a target knows better. MLflow has none: what came since is delivered again, in other
batches and another order of the streams, and it shows all of it once.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import sqlite3
import threading
from collections import Counter

import pytest
from spool_help import make_writer
from tb_help import records
from test_contract import TARGETS, make_folder
from test_worker import Agent, Crash
from wandb_help import comparable, config_of, read_records, rows_of, summary_of

from spoolagent.format.blobs import put_bytes
from spoolagent.format.spool import create_spool
from spoolagent.serving import store as store_module
from spoolagent.serving.store import target_dir
from spoolagent.testing import set_fault

KINDS = sorted(set(TARGETS) - {"memory"})


class History:
    """Two runs with several streams, that end, are resumed and end again, in phases; the same bytes each time."""

    def __init__(self, path):
        self.path = str(path)
        create_spool(self.path)
        self.blob = put_bytes(self.path, "site-1", b"\0\x80\xff" * 12)
        self.ticks = itertools.count(1_700_000_000_000_000_000, 3_000_000)
        self.number, self.step, self.open = 0, 0, {}

    def play(self, phase, patch):
        patch.setattr("time.time_ns", lambda: next(self.ticks))
        patch.setattr("spoolagent.format.stream.new_writer_id", self.name)
        getattr(self, f"phase_{phase}")()
        patch.undo()

    def name(self):
        self.number += 1
        return f"w-{self.number}"

    def begin(self, label, run, **options):
        attempt = options.get("attempt", 1)
        start = {"project": "p", "host": "h", "attempt": attempt, "rank": options.pop("rank", 0)}
        self.open[label] = make_writer(
            self.path, run=run, start={**start, "config": {f"c-{label}": 1}, "tags": {"by": label}}, **options
        )

    def log(self, label, count):
        writer = self.open[label]
        for _ in range(count):
            self.step += 1
            writer.append(
                "metrics", {"metrics": {"loss": self.step / 7, label: self.step}, "step": self.step}
            )
        writer.append("text", {"key": f"note-{label}", "text": "Größe", "step": self.step})
        writer.append("metrics", {"metrics": {"sub": 0.5}, "step": self.step, "context": {"subrun": "val"}})
        writer.append("summary", {"summary": {f"best-{label}": self.step, "best": self.step}})
        writer.append("log", {"message": f"line {self.step}", "level": "INFO"})
        writer.append("custom", {"name": "x", "data": 1})

    def end(self, label, status, code):
        writer = self.open.pop(label)
        writer.append("run_end", {"status": status, "exit_code": code})
        writer.close()

    def phase_1(self):
        self.begin("a", "run-1")
        self.begin("b", "run-1", rank=1)
        self.begin("c", "run-1", role="aux")
        self.begin("d", "run-2")
        for label in "abcdab":
            self.log(label, 3)

    def phase_2(self):
        shape = {"encoding": "raw", "height": 3, "width": 4, "channels": 3}
        self.open["b"].append("image", {"key": "im", "step": 1, "blob": self.blob, **shape})
        self.open["a"].append("artifact", {"path": "out", "files": [{"path": "f.bin", "blob": self.blob}]})
        self.log("a", 2)
        self.end("a", "finished", 0)
        self.end("b", "failed", 3)
        self.log("c", 2)
        self.end("d", "finished", 0)

    def phase_3(self):
        self.end("c", "finished", 0)
        self.begin("e", "run-1", attempt=2)
        self.log("e", 4)

    def phase_4(self):
        self.log("e", 3)
        self.end("e", "finished", 0)
        self.begin("f", "run-2", attempt=2)
        self.log("f", 2)


class Copies:
    """A copy of the database after each commit, and how to put one back."""

    def __init__(self, folder):
        self.folder = folder
        self.count = 0

    @contextlib.contextmanager
    def kept(self):
        real = store_module.Store.commit

        def commit(store, *args, **kwargs):
            real(store, *args, **kwargs)
            self.count += 1
            with contextlib.closing(sqlite3.connect(self.folder / str(self.count))) as copy:
                store._db.backup(copy)

        store_module.Store.commit = commit
        try:
            yield
        finally:
            store_module.Store.commit = real

    def put_back(self, number, spool, identity):
        folder = target_dir(spool, identity)
        for name in ("state.sqlite", "state.mirror"):
            for end in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(folder, name + end))
        shutil.copyfile(self.folder / str(number), os.path.join(folder, "state.sqlite"))

    def cut(self, number):
        """Forgets the later ones: they are of a history that did not happen."""
        self.count = number


def deliver(spool, target, max_events, crash_at=None):
    """Delivers until nothing is left. With `crash_at`, the process dies before so many durable operations."""
    receiver, left = target.make(), [crash_at]

    def fault(operation, path):
        if threading.current_thread() is not threading.main_thread():
            return  # a writer that renews its lock
        left[0] -= 1
        if left[0] < 0:
            raise Crash

    if crash_at is not None:
        set_fault(fault)
    agent = Agent(spool, receiver, max_events=max_events)
    try:
        agent.run()
        assert agent.lost == agent.dead == 0, agent.said
    finally:
        set_fault(None)
        receiver.close()
    return agent


def contents(kind, target):
    """What a reader is shown, whatever the order of the streams and the size of the batches."""
    if kind == "jsonl":
        lines = target.snapshot()
        states = {line["run"]: line for line in lines if line["type"] == "run_state"}
        return Counter(json.dumps(line) for line in lines if line["type"] != "run_state"), states
    if kind == "mlflow":
        # A run that was ended, put back and resumed may be shown as ended until it ends again: docs/reliability.md
        running = ("'RUNNING'", "'FINISHED'")
        return [sorted(repr(row).replace(*running) for row in table) for table in target.snapshot()]
    if kind == "tensorboard":
        return Counter(
            (os.path.dirname(name), value.tag, event.wall_time, event.step, value.SerializeToString())
            for name in target.snapshot()
            if "tfevents" in name
            for event in records(target.path / name)
            for value in event.summary.value
        )
    runs = {}
    for log in sorted(target.path.glob("offline-run-*/run-*.wandb")):
        found = read_records(log)
        rows, lines, held = runs.setdefault(log.name, (Counter(), Counter(), {}))
        rows.update(json.dumps({k: v for k, v in row.items() if k != "_step"}) for row in rows_of(found))
        lines.update(r.output_raw.line for r in found if r.WhichOneof("record_type") == "output_raw")
        config, summary = held.setdefault("config", {}), held.setdefault("summary", {})
        config |= config_of(found)
        summary |= comparable(summary_of(found))
        summary.pop("_step", None)  # as of the rows: which stream's row came last
        held["exit"] = [r.exit.exit_code for r in found if r.WhichOneof("record_type") == "exit"]
    return runs


@pytest.mark.parametrize("kind", KINDS)
def test_put_back_to_every_commit(kind, tmp_path, monkeypatch):
    """The whole history is in the target; the database is that of any commit before."""
    history, target = History(tmp_path / "spool"), TARGETS[kind](make_folder(tmp_path, "target"))
    copies = Copies(make_folder(tmp_path, "copies"))
    with copies.kept():
        for phase in (1, 2, 3, 4):
            history.play(phase, monkeypatch)
            deliver(history.path, target, 5)
    want, identity = target.snapshot(), target.make().identity
    assert copies.count > 40
    again = 0
    for number in range(1, copies.count + 1, 9 if kind == "mlflow" else 1):
        copies.put_back(number, history.path, identity)
        with contextlib.suppress(Crash):
            deliver(history.path, target, 2 + number % 7, crash_at=number % 23 if number % 2 else None)
        again += deliver(history.path, target, 3 + number % 5).worker.delivered
        assert target.snapshot() == want, number
    assert (again > 100) == (kind == "mlflow"), "events came again"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_put_back_while_the_history_goes_on(kind, seed, tmp_path, monkeypatch):
    """After each phase the database is put back to some earlier commit, and workers die on the way to the end."""
    dice, crashes = random.Random(seed), 0
    history = History(tmp_path / "spool")
    calm, rough = (TARGETS[kind](make_folder(tmp_path, name)) for name in ("calm", "rough"))
    copies, identity = Copies(make_folder(tmp_path, "copies")), rough.make().identity
    for phase in (1, 2, 3, 4):
        history.play(phase, monkeypatch)
        deliver(history.path, calm, 5)
        for _ in range(2 if kind == "mlflow" else 4):
            with copies.kept():
                try:
                    deliver(history.path, rough, dice.randint(1, 9), crash_at=dice.randint(3, 60))
                except Crash:
                    crashes += 1
            if copies.count:
                copies.put_back(number := dice.randint(1, copies.count), history.path, identity)
                copies.cut(number)
        with copies.kept():
            deliver(history.path, rough, dice.randint(1, 9))
    assert crashes >= 4
    assert contents(kind, rough) == contents(kind, calm)
