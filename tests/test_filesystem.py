"""File-system trouble: hints that never come, files that are replaced, moved and restored, and very many of them.

How much the measuring tests take comes from SPOOLAGENT_WAITING (10^6 events), SPOOLAGENT_STREAMS (10^4),
SPOOLAGENT_FINISHED (2,000 streams), SPOOLAGENT_SETTLE (0 s) and SPOOLAGENT_IDLE (12 s). `python tests/torture.py --only
figures` takes 10^7, 10^4, 10^5, 45 and 40.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import schedule_help as h
from mlflow_help import client_of, history, runs_in
from report_facts import figure
from spool_help import clean_env, make_writer, streams, until, write_metrics

from spoolagent.format import layout, stream
from spoolagent.format.ends import read_end
from spoolagent.format.lines import decode_line, encode_line
from spoolagent.format.spool import create_spool, open_spool
from spoolagent.serving.registry import load_receiver
from spoolagent.serving.store import open_store
from spoolagent.serving.worker import Worker
from spoolagent.settings import AgentSettings, ReceiverSettings
from spoolagent.undertaker import Undertaker
from spoolagent.watching import Watcher

WAITING = int(os.environ.get("SPOOLAGENT_WAITING", "1000000"))
STREAMS = int(os.environ.get("SPOOLAGENT_STREAMS", "10000"))
FINISHED = int(os.environ.get("SPOOLAGENT_FINISHED", "2000"))
SETTLE_S = float(os.environ.get("SPOOLAGENT_SETTLE", "0"))
"""With very many streams, the first rounds of a service take longer than it waits for its first event."""
IDLE_S = float(os.environ.get("SPOOLAGENT_IDLE", "12"))


def finished(writer):
    writer.append("run_end", {"status": "finished", "exit_code": 0})
    writer.close()


def finished_run(spool, count=40, run="run-1", **options):
    writer = make_writer(spool, run=run, **options)
    write_metrics(writer, count)
    folder = writer._dir
    finished(writer)
    return folder


# -- hints -------------------------------------------------------------------------------------------------------


class Served:
    """A worker in a thread, with real hints and the real clock, into a JSON-lines file."""

    def __init__(self, spool, out, *, poll=None, sweep_s=1.0):
        self.spool, self.out, self.stop = open_spool(str(spool)), str(out), threading.Event()
        self.watcher = Watcher(self.spool.path, poll)
        self.receiver = load_receiver(f"jsonl:{out}", {})
        self.agent = AgentSettings(spool=self.spool.path, sweep_interval_s=sweep_s)
        self.thread = threading.Thread(target=self._run)
        self.said = []

    def _run(self):
        with open_store(self.spool, self.receiver) as store:
            self.receiver.open(store)
            Worker(
                self.spool,
                self.receiver,
                store,
                agent=self.agent,
                limits=ReceiverSettings(name="it", spec="it:", flush_interval_s=0.0),
                hints=self.watcher,
                report=self.said.append,
                should_stop=self.stop.is_set,
            ).run()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.stop.set()
        self.watcher.interrupt()
        self.thread.join(60)
        self.watcher.close()
        assert not self.thread.is_alive()

    def holds_all(self):
        return h.in_jsonl(self.out)[0] == h.issued(self.spool.path)


def test_a_real_overflow_of_the_inotify_queue(tmp_path):
    """More directories come than the kernel's queue holds, while nobody reads it; then everything is looked at."""
    spool = tmp_path / "spool"
    create_spool(str(spool))
    finished_run(spool, run="first")
    with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as file:
        most = int(file.read())
    assert most <= 100_000, "this machine's queue is too long to be filled in a test"
    served = Served(spool, tmp_path / "events.jsonl", sweep_s=3600.0)  # no sweep comes to its help
    runs = spool / "sites" / "site-1" / "runs"
    for number in range(most + 100):
        os.mkdir(runs / f"empty-{number}")
    finished_run(spool, run="last")
    with served:
        until(served.holds_all, what="the run that came after the overflow")
        finished_run(spool, run="later")
        until(served.holds_all, what="hints as before")


@pytest.mark.parametrize("poll", [True, None])
def test_events_that_are_never_sent(tmp_path, monkeypatch, poll):
    """A network mount: by the operator's word, and by the type of the file system."""
    monkeypatch.setattr("spoolagent.watching.file_system", lambda path: "nfs4")
    spool = tmp_path / "spool"
    create_spool(str(spool))
    with Served(spool, tmp_path / "events.jsonl", poll=poll, sweep_s=0.1) as served:
        assert not served.watcher.has_hints
        writer = make_writer(spool, segment_bytes=2000)
        for first in range(0, 100, 20):
            write_metrics(writer, 20, first=first)
            until(served.holds_all, what=f"the events from {first} on")
        finished(writer)
        until(served.holds_all, what="the rest")


def test_no_watch_is_left_for_the_streams(tmp_path, monkeypatch):
    """fs.inotify.max_user_watches is reached: the sweep finds what no hint tells."""
    import errno

    spool = tmp_path / "spool"
    create_spool(str(spool))
    real = __import__("spoolagent.watching", fromlist=["_Inotify"])._Inotify.add

    def add(self, path, mask):
        if "/runs/" in path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, path, mask)

    monkeypatch.setattr("spoolagent.watching._Inotify.add", add)
    with Served(spool, tmp_path / "events.jsonl", sweep_s=0.1) as served:
        for number in range(3):
            finished_run(spool, run=f"run-{number}")
            until(served.holds_all, what="a run that nobody hinted")


# -- replaced, moved, restored -----------------------------------------------------------------------------------


def rsync(source, target, rng):
    """As rsync does it: each file is copied under a temporary name, then renamed over the old one. In any order.

    What is copied is what was there when rsync came by: a segment may end in the middle of a line.
    """
    files = [path for path in source.rglob("*") if path.is_file() and path.name != "LIVE"]
    files = [path for path in files if ".agent" not in path.parts and path.name != "spool.json"]
    rng.shuffle(files)
    for path in files:
        final = target / path.relative_to(source)
        data = path.read_bytes()
        if rng.random() < 0.5:
            data = data[: rng.randint(len(data) * 2 // 3, len(data))]
        if final.exists() and final.stat().st_size > len(data):
            continue  # rsync would not bring back less: the source only grows
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.parent / f".{final.name}.{rng.randbytes(3).hex()}"
        temporary.write_bytes(data)
        os.replace(temporary, final)
        yield


@pytest.mark.parametrize("seed", range(4))
def test_files_that_are_replaced_by_rename_while_they_are_tailed(tmp_path, seed):
    rng, client, server = random.Random(seed), tmp_path / "client", tmp_path / "server"
    create_spool(str(server))
    writers = [make_writer(client, run=f"run-{n}", segment_bytes=1500) for n in range(2)]
    for step in range(6):
        for writer in writers:
            write_metrics(writer, 15, first=15 * step)
        turns = iter(rsync(client, server, rng))
        while next(turns, "over") != "over":
            if rng.random() < 0.5:
                done = h.deliver(server, f"jsonl:{tmp_path}/events.jsonl", passes=2, drain=False)
                assert (done.dead, done.lost) == (0, 0)
    for writer in writers:
        finished(writer)
    for path in client.rglob("*.jsonl"):
        shutil.copy(path, server / path.relative_to(client))
    done = h.deliver(server, f"jsonl:{tmp_path}/events.jsonl")
    assert done.drained, done.blocked
    assert (done.dead, done.lost) == (0, 0)
    assert h.in_jsonl(tmp_path / "events.jsonl") == (h.issued(client), ["finished"] * 2)


def test_one_worker_tails_files_that_are_replaced(tmp_path):
    """The same, but the worker stays: its reader has seen other inodes, and shorter files."""
    rng, client, server = random.Random(11), tmp_path / "client", tmp_path / "server"
    create_spool(str(server))
    writer = make_writer(client, segment_bytes=1500)
    turns = []

    def on_wait(number):
        if number % 3 == 0 and number < 60:
            write_metrics(writer, 5, first=5 * number)
        if number == 60:
            finished(writer)
            turns.clear()
        if not turns:
            turns.extend([rsync(client, server, rng)])
        if next(turns[0], "over") == "over":
            turns.clear()

    done = h.deliver(server, f"jsonl:{tmp_path}/events.jsonl", on_wait=on_wait, drain=False, passes=400)
    assert (done.dead, done.lost) == (0, 0)
    assert h.in_jsonl(tmp_path / "events.jsonl") == (h.issued(client), ["finished"])


def test_a_spool_restored_from_an_old_backup_under_newer_cursors(tmp_path):
    """The training machine's disk came back from yesterday: what the tracker has stays, the next life goes on."""
    spool, out = tmp_path / "spool", tmp_path / "events.jsonl"
    writer = make_writer(spool, segment_bytes=3000)
    write_metrics(writer, 30)
    writer.flush()
    shutil.copytree(spool / "sites", tmp_path / "backup")
    write_metrics(writer, 60, first=30)
    writer.flush()
    writer._close_files()
    h.deliver(spool, f"jsonl:{out}")
    shutil.rmtree(spool / "sites")
    shutil.copytree(tmp_path / "backup", spool / "sites")
    Undertaker(open_spool(str(spool)), stale_after_s=0.0).sweep()
    second = make_writer(spool, attempt=2)
    write_metrics(second, 10, first=200)
    finished(second)
    undertaker = Undertaker(open_spool(str(spool)), stale_after_s=0.0)
    undertaker.sweep()
    done = h.deliver(spool, f"jsonl:{out}", passes=200)
    assert (done.dead, done.lost) == (0, 0)
    assert h.steps_in_jsonl(out) == Counter(dict.fromkeys([*range(90), *range(200, 210)], 1))
    assert h.in_jsonl(out)[1][-1:] == ["finished"], done.blocked
    assert done.drained, done.blocked


def test_a_killed_stream_whose_only_header_is_damaged_is_ended_where_it_was_born(tmp_path):
    """The header says where that is. So does LIVE, which is never shipped."""
    spool = tmp_path / "spool"
    writer = make_writer(spool)
    write_metrics(writer, 3)
    folder = writer._dir
    writer._close_files()
    Path(folder, "LIVE").write_text("its writer was killed")
    segment = Path(folder, layout.segment_name(1))
    segment.write_bytes(b"#" + segment.read_bytes()[1:])
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(spool, elsewhere, ignore=shutil.ignore_patterns("LIVE", "spool.json"))
    for place in (spool, elsewhere):
        undertaker = Undertaker(create_spool(str(place)), stale_after_s=0.0)
        undertaker.sweep()
        undertaker.sweep()
    assert read_end(folder, 1).last == 4
    assert not list(elsewhere.rglob("*.end"))


def test_a_clock_that_jumps_back(tmp_path, monkeypatch):
    """Wall times stay as recorded, the order is that of the calls, no segment is rotated for it."""
    spool, now = tmp_path / "spool", [1_700_000_000_000_000_000]
    monkeypatch.setattr(stream.time, "time_ns", lambda: now[0])
    writer = make_writer(spool)
    times = []
    for step in range(60):
        now[0] += 1_000_000_000
        if step == 20:
            now[0] -= 3_600_000_000_000
        if step == 40:
            now[0] += 86_400_000_000_000
        write_metrics(writer, 1, first=step)
        times.append(now[0])
        writer.tick()
    finished(writer)
    monkeypatch.undo()
    ((events, how),) = streams(spool).values()
    assert how == "closed"
    assert [event["time"] for event in events if event["type"] == "metrics"] == times
    out = tmp_path / "events.jsonl"
    h.deliver(spool, f"jsonl:{out}")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    shown = [(line["step"], line["time"]) for line in lines if line["type"] == "metrics"]
    assert shown == list(enumerate(times))
    h.deliver(spool, f"tensorboard:{tmp_path}/tb")
    from tb_help import accumulate, points

    place = tmp_path / "tb" / "site-1" / "run-1"
    assert [(wall, step) for wall, step, _ in points(accumulate(place), "loss")] == [
        (time_ns / 1e9, step) for step, time_ns in enumerate(times)
    ]
    h.deliver(spool, f"wandb:offline:{tmp_path}/wandb")
    assert h.steps_in_wandb(tmp_path / "wandb") == Counter(dict.fromkeys(range(60), 1))


def test_two_agents_end_dead_writers_at_once(tmp_path):
    """Eight undertakers over the same dead streams: one `.end` each, whole and true."""
    folders = []
    for number in range(30):
        writer = make_writer(tmp_path, run=f"run-{number}")
        write_metrics(writer, 5)
        writer.flush()
        folders.append(writer._dir)
        writer._close_files()
    spool, gate = open_spool(str(tmp_path)), threading.Barrier(8)
    failures = []

    def work():
        undertaker = Undertaker(spool, stale_after_s=60.0, report=failures.append)
        gate.wait()
        undertaker.sweep()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for folder in folders:
        assert read_end(folder, 1).last == 6
        assert not [name for name in os.listdir(folder) if name.startswith(".tmp")]
    assert {how for _, how in streams(tmp_path).values()} == {"dead"}


@pytest.mark.parametrize("how", ["mv", "cp"])
def test_a_spool_that_moves_between_restarts(tmp_path, mlflow_server, how):
    """To another path, or copied to another machine: its cursors come along, and nothing is shown twice."""
    old, new = tmp_path / "old", tmp_path / "somewhere" / "else"
    experiment = f"moved-{os.urandom(4).hex()}"
    targets = [
        (f"tensorboard:{tmp_path}/tb", {}),
        (f"mlflow:{mlflow_server.uri}", {"experiment": experiment}),
        (f"wandb:offline:{tmp_path}/wandb", {}),
        (f"jsonl:{tmp_path}/events.jsonl", {}),
    ]
    writer = make_writer(old, segment_bytes=2000, start={"name": "moves"})
    write_metrics(writer, 50)
    writer.flush()
    writer._close_files()
    for spec, options in targets:
        h.deliver(old, spec, options)
    new.parent.mkdir()
    if how == "mv":
        os.rename(old, new)
    else:
        shutil.copytree(old, new)
    Undertaker(open_spool(str(new)), stale_after_s=0.0).sweep()
    second = make_writer(new, attempt=2, start={"name": "moves"})
    write_metrics(second, 50, first=50)
    finished(second)
    for spec, options in targets:
        done = h.deliver(new, spec, options)
        assert (done.drained, done.dead, done.lost) == (True, 0, 0)
        assert done.delivered == 52
    once = Counter(dict.fromkeys(range(100), 1))
    assert h.steps_in_tensorboard(tmp_path / "tb") == once
    assert h.steps_in_wandb(tmp_path / "wandb") == once
    assert h.in_jsonl(tmp_path / "events.jsonl") == (h.issued(new), ["finished"])
    (run,) = runs_in(client_of(mlflow_server.uri), experiment)
    assert [step for _, step, _ in history(client_of(mlflow_server.uri), run.info.run_id, "loss")] == list(
        range(100)
    )
    assert not old.exists() or how == "cp"


@pytest.mark.parametrize("kind", ["jsonl", "tensorboard", "wandb"])
def test_a_target_that_is_unmounted_for_a_while(tmp_path, kind):
    """Nothing is made where it used to be; it goes on when it is back."""
    spool, out, away = tmp_path / "spool", tmp_path / "out", tmp_path / "away"
    spec = {
        "jsonl": f"jsonl:{out}/events.jsonl",
        "tensorboard": f"tensorboard:{out}",
        "wandb": f"wandb:offline:{out}",
    }[kind]
    steps = {
        "jsonl": lambda: h.steps_in_jsonl(out / "events.jsonl"),
        "tensorboard": lambda: h.steps_in_tensorboard(out),
        "wandb": lambda: h.steps_in_wandb(out),
    }[kind]
    writer = make_writer(spool)
    write_metrics(writer, 20)
    seen = []

    def on_wait(number):
        if number == 5:
            os.rename(out, away)
            write_metrics(writer, 20, first=20)
            finished(writer)
        elif number == 25:
            seen.append(out.exists())
            os.rename(away, out)

    done = h.deliver(spool, spec, on_wait=on_wait, drain=False, passes=120)
    assert seen == [False]
    assert (done.drained, done.dead) == (True, 0), done.said
    assert any("is gone: mount it" in line for line in done.said)
    assert steps() == Counter(dict.fromkeys(range(40), 1))


@pytest.mark.parametrize("what", ["a site", "a run", "a stream"])
def test_a_directory_that_cannot_be_read_hides_no_other(tmp_path, monkeypatch, what):
    """EIO, or another owner: it is said once, shown as blocked, and everything else goes on."""
    spool, out = tmp_path / "spool", tmp_path / "events.jsonl"
    for site in ("site-1", "site-2", "site-3"):
        finished(make_writer(spool, site=site))
    folder = {
        "a site": f"{spool}/sites/site-2/runs",
        "a run": f"{spool}/sites/site-2/runs/run-1",
        "a stream": next(layout.stream_dir(str(spool), k) for k in layout.iter_streams(str(spool), "site-2")),
    }[what]
    broken = [True]
    real_scandir, real_listdir = os.scandir, os.listdir

    def refuse(real):
        def call(path="."):
            if broken[0] and str(path) == folder:
                raise OSError(5, "Input/output error", str(path))
            return real(path)

        return call

    monkeypatch.setattr(os, "scandir", refuse(real_scandir))
    monkeypatch.setattr(os, "listdir", refuse(real_listdir))
    said = []
    undertaker = Undertaker(open_spool(str(spool)), stale_after_s=60.0, report=said.append)
    undertaker.sweep()
    undertaker.sweep()
    assert len(said) == 1
    assert folder in said[0]
    seen = []

    def on_wait(number):
        if number == 10:
            seen.append(sum(h.in_jsonl(out)[0].values()))
            broken[0] = False

    done = h.deliver(spool, f"jsonl:{out}", on_wait=on_wait)
    assert seen == [4], "the other two sites, a start and an end each"
    assert done.drained
    assert h.in_jsonl(out) == (h.issued(spool), ["finished"] * 3)


# -- how much it takes -------------------------------------------------------------------------------------------

MAKER = """
import os, sys
os.fsync = os.fdatasync = lambda fd: None  # only to be quick: what is measured comes later
sys.path.insert(0, sys.argv[3])
from spool_help import make_writer, write_metrics
from test_filesystem import many_streams
spool, what = sys.argv[1], sys.argv[2]
kind, _, count = what.partition("=")
if kind == "events":
    writer = make_writer(spool, durability="process")
    write_metrics(writer, int(count))
    writer.append("run_end", {"status": "finished", "exit_code": 0})
    writer.close()
else:
    many_streams(spool, int(count), half_open=kind == "streams")
"""


def many_streams(spool, count, *, half_open):
    """A hundred thousand writers would take very long: each looks at the names of all runs of its site.

    One of them writes a stream; the others are the same with another name in the header, and in the seal another hash.
    """
    create_spool(spool)
    with tempfile.TemporaryDirectory() as other:
        folder = finished_run(other, count=2)
        (name,) = (name for name in os.listdir(folder) if name.endswith(layout.SEGMENT_SUFFIX))
        with open(os.path.join(folder, name), "rb") as file:
            header, *events, seal = file.read().splitlines(keepends=True)
    for number in range(count):
        key = layout.StreamKey(f"site-{number % 20}", f"run-{number // 20}", f"w{number:014}")
        lines = [again(header, run=key.run, writer=key.writer), *events[:-1]]
        if number % 2 or not half_open:
            lines.append(events[-1])
            lines.append(again(seal, sha256=hashlib.sha256(b"".join(lines)).hexdigest()))
        os.makedirs(layout.stream_dir(spool, key), mode=layout.DIR_MODE)
        with open(os.path.join(layout.stream_dir(spool, key), name), "wb") as file:
            file.writelines(lines)


def again(line, **changes):
    """A line with some other values."""
    value = {**decode_line(line[:-1]), **changes}
    del value["crc"]
    return encode_line(value)


DRAIN = """
import os, sys
sys.path.insert(0, sys.argv[2])
import schedule_help as h
receiver, most = h.Counting(), [0]
inner = receiver.deliver
def deliver(batch):
    most[0] = max(most[0], len(os.listdir("/proc/self/fd")))
    return inner(batch)
receiver.deliver = deliver
done = h.deliver(sys.argv[1], receiver, max_events=5000, passes=100_000)
with open("/proc/self/status") as file:  # not getrusage: its peak begins with that of whoever forked us
    peak = next(line.split()[1] for line in file if line.startswith("VmHWM"))
print(receiver.events, done.drained, peak, most[0])
"""


def make(spool, what):
    command = [sys.executable, "-c", MAKER, str(spool), what, os.path.dirname(__file__)]
    subprocess.run(command, env=clean_env(), check=True, timeout=3000)


@pytest.mark.figures
def test_memory_and_open_files_do_not_grow_with_what_waits(in_memory, capsys):
    found = {}
    for count in (100_000, WAITING):
        make(in_memory / str(count), f"events={count}")
        began = time.monotonic()
        command = [sys.executable, "-c", DRAIN, str(in_memory / str(count)), os.path.dirname(__file__)]
        done = subprocess.run(
            command, env=clean_env(), capture_output=True, text=True, check=True, timeout=3000
        )
        took_s = time.monotonic() - began
        events, drained, rss_kib, files = done.stdout.split()[-4:]
        assert (int(events), drained) == (count + 2, "True")
        found[count] = (int(rss_kib) / 1024, int(files))
        with capsys.disabled():
            print(
                figure(
                    f"\n{count:,} waiting events: worker's peak RSS {found[count][0]:.0f} MiB, "
                    f"{files} open files, {took_s:.0f} s"
                )
            )
        shutil.rmtree(in_memory / str(count))
    (small, few), (large, many) = found[100_000], found[WAITING]
    assert large - small < 16, "MiB more for ten times as many events"
    assert many <= few + 1


def rss_mib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


def open_files(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_s(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Lines:
    """Counts the events in a JSON-lines file, each byte read once."""

    def __init__(self, path):
        self.path, self.at, self.events, self.last = path, 0, 0, b""

    def count(self):
        if self.path.exists():
            with open(self.path, "rb") as file:
                file.seek(self.at)
                new = file.read()
            self.at += new.rfind(b"\n") + 1
            self.events += new[: new.rfind(b"\n") + 1].count(b'"seq"')
            self.last = new or self.last
        return self.events


class Costs(NamedTuple):
    """What a service takes: worker and supervisor."""

    mib: tuple[float, float]
    files: tuple[int, int]
    idle: float
    """Of one core, both together."""


def costs_of(folder, name, spool, lines, expected, capsys):
    """Serves the spool until all of it and an event are delivered; nothing comes for a while; then two late ones."""
    with h.Service(folder, name, "serve", "--spool", spool, "--to", f"jsonl:{lines.path}") as serve:
        until(lambda: lines.count() == expected, timeout_s=3000, what="all events")
        late_event(new_stream(spool), lines, expected + 2)  # until then a worker may be starting
        pids = (serve.workers()[0], serve.process.pid)
        time.sleep(SETTLE_S)
        began, busy_s = time.monotonic(), sum(map(cpu_s, pids))
        until(lambda: time.monotonic() > began + IDLE_S, timeout_s=IDLE_S + 60, what="some idle time")
        idle = (sum(map(cpu_s, pids)) - busy_s) / (time.monotonic() - began)
        costs = Costs(tuple(map(rss_mib, pids)), tuple(map(open_files, pids)), idle)
        took = [late_event(new_stream(spool), lines, expected + 4)]
        still_open = next(open_streams(spool), None)
        if still_open is not None:
            took.append(late_event(still_open, lines, expected + 5))
        text = (
            f"\n{name}: worker {costs.mib[0]:.1f} MiB, {costs.files[0]} open files; supervisor "
            f"{costs.mib[1]:.1f} MiB, {costs.files[1]} open files; {idle:.1%} of a core while nothing comes; "
            f"an event is there after {took[0]:.2f} s (new stream)"
        )
        with capsys.disabled():
            print(figure(text + "".join(f", {s:.2f} s (old idle stream)" for s in took[1:])))
    return costs


def new_stream(spool):
    writer = make_writer(spool, run="new", durability="process")
    return lambda: write_metrics(writer, 1)


def open_streams(spool):
    """Ways to append an event to a stream that MAKER left open."""
    for key in layout.iter_streams(str(spool)):
        path = os.path.join(layout.stream_dir(str(spool), key), layout.segment_name(1))
        with open(path, "rb") as file:
            is_open = key.run != "new" and b'"closed"' not in file.read()
        if is_open:
            line = encode_line({"seq": 4, "time": 1, "type": "metrics", "metrics": {"loss": 0.5}, "step": 4})
            yield lambda path=path, line=line: open(path, "ab").write(line) and None


def late_event(write, lines, expected):
    """How long it takes until it is in the file, in s."""
    began = time.monotonic()
    write()
    until(lambda: lines.count() == expected, what="a late event")
    return time.monotonic() - began


def as_if_from_elsewhere(spool):
    uuid = "00000000-0000-4000-8000-000000000000"
    (spool / "spool.json").write_text(json.dumps({"format": 1, "spool": uuid}))


def delivered_elsewhere(in_memory, kind, count):
    """A server's spool of that many streams, and the file to which they are delivered."""
    spool, lines = in_memory / f"spool-{count}", Lines(in_memory / f"out-{count}" / "events.jsonl")
    make(spool, f"{kind}={count}")
    as_if_from_elsewhere(spool)
    return spool, lines


@pytest.mark.figures
def test_memory_and_open_files_do_not_grow_with_the_streams(in_memory, capsys):
    """A server's spool, half of its streams open; then two late events, which must not wait for the others."""
    found = {}
    for count in (10, STREAMS):
        spool, lines = delivered_elsewhere(in_memory, "streams", count)
        found[count] = costs_of(
            in_memory, f"{count:,} streams, half open", spool, lines, 3 * count + count // 2, capsys
        )
    assert_flat(found[10], found[STREAMS], worker_mib=8)


@pytest.mark.figures
def test_memory_and_open_files_do_not_grow_with_what_is_finished(in_memory, capsys):
    """A service that is started where very many streams were delivered before it."""
    found = {}
    for count in (10, FINISHED):
        spool, lines = delivered_elsewhere(in_memory, "finished", count)
        name = f"{count:,} finished streams"
        costs_of(in_memory, f"{name}, being delivered", spool, lines, 4 * count, capsys)
        found[count] = costs_of(in_memory, name, spool, lines, 4 * count + 4, capsys)
    assert_flat(found[10], found[FINISHED], worker_mib=8)


def assert_flat(small, large, *, worker_mib):
    """Both processes, and with the same files; what they take more is the database's cache, watches and marks."""
    assert large.mib[0] - small.mib[0] < worker_mib, "MiB more in the worker"
    assert large.mib[1] - small.mib[1] < 5, "MiB more in the supervisor"
    assert large.files == small.files
