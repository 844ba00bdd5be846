"""What a hostile site, or an accident, can put into a spool: no agent hangs or ends, and the other streams arrive."""

import os
import shutil

import pytest
import shipping_help as h
from spool_help import make_writer, write_metrics
from test_worker import Agent

from spoolagent.errors import FormatError
from spoolagent.format.facts import run_facts
from spoolagent.format.layout import LIVE_FILE, PRUNED_FILE, end_name, list_segments, segment_name, stream_dir
from spoolagent.format.lines import encode_line, seal
from spoolagent.format.plain import NotPlain, open_plain
from spoolagent.format.spool import open_spool
from spoolagent.fsck import fsck
from spoolagent.repair import repair
from spoolagent.testing import MemoryReceiver
from spoolagent.undertaker import Undertaker

HUGE = 1 << 40
"""A sparse file of so many bytes: whoever reads it through does not come back."""


def fifo(path):
    os.mkfifo(path)


def link(path):
    os.symlink("/dev/zero", path)


def loop(path):
    os.symlink(path, path)


def folder(path):
    os.mkdir(path)


def huge(path):
    with open(path, "wb") as file:
        file.truncate(HUGE)


def over_long(path):
    """A line of a later segment that never ends."""
    with open(path, "wb") as file:
        file.truncate(3 << 20)


def lines(*values):
    def write(path):
        with open(path, "wb") as file:
            file.write(
                b"".join(value if isinstance(value, bytes) else encode_line(value) for value in values)
            )

    return write


DEEP = seal(b'{"seq":7,"time":1,"type":"custom","name":"x","data":' + b"[" * 200_000 + b"]" * 200_000)
BIG = 2**63
WEIRD_END = {"length": -5, "last": BIG, "sha256": "x", "reason": {"a": 1}, "time": BIG}
BIG_END = {"length": 1 << 62, "last": BIG - 1, "sha256": "x", "reason": "r", "time": 1}
EVENTS = (
    {"seq": 7.0, "time": 1, "type": "metrics"},
    {"seq": True, "time": 1, "type": "metrics"},
    {"seq": BIG - 1, "time": 1, "type": "metrics", "metrics": {}},
    {"seal": BIG, "closed": True},
    {"seal": -5, "closed": False},
    {"seal": True, "closed": True},
)
CASES = [
    *[
        (name, how)
        for name in ("first", "next", "end", "pruned", "LIVE")
        for how in (fifo, link, loop, folder)
    ],
    *[(name, huge) for name in ("end", "pruned", "LIVE")],
    ("next", over_long),
    ("first", lines({"format": 1, "attempt": BIG, "first": -1})),
    ("more", lines(DEEP)),
    ("more", lines(*EVENTS)),
    ("end", lines(WEIRD_END)),
    ("end", lines(BIG_END)),
    ("pruned", lines({"through": BIG + 5, "prev": "x", "time": 1})),
    ("pruned", lines({"through": 1 << 62, "prev": "x", "time": 1})),
    *[
        (name, shutil.copy)
        for name in ("0" * 20 + ".jsonl", "0" * 20 + "1.jsonl", "9" * 20 + ".jsonl", "9" * 20 + ".end")
    ],
]


def plant(stream, name, how):
    first = os.path.join(stream, segment_name(1))
    path = {
        "first": first,
        "more": os.path.join(stream, "aside"),
        "next": os.path.join(stream, segment_name(7)),
        "end": os.path.join(stream, end_name(1)),
        "pruned": os.path.join(stream, PRUNED_FILE),
        "LIVE": os.path.join(stream, LIVE_FILE),
    }.get(name, os.path.join(stream, name))
    if how is shutil.copy:
        shutil.copy(first, path)
        return
    if os.path.lexists(path):
        os.unlink(path)
    how(path)
    if name == "more":
        with open(path, "rb") as file, open(first, "ab") as segment:
            segment.write(file.read())
        os.unlink(path)


def dead_writer(spool, run):
    writer = h.new_writer(spool, run=run)
    for step in range(5):
        writer.append("metrics", {"metrics": {"loss": step / 3}, "step": step})
    writer._close_files()
    return writer._dir


@pytest.mark.parametrize("shipped", [False, True])
@pytest.mark.parametrize(("name", "how"), CASES)
def test_nothing_in_one_stream_harms_the_others(tmp_path, name, how, shipped):
    spool = h.make_spool(tmp_path / "spool")
    streams = [dead_writer(spool, run) for run in ("a", "bad", "z")]
    if shipped:  # it is the server's copy that was tampered with
        h.ship_once(spool, tmp_path / "server")
        home, spool = spool, str(tmp_path / "server")
        streams = [os.path.join(spool, os.path.relpath(stream, home)) for stream in streams]
    plant(streams[1], name, how)
    Undertaker(open_spool(spool), stale_after_s=0.0).sweep()
    if shipped:
        h.ship_once(home, spool)
    h.ship_once(spool, tmp_path / "next")
    assert [run.state for run in run_facts(spool) if run.run != "bad"] == ["killed", "killed"]
    for place in (spool, str(tmp_path / "next")):
        receiver = MemoryReceiver()
        Agent(place, receiver).run()
        arrived = {key.run: len(events) for key, events in receiver.events.items()}
        assert (arrived["a"], arrived["z"]) == (6, 6)
        assert receiver.statuses["site-1", "z"].status == "killed"
    found = [finding.message for finding in fsck(spool) if finding.severity == "error"]
    if how in (fifo, link, loop, folder) and name in ("first", "next", "pruned"):
        assert "is not a plain file: to every reader it is missing" in found
    list(repair(spool))


def test_only_plain_files_are_opened(tmp_path):
    whole, other = tmp_path / "file", tmp_path / "link"
    whole.write_bytes(b"content")
    os.symlink(whole, other)
    with open_plain(str(whole)) as file:
        assert file.read() == b"content"
    with pytest.raises(NotPlain):
        open_plain(str(other))
    with pytest.raises(NotPlain):
        open_plain(str(tmp_path))
    os.unlink(other)
    os.mkfifo(other)
    with pytest.raises(NotPlain):  # and does not wait for somebody who writes into it
        open_plain(str(other))


def test_many_small_segments_are_read_in_one_listing(tmp_path, monkeypatch):
    """Each one listed the directory anew, so that 10,000 segments took minutes, and a million would never end."""
    from spoolagent.format import reader

    writer = h.new_writer(tmp_path, segment_bytes=1)
    for step in range(300):
        writer.append("metrics", {"metrics": {"loss": step / 3}, "step": step})
    writer.close()
    stream = stream_dir(str(tmp_path), h.layout.StreamKey(writer.site, writer.run, writer.writer))
    assert len(list_segments(stream)) > 250
    listed = []
    monkeypatch.setattr(reader, "list_segments", lambda path: listed.append(path) or list_segments(path))
    one, state = reader.StreamReader(stream, at_home=False), "more"
    count = 0
    while state == "more":
        chunk = one.read()
        state, count = chunk.state, count + len(chunk.events)
    assert (state, count) == ("closed", 301)
    assert len(listed) < 5


def test_a_spool_json_that_is_no_plain_file(tmp_path):
    """Nobody waits for it; `fsck --repair` makes the right one from what the streams say."""
    spool = tmp_path / "spool"
    writer = make_writer(spool)
    write_metrics(writer, 3)
    writer.close()
    uuid = open_spool(str(spool)).uuid
    os.unlink(spool / "spool.json")
    os.mkfifo(spool / "spool.json")
    with pytest.raises(FormatError, match=r"no plain file.*fsck --repair"):
        open_spool(str(spool))
    assert all(step.done for step in repair(str(spool)))
    assert open_spool(str(spool)).uuid == uuid
