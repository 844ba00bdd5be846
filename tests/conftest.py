"""Fixtures that several test files share. Keep it small: helpers live in tests/<topic>_help.py."""

from pathlib import Path

import pytest

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


@pytest.fixture(autouse=True)
def no_leftovers():
    """A writer that a test left open must not be synced, nor a fault stay installed, in the middle of the next one."""
    yield
    from spoolagent.format import durable, keeper

    durable.set_fault(None)
    with keeper._guard:
        keeper._kept.clear()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    """One real `mlflow server` for the session; a test takes an experiment of its own (`fresh_name`)."""
    from mlflow_help import MlflowServer

    with MlflowServer(tmp_path_factory.mktemp("mlflow-server")) as server:
        yield server
