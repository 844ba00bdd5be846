"""Fixtures that several test files share. Keep it small: helpers live in tests/<topic>_help.py."""

import pytest


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    """One real `mlflow server` for the session; a test takes an experiment of its own (`fresh_name`)."""
    from mlflow_help import MlflowServer

    with MlflowServer(tmp_path_factory.mktemp("mlflow-server")) as server:
        yield server
