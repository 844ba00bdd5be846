"""The command line as a process: exit codes, messages, output, and every command of docs/cli.md."""

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time

import orjson
import pytest
from cli_help import (
    HOME,
    clean_env,
    forked,
    key_of,
    read,
    segment_of,
    spoolagent,
    write,
    write_and_die,
    write_stream,
)

import spoolagent as package
from spoolagent.config import load_config
from spoolagent.format.blobs import put_bytes
from spoolagent.format.lines import encode_line

VERBS = [
    *("demo", "ship", "serve", "replay", "status", "ls", "inspect", "fsck", "config check", "config init"),
    *("dead-letters list", "dead-letters show", "dead-letters retry", "dead-letters drop"),
]


@pytest.fixture
def place(tmp_path):
    """A working directory with `spool`: two runs of one site and one of another."""
    spool = tmp_path / "spool"
    stream = write_stream(spool, "baseline", site="hospital-a", events=120, end=None, close=False)
    stream.append("text", {"key": "note", "blob": put_bytes(str(spool), "hospital-a", b"a note")})
    stream.append("run_end", {"status": "finished", "exit_code": 0})
    stream.close()
    write_stream(spool, "wide", site="hospital-a", events=3, end="failed", exit_code=3)
    write_stream(spool, "baseline-b", site="hospital-b", events=3)
    return tmp_path


def fails(code, *args, cwd, env=None):
    """The one line that the command says on standard error before it exits with `code`."""
    done = forked(*args, cwd=cwd, env=env)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("spoolagent: ")
    return lines[0].removeprefix("spoolagent: ")


def works(*args, cwd, env=None):
    """Standard output of a command that exits with 0."""
    done = forked(*args, cwd=cwd, env=env)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout


def facts(*args, cwd):
    return json.loads(works(*args, "--json", cwd=cwd))


# -- help and version -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, tmp_path):
    text = " ".join(works(*verb.split(), "--help", cwd=tmp_path, env={"COLUMNS": "200"}).split())
    assert re.search(rf"Examples?: spoolagent {verb}\b", text), text
    prints_facts = verb not in ("demo", "serve", "config init")
    assert ("--json" in text) == prints_facts


def test_version_and_bare_call(tmp_path):
    assert works("--version", cwd=tmp_path) == f"spoolagent {package.__version__}\n"
    assert "Usage: spoolagent" in works(cwd=tmp_path)
    assert "Usage: spoolagent config" in works("config", cwd=tmp_path)


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import sys\nfrom spoolagent.cli.main import run\n"
        "assert run(['--help']) == 0\n"
        "heavy = {'mlflow', 'wandb', 'tensorboard', 'torch', 'numpy', 'watchdog', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_env(), cwd=HOME, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"


# -- errors ---------------------------------------------------------------------------------------------------------


def test_wrong_command_lines(place):
    assert fails(2, "bogus", cwd=place) == "No such command 'bogus'; see 'spoolagent --help'"
    assert fails(2, "ls", "--bogus", cwd=place).endswith("see 'spoolagent ls --help'")
    assert "'spoolagent inspect --help'" in fails(2, "inspect", cwd=place)
    assert "'spoolagent inspect --help'" in fails(2, "inspect", "spool", "--events", "x", cwd=place)


@pytest.mark.parametrize("verb", ["ls", "status", "fsck", "inspect"])
def test_places_that_are_no_spool(verb, place):
    (place / "file").write_text("")
    (place / "empty").mkdir()
    assert fails(2, verb, "none", cwd=place) == (
        f"{place}/none is not a spool: it does not exist; give the directory that training wrote to"
    )
    assert "is not a spool: it holds no spool.json" in fails(2, verb, "empty", cwd=place)
    assert "is a file, not a spool directory" in fails(2, verb, "file", cwd=place)


def test_the_real_command_says_one_line_and_its_exit_code(place):
    done = spoolagent("ls", "none", cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    expected = f"{place}/none is not a spool: it does not exist; give the directory that training wrote to"
    assert done.stderr == f"spoolagent: {expected}\n"
    assert spoolagent("ls", "spool", "--json", cwd=place) == forked("ls", "spool", "--json", cwd=place)


def test_receivers_that_are_not_known(place):
    said = fails(2, "serve", "--spool", "spool", "--to", "tensorbord:x", cwd=place)
    assert said == "--to: unknown receiver kind 'tensorbord': did you mean 'tensorboard'?"
    said = fails(2, "replay", "spool", "--to", "tensorboard", cwd=place)
    assert said == "--to: 'tensorboard' needs a target: write tensorboard:TARGET"
    assert "no receiver: give --to RECEIVER" in fails(2, "replay", "spool", cwd=place)
    assert "no spool: give --spool DIR" in fails(2, "serve", "--to", "jsonl:x", cwd=place)
    assert not (place / "x").exists()


def test_a_configuration_with_a_misspelt_key(place):
    (place / "spoolagent.toml").write_text('spool = "spool"\n[agent]\npatiense = 1\n')
    expected = "spoolagent.toml: unknown key 'agent.patiense': did you mean 'patience'?"
    for command in (
        ["config", "check"],
        ["ls"],
        ["serve", "--to", "jsonl:x"],
        ["ship", "--to", "t", "--once"],
    ):
        assert fails(2, *command, cwd=place) == expected


def test_an_unknown_option_of_a_receiver(place):
    (place / "c.toml").write_text('[receivers.tb]\nto = "tensorboard:tb"\ndirectry = "x"\n')
    said = fails(2, "config", "check", "--config", "c.toml", cwd=place)
    assert said.startswith("c.toml: receivers.tb: ")
    assert "unknown option 'directry'" in said
    assert "did you mean 'directory'?" in said


def test_a_spool_of_format_2(place):
    (place / "spool/spool.json").write_text('{"format":2,"spool":"x"}')
    for command in (["ls", "spool"], ["status", "spool"], ["replay", "spool", "--to", "jsonl:x"]):
        said = fails(1, *command, cwd=place)
        assert (
            said == f"{place}/spool/spool.json says format 2, this version reads format 1: upgrade spoolagent"
        )


def test_a_damaged_spool_file(place):
    (place / "spool/spool.json").write_text("{")
    assert "spool.json is damaged" in fails(1, "ls", "spool", cwd=place)
    done = forked("fsck", "spool", cwd=place)
    assert done.returncode == 1
    assert done.stdout.startswith(f"error: {place}/spool/spool.json: is damaged")


def test_places_that_cannot_be_written(place):
    (place / "file").write_text("")
    said = fails(2, "ship", "--spool", "spool", "--to", "file/below", "--once", cwd=place)
    assert "file" in said
    assert "cannot be a spool" in said
    said = fails(2, "replay", "spool", "--to", "jsonl:file/below/x", cwd=place)
    assert "Not a directory" in said
    said = fails(2, "config", "init", "none/c.toml", cwd=place)
    assert said == f"{place}/none does not exist: make the directory first"
    assert "/proc/version" in fails(
        2, "ship", "--spool", "spool", "--to", "/proc/version/x", "--once", cwd=place
    )


def test_files_that_cannot_be_read(place):
    """Root reads everything, so a loop of links stands in for a missing right."""
    os.symlink("loop", place / "loop")
    assert fails(2, "ls", "--config", "loop", cwd=place).startswith("loop cannot be read: Too many levels")
    path = segment_of(place / "spool")
    os.rename(path, f"{path}.away")
    os.symlink(os.path.basename(path), path)
    assert forked("ls", "spool", cwd=place).returncode == 0  # one stream's trouble hides no other
    checked = forked("fsck", "spool", cwd=place)
    assert checked.returncode == 1
    assert "is not a plain file" in checked.stdout


def test_a_tracker_that_is_away(place):
    said = fails(3, "replay", "spool", "--to", "mlflow:http://127.0.0.1:9", cwd=place)
    assert "127.0.0.1" in said


def test_a_reader_that_leaves_early(place):
    command = f"{shlex.quote(sys.executable)} -m spoolagent inspect spool baseline --events 100000 --json; echo $? >&2"
    for _ in range(8):
        write_stream(place / "spool", "baseline", site="hospital-a", events=400)
    done = subprocess.run(
        ["sh", "-c", f"({command}) | head -n 1"],
        cwd=place,
        env=clean_env(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.strip() == "141"


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ("ls spool >&-", "0", ""),
        ("ls none 2>&-", "2", ""),
        ("ls spool >/dev/full", "1", "spoolagent: No space left on device; check the path"),
        ("ls spool --json >/dev/full", "1", "spoolagent: No space left on device; check the path"),
    ],
)
def test_odd_places_for_output(shell, code, said, place):
    command = f"{shlex.quote(sys.executable)} -m spoolagent {shell}"
    done = subprocess.run(
        ["sh", "-c", f"{command}; echo $?"],
        cwd=place,
        env=clean_env(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{code}\n"
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)


# -- looking --------------------------------------------------------------------------------------------------------


def test_ls(place):
    lines = works("ls", "spool", cwd=place).splitlines()
    assert lines[0].split() == ["site", "run", "name", "state", "streams", "events", "size", "last", "news"]
    rows = [line.split() for line in lines[1:]]
    assert [row[:5] + row[6:7] for row in rows] == [
        ["hospital-a", "baseline", "a", "name", "finished", "123"],
        ["hospital-a", "wide", "a", "name", "failed", "5"],
        ["hospital-b", "baseline-b", "a", "name", "finished", "5"],
    ]
    found = facts("ls", "spool", "--site", "hospital-a", cwd=place)
    assert [(run["run"], run["state"], run["exit_code"]) for run in found["runs"]] == [
        ("baseline", "finished", 0),
        ("wide", "failed", 3),
    ]
    stream = found["runs"][0]["streams"][0]
    assert stream["last_seq"] == 123
    assert stream["bytes"] == os.path.getsize(segment_of(place / "spool"))
    assert (stream["ended"], stream["alive"], stream["role"]) == ("closed", False, "main")
    env = {"SPOOLAGENT_SPOOL": str(place / "spool")}
    assert works("ls", "--json", cwd=place, env=env) == works("ls", "spool", "--json", cwd=place)
    assert "is not legal" in fails(2, "ls", "spool", "--site", "../x", cwd=place)


def test_ls_of_writers_that_live_and_that_are_gone(place):
    still = write_stream(place / "spool", "living", site="z", end=None, close=False)
    write_and_die(place / "spool", "dead", site="z")
    states = {
        run["run"]: (run["state"], run["writers_gone"])
        for run in facts("ls", "spool", "--site", "z", cwd=place)["runs"]
    }
    assert states == {"dead": ("running", True), "living": ("running", False)}
    text = works("ls", "spool", "--site", "z", cwd=place)
    assert re.search(r"dead .* running\? ", text)
    assert re.search(r"living .* running ", text)
    assert "1 streams are open though their writers are gone" in works("status", "spool", cwd=place)
    still.close()


def test_inspect_a_run(place):
    text = works("inspect", "spool", "baseline", cwd=place)
    assert text.startswith("hospital-a/baseline  finished\n  api: native\n  name: a name\n")
    assert "120 metrics, 1 run_start, 1 text, 1 run_end" in text
    assert re.search(r"^loss +119 +0\.00833", text, re.MULTILINE)
    found = facts("inspect", "spool", "hospital-a/baseline", cwd=place)
    assert found["streams"][0]["types"] == {"run_start": 1, "metrics": 120, "text": 1, "run_end": 1}
    assert found["streams"][0]["last_metrics"] == {"loss": {"step": 119, "value": 1 / 120}}
    assert found["start"]["name"] == "a name"
    assert "(exit code 3)" in works("inspect", "spool", "wide", cwd=place)


def test_inspect_events(place):
    out = works("inspect", "spool", "baseline", "--events", "3", "--json", cwd=place)
    events = [json.loads(line) for line in out.splitlines()]
    assert [(e["seq"], e["type"]) for e in events] == [(121, "metrics"), (122, "text"), (123, "run_end")]
    lines = works("inspect", "spool", "baseline", "--events", "3", cwd=place).splitlines()
    assert lines[1].split(maxsplit=6)[0] == "121"
    assert lines[1].endswith('metrics step 119  {"metrics": {"loss": 0.008333333333333333}}')
    one = facts("inspect", "spool", "baseline", "--seq", "7", cwd=place)
    raw = orjson.loads(read(segment_of(place / "spool")).split(b"\n")[7])
    del raw["crc"]
    assert one == raw
    assert '"step": 5' in works("inspect", "spool", "baseline", "--seq", "7", cwd=place)


def test_inspect_the_last_events_over_many_segments(place):
    write_stream(place / "spool", "rotated", site="z", events=60, segment_bytes=1000)
    out = works("inspect", "spool", "rotated", "--events", "40", "--json", cwd=place)
    assert [json.loads(line)["seq"] for line in out.splitlines()] == list(range(23, 63))
    out = works("inspect", "spool", "rotated", "--events", "100", "--json", cwd=place)
    assert [json.loads(line)["seq"] for line in out.splitlines()] == list(range(1, 63))
    for seq in (1, 30, 62):
        assert facts("inspect", "spool", "rotated", "--seq", str(seq), cwd=place)["seq"] == seq
    assert "has no event 63" in fails(2, "inspect", "spool", "rotated", "--seq", "63", cwd=place)


def test_inspect_what_is_not_there(place):
    write_stream(place / "spool", "wide", site="hospital-b", events=1)
    write_stream(place / "spool", "wide", site="hospital-b", events=1)
    assert fails(2, "inspect", "spool", "basline", cwd=place).endswith(
        "has no 'basline': did you mean 'baseline'?"
    )
    said = fails(2, "inspect", "spool", "wide", cwd=place)
    assert said == "run 'wide' is at several sites: name one of hospital-a/wide, hospital-b/wide"
    assert "has 2: name one of hospital-b/wide/w" in fails(
        2, "inspect", "spool", "hospital-b/wide", "--seq", "1", cwd=place
    )
    assert "is not RUN, SITE/RUN or SITE/RUN/WRITER" in fails(2, "inspect", "spool", "a/../b", cwd=place)


def test_inspect_shows_damage_and_gaps(place):
    stream = write_stream(place / "spool", "harmed", site="z", events=5, end=None, close=False)
    stream.append("gap", {"dropped": 17, "from": 1, "to": 2, "reason": "no space"})
    stream.close()
    path = segment_of(place / "spool", key_of(stream))
    write(path, read(path).replace(b'"step":2', b'"step":9'))
    (found,) = facts("inspect", "spool", "z/harmed", cwd=place)["streams"]
    assert (found["lost"], found["dropped"]) == (1, 17)
    assert found["bad_bytes"] == len(read(path).split(b"\n")[4]) + 1
    assert "; 1 lost; 17 dropped by the writer; " in works("inspect", "spool", "z/harmed", cwd=place)


def test_hostile_text_does_not_reach_the_terminal(place):
    evil = "\x1b]0;owned\x07\x1b[31m[bold]x[/bold]\u202e\x9b1m"
    stream = write_stream(
        place / "spool", "evil", site="z", end=None, close=False, fields={"name": evil, "notes": evil}
    )
    stream.append("text", {"key": evil, "text": evil})
    stream.append("metrics", {"metrics": {evil: 1.0}})
    stream.append(evil, {})
    stream.close()
    for command in (
        ["ls", "spool"],
        ["inspect", "spool", "evil"],
        ["inspect", "spool", "evil", "-n", "9"],
        ["fsck", "spool"],
    ):
        text = works(*command, cwd=place)
        assert "\\x1b" in text
        assert not set("\x1b\x07\x9b\u202e") & set(text)
    text = works("inspect", "spool", "evil", "--seq", "7", cwd=place)
    assert not set("\x1b\x07\x9b\u202e") & set(text)
    assert "[bold]x[/bold]" in works("ls", "spool", cwd=place)


# -- fsck -----------------------------------------------------------------------------------------------------------


def test_fsck(place):
    done = forked("fsck", "spool", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"{place}/spool: [\d.]+ KiB checked, no errors\n", done.stdout)
    path = segment_of(place / "spool")
    write(path, read(path).replace(b'"step":2,', b'"step":3,'))
    done = forked("fsck", "spool", cwd=place)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"error: {path} (line 5, byte ")
    assert lines[0].endswith("): checksum does not match")
    assert lines[1].startswith("       next: ship the stream again")
    assert lines[-1].endswith("checked, 2 errors")
    done = forked("fsck", "spool", "--json", cwd=place)
    *findings, summary = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [f["severity"] for f in findings] == ["error", "error"]
    assert findings[0]["path"] == path
    assert (summary["errors"], summary["warnings"], summary["infos"]) == (2, 0, 0)
    assert forked("fsck", "spool", "--site", "hospital-b", cwd=place).returncode == 0


def test_fsck_quiet_leaves_out_what_is_fine(place):
    write_and_die(place / "spool", "dead")
    assert "info: " in works("fsck", "spool", cwd=place)
    assert works("fsck", "spool", "-q", cwd=place).count("\n") == 1


def test_newer_streams_are_parked(place):
    path = segment_of(place / "spool")
    write(path, encode_line({"format": 2}) + read(path).split(b"\n", 1)[1])
    assert "is of format 2" in works("fsck", "spool", cwd=place)
    assert "unknown" in works("ls", "spool", cwd=place)
    assert "is of format 2" in works("inspect", "spool", "hospital-a/baseline", cwd=place)


# -- replay, ship, serve, status --------------------------------------------------------------------------------------


def delivered(path):
    return [json.loads(line) for line in read(path).splitlines()]


def test_plan_and_replay_agree(place):
    plan = facts(
        "replay",
        "spool",
        "--plan",
        "--site",
        "hospital-*",
        "--run",
        "base*",
        "--type",
        "metrics",
        "--steps",
        "1:50",
        cwd=place,
    )
    assert [(run["run"], run["events"], run["types"]) for run in plan["runs"]] == [
        ("baseline", 52, {"metrics": 50, "run_end": 1, "run_start": 1}),
        ("baseline-b", 4, {"metrics": 2, "run_end": 1, "run_start": 1}),
    ]
    assert not (place / "spool/.agent").exists()
    works(
        "replay",
        "spool",
        "--to",
        "jsonl:x.jsonl",
        "--run",
        "base*",
        "--type",
        "metrics",
        "--steps",
        "1:50",
        cwd=place,
    )
    events = [e for e in delivered(place / "x.jsonl") if e["type"] != "run_state"]
    assert len(events) == plan["events"] == 56
    assert {e["step"] for e in events if e["type"] == "metrics"} == set(range(1, 51))


def test_plan_by_time(place):
    future = facts("replay", "spool", "--plan", "--since", "2999-01-01", cwd=place)
    assert [run["types"] for run in future["runs"]][:1] == [{"run_end": 1, "run_start": 1}]
    assert (
        facts("replay", "spool", "--plan", "--since", "1h", "--until", "2999-01-01T00:00Z", cwd=place)[
            "events"
        ]
        == 133
    )
    assert facts("replay", "spool", "--plan", "--until", "1h", "--run", "wide", cwd=place)["events"] == 2
    text = works("replay", "spool", "--plan", cwd=place)
    assert "133 events of 3 runs" in text
    (place / "empty").mkdir()
    write(place / "empty/spool.json", read(place / "spool/spool.json"))
    assert works("replay", "empty", "--plan", cwd=place) == f"{place}/empty: no run is selected\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--type", "metric"], "--type: no event type 'metric': did you mean 'metrics'?"),
        (["--steps", "1-2"], "--steps: '1-2' is no range of steps"),
        (["--steps", "3:1"], "--steps: '3:1' is empty"),
        (["--run", "basline"], "spool has no 'basline': did you mean 'baseline'?"),
        (["--site", "clinic*"], "spool has no 'clinic*': known are hospital-a, hospital-b"),
        (["--site", "hospital-b", "--run", "wide"], "--site, --run: no run of "),
        (["--since", "yesterday"], "--since: 'yesterday' is no time"),
        (["--until", "2026-13-01"], "--until: '2026-13-01' is no time"),
    ],
)
def test_wrong_selections(flags, message, place):
    assert message in fails(2, "replay", "spool", "--plan", *flags, cwd=place)


def test_replay_status_and_replay_again(place):
    assert "no receiver was ever used" in works("status", "spool", cwd=place)
    assert facts("status", "spool", cwd=place)["receivers"] == []
    done = forked("replay", "spool", "--to", "jsonl:x.jsonl", "--run", "baseline", cwd=place)
    assert (done.returncode, done.stdout) == (0, "")
    assert "jsonl:x.jsonl: 123 events delivered" in done.stderr
    (receiver,) = facts("status", "spool", cwd=place)["receivers"]
    assert (receiver["delivered"], receiver["pending"], receiver["running"]) == (123, 10, False)
    assert receiver["target"] == f"jsonl:{place}/x.jsonl"
    assert len(receiver["behind"]) == 2
    assert "pending      10 events in 2 streams" in works("status", "spool", cwd=place)
    assert forked("replay", "spool", "--to", "jsonl:x.jsonl", cwd=place).returncode == 0
    (receiver,) = facts("status", "spool", cwd=place)["receivers"]
    assert (receiver["delivered"], receiver["pending"], receiver["behind"]) == (133, 0, {})
    events = [
        (e["site"], e["run"], e["seq"]) for e in delivered(place / "x.jsonl") if e["type"] != "run_state"
    ]
    assert len(events) == len(set(events)) == 133


def test_states_are_those_that_receivers_are_told(place):
    write_stream(place / "spool", "silent", site="z", end=None)
    write_and_die(place / "spool", "dead", site="z")
    write_and_die(place / "spool", "dead-at-the-end", site="z", end="finished")
    write_stream(place / "spool", "again", site="z", end="failed", exit_code=4, attempt=1)
    write_stream(place / "spool", "again", site="z", attempt=2)
    still = write_stream(place / "spool", "living", site="z", end=None, close=False)
    forked("replay", "spool", "--to", "jsonl:x.jsonl", cwd=place)
    told = {
        (e["site"], e["run"]): e["status"] for e in delivered(place / "x.jsonl") if e["type"] == "run_state"
    }
    told.setdefault(("z", "living"), "running")
    assert {
        (run["site"], run["run"]): run["state"] for run in facts("ls", "spool", cwd=place)["runs"]
    } == told
    assert told["z", "dead-at-the-end"] == "finished"
    assert {told["z", "silent"], told["z", "dead"]} == {"killed"}
    still.close()


def test_dead_letters_show_and_make_exit_code_1(place):
    stream = write_stream(place / "spool", "odd", site="z", end=None, close=False)
    stream.append("hologram", {})
    stream.close()
    done = forked("replay", "spool", "--to", "jsonl:x.jsonl", cwd=place)
    assert done.returncode == 1
    assert "1 dead letters" in done.stderr
    assert "dead letters 1 events were refused for good" in works("status", "spool", cwd=place)


def test_ship_once(place):
    done = forked("ship", "--spool", "spool", "--to", "copy", "--once", cwd=place)
    assert (done.returncode, done.stdout) == (0, "")
    assert "3 of 3 streams are ended and complete" in done.stderr
    report = facts("ship", "--spool", "spool", "--to", "copy", "--once", cwd=place)
    assert (report["streams"], report["shipped_bytes"], report["errors"]) == (3, 0, [])
    assert forked("fsck", "copy", cwd=place).returncode == 0
    for run in facts("ls", "spool", cwd=place)["runs"]:
        (copied,) = [r for r in facts("ls", "copy", cwd=place)["runs"] if r["run"] == run["run"]]
        assert copied["streams"][0]["last_seq"] == run["streams"][0]["last_seq"]
    assert "the spool itself" in fails(2, "ship", "--spool", "spool", "--to", "spool", "--once", cwd=place)


def service(args, cwd, until):
    """Starts a verb that goes on until it is stopped, stops it when `until(what it said)`; (exit code, stderr)."""
    said = cwd / "said.txt"
    with open(said, "w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "spoolagent", *args],
            cwd=cwd,
            env=clean_env(),
            stderr=errors,
            stdout=subprocess.DEVNULL,
        )
    try:
        deadline = time.monotonic() + 120
        while not until(said.read_text()):
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, "it took too long"
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=60), said.read_text()
    finally:
        process.kill()
        process.wait()


def lines_in(path):
    return len(read(path).splitlines()) if path.exists() else 0


def test_serve_and_ship_until_they_are_stopped(place):
    code, said = service(
        ["serve", "--spool", "spool", "--to", "jsonl:s.jsonl"],
        place,
        lambda said: "serving" in said and lines_in(place / "s.jsonl") >= 133,
    )
    assert code == 0
    assert "spoolagent: serving " in said
    stream = write_stream(place / "spool", "late", site="z", end=None, close=False)

    def shipped(said):
        path = place / "copy" / os.path.relpath(segment_of(place / "spool", key_of(stream)), place / "spool")
        return "shipping" in said and lines_in(path) == 7

    code, said = service(["ship", "--spool", "spool", "--to", "copy"], place, shipped)
    assert code == 0
    assert "shipped" in said
    stream.close()


# -- configuration ----------------------------------------------------------------------------------------------------


def test_config_init_and_check(place):
    out = works("config", "init", "c.toml", cwd=place)
    assert out == "wrote c.toml; edit it, then run: spoolagent config check --config c.toml\n"
    assert read(place / "c.toml") == read(HOME / "examples/spoolagent.toml")
    assert stat.S_IMODE(os.stat(place / "c.toml").st_mode) == 0o600
    assert "is there already and was left alone" in fails(2, "config", "init", "c.toml", cwd=place)
    text = works("config", "check", "--config", "c.toml", cwd=place)
    assert text.startswith("c.toml: correct\n")
    assert re.search(r"^agent\.stale_after +60 s +c\.toml$", text, re.MULTILINE)
    assert re.search(
        r"^tb +tensorboard:/srv/tensorboard +1000 +1048576 +0\.5 s +directory", text, re.MULTILINE
    )
    found = facts("config", "check", "--config", "c.toml", cwd=place)
    assert found["values"]["ship.to"] == "/mnt/server/spool"
    assert found["receivers"]["archive"]["flush_interval"] == 10.0


def test_config_check_warns_of_secrets_and_hides_them(place):
    (place / "c.toml").write_text(
        '[receivers.m]\nto = "mlflow:http://ann:hunter2@h:1"\n[serve]\nto = ["m"]\n'
    )
    done = forked("config", "check", "--config", "c.toml", cwd=place)
    assert done.returncode == 0
    assert "warning: c.toml: receivers.m.to looks like a secret" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_environment_goes_over_the_file(place):
    (place / "spoolagent.toml").write_text('spool = "/none"\n')
    env = {"SPOOLAGENT_SPOOL": "spool", "SPOOLAGENT_SERVE_TO": "jsonl:from-env.jsonl"}
    done = forked("replay", cwd=place, env=env)
    assert done.returncode == 0, done.stderr
    assert lines_in(place / "from-env.jsonl") >= 133


# -- the documents ------------------------------------------------------------------------------------------------------


def commands_of(name):
    text = (HOME / "docs" / name).read_text()
    return [
        line[2:]
        for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
        if line.startswith("$ ")
    ]


def test_every_command_of_the_page(place):
    """In their order, in one directory; `serve` and `ship` without --once are stopped when they have begun."""
    (place / "spoolagent.toml").write_text('spool = "spool"\n[serve]\nto = ["jsonl:configured.jsonl"]\n')
    commands = commands_of("cli.md")
    assert len(commands) >= 20
    for command in commands:
        name, *args = shlex.split(command)
        assert name == "spoolagent"
        if args[0] == "serve":
            target = place / ("served.jsonl" if "--to" in args else "configured.jsonl")
            assert service(args, place, lambda _, target=target: lines_in(target) >= 133)[0] == 0, command
        elif args[0] == "ship" and "--once" not in args:
            assert service(args, place, lambda said: "shipping" in said)[0] == 0, command
        else:
            done = spoolagent(*args, cwd=place)
            assert done.returncode == 0, (command, done)
    assert list((place / "tb/hospital-a/baseline").iterdir())
    assert {e["type"] for e in delivered(place / "metrics.jsonl")} == {
        "run_start",
        "metrics",
        "run_end",
        "run_state",
    }
    assert sorted(os.listdir(place / "server-spool/sites")) == ["hospital-a", "hospital-b"]


def test_the_page_names_every_verb():
    page = (HOME / "docs/cli.md").read_text()
    for verb in VERBS:
        assert f"`{verb}`" in page


def test_the_configuration_page(tmp_path):
    page = (HOME / "docs/configuration.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "c.toml").write_text(block)
    settings = load_config(str(tmp_path / "c.toml"), {}, {}).serve_settings()
    assert [r.name for r in settings.receivers] == ["tb", "jsonl:/srv/events.jsonl"]
    from spoolagent.config import ENVIRONMENT, KEYS
    from spoolagent.config_receivers import COMMON

    for name in [*KEYS, *ENVIRONMENT, *(f"receivers.NAME.{key}" for key in COMMON)]:
        assert f"`{name}`" in page


@pytest.mark.parametrize("verb", [["status"], ["ls"], ["fsck"], ["replay", "--plan", "--to", "jsonl:x"]])
def test_the_spool_may_be_given_as_an_option(verb, tmp_path):
    """People who type --spool for ship and serve type it everywhere."""
    spool = tmp_path / "spool"
    write_stream(str(spool))
    assert forked(verb[0], "--spool", spool, *verb[1:], cwd=tmp_path).returncode == 0
    both = forked(verb[0], spool, "--spool", spool, *verb[1:], cwd=tmp_path)
    assert both.returncode == 2 and "given twice" in both.stderr


def test_an_mlflow_server_that_is_away_is_one_line_with_the_next_step(tmp_path):
    spool = tmp_path / "spool"
    write_stream(str(spool))
    done = forked("replay", spool, "--to", "mlflow:http://127.0.0.1:1", cwd=tmp_path)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert (
        "http://127.0.0.1:1" in line and "connection refused" in line and "start it or check the URI" in line
    )
