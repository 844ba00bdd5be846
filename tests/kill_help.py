"""The cast of tests/test_kill.py: writers, a shipper and two `serve`, all real processes that are killed and restarted."""

import glob
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field

from plain_reader import valid
from spool_help import clean_env, until

from spoolagent.format.ends import is_closed
from spoolagent.format.spool import create_spool

APIS = ("native", "tensorboard", "mlflow", "wandb")
FILES = ("tensorboard", "wandb", "jsonl")
RECEIVERS = (*FILES, "mlflow")
KINDS = ("writer", "shipper", "worker", "supervisor")
OUTAGES = ("MLflow server", "MLflow server, frozen")
WRITER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kill_writer.py")
# Any of these in an agent's log is a finding: nobody but us ends a process, and nothing is damaged.
BAD_WORDS = (
    "Traceback",
    "dead letter",
    "are lost",
    "ended with code",
    "fork",
    "did not end in time",
    "refused",
)
HARMLESS = (
    # A killed supervisor's worker may be in the middle of a long call when the next one wants its place.
    "another process is replaying this spool",
    # A server that we killed refuses connections.
    "everything is kept, trying again",
)


@dataclass(kw_only=True, eq=False)
class Launch:
    """One writer process, of one attempt of a run."""

    site: str
    run: str
    first: int
    seed: int
    acks_path: str
    log_path: str
    process: subprocess.Popen
    killed: bool = False

    @property
    def acks(self):
        """What it acknowledged."""
        try:
            with open(self.acks_path, encoding="ascii") as file:
                return file.read()
        except FileNotFoundError:
            return ""


@dataclass(kw_only=True, eq=False)
class Agent:
    """A service that is started again whenever it is gone, as systemd does."""

    name: str
    args: list
    log_path: str
    life_s: tuple
    process: subprocess.Popen | None = None
    ripe_at: float = 0.0
    """Not killed sooner: drawn anew for each life, so that the kill meets it at any of its moments."""
    waits_until: float = 0.0
    """Nor, every second time, before its workers are at work, unless that takes very long."""
    surprises: list = field(default_factory=list)

    def keep(self, rng):
        """Starts it unless it runs."""
        if self.process is not None and self.process.poll() is not None:
            self.surprises.append(f"{self.name} ended by itself with {self.process.returncode}")
            self.process = None
        if self.process is None:
            with open(self.log_path, "ab") as log:
                command = [sys.executable, "-m", "spoolagent", *self.args]
                self.process = subprocess.Popen(command, stdout=log, stderr=log, env=clean_env())
            now = time.monotonic()
            self.ripe_at = now + rng.uniform(*self.life_s)
            self.waits_until = now + (20.0 if rng.random() < 0.5 else 0.0)

    def kill(self):
        """SIGKILL. False when it was not there, or too young."""
        if self.process is None or self.process.poll() is not None or time.monotonic() < self.ripe_at:
            return False
        self.process.kill()
        code, self.process = self.process.wait(), None
        return code == -signal.SIGKILL

    def stop(self):
        """SIGTERM; returns the exit code."""
        if self.process is None:
            return None
        self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()


class Tracker:
    """The MLflow server: killed with all that it has begun, or frozen, and a random moment later back on its store.

    `keep()` brings it back; it never waits, so that others are killed while it is away.
    """

    FROZEN_S = (11.0, 18.0)
    """Longer than the receiver's time-out of 10 s."""

    def __init__(self, server, rng):
        self.server, self.rng = server, rng
        self._back_at = None
        self._how = None
        self._starting = False
        self.in_flight, self.applied = Counter(), Counter()
        """Outages that met a batch in flight, by how; of those, batches that were in the store already."""

    @property
    def is_well(self):
        """True when it answers, as far as was looked."""
        return self._back_at is None and not self._starting

    def keep(self):
        """Brings it back when it is time."""
        if self._back_at is not None and time.monotonic() >= self._back_at:
            self._back_at = None
            self._starting = True
            self._how()
        if self._starting and self.server.is_answering():
            self._starting = False

    def hurt(self, kind, batch):
        """SIGKILL, or SIGSTOP for a while; half the time while a batch is on its way. False when it is not well.

        `batch()` is the batch that was named to go out, (spool, site, run, writer, last seq), or None.
        """
        if not self.is_well:
            return False
        if self.rng.random() < 0.7:
            self._await_batch(batch)
        before = batch()
        if kind == "MLflow server":
            self.server.kill()
            self._how, pause_s = self.server.start, self.rng.uniform(0.0, 3.0)
        else:
            self.server.stop_answering()
            self._how, pause_s = self.server.answer_again, self.rng.uniform(*self.FROZEN_S)
        self._back_at = time.monotonic() + pause_s
        if before is not None and batch() == before:  # it did not get through
            self.in_flight[kind] += 1
            self.applied[kind] += kind == "MLflow server" and has_point(self.server.folder, before)
        return True

    def _await_batch(self, batch):
        """Waits for a batch that is just named: its request goes out now. Where the kill meets it is chance."""
        deadline, last = time.monotonic() + 5.0, batch()
        while time.monotonic() < deadline:
            found = batch()
            if found is not None and found != last:
                time.sleep(self.rng.uniform(0.0, 0.05))
                return
            time.sleep(0.001)


class Crew:
    """A client spool with writers, a shipper to a server spool, and two `serve` there: of files, and of MLflow."""

    def __init__(self, root, mlflow, experiment, rng):
        self.root, self.rng = str(root), rng
        self.client, self.server = self.path("client"), self.path("server")
        self.uri, self.experiment = mlflow.uri, experiment
        self.tracker = Tracker(mlflow, rng)
        self.launches, self.killed_workers = [], Counter()
        self.named, self.looks = Counter(), 0
        self._numbers = itertools.count(1)
        for folder in ("acks", "logs", "work", "wandb", "tb"):
            os.makedirs(self.path(folder))
        create_spool(self.client)
        create_spool(self.server)
        self.shipper = self._agent("ship", ["ship", "--spool", self.client, "--to", self.server], (0.3, 2.5))
        self.shipper.args += ["--sweep-interval", "300ms"]
        serves = [
            self._serve("files", self._files(), (0.5, 5.0)),
            self._serve("mlflow", self._mlflow(), (3.0, 12.0)),
        ]
        self.supervisors = serves
        self.agents = [self.shipper, *serves]

    def path(self, *names):
        """Below the root."""
        return os.path.join(self.root, *names)

    def _agent(self, name, args, life_s):
        return Agent(name=name, args=args, log_path=self.path("logs", f"{name}.log"), life_s=life_s)

    def _serve(self, name, receivers, life_s):
        config = self.path(f"{name}.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f"spool = {json.dumps(self.server)}\n[agent]\nsweep_interval = 0.3\n")
            file.write(f"[serve]\nto = {json.dumps(list(receivers))}\n")
            for receiver, settings in receivers.items():
                file.write(f"[receivers.{receiver}]\n")
                file.writelines(f"{key} = {json.dumps(item)}\n" for key, item in settings.items())
        return self._agent(name, ["serve", "--config", config], life_s)

    def _files(self):
        small = {"max_events": 10, "flush_interval": 0.05}
        return {
            "tensorboard": {"to": f"tensorboard:{self.path('tb')}", **small},
            "wandb": {"to": f"wandb:offline:{self.path('wandb')}", **small},
            "jsonl": {"to": f"jsonl:{self.path('events.jsonl')}", **small},
        }

    def _mlflow(self):
        settings = {"max_events": 40, "flush_interval": 0.05, "experiment": self.experiment}
        return {"mlflow": {"to": f"mlflow:{self.uri}", **settings}}

    # -- writers -----------------------------------------------------------------------------------------------

    def write(self, most=3):
        """Starts writers until `most` are at work. Some go on with the run of one that was killed."""
        while len(self.writing()) < most:
            again = self._requeued() if self.rng.random() < 0.3 else None
            number = next(self._numbers)
            if again is None:
                site, run, first = self.rng.choice(APIS), f"run-{number:04d}", 0
            else:
                site, run, first = again.site, again.run, self._next_step(again)
            self._launch(number, site, run, first)

    def writing(self):
        """The writers at work."""
        return [launch for launch in self.launches if launch.process.poll() is None]

    def _requeued(self):
        busy = {(launch.site, launch.run) for launch in self.writing()}
        last = {(launch.site, launch.run): launch for launch in self.launches}
        found = [launch for key, launch in last.items() if launch.killed and launch.acks and key not in busy]
        return self.rng.choice(found[-8:]) if found else None

    @staticmethod
    def _next_step(launch):
        """A step that the killed one cannot have begun: its point under way was of the one before."""
        return launch.first + launch.acks.count(".") + 1

    def _launch(self, number, site, run, first):
        acks, log = self.path("acks", str(number)), self.path("logs", f"writer-{number}.log")
        env = {"SPOOLAGENT_SPOOL": self.client, "SPOOLAGENT_SITE": site, "SPOOLAGENT_RUN": run}
        env["KILL_PROJECT"] = self.experiment
        env["KILL_LOGDIR"] = self.path("work", str(number))
        count = self.rng.randint(20, 150)
        command = [sys.executable, WRITER, site, *map(str, (number, first, count)), acks]
        with open(log, "wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=out, env=clean_env(**env), cwd=self.path("work")
            )
        launch = Launch(
            site=site, run=run, first=first, seed=number, acks_path=acks, log_path=log, process=process
        )
        self.launches.append(launch)

    # -- killing -----------------------------------------------------------------------------------------------

    def keep(self):
        """Everything that should run runs."""
        self.tracker.keep()
        for agent in self.agents:
            agent.keep(self.rng)

    def kill(self, kind):
        """SIGKILL to one process of this kind. False when there is none that is due."""
        if kind == "writer":
            return self._kill_writer()
        if kind == "shipper":
            return self.shipper.kill()
        if kind in OUTAGES:
            return self.tracker.hurt(kind, self._mlflow_batch)
        if kind == "supervisor":
            due = [agent for agent in self.supervisors if self._is_due(agent)]
            return any(agent.kill() for agent in self.rng.sample(due, len(due)))
        return self._kill_worker()

    def _kill_writer(self):
        victims = self.writing()
        if self.rng.random() < 0.8:  # else also one that is only just starting
            victims = [launch for launch in victims if launch.acks]
        if not victims:
            return False
        victim = self.rng.choice(victims)
        victim.process.kill()
        victim.killed = victim.process.wait() == -signal.SIGKILL
        return victim.killed

    def _is_due(self, agent):
        if time.monotonic() > agent.waits_until or agent.process is None:
            return True
        workers = set(children(agent.process.pid))
        return len(workers & {note["pid"] for note, _ in self.notes()}) == (
            1 if agent.name == "mlflow" else 3
        )

    def _kill_worker(self):
        """A worker that is in its loop; then looks whether it died between naming a batch and committing it."""
        alive = {pid for agent in self.supervisors if agent.process for pid in children(agent.process.pid)}
        notes = [(note, folder) for note, folder in self.notes() if note["pid"] in alive]
        most = min(self.killed_workers[name] for name in RECEIVERS) + 3  # every receiver has its share
        notes = [item for item in notes if self.killed_workers[item[0]["name"]] < most]
        if not notes:
            return False
        note, folder = self.rng.choice(notes)
        try:
            os.kill(note["pid"], signal.SIGKILL)
        except ProcessLookupError:
            return False
        killed_at = time.monotonic()
        until(lambda: is_dead(note["pid"]), what="the end of a worker")
        named = count(folder, "named")
        if time.monotonic() - killed_at < 0.35:  # its supervisor waits longer before it starts another
            self.looks += 1
            self.named[note["name"]] += bool(named)
        self.killed_workers[note["name"]] += 1
        return True

    def _mlflow_batch(self):
        """What the MLflow worker has named to go out next: (spool, site, run, writer, last seq), or None."""
        for note, folder in self.notes():
            if note["name"] == "mlflow":
                rows = query(
                    folder, "SELECT site, run, writer, json_extract(content, '$.last_seq') FROM named"
                )
                return (self.server, *rows[0]) if rows else None
        return None

    def notes(self):
        """(worker.json, folder) of each receiver."""
        for path in glob.glob(os.path.join(self.server, ".agent", "receivers", "*", "worker.json")):
            with open(path, "rb") as file:
                yield json.loads(file.read()), os.path.dirname(path)

    def all_ended(self):
        """True when each stream of the client's spool has its closing seal or its `.end`."""
        return all(
            glob.glob(os.path.join(folder, "*.end"))
            or is_closed(max(glob.glob(os.path.join(folder, "*.jsonl"))))
            for folder in glob.glob(os.path.join(self.client, "sites", "*", "runs", "*", "*"))
        )

    def surprises(self):
        """What nobody should see: agents that ended by themselves, complaints in their logs, writers that failed."""
        found = [text for agent in self.agents for text in agent.surprises]
        for agent in self.agents:
            with open(agent.log_path, encoding="utf-8") as file:
                lines = file.readlines()
            for at, line in enumerate(lines):
                if any(word in line for word in BAD_WORDS) and not any(text in line for text in HARMLESS):
                    found.append(f"{agent.name}: {''.join(lines[at : at + 40])}")
        for launch in self.launches:
            if not launch.killed and launch.process.poll() != 0:
                with open(launch.log_path, encoding="utf-8") as file:
                    found.append(
                        f"{launch.site}/{launch.run} ended with {launch.process.poll()}: {file.read()}"
                    )
        return found

    def stop(self):
        """Ends everything: writers by SIGKILL, agents by SIGTERM. Exit codes of the agents by name."""
        for launch in self.writing():
            launch.process.kill()
            launch.process.wait()
        return {agent.name: agent.stop() for agent in self.agents}


def has_point(folder, batch):
    """True when the store of a dead MLflow server already holds the last point of a batch."""
    spool, site, run, writer, last = batch
    events = []
    for path in sorted(glob.glob(os.path.join(spool, "sites", site, "runs", run, writer, "*.jsonl"))):
        with open(path, "rb") as file:
            events += map(valid, file.read().splitlines(keepends=True))
    points = [e for e in events if e and e.get("type") == "metrics" and last - 1 <= e["seq"] <= last]
    if not points:
        return False
    name = next(iter(points[-1]["metrics"]))
    wanted = (run, name, points[-1]["step"], points[-1]["time"] // 1_000_000)
    # To be written to: SQLite takes back what the dead server had not committed.
    with closing(sqlite3.connect(f"file:{folder}/server.db?mode=rw", uri=True, timeout=10)) as db:
        sql = (
            "SELECT count(*) FROM metrics m JOIN tags t ON t.run_uuid = m.run_uuid AND t.key = 'spoolagent.run' "
            "WHERE t.value = ? AND m.key = ? AND m.step = ? AND m.timestamp = ?"
        )
        return db.execute(sql, wanted).fetchone()[0] > 0


def children(pid):
    """The processes that `pid` has started."""
    found = []
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        try:
            with open(path, encoding="ascii") as file:
                found += map(int, file.read().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def is_dead(pid):
    """True when the process runs no more (gone, or not yet waited for)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def query(folder, sql):
    """Rows of a receiver's database, read beside its owner."""
    path = os.path.join(folder, "state.sqlite")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
        return db.execute(sql).fetchall()


def count(folder, table):
    """How many rows a table of a receiver's database has."""
    return query(folder, f"SELECT count(*) FROM {table}")[0][0]


def told(folder):
    """{(site, run): status} that the receiver has surely been told."""
    rows = query(folder, "SELECT site, run, content FROM told")
    known = {(site, run): json.loads(content) for site, run, content in rows}
    return {key: content["status"] for key, content in known.items() if content["sure"]}
