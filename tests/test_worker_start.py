"""A worker that has no memory, or whose receiver's library is missing or broken: one line, the next step, and it is tried again."""

import errno
import os
import re
import resource
import subprocess
import sys

import pytest
from spool_help import clean_env, until
from test_stuck import HOME, Serving, events_in
from test_worker import Agent, assert_all_there, simple

from spoolagent.errors import cannot_import
from spoolagent.serving import supervisor
from spoolagent.settings import AgentSettings, ReceiverSettings, ServeSettings
from spoolagent.testing import MemoryReceiver

PLUGIN = '''
import os
from spoolagent.receivers.jsonl import JsonLinesReceiver

class Failing(JsonLinesReceiver):
    """JSON lines; open() fails for as long as the file FILE.fails says how."""
    def __init__(self, target, options):
        super().__init__(target, options)
        self.identity = self.identity.replace("jsonl:", "failing:")
        self._fails = target + ".fails"
    def open(self, state):
        if os.path.exists(self._fails):
            exec(open(self._fails).read())
        super().open(state)
'''
FAULTS = {
    "raise MemoryError": r"opening failing: out of memory: raise the limit \(MemoryMax= of the service, ulimit -v\)",
    "import nowhere_to_be_found": (
        r"what receiver failing needs is not installed \(No module named 'nowhere_to_be_found'\): "
        r"pip install 'spoolagent\[failing\]'"
    ),
    "raise ImportError('twenty\\nlines\\nOriginal error was: failed to map segment')": (
        r"cannot be loaded \(failed to map segment\): raise the memory limit"
    ),
    "raise ZeroDivisionError('of its own')": (
        "opening failing: ZeroDivisionError: of its own; its traceback is above"
    ),
}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Installs the receiver kind `failing` for this process and its children."""
    folder = tmp_path / "plugin"
    info = folder / "failing-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: failing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[spoolagent.receivers]\nfailing = failing_receiver:Failing\n")
    (folder / "failing_receiver.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{HOME}")
    return tmp_path


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.split("(")[0])
def test_a_receiver_that_cannot_be_opened(plugin, capfd, fault):
    simple(plugin / "spool", count=10)
    out = plugin / "out.jsonl"
    (plugin / "out.jsonl.fails").write_text(fault)
    with Serving(plugin, f"failing:{out}", stuck_after_s=60.0) as serving:
        until(lambda: serving.heard(FAULTS[fault] + r".*; restarting in \d"), what="the line")
        (plugin / "out.jsonl.fails").unlink()
        until(lambda: len(events_in(out)) == 12, what="the events")
    assert ("Traceback" in capfd.readouterr().err) == ("ZeroDivision" in fault)


def test_a_replay_into_such_a_receiver(plugin):
    simple(plugin / "spool", count=10)
    (plugin / "out.jsonl.fails").write_text("import nowhere_to_be_found")
    chosen = ServeSettings(
        agent=AgentSettings(spool=str(plugin / "spool")),
        receivers=(ReceiverSettings(name="f", spec=f"failing:{plugin}/out.jsonl"),),
    )
    with pytest.raises(supervisor.SpoolError, match="pip install 'spoolagent\\[failing\\]'") as raised:
        supervisor.replay(chosen, report=lambda _: None)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("limit_mb", [200, 250, 400])
def test_a_real_limit_of_memory(tmp_path, limit_mb):
    """MLflow wants more: whatever gives way first, nothing but words about memory reaches the operator."""
    simple(tmp_path / "spool", count=10)
    command = [sys.executable, "-m", "spoolagent", "replay", "spool", "--to", "mlflow:sqlite:///mlflow.db"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=clean_env(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit_mb << 20,) * 2),
    )
    assert done.returncode in (1, 2)
    *_, last = done.stderr.splitlines()
    assert re.search("[mM]emory|its own words are above|was ended by signal", last), done.stderr
    assert "Traceback" not in done.stderr


def test_no_event_is_refused_for_want_of_memory(tmp_path):
    """A smaller batch may do; else it is tried again, and the other runs go on."""
    simple(tmp_path, count=3)
    simple(tmp_path, run="run-2", count=3)
    short = [6]

    def want_memory(batch):
        if batch.stream.key.run == "run-1" and short[0]:
            short[0] -= 1
            raise MemoryError

    receiver = MemoryReceiver(before=want_memory)
    worker = Agent(tmp_path, receiver)
    worker.run()
    assert (worker.dead, short) == (0, [0])
    assert any("out of memory: raise the limit" in line for line in worker.said)
    assert_all_there(tmp_path, receiver)


def test_a_state_that_could_not_be_told_for_want_of_memory_is_told_again(tmp_path):
    simple(tmp_path, count=3)
    receiver, real, calls = MemoryReceiver(), MemoryReceiver.set_status, []

    def set_status(end):
        calls.append(end)
        if len(calls) == 1:
            raise MemoryError
        real(receiver, end)

    receiver.set_status = set_status
    Agent(tmp_path, receiver).run()
    assert receiver.statuses[("site-1", "run-1")].status == "finished"


def test_a_machine_without_another_process_ends_nobody(tmp_path, monkeypatch):
    simple(tmp_path / "spool", count=10)
    real, short = supervisor.WorkerProcess.start, [2]

    def start(self):
        if short[0]:
            short[0] -= 1
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        real(self)

    monkeypatch.setattr(supervisor.WorkerProcess, "start", start)
    with Serving(tmp_path, f"jsonl:{tmp_path}/out.jsonl", stuck_after_s=60.0) as serving:
        until(lambda: len(events_in(tmp_path / "out.jsonl")) == 12, what="the events")
        assert (
            len(serving.heard(r"cannot be started \(Resource temporarily unavailable\); trying again")) == 2
        )


def test_the_words_of_a_library_are_cut(tmp_path):
    said = str(cannot_import("it", ImportError("x" * 1000), "mlflow"))
    assert len(said) < 600 and "\n" not in said


def test_a_users_own_modules_in_the_working_directory_are_not_taken_for_libraries(tmp_path):
    simple(tmp_path / "spool")
    for name in ("logging", "queue", "sqlite3"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('training code')\n")
    # As the installed command starts: -P keeps the working directory out, as a console script does.
    command = [sys.executable, "-P", "-m", "spoolagent", "replay", "spool", "--to", "jsonl:out.jsonl"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (made.returncode, made.stderr.count("Traceback")) == (0, 0), made.stderr
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) > 20
