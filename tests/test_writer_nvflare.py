"""spoolagent.writers.nvflare: NVFLARE's names, checks and 13 data types (PARITY A1, A3, A4, A11)."""

import enum
import inspect
import logging
import os
import threading

import numpy as np
import pytest
import torch
from writer_help import fields, only, read_spool, replay, shown

from spoolagent.format.blobs import read_blob
from spoolagent.writers import nvflare
from spoolagent.writers.nvflare import AnalyticsDataType as Kind


@pytest.fixture
def spool(tmp_path, monkeypatch):
    """An empty spool, and a process that has not logged yet."""
    for name in list(os.environ):
        if name.startswith("SPOOLAGENT_") or name in (
            "RANK",
            "SLURM_PROCID",
            "OMPI_COMM_WORLD_RANK",
            "PMI_RANK",
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SPOOLAGENT_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("SPOOLAGENT_SITE", "site-1")
    session = nvflare._Session()
    monkeypatch.setattr(nvflare, "_session", session)
    yield tmp_path / "spool"
    if session.run is not None:
        session.run.finish()


# What NVFLARE 2.9 has; `self` and `None` returns aside.
SURFACE = {
    "SummaryWriter.add_scalar": "tag, scalar, global_step=None, **kwargs",
    "SummaryWriter.add_scalars": "tag, scalars, global_step=None, **kwargs",
    "SummaryWriter.flush": "",
    "MLflowWriter.log_param": "key, value",
    "MLflowWriter.log_params": "values",
    "MLflowWriter.log_metric": "key, value, step=None",
    "MLflowWriter.log_metrics": "metrics, step=None",
    "MLflowWriter.log_text": "text, artifact_file_path",
    "MLflowWriter.set_tag": "key, tag",
    "MLflowWriter.set_tags": "tags",
    "WandBWriter.log": "metrics, step=None",
    "init": "rank=None",
    "log": "key, value, data_type, **kwargs",
    "shutdown": "",
}


@pytest.mark.parametrize("name", SURFACE)
def test_signatures(name):
    found = nvflare
    for part in name.split("."):
        found = getattr(found, part)
    parameters = [p.replace(annotation=p.empty) for p in inspect.signature(found).parameters.values()]
    text = ", ".join(str(p) for p in parameters if p.name != "self")
    assert text == SURFACE[name]


def test_the_thirteen_types():
    names = (
        "SCALARS SCALAR IMAGE TEXT LOG_RECORD PARAMETER PARAMETERS METRIC METRICS MODEL TAG TAGS INIT_DATA"
    )
    assert [(kind.name, kind.value) for kind in Kind] == [(name, name) for name in names.split()]


# -- what each call becomes --------------------------------------------------------------------------------


def test_summary_writer(spool, tmp_path):
    writer = nvflare.SummaryWriter()
    writer.add_scalar("loss", 0.5)
    writer.add_scalar("loss", torch.tensor(0.1), global_step=3)
    writer.add_scalar("loss", np.float32(0.1), 4, walltime=12.5)
    writer.add_scalars("a/acc", {"train": 1, "val": torch.tensor(2)}, 5)
    writer.flush()
    nvflare.shutdown()
    events = fields(spool)
    exact = float(np.float32(0.1))
    assert events[:3] == [
        {"metrics": {"loss": 0.5}},
        {"metrics": {"loss": exact}, "step": 3},
        {"metrics": {"loss": exact}, "step": 4, "at": 12_500_000_000},
    ]
    parts = [(e["context"], e["metrics"], e["step"]) for e in events[3:]]
    assert parts == [({"subrun": "a_acc_train"}, {"a/acc": 1}, 5), ({"subrun": "a_acc_val"}, {"a/acc": 2}, 5)]
    assert events[3]["at"] == events[4]["at"]
    points = shown(replay(spool, tmp_path / "tb"))
    assert [step for _, step, _ in points[".", "scalar", "loss"]] == [0, 3, 4]
    assert ("a_acc_val", "scalar", "a/acc") in points


def test_wandb_writer(spool):
    nvflare.WandBWriter().log({"loss": 0.5, "acc": 1}, 2)
    nvflare.WandBWriter().log({"loss": float("nan")})
    nvflare.shutdown()
    assert fields(spool) == [{"metrics": {"loss": 0.5, "acc": 1}, "step": 2}, {"metrics": {"loss": "NaN"}}]


def test_mlflow_writer(spool):
    writer = nvflare.MLflowWriter()
    writer.log_param("lr", 0.1)
    writer.log_params({"batch": 32, "layers": [1, 2], "none": None})
    writer.log_metric("loss", 0.5, 1)
    writer.log_metrics({"loss": 0.25, "acc": 1}, step=2)
    writer.log_text("hello", "notes/hello.txt")
    writer.set_tag("release", 3)
    writer.set_tags({"a": "b", "c": 1.5})
    nvflare.shutdown()
    kinds = [(data["type"], value) for data, value in zip(only(spool), fields(spool), strict=True)]
    assert kinds == [
        ("param", {"params": {"lr": 0.1}}),
        ("param", {"params": {"batch": 32, "layers": [1, 2], "none": None}}),
        ("metrics", {"metrics": {"loss": 0.5}, "step": 1}),
        ("metrics", {"metrics": {"loss": 0.25, "acc": 1}, "step": 2}),
        ("text", {"key": "text", "path": "notes/hello.txt", "text": "hello"}),
        ("tag", {"tags": {"release": "3"}}),
        ("tag", {"tags": {"a": "b", "c": "1.5"}}),
    ]


def _bytes(spool, ref):
    digest = ref["sha256"]
    return read_blob(os.path.join(spool, "sites", "site-1", "blobs", digest[:2], digest), ref)


def test_every_type_through_log(spool, tmp_path):
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "weights.bin").write_bytes(b"w")
    (model / "sub" / "config.json").write_text("{}")
    record = logging.LogRecord("trainer", logging.WARNING, __file__, 1, "epoch %d", (3,), None)
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    calls = [
        ("loss", 1.5, Kind.SCALAR, {"global_step": 1}),
        ("acc", {"a": 1.0}, Kind.SCALARS, {"global_step": 1}),
        ("m", 2, Kind.METRIC, {}),
        ("metrics", {"x": 1.0}, Kind.METRICS, {}),
        ("p", "v", Kind.PARAMETER, {}),
        ("params", {"q": 1}, Kind.PARAMETERS, {}),
        ("t", "v", Kind.TAG, {}),
        ("tags", {"u": "w"}, Kind.TAGS, {}),
        ("note", "text", Kind.TEXT, {"global_step": 4}),
        ("note", "y" * 600_000, Kind.TEXT, {"path": "y.txt"}),
        ("image", pixels, Kind.IMAGE, {"dataformats": "HWC", "global_step": 2}),
        ("model", str(model), Kind.MODEL, {}),
        ("a/b", b"weights", Kind.MODEL, {}),
        ("log", record, Kind.LOG_RECORD, {}),
        ("log", "line", Kind.LOG_RECORD, {}),
        ("init", {"lr": 0.5}, Kind.INIT_DATA, {}),
        ("site", "site-1", Kind.INIT_DATA, {}),
    ]
    assert {kind for _, _, kind, _ in calls} == set(Kind)
    for key, value, kind, kwargs in calls:
        assert nvflare.log(key, value, kind, **kwargs) is True
    nvflare.shutdown()
    found = [(data["type"], value) for data, value in zip(only(spool), fields(spool), strict=True)]
    kinds = [kind for kind, _ in found]
    numbers, rest = kinds[:4], kinds[4:]
    assert numbers == ["metrics"] * 4
    assert rest[:6] == ["param", "param", "tag", "tag", "text", "text"]
    assert rest[6:] == ["image", "model", "model", "log", "log", "param", "param"]
    events = [value for _, value in found]
    assert _bytes(spool, events[9]["blob"]) == b"y" * 600_000
    assert events[10] | {"blob": None} == {
        "key": "image", "encoding": "raw", "height": 2, "width": 2, "channels": 3, "step": 2, "blob": None,
    }  # fmt: skip
    assert _bytes(spool, events[10]["blob"]) == pixels.tobytes()
    files = {file["path"]: _bytes(spool, file["blob"]) for file in events[11]["files"]}
    assert files == {"weights.bin": b"w", "sub/config.json": b"{}"}
    assert [(f["path"], _bytes(spool, f["blob"])) for f in events[12]["files"]] == [("a_b", b"weights")]
    assert events[13] == {"message": "epoch 3", "level": "WARNING", "logger": "trainer"}
    assert events[14] == {"message": "line"}
    assert events[15] == {"params": {"lr": 0.5}, "overwrite": True}
    assert events[16] == {"params": {"site": "site-1"}, "overwrite": True}


def test_images_of_other_kinds(spool):
    from PIL import Image

    nvflare.log("chw", torch.zeros(3, 4, 5), Kind.IMAGE)
    nvflare.log("pil", Image.new("RGB", (5, 4)), Kind.IMAGE)
    nvflare.log("bytes", b"GIF89a....", Kind.IMAGE)
    nvflare.shutdown()
    shapes = [(e["key"], e["encoding"], e.get("height"), e.get("width")) for e in fields(spool)]
    assert shapes == [("chw", "raw", 4, 5), ("pil", "raw", 4, 5), ("bytes", "gif", None, None)]


def test_nvflares_own_enum_is_taken(spool):
    theirs = enum.Enum("AnalyticsDataType", {"SCALAR": "SCALAR"})
    nvflare.log("x", 1.0, theirs.SCALAR)
    nvflare.shutdown()
    assert fields(spool) == [{"metrics": {"x": 1.0}}]


# -- what is refused ---------------------------------------------------------------------------------------

REFUSED = [
    (TypeError, (5, 1.0, Kind.SCALAR), {}),
    (TypeError, (None, 1.0, Kind.SCALAR), {}),
    (TypeError, ("k", 1.0, "SCALAR"), {}),
    (TypeError, ("k", 1.0, None), {}),
    (TypeError, ("k", 1.0, enum.Enum("AnalyticsDataType", {"OTHER": "OTHER"}).OTHER), {}),
    (TypeError, ("k", 1.0, enum.Enum("Other", {"SCALAR": "SCALAR"}).SCALAR), {}),
    *[(TypeError, ("k", value, kind), {}) for kind in (Kind.SCALAR, Kind.METRIC)
      for value in ("1", None, [1.0], {"a": 1}, torch.zeros(1), np.zeros(2), 1j, np.complex64(1))],
    *[(TypeError, ("k", value, kind), {}) for kind in (Kind.SCALARS, Kind.METRICS, Kind.PARAMETERS, Kind.TAGS)
      for value in (1.0, "text", None, [("a", 1)])],
    *[(TypeError, ("k", value, kind), {}) for kind in (Kind.SCALARS, Kind.METRICS)
      for value in ({"a": "1"}, {"a": None}, {"a": [1]}, {5: 1.0})],
    *[(TypeError, ("k", value, Kind.TEXT), {}) for value in (1, None, b"text", ["text"])],
    *[(TypeError, ("k", 1.0, Kind.SCALAR), {"global_step": step}) for step in (1.0, "1", [1], np.float64(2))],
    (ValueError, ("k", 1.0, Kind.SCALAR), {"global_step": -1}),
    (ValueError, ("k", {"a": 1}, Kind.PARAMETERS), {"global_step": -5}),
    (TypeError, ("k", "text", Kind.TEXT), {"path": 5}),
    (TypeError, ("k", 5, Kind.MODEL), {}),
    (FileNotFoundError, ("k", "/no/such/model", Kind.MODEL), {}),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refused(spool, number):
    error, arguments, kwargs = REFUSED[number]
    with pytest.raises(error):
        nvflare.log(*arguments, **kwargs)
    nvflare.shutdown()
    assert not spool.exists() or only(spool) == []


@pytest.mark.parametrize("value", [1, True, 0.5, torch.tensor(1), np.float32(1), np.array(1.5), np.int64(2)])
def test_accepted_numbers(spool, value):
    nvflare.log("k", value, Kind.METRIC, global_step=0)
    nvflare.log("k", {"a": value}, Kind.METRICS, global_step=True)
    nvflare.shutdown()
    assert [e["metrics"] for e in fields(spool)] == [{"k": float(value)}, {"a": float(value)}]
    assert [e["step"] for e in fields(spool)] == [0, 1]


# -- the run -----------------------------------------------------------------------------------------------


def test_all_writers_share_one_run(spool, monkeypatch):
    monkeypatch.setenv("SPOOLAGENT_RUN", "job-7")
    nvflare.init()
    nvflare.init()
    nvflare.SummaryWriter().add_scalar("a", 1.0)
    nvflare.MLflowWriter().log_metric("b", 2.0)
    nvflare.WandBWriter().log({"c": 3.0})
    nvflare.shutdown()
    ((key, (header, events)),) = read_spool(spool).items()
    assert (key.run, header.role) == ("job-7", "main")
    assert [e.type for e in events] == ["run_start", "metrics", "metrics", "metrics", "run_end"]
    assert events[0].data["api"] == "nvflare"


def test_logging_after_shutdown_goes_on_in_the_same_run(spool):
    nvflare.SummaryWriter().add_scalar("a", 1.0)
    nvflare.shutdown()
    nvflare.shutdown()
    nvflare.SummaryWriter().add_scalar("a", 2.0)
    nvflare.shutdown()
    streams = read_spool(spool)
    assert len(streams) == 2
    assert len({key.run for key in streams}) == 1
    assert [header.attempt for header, _ in streams.values()] == [1, 1]


@pytest.mark.parametrize("rank", [3, "3", None])
def test_any_rank_logs(spool, monkeypatch, rank):
    if rank is None:
        monkeypatch.setenv("RANK", "3")
    nvflare.init(rank)
    nvflare.SummaryWriter().add_scalar("a", 1.0)
    nvflare.shutdown()
    assert only(spool, "run_start")[0]["rank"] == 3
    assert len(fields(spool)) == 1


@pytest.mark.parametrize(("rank", "logs"), [(0, True), ("0", True), (None, True), (1, False), ("2", False)])
def test_rank_zero_only(spool, monkeypatch, rank, logs):
    monkeypatch.setenv("SPOOLAGENT_RANK_ZERO_ONLY", "1")
    nvflare.init(rank=rank)
    assert nvflare.log("a", 1.0, Kind.SCALAR) is logs
    nvflare.SummaryWriter().add_scalar("a", 2.0)
    with pytest.raises(TypeError):
        nvflare.log("a", "x", Kind.SCALAR)
    nvflare.shutdown()
    assert spool.exists() is logs


@pytest.mark.parametrize("rank", [-1, "-1", "x", 1.0, "", []])
def test_what_is_no_rank(spool, rank):
    with pytest.raises(ValueError, match="rank must be"):
        nvflare.init(rank)


def test_threads_that_log_first_share_the_run(spool):
    barrier = threading.Barrier(8)

    def work(number):
        barrier.wait()
        for step in range(100):
            nvflare.log(f"t{number}", step, Kind.SCALAR, global_step=step)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    nvflare.shutdown()
    assert len(read_spool(spool)) == 1
    assert len(fields(spool)) == 800


def test_an_unwritable_spool_never_raises(spool, capsys):
    spool.write_text("in the way")
    nvflare.log("a", 1.0, Kind.SCALAR)
    nvflare.log("m", b"model", Kind.MODEL)
    nvflare.log("i", np.zeros((3, 2, 2)), Kind.IMAGE)
    assert nvflare._session.run.dropped == 3
    nvflare.shutdown()
    assert "cannot write to the spool" in capsys.readouterr().err
