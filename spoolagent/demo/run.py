"""The demo: three sites log with three APIs, one server replays all of it to three trackers, through two kills.

Everything runs as it would in real life, as processes of its own: three training scripts with a spool each,
three shippers, one `serve` with a worker process for each tracker. Half-way a worker and a training process get
SIGKILL. At the end each tracker is read back with its own reader and counted.
"""

import functools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from spoolagent.demo import points
from spoolagent.demo.train import SITES
from spoolagent.errors import SpoolError, UsageError
from spoolagent.format.layout import StreamKey, iter_streams
from spoolagent.interpreter import module_command
from spoolagent.serving.status import ReceiverStatus, read_status

STEPS = 300
_PATIENCE_S = 240.0
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where the demo's parts lie."""

    out: str

    @property
    def server(self) -> str:
        """The server's spool."""
        return os.path.join(self.out, "server-spool")

    @property
    def tensorboard(self) -> str:
        """TensorBoard's log directory."""
        return os.path.join(self.out, "tensorboard")

    @property
    def mlflow(self) -> str:
        """MLflow's tracking URI."""
        return f"sqlite:///{self.out}/mlflow/mlflow.db"

    @property
    def wandb(self) -> str:
        """The folder of W&B offline runs."""
        return os.path.join(self.out, "wandb")

    def site(self, api: str) -> str:
        """A site's own folder, with its spool in it."""
        return os.path.join(self.out, site_name(api))


def site_name(api: str) -> str:
    """The demo's sites are called after what they log with."""
    return f"site-{SITES[api] + 1}"


class Crew:
    """The processes of the demo. Each is ended at the end, by its own id."""

    def __init__(self, places: Places, stack: ExitStack, steps: int) -> None:
        self.places, self.steps = places, steps
        self._stack = stack

    def _start(
        self, name: str, args: list[str], env: dict[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        log = self._stack.enter_context(open(os.path.join(self.places.out, "logs", f"{name}.log"), "ab"))  # noqa: SIM115 - closed by the stack
        process = subprocess.Popen(
            module_command(*args),
            env={**os.environ, **(env or {})},
            stdout=log,
            stderr=log,
            cwd=self.places.out,
        )
        self._stack.callback(_end, process)
        return process

    def train(self, api: str) -> "subprocess.Popen[bytes]":
        """A site's training script; the run id stays when it is started again."""
        folder = self.places.site(api)
        os.makedirs(folder, exist_ok=True)
        env = {
            "SPOOLAGENT_SPOOL": os.path.join(folder, "spool"),
            "SPOOLAGENT_SITE": site_name(api),
            "SPOOLAGENT_RUN": "digits",
        }
        return self._start(f"train-{api}", ["spoolagent.demo.train", api, folder, str(self.steps)], env)

    def ship(self, api: str) -> "subprocess.Popen[bytes]":
        """A site's shipper."""
        spool = os.path.join(self.places.site(api), "spool")
        return self._start(
            f"ship-{api}", ["spoolagent", "ship", "--spool", spool, "--to", self.places.server]
        )

    def serve(self) -> "subprocess.Popen[bytes]":
        """The server's agent."""
        to = [
            f"tensorboard:{self.places.tensorboard}",
            f"mlflow:{self.places.mlflow}",
            f"wandb:offline:{self.places.wandb}",
        ]
        args = [word for spec in to for word in ("--to", spec)]
        return self._start("serve", ["spoolagent", "serve", "--spool", self.places.server, *args])


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_demo(out: str, *, steps: int = STEPS, console: Console | None = None) -> int:
    """Runs the demo in the folder `out` (which it makes, or made earlier). 1 when anything is lost or doubled."""
    console = console or Console(highlight=False)
    _check_extras()
    places = Places(out=os.path.abspath(out))
    _clear(places)
    with ExitStack() as stack:
        crew = Crew(places, stack, steps)
        _act(crew, console)
    return _judge(places, console)


def _check_extras() -> None:
    missing = []
    for module, extra in (
        ("sklearn", "demo"),
        ("mlflow", "demo"),
        ("tensorboard", "demo"),
        ("wandb", "demo"),
    ):
        try:
            __import__(module)
        except ImportError:
            missing.append(extra)
    if missing:
        raise UsageError("the demo needs all trackers and scikit-learn: pip install 'spoolagent[demo]'")


def _clear(places: Places) -> None:
    marker = os.path.join(places.out, "spoolagent-demo")
    if os.path.isdir(places.out) and os.listdir(places.out):
        if not os.path.exists(marker):
            raise UsageError(f"{places.out} is not empty and not of an earlier demo: give another --out")
        shutil.rmtree(places.out)
    for folder in (places.out, os.path.join(places.out, "logs"), os.path.join(places.out, "mlflow")):
        os.makedirs(folder, exist_ok=True)
    with open(marker, "w", encoding="utf-8") as file:
        file.write("Made by spoolagent demo, which may remove this folder.\n")
    for folder in (places.server, places.tensorboard, places.wandb):
        os.makedirs(folder, exist_ok=True)


def _act(crew: Crew, console: Console) -> None:
    places = crew.places
    from spoolagent.format.spool import create_spool

    create_spool(places.server)
    serve = crew.serve()
    console.print(
        f"1. The server's agent is up (pid {serve.pid}) and replays to TensorBoard, MLflow and W&B."
    )
    trainers = {api: crew.train(api) for api in SITES}
    for api, process in trainers.items():
        console.print(f"2. {site_name(api)} trains and logs with the API of {api} (pid {process.pid}).")
    for api in SITES:
        spool_file = os.path.join(places.site(api), "spool", "spool.json")
        _until(functools.partial(os.path.exists, spool_file), "a spool")
        crew.ship(api)
    console.print("3. Three shippers copy the sites' spools to the server's.")
    _until(
        lambda: _applied(places, "tensorboard") > crew.steps and _applied(places, "mlflow") > 0,
        "the first half",
    )
    victim = next(
        status for status in read_status(places.server) if status.identity.startswith("tensorboard")
    )
    if victim.pid is not None:
        os.kill(victim.pid, signal.SIGKILL)
    console.print(
        f"4. Half-way: SIGKILL to the TensorBoard worker (pid {victim.pid}); its supervisor starts another."
    )
    trainers["mlflow"].kill()
    trainers["mlflow"].wait()
    console.print(
        f"5. SIGKILL to the training of {site_name('mlflow')}; requeued, it goes on from its checkpoint."
    )
    trainers["mlflow"] = crew.train("mlflow")
    for api, process in trainers.items():
        if process.wait(_PATIENCE_S) != 0:
            raise SpoolError(f"the training of {api} failed: see {places.out}/logs/train-{api}.log")
    console.print("6. All three have finished training. Waiting for the last events to arrive.")
    _until(lambda: _is_drained(places), "the rest")


def _applied(places: Places, kind: str) -> int:
    return sum(status.applied for status in read_status(places.server) if status.identity.startswith(kind))


def _is_drained(places: Places) -> bool:
    """True when every stream of every site has ended at all three receivers."""
    streams = {key for api in SITES for key in iter_streams(os.path.join(places.site(api), "spool"))}
    statuses = read_status(places.server)
    return len(statuses) == len(SITES) and all(_has_ended(status, streams) for status in statuses)


def _has_ended(status: ReceiverStatus, streams: set[StreamKey]) -> bool:
    return {cursor.key for cursor in status.cursors if cursor.end} >= streams


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SpoolError(f"the demo waited {_PATIENCE_S:.0f} s in vain for {what}: see the logs folder")
        time.sleep(_POLL_S)


def _judge(places: Places, console: Console) -> int:
    table = Table(
        title="What was issued, and what each tracker holds (points, by the tracker's own identity)"
    )
    for column in ("site", "logged with", "tracker", "issued", "delivered", "lost", "doubled"):
        table.add_column(
            column, justify="right" if column in ("issued", "delivered", "lost", "doubled") else "left"
        )
    bad = 0
    for api in SITES:
        site = site_name(api)
        for tracker in ("tensorboard", "mlflow", "wandb"):
            want = points.issued(os.path.join(places.site(api), "spool"), tracker)
            have = _held(places, tracker, site)
            lost, doubled = (want - have).total(), (have - want).total()
            bad += lost + doubled
            row = [site, api, tracker, str(want.total()), str(have.total()), str(lost), str(doubled)]
            table.add_row(*row, style="red" if lost or doubled else None)
    console.print()
    console.print(table)
    console.print(f"\nEverything lies in {places.out}. Look at it:")
    console.print(f"  tensorboard --logdir {places.tensorboard}", soft_wrap=True)
    console.print(f"  mlflow ui --backend-store-uri {places.mlflow}", soft_wrap=True)
    console.print(
        f"  wandb sync {places.wandb}/offline-run-*    (sends it to your W&B account)", soft_wrap=True
    )
    console.print(f"  spoolagent status --spool {places.server}", soft_wrap=True)
    console.print(
        "\n[bold green]Nothing lost, nothing doubled.[/]"
        if not bad
        else f"\n[bold red]{bad} points lost or doubled.[/]"
    )
    return 1 if bad else 0


def _held(places: Places, tracker: str, site: str) -> points.Points:
    if tracker == "tensorboard":
        return points.in_tensorboard(places.tensorboard, site)
    if tracker == "mlflow":
        return points.in_mlflow(places.mlflow, site)
    return points.in_wandb(places.wandb, site)
