"""The world of one schedule: training machines with spools, a server, real writers, shippers, workers, receivers."""

import contextlib
import itertools
import os
import random
import sqlite3
import sys
import time
from types import SimpleNamespace

from model_fs import FileModel
from model_journal import Record
from model_process import Clock, Kernel, Process, Violation
from model_receivers import ModelReceiver, Moody, Tracker
from spool_help import NoHints

from spoolagent.errors import SpoolError, Unreachable
from spoolagent.format import ends, keeper, live, stream
from spoolagent.format.blobs import put_bytes
from spoolagent.format.layout import StreamKey, iter_streams, list_segments, segment_name, stream_dir
from spoolagent.format.spool import create_spool, open_spool
from spoolagent.format.stream import StreamOptions, StreamWriter
from spoolagent.receivers.jsonl import JsonLinesReceiver
from spoolagent.serving.store import open_store, target_dir
from spoolagent.serving.worker import Worker
from spoolagent.settings import AgentSettings, ReceiverSettings
from spoolagent.shipping import directory, shipper
from spoolagent.shipping.directory import DirectoryTarget
from spoolagent.shipping.shipper import Shipper
from spoolagent.undertaker import Undertaker

CLOCK = Clock()
_WORLD = SimpleNamespace(current=None)
_SMALL = {"max_bytes": 4096, "flush_interval_s": 0.3}
GOOD_ENDS = (SpoolError, OSError, sqlite3.Error)


class _Held(set):
    """`live._held` that knows on which host a stream's writer lives: another process asks the kernel's lock."""

    def __init__(self):
        super().__init__()
        self.hosts = {}

    def add(self, path):
        super().add(path)
        self.hosts[path] = _WORLD.current.host()


def _timed():
    """Our modules that read a clock by `time.`."""
    names = [name for name in sys.modules if name.startswith("spoolagent.")]
    return [sys.modules[name] for name in names if getattr(sys.modules[name], "time", None) is time]


@contextlib.contextmanager
def patched():
    """One clock, one host name per process, no threads, no waiting for locks."""
    held = _Held()
    names = itertools.count(1)
    swaps = [(module, "time", CLOCK) for module in _timed()]
    swaps += [
        (live, "_held", held),
        (live, "host_name", lambda: _WORLD.current.host()),  # noqa: PLW0108 - another world each time
        (live, "boot_id", lambda: _WORLD.current.boot()),  # noqa: PLW0108 - as above
        (live, "is_held_here", lambda path: _is_held(held, path)),
        (keeper, "keep", lambda item: None),
        (keeper, "release", lambda item: None),
        (stream, "new_writer_id", lambda: f"w{next(names):06d}"),
        (directory, "_LOCK_WAIT_S", 0.0),
        (shipper, "Watcher", Hints),
    ]
    old = [(where, name, getattr(where, name)) for where, name, _ in swaps]
    for where, name, value in swaps:
        setattr(where, name, value)
    try:
        yield
    finally:
        for where, name, value in old:
            setattr(where, name, value)


def _is_held(held, path):
    path = os.path.abspath(path)
    return path in held and held.hosts[path] == _WORLD.current.host()


class Hints(NoHints):
    """Stands in for the Watcher: each wait hands control to the schedule, which says what is hinted."""

    def __init__(self, spool="", poll=None):
        self._process = _WORLD.current.kernel.current
        self.sees_all = _WORLD.current.trusts_hints

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None

    def wait(self, timeout_s):
        return self._process.wait()


class _Stop:
    """The shipper's stop event."""

    def __init__(self, process):
        self._process = process

    def is_set(self):
        return self._process.stopping

    def wait(self, timeout=None):
        self._process.wait()


class World:
    """See the module. `config`: clients, receivers, remote (agents on another host than the writers), seed."""

    def __init__(self, base, config):
        self.config = config
        self.base = os.path.realpath(base)
        self.clock = CLOCK
        CLOCK.reset()
        random.seed(config["seed"])
        _WORLD.current = self
        self.trusts_hints = config["seed"] % 2 == 1
        """Workers rely on hints, though the schedule drops some: only their slow rounds find what was lost."""
        self.client_roots = [os.path.join(self.base, f"c{i}") for i in range(config["clients"])]
        self.server_root, self.out = os.path.join(self.base, "srv"), os.path.join(self.base, "out")
        self.files = FileModel()
        roots = [*self.client_roots, self.server_root, self.out]
        for root in roots:
            os.mkdir(root)
        os.mkdir(os.path.join(self.base, "decoy"))
        self.kernel = Kernel(self.files, roots)
        self.boots = {"srv": "boot-s"} | {f"c{i}": f"boot-{i}" for i in range(config["clients"])}
        self.moves = 0
        self.spools = [os.path.join(root, "spool") for root in self.client_roots]
        self.server = os.path.join(self.server_root, "spool")
        for path in [*self.spools, self.server]:
            create_spool(path)
        for root in roots:
            self.files.sync_tree(root)
        self.records = {}
        self.writers = []
        """(process, StreamWriter, client)"""
        self.shippers = {}
        self.workers = {}
        self.undertakers = {}
        self.trackers = {}
        self.moods = {name: [] for name in config["receivers"]}
        self.excused = {name: set() for name in config["receivers"]}
        """(key, seq) of batches that were in flight at a death and could not be read again: see Moody."""
        self.damage = 0
        self.in_flight = {}
        self.attempts = {name: {} for name in config["receivers"]}
        self.cursors = {name: {} for name in config["receivers"]}
        self.stores = {name: {"dead": {}, "lost": {}} for name in config["receivers"]}
        self.stats = {
            "repeats": 0,
            "commits": 0,
            "delivered": 0,
            "kills": 0,
            "power": 0,
            "pruned": 0,
            "retried": 0,
            "rewinds": 0,
        }
        self.n = 0
        self.server_touched = False
        self.backup = None
        self.given_up = set()
        """(stream, seq) that was left out of a delivery; its bytes may heal before that is committed."""
        self.rewound = set()
        """Receivers whose cursors were put back."""
        self.copies = {}
        self.power_cuts = 0

    # -- machines ----------------------------------------------------------------------------------------

    def host(self):
        process = self.kernel.current
        return process.host if process is not None else "nobody"

    def boot(self):
        return self.boots[self.host().split("-")[0]]

    def agent_host(self, client):
        return f"c{client}-login" if self.config["remote"] else f"c{client}"

    def new_process(self, name, host):
        return Process(self.kernel, name, host)

    def processes(self):
        found = [w[0] for w in self.writers]
        return [*found, *self.shippers.values(), *self.workers.values()]

    # -- writers -----------------------------------------------------------------------------------------

    def start_writer(self, client, site, run, *, role, new_attempt, durability, segment_bytes):
        spool = self.spools[client]
        mates = [r for r in self.records.values() if r.key[:2] == (site, run) and r.role == "main"]
        mates = [r for r in mates if os.path.isdir(stream_dir(spool, r.key))]
        latest = max((r.attempt for r in mates), default=0)
        attempt = max(1, latest + (1 if new_attempt else 0))
        writer = StreamWriter(
            self.spools[client],
            site,
            run,
            lambda: {"api": "native", "host": "h", "pid": 1, "attempt": attempt},
            role=role,
            attempt=attempt,
            options=StreamOptions(durability=durability, segment_bytes=segment_bytes),
            warn=lambda message: None,
        )
        process = self.new_process(f"writer-{len(self.writers)}", f"c{client}")
        self.writers.append((process, writer, client))
        return process, writer

    def record(self, writer, client):
        key = StreamKey(writer.site, writer.run, writer.writer)
        if key not in self.records:
            self.records[key] = Record(key, client, writer.role, writer.attempt)
        self.records[key].writer = writer
        return self.records[key]

    def append(self, place, count, kind):
        """Runs in the writer's process: `count` events, each with a number of its own."""
        _, writer, client = place
        for _ in range(count):
            self.n += 1
            n = self.n
            name, fields = self._fields(n, kind, writer)
            dropped, before, seq = writer.dropped, writer.writer, writer.seq
            for key_writer in {before, writer.writer}:
                self._try(writer, key_writer, client, n, name, fields)
            writer.append(name, fields)
            self._try(writer, writer.writer, client, n, name, fields)
            if writer.dropped == dropped and not writer.closed:
                record = self.record(writer, client)
                record.acked[writer.seq] = n
                if writer.options.durability == "always" and not writer._dirty:  # else the disk refused
                    record.synced = writer.seq
            elif writer.writer == before and writer.seq > seq:
                self.record(writer, client).unsure.update(range(seq + 1, writer.seq + 1))

    def _try(self, writer, name, client, n, kind, fields):
        key = StreamKey(writer.site, writer.run, name)
        if key not in self.records:
            self.records[key] = Record(key, client, writer.role, writer.attempt)
        self.records[key].tried[n] = (kind, fields)
        self.records[key].writer = writer

    def _fields(self, n, kind, writer):
        fields = {"metrics": {"n": n}, "step": n % 7}
        if kind == 1:
            fields["metrics"]["refuse"] = 1
        elif kind == 2:
            fields["metrics"]["filler-" + "x" * 700] = 1
        elif kind == 3:
            try:
                ref = put_bytes(writer.spool, writer.site, b"blob %d " % n * 20)
            except OSError:
                return "metrics", fields
            return "text", {"key": f"n{n}", "blob": ref, "step": n}
        return "metrics", fields

    def sync(self, place):
        """Runs in the writer's process: what an operator's flush promises."""
        _, writer, client = place
        seq = writer.seq
        try:
            writer.sync()
        except OSError:
            return
        if seq:
            record = self.record(writer, client)
            record.synced = max(record.synced, seq)

    def close_writer(self, place, status):
        """Runs in the writer's process."""
        process, writer, client = place
        hit, seq = process.hit, 0
        self.record(writer, client)  # it may only now begin its stream
        if status:
            dropped = writer.dropped
            writer.append("run_end", {"status": status, "exit_code": 0})
            if writer.dropped == dropped and writer.seq:
                self.record(writer, client).acked[writer.seq] = 0
                self.record(writer, client).status = status
        seq = writer.seq
        full = bool(self.kernel.full)
        writer.close()
        record = self.record(writer, client)
        if writer.seq:
            record.ended = "closed"
            if writer.options.durability != "process" and process.hit == hit and not full:
                record.synced = max(record.synced, seq)

    def bury_writer(self, place):
        """What the kernel does at the death of a writer's process: descriptors and locks are freed."""
        process, writer, _ = place
        process.kill()
        for segment in (writer._segment, *writer._retired):
            if segment is not None:
                with contextlib.suppress(OSError):
                    os.close(segment.fd)
        writer._segment, writer._retired = None, []
        if writer._live is not None:
            live._held.discard(writer._live._stream)
            with contextlib.suppress(OSError):
                os.close(writer._live._fd)
            writer._live = None
        for record in self.records.values():
            if record.writer is writer and not record.ended:
                record.ended = "killed"

    # -- agents ------------------------------------------------------------------------------------------

    def shipper_process(self, client, number):
        known = self.shippers.get((client, number))
        if known is None or known.state == "idle":
            known = self.shippers[client, number] = self.new_process(
                f"shipper-{client}.{number}", self.agent_host(client)
            )
            known.start(lambda: self._ship(known, self.spools[client]))
        return known

    def _ship(self, process, path):
        spool = open_spool(path)
        agent = AgentSettings(spool=path, sweep_interval_s=1.0)
        target = DirectoryTarget(self.server)

        def tell(note):
            if note.kind == "shipped":
                self.check_shipped(path, note.stream)

        made = Shipper(spool, target, agent, tell, _Stop(process), clock=CLOCK.monotonic)
        made._deaths = ends.DeathWatch(stale_after_s=60.0, clock=CLOCK.monotonic)
        made.follow()

    def ship_once(self, path, host):
        """A shipper of its own, from a copy of a spool, that ends when it has looked at everything."""
        process = self.new_process("shipper-once", host)
        process.start(lambda: self._ship(process, path))
        for _ in range(6):
            if process.state != "waiting":
                break
            CLOCK.advance(0.5)
            process.resume(None)
        process.kill()

    def worker_process(self, name, number=0):
        known = self.workers.get((name, number))
        if known is None or known.state == "idle":
            host = self.agent_host(0) if name == "home" else "srv"
            known = self.workers[name, number] = self.new_process(f"worker-{name}.{number}", host)
            known.start(lambda: self._serve(known, name))
        return known

    def folder(self, name):
        """Where the cursors of a receiver lie."""
        identity = self.receiver(name, None).identity
        return target_dir(os.path.realpath(self.spool_of(name)), identity)

    def spool_of(self, name):
        return self.spools[0] if name == "home" else self.server

    def receiver(self, name, process):
        if name == "jsonl":
            inner = JsonLinesReceiver(os.path.join(self.out, "jsonl", "events.jsonl"), {})
        elif name == "tb":
            from spoolagent.receivers.tensorboard import TensorBoardReceiver

            inner = TensorBoardReceiver(os.path.join(self.out, "tb"), {})
        else:
            tracker = self.trackers.setdefault(name, Tracker(refuses=name != "home"))
            tracker.may_be_late = lambda key, seq: (
                name in self.rewound
                or seq in self.stores[name]["dead"].get(key, ())
                or (key, seq) in self.given_up
            )
            inner = ModelReceiver(name, tracker)
        return Moody(self, name, inner, process)

    def _serve(self, process, name):
        spool = open_spool(self.spool_of(name))
        receiver = self.receiver(name, process)
        with open_store(spool, receiver) as store:
            self._observe(name, store)
            while True:
                try:
                    receiver.open(store)
                    break
                except (Unreachable, OSError):
                    process.wait()
            worker = Worker(
                spool,
                receiver,
                store,
                agent=AgentSettings(spool=spool.path),
                limits=ReceiverSettings(name=name, spec=name, max_events=self.config["batch"], **_SMALL),
                hints=Hints(),
                clock=CLOCK.monotonic,
                should_stop=lambda: process.stopping,
            )
            process.worker = worker
            worker.run()
            receiver.close()

    def _observe(self, name, store):
        """Looks at the database after each commit: cursors and what they leave behind."""
        commit = store.commit

        def observed(*args, **named):
            commit(*args, **named)
            self.stats["commits"] += 1
            self.look(name, store)

        store.commit = observed
        self.look(name, store)

    def look(self, name, store):
        """Checks cursor safety against what the tracker holds now."""
        run = store._db.execute
        dead, lost = {}, {}
        for site, r, writer, seq in run("SELECT site, run, writer, seq FROM dead"):
            dead.setdefault(StreamKey(site, r, writer), set()).add(seq)
        for site, r, writer, first, last in run("SELECT site, run, writer, first, last FROM lost"):
            lost.setdefault(StreamKey(site, r, writer), set()).update(range(first, last + 1))
        known = self.cursors[name]
        self.stores[name] = {"dead": dead, "lost": lost}
        tracker = self.trackers.get(name)
        for site, r, writer, next_seq in run("SELECT site, run, writer, next_seq FROM streams"):
            key = StreamKey(site, r, writer)
            before = known.get(key, 1)
            if next_seq < before:
                raise Violation(f"cursor safety: {name} {key} went from {before} back to {next_seq}")
            if tracker is not None and next_seq > before:
                held = tracker.events.get(key, {})
                for seq in range(before, next_seq):
                    where = (seq in held) + (seq in dead.get(key, ())) + (seq in lost.get(key, ()))
                    if where != 1 and not self.may_be_both(name, key, seq, held, lost):
                        raise Violation(
                            f"cursor safety: {name} {key} passed seq {seq}: applied {seq in held}, "
                            f"dead {seq in dead.get(key, ())}, lost {seq in lost.get(key, ())}"
                        )
            known[key] = next_seq

    def may_be_both(self, name, key, seq, held, lost):
        """True for an event that was applied without the ack being kept, and whose bytes were destroyed then."""
        record = self.records.get(key)
        if name in self.rewound and seq in held:
            return True
        fits = seq in held and seq in lost.get(key, ()) and record is not None
        return fits and record.may_be_lost(seq, at_home=name == "home")

    def check_shipped(self, path, key):
        """What counts as shipped is on the target's disk, and on the source's."""
        if self.damage:
            return
        source, target = stream_dir(path, key), stream_dir(self.server, key)
        for first in list_segments(target):
            name = segment_name(first)
            with open(os.path.join(target, name), "rb") as file:
                content = file.read()
            if self.files.durable(target, name) != content:
                raise Violation(
                    f"durability: {key} segment {first} counts as shipped, but the target may forget it"
                )
            pruned = key in self.records and first <= self.records[key].pruned
            if not self.copies and not pruned and not self.files.durable(source, name).startswith(content):
                raise Violation(f"durability: {key} segment {first} left a machine that may forget it")

    def check_handed_out(self, key, seqs):
        """At home, what a receiver gets is on the disk."""
        if self.damage:
            return
        folder = stream_dir(self.spools[0], key)
        durable = b"".join(self.files.durable(folder, segment_name(first)) for first in list_segments(folder))
        late = [seq for seq in seqs if b'{"seq":%d,' % seq not in durable]
        if late:
            raise Violation(f"durability: {key} seqs {late} left a machine that may forget them")

    def undertake(self, client):
        """One sweep of the agent that looks for dead writers."""
        process = self.new_process(f"undertaker-{client}", self.agent_host(client))
        known = self.undertakers.get(client)
        if known is None:
            known = self.undertakers[client] = Undertaker(open_spool(self.spools[client]), stale_after_s=60.0)
            known._watch = ends.DeathWatch(stale_after_s=60.0, clock=CLOCK.monotonic)
        process.start(known.sweep)

    def pass_of(self, process, hints=None, seconds=0.25):
        """One turn of a shipper or worker that waits. A paused one goes on first."""
        if process.state in ("waiting", "paused"):
            CLOCK.advance(seconds)
            process.resume(hints)

    def kill(self, process):
        for place in self.writers:
            if place[0] is process:
                self.bury_writer(place)
                return
        process.kill()

    # -- files -------------------------------------------------------------------------------------------

    def segments(self, spool):
        """(key, path) of all segment files, in order."""
        found = []
        for key in iter_streams(spool):
            folder = stream_dir(spool, key)
            found += [(key, os.path.join(folder, segment_name(first))) for first in list_segments(folder)]
        return found

    def check_ends(self):
        """Raises when a process ended with an error that no process may end with."""
        for name, error in self.kernel.ended:
            if not isinstance(error, GOOD_ENDS) or name.startswith("writer"):
                raise Violation(f"{name} ended with {type(error).__name__}: {error}") from error
        self.kernel.ended.clear()
