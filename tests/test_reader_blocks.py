"""Lines decoded a block at a time mean the same as one at a time, whatever is damaged, and wherever a read ends."""

import os
import random

import pytest
from spool_help import make_writer, write_metrics

from spoolagent.format import layout, reader
from spoolagent.format.lines import encode_line
from spoolagent.format.reader import StreamReader

SEEDS = range(25)


def damaged(tmp_path, rng):
    """A stream of a few segments in which some lines are changed, removed, doubled or swapped."""
    writer = make_writer(tmp_path, segment_bytes=rng.choice((2000, 40_000)))
    write_metrics(writer, rng.randrange(5, 700))
    writer.close()
    (key,) = layout.iter_streams(str(tmp_path))
    folder = layout.stream_dir(str(tmp_path), key)
    for first in layout.list_segments(folder):
        path = os.path.join(folder, layout.segment_name(first))
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")[:-1]
        for _ in range(rng.choice((0, 0, 1, 3))):
            damage(lines, rng)
        with open(path, "wb") as file:
            file.write(b"".join(line + b"\n" for line in lines))
    return folder


def damage(lines, rng):
    at = rng.randrange(len(lines))
    odd = [
        lambda: lines[at][:-3] + b"x" + lines[at][-2:],
        lambda: lines[at].replace(b"loss", b"lost"),
        lambda: b"",
        lambda: encode_line({"seq": at, "time": 1})[:-1],  # no type
        lambda: encode_line({"seq": str(at), "time": 1, "type": "metrics"})[:-1],
        lambda: b',"crc":"00000000"}',  # the checksum of nothing
    ]
    what = rng.randrange(len(odd) + 3)
    if what < len(odd):
        lines[at] = odd[what]()
    elif what == len(odd):
        del lines[at]
    elif what == len(odd) + 1:
        lines.insert(at, lines[at])
    else:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]


def read_all(folder, rng_seed, until):
    """Everything that is read, chunk borders aside; patience has run out already."""
    rng = random.Random(rng_seed)
    found, events, lost, bad = (
        StreamReader(folder, at_home=False, patience_s=0, patience_elsewhere_s=0),
        [],
        [],
        [],
    )
    for _ in range(5000):
        limit = found.position.next_seq + rng.randrange(1, 300) if until else None
        chunk = found.read(rng.choice((1, 1 << 20)), until_seq=limit)
        assert limit is None or chunk.lost or all(event.seq <= limit for event in chunk.events)
        events, lost, bad = events + chunk.events, lost + chunk.lost, bad + chunk.bad
        if chunk.state != "more":
            return events, lost, bad, chunk.position, chunk.state
    raise AssertionError("the reader does not come to an end")


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_and_single_lines_are_the_same(tmp_path, monkeypatch, seed):
    folder = damaged(tmp_path, random.Random(seed))
    at_once = read_all(folder, seed, until=False)
    in_batches = read_all(folder, seed, until=True)
    monkeypatch.setattr(reader, "BLOCK", 1)
    one_by_one = read_all(folder, seed, until=False)
    assert at_once == one_by_one
    assert in_batches == one_by_one
    assert all(type(event) is type(reader.Event(1, 2, "a", {})) for event in at_once[0])
