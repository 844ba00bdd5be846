"""SIGKILL in the middle of a write to an event file and to a `.wandb` log, so that half a record is left.

Batches are large (about 8 MB, one write), and the worker is killed as soon as its file is seen to grow. What it left
is counted; the next life must complete it, in the same file. SPOOLAGENT_KILLS / 50 lives are ended so.
"""

import glob
import json
import os
import signal
import struct
from collections import Counter

import pytest
from kill_help import is_dead
from report_facts import add
from schedule_help import Service
from sizes import KILLS
from spool_help import make_writer, until
from tb_help import f32, records
from wandb_help import read_log, read_records, rows_of

LIVES = max(3, KILLS // 50)
BATCH = 10
KEYS = 3500
NAME = "n" * 200

pytestmark = pytest.mark.kill


def points(step):
    """One event's metrics: as many as a line of 1 MiB can hold."""
    return {f"{NAME}{k:04d}": (step * KEYS + k) / 7 for k in range(KEYS)}


def torn_event_file(data):
    """How many bytes at the end are no whole record."""
    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        if at + length + 16 > len(data):
            break
        at += length + 16
    return len(data) - at


def in_event_file(path):
    found = Counter()
    for event in records(path):
        found.update((v.tag, event.step, v.simple_value) for v in event.summary.value if NAME in v.tag)
    return found


def in_wandb_log(path):
    found = Counter()
    for row in rows_of(read_records(path)):
        found.update((name, row["_step"], value) for name, value in row.items() if NAME in name)
    return found


KINDS = {
    "tensorboard": ("tensorboard:{}", "**/*tfevents*", torn_event_file, in_event_file, f32),
    "wandb": ("wandb:offline:{}", "**/*.wandb", lambda data: read_log(data)[1], in_wandb_log, float),
}


@pytest.mark.timeout(240 + 20 * LIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_half_a_record_is_completed(tmp_path, kind):
    spec, pattern, torn_bytes, read_back, rounded = KINDS[kind]
    spool, out, config = tmp_path / "spool", tmp_path / "out", tmp_path / "agent.toml"
    write_spool(spool)
    config.write_text(
        f'spool = {json.dumps(str(spool))}\n[serve]\nto = ["out"]\n[receivers.out]\n'
        f"to = {json.dumps(spec.format(out))}\nmax_events = {BATCH}\nmax_bytes = {32 << 20}\n"
    )
    kills = torn = whole = 0
    for life in range(LIVES):
        grown = killed_as_it_grows(tmp_path, life, config, out, pattern)
        if grown is None:
            break
        kills += 1
        with open(grown, "rb") as file:
            left = torn_bytes(file.read())
        torn += bool(left)
        whole += not left
    add("SIGKILLs", **{f"worker, as its {kind} file grew": kills})
    add("restarts that found half a record", **{kind: torn})
    assert kills >= LIVES // 2 and torn >= 1, (kills, torn, whole)
    with Service(tmp_path, "last", "replay", "--config", config) as last:
        assert last.process.wait(200) == 0, last.log
    (path,) = glob.glob(os.path.join(out, pattern), recursive=True)
    want = Counter(
        (name, step, rounded(value)) for step in range(LIVES * BATCH) for name, value in points(step).items()
    )
    assert read_back(path) == want


def write_spool(spool):
    writer = make_writer(spool, start={"host": "h", "pid": 1, "attempt": 1}, durability="process")
    for step in range(LIVES * BATCH):
        writer.append("metrics", {"metrics": points(step), "step": step})
    writer.append("run_end", {"status": "finished", "exit_code": 0})
    writer.close()
    assert writer.dropped == 0


def killed_as_it_grows(folder, life, config, out, pattern):
    """The file in the middle of whose growth the worker was killed; None when it got to its end."""
    before = sizes(out, pattern)
    with Service(folder, f"life-{life}", "replay", "--config", config) as replay:
        (worker,) = until(lambda: replay.workers() or replay.process.poll() is not None, what="a worker")
        while not is_dead(worker):  # as fast as it can be looked
            grown = [path for path, size in sizes(out, pattern).items() if size > before.get(path, 0)]
            if grown:
                os.kill(worker, signal.SIGKILL)
                until(lambda: is_dead(worker), what="its end")
                assert replay.process.wait(60) == 1, replay.log
                return grown[0]
        assert replay.process.wait(60) == 0, replay.log
    return None


def sizes(out, pattern):
    found = glob.glob(os.path.join(out, pattern), recursive=True)
    return {path: os.path.getsize(path) for path in found}
