"""TensorBoard: what torch's SummaryWriter would have written, exactly once, read back by TensorBoard's own readers."""

import base64
import errno
import io
import json
import os
import struct
import subprocess
import sys
import time
import urllib.request
import wave
import zlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_facts import counted
from tb_help import (
    Killed,
    accumulate,
    clone,
    cuts,
    event_files,
    f32,
    killed_at,
    plant,
    points,
    put_blob,
    records,
    tree,
    without_fsync,
)

from spoolagent.contract import RunEnd
from spoolagent.errors import Unreachable, UsageError
from spoolagent.receivers import tb_events
from spoolagent.receivers.pixels import encode_png, image_size
from spoolagent.receivers.tb_place import component, sub_path
from spoolagent.receivers.tensorboard import TensorBoardReceiver
from spoolagent.testing import MemoryState, make_batch, make_stream

START = ("run_start", {"api": "native", "host": "node-1", "attempt": 1})
END = ("run_end", {"status": "finished", "exit_code": 0})


class Bench:
    """A receiver, its state, and batches of streams in their order."""

    def __init__(self, root, state=None, **options):
        self.root = str(root)
        self.state = state or MemoryState()
        self.receiver = TensorBoardReceiver(self.root, options)
        self.receiver.open(self.state)
        self.blobs = self.root + "-blobs"
        self.seqs = {}

    def send(self, stream, *events, commit=True):
        first = self.seqs.get(stream.key, 1)
        outcome = self.receiver.deliver(make_batch(stream, *events, first_seq=first, blobs=self.blobs))
        if commit:
            self.state.commit()
            self.seqs[stream.key] = first + len(events)
        return outcome

    def status(self, status, run="run-1", time_ns=1_700_000_999_000_000_000):
        self.receiver.set_status(
            RunEnd(site="site-1", run=run, status=status, time_ns=time_ns, exit_code=None)
        )
        self.state.commit()

    def again(self):
        """A new process: what is committed, and the same target."""
        other = Bench(self.root, clone(self.state))
        other.seqs = dict(self.seqs)
        return other

    def only_file(self, folder="site-1/run-1"):
        (path,) = event_files(os.path.join(self.root, folder))
        return path


def scalar(value, step=None, name="loss", **more):
    return "metrics", {"metrics": {name: value}, **({} if step is None else {"step": step}), **more}


def texts(path):
    """tag -> the texts in one event file."""
    found = {}
    for event in records(path):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "text":
                found.setdefault(value.tag, []).append(value.tensor.string_val[0].decode())
    return found


# Against torch's SummaryWriter


class Torch:
    """torch's SummaryWriter under a clock that the test sets."""

    def __init__(self, root, monkeypatch):
        from torch.utils.tensorboard import SummaryWriter

        self.now = 1_700_000_000.25
        monkeypatch.setattr("time.time", lambda: self.now)
        self.root = str(root)
        self.writer = SummaryWriter(self.root)

    def read(self):
        """Directory -> the events of its files, without each file's own first one."""
        self.writer.close()
        return events_by_dir(self.root)


def events_by_dir(root):
    found = {}
    for folder, _, names in os.walk(root):
        for name in sorted(n for n in names if "tfevents" in n):
            kept = [e for e in records(os.path.join(folder, name)) if not e.HasField("source_metadata")]
            found.setdefault(os.path.relpath(folder, root), []).extend(kept)
    return found


@pytest.fixture
def torch_writer(tmp_path, monkeypatch):
    return Torch(tmp_path / "torch", monkeypatch)


def at(torch_writer):
    return {"at": int(torch_writer.now * 8) * 125_000_000}  # exact: the clock moves in eighths of a second


def compare(bench, torch_writer):
    """The messages are equal, and but for PNG files also their serialized bytes."""
    ours, theirs = events_by_dir(os.path.join(bench.root, "site-1/run-1")), torch_writer.read()
    assert ours.keys() == theirs.keys()
    for folder, events in ours.items():
        assert [str(e) for e in events] == [str(e) for e in theirs[folder]]
    return ours


SCALARS = [
    (0.1, 0), (1, 1), (-2.5, 127), (1e-45, 128), (3.5e38, 16383), (-1e39, 16384), (2**53 + 1, 2**40), (0.0, None),
    (-0.0, -1), (7, 2**63 - 1), (5.0, 3), (float("nan"), 4), (float("inf"), 5), (float("-inf"), -(2**63)),
]  # fmt: skip


def test_scalars_are_torchs(tmp_path, torch_writer):
    from spoolagent.format.values import metric_value

    bench, stream = Bench(tmp_path / "ours"), make_stream()
    made = [START]
    for value, step in SCALARS:
        torch_writer.now += 0.125
        torch_writer.writer.add_scalar("train/лосс", value, step)
        made.append(scalar(metric_value(value), step, "train/лосс", **at(torch_writer)))
    bench.send(stream, *made)
    ours = compare(bench, torch_writer)["."]
    assert len(ours) == len(SCALARS)
    assert [e.SerializeToString() for e in ours] == [e.SerializeToString() for e in torch_writer.read()["."]]


def test_the_bytes_are_those_of_tensorboards_own_record_writer(tmp_path):
    """Not only the messages: each record, byte by byte."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    bench = Bench(tmp_path)
    bench.send(make_stream(), START, *(scalar(i / 3, i) for i in range(300)))
    with open(bench.only_file(), "rb") as file:
        data = file.read()
    written = io.BytesIO()
    for event in records(bench.only_file()):
        RecordWriter(written).write(event.SerializeToString())
    assert written.getvalue() == data


def test_add_scalars_makes_sub_runs_as_torch_does(tmp_path, torch_writer):
    bench = Bench(tmp_path / "ours")
    made = [START]
    for step in range(3):
        torch_writer.now += 1
        torch_writer.writer.add_scalars("loss/all", {"train": step * 0.5, "a/b": step}, step)
        for tag, value in (("train", step * 0.5), ("a/b", step)):
            context = {"context": {"subrun": f"loss_all_{tag}"}}
            made.append(scalar(value, step, "loss/all", **context, **at(torch_writer)))
    bench.send(make_stream(), *made)
    assert set(compare(bench, torch_writer)) == {".", "loss_all_train", "loss_all_a/b"}


def test_text_histogram_audio_and_rewind_are_torchs(tmp_path, torch_writer):
    numpy = pytest.importorskip("numpy")
    bench, writer = Bench(tmp_path / "ours"), torch_writer.writer
    values = numpy.random.default_rng(0).normal(size=500)
    writer.add_text("notes", "# a *b* ü", 7)
    writer.add_histogram("weights", values, 8)
    writer.add_histogram("zeros", numpy.zeros(4), 9)
    writer.add_audio("sound", numpy.sin(numpy.arange(200) / 9), 3, sample_rate=8000)
    theirs = torch_writer.read()["."]
    histograms = [e.summary.value[0].histo for e in theirs[1:3]]
    made = [("text", {"key": "notes", "text": "# a *b* ü", "step": 7})]
    for name, histo, step in zip(("weights", "zeros"), histograms, (8, 9), strict=True):
        fields = {n: getattr(histo, n) for n in ("min", "max", "num", "sum", "sum_squares")}
        fields |= {"limits": list(histo.bucket_limit), "counts": list(histo.bucket)}
        made.append(("histogram", {"key": name, "step": step, **fields}))
    blob = put_blob(bench.blobs, theirs[3].summary.value[0].audio.encoded_audio_string)
    made.append(("audio", {"key": "sound", "step": 3, "blob": blob, "encoding": "wav"}))
    bench.send(make_stream(), START, *((kind, {**fields, **at(torch_writer)}) for kind, fields in made))
    ours = compare(bench, torch_writer)["."]
    assert [e.SerializeToString() for e in ours] == [e.SerializeToString() for e in theirs]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_raw_images_have_torchs_pixels(tmp_path, torch_writer, channels):
    numpy = pytest.importorskip("numpy")
    from PIL import Image

    pixels = numpy.random.default_rng(channels).integers(0, 256, (5, 7, channels), dtype=numpy.uint8)
    torch_writer.writer.add_image("img", pixels, 4, dataformats="HWC")
    bench = Bench(tmp_path / "ours")
    blob = put_blob(bench.blobs, pixels.tobytes())
    shape = {"height": 5, "width": 7, "channels": channels}
    event = ("image", {"key": "img", "step": 4, "blob": blob, "encoding": "raw", **shape, **at(torch_writer)})
    bench.send(make_stream(), START, event)
    (ours,), (theirs,) = events_by_dir(bench.root)["site-1/run-1"], torch_writer.read()["."]
    decoded = []
    for one in (ours, theirs):
        image = one.summary.value[0].image
        decoded.append(numpy.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("RGBA")))
        image.encoded_image_string = b""
        image.colorspace = max(image.colorspace, 3)  # torch writes grey as three equal channels
    assert numpy.array_equal(*decoded)
    assert str(ours) == str(theirs)


def test_hparams_are_torchs(tmp_path, torch_writer):
    bench = Bench(tmp_path / "ours")
    hparams = {"lr": 0.1, "layers": 3, "opt": "adam", "amp": True, "none": None, "$odd": "x"}
    domain = {"opt": ["adam", "sgd"], "lr": [0.1, 0.2]}
    metrics = {"hparam/acc": 0.75, "hparam/loss": 10}
    torch_writer.writer.add_hparams(hparams, metrics, domain, run_name="trial/1", global_step=5)
    torch_writer.writer.add_hparams(hparams, metrics)  # a sub-run named by time
    stored = {("$" + k if k[0] == "$" else k): v for k, v in hparams.items()}
    fields = {"hparams": stored, "metrics": metrics, **at(torch_writer)}
    bench.send(
        make_stream(),
        START,
        ("hparams", {**fields, "domain": domain, "run_name": "trial/1", "step": 5}),
        ("hparams", fields),
    )
    ours, theirs = (events_by_dir(r) for r in (bench.root + "/site-1/run-1", torch_writer.root))
    torch_writer.writer.close()
    assert set(ours) == {".", "trial/1", "1700000000.25"}
    assert parsed_hparams(ours) == parsed_hparams(theirs)


def parsed_hparams(by_dir):
    """Maps serialize in any order: compare what they hold."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found = []
    for folder in sorted(by_dir):
        for event in by_dir[folder]:
            value = event.summary.value[0]
            content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
            found.append((folder, event.wall_time, event.step, value.tag, value.simple_value, str(content)))
            found.append(sorted((k, str(v)) for k, v in content.session_start_info.hparams.items()))
            assert value.HasField("simple_value") or value.metadata.plugin_data.plugin_name == "hparams"
    return found


def test_purge_step_is_torchs(tmp_path, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    monkeypatch.setattr("time.time", lambda: 1_700_000_000.5)
    SummaryWriter(str(tmp_path / "torch"), purge_step=5).close()
    bench = Bench(tmp_path / "ours")
    bench.send(make_stream(), START, ("rewind", {"step": 5, "at": 1_700_000_000_500_000_000}))
    theirs = events_by_dir(tmp_path / "torch")["."]
    ours = events_by_dir(bench.root)["site-1/run-1"]
    assert [e.SerializeToString() for e in ours] == [e.SerializeToString() for e in theirs]


# Exactly once


def full_batch(bench):
    """One event of each kind that can be shown, with a sub-run."""
    png = put_blob(bench.blobs, encode_png(bytes(12), 2, 2, 3))
    return [
        *(scalar(i * 0.5, i) for i in range(3)),
        scalar(9.0, 3, context={"subrun": "train"}),
        ("text", {"key": "t", "text": "hello", "step": 1}),
        ("image", {"key": "i", "blob": png, "encoding": "png", "step": 2}),
        ("hparams", {"hparams": {"lr": 1.0}, "metrics": {"m": 2.0}, "run_name": "hp"}),
        ("system", {"metrics": {"cpu": 1.0}}),
    ]


@pytest.mark.bytes
@pytest.mark.parametrize("begun", [True, False])
@without_fsync()
def test_a_crash_at_every_byte_gives_the_same_files(tmp_path, begun):
    bench, stream = Bench(tmp_path / "t"), make_stream()
    if begun:
        bench.send(stream, START, scalar(1.0, 0))
        batch = full_batch(bench)
    else:
        batch = [
            START,
            ("system", {"metrics": {}}),
            scalar(1.0, 0),
            scalar(9.0, 3, context={"subrun": "train"}),
        ]
    before = tree(bench.root)
    expected = bench.send(stream, *batch, commit=False)
    bench.state.rollback()
    after, count = tree(bench.root), 0
    order = [n for part in ("run-1/events", "train/", "hp/") for n in after if part in n]
    assert sorted(order) == sorted(after)
    for files in counted("TensorBoard, crash", cuts(before, after, order)):
        plant(bench.root, files)
        other = bench.again()
        assert other.send(stream, *batch) == expected
        assert tree(bench.root) == after
        count += 1
    assert expected.skipped == {"system": 1}
    assert count == sum(map(len, after.values())) - sum(map(len, before.values())) + 1
    # and the next batch goes on behind it
    other.send(stream, scalar(8.0, 9))
    assert points(accumulate(bench.root + "/site-1/run-1"), "loss")[-1][1:] == (9, 8.0)


def test_a_kill_at_every_fault_point_gives_the_same_files(tmp_path):
    """Also of the state text: set_status is repeated as deliver is."""

    def story(bench):
        bench.send(stream, START, scalar(1.0, 0), scalar(2.0, 1, context={"subrun": "a"}))
        bench.send(stream, scalar(3.0, 2))
        bench.status("killed")
        bench.send(second, START, scalar(4.0, 3))
        bench.status("finished")

    stream, second = make_stream(), make_stream(writer="w-2", attempt=2)
    reference = Bench(tmp_path / "reference")
    story(reference)
    expected, point = tree(reference.root), 0
    while True:
        bench, left = Bench(tmp_path / str(point)), [point]
        steps = [
            lambda b: b.send(stream, START, scalar(1.0, 0), scalar(2.0, 1, context={"subrun": "a"})),
            lambda b: b.send(stream, scalar(3.0, 2)),
            lambda b: b.status("killed"),
            lambda b: b.send(second, START, scalar(4.0, 3)),
            lambda b: b.status("finished"),
        ]
        died = False
        for step in steps:
            try:
                with killed_at(left[0], log := []):
                    step(bench)
                left[0] -= len(log)
            except Killed:
                died = True
                left[0] = 10**6
                bench = bench.again()
                step(bench)
        assert tree(bench.root) == expected, point
        if not died:
            break
        point += 1
    assert point > 15


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@without_fsync()
def test_random_stories_show_each_point_once_in_an_order_that_readers_follow(tmp_path_factory, data):
    """Streams, attempts, sub-runs, ends, states and crashes in any order.

    Each point is in exactly one place, and in each directory the files, in the order of their names, hold what was
    delivered in the order of its delivery: no file is written to after a later-named one.
    """
    bench, counter, issued = Bench(tmp_path_factory.mktemp("t")), 0, []
    streams, begun = [], set()
    for _ in range(data.draw(st.integers(2, 9))):
        if not streams or data.draw(st.integers(0, 2)) == 0:
            role = data.draw(st.sampled_from(["main", "main", "aux"]))
            stream = make_stream(writer=f"w-{len(streams)}", role=role, attempt=data.draw(st.integers(1, 3)))
            streams.append(
                replace(stream, created_ns=stream.created_ns + data.draw(st.integers(-9, 9)) * 10**9)
            )
        stream = data.draw(st.sampled_from(streams))
        batch = [] if stream.key in begun else [START]
        begun.add(stream.key)
        for _ in range(data.draw(st.integers(0, 4))):
            counter += 1
            issued.append(counter)
            context = data.draw(
                st.sampled_from([{}, {}, {"context": {"subrun": "a"}}, {"context": {"subrun": "w-0"}}])
            )
            batch.append(scalar(float(counter), counter, **context))
        batch += data.draw(st.sampled_from([[], [], [END]]))
        status = data.draw(st.sampled_from([None, None, "killed", "running", "finished"]))
        for step in (
            lambda b, s=stream, e=batch: b.send(s, *e),
            lambda b, s=status: s and b.status(s, time_ns=s_time(b)),
        ):
            before = tree(bench.root)
            for _ in range(data.draw(st.integers(0, 2))):
                try:
                    with killed_at(data.draw(st.integers(0, 9))):
                        step(bench)
                    break  # it got through
                except Killed:
                    bench = bench.again()
                    for name, content in tree(bench.root).items():
                        old = len(before.get(name, b""))
                        os.truncate(os.path.join(bench.root, name), data.draw(st.integers(old, len(content))))
            else:
                step(bench)
    shown = []
    for events in events_by_dir(bench.root).values():
        values = [v.simple_value for e in events for v in e.summary.value if v.HasField("simple_value")]
        assert values == sorted(values)
        shown += values
    assert sorted(shown) == issued


def s_time(bench):
    """When a state is observed: a while after everything so far."""
    return 1_700_000_000_000_000_000 + sum(bench.seqs.values()) * 10**8


def test_a_live_reader_never_notices_a_crash(tmp_path):
    """An EventAccumulator reloads in the middle of every torn state; afterwards it has each point once."""
    bench, stream = Bench(tmp_path / "t"), make_stream()
    bench.send(stream, START, scalar(0.0, 0))
    folder = os.path.join(bench.root, "site-1/run-1")
    readers, step = [accumulate(folder)], 1
    for cut in range(0, 110, 7):
        batch = [scalar(step / 2, step), scalar((step + 1) / 2, step + 1)]
        path = bench.only_file()
        size = os.path.getsize(path)
        bench.send(stream, *batch, commit=False)
        bench.state.rollback()
        os.truncate(path, size + min(cut, os.path.getsize(path) - size))
        for reader in readers:
            reader.Reload()
        bench = bench.again()
        bench.send(stream, *batch)
        for reader in readers:
            reader.Reload()
        readers.append(accumulate(folder))
        step += 2
    for reader in readers:
        got = [(p.step, p.value) for p in reader.Reload().Scalars("loss")]
        assert got == [(i, i / 2) for i in range(step)]


def test_damage_begins_a_later_file_and_no_point_is_doubled_or_dropped(tmp_path):
    bench, stream = Bench(tmp_path), make_stream()
    bench.send(stream, START, *(scalar(float(i), i) for i in range(4)))
    path = bench.only_file()
    size = os.path.getsize(path)
    bench.send(stream, *(scalar(float(i), i) for i in range(4, 8)), commit=False)
    bench.state.rollback()
    record = (os.path.getsize(path) - size) // 4
    with open(path, "r+b") as file:  # one record whole, then what is not ours
        file.seek(size + record)
        file.write(b"\xff" * record * 3)
    other = bench.again()
    other.send(stream, *(scalar(float(i), i) for i in range(4, 8)))
    other.send(stream, scalar(8.0, 8))
    first, second = event_files(os.path.dirname(path))
    assert first == path
    assert [p[1:] for p in points(accumulate(os.path.dirname(path)), "loss")] == [
        (i, float(i)) for i in range(9)
    ]
    assert [e.step for e in records(second)[1:]] == [5, 6, 7, 8]


def wait_for(probe, deadline_s=60):
    end = time.monotonic() + deadline_s
    while True:
        try:
            value = probe()
        except OSError:
            value = None
        if value or time.monotonic() > end:
            return value
        time.sleep(0.05)


@pytest.mark.parametrize("fast", ["true", "false"])
def test_a_running_tensorboard_shows_each_point_once_across_crashes(tmp_path, fast, unused_port):
    """Both loaders of a real TensorBoard poll the run while its receiver is cut in mid-record, again and again."""
    bench, stream = Bench(tmp_path / "logs"), make_stream()
    bench.send(stream, START, scalar(0.0, 0))
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", bench.root, "--port", str(unused_port)]
    command += ["--load_fast", fast, "--reload_interval", "1", "--host", "127.0.0.1"]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{unused_port}/data/plugin/scalars/scalars?run=site-1%2Frun-1&tag=loss"

    def shown(count):
        def probe():
            with urllib.request.urlopen(url, timeout=10) as answer:
                got = json.load(answer)
            return got if len(got) >= count else None

        return wait_for(probe)

    try:
        assert shown(1), (tmp_path / "log").read_text()
        path, step = bench.only_file(), 1
        for cut in (5, 20, 45):
            size = os.path.getsize(path)
            bench.send(stream, scalar(float(step), step), scalar(step + 1.0, step + 1), commit=False)
            bench.state.rollback()
            torn = step + cut // 40  # whole records before the cut
            os.truncate(path, size + cut)
            os.utime(path)
            assert shown(torn)
            bench = bench.again()
            bench.send(stream, scalar(float(step), step), scalar(step + 1.0, step + 1))
            step += 2
            assert shown(step)
        second = make_stream(writer="w-2", attempt=2)
        bench.send(second, START, scalar(99.0, step))
        assert [(s, v) for _, s, v in shown(step + 1)] == [
            *((i, float(i)) for i in range(step)),
            (step, 99.0),
        ]
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Directories


def test_ranks_and_aux_streams_have_directories_of_their_own(tmp_path):
    bench = Bench(tmp_path)
    for writer, role, rank in (
        ("w-0", "main", 0),
        ("w-1", "main", 1),
        ("w-2", "aux", None),
        ("w-3", "main", None),
    ):
        start = ("run_start", {**START[1], "rank": rank})
        bench.send(make_stream(writer=writer, role=role), start, scalar(1.0, 0))
    names = {os.path.dirname(n) for n in tree(bench.root)}
    assert names == {"site-1/run-1", *(f"site-1/run-1/w-{i}" for i in (1, 2, 3))}


def test_an_aux_stream_that_comes_first_leaves_the_run_to_the_main_one(tmp_path):
    bench = Bench(tmp_path)
    bench.send(make_stream(writer="aux", role="aux"), START)
    assert tree(bench.root) == {}  # nothing to show: no run appears
    bench.send(make_stream(), START)
    assert {os.path.dirname(n) for n in tree(bench.root)} == {"site-1/run-1"}


def test_a_later_attempt_gets_a_later_file_even_when_clocks_go_back(tmp_path):
    bench = Bench(tmp_path)
    sub = {"context": {"subrun": "val"}}
    for attempt, at_ns in ((1, 1_700_000_000), (2, 1_600_000_000), (3, 1_700_000_000), (4, 1_800_000_000)):
        stream = make_stream(writer=f"w-{attempt}", attempt=attempt)
        start = ("run_start", {**START[1], "at": at_ns * 10**9, "host": f"h{9 - attempt}"})
        bench.send(
            stream, start, scalar(float(attempt), attempt), scalar(1.0, attempt, **sub, at=at_ns * 10**9)
        )
    late = bench.send(make_stream(writer="w-1"), scalar(7.0, 7), scalar(7.0, 7, **sub))
    assert late.dead == {}
    run = os.path.join(bench.root, "site-1/run-1")
    for folder in (run, run + "/val"):
        assert [os.path.basename(p).split(".")[5] for p in event_files(folder)] == [
            "w-1",
            "w-2",
            "w-3",
            "w-4",
        ]
    assert [s for _, s, _ in points(accumulate(run), "loss")] == [1, 2, 3, 4]
    assert [s for _, s, _ in points(accumulate(run + "/w-1"), "loss")] == [7]
    assert [s for _, s, _ in points(accumulate(run + "/w-1/val"), "loss")] == [7]
    assert os.path.basename(event_files(run)[0]) == "events.out.tfevents.1700000000.h8.w-1.1"
    assert os.path.basename(event_files(run)[3]) == "events.out.tfevents.1800000000.h5.w-4.1"


@pytest.mark.parametrize("how", ["run_end", "status"])
@pytest.mark.parametrize("later", [True, False])
def test_a_stream_after_the_owners_end_follows_in_the_same_directory(tmp_path, how, later):
    """Reopened after close(); but one that was begun while the owner lived is a concurrent one."""
    bench, stream = Bench(tmp_path), make_stream()
    bench.send(stream, START, scalar(1.0, 1), *([END] if how == "run_end" else []))
    over_ns = stream.created_ns + 3_000_000
    if how == "status":
        bench.status("killed", time_ns=over_ns)
    second = make_stream(writer="w-2")
    second = replace(second, created_ns=over_ns + (1 if later else -1))
    bench.send(second, START, scalar(2.0, 2))
    folders = {os.path.dirname(n) for n in tree(bench.root)}
    assert folders == ({"site-1/run-1"} if later else {"site-1/run-1", "site-1/run-1/w-2"})


def test_an_owner_that_goes_on_after_its_end_is_not_over(tmp_path):
    bench, stream = Bench(tmp_path), make_stream()
    bench.send(stream, START, END)
    bench.send(stream, scalar(1.0, 1))
    second = make_stream(writer="w-2")
    second = replace(second, created_ns=2**62)
    bench.send(second, START, scalar(2.0, 2))
    assert {os.path.dirname(n) for n in tree(bench.root)} == {"site-1/run-1", "site-1/run-1/w-2"}


def test_templates(tmp_path):
    bench = Bench(tmp_path, directory="{experiment}/{group}/{name}")
    fields = {"experiment": "a/b", "name": "../x y", "project": "p"}
    bench.send(make_stream(), ("run_start", {**START[1], **fields}), scalar(1.0, 0))
    bench.send(make_stream(run="run-2", writer="w-2"), START, scalar(1.0, 0))
    assert {os.path.dirname(n) for n in tree(bench.root)} == {
        "a%2Fb/default/%2E.%2Fx y",
        "default/default/run-2",
    }


def test_two_runs_of_one_name_stay_apart(tmp_path):
    bench = Bench(tmp_path, directory="{name}")
    for site in ("site-1", "site-2", "site-3"):
        bench.send(make_stream(site=site), ("run_start", {**START[1], "name": "base"}), scalar(1.0, 0))
    bench = Bench(tmp_path, bench.state, directory="{name}")
    bench.send(make_stream(site="site-2"), scalar(2.0, 1))
    assert {os.path.dirname(n) for n in tree(bench.root)} == {"base", "base~2", "base~3"}
    assert len(points(accumulate(tmp_path / "base~2"), "loss")) == 2


def test_a_sub_run_and_a_writer_of_one_name_stay_apart(tmp_path):
    bench = Bench(tmp_path)
    bench.send(make_stream(), START, scalar(1.0, 0, context={"subrun": "rank"}))
    bench.send(make_stream(writer="rank", role="aux"), START, scalar(2.0, 0))
    assert {os.path.dirname(n) for n in tree(bench.root)} == {
        "site-1/run-1", "site-1/run-1/rank", "site-1/run-1/rank~2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("train", "train"),
        ("a/b", "a/b"),
        ("//a///b/", "a/b"),
        ("../../etc", "%2E./%2E./etc"),
        (".", "%2E"),
        (".hidden", "%2Ehidden"),
        ("50%", "50%"),
        ("50%41", "50%2541"),
        ("nul\0tab\t", "nul%00tab%09"),
        ("my tfevents", "my %74fevents"),
        ("a b|ü\\", "a b|ü\\"),
    ],
)
def test_sub_run_names_become_safe_paths(name, path):
    assert sub_path(name) == path


def test_escaping_is_reversible_and_long_names_fit():
    from urllib.parse import unquote

    for text in ("../x", "100%25", "%2e", "a\x7f/b", "tfevents%", ".", "%%41", "ü%ü"):
        assert unquote(component(text)) == text
    for text in ("x" * 300, "ü" * 200, "/" * 100, ".." * 150):
        assert len(component(text).encode()) <= 255
        assert component(text) != component(text + "y")
    for text in ("", "/", "a/" * 500, "/".join(["b" * 150] * 20)):
        assert 0 < len(sub_path(text).encode()) <= 1024
        assert ".." not in sub_path(text).split("/")


def test_hostile_names_stay_below_logdir_and_can_be_delivered(tmp_path):
    bench = Bench(tmp_path / "in" / "logs")
    names = ["../../../x", "/etc/x", "a\0b", "n" * 1000, "a/" * 900, "..", "\n"]
    outcome = bench.send(make_stream(), START, *(scalar(1.0, 0, context={"subrun": n}) for n in names))
    assert outcome.dead == {}
    assert os.listdir(tmp_path) == ["in"]
    assert os.listdir(tmp_path / "in") == ["logs"]
    assert len(tree(bench.root)) == 1 + len(names)


# What is not ours


def test_a_directory_with_foreign_event_files_is_never_written(tmp_path):
    """Another spool, or the user's own SummaryWriter, was there first."""
    first, stream = Bench(tmp_path / "t"), make_stream()
    first.send(stream, START, scalar(1.0, 0))
    before = tree(first.root)
    second = Bench(tmp_path / "t")
    outcome = second.send(stream, START, scalar(2.0, 1))
    assert set(outcome.dead) == {1, 2}
    assert "did not write" in outcome.dead[1]
    assert "site-1/run-1" in outcome.dead[1]
    second.status("killed")
    assert tree(first.root) == before
    # another run of that spool is fine, and so is a retry once the files are gone
    assert second.send(make_stream(run="run-2"), START, scalar(1.0, 0)).dead == {}
    os.rename(tmp_path / "t" / "site-1", tmp_path / "moved")
    second.seqs.clear()
    assert second.send(stream, START, scalar(2.0, 1)).dead == {}


def test_only_the_sub_run_that_is_not_ours_is_refused(tmp_path):
    foreign = tmp_path / "site-1/run-1/train"
    foreign.mkdir(parents=True)
    (foreign / "events.out.tfevents.1.x").write_bytes(b"")
    bench = Bench(tmp_path)
    outcome = bench.send(make_stream(), START, scalar(1.0, 0), scalar(2.0, 0, context={"subrun": "train"}))
    assert set(outcome.dead) == {3}
    assert os.listdir(foreign) == ["events.out.tfevents.1.x"]
    assert len(points(accumulate(tmp_path / "site-1/run-1"), "loss")) == 1


def test_a_run_directory_that_the_user_removed_goes_on_in_a_new_file(tmp_path):
    import shutil

    bench, stream = Bench(tmp_path), make_stream()
    bench.send(stream, START, scalar(1.0, 0))
    old = os.path.basename(bench.only_file())
    shutil.rmtree(tmp_path / "site-1")
    bench.send(stream, scalar(2.0, 1))
    assert os.path.basename(bench.only_file()) > old
    assert [p[1:] for p in points(accumulate(tmp_path / "site-1/run-1"), "loss")] == [(1, 2.0)]


def test_a_target_that_is_away_is_unreachable_and_not_made_anew(tmp_path):
    bench, stream = Bench(tmp_path / "t"), make_stream()
    bench.send(stream, START)
    os.rename(tmp_path / "t", tmp_path / "away")
    for call in (lambda: bench.send(stream, scalar(1.0, 0)), lambda: bench.status("killed")):
        with pytest.raises(Unreachable, match="is gone"):
            call()
    assert not os.path.exists(tmp_path / "t")


def test_a_full_disk_is_transient_and_passes(tmp_path):
    import errno

    from spoolagent.testing import set_fault

    bench, stream = Bench(tmp_path), make_stream()
    bench.send(stream, START)

    def full(operation, path):
        if operation == "write":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    set_fault(full)
    try:
        with pytest.raises(Unreachable, match="No space"):
            bench.send(stream, scalar(1.0, 0))
    finally:
        set_fault(None)
        bench.state.rollback()
    bench.send(stream, scalar(1.0, 0))
    assert len(points(accumulate(tmp_path / "site-1/run-1"), "loss")) == 1


def test_targets_and_options_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="choose another LOGDIR"):
            TensorBoardReceiver(str(target), {}).open(MemoryState())
    with pytest.raises(UsageError, match="did you mean 'directory'"):
        TensorBoardReceiver(str(tmp_path), {"dircetory": "x"})
    with pytest.raises(UsageError, match="did you mean 'site'"):
        TensorBoardReceiver(str(tmp_path), {"directory": "{sites}"})
    for bad in ("../{run}", "/{run}", "{run", "{run!r}", "{}", "", 3, "{run.x}"):
        with pytest.raises(UsageError, match="directory"):
            TensorBoardReceiver(str(tmp_path), {"directory": bad})
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert TensorBoardReceiver(f"{tmp_path}/link/./", {}).identity == f"tensorboard:{tmp_path}/real"


# State of a run


def test_killed_and_failed_are_shown_once_and_a_later_finish_too(tmp_path):
    bench, stream = Bench(tmp_path), make_stream()
    bench.status("killed")  # nothing was delivered yet
    bench.send(stream, START, scalar(1.0, 0))
    for status in ("running", "finished", "killed", "killed", "running", "failed", "finished", "finished"):
        bench.status(status)
    assert texts(bench.only_file()) == {"run/state/text_summary": ["killed", "failed", "finished"]}
    assert [e.wall_time for e in records(bench.only_file())[-3:]] == [1_700_000_999.0] * 3


def test_finished_and_running_leave_no_trace(tmp_path):
    bench = Bench(tmp_path)
    bench.send(make_stream(), START, scalar(1.0, 0), END)
    before = tree(tmp_path)
    bench.status("running")
    bench.status("finished")
    assert tree(tmp_path) == before


# Other payloads


def test_what_cannot_be_shown_is_counted_by_type(tmp_path):
    bench = Bench(tmp_path)
    blob = put_blob(bench.blobs, b"mp4")
    outcome = bench.send(
        make_stream(),
        START,
        ("param", {"params": {"a": 1}}),
        ("param", {"params": {"b": 1}}),
        ("tag", {"tags": {"a": "b"}}),
        ("table", {"key": "t", "columns": ["a"], "data": [[1]]}),
        ("video", {"key": "v", "blob": blob, "encoding": "mp4"}),
        ("custom", {"name": "x", "data": 1}),
        ("gap", {"dropped": 1, "from": 1, "to": 2, "reason": "full"}),
        END,
    )
    assert outcome.skipped == {"param": 2, "tag": 1, "table": 1, "video": 1, "custom": 1}
    assert outcome.dead == {}


def test_one_bad_event_is_a_dead_letter_and_the_rest_goes_on(tmp_path):
    bench = Bench(tmp_path)
    missing = {"sha256": "0" * 64, "size": 3}
    damaged = put_blob(bench.blobs, b"abc")
    with open(os.path.join(bench.blobs, damaged["sha256"][:2], damaged["sha256"]), "wb") as file:
        file.write(b"abX")
    image = {"key": "i", "encoding": "raw", "height": 1, "width": 1, "channels": 3}
    outcome = bench.send(
        make_stream(),
        START,
        scalar(1.0, 0),
        ("image", {**image, "blob": missing}),
        ("image", {**image, "blob": damaged}),
        ("tb_summary", {"key": "x", "base64": base64.b64encode(b"\xff\xff").decode()}),
        ("tb_summary", {"key": "x", "base64": "%"}),
        ("audio", {"key": "a", "encoding": "wav", "blob": put_blob(bench.blobs, b"RIFF")}),
        ("image", {**image, "height": 0, "blob": put_blob(bench.blobs, b"")}),
        ("hparams", {"hparams": {"a": {"$float": 1, "$x": 2}}, "metrics": {}}),
        ("hparams", {"hparams": {"a": 1}, "metrics": {}, "domain": ["a"]}),
        ("text", {"key": "t", "text": "x", "context": ["subrun"]}),
        ("hparams", {"hparams": {"a": 2**2000}, "metrics": {}}),
        scalar(2.0, 1),
    )
    assert set(outcome.dead) == set(range(3, 13))
    assert "is missing" in outcome.dead[3]
    assert "is damaged" in outcome.dead[4]
    assert [p[1:] for p in points(accumulate(tmp_path / "site-1/run-1"), "loss")] == [(0, 1.0), (1, 2.0)]


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE])
def test_a_blob_that_cannot_be_read(tmp_path, monkeypatch, number):
    """A bad sector is the event's trouble; a process without descriptors is nobody's, and passes."""
    bench = Bench(tmp_path)

    def refuse(path):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(tb_events, "open_plain", refuse)
    image = {"key": "i", "encoding": "raw", "height": 1, "width": 1, "channels": 3}
    events = START, ("image", {**image, "blob": put_blob(bench.blobs, b"abc")}), scalar(2.0, 1)
    if number == errno.EMFILE:
        with pytest.raises(OSError, match="Too many open files"):
            bench.send(make_stream(), *events)
        return
    outcome = bench.send(make_stream(), *events)
    assert list(outcome.dead) == [2] and "mend it, then retry the dead letter" in outcome.dead[2]
    assert [p[1:] for p in points(accumulate(tmp_path / "site-1/run-1"), "loss")] == [(1, 2.0)]


def test_a_tb_summary_is_taken_over_as_it_is(tmp_path):
    from tensorboard.compat.proto.summary_pb2 import Summary

    summary = Summary(
        value=[Summary.Value(tag="x", simple_value=2.5), Summary.Value(tag="y", simple_value=3.5)]
    )
    data = summary.SerializeToString()
    bench = Bench(tmp_path)
    bench.send(
        make_stream(),
        START,
        ("tb_summary", {"key": "x", "base64": base64.b64encode(data).decode(), "step": 4}),
        ("tb_summary", {"key": "x", "blob": put_blob(bench.blobs, data), "step": 5}),
    )
    assert [(e.step, e.summary) for e in records(bench.only_file())[1:]] == [(4, summary), (5, summary)]


def test_media_without_sizes_and_lists(tmp_path):
    from PIL import Image

    sizes = {}
    for kind in ("png", "gif", "bmp", "jpeg"):
        file = io.BytesIO()
        Image.new("RGB", (6, 4)).save(file, kind.upper())
        sizes[kind] = file.getvalue()
        assert image_size(file.getvalue()) == (4, 6)
        assert image_size(file.getvalue()[:9]) is None
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(2), file.setsampwidth(2), file.setframerate(8000), file.writeframes(bytes(400))
    bench = Bench(tmp_path)
    blob = {kind: put_blob(bench.blobs, data) for kind, data in sizes.items()}
    bench.send(
        make_stream(),
        START,
        *(("image", {"key": "i", "blob": b, "encoding": k, "index": n, "count": 4}) for n, (k, b) in enumerate(blob.items())),
        ("video", {"key": "v", "blob": blob["gif"], "encoding": "gif"}),
        ("text", {"key": "t", "blob": put_blob(bench.blobs, b"long"), "path": "a.txt"}),
        ("audio", {"key": "a", "blob": put_blob(bench.blobs, sound.getvalue()), "encoding": "wav"}),
    )  # fmt: skip
    values = [e.summary.value[0] for e in records(bench.only_file())[1:]]
    images = [(v.tag, v.image.height, v.image.width) for v in values if v.HasField("image")]
    assert images == [*((f"i/{n}", 4, 6) for n in range(4)), ("v", 4, 6)]
    assert texts(bench.only_file()) == {"t/text_summary": ["long"]}
    audio = values[-1].audio
    assert (audio.sample_rate, audio.num_channels, audio.length_frames) == (8000.0, 2, 100)


def test_pngs_decode_to_the_same_pixels():
    numpy = pytest.importorskip("numpy")
    from PIL import Image

    for channels in (1, 2, 3, 4):
        pixels = numpy.random.default_rng(channels).integers(0, 256, (3, 5, channels), dtype=numpy.uint8)
        data = encode_png(pixels.tobytes(), 3, 5, channels)
        assert data == encode_png(pixels.tobytes(), 3, 5, channels)
        assert image_size(data) == (3, 5)
        assert numpy.array_equal(numpy.asarray(Image.open(io.BytesIO(data))).reshape(3, 5, channels), pixels)
    for bad in ((b"", 0, 0, 3), (b"abc", 1, 1, 4), (bytes(5), 1, 1, 5)):
        with pytest.raises(ValueError, match="pixels"):
            encode_png(*bad)
    assert zlib.crc32(b"") == 0
    assert struct.calcsize(">IIBBBBB") == 13


def test_many_metrics_in_one_event_and_float32(tmp_path):
    bench = Bench(tmp_path)
    metrics = {f"m{i}": i / 7 for i in range(50)}
    bench.send(
        make_stream(), START, ("metrics", {"metrics": metrics, "step": 3}), ("metrics", {"metrics": {}})
    )
    reader = accumulate(tmp_path / "site-1/run-1")
    wall = (1_700_000_000_000_000_000 + 2_000_000) / 10**9
    assert {t: points(reader, t) for t in metrics} == {t: [(wall, 3, f32(v))] for t, v in metrics.items()}


def test_names_of_one_sub_run_share_its_directory(tmp_path):
    bench = Bench(tmp_path)
    names = ["a/b", "/a/b", "a//b", "a/b/"]
    bench.send(make_stream(), START, *(scalar(1.0, i, context={"subrun": n}) for i, n in enumerate(names)))
    assert {os.path.dirname(n) for n in tree(tmp_path)} == {"site-1/run-1", "site-1/run-1/a/b"}
    assert [p[1] for p in points(accumulate(tmp_path / "site-1/run-1/a/b"), "loss")] == [0, 1, 2, 3]


def test_a_histogram_with_a_left_edge_has_an_empty_bin_before_it(tmp_path):
    bench = Bench(tmp_path)
    base = {"min": 0.5, "max": 2, "num": 3, "sum": 4, "sum_squares": 6}
    shapes = [({"left": 0.0}, [1, 2], [1, 2]), ({"left": 0.0}, [0.0, 1], [0, 2]), ({}, [1, 2], [1, 2])]
    bench.send(
        make_stream(),
        START,
        *(("histogram", {"key": "h", **base, **more, "limits": at, "counts": n}) for more, at, n in shapes),
    )
    histos = [e.summary.value[0].histo for e in records(bench.only_file())[1:]]
    assert [(list(h.bucket_limit), list(h.bucket)) for h in histos] == [
        ([0.0, 1.0, 2.0], [0.0, 1.0, 2.0]), ([0.0, 1.0], [0.0, 2.0]), ([1.0, 2.0], [1.0, 2.0]),
    ]  # fmt: skip


def test_no_file_stays_open(tmp_path):
    bench = Bench(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for i in range(40):
        bench.send(make_stream(run=f"run-{i}"), START, scalar(1.0, 0, context={"subrun": "a"}))
    assert len(os.listdir("/proc/self/fd")) <= before
    assert len(tree(tmp_path)) == 80
