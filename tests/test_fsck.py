"""`fsck` finds what was damaged, and nothing in a healthy spool."""

import os
import random
import shutil
from collections import Counter

import pytest
from cli_help import key_of, read, segment_of, write, write_and_die, write_stream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_facts import counted

from spoolagent.errors import UsageError
from spoolagent.format import blobs
from spoolagent.format.ends import DeathWatch, end_dead_stream
from spoolagent.format.layout import blob_dir, blob_path, end_name, list_segments, segment_name, stream_dir
from spoolagent.format.lines import encode_line
from spoolagent.format.spool import create_spool
from spoolagent.fsck import fsck, spool_bytes


@pytest.fixture
def spool(tmp_path):
    return create_spool(str(tmp_path / "spool")).path


def check(spool, **more):
    return list(fsck(spool, **more))


def messages(spool, severity=None):
    return [f"{f.path} {f.place} {f.message}" for f in check(spool) if severity in (None, f.severity)]


def only(spool, severity):
    """The one finding there is, which has this severity and says what to do."""
    (found,) = check(spool)
    assert found.severity == severity, found
    assert found.next_step
    return found


def rewrite_line(path, number, change):
    """Changes line `number` (from 0) of a segment and gives it a right checksum again."""
    lines = read(path).split(b"\n")
    lines[number] = encode_line(change(_fields(lines[number])))[:-1]
    write(path, b"\n".join(lines))


def _fields(line):
    import orjson

    data = orjson.loads(line)
    del data["crc"]
    return data


def with_blob(spool, data=b"payload", **more):
    """A closed stream with an event that names a blob."""
    ref = {**blobs.put_bytes(spool, "site-a", data), **more}
    stream = write_stream(spool, end=None, close=False)
    stream.append("text", {"key": "t", "blob": ref})
    stream.append("artifact", {"files": [{"path": "a/b", "blob": ref}]})
    stream.close()
    return stream, ref


def test_healthy_spools(spool):
    assert check(spool) == []
    with_blob(spool)
    write_stream(spool, "run-2", events=80, segment_bytes=1000)
    still = write_stream(spool, "run-3", site="site-b", end=None, close=False, role="aux")
    assert check(spool) == []
    done = []
    list(fsck(spool, progress=done.append))
    live = os.path.getsize(os.path.join(stream_dir(spool, key_of(still)), "LIVE"))
    assert sum(done) == spool_bytes(spool) - live
    still.close()


def test_no_spool(tmp_path):
    with pytest.raises(UsageError, match="it does not exist"):
        check(str(tmp_path / "none"))


@pytest.mark.bytes
def test_any_flipped_bit_of_a_segment_is_found(spool):
    write_stream(spool, events=2)
    path = segment_of(spool)
    whole = read(path)
    for place in counted("fsck, segment flipped", range(len(whole))):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.randrange(8)
        write(path, damaged)
        assert messages(spool, "error"), f"byte {place} of {whole!r} as {damaged[place]:#x} was not noticed"
    write(path, whole)
    assert check(spool) == []


@pytest.mark.bytes
def test_any_truncation_of_a_closed_stream_is_noticed(spool):
    write_stream(spool, events=2)
    path = segment_of(spool)
    whole = read(path)
    for length in counted("fsck, segment cut", range(len(whole))):
        write(path, whole[:length])
        found = messages(spool, "error") + messages(spool, "warning")
        assert found, f"cut to {length} bytes"


def test_a_flipped_bit_in_one_of_many_segments(spool):
    stream = write_stream(spool, events=80, segment_bytes=1000)
    first = list_segments(stream_dir(spool, key_of(stream)))[2]
    path = segment_of(spool, key_of(stream), first)
    lines = read(path).split(b"\n")
    lines[3] = lines[3].replace(b'"step"', b'"stop"')
    write(path, b"\n".join(lines))
    bad, missing = check(spool)
    assert (bad.severity, bad.path, bad.message) == ("error", path, "checksum does not match")
    assert bad.place == f"line 4, byte {sum(len(line) + 1 for line in lines[:3])}"
    assert missing.message == f"seq {first + 2} is missing: it stood in the damaged bytes before"
    assert missing.severity == "error"


def test_a_change_with_a_right_checksum_is_found_by_the_hashes(spool):
    stream = write_stream(spool, events=80, segment_bytes=1000)
    path = segment_of(spool)
    rewrite_line(path, 2, lambda data: {**data, "metrics": {"loss": 7.0}})
    assert (
        only(spool, "error").message
        == "the seal's hash is not that of the bytes before it: they were changed"
    )
    rewrite_line(path, -2, lambda data: {**data, "sha256": _hash_before_seal(path)})
    found = only(spool, "error")
    assert found.message == "its hash is not the one in the next header: bytes were changed, added or lost"
    assert found.path == path
    assert len(list_segments(stream_dir(spool, key_of(stream)))) > 3


def _hash_before_seal(path):
    import hashlib

    data = read(path)
    return hashlib.sha256(data[: data.rfind(b'{"seal"')]).hexdigest()


def test_missing_segments(spool):
    stream = write_stream(spool, events=80, segment_bytes=1000)
    segments = list_segments(stream_dir(spool, key_of(stream)))
    os.unlink(segment_of(spool, key_of(stream), segments[1]))
    found = only(spool, "error")
    assert found.message.startswith(f"seqs {segments[1]} to {segments[2] - 1} are missing before it")
    os.unlink(segment_of(spool, key_of(stream), 1))
    assert only(spool, "error").message.startswith(f"seqs 1 to {segments[2] - 1} are missing before it")


def test_a_pruned_front_is_no_error(spool):
    stream = write_stream(spool, events=80, segment_bytes=1000)
    folder = stream_dir(spool, key_of(stream))
    segments = list_segments(folder)
    import hashlib

    prev = hashlib.sha256(read(os.path.join(folder, segment_name(segments[1])))).hexdigest()
    for first in segments[:2]:
        os.unlink(os.path.join(folder, segment_name(first)))
    pruned = os.path.join(folder, "pruned.json")
    write(pruned, encode_line({"through": segments[2] - 1, "prev": prev, "time": 1}))
    assert check(spool) == []
    write(pruned, encode_line({"through": segments[2] - 1, "prev": "0" * 64, "time": 1}))
    assert only(spool, "error").message == "`prev` is not the hash that pruned.json names"
    write(pruned, encode_line({"through": segments[2] - 3, "prev": prev, "time": 1}))
    assert "are missing before it" in only(spool, "error").message
    write(pruned, b"nonsense\n")
    assert check(spool)[0].message == "is damaged"


def test_a_living_writer_in_the_middle_of_a_line(spool):
    stream = write_stream(spool, end=None, close=False)
    os.write(stream._segment.fd, b'{"seq":7,"time":1')
    assert check(spool) == []
    stream.close()


def test_a_dead_writer(spool):
    key = write_and_die(spool, events=3, torn=b'{"seq":5,"time":1')
    assert "its writer died; its last line is torn (17 bytes)" in only(spool, "info").message
    end_dead_stream(stream_dir(spool, key), DeathWatch())
    assert only(spool, "info").message == "17 torn bytes behind the last whole line, as its .end says"


def end_of(spool, key):
    return os.path.join(stream_dir(spool, key), end_name(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 1_000_000}, "bytes, its .end says 1000000: bytes are missing"),
        ({"length": 77}, "its .end says 77 bytes, where no line ends"),
        ({"sha256": "0" * 64}, "its .end names another hash of its bytes"),
        ({"last": 3}, "its .end says last seq 3, it is 4"),
    ],
)
def test_an_end_that_does_not_agree(spool, change, message):
    key = write_and_die(spool, events=3)
    end_dead_stream(stream_dir(spool, key), DeathWatch())
    assert check(spool) == []
    rewrite_line(end_of(spool, key), 0, lambda data: {**data, **change})
    assert message in only(spool, "error").message


def test_damaged_void_and_stray_ends(spool):
    key = write_and_die(spool, events=3)
    end_dead_stream(stream_dir(spool, key), DeathWatch())
    whole = read(end_of(spool, key))
    write(end_of(spool, key), whole.replace(b"last", b"lost"))
    assert [f.message for f in check(spool) if f.severity == "error"] == ["is damaged"]
    write(end_of(spool, key), whole)
    with open(segment_of(spool, key), "ab") as file:
        file.write(encode_line({"seq": 5, "time": 1, "type": "metrics", "metrics": {}}))
    assert "which is void: the writer turned out to live" in only(spool, "info").message
    os.rename(end_of(spool, key), os.path.join(stream_dir(spool, key), end_name(9)))
    assert "its segment is not here" in messages(spool, "warning")[0]


def test_headers_that_do_not_belong_here(spool):
    stream = write_stream(spool)
    folder = stream_dir(spool, key_of(stream))
    moved = os.path.join(os.path.dirname(os.path.dirname(folder)), "other-run", "other-writer")
    shutil.copytree(folder, moved)
    found = [f for f in check(spool) if f.severity == "error"]
    assert [f.message for f in found] == [
        f"says writer '{stream.writer}', the directory says 'other-writer'",
        "says run 'run-1', the directory says 'other-run'",
    ]
    fork = f"{folder}.fork-0123abcd"
    os.rename(moved, fork)
    assert only(spool, "warning").message == f"a fork of writer {stream.writer}: two streams had this name"
    shutil.rmtree(fork)
    os.rename(os.path.join(folder, segment_name(1)), os.path.join(folder, segment_name(3)))
    texts = messages(spool, "error")
    assert any("says first seq 1, the file name says 3" in text for text in texts)
    assert any("seqs 1 to 2 are missing before it" in text for text in texts)


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (0, {"run": 7}, "has no valid header (run)"),
        (0, {"prev": "0" * 64}, "`prev` is not null in a stream's first segment"),
        (2, {"seq": 9}, "seqs 2 to 8 are missing: they came with bytes that are not here"),
        (2, {"seq": 1}, "seq 1 stands there a second time"),
        (2, {"time": "now"}, "no event: seq, time or type are not what they must be"),
        (-2, {"seal": 99}, "seqs 8 to 99 are missing"),
        (-2, {"seal": 3}, "the seal says last seq 3, it is 7"),
        (-2, {"sha256": "0" * 64}, "the seal's hash is not that of the bytes before it"),
    ],
)
def test_wrong_lines_with_a_right_checksum(spool, line, change, message):
    write_stream(spool)
    rewrite_line(segment_of(spool), line, lambda data: {**data, **change})
    assert any(message in text for text in messages(spool, "error")), messages(spool)


def test_lines_behind_the_seal_and_a_segment_behind_the_end(spool):
    stream = write_stream(spool, events=2)
    with open(segment_of(spool), "ab") as file:
        file.write(encode_line({"seq": 5, "time": 1, "type": "metrics", "metrics": {}}))
    assert only(spool, "error").message == "a line behind the seal"
    with open(segment_of(spool), "r+b") as file:
        file.truncate(read(segment_of(spool)).rfind(b'{"seq":5'))
    header = _fields(read(segment_of(spool)).split(b"\n")[0])
    import hashlib

    header |= {"first": 5, "prev": hashlib.sha256(read(segment_of(spool))).hexdigest()}
    write(segment_of(spool, key_of(stream), 5), encode_line(header))
    assert "follows a segment by which the writer had closed the stream" in only_error(spool)
    header["role"] = "aux"
    write(segment_of(spool, key_of(stream), 5), encode_line(header))
    assert any(
        "spool, run, writer, role or attempt are not those" in text for text in messages(spool, "error")
    )


def only_error(spool):
    (found,) = messages(spool, "error")
    return found


def test_a_line_of_over_a_megabyte(spool):
    stream = write_stream(spool, end=None, close=False, events=1)
    os.write(stream._segment.fd, b"x" * (3 << 20) + b"\n")
    stream._segment.size += (3 << 20) + 1
    stream.append("metrics", {"metrics": {"loss": 1.0}})
    assert "a line of over 1 MiB" in only_error(spool)
    stream.close()


def test_events_that_receivers_will_refuse(spool):
    stream = write_stream(spool, end=None, close=False)
    stream.append("hologram", {"x": 1})
    stream.append("metrics", {"metrics": {"loss": "high"}})
    stream.close()
    unknown, malformed = check(spool)
    assert "seq 7: unknown event type 'hologram'" in unknown.message
    assert "seq 8: malformed metrics event" in malformed.message
    assert {unknown.severity, malformed.severity} == {"warning"}


def test_blobs(spool):
    stream, ref = with_blob(spool)
    path = blob_path(spool, "site-a", ref["sha256"])
    write(path, b"pAyload")
    assert only(spool, "error").message == "its content does not match its name"
    os.unlink(path)
    found = only(spool, "error")
    assert (found.path, found.message) == (path, "is missing")
    assert found.place.startswith(f"named by {segment_of(spool)}, line 8")
    write(path, b"payload")
    assert check(spool) == []
    orphan = blobs.put_bytes(spool, "site-a", b"orphan")
    found = only(spool, "info")
    assert found.message == f"1 blobs ({orphan['size']} bytes) are named by no event at hand"
    write(os.path.join(blob_dir(spool, "site-a"), "stray"), b"")
    write(os.path.join(os.path.dirname(path), ".tmp-x"), b"")
    assert Counter(f.severity for f in check(spool)) == {"info": 1, "warning": 1}
    del stream


def test_a_blob_of_another_size_than_the_event_says(spool):
    _, ref = with_blob(spool, size=3)
    assert f"says that blob {ref['sha256'][:12]} has 3 bytes, it has 7" in only_error(spool)


def test_equal_blobs_of_two_sites_are_two(spool):
    with_blob(spool)
    blobs.put_bytes(spool, "site-b", b"payload")
    write_stream(spool, "run-9", site="site-b")
    found = only(spool, "info")
    assert found.path == blob_dir(spool, "site-b")
    assert check(spool, site="site-a") == []
    assert len(check(spool, site="site-b")) == 1


def test_newer_formats_are_parked(spool):
    write_stream(spool)
    path = segment_of(spool)
    _, rest = read(path).split(b"\n", 1)
    write(path, encode_line({"format": 2, "new": 1}) + rest)
    found = only(spool, "warning")
    assert found.path == os.path.dirname(path)
    assert "is of format 2, this version reads 1" in found.message
    assert "upgrade spoolagent" in found.next_step
    write(os.path.join(spool, "spool.json"), b'{"format":3,"spool":"x"}')
    found = only(spool, "warning")
    assert "says format 3, this version reads format 1" in found.message


def test_a_damaged_spool_file(spool):
    write_stream(spool)
    write(os.path.join(spool, "spool.json"), b'{"format":1')
    found = only(spool, "error")
    assert found.path == os.path.join(spool, "spool.json")
    assert found.message.startswith("is damaged (")


def test_names_and_strays(spool, tmp_path):
    write_stream(spool, "Run-1")
    runs = os.path.join(spool, "sites", "site-a", "runs")
    shutil.copytree(os.path.join(runs, "Run-1"), os.path.join(runs, "run-1"))
    write(os.path.join(runs, "notes.txt"), b"")
    os.mkdir(os.path.join(runs, "not legal"))
    os.symlink(tmp_path, os.path.join(spool, "sites", "linked"))
    write(os.path.join(spool, "README"), b"")
    write(os.path.join(os.path.dirname(segment_of(spool)), "00000000000000000001.jsonl.bak"), b"")
    os.mkdir(os.path.join(runs, "run-2"))
    os.mkdir(os.path.join(runs, "run-2", "w"))
    errors = messages(spool, "error")
    assert any("differs only by case from 'Run-1'" in text for text in errors)
    warned = [
        f"{f.path.removeprefix(spool + '/')}: {f.message.split(';')[0]}"
        for f in check(spool)
        if f.severity == "warning"
    ]
    assert [text for text in warned if "jsonl.bak" not in text] == [
        "README: is no file of a spool",
        "sites/linked: is a symbolic link",
        "sites/site-a/runs/not legal: is no run of a spool",
        "sites/site-a/runs/notes.txt: is no run of a spool",
        "sites/site-a/runs/run-2/w: holds no segment",
    ]
    assert sum("jsonl.bak" in text for text in warned) == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_any_file_is_a_finding_and_no_crash(tmp_path_factory, data):
    spool = create_spool(str(tmp_path_factory.mktemp("fsck") / "spool")).path
    with_blob(spool)
    write_stream(spool, "run-2", events=20, segment_bytes=700)
    assert check(spool) == []
    files = sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(os.path.join(spool, "sites"))
        for name in names
    )
    path = data.draw(st.sampled_from(files))
    whole = read(path)
    how = data.draw(st.sampled_from(["flip", "cut", "insert", "remove", "garbage"]))
    place = data.draw(st.integers(0, len(whole) - 1))
    if how == "flip":
        write(
            path,
            whole[:place] + bytes([whole[place] ^ 1 << data.draw(st.integers(0, 7))]) + whole[place + 1 :],
        )
    elif how == "cut":
        write(path, whole[:place])
    elif how == "insert":
        write(path, whole[:place] + data.draw(st.binary(min_size=1, max_size=20)) + whole[place:])
    elif how == "garbage":
        write(path, data.draw(st.binary(max_size=200)))
    else:
        os.unlink(path)
    assert messages(spool)
