"""spoolagent.writers.tensorboard against torch.utils.tensorboard: the same calls, the same points."""

import fractions
import inspect
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch.utils import tensorboard as real
from torch.utils.tensorboard import summary as real_summary
from writer_help import Clock, fields, full_disk, only, read_spool, replay, shown

from spoolagent.writers import tb_plugins, tb_runs, tb_values
from spoolagent.writers import tensorboard as ours


@pytest.fixture
def spool(tmp_path, monkeypatch):
    """An empty spool, this process's settings for it, and a working directory."""
    for name in list(os.environ):
        if name.startswith("SPOOLAGENT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SPOOLAGENT_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("SPOOLAGENT_SITE", "site-1")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "spool"


def compare(script, spool, tmp_path, monkeypatch):
    """Runs `script(module, log_dir, clock)` with torch's module and with ours; returns what both show."""
    clock = Clock(monkeypatch)
    expected, log_dir = tmp_path / "real", tmp_path / "logs"
    script(real, str(expected), clock)
    clock.reset()
    script(ours, str(log_dir), clock)
    assert not [n for n in log_dir.rglob("*") if n.is_file()]  # no event file beside the spool
    got, want = shown(replay(spool, tmp_path / "replayed")), shown(expected)
    assert sorted(got) == sorted(want)
    for key, points in want.items():
        assert got[key] == points, key
    return got


# -- the surface -------------------------------------------------------------------------------------------


def _parameters(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def _methods():
    made = inspect.getmembers(real.SummaryWriter, inspect.isfunction)
    public = sorted(n for n, _ in made if not n.startswith("_"))
    return [*public, "__init__", "__enter__", "__exit__", "_get_file_writer"]


@pytest.mark.parametrize("name", _methods())
def test_signatures_are_torchs(name):
    assert _parameters(getattr(ours.SummaryWriter, name)) == _parameters(getattr(real.SummaryWriter, name))


def test_what_torch_builds_needs_torch_and_says_so(spool, monkeypatch):
    """Without tensorboard torch's own SummaryWriter cannot even be imported."""
    built = [n for n in _methods() if hasattr(tb_plugins.Plugins, n) and not n.startswith("_")]
    assert len(built) == 13
    writer = ours.SummaryWriter("logs")
    for name in ("", ".summary", "._pytorch_graph", "._onnx_graph", "._embedding", "._convert_np"):
        monkeypatch.setitem(sys.modules, f"torch.utils.tensorboard{name}", None)
    for name in built:
        method = getattr(writer, name)
        arguments = [p for p in inspect.signature(method).parameters.values() if p.default is p.empty]
        with pytest.raises(NotImplementedError, match=r"needs torch and tensorboard"):
            method(*["abc"] * len(arguments))
    writer.close()
    assert only(spool) == []


def test_plugins_and_media_that_torch_builds(spool, tmp_path, monkeypatch):
    labels, scores = np.array([0, 1, 1, 0, 1]), np.array([0.1, 0.7, 0.9, 0.4, 0.6])

    def script(module, log_dir, clock):
        with module.SummaryWriter(log_dir) as writer:
            for step in (0, 1, 5):
                clock.tick()
                writer.add_pr_curve("pr/a", labels, torch.tensor(scores), step, num_thresholds=10)
                writer.add_mesh("mesh", torch.rand(1, 5, 3, generator=_seed()), global_step=step)
            writer.add_pr_curve_raw("raw", [3, 2], [1, 0], [1, 2], [0, 1], [0.7, 1.0], [1.0, 0.6], 3, 2)
            writer.add_audio("beep", torch.sin(torch.arange(2000.0) / 20), 3, sample_rate=8000, walltime=12.5)
            writer.add_tensor("tensor", torch.arange(6.0).reshape(2, 3), 4)
            writer.add_image_with_boxes(
                "boxes", torch.zeros(3, 20, 20), torch.tensor([[2.0, 2, 10, 10]]), 2, labels="cat"
            )
            writer.add_video("film", torch.zeros(1, 4, 3, 8, 8), 3)
            writer.add_custom_scalars({"loss": {"both": ["Multiline", ["loss/train", "loss/test"]]}})
        clock.tick()
        with module.SummaryWriter(f"{log_dir}/charts") as writer:
            writer.add_custom_scalars_multilinechart(["a", "b"], "cat", "title")
        clock.tick()
        with module.SummaryWriter(f"{log_dir}/margin") as writer:
            writer.add_custom_scalars_marginchart(["a", "b", "c"])
            with pytest.raises(AssertionError):
                writer.add_custom_scalars_marginchart(["a", "b"])

    monkeypatch.setenv("SPOOLAGENT_RUN", "run-1")
    got = compare(script, spool, tmp_path, monkeypatch)
    kinds = {kind for _, kind, _ in got}
    assert {"pr_curves", "mesh", "audio", "tensor", "image", "custom_scalars"} <= kinds


def _seed():
    return torch.Generator().manual_seed(3)


def test_scalars_in_tensor_form(spool, tmp_path, monkeypatch):
    def script(module, log_dir, clock):
        with module.SummaryWriter(log_dir) as writer:
            for step in range(3):
                clock.tick()
                writer.add_scalar("float", 1 / 3, step, new_style=True)
                writer.add_scalar("double", 1 / 3, step, new_style=True, double_precision=True)
                writer.add_scalar("zero", 0.0, step, new_style=True)
                writer.add_scalar("nan", float("nan"), step, new_style=True, double_precision=True)
                writer.add_scalar("plain", 1 / 3, step, double_precision=True)

    compare(script, spool, tmp_path, monkeypatch)


def test_graphs(spool, tmp_path, monkeypatch):
    """Small, and beyond what fits in a line."""

    def script(module, log_dir, clock):
        small = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        large = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(300)))
        for name, model in (("", small), ("/large", large)):
            clock.tick()
            with module.SummaryWriter(f"{log_dir}{name}") as writer:
                writer.add_graph(model, torch.zeros(2, 4))

    monkeypatch.setenv("SPOOLAGENT_RUN", "run-1")
    monkeypatch.setattr(tb_values, "LARGE", 20_000)
    got = compare(script, spool, tmp_path, monkeypatch)
    assert [kind for _, kind, _ in got].count("graph") == 2
    assert [kind for _, kind, _ in got].count("run metadata") == 2
    assert {"base64", "blob"} <= {name for data in only(spool, "tb_summary") for name in data}


def test_embeddings_are_files_beside_the_event_file(spool, tmp_path, monkeypatch):
    """Those of the projector, byte for byte; also of a second SummaryWriter, and after close."""
    points = torch.arange(12.0).reshape(4, 3)

    def script(module, log_dir, clock):
        images = torch.rand(4, 3, 8, 8, generator=_seed())
        with module.SummaryWriter(log_dir) as writer:
            writer.add_embedding(points)
            writer.add_embedding(points, ["a", "b", "c", "d"], images, 10, "a/b%\\")
            header = ["name", "number"]
            writer.add_embedding(points, [["a", 1], ["b", 2], ["c", 3], ["d", 4]], None, 11, "x", header)
            with pytest.raises(AssertionError):
                writer.add_embedding(points, ["a", "b"])
        clock.tick()
        with module.SummaryWriter(f"{log_dir}/second") as writer:
            writer.close()
            clock.tick()
            writer.add_embedding(points.numpy(), tag="second")

    monkeypatch.setenv("SPOOLAGENT_RUN", "run-1")
    got = compare(script, spool, tmp_path, monkeypatch)
    files = {(sub, name) for sub, kind, name in got if kind == "file"}
    assert {(".", "00010/a%2fb%25%5c/sprite.png"), ("second", "projector_config.pbtxt")} <= files


def test_a_full_temporary_directory_costs_the_embedding_and_not_the_training(spool, monkeypatch):
    with ours.SummaryWriter("logs") as writer:
        with monkeypatch.context() as patch:
            patch.setattr("tempfile.TemporaryDirectory", full_disk)
            writer.add_embedding(torch.ones(4, 3))
        writer.add_scalar("a", 1.0)
    assert [e["reason"] for e in only(spool, "gap")] == ["embedding: No space left on device"]
    assert [e["metrics"] for e in only(spool, "metrics")] == [{"a": 1.0}]


def test_attributes(spool):
    writer = ours.SummaryWriter("logs", max_queue=3, flush_secs=4, filename_suffix=".x")
    theirs = real.SummaryWriter("theirs", max_queue=3, flush_secs=4, filename_suffix=".x")
    for name in ("max_queue", "flush_secs", "filename_suffix", "purge_step", "default_bins"):
        assert getattr(writer, name) == getattr(theirs, name)
    assert writer.file_writer.get_logdir() == "logs"
    assert list(writer.all_writers) == ["logs"]
    writer.close()
    theirs.close()
    assert (
        (writer.file_writer, writer.all_writers) == (theirs.file_writer, theirs.all_writers) == (None, None)
    )


# -- the same points ---------------------------------------------------------------------------------------

SCALARS = [
    0.5, -0.0, 1e39, -1e39, 1e-46, float("nan"), float("inf"), float("-inf"), 3, True, 2**70, "1.5",
    np.float32(0.1), np.float64(0.1), np.int64(7), np.bool_(True), np.array(2.5), np.array([[4]]),
    torch.tensor(0.1), torch.tensor([1.25], requires_grad=True), torch.tensor(3, dtype=torch.int8),
    torch.tensor(0.75, dtype=torch.bfloat16), torch.tensor(0.1, dtype=torch.float16), fractions.Fraction(1, 3),
]  # fmt: skip
STEPS = [None, 0, 1, 1, 5, 3, -2, 2**62, 4.9, "6", np.int32(8), torch.tensor(9), True]


def test_scalars(spool, tmp_path, monkeypatch):
    def script(module, log_dir, clock):
        writer = module.SummaryWriter(log_dir)
        for number, value in enumerate(SCALARS):
            clock.tick()
            writer.add_scalar("every/value", value, number)
        for step in STEPS:
            clock.tick()
            writer.add_scalar("every/step", 1.0, step)
        for tag in ("a b", "ü/ß", "loss%", "mAP@0.5", b"bytes", ""):
            writer.add_scalar(tag, 2.0, 1)
        for walltime in (0, 12, 1_600_000_000.25, 1_634_567_890.1234567, np.float32(3.5), -5.0, -0.125, 9e9):
            writer.add_scalar("walltime", 1.0, 1, walltime)
        writer.add_scalar("keywords", scalar_value=1, global_step=2, walltime=3.0)
        writer.flush()
        writer.close()

    got = compare(script, spool, tmp_path, monkeypatch)
    assert len(got[".", "scalar", "every/value"]) == len(SCALARS)
    assert len(got[".", "scalar", "every/step"]) == len(STEPS)


def test_scalars_under_one_tag(spool, tmp_path, monkeypatch):
    def script(module, log_dir, clock):
        with module.SummaryWriter(log_dir) as writer:
            for step in range(3):
                clock.tick()
                writer.add_scalars("a/loss", {"train": step, "val": np.float32(0.1), "deep/er": 1.0}, step)
            writer.add_scalars("none", {"x": 1}, walltime=55.5)

    got = compare(script, spool, tmp_path, monkeypatch)
    assert ("a_loss_deep/er", "scalar", "a/loss") in got


def test_texts(spool, tmp_path, monkeypatch):
    def script(module, log_dir, clock):
        with module.SummaryWriter(log_dir) as writer:
            for step, text in enumerate(
                ["# Title\n\n| a |", "", "äöü ☃ 𝄞", "\0\x1f", "x" * 3_000_000, "\n" * 140_000]
            ):
                clock.tick()
                writer.add_text("notes", text, step)
            writer.add_text("no step", "text", walltime=5.0)

    compare(script, spool, tmp_path, monkeypatch)


def _images():
    rng = np.random.default_rng(1)
    yield rng.random((3, 5, 7)), "CHW"
    yield rng.random((5, 7, 3)).astype(np.float32) * 3 - 1, "HWC"  # out of range: clipped
    yield rng.integers(0, 256, (5, 7, 4), dtype=np.uint8), "HWC"
    yield rng.integers(0, 256, (5, 7, 2), dtype=np.uint8), "HWC"
    yield rng.integers(0, 256, (1, 5, 7), dtype=np.uint8), "CHW"
    yield rng.random((5, 7)), "HW"
    yield rng.random((5, 7)), "WH"
    yield rng.integers(0, 2, (7, 5, 3)), "WHC"  # int64: times 255
    yield rng.random((5, 7)) > 0.5, "hw"
    yield torch.rand(3, 4, 4, generator=torch.manual_seed(1), requires_grad=True), "CHW"
    yield torch.rand(3, 4, 4, generator=torch.manual_seed(1)).to(torch.bfloat16), "CHW"
    for count in (1, 3, 8, 11):
        yield rng.random((count, 3, 4, 6)), "NCHW"
        yield rng.integers(0, 256, (count, 4, 6, 1), dtype=np.uint8), "NHWC"


def test_images(spool, tmp_path, monkeypatch):
    def script(module, log_dir, clock):
        with module.SummaryWriter(log_dir) as writer:
            for number, (pixels, order) in enumerate(_images()):
                clock.tick()
                writer.add_image(f"image/{number}", pixels, number, dataformats=order)
            writer.add_image("default", np.zeros((3, 2, 2)), walltime=7.0)
            writer.add_images("batch", np.ones((9, 3, 2, 2)), 1)

    got = compare(script, spool, tmp_path, monkeypatch)
    assert len([key for key in got if key[1] == "image"]) == len(list(_images())) + 2
    assert {data["encoding"] for data in only(spool, "image")} == {"raw"}


def test_figures(spool, tmp_path, monkeypatch):
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    def figure(size):
        made, axes = plt.subplots(figsize=(size, 1), dpi=50)
        axes.plot([1, 3, 2])
        return made

    def script(module, log_dir, clock):
        with module.SummaryWriter(log_dir) as writer:
            one = figure(2)
            writer.add_figure("one", one, 1, close=False)
            assert plt.fignum_exists(one.number)
            writer.add_figure("again", one, 2)
            assert not plt.fignum_exists(one.number)
            clock.tick()
            writer.add_figure("list", [figure(1), figure(1)], 3, walltime=9.0)

    compare(script, spool, tmp_path, monkeypatch)
    assert plt.get_fignums() == []


def _samples():
    rng = np.random.default_rng(2)
    yield rng.normal(size=1000)
    yield rng.normal(size=(3, 4, 5)).astype(np.float32) * 1e6
    yield np.zeros(5)
    yield np.array([-1e-13, 1e-13])
    yield np.array([1.0, np.nan, 3.0])
    yield np.array([1e19, -1e19])
    yield np.arange(17)
    yield np.array([True, False])
    yield np.float32(3)
    yield 2
    yield torch.randn(50, generator=torch.manual_seed(3))
    yield torch.ones(3, dtype=torch.bfloat16, requires_grad=True)


BINS = ["tensorflow", 10, 1, "auto", [-2.0, -1.0, 0.0, 0.5, 4.0], np.linspace(-5, 20, 100)]


@pytest.mark.parametrize("max_bins", [None, 1, 3, 7, 1000])
@pytest.mark.parametrize("bins", BINS, ids=["tensorflow", "10", "1", "auto", "edges", "array"])
def test_histograms_value_for_value(bins, max_bins):
    """Every field of torch's HistogramProto, for each sample that it accepts; where it refuses, ours does."""
    edges = ours.tb_values.default_bins() if isinstance(bins, str) and bins == "tensorflow" else bins
    compared = 0
    for values in _samples():
        try:
            want = real_summary.histogram("h", values, edges, max_bins).value[0].histo
        except (ValueError, IndexError):
            with pytest.raises(ValueError):
                tb_values.histogram(values, bins, max_bins)
            continue
        got = tb_values.histogram(values, bins, max_bins)
        for name in ("min", "max", "num", "sum", "sum_squares"):
            assert repr(float(got[name])) == repr(getattr(want, name)), name
        assert got["limits"] == list(want.bucket_limit)
        assert got["counts"] == list(want.bucket)
        compared += 1
    assert compared >= 6


def test_histograms(spool, tmp_path, monkeypatch):
    def script(module, log_dir, clock):
        with module.SummaryWriter(log_dir) as writer:
            for step, values in enumerate(_samples()):
                clock.tick()
                writer.add_histogram("h", values, step)
                writer.add_histogram("few", np.arange(20), step, bins=9, max_bins=4, walltime=3.5)
            raw = {"min": 0, "max": np.float32(2), "num": 3, "sum": 2.5, "sum_squares": 4}
            writer.add_histogram_raw(
                "raw", **raw, bucket_limits=[1.0, 2], bucket_counts=np.array([1, 2]), global_step=4
            )

    compare(script, spool, tmp_path, monkeypatch)


def test_hparams(spool, tmp_path, monkeypatch):
    def script(module, log_dir, clock):
        with module.SummaryWriter(log_dir) as writer:
            values = {"lr": 0.1, "batch": 32, "name": "x", "on": True, "none": None, "t": torch.tensor([2.5])}
            writer.add_hparams(values, {"hparam/acc": 0.5, "hparam/loss": np.float32(0.1)})
            clock.tick()
            writer.add_hparams(
                {"lr": 0.2, "o": "a"}, {"m": 1}, {"lr": [0.1, 0.2], "o": ["a", "b"]}, "named/run", 7
            )
            writer.add_scalar("x", 1.0, 1)

    got = compare(script, spool, tmp_path, monkeypatch)
    assert ("named/run", "hparams", "_hparams_/session_start_info") in got


@pytest.mark.parametrize("name", [".", "./", "a/../b", "{log_dir}", "{log_dir}/c"])
def test_hyperparameters_in_the_run_itself(name, spool, tmp_path, monkeypatch):
    """A run_name that leads back to log_dir is no sub-run."""

    def script(module, log_dir, clock):
        with module.SummaryWriter(log_dir) as writer:
            writer.add_scalar("x", 1.0, 1)
            clock.tick()
            writer.add_hparams({"lr": 0.1}, {"m": 0.5}, run_name=name.format(log_dir=log_dir))

    got = compare(script, spool, tmp_path, monkeypatch)
    assert ((".", "scalar", "m") in got) == (name in (".", "./", "{log_dir}"))


def test_summaries_that_the_caller_built(spool, tmp_path, monkeypatch):
    """Lightning logs hyperparameters so."""

    def script(module, log_dir, clock):
        with module.SummaryWriter(log_dir) as writer:
            for one in real_summary.hparams({"lr": 0.1}, {"hp_metric": -1}):
                clock.tick()
                writer._get_file_writer().add_summary(one)
            curve = real_summary.pr_curve("pr", np.array([0, 1, 1]), np.array([0.1, 0.7, 0.9]))
            writer.file_writer.add_summary(curve, 3, 12.5)
            large = real_summary.tensor_proto("large", torch.arange(100_000.0))
            writer.file_writer.add_summary(large, global_step=np.int64(4))
            event = real.writer.Event(summary=real_summary.scalar("s", 2.0), step=6)
            writer.file_writer.add_event(event)

    compare(script, spool, tmp_path, monkeypatch)
    assert {"base64", "blob"} <= {name for data in only(spool, "tb_summary") for name in data}


def test_a_rewind_takes_back_what_was_logged(spool, tmp_path, monkeypatch):
    monkeypatch.setenv("SPOOLAGENT_RUN", "run-1")

    def script(module, log_dir, clock):
        with module.SummaryWriter(log_dir) as writer:
            for step in range(5):
                clock.tick()
                writer.add_scalar("x", step, step)
        clock.tick(5_000_000_000)
        with module.SummaryWriter(log_dir, purge_step=3) as writer:
            assert writer.purge_step is None
            writer.add_scalar("x", 33, 3)

    got = compare(script, spool, tmp_path, monkeypatch)
    assert [step for _, step, _ in got[".", "scalar", "x"]] == [0, 1, 2, 3]
    assert fields(spool, "rewind") == [{"step": 3}]


def test_writing_after_close_goes_on_in_the_same_run(spool, tmp_path, monkeypatch):
    def script(module, log_dir, clock):
        writer = module.SummaryWriter(log_dir)
        for step in range(3):
            clock.tick(2_000_000_000)
            writer.add_scalar("x", 0.5, step)
            writer.add_text("t", "text", step)
            writer.close()
            writer.close()
            writer.flush()

    compare(script, spool, tmp_path, monkeypatch)
    streams = read_spool(spool)
    assert len({key.run for key in streams}) == 1
    assert [header.attempt for header, _ in streams.values()] == [1, 1, 1]
    assert all(events[-1].data["status"] == "finished" for _, events in streams.values())


# -- mistakes of the caller --------------------------------------------------------------------------------

MISTAKES = {
    "list": lambda w: w.add_scalar("t", [1.0], 1),
    "none": lambda w: w.add_scalar("t", None, 1),
    "dict": lambda w: w.add_scalar("t", {}, 1),
    "two": lambda w: w.add_scalar("t", torch.zeros(2), 1),
    "no element": lambda w: w.add_scalar("t", np.zeros(0), 1),
    "word": lambda w: w.add_scalar("t", "abc", 1),
    "step word": lambda w: w.add_scalar("t", 1.0, "abc"),
    "step list": lambda w: w.add_scalar("t", 1.0, [1]),
    "step nan": lambda w: w.add_scalar("t", 1.0, float("nan")),
    "step large": lambda w: w.add_scalar("t", 1.0, 2**63),
    "tag": lambda w: w.add_scalar(5, 1.0, 1),
    "walltime": lambda w: w.add_scalar("t", 1.0, 1, "now"),
    "scalars": lambda w: w.add_scalars("t", {"a": [1]}, 1),
    "scalars name": lambda w: w.add_scalars("t", {5: 1}, 1),
    "histogram empty": lambda w: w.add_histogram("t", np.zeros(0), 1),
    "histogram nan": lambda w: w.add_histogram("t", np.array([np.nan, np.nan]), 1),
    "histogram list": lambda w: w.add_histogram("t", [1, 2], 1),
    "histogram raw": lambda w: w.add_histogram_raw("t", 0, 1, 1, 1, 1, [1], [1, 2]),
    "image list": lambda w: w.add_image("t", [[[1]]], 1),
    "image dims": lambda w: w.add_image("t", np.zeros((2, 2)), 1),
    "image twice": lambda w: w.add_image("t", np.zeros((2, 2, 3)), 1, dataformats="HHC"),
    "image batch": lambda w: w.add_images("t", np.zeros((2, 4, 2, 2)), 1),
    "hparams list": lambda w: w.add_hparams([], {}),
    "hparams value": lambda w: w.add_hparams({"a": [1]}, {}),
    "hparams domain": lambda w: w.add_hparams({"a": 1}, {}, {"a": ["x"]}),
    "summary": lambda w: w.file_writer.add_summary("x"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_raise_what_torch_raises_and_log_nothing(spool, name):
    theirs, writer = real.SummaryWriter("theirs"), ours.SummaryWriter("logs")
    with pytest.raises(Exception) as expected:
        MISTAKES[name](theirs)
    with pytest.raises(expected.type):
        MISTAKES[name](writer)
    theirs.close()
    writer.close()
    assert only(spool) == []


def test_mistakes_that_torch_does_not_name(spool):
    writer = ours.SummaryWriter("logs")
    with pytest.raises(TypeError, match="text_string"):
        writer.add_text("t", 5)
    with pytest.raises(ValueError, match="at least one pixel"):
        writer.add_image("t", np.zeros((3, 0, 5)))
    with pytest.raises(NotImplementedError, match="file_version"):
        writer.file_writer.add_event(real.writer.Event(file_version="x"))
    writer.close()
    assert only(spool) == []


# -- in the spool ------------------------------------------------------------------------------------------


def test_values_keep_their_exact_double(spool):
    with ours.SummaryWriter("logs") as writer:
        writer.add_scalar("x", np.float32(0.1))
        writer.add_scalar("x", torch.tensor(0.1), 1)
        writer.add_scalar("x", 1 / 3, 2, new_style=True, double_precision=True)
        writer.add_scalar("x", 1 / 3, 2, new_style=True)
        writer.add_scalar("x", 1 / 3, 2, double_precision=True)
        writer.add_scalar("x", np.float64(1 / 3), 3)
        writer.add_scalar("x", torch.tensor(1 / 3, dtype=torch.float64), 4)
    exact = float(np.float32(0.1))
    assert fields(spool) == [
        {"metrics": {"x": exact}},
        {"metrics": {"x": exact}, "step": 1},
        {"metrics": {"x": 1 / 3}, "step": 2, "tensor": "float64"},
        {"metrics": {"x": 1 / 3}, "step": 2, "tensor": "float32"},
        {"metrics": {"x": 1 / 3}, "step": 2},
        {"metrics": {"x": 1 / 3}, "step": 3},
        {"metrics": {"x": 1 / 3}, "step": 4},
    ]


@pytest.mark.parametrize("seed", range(5))
def test_walltimes_come_back_as_they_were(seed):
    rng = np.random.default_rng(seed)
    for seconds in [*(rng.random(2000) * 4e9 + 1e7).tolist(), 0.0, 1e-9, 0.1, 1.5, 9e9]:
        assert tb_values.wall_ns(seconds) / 10**9 == seconds


def test_a_walltime_that_no_event_can_have_is_the_nearest(spool, capsys, monkeypatch):
    """torch takes any float: the value must not be lost for a time."""
    monkeypatch.setattr("spoolagent.writers.process._warned", set())
    times = [1e12, float("inf"), 1e300, -1e12, float("-inf"), float("nan")]
    with ours.SummaryWriter("logs") as writer:
        before = time.time_ns()
        for step, walltime in enumerate(times):
            writer.add_scalar("t", 1.0, step, walltime)
        after = time.time_ns()
        writer.add_text("t", "text", 1, walltime=1e12)
    *found, text = fields(spool)
    assert [e["step"] for e in found] == list(range(len(times)))
    assert [e["at"] for e in found[:-1]] == [2**63 - 1] * 3 + [-(2**63)] * 2
    assert before <= found[-1]["at"] <= after
    assert text["at"] == 2**63 - 1
    assert capsys.readouterr().err.count("walltime") == 1


def test_the_start_says_what_the_user_named(spool, monkeypatch):
    ours.SummaryWriter("runs/first").close()
    ours.SummaryWriter(pathlib.Path("runs/second")).close()
    default = ours.SummaryWriter(comment="_lr=1")
    default.close()
    starts = only(spool, "run_start")
    assert [(s["api"], s["log_dir"]) for s in starts] == [
        ("tensorboard", "runs/first"), ("tensorboard", "runs/second"), ("tensorboard", default.log_dir)
    ]  # fmt: skip
    assert [s["name"] for s in starts] == ["runs/first", "runs/second", os.path.basename(default.log_dir)]
    host = re.escape(os.uname().nodename)
    assert re.fullmatch(rf"runs/[A-Z][a-z]{{2}}\d\d_\d\d-\d\d-\d\d_{host}_lr=1", default.log_dir)
    assert default.get_logdir() == default.log_dir


def test_the_log_dir_is_there_and_empty(spool):
    writer = ours.SummaryWriter("deep/er/logs")
    assert os.listdir(writer.log_dir) == []
    pathlib.Path(writer.log_dir, "notes.txt").write_text("mine")
    path = pathlib.Path("p")
    assert ours.SummaryWriter(path).log_dir is path
    assert ours.SummaryWriter("s3://bucket/logs").get_logdir() == "s3://bucket/logs"
    assert not os.path.exists("s3:")
    pathlib.Path("file").write_text("")
    with pytest.raises(FileExistsError):
        ours.SummaryWriter("file")


def test_each_log_dir_is_a_run_of_its_own(spool, tmp_path):
    first, second = ours.SummaryWriter("runs/a"), ours.SummaryWriter("runs/b")
    same = ours.SummaryWriter(str(tmp_path / "runs" / "a"))
    for number, writer in enumerate((first, second, same)):
        writer.add_scalar("x", number)
    first.close()
    same.add_scalar("x", 3)  # the run goes on while one of its writers is open
    same.close()
    second.close()
    ours.SummaryWriter("runs/a").close()
    found = [
        (key.run, [e.data["metrics"]["x"] for e in events if e.type == "metrics"])
        for key, (_, events) in read_spool(spool).items()
    ]
    assert [values for _, values in found] == [[0.0, 2.0, 3.0], [1.0], []]
    assert found[0][0] == found[2][0] != found[1][0]


def test_with_a_run_given_further_log_dirs_are_parts_of_it(spool, monkeypatch, tmp_path):
    monkeypatch.setenv("SPOOLAGENT_RUN", "run-1")
    names = [
        "runs/x/train",
        "runs/x/val",
        "runs/x/train/deep/er",
        "runs/x",
        "elsewhere/val",
        "other/runs/x/val",
        "runs/x/val/",
    ]
    writers = [ours.SummaryWriter(name) for name in names]
    for number, writer in enumerate(writers):
        writer.add_scalar("x", number, 1)
    writers[1].add_scalars("loss", {"a": 1})
    writers[1].add_text("t", "text")
    writers[1].add_hparams({"lr": 1}, {"m": 2}, run_name="hp")
    writers[1].add_image("i", np.zeros((3, 2, 2)))
    writers[1].add_histogram("h", np.ones(3))
    for writer in writers:
        writer.close()
    ((key, (_, events)),) = read_spool(spool).items()
    assert key.run == "run-1"
    parts = [e.data.get("context", {}).get("subrun") for e in events if e.type == "metrics"]
    assert parts == [None, "val", "deep/er", "x", "elsewhere/val", "other/runs/x/val", "val", "val/loss_a"]
    found = {(sub, tag) for sub, _, tag in shown(replay(spool, tmp_path / "tb"))}
    assert {
        ("val", "t/text_summary"),
        ("val", "i"),
        ("val", "h"),
        ("val/loss_a", "loss"),
        ("val/hp", "m"),
    } <= found
    assert events[-1].type == "run_end"


def test_no_two_log_dirs_share_a_part():
    known = {}
    paths = ["/a/b/c", "/a/val", "/a/b/val", "/a/b/val_2", "/a/b", "/", "/z"]
    parts = [tb_runs._part(known, path) for path in paths]
    assert parts == ["", "val", "val_2", "val_2_2", "b", "root", "z"]
    assert [tb_runs._part(known, path) for path in paths] == parts


def test_an_exception_in_the_block_makes_the_run_failed(spool):
    with pytest.raises(ZeroDivisionError), ours.SummaryWriter("logs") as writer:
        writer.add_scalar("x", 1 / 0)
    (end,) = only(spool, "run_end")
    assert (end["status"], end["exit_code"]) == ("failed", 1)


def test_an_unwritable_spool_never_raises(spool, capsys):
    spool.write_text("in the way")
    with ours.SummaryWriter("logs") as writer:
        for step in range(3):
            writer.add_scalar("x", 1.0, step)
            writer.add_text("t", "x" * 200_000, step)
            writer.add_image("i", np.zeros((3, 2, 2)), step)
        writer.flush()
        assert writer._run.dropped == 9
    assert capsys.readouterr().err.count("cannot write to the spool") == 1


def test_a_log_dir_that_cannot_be_made_is_only_warned_of(spool, monkeypatch, capsys):
    def refuse(path, exist_ok):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.makedirs", refuse)
    tb_runs.make_log_dir("/nowhere/logs")
    assert "cannot create log_dir /nowhere/logs (Permission denied)" in capsys.readouterr().err


def test_flush_waits_for_the_queue(spool, monkeypatch):
    monkeypatch.setenv("SPOOLAGENT_DURABILITY", "queued")
    writer = ours.SummaryWriter("logs")
    for step in range(2000):
        writer.add_scalar("x", step, step)
    writer.flush()
    assert [e["step"] for e in fields(spool)] == list(range(2000))
    writer.close()


def test_threads_share_a_writer(spool):
    with ours.SummaryWriter("logs") as writer:

        def work(number):
            for step in range(1000):
                writer.add_scalar(f"t{number}", step, step)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    events = fields(spool)  # read_spool checks that seq has no gap
    assert len(events) == 8000
    for number in range(8):
        mine = [e["step"] for e in events if f"t{number}" in e["metrics"]]
        assert mine == list(range(1000))


def test_a_forked_child_writes_a_stream_of_its_own(spool):
    writer = ours.SummaryWriter("logs")
    writer.add_scalar("parent", 1.0, 0)
    child = os.fork()
    if child == 0:
        try:
            for step in range(5):
                writer.add_scalar("child", 2.0, step)
            ours.SummaryWriter("logs").add_scalar("child", 3.0, 5)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    writer.add_scalar("parent", 1.0, 1)
    writer.close()
    streams = [
        (h.role, [e.data["metrics"] for e in events if e.type == "metrics"], key.run)
        for key, (h, events) in read_spool(spool).items()
    ]
    assert [(role, metrics) for role, metrics, _ in streams] == [
        ("main", [{"parent": 1.0}] * 2),
        ("aux", [{"child": 2.0}] * 5 + [{"child": 3.0}]),
    ]
    assert streams[0][2] == streams[1][2]


def test_importing_brings_no_heavy_library():
    code = (
        "import sys, spoolagent.writers.tensorboard, spoolagent.writers.nvflare;"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'numpy', 'torch', 'tensorboard', 'PIL', 'matplotlib'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_scalars_need_no_numpy(spool):
    code = (
        "import sys; from spoolagent.writers.tensorboard import SummaryWriter\n"
        "with SummaryWriter('logs') as w: w.add_scalar('x', 1, 2); w.add_text('t', 'x'); w.add_hparams({'a': 1}, {'b': 2})\n"
        "print('numpy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
    assert [data["type"] for data in only(spool)] == ["metrics", "text", "hparams"]
