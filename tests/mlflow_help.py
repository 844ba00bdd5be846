"""A real `mlflow server` on loopback for tests, and what they read from it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

START_DEADLINE_S = 120.0


def free_port():
    """A TCP port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def tracking_uri(uri):
    """The real library's own tracking URI is `uri`, whatever an earlier test of this process set."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


class MlflowServer:
    """A tracking server on SQLite, with proxied artifacts, in `folder`. A context manager.

    `uri` is its tracking URI. `kill()` ends it with SIGKILL, `restart()` starts it again on the same port and
    store (`start()` does not wait until it answers), `stop_answering()` / `answer_again()` freeze and thaw it (a
    server that hangs).
    """

    def __init__(self, folder):
        self.folder = os.fspath(folder)
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None
        os.makedirs(self.folder, exist_ok=True)

    def __enter__(self):
        self.restart()
        return self

    def __exit__(self, *exc):
        self.kill()

    @property
    def log(self):
        """What the server printed so far."""
        with open(os.path.join(self.folder, "server.log"), encoding="utf-8", errors="replace") as file:
            return file.read()

    def restart(self):
        """Starts the server and returns when it answers."""
        self.start()
        self._wait()

    def start(self):
        """Starts the server."""
        self.kill()
        env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        env |= {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        }
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
        command += ["--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", os.path.join(self.folder, "artifacts")]
        with open(os.path.join(self.folder, "server.log"), "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=env, cwd=self.folder, start_new_session=True
            )

    def is_answering(self):
        """True when it answers now."""
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError):
            return False

    def _wait(self):
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            if self.is_answering():
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"mlflow server did not start:\n{self.log}")
            time.sleep(0.1)

    def kill(self):
        """SIGKILL to the server and its workers: nothing is flushed."""
        self._signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
            self.process = None

    def stop_answering(self):
        """The server still accepts connections but answers none."""
        self._signal(signal.SIGSTOP)

    def answer_again(self):
        """Undoes `stop_answering`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number):
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)


def client_of(uri):
    """A plain MlflowClient, for looking at what arrived."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs_in(client, experiment):
    """All runs of the experiment named so, deleted ones too."""
    from mlflow.entities import ViewType

    found = client.get_experiment_by_name(experiment)
    return (
        [] if found is None else list(client.search_runs([found.experiment_id], run_view_type=ViewType.ALL))
    )


def history(client, run_id, key):
    """(timestamp ms, step, value) of every point of a metric, sorted."""
    return sorted((m.timestamp, m.step, m.value) for m in client.get_metric_history(run_id, key))
