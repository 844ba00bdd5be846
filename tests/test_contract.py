"""One contract suite over every receiver: however often a worker dies around a delivery, and wherever, the tracker
ends up as if nothing had happened."""

import glob
import itertools
import json
import os
import sqlite3

import pytest
from spool_help import make_writer
from test_worker import Agent, Clock, Crash
from wandb_help import read_records, rows_of, summary_of

from spoolagent.contract import Batch
from spoolagent.errors import UsageError
from spoolagent.format.blobs import put_bytes
from spoolagent.format.spool import create_spool, open_spool
from spoolagent.serving.registry import known_kinds, load_receiver
from spoolagent.serving.store import Store
from spoolagent.testing import MemoryReceiver


class Memory:
    """The reference."""

    def __init__(self, folder):
        self.receiver = MemoryReceiver()

    def make(self):
        return self.receiver

    def snapshot(self):
        return {
            str(k): {s: e.data for s, e in v.items()} for k, v in self.receiver.events.items()
        }, self.receiver.statuses


class Jsonl:
    def __init__(self, folder):
        self.path = folder / "events.jsonl"
        self.spec = f"jsonl:{self.path}"

    def make(self):
        return load_receiver(self.spec, {})

    def snapshot(self):
        assert len(glob.glob(str(self.path) + "*")) == 1
        return [json.loads(line) for line in self.path.read_text().splitlines()]


class TensorBoard(Jsonl):
    def __init__(self, folder):
        self.path = folder / "tb"
        self.spec = f"tensorboard:{self.path}"

    def snapshot(self):
        """Every byte of every file."""
        files = [p for p in self.path.rglob("*") if p.is_file()]
        return {str(p.relative_to(self.path)): p.read_bytes() for p in files}


class Wandb(Jsonl):
    def __init__(self, folder):
        self.path = folder / "wandb"
        self.spec = f"wandb:offline:{self.path}"

    def snapshot(self):
        logs = glob.glob(str(self.path / "offline-run-*" / "run-*.wandb"))
        assert logs
        found = {}
        for path in logs:
            records = read_records(path)
            kinds = [record.WhichOneof("record_type") for record in records]
            assert kinds.count("exit") <= 1
            # A summary record follows each batch: how many there are depends on the batches, their sum does not.
            rest = [kind for kind in kinds if kind != "summary"]
            found[os.path.relpath(path, self.path)] = (rows_of(records), summary_of(records), rest)
        return found


class Mlflow(Jsonl):
    def __init__(self, folder):
        self.db = folder / "mlflow.db"
        self.spec = f"mlflow:sqlite:///{self.db}"

    def snapshot(self):
        """All rows that matter, without the ids that MLflow draws."""
        with sqlite3.connect(self.db) as db:
            metrics = db.execute(
                "SELECT key, value, timestamp, step, is_nan FROM metrics ORDER BY 1, 3, 4, 2"
            ).fetchall()
            params = db.execute("SELECT key, value FROM params ORDER BY 1").fetchall()
            tags = db.execute(
                "SELECT key, value FROM tags WHERE key NOT LIKE 'mlflow.log%' ORDER BY 1"
            ).fetchall()
            runs = db.execute(
                "SELECT name, status, start_time, end_time, lifecycle_stage FROM runs ORDER BY 1"
            ).fetchall()
        return metrics, params, tags, runs


TARGETS = {"memory": Memory, "jsonl": Jsonl, "tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow}


def fill(path, monkeypatch):
    """A run of two ranks with every kind of payload, ended; the same bytes each time."""
    ticks = itertools.count(1_700_000_000_000_000_000, 3_000_000)
    monkeypatch.setattr("time.time_ns", lambda: next(ticks))
    names = iter(["w-rank-0", "w-rank-1"])
    monkeypatch.setattr("spoolagent.format.stream.new_writer_id", lambda: next(names))
    create_spool(str(path))
    blob = put_bytes(str(path), "site-1", b"\0\x80\xff" * 12)
    start = {
        "name": "contract",
        "project": "p",
        "config": {"lr": 0.1},
        "tags": {"t": "1"},
        "host": "h",
        "pid": 1,
        "attempt": 1,
    }
    ranks = [make_writer(path, start={**start, "rank": rank}) for rank in (0, 1)]
    for rank, writer in enumerate(ranks):
        for step in range(9):
            value = "NaN" if step == 4 else step / 7 + rank
            writer.append("metrics", {"metrics": {"loss": value, f"rank{rank}": step}, "step": step})
        writer.append("metrics", {"metrics": {"loss": 1.5}, "step": 2})
        writer.append("metrics", {"metrics": {"free": 2.5}})
        writer.append("metrics", {"metrics": {"acc": 0.5}, "step": 3, "context": {"subrun": "val"}})
        writer.append("param", {"params": {f"p{rank}": [1, "x"]}})
        writer.append("tag", {"tags": {"stage": f"s{rank}"}})
        writer.append("text", {"key": f"note{rank}", "text": "Größe", "step": 1})
        shape = {"encoding": "raw", "height": 3, "width": 4, "channels": 3}
        writer.append("image", {"key": f"im{rank}", "step": 1, "blob": blob, **shape})
        histogram = {"limits": [0.5, 1.0], "counts": [1, 2], "left": 0.0}
        writer.append(
            "histogram",
            {
                "key": "h",
                "step": 1,
                "min": 0.0,
                "max": 1.0,
                "num": 3,
                "sum": 2.0,
                "sum_squares": 1.5,
                **histogram,
            },
        )
        writer.append("artifact", {"path": "out", "files": [{"path": f"f{rank}.bin", "blob": blob}]})
        writer.append("summary", {"summary": {"best": rank}})
        writer.append("custom", {"name": "x", "data": 1})
        writer.append("run_end", {"status": "failed" if rank else "finished", "exit_code": rank})
        writer.close()
    monkeypatch.undo()


class Dying:
    """A receiver around another, whose process dies before or after the nth call."""

    def __init__(self, inner, at, when):
        self.inner, self.left, self.when, self.again = inner, at, when, 0
        self.identity = inner.identity

    def open(self, state):
        self.inner.open(state)

    def close(self):
        self.inner.close()

    def deliver(self, batch: Batch):
        self.again += batch.again
        return self._call(self.inner.deliver, batch)

    def set_status(self, end):
        return self._call(self.inner.set_status, end)

    def _call(self, call, argument):
        self.left -= 1
        if self.left == 0 and self.when == "before":
            raise Crash
        outcome = call(argument)
        if self.left == 0 and self.when == "after":
            raise Crash
        return outcome


def work(path, receiver, **limits):
    agent = Agent(path, receiver, **{"max_events": 5, **limits})
    try:
        agent.run()
    finally:
        if not isinstance(receiver.inner, MemoryReceiver):
            receiver.close()
    return agent


@pytest.fixture(scope="module")
def spool(tmp_path_factory):
    path = tmp_path_factory.mktemp("contract") / "spool"
    with pytest.MonkeyPatch.context() as patch:
        fill(path, patch)
    return path


@pytest.mark.parametrize("kind", TARGETS)
def test_crashes_before_and_after_every_delivery(kind, spool, tmp_path):
    """Each crash is followed by a restart in which the next one waits: one target sees them all."""
    calm = TARGETS[kind](make_folder(tmp_path, "calm"))
    agent = work(spool, Dying(calm.make(), 0, "never"))
    assert agent.dead == 0 and agent.lost == 0
    reset(spool)
    rough = TARGETS[kind](make_folder(tmp_path, "rough"))
    crashes = again = 0
    for at in itertools.count(1):
        whens = ("after", "before") if at % 2 else ("after",)
        for when in whens:
            # max_events changes from life to life: the named batch must come again as it was.
            receiver = Dying(rough.make(), 1 if when == "before" else 2, when)
            try:
                work(spool, receiver, max_events=3 + at % 4)
            except Crash:
                crashes += 1
            else:
                break
            again += receiver.again
        else:
            continue
        break
    reset(spool)
    assert crashes >= 6 and again >= 3, (crashes, again)
    assert rough.snapshot() == calm.snapshot()


def reset(spool):
    """Forgets the cursors, for the next target."""
    import shutil

    shutil.rmtree(spool / ".agent", ignore_errors=True)


def make_folder(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    return folder


def test_every_installed_kind_is_in_this_suite():
    assert set(known_kinds()) == set(TARGETS) - {"memory"}


@pytest.mark.parametrize("kind", sorted(set(TARGETS) - {"memory"}))
def test_identity_is_that_of_the_target_and_a_wrong_option_is_named(kind, tmp_path):
    target = TARGETS[kind](tmp_path)
    assert load_receiver(target.spec, {}).identity == target.make().identity
    other = TARGETS[kind](make_folder(tmp_path, "other"))
    assert other.make().identity != target.make().identity
    with pytest.raises(UsageError, match="no_such_option"):
        load_receiver(target.spec, {"no_such_option": 1})


def test_the_worker_refuses_an_unknown_kind_with_the_nearest_name():
    with pytest.raises(UsageError, match="did you mean tensorboard"):
        load_receiver("tensorbord:x", {})


def test_open_spool_is_what_the_store_belongs_to(spool):
    with Store(open_spool(str(spool)).path, "memory:") as store:
        assert store.named() == [] and Clock()() == 1000.0
