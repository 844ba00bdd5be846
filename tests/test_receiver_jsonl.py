"""JSON lines: every field of every event, once, in order; no file of somebody else's is written."""

import os

import orjson
import pytest
from report_facts import counted
from tb_help import Killed, clone, cuts, killed_at, plant, tree, without_fsync

from spoolagent.contract import RunEnd
from spoolagent.errors import UsageError
from spoolagent.receivers.jsonl import JsonLinesReceiver
from spoolagent.testing import MemoryState, make_batch, make_stream

STREAM = make_stream()
FIRST = [
    ("run_start", {"api": "native", "host": "h", "attempt": 1}),
    ("metrics", {"metrics": {"a": 0.1}, "step": 1}),
]
SECOND = [
    ("metrics", {"metrics": {"a": "NaN", "ü": 2**63}, "crc": "0badcafe"}),
    ("text", {"key": "t", "text": 'line\nbreak "q"'}),
    ("custom", {"name": "x", "data": {"$bytes": "AA=="}}),
    ("run_end", {"status": "finished", "exit_code": 0}),
]
END = RunEnd(site="site-1", run="run-1", status="finished", time_ns=123, exit_code=0)


def started(path, state=None):
    receiver = JsonLinesReceiver(str(path), {})
    receiver.open(state if state is not None else MemoryState())
    return receiver


def read(path):
    with open(path, "rb") as file:
        data = file.read()
    assert data.endswith(b"\n")
    return [orjson.loads(line) for line in data.splitlines()]


def expected(events, first_seq=1):
    made = []
    for seq, (kind, fields) in enumerate(events, first_seq):
        time_ns = STREAM.created_ns + seq * 1_000_000
        rest = {name: value for name, value in fields.items() if name != "crc"}
        made.append(
            {
                "site": "site-1",
                "run": "run-1",
                "writer": "w-1",
                "seq": seq,
                "time": time_ns,
                "type": kind,
                **rest,
            }
        )
    return made  # fmt: skip


def test_each_event_is_a_line_with_all_its_fields(tmp_path):
    path, state = tmp_path / "sub" / "events.jsonl", MemoryState()
    receiver = started(path, state)
    assert receiver.deliver(make_batch(STREAM, *FIRST)).skipped == {}
    receiver.deliver(make_batch(STREAM, *SECOND, first_seq=3))
    receiver.set_status(END)
    state.commit()
    receiver.set_status(END)  # the same state again is no change
    status = {
        "site": "site-1",
        "run": "run-1",
        "type": "run_state",
        "status": "finished",
        "time": 123,
        "exit_code": 0,
    }
    assert read(path) == [*expected(FIRST + SECOND), status]
    assert list(read(path)[1]) == ["site", "run", "writer", "seq", "time", "type", "metrics", "step"]


@pytest.mark.bytes
@without_fsync()
def test_a_crash_at_every_byte_gives_the_same_file(tmp_path):
    root, state = tmp_path / "t", MemoryState()
    receiver = started(root / "e.jsonl", state)
    receiver.deliver(make_batch(STREAM, *FIRST))
    state.commit()
    before = tree(root)
    receiver.deliver(make_batch(STREAM, *SECOND, first_seq=3))
    state.rollback()
    after = tree(root)
    for files in counted("JSON lines, crash", cuts(before, after, ["e.jsonl"])):
        plant(root, files)
        other = clone(state)
        again = started(root / "e.jsonl", other)
        again.deliver(make_batch(STREAM, *SECOND, first_seq=3, again=True))
        other.commit()
        assert tree(root) == after
    again.set_status(END)
    assert read(root / "e.jsonl")[-1]["type"] == "run_state"


def test_a_kill_at_every_fault_point_gives_the_same_file(tmp_path):
    point, died = 0, True
    while died:
        path, state, died, left = tmp_path / str(point) / "e.jsonl", MemoryState(), False, point
        steps = [
            lambda r: r.deliver(make_batch(STREAM, *FIRST)),
            lambda r: r.set_status(END),
            lambda r: r.deliver(make_batch(STREAM, *SECOND, first_seq=3)),
        ]
        for step in steps:
            try:
                with killed_at(left, log := []):
                    step(started(path, state))
                left -= len(log)
            except Killed:
                died, left = True, 10**6
                state.rollback()
                step(started(path, state))
            state.commit()
        lines = read(path)
        assert lines[:2] + lines[3:] == expected(FIRST + SECOND)
        assert lines[2]["status"] == "finished"
        assert os.listdir(path.parent) == ["e.jsonl"]
        point += 1
    assert point > 6


def test_a_file_that_is_cut_or_removed_goes_on_in_a_later_named_one(tmp_path):
    state = MemoryState()
    started(tmp_path / "e.jsonl", state).deliver(make_batch(STREAM, *FIRST))
    state.commit()
    os.truncate(tmp_path / "e.jsonl", 10)
    started(tmp_path / "e.jsonl", state).deliver(make_batch(STREAM, *SECOND, first_seq=3))
    assert os.path.getsize(tmp_path / "e.jsonl") == 10
    assert read(tmp_path / "e-2.jsonl") == expected(SECOND, 3)
    os.unlink(tmp_path / "e-2.jsonl")
    started(tmp_path / "e.jsonl", state).deliver(make_batch(STREAM, *FIRST, first_seq=7))
    assert read(tmp_path / "e-3.jsonl") == expected(FIRST, 7)


def test_targets_that_cannot_be(tmp_path):
    (tmp_path / "theirs").write_text("data")
    (tmp_path / "empty").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "x")
    for target, step in (
        (tmp_path, "name a file in it"),
        (tmp_path / "theirs", "choose another FILE"),
        (tmp_path / "empty", "choose another FILE"),
        (tmp_path / "theirs" / "x", "choose another place"),
        ("/dev/null", "choose another FILE"),
    ):
        with pytest.raises(UsageError, match=step):
            started(target)
    for target in ("", "dir/"):
        with pytest.raises(UsageError, match="write jsonl:FILE"):
            JsonLinesReceiver(target, {})
    with pytest.raises(UsageError, match="no options"):
        JsonLinesReceiver("x", {"indent": 2})
    assert (tmp_path / "theirs").read_text() == "data"
    assert JsonLinesReceiver(str(tmp_path / "." / "a"), {}).identity == f"jsonl:{tmp_path}/a"
