"""SIGTERM, Ctrl-C and a closed terminal: what each verb makes of them, and with which exit code it ends."""

import os
import pty
import signal
import subprocess
import sys

import pytest
from acceptance_help import agent
from kill_help import is_dead
from shipping_help import shipped_files
from spool_help import clean_env, make_writer, until, write_metrics
from test_stuck import events_in, with_missing_blob
from test_worker import simple

from spoolagent.cli import progress
from spoolagent.serving.status import read_status
from spoolagent.shipping.report import ShipReport
from spoolagent.stopping import Stop

SIGNALS = pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name
)


@pytest.fixture(autouse=True, scope="module")
def hangups():
    """What is started here hears SIGHUP, also where the tests run under nohup."""
    old = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, old)


@SIGNALS
def test_serve_ends_in_order(tmp_path, number):
    writer = simple(tmp_path / "spool", count=10, end=False)
    with agent("serve", "--spool", "spool", "--to", "jsonl:out.jsonl", cwd=tmp_path, name="serve") as serve:
        until(lambda: len(events_in(tmp_path / "out.jsonl")) == 11, what="the events")
        workers = serve.children()
        assert workers
        for pid in [*workers, serve.pid]:  # as a terminal does: to all of them
            if number != signal.SIGTERM:
                os.kill(pid, number)
        serve.popen.send_signal(number)
        assert serve.wait() == 0, serve.said
        assert serve.said.splitlines()[-1] == "spoolagent: stopped; every cursor is committed"
        assert "worker ended" not in serve.said and "Traceback" not in serve.said
        assert all(is_dead(pid) for pid in workers)
    (receiver,) = read_status(str(tmp_path / "spool"))
    assert (receiver.applied, receiver.is_running) == (11, False)
    writer.close()


@SIGNALS
def test_ship_ends_in_order(tmp_path, number):
    simple(tmp_path / "spool", count=10)
    with agent("ship", "--spool", "spool", "--to", "server", cwd=tmp_path, name="ship") as ship:
        until(
            lambda: shipped_files(tmp_path / "server") == shipped_files(tmp_path / "spool"), what="all of it"
        )
        ship.popen.send_signal(number)
        assert ship.wait() == 0, ship.said
        assert "1 of 1 streams are ended and complete" in ship.said


@SIGNALS
def test_a_replay_that_is_interrupted_before_it_is_done_says_so(tmp_path, number):
    with_missing_blob(tmp_path / "spool")
    simple(tmp_path / "spool", run="run-2", count=10)
    replay = agent("replay", "spool", "--to", "jsonl:out.jsonl", cwd=tmp_path, name="replay")
    with replay:
        until(lambda: len(events_in(tmp_path / "out.jsonl")) >= 12, what="what can be delivered")
        replay.popen.send_signal(number)
        assert replay.wait() == 128 + number, replay.said
        assert "run the replay again, it goes on where it stopped" in replay.said
        assert "Traceback" not in replay.said
    (receiver,) = read_status(str(tmp_path / "spool"))
    assert receiver.applied == len(events_in(tmp_path / "out.jsonl"))


def test_a_ship_that_is_interrupted_before_it_is_done_says_so(tmp_path, monkeypatch, capsys):
    from spoolagent.cli import main
    from spoolagent.shipping import shipper

    simple(tmp_path / "spool", count=10)

    def interrupted(settings, *, stop, report):
        os.kill(os.getpid(), signal.SIGINT)
        until(stop.is_set)
        return ShipReport()

    monkeypatch.setattr(shipper, "ship", interrupted)
    given = ["ship", "--spool", str(tmp_path / "spool"), "--to", str(tmp_path / "server")]
    assert main.run([*given, "--once"]) == 130
    assert "interrupted: run it again, it goes on where it stopped" in capsys.readouterr().err
    assert main.run(given) == 0


def test_serve_under_nohup_does_not_hear_the_terminal(tmp_path):
    simple(tmp_path / "spool", count=10)
    command = [sys.executable, "-m", "spoolagent", "serve", "--spool", "spool", "--to", "jsonl:out.jsonl"]
    with subprocess.Popen(
        ["nohup", *command], cwd=tmp_path, env=clean_env(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as serve:
        try:
            until(lambda: len(events_in(tmp_path / "out.jsonl")) == 12, what="the events")
            serve.send_signal(signal.SIGHUP)
            simple(tmp_path / "spool", run="run-2", count=10)
            until(lambda: len(events_in(tmp_path / "out.jsonl")) == 24, what="the events after it")
            serve.terminate()
            assert serve.wait(60) == 0
        finally:
            serve.kill()


@pytest.mark.parametrize("verb", ["serve", "ship"])
def test_a_terminal_that_is_closed(verb, tmp_path):
    """The kernel sends SIGHUP to all of the foreground's processes, and every write to the terminal fails."""
    writer = make_writer(tmp_path / "spool")
    write_metrics(writer, 10)
    to = "jsonl:out.jsonl" if verb == "serve" else "server"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(
            sys.executable,
            [sys.executable, "-m", "spoolagent", verb, "--spool", "spool", "--to", to],
            clean_env(),
        )
    try:
        if verb == "serve":
            until(lambda: len(events_in(tmp_path / "out.jsonl")) == 11, what="the events")
        else:
            until(lambda: list(tmp_path.glob("server/sites/*/runs/*/*/*.jsonl")), what="the segment")
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    writer.close()
    if verb == "serve":
        (receiver,) = read_status(str(tmp_path / "spool"))
        assert (receiver.applied, receiver.is_running) == (11, False)


AT_A_CALL_OF = """
import os, signal, sys, threading
from types import SimpleNamespace
from spoolagent.serving.child import Child
from spoolagent.stopping import Stop, stop_on_signals

at = getattr(threading.Condition, sys.argv[1]).__code__


def wait(stop):
    def trace(frame, event, argument):
        if frame.f_code is at and frame.f_locals["self"] is stop._cond:
            sys.settrace(None)
            os.kill(os.getpid(), signal.SIGTERM)

    sys.settrace(trace)
    if sys.argv[1] == "notify_all":
        os.kill(os.getpid(), signal.SIGTERM)
    stop.wait()
    assert sys.gettrace() is None, "no signal came there"


if sys.argv[2] == "main":
    stop = Stop()
    with stop_on_signals(stop):
        wait(stop)
else:
    child = Child(SimpleNamespace(agent=SimpleNamespace(stuck_after_s=60.0)), print)
    signal.signal(signal.SIGTERM, child.stop)
    wait(getattr(child, sys.argv[2]))
print("ended")
"""


@pytest.mark.parametrize("who", ["main", "_stopping", "_go"])
@pytest.mark.parametrize("where", ["notify_all", "wait"])
def test_a_signal_in_the_middle_of_waiting_or_of_another_ones_handler(where, who):
    """The handler needs the lock that the same thread holds, or is too early for who begins to listen."""
    done = subprocess.run(
        [sys.executable, "-c", AT_A_CALL_OF, where, who],
        env=clean_env(),
        capture_output=True,
        text=True,
        timeout=60,  # it hangs otherwise
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


def test_who_was_stopped_without_a_signal_counts_as_terminated():
    assert Stop().exit_code == 143


def test_progress_that_is_none_is_not_told_again(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    with progress.EventProgress() as told:
        for count in (3, 3, 3, 4, 4):
            told({"jsonl": count})
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"spoolagent: jsonl: {count} events so far" for count in (3, 4)]
