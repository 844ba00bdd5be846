"""What modules of ours log reaches the operator by name, and once, whichever process it comes from."""

import logging
import os
import signal
import sys

import pytest
from acceptance_help import Process
from spool_help import clean_env, until
from test_stuck import HOME, events_in
from test_worker import simple

from spoolagent.words import Seldom, Words

NO_INOTIFY = """
import spoolagent.watching
def refuse():
    raise OSError(24, "Too many open files")
spoolagent.watching._Inotify = refuse
"""


@pytest.fixture
def env(tmp_path):
    """An environment in which the kernel gives no file-system events to any process of ours."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_INOTIFY)
    return clean_env(PYTHONPATH=f"{tmp_path / 'site'}{os.pathsep}{HOME}")


@pytest.mark.parametrize("verb", ["serve", "ship"])
def test_a_warning_of_the_watch(tmp_path, env, verb):
    simple(tmp_path / "spool", count=10)
    to = ("--to", "jsonl:a.jsonl", "--to", "jsonl:b.jsonl") if verb == "serve" else ("--to", "server")
    command = [sys.executable, "-m", "spoolagent", verb, "--spool", "spool", *to]
    with Process(command, tmp_path, env=env, name=verb) as service:
        if verb == "serve":
            for name in ("a", "b"):
                until(lambda name=name: len(events_in(tmp_path / f"{name}.jsonl")) == 12, what="the events")
            os.kill(service.children()[0], signal.SIGKILL)
            until(lambda: "was ended by signal 9" in service.said, what="a worker's end")
            simple(tmp_path / "spool", run="run-2", count=10)
            for name in ("a", "b"):
                until(lambda name=name: len(events_in(tmp_path / f"{name}.jsonl")) == 24, what="the rest")
        until(lambda: "periodic sweep" in service.said, what="the warning")
        service.stop()
    said = [line for line in service.said.splitlines() if "periodic sweep" in line]
    why = f"the kernel gives no file-system events for {tmp_path}/spool ([Errno 24] Too many open files)"
    assert said == [f"spoolagent: {why}: changes are found by the periodic sweep only"]


def test_the_same_words_are_told_once_in_ten_minutes():
    told, now = [], [0.0]
    seldom = Seldom(told.append, clock=lambda: now[0])
    for at in (0.0, 1.0, 599.0, 600.0, 700.0):
        now[0] = at
        seldom("the same")
    seldom("another")
    assert told == ["the same", "the same", "another"]


def test_who_cannot_be_told_harms_nobody(capsys):
    def gone(_text):
        raise OSError(5, "Input/output error")

    Words(gone).emit(logging.LogRecord("spoolagent", logging.WARNING, "", 1, "text", (), None))
    assert "Input/output error" in capsys.readouterr().err
