"""Facts of streams and runs, told from the ends of files, against streams by the real writer."""

import os
import subprocess
import sys

import pytest
from cli_help import HOME, clean_env, key_of, read, segment_of, write, write_and_die, write_stream

from spoolagent.errors import UsageError
from spoolagent.format import live
from spoolagent.format.ends import DeathWatch, end_dead_stream
from spoolagent.format.facts import RunFacts, run_facts, run_state, start_fields, stream_facts
from spoolagent.format.layout import end_name, list_segments, segment_name, stream_dir
from spoolagent.format.lines import encode_line
from spoolagent.format.spool import create_spool


@pytest.fixture
def spool(tmp_path):
    return create_spool(str(tmp_path / "spool")).path


def facts_of(spool, stream):
    return stream_facts(spool, key_of(stream))


def the_run(spool):
    (found,) = run_facts(spool)
    return found


def test_a_finished_stream(spool):
    stream = write_stream(spool, events=5)
    facts = facts_of(spool, stream)
    assert (facts.first_seq, facts.last_seq, facts.events, facts.segments) == (1, 7, 7, 1)
    assert facts.bytes == os.path.getsize(segment_of(spool))
    assert (facts.ended, facts.end_status, facts.exit_code, facts.alive) == ("closed", "finished", 0, False)
    assert facts.header is not None
    assert (facts.header.writer, facts.header.role, facts.header.attempt) == (stream.writer, "main", 1)
    last = read(segment_of(spool)).split(b"\n")[-3]
    assert f'"time":{facts.last_time_ns},'.encode() in last
    assert facts.note == ""
    assert start_fields(spool, key_of(stream))["name"] == "a name"


@pytest.mark.parametrize(
    ("end", "code", "state"), [("failed", 3, "failed"), ("killed", None, "killed"), (None, 0, "killed")]
)
def test_how_a_closed_stream_counts(spool, end, code, state):
    write_stream(spool, end=end, exit_code=code)
    run = the_run(spool)
    assert (run.state, run.exit_code) == (state, code if end else None)
    assert run.streams[0].ended == "closed"


def test_an_open_stream_of_this_process_keeps_its_lock(spool):
    stream = write_stream(spool, end=None, close=False)
    facts = facts_of(spool, stream)
    assert (facts.ended, facts.end_status, facts.alive) == (None, None, True)
    assert the_run(spool).state == "running"
    assert not the_run(spool).is_orphan
    probe = (
        "import sys; from spoolagent.format.facts import run_facts\n"
        "(run,) = run_facts(sys.argv[1]); print(run.state, run.is_orphan, run.streams[0].alive)"
    )

    def seen_from_outside():
        args = [sys.executable, "-c", probe, spool]
        return subprocess.run(
            args, env=clean_env(), cwd=HOME, capture_output=True, text=True, check=True
        ).stdout.split()

    assert seen_from_outside() == ["running", "False", "True"]
    stream.close()
    assert seen_from_outside() == ["killed", "False", "False"]


def test_a_dead_writer_before_and_after_its_end_is_on_record(spool):
    key = write_and_die(spool, events=5, torn=b'{"seq":7,"ti')
    facts = stream_facts(spool, key)
    assert (facts.last_seq, facts.ended, facts.alive) == (6, None, False)
    run = the_run(spool)
    assert (run.state, run.is_orphan) == ("running", True)
    assert end_dead_stream(stream_dir(spool, key), DeathWatch())
    facts = stream_facts(spool, key)
    assert (facts.last_seq, facts.ended, facts.end_status) == (6, "dead", "killed")
    run = the_run(spool)
    assert (run.state, run.is_orphan, run.exit_code) == ("killed", False, None)


def test_a_writer_that_died_after_it_had_said_its_end(spool):
    key = write_and_die(spool, end="finished")
    end_dead_stream(stream_dir(spool, key), DeathWatch())
    assert (the_run(spool).state, stream_facts(spool, key).ended) == ("finished", "dead")


def test_lines_behind_an_end_make_it_void(spool):
    key = write_and_die(spool, events=2)
    end_dead_stream(stream_dir(spool, key), DeathWatch())
    with open(segment_of(spool, key), "ab") as file:
        file.write(encode_line({"seq": 4, "time": 9, "type": "metrics", "metrics": {}}))
    facts = stream_facts(spool, key)
    assert (facts.last_seq, facts.last_time_ns, facts.ended) == (4, 9, None)


def test_a_damaged_end_is_as_if_it_were_not_there(spool):
    key = write_and_die(spool, events=2)
    end_dead_stream(stream_dir(spool, key), DeathWatch())
    path = os.path.join(stream_dir(spool, key), end_name(1))
    write(path, read(path).replace(b'"last":3', b'"last":4'))
    assert stream_facts(spool, key).ended is None


def test_many_segments_and_an_empty_last_one(spool):
    stream = write_stream(spool, events=60, segment_bytes=1000, end=None, close=False)
    folder = stream_dir(spool, key_of(stream))
    facts = facts_of(spool, stream)
    assert facts.segments == len(list_segments(folder)) > 3
    assert facts.last_seq == 61
    assert facts.bytes == sum(
        os.path.getsize(os.path.join(folder, segment_name(s))) for s in list_segments(folder)
    )
    stream._rotate()  # a last segment with a header and nothing else
    assert list_segments(folder)[-1] == 62
    again = facts_of(spool, stream)
    assert (again.last_seq, again.last_time_ns) == (61, facts.last_time_ns)
    stream.close()
    assert facts_of(spool, stream).ended == "closed"


def test_a_last_line_of_almost_a_megabyte(spool):
    stream = write_stream(spool, events=1, end=None, close=False)
    stream.append("custom", {"name": "big", "data": "x" * 1_000_000})
    facts = facts_of(spool, stream)
    assert (facts.last_seq, facts.ended) == (3, None)
    stream.append("run_end", {"status": "failed", "exit_code": 4})
    stream.close()
    assert (facts_of(spool, stream).end_status, facts_of(spool, stream).exit_code) == ("failed", 4)


def test_damage_at_the_end_does_not_hide_what_stands_before_it(spool):
    stream = write_stream(spool, events=5, end=None)
    path = segment_of(spool)
    lines = read(path).split(b"\n")
    lines[-2] = lines[-2][:-1]  # the seal
    write(path, b"\n".join(lines))
    facts = facts_of(spool, stream)
    assert (facts.last_seq, facts.ended) == (6, None)


def test_only_main_streams_of_the_latest_attempt_decide(spool):
    write_stream(spool, end="failed", exit_code=1, attempt=1)
    write_stream(spool, end=None, close=False, role="aux", attempt=1)
    write_stream(spool, end="finished", attempt=2)
    assert the_run(spool).state == "finished"
    write_stream(spool, end="failed", exit_code=9, attempt=2)
    run = the_run(spool)
    assert (run.state, run.exit_code) == ("failed", 9)
    still = write_stream(spool, end=None, close=False, attempt=2)
    assert the_run(spool).state == "running"
    still.close()
    assert the_run(spool).state == "failed"
    assert len(the_run(spool).streams) == 5


def test_states_are_ordered(spool):
    def state(*ends):
        for name in (
            os.listdir(os.path.join(spool, "sites/site-a/runs")) if os.path.isdir(f"{spool}/sites") else []
        ):
            os.rename(
                os.path.join(spool, "sites/site-a/runs", name),
                os.path.join(spool, "sites/site-a/runs", f".{name}"),
            )
        for end in ends:
            write_stream(spool, f"run-{'-'.join(map(str, ends))}", end=end)
        return the_run(spool).state

    assert state("finished", None) == "killed"
    assert state(None, "failed") == "failed"
    assert state("finished", "finished") == "finished"


def test_a_run_of_aux_streams_only_has_no_state(spool):
    write_stream(spool, role="aux", end=None)
    assert the_run(spool).state is None
    assert run_state([]) is None
    assert RunFacts(site="s", run="r", streams=(), state=None).exit_code is None


def test_a_newer_format_is_told(spool):
    stream = write_stream(spool)
    path = segment_of(spool)
    _, rest = read(path).split(b"\n", 1)
    write(path, encode_line({"format": 2, "new": "fields"}) + rest)
    facts = facts_of(spool, stream)
    assert facts.header is None
    assert "is of format 2, this version reads 1: upgrade spoolagent" in facts.note
    assert the_run(spool).state is None


def test_a_pruned_front(spool):
    stream = write_stream(spool, events=60, segment_bytes=1000)
    folder = stream_dir(spool, key_of(stream))
    segments = list_segments(folder)
    for first in segments[:2]:
        os.unlink(os.path.join(folder, segment_name(first)))
    through = segments[2] - 1
    write(os.path.join(folder, "pruned.json"), encode_line({"through": through, "prev": "0" * 64, "time": 1}))
    facts = facts_of(spool, stream)
    assert (facts.first_seq, facts.last_seq, facts.ended) == (segments[2], 62, "closed")
    assert start_fields(spool, key_of(stream)) == {}
    for first in segments[2:]:
        os.unlink(os.path.join(folder, segment_name(first)))
    write(os.path.join(folder, "pruned.json"), encode_line({"through": 62, "prev": "0" * 64, "time": 1}))
    facts = facts_of(spool, stream)
    assert (facts.first_seq, facts.last_seq, facts.events, facts.segments) == (63, 62, 0, 0)


def test_a_stream_born_elsewhere_says_nothing_about_its_writer(spool, tmp_path):
    stream = write_stream(spool, end=None, close=False)
    other = create_spool(str(tmp_path / "other")).path
    folder = stream_dir(other, key_of(stream))
    os.makedirs(folder)
    write(os.path.join(folder, segment_name(1)), read(segment_of(spool)))
    facts = stream_facts(other, key_of(stream))
    assert (facts.last_seq, facts.ended, facts.alive) == (6, None, None)
    (run,) = run_facts(other)
    assert (run.state, run.is_orphan) == ("running", False)
    stream.close()


def test_a_live_file_of_another_host(spool):
    key = write_and_die(spool)
    path = os.path.join(stream_dir(spool, key), live.LIVE_FILE)
    owner = live.read_owner(stream_dir(spool, key))[0]
    assert owner is not None
    write(path, read(path).replace(b'"host":"', b'"host":"elsewhere-'))
    assert stream_facts(spool, key).alive is True  # renewed a moment ago
    write(path, read(path).replace(str(owner.time_ns).encode(), str(owner.time_ns - 10**12).encode()))
    assert stream_facts(spool, key).alive is None


def test_no_spool(tmp_path):
    with pytest.raises(UsageError, match="it does not exist"):
        list(run_facts(str(tmp_path / "none")))
