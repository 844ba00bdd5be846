"""Fixtures that several test files share. Keep it small: helpers live in tests/<topic>_help.py."""

import functools
import os
import tempfile
from pathlib import Path

import pytest
import report_facts

os.environ.pop("PYTHONUNBUFFERED", None)
"""Where it is set, as in many containers, the commands under test would write otherwise than at their users'."""

_LONG = (
    "test_kill.py",
    "test_ranks.py",
    "test_pairs.py",
    "test_cli.py",
    "test_dead_letters.py",
    "test_schedules.py",
)
"""Files that take longest, longest first: begun last, one of them would run alone at the end."""


def pytest_collection_modifyitems(items):
    """Long files first (with `--no-loadscope-reorder`, which keeps this order)."""
    items.sort(
        key=lambda item: _LONG.index(name) if (name := Path(item.fspath).name) in _LONG else len(_LONG)
    )


_facts = {}


@pytest.fixture(autouse=True)
def told_facts(request):
    """What a test told by `report_facts.add` goes with its report, from whichever process."""
    report_facts.take()
    yield
    if found := report_facts.take():
        request.node.user_properties.append((report_facts.PROPERTY, found))


def pytest_runtest_logreport(report):
    """Only the last report of a test has all that it told."""
    if report.when == "teardown":
        for name, found in report.user_properties:
            if name == report_facts.PROPERTY:
                report_facts.merge(_facts, found)


def pytest_sessionfinish(session):
    """In the process that prints: a run that proves nothing fails."""
    if hasattr(session.config, "workerinput"):
        return
    if path := os.environ.get("SPOOLAGENT_REPORT"):
        report_facts.write(path, _facts)
    if report_facts.unworthy(_facts) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    """The table."""
    if _facts:
        terminalreporter.section("what was counted")
        for line in [*report_facts.lines(_facts), *report_facts.unworthy(_facts)]:
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def no_leftovers():
    """A writer that a test left open must not be synced, nor a fault stay installed, in the middle of the next one.

    Nor may it hold descriptors: a shell has 1,024, and there are more tests.
    """
    from spoolagent.format import durable, keeper

    keeper._kept = kept = set()  # not weak: also those that the test has forgotten
    yield
    durable.set_fault(None)
    with keeper._guard:
        for writer in kept:
            writer.after_fork()
        kept.clear()


@pytest.fixture
def source(tmp_path):
    """A spool that is shipped."""
    from shipping_help import make_spool

    return make_spool(tmp_path / "source")


@pytest.fixture
def target(tmp_path):
    """Where it is shipped to."""
    return str(tmp_path / "target")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    """One real `mlflow server` for the session; a test takes an experiment of its own (`fresh_name`)."""
    from mlflow_help import MlflowServer

    with MlflowServer(tmp_path_factory.mktemp("mlflow-server")) as server:
        yield server


@pytest.fixture
def in_memory(tmp_path):
    """A folder where an fsync costs nothing, if there is one: for tests of memory, or of very many steps."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="spoolagent-test-") as folder:
        yield Path(folder)


@pytest.fixture
def place(in_memory, monkeypatch):
    """A directory in memory where there is one, no fsync, and receivers found once: for tests that start thousands."""
    from tb_help import without_fsync

    from spoolagent.serving import registry

    monkeypatch.setattr(registry, "entry_points", functools.cache(registry.entry_points))
    with without_fsync():
        yield str(in_memory)
