"""`fsck --repair`: what can be repaired is, nothing is made up, no segment byte changes, and a second run does nothing."""

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_help import clean_env, forked, key_of, read, segment_of, write, write_and_die, write_stream
from tb_help import Killed, killed_at

from spoolagent.errors import Locked, NewerFormat, UsageError
from spoolagent.format import blobs
from spoolagent.format.ends import DeathWatch, end_dead_stream, read_end, read_pruned
from spoolagent.format.header import read_segment_header
from spoolagent.format.layout import (
    blob_path,
    end_name,
    iter_streams,
    list_segments,
    run_dir,
    segment_name,
    site_dir,
    stream_dir,
)
from spoolagent.format.lines import encode_line
from spoolagent.format.spool import create_spool, open_spool
from spoolagent.fsck import fsck
from spoolagent.repair import repair
from spoolagent.repair_aside import lock_of, shipping_lock

OLD = 2 * 86_400


@pytest.fixture
def spool(tmp_path):
    return create_spool(str(tmp_path / "spool")).path


def segments(spool):
    """Every byte of every segment."""
    return {str(p): p.read_bytes() for p in Path(spool).rglob("*.jsonl")}


def mend(spool, **more):
    """(what was repaired, what was not), as texts; checks that segments stay and that a second repair does nothing."""
    before = segments(spool)
    found = list(repair(spool, **more))
    assert segments(spool) == before
    again = list(repair(spool, **more))
    assert [r for r in again if r.done] == [] and [r for r in again if not r.done] == [
        r for r in found if not r.done
    ]

    def text(r):
        return f"{os.path.relpath(r.path, spool)}: {r.message}"

    return [text(r) for r in found if r.done], [text(r) for r in found if not r.done]


def flip(whole, place, rng=random):
    """One bit of one byte flipped."""
    return whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :]


def errors(spool):
    return [f for f in fsck(spool) if f.severity == "error"]


def age(path, seconds=OLD):
    then = time.time() - seconds
    os.utime(path, (then, then))


def quarantine(spool):
    folder = Path(spool, ".agent", "quarantine")
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def server_of(spool, tmp_path):
    """A spool that `spool` was shipped to."""
    done = forked("ship", "--spool", spool, "--to", "server", "--once", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return str(tmp_path / "server")


def test_a_healthy_spool_is_left_alone(spool):
    write_stream(spool, events=80, segment_bytes=1000)
    still = write_stream(spool, "run-2", end=None, close=False)
    assert mend(spool) == ([], [])
    still.append("metrics", {"metrics": {"a": 1.0}})
    still.close()
    assert errors(spool) == []


def test_no_spool_and_two_repairs_at_once(tmp_path, spool):
    with pytest.raises(UsageError, match="does not exist"):
        list(repair(str(tmp_path / "none")))
    with lock_of(spool, "repair.lock", 0), pytest.raises(Locked, match="held by another process"):
        list(repair(spool))


# -- spool.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [b"", b"nonsense", b'{"format":1', None])
def test_spool_json_where_a_writer_lives(spool, left):
    uuid = open_spool(spool).uuid
    still = write_stream(spool, end=None, close=False)
    path = os.path.join(spool, "spool.json")
    os.unlink(path) if left is None else write(path, left)
    done, _ = mend(spool)
    assert done == [f"spool.json: written anew with uuid {uuid}: all 1 streams were born in it"]
    assert open_spool(spool).uuid == uuid and errors(spool) == []
    assert list(quarantine(spool).values()) == ([left] if left else [])
    still.close()


def test_any_byte_of_spool_json(spool):
    """Cut anywhere, or any bit flipped: whole again, with the same uuid."""
    write_stream(spool)
    uuid, path = open_spool(spool).uuid, os.path.join(spool, "spool.json")
    whole = read(path)
    damages = [whole[:length] for length in range(len(whole) - 1)]
    damages += [flip(whole, place) for place in range(len(whole) - 1)]
    for damaged in damages:
        write(path, damaged)
        if damaged != whole:
            try:
                list(repair(spool))
            except NewerFormat:  # format 1 became 3: who could tell?
                continue
        assert open_spool(spool).uuid == uuid, damaged
        assert errors(spool) == [], damaged


def test_a_flipped_digit_of_the_uuid_is_found(spool):
    write_stream(spool)
    uuid, path = open_spool(spool).uuid, os.path.join(spool, "spool.json")
    wrong = ("0" if uuid[0] != "0" else "1") + uuid[1:]
    write(path, read(path).replace(uuid.encode(), wrong.encode()))
    (found,) = errors(spool)
    assert found.path == path and "a bit was flipped" in found.message
    done, _ = mend(spool)
    assert done == [
        f"spool.json: written anew with uuid {uuid}: its uuid was {wrong}, its streams were born in {uuid}"
    ]
    assert errors(spool) == []


def test_the_uuid_of_a_server_is_not_taken_from_its_streams(spool, tmp_path):
    write_stream(spool)
    server = server_of(spool, tmp_path)
    uuid, path = open_spool(server).uuid, os.path.join(server, "spool.json")
    write(path, b"")
    done, left = mend(server)
    assert done == []
    born = open_spool(spool).uuid
    why = f"all streams were born in {born}, but this spool was shipped to: its own uuid is another"
    assert left == [f"spool.json: cannot be rebuilt: {why}"]
    os.unlink(path)
    assert forked("fsck", "server", "--repair", cwd=tmp_path).returncode == 1
    assert not os.path.exists(path)
    write(path, f'{{"format":1,"spool":"{uuid}"'.encode())
    assert mend(server)[0] == [
        f"spool.json: written anew with uuid {uuid}: its own bytes still name the uuid"
    ]
    assert errors(server) == []


def test_streams_of_several_spools_tell_no_uuid(spool, tmp_path):
    write_stream(spool)
    other = create_spool(str(tmp_path / "other")).path
    write_stream(other, site="site-b")
    shutil.copytree(site_dir(other, "site-b"), site_dir(spool, "site-b"))
    write(os.path.join(spool, "spool.json"), b"")
    assert mend(spool)[1] == [
        "spool.json: cannot be rebuilt: its streams were born in 2 spools, so this one was shipped to"
    ]


# -- ends ------------------------------------------------------------------------------------------------------------


def test_the_missing_end_of_a_dead_writer(spool):
    key = write_and_die(spool, events=3, torn=b'{"seq":5,"time":1')
    done, left = mend(spool)
    torn_at = len(read(segment_of(spool, key))) - 17
    folder = f"sites/site-a/runs/run-1/{key.writer}"
    assert left == [] and sorted(done) == sorted(
        [
            f"{folder}/{end_name(1)}: written: its writer is dead, and had not closed the stream",
            f"{folder}/{segment_name(1)}: 17 bad bytes at byte {torn_at} were copied to the quarantine: torn last line",
        ]
    )
    end = read_end(stream_dir(spool, key), 1)
    assert (end.last, end.length) == (4, len(read(segment_of(spool, key))) - 17)
    assert list(quarantine(spool).values()) == [b'{"seq":5,"time":1']
    assert errors(spool) == []


def test_any_damage_to_an_end_at_home(spool):
    key = write_and_die(spool, events=3)
    folder = stream_dir(spool, key)
    end_dead_stream(folder, DeathWatch())
    path = os.path.join(folder, end_name(1))
    whole, good = read(path), read_end(folder, 1)
    for place in range(0, len(whole), 7):
        for damaged in (
            whole[:place],
            flip(whole, place),
        ):
            write(path, damaged)
            assert errors(spool) != []
            (one,) = repair(spool)
            assert (one.path, one.message) == (path, "written anew, as its segment is now")
            assert read_end(folder, 1)[:3] == good[:3]
            assert errors(spool) == []
    assert whole[:7] in quarantine(spool).values()


def test_a_damaged_end_does_not_hide_that_bytes_are_missing(spool):
    key = write_and_die(spool, events=3)
    folder = stream_dir(spool, key)
    end_dead_stream(folder, DeathWatch())
    path, segment = os.path.join(folder, end_name(1)), segment_of(spool, key)
    whole, lines = read(path), read(segment).splitlines(keepends=True)
    write(segment, b"".join(lines[:-1]))
    for place in range(0, len(whole), 5):
        write(path, flip(whole, place))
        (done,) = repair(spool)
        assert done.message == "written anew, as its segment is now: seqs 4 to 4 are missing"
        assert read_end(folder, 1).last == 4
    assert forked("fsck", spool, "--repair", cwd="/").returncode == 1


def test_a_damaged_end_of_a_living_or_closed_stream(spool):
    still = write_stream(spool, end=None, close=False)
    path = os.path.join(stream_dir(spool, key_of(still)), end_name(1))
    write(path, b"nonsense")
    # The writer is a thread of this process: seen by another one, it lives.
    done = forked("fsck", spool, "--repair", cwd=os.path.dirname(spool))
    assert done.returncode == 1
    assert "is damaged, and its writer is not known to be dead" in done.stdout and read(path) == b"nonsense"
    still.close()
    done, left = mend(spool)
    assert left == [] and "moved to the quarantine: it says nothing of use any more" in done[0]
    assert errors(spool) == [] and not os.path.exists(path)


def test_a_damaged_end_on_a_server_is_brought_again(spool, tmp_path):
    key = write_and_die(spool, events=3)
    end_dead_stream(stream_dir(spool, key), DeathWatch())
    server = server_of(spool, tmp_path)
    path = os.path.join(stream_dir(server, key), end_name(1))
    whole = read(path)
    write(path, whole.replace(b"last", b"lust"))
    with shipping_lock(server, key.site, key.run):
        pass
    done, _ = mend(server)
    assert done == [
        f"{os.path.relpath(path, server)}: damaged, moved to the quarantine: the next ship brings it again"
    ]
    server_of(spool, tmp_path)
    assert read(path) == whole and errors(server) == []


# -- pruned.json -----------------------------------------------------------------------------------------------------


def with_pruned(spool):
    stream = write_stream(spool, events=80, segment_bytes=1000)
    folder = stream_dir(spool, key_of(stream))
    first, second, third = list_segments(folder)[:3]
    header = read_segment_header(os.path.join(folder, segment_name(third)))
    for gone in (first, second):
        os.unlink(os.path.join(folder, segment_name(gone)))
    path = os.path.join(folder, "pruned.json")
    write(path, encode_line({"through": third - 1, "prev": header.prev, "time": 7}))
    assert errors(spool) == []
    return folder, path


def test_any_damage_to_pruned_json(spool):
    folder, path = with_pruned(spool)
    whole, good = read(path), read_pruned(folder)
    mended = 0
    for place in range(len(whole)):
        for damaged in (whole[:place], flip(whole, place)):
            write(path, damaged)
            (one,) = repair(spool)
            if one.done:
                mended += 1
                assert read_pruned(folder) == good and errors(spool) == []
            else:
                assert read(path) == damaged and errors(spool) != []
    # Cut within `through`, nothing is left that agrees with the first segment at hand.
    assert mended >= 2 * len(whole) - len(b'{"through":123')
    assert one.done


def test_a_pruned_json_that_speaks_of_something_else_is_left(spool):
    folder, path = with_pruned(spool)
    first = list_segments(folder)[0]
    os.unlink(os.path.join(folder, segment_name(first)))  # also lost, not pruned
    write(path, read(path).replace(b'"time"', b'"tame"'))
    (text,) = mend(spool)[1]
    assert "cannot be rebuilt: what is left of it does not agree with segment" in text


# -- bad bytes, blobs, temporary files ---------------------------------------------------------------------------------


def test_bad_bytes_are_copied_and_remain_damage(spool):
    write_stream(spool, events=20)
    path = segment_of(spool)
    lines = read(path).split(b"\n")
    lines[4] = lines[4].replace(b'"step":2', b'"step":8')
    write(path, b"\n".join(lines))
    done, left = mend(spool)
    offset = sum(len(line) + 1 for line in lines[:4])
    assert left == [] and len(done) == 1 and f"bad bytes at byte {offset} were copied" in done[0]
    ((name, data),) = quarantine(spool).items()
    assert name.endswith(f"{1:020d}-{offset}") and data == lines[4] + b"\n"
    assert len(errors(spool)) == 2, "the event is lost all the same"
    assert forked("fsck", spool, "--repair", cwd="/").returncode == 1


def with_blob(spool, data=b"payload", run="run-1"):
    ref = blobs.put_bytes(spool, "site-a", data)
    stream = write_stream(spool, run, end=None, close=False)
    stream.append("text", {"key": "t", "blob": ref})
    stream.close()
    return blob_path(spool, "site-a", ref["sha256"])


def test_a_damaged_blob_makes_room_for_the_whole_one(spool, tmp_path):
    path = with_blob(spool)
    server = server_of(spool, tmp_path)
    there = path.replace(spool, server)
    write(there, b"pAyload")
    done, _ = mend(server)
    assert done == [
        f"{os.path.relpath(there, server)}: its content does not match its name: moved to the quarantine"
    ]
    assert list(quarantine(server).values()) == [b"pAyload"] and not os.path.exists(there)
    assert [f.message for f in errors(server)] == ["is missing"]
    server_of(spool, tmp_path)
    assert read(there) == b"payload" and errors(server) == []
    write(path, b"pay")  # at home: the writer logs the same content again
    assert mend(spool)[1] == []
    blobs.put_bytes(spool, "site-a", b"payload")
    assert errors(spool) == []


def test_orphans_are_removed_on_request_when_they_are_old(spool):
    kept = with_blob(spool)
    old, young = (
        blob_path(spool, "site-a", blobs.put_bytes(spool, "site-a", x)["sha256"]) for x in (b"o", b"y")
    )
    for path in (kept, old):
        age(path)
    assert mend(spool) == ([], [])
    done, left = mend(spool, orphans=True)
    assert done == ["sites/site-a/blobs: 1 blobs (1 bytes) that no event names were removed"] and left == []
    assert [os.path.exists(p) for p in (kept, old, young)] == [True, False, True]


def test_orphans_of_a_site_with_damage_are_left(spool):
    path = with_blob(spool)
    age(path)
    whole = read(segment_of(spool))
    write(segment_of(spool), whole.replace(b'"key":"t"', b'"key":"u"'))  # the event that names it
    age(blob_path(spool, "site-a", blobs.put_bytes(spool, "site-a", b"o")["sha256"]))
    (text,) = mend(spool, orphans=True)[1]
    assert "2 blobs that no event at hand names were left: the site has damage" in text
    assert os.path.exists(path)


def test_an_orphan_that_is_named_again_meanwhile_stays(spool, monkeypatch):
    write_stream(spool)
    path = blob_path(spool, "site-a", blobs.put_bytes(spool, "site-a", b"o")["sha256"])
    age(path)
    rename = os.rename

    def named_just_now(source, target):
        if source == path:
            blobs.put_bytes(spool, "site-a", b"o")
        rename(source, target)

    monkeypatch.setattr("spoolagent.repair_blobs.os.rename", named_just_now)
    list(repair(spool, orphans=True))
    assert read(path) == b"o"


def test_temporary_files_of_the_dead_are_removed(spool):
    live = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stream = write_stream(spool)
    folder = stream_dir(spool, key_of(stream))
    dead = 2**22 + 7  # no pid
    young_dead = os.path.join(folder, f".tmp-{end_name(1)}-{dead}-0123abcd")
    young_alive = os.path.join(folder, f".tmp-{end_name(1)}-{live.pid}-0123abcd")
    old_alive = os.path.join(site_dir(spool, "site-a"), f".tmp-incoming-{live.pid}-0123abcd")
    hidden = os.path.join(run_dir(spool, "site-a", "run-1"), ".tmp-w0-1")
    agents = os.path.join(spool, ".agent", "receivers", "x")
    os.makedirs(hidden)
    os.makedirs(agents)
    for path in (young_dead, young_alive, old_alive, f"{agents}/.tmp-a", f"{agents}/.tmp-b", f"{hidden}/x"):
        write(path, b"")
    for path in (old_alive, f"{agents}/.tmp-a", hidden):
        age(path)
    done, left = mend(spool)
    assert left == [] and len(done) == 4
    assert all("1 leftover temporary files were removed" in text for text in done)
    left = sorted(p.name for p in Path(spool).rglob(".tmp-*"))
    assert left == sorted([os.path.basename(young_alive), ".tmp-b"])
    live.communicate(b"\n")


def test_temporary_files_of_the_living_are_left(spool):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from cli_help import write_stream\n"
        "s = write_stream(sys.argv[2], end=None, close=False); print(s.writer, flush=True); input(); s.close()"
    )
    command = [sys.executable, "-c", code, os.path.dirname(__file__), spool]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean_env()
    ) as writer:
        writer.stdout.readline()
        (key,) = iter_streams(spool)
        path = os.path.join(stream_dir(spool, key), f".tmp-x-{2**22 + 7}-0123abcd")
        write(path, b"")
        assert mend(spool) == ([], []) and os.path.exists(path)
        writer.communicate("\n")
    assert len(mend(spool)[0]) == 1 and not os.path.exists(path)


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command(spool, tmp_path):
    key = write_and_die(spool, events=3)
    write(os.path.join(spool, "spool.json"), b"{")
    done = forked("fsck", "spool", "--repair", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"repaired: {spool}/spool.json: written anew with uuid ")
    assert lines[1] == (
        f"repaired: {stream_dir(spool, key)}/{end_name(1)}: written: its writer is dead, and had not closed the stream"
    )
    assert lines[-1].startswith(f"{spool}: 2 repairs, then ") and lines[-1].endswith("checked, no errors")
    write(segment_of(spool), read(segment_of(spool)).replace(b'"step":1', b'"step":2'))
    done = forked("fsck", "spool", "--repair", "--json", cwd=tmp_path)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [x["severity"] for x in found[:-1]][:2] == ["repair", "error"]
    assert found[0]["done"] is True and "copied to the quarantine" in found[0]["message"]
    assert (found[-1]["repaired"], found[-1]["not_repaired"], found[-1]["errors"] > 0) == (1, 0, True)
    done = forked("fsck", "spool", "--remove-orphans", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("seed", range(12))
def test_any_damage_to_any_file_but_a_segment(tmp_path, seed):
    """Repaired, or told; and then whole but for what was told."""
    rng = random.Random(seed)
    spool = create_spool(str(tmp_path / "spool")).path
    with_blob(spool)
    with_pruned(spool) if seed % 2 else write_stream(spool, "run-2")
    key = write_and_die(spool, "run-3", events=2)
    end_dead_stream(stream_dir(spool, key), DeathWatch())
    files = [p for p in Path(spool).rglob("*") if p.is_file() and p.suffix != ".jsonl" and p.name != "LIVE"]
    for path in rng.sample(sorted(files), min(3, len(files))):
        whole, how = path.read_bytes(), rng.randrange(3)
        place = rng.randrange(len(whole))
        write(path, (flip(whole, place, rng), whole[:place], b"garbage\n")[how])
    try:
        left = [r for r in repair(spool) if not r.done]
    except NewerFormat:
        return
    missing = {f.path for f in errors(spool) if f.message == "is missing"}
    remaining = {f.path for f in errors(spool)} - missing
    told = {r.path for r in left}
    assert all(
        path in told or os.path.dirname(path) in {os.path.dirname(t) for t in told} for path in remaining
    )


def outcome(spool):
    """What a repair left: every file (of JSON without its time), and what is still wrong."""
    found = {}
    for path in Path(spool).rglob("*"):
        name = str(path.relative_to(spool))
        if path.is_file() and ".tmp-" not in name and not name.endswith(".lock"):
            whole = path.read_bytes()
            found[name] = (
                re.sub(rb'"(time|crc|spool)":"?[0-9a-f-]+"?', b"", whole) if len(whole) < 4096 else whole
            )
    return found, sorted((os.path.relpath(f.path, spool), f.severity) for f in fsck(spool))


@pytest.mark.parametrize("seed", range(4))
def test_a_repair_that_is_killed_at_any_step_and_repeated(in_memory, seed):
    """Whatever the step, a second repair ends where one that nobody killed does; no byte is gone in between."""
    rng = random.Random(seed)
    source = create_spool(str(in_memory / "source")).path
    with_pruned(source)
    key = write_and_die(source, "run-3", events=2, torn=b"half a")
    end_dead_stream(stream_dir(source, key), DeathWatch())
    write_and_die(source, "run-4", events=2)
    hurt = ["pruned.json", end_name(1), os.path.basename(with_blob(source, run="run-5")), segment_name(1)]
    hurt += ["spool.json"] * (seed % 2)
    for path in [p for p in Path(source).rglob("*") if p.name in hurt and "run-4" not in str(p)]:
        whole = path.read_bytes()
        place = rng.randrange(len(whole))
        write(path, flip(whole, place, rng) if path.suffix == ".jsonl" or rng.randrange(2) else whole[:place])

    def attempt(name, last=-1):
        """A copy that is repaired, the first time only up to step `last`; what is left, and how many steps it took."""
        spool, steps = str(in_memory / name / "spool"), []
        shutil.copytree(source, spool)
        kept = segments(spool)
        with contextlib.suppress(Killed), killed_at(last, steps):
            list(repair(spool))
        assert segments(spool) == kept
        list(repair(spool))
        assert segments(spool) == kept
        found = outcome(spool)
        shutil.rmtree(in_memory / name)
        return found, len(steps)

    calm, steps = attempt("calm")
    assert steps
    for last in range(steps):
        assert attempt("killed", last)[0] == calm, f"killed at step {last} of {steps}"
