"""Helpers of test_shipping: spools made by real writers, shippers and writers as processes, trees compared."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

from spoolagent.format import blobs, layout
from spoolagent.format.reader import StreamReader
from spoolagent.format.spool import create_spool
from spoolagent.format.stream import StreamOptions, StreamWriter
from spoolagent.settings import AgentSettings, ShipSettings
from spoolagent.shipping.shipper import ship

DEADLINE_S = float(os.environ.get("SPOOLAGENT_TEST_DEADLINE", "60"))


def settings(source, target, *, once=False, sweep_s=0.05, patience_s=0.2):
    agent = AgentSettings(spool=str(source), sweep_interval_s=sweep_s, patience_s=patience_s)
    return ShipSettings(agent=agent, target=str(target), once=once)


class Telling(list):
    """Collects notes; `kinds` are what was told."""

    def __call__(self, note):
        self.append(note)

    def texts(self, kind):
        return [note.text for note in self if note.kind == kind]


def ship_once(source, target, *, tell=None, patience_s=0.2):
    return ship(
        settings(source, target, once=True, patience_s=patience_s),
        stop=threading.Event(),
        report=tell if tell is not None else Telling(),
    )


class Following:
    """A shipper that follows, in a thread."""

    def __init__(self, source, target, **kw):
        self.told = Telling()
        self.report = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(settings(source, target, **kw),), daemon=True)

    def _run(self, given):
        self.report = ship(given, stop=self._stop, report=self.told)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._stop.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


def until(condition, what="", limit_s=DEADLINE_S):
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"never came true: {what or condition}")


def new_writer(spool, *, site="site-1", run="run-1", segment_bytes=16 << 20, durability="process"):
    options = StreamOptions(durability=durability, segment_bytes=segment_bytes)
    return StreamWriter(
        str(spool), site, run, lambda: {"api": "native", "host": "h", "pid": 1, "attempt": 1}, options=options
    )


def write_stream(spool, events=20, *, close=True, blob=None, **kw):
    """Writes a stream of `events` metrics events, and the image of `blob`; returns its key."""
    writer = new_writer(spool, **kw)
    for step in range(events):
        writer.append("metrics", {"metrics": {"loss": step / 3}, "step": step})
    if blob is not None:
        ref = blobs.put_bytes(writer.spool, writer.site, blob)
        writer.append("image", {"key": "im", "step": 1, "blob": ref, "encoding": "png"})
    key = layout.StreamKey(writer.site, writer.run, writer.writer)
    if close:
        writer.close()
    return key


def make_spool(path):
    return create_spool(str(path)).path


def shipped_files(spool):
    """Path -> bytes of all that a ship carries."""
    found = {}
    for folder, folders, names in os.walk(os.path.join(spool, "sites")):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in names:
            if name != layout.LIVE_FILE and not name.startswith("."):
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    found[os.path.relpath(path, spool)] = file.read()
    return found


def segment(spool, key, first=1):
    return os.path.join(layout.stream_dir(str(spool), key), layout.segment_name(first))


def read(path):
    with open(path, "rb") as file:
        return file.read()


def events_in(spool, key, *, patience_s=0.0):
    """Seqs that a reader at this spool emits, and the state in which it ends."""
    reader = StreamReader(
        layout.stream_dir(str(spool), key),
        at_home=False,
        patience_s=patience_s,
        patience_elsewhere_s=patience_s,
    )
    seqs = []
    while True:
        chunk = reader.read()
        seqs += [event.seq for event in chunk.events]
        if chunk.state != "more" and chunk.is_empty:
            return seqs, chunk.state


SHIPPER = """
import sys, threading, signal
from spoolagent.settings import AgentSettings, ShipSettings
from spoolagent.shipping.shipper import ship
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *a: stop.set())
print("up", flush=True)
agent = AgentSettings(spool=sys.argv[1], sweep_interval_s=0.05, patience_s=0.2)
report = ship(ShipSettings(agent=agent, target=sys.argv[2], once=sys.argv[3] == "once"), stop=stop,
              report=lambda note: print(note.kind, flush=True))
print("report", report.shipped_lines, report.errors, flush=True)
"""

WRITER = """
import sys, time
from spoolagent.format import blobs
from spoolagent.format.stream import StreamOptions, StreamWriter
spool, events, segment_bytes, pause = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
w = StreamWriter(spool, "site-1", "run-1", lambda: {"api": "native", "host": "h", "pid": 1, "attempt": 1},
                 options=StreamOptions(segment_bytes=segment_bytes))
w.open()
print(w.writer, flush=True)
for step in range(events):
    w.append("metrics", {"metrics": {"loss": step / 3}, "step": step})
    if step % 100 == 50:
        ref = blobs.put_bytes(w.spool, w.site, b"blob %d" % step * 1000)
        w.append("image", {"key": "im", "step": step, "blob": ref, "encoding": "png"})
    if pause:
        time.sleep(pause)
print("written", flush=True)
if sys.argv[5] == "close":
    w.close()
else:
    w.flush()
    time.sleep(600)
"""


def start(script, *args):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)], stdout=subprocess.PIPE, text=True
    )


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait(DEADLINE_S)
    process.stdout.close()
