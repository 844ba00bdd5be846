"""The stream reader against damage: each seq is delivered as it was issued, or lost, and nothing is invented."""

import os
import shutil

import pytest
from report_facts import counted
from spool_help import make_writer, write_metrics

from spoolagent.format import layout
from spoolagent.format.ends import DeathWatch, end_dead_stream
from spoolagent.format.lines import encode_line
from spoolagent.format.reader import START, StreamReader


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """These tests read thousands of files; whether they are on disk is tested elsewhere."""
    monkeypatch.setattr("spoolagent.format.durable.fsync_fd", lambda fd, path: None)
    monkeypatch.setattr("spoolagent.format.durable.fsync_dir", lambda path: None)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def build(spool, count=12, segment_bytes=700):
    writer = make_writer(spool, segment_bytes=segment_bytes)
    write_metrics(writer, count)
    writer.close()
    (key,) = layout.iter_streams(str(spool))
    return layout.stream_dir(str(spool), key)


def drain(reader, clock=None, limit=1000):
    """Reads until nothing more comes; with a clock, patience runs out whenever the reader is blocked."""
    events, lost, bad = [], [], []
    for _ in range(limit):
        chunk = reader.read()
        events += chunk.events
        lost += chunk.lost
        bad += chunk.bad
        if chunk.state == "blocked" and clock is not None:
            clock.now += 100_000
        elif chunk.state != "more":
            return events, lost, bad, chunk
    raise AssertionError("the reader never came to rest")


def lost_seqs(lost):
    return [seq for item in lost for seq in range(item.first, item.last + 1)]


@pytest.fixture
def stream(tmp_path):
    return build(tmp_path / "s")


@pytest.fixture
def issued(stream):
    events, lost, bad, chunk = drain(StreamReader(stream, at_home=True))
    assert not lost and not bad and chunk.state == "closed" and [e.seq for e in events] == list(range(1, 14))
    return events


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_small_reads_give_the_same_events(stream, issued, limit):
    reader = StreamReader(stream, at_home=True)
    got = []
    while True:
        chunk = reader.read(until_seq=reader.position.next_seq + limit - 1)
        assert len(chunk.events) <= limit
        got += chunk.events
        if chunk.state == "closed":
            break
    assert got == issued


def test_a_reader_resumes_at_every_position(stream, issued):
    reader = StreamReader(stream, at_home=True)
    seen = []
    while True:
        chunk = reader.read(until_seq=reader.position.next_seq)
        seen += chunk.events
        rest, *_ = drain(StreamReader(stream, reader.position, at_home=True))
        assert seen + rest == issued
        if chunk.state == "closed":
            break


def segments(stream):
    return [os.path.join(stream, layout.segment_name(n)) for n in layout.list_segments(stream)]


def conserved(issued, events, lost):
    by_seq = {e.seq: e for e in issued}
    assert all(by_seq.get(e.seq) == e for e in events), "an event was invented or changed"
    assert [e.seq for e in events] == sorted({e.seq for e in events}), "order or repeats"
    assert sorted([e.seq for e in events] + lost_seqs(lost)) == sorted(by_seq), (
        "a seq is neither delivered nor lost"
    )


@pytest.mark.bytes
def test_a_flipped_bit_at_every_byte_of_every_segment(stream, issued):
    for path in segments(stream):
        raw = open(path, "rb").read()
        for at in counted("the reader, segment flipped", range(len(raw))):
            changed = bytearray(raw)
            changed[at] ^= 1 << (at % 8)
            open(path, "wb").write(changed)
            clock = Clock()
            reader = StreamReader(stream, at_home=True, clock=clock)
            events, lost, bad, chunk = drain(reader, clock)
            if chunk.state == "waiting":  # the closing seal is damaged: the agent ends the stream
                assert end_dead_stream(stream, DeathWatch())
                more, more_lost, more_bad, chunk = drain(reader, clock)
                events, lost, bad = events + more, lost + more_lost, bad + more_bad
                assert drain(reader, clock)[3].state == "dead"
                for name in os.listdir(stream):
                    if name.endswith(".end"):
                        os.unlink(os.path.join(stream, name))
            assert chunk.state in ("closed", "dead")
            conserved(issued, events, lost)
            assert len(lost_seqs(lost)) <= 2, f"{path} byte {at}: only the record may be lost, not {lost}"
            in_events = raw[:at].count(b"\n") > 0
            assert bad or not in_events
        open(path, "wb").write(raw)


@pytest.mark.bytes
def test_truncation_at_every_byte_of_every_segment(stream, issued):
    for path in segments(stream):
        raw = open(path, "rb").read()
        for length in counted("the reader, segment cut", range(len(raw))):
            open(path, "wb").write(raw[:length])
            clock = Clock()
            last = path == segments(stream)[-1]
            reader = StreamReader(stream, at_home=True, clock=clock)
            events, lost, _, chunk = drain(reader, clock)
            if last:  # a writer that was killed there: nothing is lost that was whole
                assert events == issued[: len(events)] and not lost and chunk.state in ("waiting", "closed")
                open(path, "wb").write(raw)  # the rest arrives
                more, lost, bad, chunk = drain(reader, clock)
                assert events + more == issued and not lost and not bad and chunk.state == "closed"
            else:
                conserved(issued, events, lost)
        open(path, "wb").write(raw)


def test_a_truncated_middle_segment_waits_where_it_was_not_born(stream, issued):
    path = segments(stream)[0]
    raw = open(path, "rb").read()
    open(path, "wb").write(raw[: len(raw) // 2])
    clock = Clock()
    reader = StreamReader(stream, at_home=False, clock=clock)
    events, lost, _, chunk = drain(reader)
    assert chunk.state == "blocked" and "not complete" in chunk.note and not lost
    clock.now += 3600  # the shipper is still at it
    assert drain(reader)[3].state == "blocked"
    open(path, "wb").write(raw)
    more, lost, bad, _ = drain(reader)
    assert events + more == issued and not lost and not bad


def test_a_bad_line_that_heals_is_read(stream, issued):
    path = segments(stream)[0]
    raw = open(path, "rb").read()
    at = raw.index(b'"loss":0.125')
    hole = raw[:at] + b"\0" * 20 + raw[at + 20 :]
    open(path, "wb").write(hole)
    clock = Clock()
    reader = StreamReader(stream, at_home=True, clock=clock)
    events, _, _, chunk = drain(reader)
    assert chunk.state == "blocked" and "bad line" in chunk.note
    clock.now += 59
    assert drain(reader)[3].state == "blocked"
    open(path, "wb").write(raw)
    more, lost, bad, _ = drain(reader)
    assert events + more == issued and not lost and not bad


def test_a_missing_segment_is_lost_after_patience(stream, issued):
    paths = segments(stream)
    first, last = layout.list_segments(stream)[1:3]
    os.unlink(paths[1])
    clock = Clock()
    reader = StreamReader(stream, at_home=True, clock=clock)
    assert drain(reader)[3].state == "blocked"
    events, lost, _, _ = drain(StreamReader(stream, at_home=True, clock=clock), clock)
    conserved(issued, events, lost)
    assert lost_seqs(lost) == list(range(first, last))


def test_garbage_between_lines_costs_nothing_but_itself(stream, issued):
    path = segments(stream)[0]
    lines = open(path, "rb").read().splitlines(keepends=True)
    stray = encode_line({"seq": 2, "time": 1, "type": "custom"})
    open(path, "wb").write(b"".join([*lines[:3], b"garbage\n", stray, *lines[3:]]))
    clock = Clock()
    events, lost, bad, _ = drain(StreamReader(stream, at_home=True, clock=clock), clock)
    assert [e.seq for e in events][:5] == [1, 2, 3, 4, 5]
    conserved(issued, events, lost)
    assert [b.data for b in bad][:2] == [b"garbage\n", stray] and not [x for x in lost if x.last < 5]


def test_over_a_megabyte_without_a_newline_is_put_aside(tmp_path):
    stream = build(tmp_path / "s", segment_bytes=1 << 20)
    (path,) = segments(stream)
    lines = open(path, "rb").read().splitlines(keepends=True)
    open(path, "wb").write(b"".join([*lines[:4], b"x" * (3 << 20) + b"\n", *lines[4:]]))
    clock = Clock()
    events, lost, bad, chunk = drain(StreamReader(stream, at_home=True, clock=clock), clock)
    assert len(events) == 13 and not lost and chunk.state == "closed"
    assert sum(len(b.data) for b in bad) == (3 << 20) + 1


def test_a_dead_streams_end_ends_it_and_a_longer_file_voids_it(tmp_path):
    writer = make_writer(tmp_path / "s")
    write_metrics(writer, 5)
    (key,) = layout.iter_streams(str(tmp_path / "s"))
    stream = layout.stream_dir(str(tmp_path / "s"), key)
    copy = str(tmp_path / "copy")
    shutil.copytree(stream, os.path.join(copy, key.writer))
    stream_copy = os.path.join(copy, key.writer)
    os.unlink(os.path.join(stream_copy, "LIVE"))
    assert end_dead_stream(stream_copy, DeathWatch())
    reader = StreamReader(stream_copy, at_home=True)
    events, _, _, chunk = drain(reader)
    assert chunk.state == "dead" and len(events) == 6
    write_metrics(writer, 2, 5)  # it lives after all
    shutil.copy(segments(stream)[0], segments(stream_copy)[0])
    events, lost, bad, chunk = drain(reader)
    assert [e.seq for e in events] == [7, 8] and chunk.state == "waiting" and not lost and not bad
    writer.close()
    shutil.copy(segments(stream)[0], segments(stream_copy)[0])
    assert drain(reader)[3].state == "closed"


@pytest.mark.bytes
def test_a_flipped_bit_at_every_byte_of_an_end_is_as_if_it_were_missing(tmp_path):
    writer = make_writer(tmp_path / "s")
    write_metrics(writer, 2)
    (key,) = layout.iter_streams(str(tmp_path / "s"))
    stream = str(tmp_path / "copy" / key.writer)
    shutil.copytree(layout.stream_dir(str(tmp_path / "s"), key), stream)
    writer.close()
    os.unlink(os.path.join(stream, "LIVE"))
    end_dead_stream(stream, DeathWatch())
    path = os.path.join(stream, layout.end_name(1))
    raw = open(path, "rb").read()
    for at in counted(".end flipped", range(len(raw))):
        changed = bytearray(raw)
        changed[at] ^= 1 << (at % 8)
        open(path, "wb").write(changed)
        events, lost, bad, chunk = drain(StreamReader(stream, at_home=True))
        assert len(events) == 3 and not lost and not bad and chunk.state == "waiting"
        assert end_dead_stream(stream, DeathWatch())  # the agent at home writes it anew
        assert drain(StreamReader(stream, at_home=True))[3].state == "dead"


def dead_copy(tmp_path, count=6, segment_bytes=16 << 20):
    """A stream whose writer died, with its `.end`; and its events."""
    writer = make_writer(tmp_path / "s", segment_bytes=segment_bytes)
    write_metrics(writer, count)
    (key,) = layout.iter_streams(str(tmp_path / "s"))
    stream = str(tmp_path / "copy" / key.writer)
    shutil.copytree(layout.stream_dir(str(tmp_path / "s"), key), stream)
    writer.close()
    os.unlink(os.path.join(stream, "LIVE"))
    assert end_dead_stream(stream, DeathWatch())
    return stream, drain(StreamReader(stream, at_home=True))[0]


@pytest.mark.parametrize("end", ["whole", "flipped", "cut"])
@pytest.mark.parametrize("read", [0, 4, 99])
def test_an_end_remembers_what_its_segment_lost(tmp_path, end, read):
    """The agent writes the `.end` anew; what the old one knew of must not be gone without a word."""
    stream, issued = dead_copy(tmp_path)
    clock = Clock()
    reader = StreamReader(stream, at_home=True, clock=clock)
    early = reader.read(until_seq=read).events if read else []
    (path,) = segments(stream)
    lines = open(path, "rb").read().splitlines(keepends=True)
    open(path, "wb").write(b"".join(lines[:3]))
    side = os.path.join(stream, layout.end_name(1))
    raw = open(side, "rb").read()
    if end == "flipped":
        open(side, "wb").write(raw.replace(b"sha256", b"sha257"))
    elif end == "cut":
        open(side, "wb").write(raw[: raw.index(b"sha256")])
    assert end_dead_stream(stream, DeathWatch())
    events, lost, _, chunk = drain(reader, clock)
    assert chunk.state == "dead"
    conserved(issued, early + events, lost)
    open(path, "wb").write(b"".join(lines))  # somebody put the bytes back
    assert end_dead_stream(stream, DeathWatch())
    events, lost, bad, chunk = drain(StreamReader(stream, at_home=True))
    assert events == issued and chunk.state == "dead" and not lost and not bad


@pytest.mark.parametrize("read", [0, 99])
def test_a_last_segment_that_is_gone_at_home_is_on_record(tmp_path, read):
    stream, issued = dead_copy(tmp_path, 20, 700)
    clock = Clock()
    reader = StreamReader(stream, at_home=True, clock=clock)
    early = reader.read(until_seq=3).events if not read else drain(reader, clock)[0]
    os.unlink(segments(stream)[-1])
    assert end_dead_stream(stream, DeathWatch())
    events, lost, _, chunk = drain(reader, clock)
    assert chunk.state == "dead"
    conserved(issued, early + events, lost)
    assert bool(lost) is not bool(read)


def test_what_was_pruned_before_it_was_read_is_lost_on_record(stream, issued):
    first, second = layout.list_segments(stream)[:2]
    os.unlink(segments(stream)[0])
    with open(os.path.join(stream, "pruned.json"), "wb") as file:
        file.write(encode_line({"through": second - 1, "prev": "0" * 64, "time": 1}))
    events, lost, bad, chunk = drain(StreamReader(stream, at_home=True))
    assert chunk.state == "closed" and not bad and lost_seqs(lost) == list(range(first, second))
    conserved(issued, events, lost)
    reader = StreamReader(stream, START._replace(segment=second, offset=0, next_seq=second), at_home=True)
    assert not drain(reader)[1]  # a receiver that had read them loses nothing


def test_a_newer_format_is_parked(tmp_path):
    stream = tmp_path / "w"
    stream.mkdir()
    (stream / layout.segment_name(1)).write_bytes(
        encode_line({"format": 2, "spool": "x", "anything": 1}) + b"{}\n"
    )
    chunk = StreamReader(str(stream), at_home=True).read()
    assert (
        chunk.state == "parked" and "format 2" in chunk.note and "upgrade" in chunk.note and not chunk.events
    )


def test_a_segment_of_another_stream_is_not_read(stream, tmp_path):
    other = build(tmp_path / "other")
    shutil.copy(segments(other)[0], segments(stream)[0])
    clock = Clock()
    chunk = StreamReader(stream, at_home=True, clock=clock).read()
    assert chunk.state == "blocked" and "says that it is" in chunk.note and not chunk.events


def damaged_tail(stream):
    """The newline of the last event, and the closing seal, are destroyed. Returns the path and the whole bytes."""
    path = segments(stream)[-1]
    raw = open(path, "rb").read()
    seal = raw.rindex(b"\n", 0, -1)
    changed = bytearray(raw)
    changed[seal] ^= 1
    changed[-9] ^= 1
    open(path, "wb").write(changed)
    return path, raw


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("at_home", [False, True])
@pytest.mark.parametrize("ended", [False, True])
def test_a_stream_whose_last_lines_heal_after_they_were_given_up(stream, issued, at_home, ended, restarted):
    path, raw = damaged_tail(stream)
    clock = Clock()
    reader = StreamReader(stream, at_home=at_home, clock=clock)
    events, _, bad, chunk = drain(reader, clock)
    assert chunk.state == "waiting" and len(bad) == 1 and events == issued[:-1]
    if ended:
        end_dead_stream(stream, DeathWatch())
    open(path, "wb").write(raw)
    os.utime(path, ns=(1, 1))
    if restarted:
        reader = StreamReader(stream, reader.position, at_home=at_home, clock=clock)
    more, lost, bad, chunk = drain(reader, clock)
    assert events + more == issued and chunk.state == "closed" and not lost and not bad


@pytest.mark.parametrize("restarted", [False, True])
def test_a_stream_whose_last_lines_never_heal_elsewhere(stream, issued, restarted):
    """Its writer closed it, so no `.end` will come; the site is gone."""
    damaged_tail(stream)
    clock = Clock()
    reader = StreamReader(stream, at_home=False, clock=clock)
    events, _, bad, chunk = drain(reader, clock)
    assert chunk.state == "waiting" and len(bad) == 1
    if restarted:
        reader = StreamReader(stream, reader.position, at_home=False, clock=clock)
        assert drain(reader)[3].state == "waiting"
    clock.now += 86_000
    assert not drain(reader)[1]
    clock.now += 1_000
    more, lost, bad, chunk = drain(reader)
    conserved(issued, events + more, lost)
    assert not bad and chunk.state == "waiting"
    clock.now += 200_000
    assert drain(reader)[1] == []
    clock.now += 200_000
    assert drain(reader)[1] == []
