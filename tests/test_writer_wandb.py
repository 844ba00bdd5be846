"""`spoolagent.writers.wandb` beside the real wandb 0.31: the same script over both, compared value by value."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
import wandb_writer_help as help_
from wandb_help import read_records

import spoolagent.writers.wandb as wandb
from spoolagent.format import layout
from spoolagent.testing import set_fault
from spoolagent.writers import Run as SpoolRun
from spoolagent.writers.wandb_errors import NotSupportedError
from spoolagent.writers.wandb_run import Run

ROWS = """
import numpy as np
import torch
from fractions import Fraction
from decimal import Decimal
from enum import Enum, IntEnum
import datetime, pathlib
class Color(Enum):
    RED = "red"
class Level(IntEnum):
    LOW = 3
run = wandb.init(project="p", id="r1", name="first", config={"lr": 0.1, "n": None, "t": (1, 2), "np": np.float32(0.1),
    "deep": {"a": {"b": 1}}, "s": {1, 2}, "nan": float("nan"), "path": pathlib.Path("/x"), "color": Color.RED})
def log(*args, **kwargs):
    run.log(*args, **kwargs)
    note(run.step)
log({"a": 1})
log({"x": 1.0, "b": True, "n": None, "s": "str", "l": [1, 2, 3], "t": (1, 2), "np": np.float32(0.1),
    "t0": torch.tensor(0.1), "arr": np.arange(4), "big": np.arange(100.0), "nest": {"a": 1, "b": {"c": 2.5, "s": "q"}},
    "a.b": 3, "nan": float("nan"), "inf": float("inf"), "ninf": -float("inf"), "i": 10**20,
    "npnan": np.float32("nan"), "npi": np.int64(3), "tt": torch.arange(3), "one": torch.tensor([5.0]),
    "bf": torch.tensor(0.5, dtype=torch.bfloat16), "bools": np.array([True, False]), "grad": torch.ones(2, requires_grad=True),
    "npb": np.bool_(True), "long": "z" * 300_000})
log({"mix": [{"a": 1}, [1, 2], None, "x", float("nan")], "empty": {}, "el": [], "bytes": b"abc", "uni": "\\u00e9\\u4e2d"})
log({"huge": 10**400, "tiny": -10**400, "td": [datetime.timedelta(*t) for t in
    ((0,), (1, 2, 5), (-1,), (730,), (400, 18060), (0, 3723), (-1, 86398, 500000), (0, 59, 500000))]})
log({"dec": Decimal("1.5"), "fr": Fraction(1, 2), "cx": 1 + 2j, "day": datetime.date(2020, 1, 2), "set": {7},
    "red": Color.RED, "low": Level.LOW, "p": pathlib.Path("/a/b"), "fn": len, "keys": {3: 1, True: 2}})
log({"g": 1}, step=10)
log({"h": 1}, step=10)
log({"k": 1})
log({"k2": 1}, step=20, commit=False)
log({"k3": 1}, step=20, commit=True)
log({"k4": 1}, commit=False)
log({})
log({})
log({"m": 1}, step=30)
log({"m2": 1}, step=31)
log({"m3": 1}, step=33, commit=True)
log({"m5": 1}, step=34)
log({"m6": 1}, commit=False)
log({}, commit=True)
log({"_step": 77, "z": 1, "": 4})
log({"dup": 1}, commit=False)
log({"dup": 2})
log({"nest": {"a": 1}}, commit=False)
log({"nest": {"b": 2}})
log({"j": 1}, step=np.int64(50))
log({"j": 2}, step=torch.tensor(52))
log({"j": 3}, commit=np.bool_(False))
log({"j": 4}, commit=torch.tensor(True))
log({"j": 5}, commit=0)
log({"j": 6}, commit=1)
log({"hist": wandb.Histogram([1, 2, 3, 4], num_bins=4), "hists": [wandb.Histogram([1, 2], num_bins=2)] * 2,
    "made": wandb.Histogram(np_histogram=np.histogram([1.0, 5.0], bins=3))})
for bad in (lambda: run.log({"a": 1}, step=1.5), lambda: run.log({"a": 1}, step="1"), lambda: run.log([1]),
    lambda: run.log({1: 2}), lambda: run.log({"ok": 1, "a": object()}), lambda: run.log({"a": b"\\xff"}),
    lambda: run.log({"a": 1}, step=True), lambda: run.log({"a": 1}, commit="x"),
    lambda: run.log({"a": 1}, commit=1.0), lambda: run.log({"a": 1}, commit=[]), lambda: run.log(None)):
    attempt(bad)
note(run.step)
c, s = run.config, run.summary
for call in (lambda: c.lr, lambda: c["lr"], lambda: c.get("zz", 5), lambda: c.zz, lambda: c["zz"], lambda: c.update({"lr": 0.2}),
    lambda: c.update({"lr": 0.2}, allow_val_change=True), lambda: setattr(c, "lr", 0.3), lambda: c.__setitem__("lr", 0.2),
    lambda: c.__setitem__("new", [1, (2, 3)]), lambda: setattr(c, "new2", {"a": np.arange(3)}), lambda: c.as_dict(), lambda: dict(c.items()),
    lambda: c.keys(), lambda: c.setdefaults({"lr": 9, "dd": 1}), lambda: "lr" in c, lambda: c.deep, lambda: repr(c),
    lambda: c.update(__import__("argparse").Namespace(q=1)), lambda: c.update({"-k-": np.float64("nan"), "inf": float("inf"), "by": b"x"}),
    lambda: c.as_dict(), lambda: c.__setitem__("im", wandb.Histogram([1])), lambda: c.update({"t": (1, 2)}), lambda: c.update(5),
    lambda: c.update({3: 4})):
    attempt(call)
for call in (lambda: s["a"], lambda: s["zzz"], lambda: s.zzz, lambda: s.get("zzz"), lambda: s.get("x"),
    lambda: s.__setitem__("best", np.float32(0.5)), lambda: s["best"], lambda: setattr(s, "bb", {"a": {"b": 1}}),
    lambda: s["bb"]["a"]["b"], lambda: s["bb"].__setitem__("c", 5), lambda: s["bb"]["c"], lambda: s.update({"u": 1, "v": "x"}),
    lambda: s.__delitem__("u"), lambda: s.get("u"), lambda: s.__setitem__("none", None), lambda: s.get("none"),
    lambda: s.__setitem__("ar", np.arange(3)), lambda: s["ar"], lambda: s.__setitem__("o", object()), lambda: s.__setitem__(3, 4),
    lambda: s.__setitem__("nan", float("nan")), lambda: s.get("nan"), lambda: s["nest"]["b"]):
    attempt(call)
for call in (lambda: wandb.init() is run, lambda: wandb.init(project="q", id="r2") is run, lambda: wandb.init(resume="must", id="r2"),
    lambda: run.name, lambda: run.id, lambda: run.project, lambda: run.group, lambda: run.job_type, lambda: run.tags, lambda: run.notes,
    lambda: run.entity, lambda: run.path, lambda: run.url, lambda: run.resumed, lambda: run.starting_step, lambda: run.disabled,
    lambda: os.path.isdir(run.dir), lambda: run.dir.endswith("files"), lambda: setattr(run, "name", "later"), lambda: run.name,
    lambda: setattr(run, "tags", ["z"]), lambda: run.tags, lambda: setattr(run, "notes", "say"), lambda: run.alert("t", "x"),
    lambda: run.alert("t", "x", level="BAD"), lambda: run.define_metric("a", summary="bad"), lambda: run.define_metric("a*b"),
    lambda: run.define_metric("")):
    attempt(call)
run.finish(exit_code=3)
for call in (lambda: run.log({"a": 1}), lambda: run.finish(), lambda: run.config.lr, lambda: run.config.update({"zz": 1}),
    lambda: setattr(run, "name", "x"), lambda: wandb.run, lambda: wandb.log({"a": 1}), lambda: wandb.config.a, lambda: wandb.config["a"],
    lambda: wandb.summary["a"], lambda: wandb.summary.a, lambda: setattr(wandb.config, "a", 1), lambda: wandb.finish()):
    attempt(call)
d = wandb.init(mode="disabled", config={"a": 1})
for call in (lambda: wandb.run is d, lambda: d.disabled, lambda: d.offline, lambda: d.url, lambda: d.project, lambda: d.log({"a": 1}), lambda: d.log({"a": 1}, step=1.5),
    lambda: d.summary["a"], lambda: d.config.a, lambda: d.step, lambda: d.finish(), lambda: wandb.run, lambda: d.log({"a": 1}), lambda: d.nothing,
    lambda: d.name == "dummy-" + d.id):
    attempt(call)
"""
METRICS = """
run = wandb.init(project="p", id="m1", tags=["a", "b"], notes="n", group="g", job_type="j", entity="e")
wandb.define_metric("epoch")
wandb.define_metric("val/*", step_metric="epoch")
wandb.define_metric("low", summary="min,max,mean,first,last")
wandb.define_metric("gone", summary="none")
for i, low in enumerate([3.0, 1.0, 2.0]):
    wandb.log({"epoch": i, "val/acc": i / 4, "low": low, "gone": i, "plain": i})
note(plain(run.summary.get("low")))
note(run.summary.get("gone"))
note(run.summary.get("plain"))
first = run
second = wandb.init(reinit="create_new", id="m2")
attempt(lambda: wandb.run is first)
second.finish()
attempt(lambda: wandb.run is first)
third = wandb.init(reinit="finish_previous", id="m3")
attempt(lambda: [wandb.run is third, third.step])
attempt(lambda: first.log({"a": 1}))
"""

MEDIA = """
rng = np.random.default_rng(1)
rgb = rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)
wandb.finish()
wandb.init(project="p", id="i1")
wandb.log({"img": wandb.Image(rgb, caption="c"), "loss": 1})
wandb.log({"deep": {"img": wandb.Image(rgb[:, :, 0]), "x": 1}}, step=4)
wandb.log({"imgs": [wandb.Image(rgb, caption="a"), wandb.Image(rgb)], "s": "t"}, step=4)
wandb.log({"tab": wandb.Table(columns=["a", "b"], data=[[1, "x"], [2.5, None]])})
wandb.log({"page": wandb.Html("<b>x</b>")})
"""

CHARTS = """
wandb.finish()
wandb.init(project="p", id="c1")
table = wandb.Table(columns=["x", "y"], data=[[i, i * i] for i in range(4)])
probas = [[0.8, 0.2], [0.3, 0.7], [0.4, 0.6], [0.9, 0.1], [0.45, 0.55]]
true = [0, 1, 1, 0, 0]
plot = wandb.plot
wandb.log({"line": plot.line(table, "x", "y", title="L"), "scatter": plot.scatter(table, "x", "y")})
wandb.log({"bar": plot.bar(table, "x", "y"), "hist": plot.histogram(table, "y", split_table=True), "n": 1})
wandb.log({"series": plot.line_series([0, 1, 2], [[1, 2, 3], [3, 2, 1]], ["a", "b"], "two", "s")})
wandb.log({"many": plot.line_series([[0, 1], [5, 6]], [[1, 2], [3, 2]])})
wandb.log({"cm": plot.confusion_matrix(y_true=true, preds=[0, 1, 0, 0, 1], class_names=["n", "y"])})
wandb.log({"probs": plot.confusion_matrix(probs=probas, y_true=true, title="t")})
wandb.log({"roc": plot.roc_curve(true, probas, labels=["n", "y"]), "one": plot.roc_curve(true, probas, classes_to_plot=[1])})
wandb.log({"pr": plot.pr_curve(true, probas, labels=["n", "y"]), "few": plot.pr_curve(true, probas, interp_size=5)})
wandb.log({"own": wandb.plot_table("me/spec", table, {"a": "x"}, {"title": "t"})})
wandb.log({"val": {"cm": plot.line(table, "x", "y"), "deep": {"er": plot.bar(table, "x", "y"), "z": 2}, "loss": 1.0}})
ramp = np.linspace(0, 1, 12_000)
wandb.log({"sample": plot.roc_curve(np.arange(12_000) % 2, np.c_[ramp, 1 - ramp])})
for bad in (lambda: wandb.plot_table("s", [1], {}), lambda: plot.line_series([[1]], [[1], [2]]),
    lambda: plot.line_series([1], [[1]], keys=[]), lambda: plot.confusion_matrix(probs=probas, preds=[1], y_true=true),
    lambda: plot.confusion_matrix(preds=[1], y_true=true), lambda: plot.confusion_matrix(preds=true, y_true=true, class_names=["a"])):
    attempt(bad)
"""


WATCH = """
wandb.finish()
run = wandb.init(project="p", id="w1")
torch.manual_seed(3)
def learn(model, count):
    for i in range(count):
        loss = model(torch.ones(2, 3)).pow(2).sum()
        loss.backward()
        wandb.log({"loss": loss.item()})
first, second = torch.nn.Linear(3, 2), torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
second[2].bias.requires_grad = False
wandb.watch(first, log="all", log_freq=2)
run.watch([second], log="parameters", log_freq=1)
learn(first, 5)
learn(second, 2)
wandb.unwatch(first)
learn(first, 2)
with torch.no_grad():
    second[0].weight[0, 0] = float("nan")
    second[0].bias.fill_(float("inf"))
second(torch.ones(2, 3))
wandb.log({"end": 1})
third = torch.nn.Linear(3, 1, dtype=torch.bfloat16)
wandb.watch(third, idx=7, log_freq=1)
third(torch.ones(2, 3, dtype=torch.bfloat16)).sum().backward()
attempt(lambda: run.watch(torch.jit.script(torch.nn.Linear(3, 1)), log="all", log_freq=1))
for bad in (lambda: run.watch(first, log="both"), lambda: run.watch(5), lambda: run.watch([first, "x"])):
    attempt(bad)
run.finish()
third(torch.ones(2, 3, dtype=torch.bfloat16)).sum()
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The script over both sides, each in a process and directory of its own."""
    folder = tmp_path_factory.mktemp("both")
    started = [
        help_.start(folder / which, which, ROWS + METRICS + MEDIA + CHARTS + WATCH)
        for which in ("real", "ours")
    ]
    for process in started:
        help_.ended(process)
    return folder


def test_same_answers(both):
    real, ours = (help_.seen(both / which) for which in ("real", "ours"))
    assert len(real) == len(ours) > 120
    for number, (theirs, mine) in enumerate(zip(real, ours, strict=True)):
        assert json.dumps(mine, sort_keys=True) == json.dumps(theirs, sort_keys=True), f"answer {number}"


def test_same_history_through_the_receiver(both, tmp_path):
    log = help_.replay(both / "ours" / "spool", "r1", tmp_path)
    real = help_.history(next((both / "real").rglob("run-r1.wandb")))
    ours = help_.history(log)
    assert [row[("_step",)] for row in ours] == [row[("_step",)] for row in real]
    for theirs, mine in zip(real, ours, strict=True):
        assert help_.differences(mine, theirs) == {}


@pytest.mark.parametrize("kind", ["summary", "config"])
def test_same_summary_and_config_through_the_receiver(both, tmp_path, kind):
    log = help_.replay(both / "ours" / "spool", "r1", tmp_path)
    real = help_.merged(next((both / "real").rglob("run-r1.wandb")), kind)
    ours = help_.merged(log, kind)
    assert help_.differences(ours, real) == {}


def test_same_media_through_the_receiver(both, tmp_path):
    """Nested media have a dotted key here; all else is the same."""
    _compare_media(both, "i1", tmp_path)


def test_same_charts_through_the_receiver(both, tmp_path):
    """Their tables, and how they are drawn, which is config below `_wandb`."""
    ours = _compare_media(both, "c1", tmp_path)
    real = next((both / "real").rglob("run-c1.wandb"))
    mine, theirs = (_drawn(log) for log in (ours, real))
    assert len(theirs) == 16
    assert mine == theirs


def test_same_gradients_and_parameters_through_the_receiver(both, tmp_path):
    ours = help_.history(help_.replay(both / "ours" / "spool", "w1", tmp_path))
    real = help_.history(next((both / "real").rglob("run-w1.wandb")))
    assert len(ours) == len(real)
    assert {"gradients/weight", "parameters/graph_12.weight", "gradients/graph_7weight"} <= {
        path[0] for row in real for path in row
    }
    for theirs, mine in zip(real, ours, strict=True):
        assert help_.differences(mine, theirs) == {}


def _drawn(log):
    return {
        tuple(item.nested_key): json.loads(item.value_json)
        for record in read_records(log)
        for item in record.config.update
        if list(item.nested_key[:2]) == ["_wandb", "visualize"]
    }


def _compare_media(both, run, tmp_path):
    real = next((both / "real").rglob(f"run-{run}.wandb"))
    ours = help_.replay(both / "ours" / "spool", run, tmp_path)
    theirs, mine = ([flat(row) for row in help_.history(log)] for log in (real, ours))
    files = ("path", "sha256", "size", "filenames", "artifact_path", "_latest_artifact_path", "log_mode")
    for left, right in zip(mine, theirs, strict=True):
        drop = [{k: v for k, v in row.items() if not k.endswith(files)} for row in (left, right)]
        for row in drop:
            if "imgs.captions" in row:
                row["imgs.captions"] = [caption or None for caption in row["imgs.captions"]]
        assert help_.differences(*drop) == {}
        for path, value in left.items():
            if path.endswith("filenames"):
                for name, other in zip(value, right[path], strict=True):
                    same_content(ours.parent / "files" / name, real.parent / "files" / other)
            elif path.endswith(".path"):
                same_content(ours.parent / "files" / value, real.parent / "files" / right[path])
    return ours


def flat(row):
    return {".".join(path): value for path, value in row.items()}


def same_content(mine: Path, theirs: Path) -> None:
    if mine.suffix == ".png":
        from PIL import Image as Pil

        assert np.array_equal(np.asarray(Pil.open(mine)), np.asarray(Pil.open(theirs)))
    elif mine.suffix == ".json":
        assert json.loads(mine.read_text()) == json.loads(theirs.read_text())
    else:
        assert mine.read_bytes() == theirs.read_bytes()


def test_same_metrics_summary_through_the_receiver(both, tmp_path):
    log = help_.replay(both / "ours" / "spool", "m1", tmp_path)
    ours = help_.merged(log, "summary")
    real = help_.merged(next((both / "real").rglob("run-m1.wandb")), "summary")
    assert help_.differences(ours, real) == {}
    assert ours["low", "mean"] == 2


def test_facts_of_the_run(both):
    start = help_.events(both / "ours" / "spool", "m1")[0].data
    told = {
        name: start[name] for name in ("api", "project", "entity", "group", "job_type", "notes", "labels")
    }
    assert told == {
        "api": "wandb",
        "project": "p",
        "entity": "e",
        "group": "g",
        "job_type": "j",
        "notes": "n",
        "labels": ["a", "b"],
    }
    rows = help_.events(both / "ours" / "spool", "r1")
    assert rows[-1].data["status"] == "failed"
    assert rows[-1].data["exit_code"] == 3
    changed = [e.data["data"] for e in rows if e.type == "custom" and e.data["name"] == "wandb.run"]
    assert changed == [{"name": "later"}, {"labels": ["z"]}, {"notes": "say"}]


@pytest.fixture
def spool(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("WANDB", "SPOOLAGENT")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SPOOLAGENT_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("SPOOLAGENT_SITE", "site-1")
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "spool"
    wandb.teardown()
    wandb.finish()


def logged(spool, kind):
    return [e.data for e in help_.events(spool) if e.type == kind]


def test_signatures_are_the_real_ones():
    script = (
        "import inspect, json, wandb\n"
        "made = {}\n"
        "for name in dir(wandb.Run):\n"
        "    o = inspect.getattr_static(wandb.Run, name)\n"
        "    if not name.startswith('_'):\n"
        "        made['Run.' + name] = [[p.name, p.kind.name, repr(p.default)] for p in inspect.signature(o).parameters.values()] if callable(o) else None\n"
        "for n in ('init', 'finish', 'login', 'setup', 'teardown', 'Image', 'Table', 'Histogram', 'Html', 'Video', 'Audio', 'Artifact', 'Classes'):\n"
        "    made[n] = [[p.name, p.kind.name, repr(p.default)] for p in inspect.signature(getattr(wandb, n)).parameters.values()]\n"
        "for n in ('add_file', 'add_dir', 'new_file'):\n"
        "    made['Artifact.' + n] = [[p.name, p.kind.name, repr(p.default)] for p in inspect.signature(getattr(wandb.Artifact, n)).parameters.values()]\n"
        "print(json.dumps(made))"
    )
    environ = {**os.environ, "WANDB_MODE": "offline"}
    made = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
    )
    real = json.loads(made.stdout)
    assert len(real) > 50
    refused = set()
    for name, parameters in real.items():
        owner, _, method = name.partition(".")
        mine = (
            inspect.getattr_static(getattr(wandb, owner), method, None) if method else getattr(wandb, owner)
        )
        if mine is None:
            refused.add(method)
        elif parameters is not None:
            found = [
                [p.name, p.kind.name, repr(p.default)] for p in inspect.signature(mine).parameters.values()
            ]
            for left, right in zip(found, parameters, strict=True):
                assert left[:2] == right[:2], name
                assert left[2] == right[2] or left[0] == "anonymous", (name, left, right)
    assert refused == {
        *(
            "display",
            "finish_artifact",
            "link_artifact",
            "link_model",
            "log_code",
            "pin_config_keys",
            "restore",
        ),
        *("status", "to_html", "upsert_artifact", "use_artifact", "use_model"),
    }


def test_what_needs_a_server_says_so(spool):
    run = wandb.init()
    for name in ("use_artifact", "log_code", "restore", "status"):
        with pytest.raises(NotSupportedError, match=name):
            getattr(run, name)
    for name in ("Api", "sweep", "Object3D", "Molecule", "use_artifact", "keras"):
        with pytest.raises(NotSupportedError, match=name):
            getattr(wandb, name)
        assert not hasattr(wandb, name)
    with pytest.raises(AttributeError, match="nonsense"):
        wandb.nonsense  # noqa: B018 - to be looked up is what it is for
    for wrong in ({"sync_tensorboard": True}, {"monitor_gym": True}, {"fork_from": "a?_step=1"}):
        with pytest.raises(NotSupportedError):
            wandb.init(**wrong)
    assert wandb.login(key="x") is True
    assert len(wandb.util.generate_id()) == 8
    assert wandb.errors.UsageError is wandb.UsageError
    assert wandb.data_types.Table is wandb.Table


def test_row_of_an_earlier_step_is_kept(spool, capsys, tmp_path):
    run = wandb.init(id="late")
    run.log({"a": 1}, step=10)
    run.log({"b": 2}, step=4)
    run.log({"c": 3}, step=10)
    assert run.step == 10
    run.log({"d": 4})
    assert run.step == 11
    run.finish()
    assert [(e["metrics"], e["step"], e["commit"]) for e in logged(spool, "metrics")] == [
        ({"a": 1}, 10, False),
        ({"b": 2}, 4, False),
        ({"c": 3}, 10, False),
        ({"d": 4}, 10, True),
    ]
    assert "kept" in capsys.readouterr().err
    rows = help_.history(help_.replay(spool, "late", tmp_path / "replayed"))
    assert [{".".join(k): v for k, v in row.items()} for row in rows] == [
        {"_step": 10, "a": 1},
        {"_step": 11, "b": 2, "global_step": 4},
        {"_step": 12, "c": 3, "d": 4, "global_step": 10},
    ]


def test_media_go_before_the_numbers_of_their_row(spool):
    run = wandb.init(id="media")
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    run.log(
        {
            "loss": 0.5,
            "img": wandb.Image(pixels, caption="c"),
            "s": "text",
            "many": [wandb.Image(pixels[:, :, 0])] * 3,
        }
    )
    run.log({"only": wandb.Image(pixels)}, commit=False)
    run.log({"only2": wandb.Image(pixels)})
    run.finish()
    told = [
        (e.type, e.data.get("key"), e.data.get("step"), e.data.get("commit"))
        for e in help_.events(spool)
        if e.type not in ("run_start", "run_end")
    ]
    assert told == [
        ("image", "img", 0, False),
        ("text", "s", 0, False),
        *[("image", "many", 0, False)] * 3,
        ("metrics", None, 0, True),
        ("image", "only", 1, False),
        ("image", "only2", 1, False),
        ("metrics", None, 1, True),
    ]
    images = logged(spool, "image")
    assert images[0] | {"time": 0, "crc": ""} == {
        "seq": 2,
        "time": 0,
        "type": "image",
        "key": "img",
        "encoding": "raw",
        "height": 2,
        "width": 4,
        "channels": 3,
        "caption": "c",
        "blob": images[0]["blob"],
        "step": 0,
        "commit": False,
        "crc": "",
    }
    assert blob(spool, images[0]["blob"]) == pixels.tobytes()
    assert [(e["index"], e["count"], e["channels"]) for e in images[1:4]] == [(0, 3, 1), (1, 3, 1), (2, 3, 1)]


def blob(spool, ref):
    return Path(layout.blob_path(str(spool), "site-1", ref["sha256"])).read_bytes()


def test_images_have_the_pixels_that_the_real_ones_have(spool, tmp_path):
    import torch
    from PIL import Image as Pil

    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)
    inputs = {
        "rgb": (rgb, {}),
        "grey": (rgb[:, :, 0], {}),
        "one": (rgb[:, :, :1], {}),
        "rgba": (np.dstack([rgb, rgb[:, :, :1]]), {}),
        "jpg4": (np.dstack([rgb, rgb[:, :, :1]]), {"file_type": "bmp"}),
        "float": (rgb / 3.0, {}),
        "mode": (rgb, {"mode": "L"}),
        "tensor": (torch.tensor(rgb).permute(2, 0, 1), {}),
        "tensorf": (torch.tensor(rgb).permute(2, 0, 1) / 2, {}),
        "tensor1": (torch.tensor(rgb[None, :, :, 0]), {}),
        "pil": (Pil.fromarray(rgb), {}),
        "palette": (Pil.fromarray(rgb).convert("P"), {}),
        "binary": (Pil.fromarray(rgb[:, :, 0] > 99), {}),
    }
    os.environ["WANDB_MODE"] = "offline"
    import wandb as real  # the oracle

    run = wandb.init(id="pixels")
    for name, (data, more) in inputs.items():
        run.log({name: wandb.Image(data, **more)})
    run.finish()
    for event in logged(spool, "image"):
        data, more = inputs[event["key"]]
        theirs = real.Image(data, **more).image
        if theirs.mode in ("P", "1"):
            theirs = theirs.convert("RGB" if theirs.mode == "P" else "L")
        mine = np.frombuffer(blob(spool, event["blob"]), np.uint8).reshape(
            event["height"], event["width"], -1
        )
        expected = np.asarray(theirs).reshape(mine.shape)
        assert np.array_equal(mine, expected), event["key"]
    del os.environ["WANDB_MODE"]
    with pytest.raises(ValueError, match="shape"):
        wandb.Image(np.zeros((3, 4, 5)))
    with pytest.raises(ValueError, match="file_type"):
        wandb.Image(rgb, file_type="tiff")


def test_image_from_files_with_boxes_and_masks(spool, tmp_path):
    from PIL import Image as Pil

    path = tmp_path / "a.png"
    Pil.new("RGB", (4, 3), (9, 8, 7)).save(path)
    box = {"position": {"minX": 0.1, "maxX": 0.2, "minY": 0.3, "maxY": 0.4}, "class_id": 1}
    run = wandb.init(id="boxes")
    image = wandb.Image(
        path,
        boxes={"pred": {"box_data": [box], "class_labels": {1: "cat"}}},
        masks={"m": {"mask_data": np.ones((3, 4), np.uint8), "class_labels": {1: "cat"}}},
        classes=[{"id": 1, "name": "cat"}],
        grouping=2,
    )
    run.log({"img": image})
    run.log({"copy": wandb.Image(image, caption="other")})
    with pytest.raises(FileNotFoundError):
        wandb.Image("nowhere.png")
    with pytest.raises(ValueError, match="boxes"):
        wandb.Image(path, boxes=[1])
    run.finish()
    event, copy = logged(spool, "image")
    assert event["encoding"] == "png"
    assert blob(spool, event["blob"]) == path.read_bytes()
    files = {f["path"]: blob(spool, f["blob"]) for f in event["files"]}
    assert orjson.loads(files["boxes.json"]) == {"pred": {"box_data": [box], "class_labels": {"1": "cat"}}}
    assert files["masks/1"] == b"\1" * 12
    assert event["masks"][0]["class_labels"] == {"1": "cat"}
    assert (event["classes"], event["grouping"]) == ([{"id": 1, "name": "cat"}], 2)
    assert (copy["caption"], "files" in copy) == ("other", False)


def test_caps(spool, capsys):
    run = wandb.init(id="caps")
    run.log({"imgs": [wandb.Image(np.zeros((1, 1), np.uint8))] * 120})
    run.log({"t": wandb.Table(columns=["a"], data=[[i] for i in range(10_005)])})
    with pytest.raises(ValueError, match="512"):
        wandb.Histogram([1, 2], num_bins=513)
    assert len(wandb.Histogram([1, 2], num_bins=512).histogram) == 512
    run.finish()
    assert len(logged(spool, "image")) == 108
    assert {e["count"] for e in logged(spool, "image")} == {108}
    (table,) = logged(spool, "table")
    assert len(table["data"]) == 10_000
    assert "10000 rows" in capsys.readouterr().err


def test_tables(spool):
    run = wandb.init(id="tables")
    table = wandb.Table(columns=["a", "b"], data=[[1, "x"], [np.float32(2.5), None]])
    table.add_data(float("nan"), "y")
    with pytest.raises(ValueError, match="expects 2 columns"):
        table.add_data(1)
    with pytest.raises(TypeError, match="incompatible"):
        table.add_data("text", "y")
    table.add_column("c", [True, False, True])
    assert table.get_column("b") == ["x", None, "y"]
    run.log({"t": table})
    run.log({"img": wandb.Table(columns=["i"], data=[[wandb.Image(np.ones((2, 2), np.uint8))]])})
    run.log({"big": wandb.Table(columns=["i"], data=[["x" * 1000] for _ in range(2000)])})
    mixed = wandb.Table(columns=["a"], data=[[1], ["x"]], allow_mixed_types=True)
    assert mixed.data == [[1], ["x"]]
    run.finish()
    first, second, third = logged(spool, "table")
    assert first["columns"] == ["a", "b", "c"]
    assert first["data"] == [[1, "x", True], [2.5, None, False], [{"$float": "NaN"}, "y", True]]
    cell = second["data"][0][0]
    assert (cell["_type"], cell["width"]) == ("image-file", 2)
    assert blob(spool, second["files"][0]["blob"]) == b"\1\1\1\1"
    whole = orjson.loads(blob(spool, third["blob"]))
    assert (whole["columns"], len(whole["data"])) == (["i"], 2000)


NAN = float("nan")


@pytest.mark.parametrize(
    ("rows", "more"),
    [
        ([["x"], [NAN]], {}),
        ([[NAN], ["x"]], {}),
        ([[NAN], [1]], {}),
        ([[True], [NAN]], {}),
        ([[[1.0]], [NAN]], {}),
        ([[NAN]], {"dtype": [str]}),
        ([[NAN], ["x"], [1]], {}),
        ([["x"], [np.float32("nan")]], {}),
        ([["x"], [np.float64("nan")]], {}),
        ([["x"], [float("inf")]], {}),
        ([[NAN]], {"optional": False}),
    ],
)
def test_missing_values_of_pandas_fit_where_they_fit_in_the_real_table(rows, more):
    import wandb as real

    def made(table):
        try:
            return repr(table(columns=["b"], data=rows, **more).data)
        except TypeError:
            return "TypeError"

    assert made(wandb.Table) == made(real.Table)


def test_a_data_frame_with_missing_texts_is_a_table():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["x", None], "number": [1.5, None]})
    assert [[str(cell) for cell in row] for row in wandb.Table(dataframe=frame).data] == [
        ["x", "1.5"],
        ["nan", "nan"],
    ]


def test_sound_video_and_pages(spool, tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"movie")
    (tmp_path / "a.wav").write_bytes(b"sound")
    run = wandb.init(id="av")
    run.log({"v": wandb.Video("v.mp4", caption="cap"), "a": wandb.Audio("a.wav", sample_rate=8000)})
    run.log({"raw": wandb.Audio(np.array([0.0, 1.0, -1.0, 2.0]), sample_rate=4)})
    run.log({"page/x": wandb.Html("<html><p>hi</p></html>")})
    with pytest.raises(NotSupportedError):
        wandb.Video(np.zeros((2, 3, 4, 4)), format="gif")
    with pytest.raises(ValueError, match="formats"):
        wandb.Video("v.avi")
    run.finish()
    (video,) = logged(spool, "video")
    assert (video["encoding"], video["caption"], blob(spool, video["blob"])) == ("mp4", "cap", b"movie")
    sound, raw = logged(spool, "audio")
    assert (sound["sample_rate"], blob(spool, sound["blob"])) == (8000, b"sound")
    samples = np.frombuffer(blob(spool, raw["blob"])[44:], "<i2")
    assert samples.tolist() == [0, 32767, -32767, 32767]
    (page,) = logged(spool, "text")
    assert page["path"].startswith("media/html/page_x_2_")
    assert page["text"].startswith("<html><head><base")


def test_config_of_init(spool, tmp_path):
    import argparse

    given = {"a": 1, "b": 2, "c": 3}
    assert wandb.init(reinit=True, config=given, config_exclude_keys=["a"]).config.as_dict() == {
        "b": 2,
        "c": 3,
    }
    assert wandb.init(reinit=True, config=given, config_include_keys=["a"]).config.as_dict() == {"a": 1}
    assert wandb.init(reinit=True, config=argparse.Namespace(z=1)).config.as_dict() == {"z": 1}
    with pytest.raises(wandb.UsageError):
        wandb.init(reinit=True, config=given, config_include_keys=["a"], config_exclude_keys=["b"])
    (tmp_path / "c.yaml").write_text("lr:\n  value: 0.5\n")
    (tmp_path / "config-defaults.yaml").write_text("lr:\n  value: 1\nseed:\n  value: 7\n")
    run = wandb.init(reinit=True, config="c.yaml", id="yaml")
    assert run.config.as_dict() == {"lr": 0.5, "seed": 7}
    run.config.update({"lr": 0.25}, allow_val_change=True)
    run.finish()
    data = [e.data for e in help_.events(spool, "yaml")]
    assert data[0]["config"] == {"lr": 0.5, "seed": 7}
    assert data[1]["params"] == {"lr": 0.25}
    assert data[1]["overwrite"] is True


def test_environment(spool, tmp_path, monkeypatch):
    values = {
        "WANDB_PROJECT": "proj",
        "WANDB_NAME": "shown",
        "WANDB_RUN_ID": "from-env",
        "WANDB_RUN_GROUP": "grp",
        "WANDB_TAGS": "a,b",
        "WANDB_NOTES": "note",
        "WANDB_JOB_TYPE": "eval",
        "WANDB_DIR": str(tmp_path / "elsewhere"),
        "WANDB_ENTITY": "ent",
        "WANDB_RESUME": "allow",
        "WANDB_MODE": "offline",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    run = wandb.init()
    assert (run.id, run.name, run.project, run.entity, run.group) == (
        "from-env",
        "shown",
        "proj",
        "ent",
        "grp",
    )
    assert (run.tags, run.notes, run.job_type) == (("a", "b"), "note", "eval")
    assert run.path == "ent/proj/from-env"
    assert run.dir.startswith(str(tmp_path / "elsewhere" / "wandb"))
    assert os.path.isdir(run.dir)
    run.finish()
    run = wandb.init(
        project="argument", settings=wandb.Settings(project="settings", run_name="of-settings"), id="x"
    )
    assert (run.project, run.name, run.id) == ("argument", "of-settings", "x")
    run.finish()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    before = len(help_.events(spool))
    run = wandb.init()
    assert run.disabled
    wandb.log({"a": 1})
    wandb.finish()
    assert len(help_.events(spool)) == before


def test_caller_mistakes_in_init(spool):
    for wrong in ("a/b", "a b", "", "..", "x" * 129, "é"):
        with pytest.raises(ValueError, match="run id"):
            wandb.init(id=wrong)
        with pytest.raises(wandb.UsageError):
            wandb.init(id=wrong)
    for more in (
        {"mode": "wrong"},
        {"resume": "sometimes"},
        {"reinit": "no"},
        {"project": "a/b"},
        {"project": "p" * 129},
    ):
        with pytest.raises(wandb.UsageError):
            wandb.init(**more)
    with pytest.raises(ValueError, match="Tag"):
        wandb.init(tags=["x" * 65])
    assert wandb.run is None
    assert not spool.exists()


def test_resume_goes_on_after_the_last_step(spool):
    script = """
run = wandb.init(id="again", resume="allow")
note([run.resumed, run.starting_step, run.step])
run.log({"a": 1}, step=41 if not run.resumed else None)
"""
    for number in range(3):
        folder = spool.parent / str(number)
        help_.ended(help_.start(folder, "ours", script, SPOOLAGENT_SPOOL=str(spool)))
    answers = [help_.seen(spool.parent / str(n))[0] for n in range(3)]
    assert answers == [[False, 0, 0], [True, 42, 42], [True, 43, 43]]
    made = [
        (b.stream.attempt, [e.step for e in b.events if e.type == "metrics"]) for b in help_.batches(spool)
    ]
    assert sorted(made) == [(1, [41]), (2, [42]), (3, [43])]
    with pytest.raises(wandb.UsageError, match="never"):
        wandb.init(id="again", resume="never")


def test_same_id_again_in_one_process_goes_on(spool):
    wandb.init(id="same").log({"a": 1}, step=5)
    wandb.finish()
    run = wandb.init(id="same")
    assert (run.resumed, run.step) == (True, 6) or run.step == 5
    run.log({"a": 2})
    run.finish()
    assert len(logged(spool, "metrics")) == 2


@pytest.mark.parametrize(
    ("script", "code", "status"),
    [
        ("wandb.init(id='e'); sys.exit(3)", 3, ("failed", 3)),
        ("wandb.init(id='e'); 1 / 0", 1, ("failed", 1)),
        ("wandb.init(id='e'); wandb.log({'a': 1})", 0, ("finished", 0)),
        ("with wandb.init(id='e'):\n    raise ValueError('x')", 1, ("failed", 1)),
        ("wandb.init(id='e'); wandb.finish(exit_code=2)", 0, ("failed", 2)),
    ],
)
def test_how_a_run_ends(tmp_path, script, code, status):
    help_.ended(help_.start(tmp_path, "ours", script + "\n"), code)
    last = help_.events(tmp_path / "spool", "e")[-1]
    assert (last.type, last.data["status"], last.data["exit_code"]) == ("run_end", *status)


def test_forked_child_logs_to_a_stream_of_its_own(spool):
    run = wandb.init(id="fork")
    run.log({"a": 1})
    child = os.fork()
    if child == 0:
        wandb.log({"b": 2})
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    run.log({"c": 3})
    run.finish()
    made = {
        b.stream.role: [e.data["metrics"] for e in b.events if e.type == "metrics"]
        for b in help_.batches(spool)
    }
    assert made == {"main": [{"a": 1}, {"c": 3}], "aux": [{"b": 2}]}


def test_threads_number_their_rows_without_gaps(spool):
    import threading

    run = wandb.init(id="threads")

    def work(name):
        for i in range(200):
            wandb.log({name: i} if i % 3 else {name: i, "s": "x"})

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.finish()
    assert [e["step"] for e in logged(spool, "metrics")] == list(range(800))


def test_a_second_run_beside_the_one_of_the_environment(spool, monkeypatch):
    monkeypatch.setenv("SPOOLAGENT_RUN", "from-env")
    first = wandb.init(config={"a": 1})
    second = wandb.init(reinit="create_new", config={"a": 2})
    assert first.id == "from-env"
    assert second.id != first.id
    second.log({"x": 1})
    second.finish()
    assert wandb.run is first
    first.finish()
    assert [e.type for e in help_.events(spool, "from-env")] == ["run_start", "run_end"]


def test_files(spool, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_text("one")
    (tmp_path / "out" / "b.txt").write_text("two")
    run = wandb.init(id="files")
    saved = run.save("out/*.txt")
    assert saved == [os.path.join(run.dir, "out", name) for name in ("a.txt", "b.txt")]
    assert Path(saved[0]).read_text() == "one"
    run.save(str(tmp_path / "out" / "b.txt"), policy="end")
    with pytest.raises(ValueError, match="policies"):
        run.save("out/a.txt", policy="never")
    (tmp_path / "out" / "a.txt").write_text("one more")
    run.finish()
    listed = [[(f["path"], blob(spool, f["blob"])) for f in e["files"]] for e in logged(spool, "artifact")]
    assert listed[0] == [("out/a.txt", b"one"), ("out/b.txt", b"two")]
    assert sorted(f for more in listed[1:] for f in more) == [
        ("out/a.txt", b"one more"),
        ("out/b.txt", b"two"),
    ]


def test_artifacts(spool, tmp_path):
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "sub" / "x.bin").write_bytes(b"x")
    (tmp_path / "m.pt").write_bytes(b"weights")
    run = wandb.init(id="art")
    artifact = wandb.Artifact("data", type="dataset", metadata={"n": np.int64(3)}, description="d")
    artifact.add_dir("d")
    artifact.add_file("m.pt", name="models/m.pt")
    with artifact.new_file("note.txt") as file:
        file.write("hello")
    with pytest.raises(ValueError, match="twice"):
        artifact.add_file("d/sub/x.bin", name="models/m.pt")
    with pytest.raises(ValueError, match="inside"):
        artifact.add_file("m.pt", name="../m.pt")
    assert wandb.log_artifact(artifact, aliases=["best"]) is artifact
    with pytest.raises(ValueError, match="new one"):
        artifact.add_file("m.pt")
    run.log_artifact("m.pt", name="weights", type="model")
    run.log_model("m.pt", name="net")
    for wrong in ("a b", "", "..", "x/y"):
        with pytest.raises(ValueError, match="Artifact name"):
            wandb.Artifact(wrong, type="t")
    with pytest.raises(NotSupportedError):
        artifact.download()
    run.finish()
    first, second = logged(spool, "artifact")
    assert {f["path"]: blob(spool, f["blob"]) for f in first["files"]} == {
        "sub/x.bin": b"x",
        "models/m.pt": b"weights",
        "note.txt": b"hello",
    }
    assert (first["name"], first["kind"], first["aliases"]) == ("data", "dataset", ["best", "latest"])
    assert first["metadata"] == {"n": 3}
    assert (second["name"], second["kind"]) == ("weights", "model")
    assert logged(spool, "model")[0]["files"][0]["path"] == "m.pt"


def test_nested_media_and_figures(spool):
    run = wandb.init(id="nested")
    run.log({"n": {"img": wandb.Image(np.zeros((1, 2), np.uint8)), "x": 1}})
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(1, 1), dpi=20)
    run.log({"fig": figure})
    plt.close(figure)
    run.finish()
    first, second = logged(spool, "image")
    assert (first["key"], first["nested"]) == ("n.img", ["n", "img"])
    assert (second["key"], second["height"], second["width"], second["channels"]) == ("fig", 20, 20, 4)
    (value,) = logged(spool, "custom")
    assert value["data"] == {"key": "n", "value": {"x": 1}}


def test_user_time_and_huge_calls(spool, tmp_path):
    run = wandb.init(id="huge")
    run.log({"a": 1, "_timestamp": 1_600_000_000.5})
    run.log({f"m{i}": i for i in range(100_000)})
    run.log({"l": list(range(200_000))})
    run.finish()
    first, *parts, last = logged(spool, "metrics")
    assert first["at"] == 1_600_000_000_500_000_000
    assert len(parts) > 2
    assert [(p["commit"], p["step"]) for p in parts] == [(False, 1)] * (len(parts) - 1) + [(True, 1)]
    rows = help_.history(help_.replay(spool, "huge", tmp_path / "log"))
    assert [len(row) for row in rows] == [2, 100_001, 2]  # each with its _step
    assert (last["metrics"], last["commit"]) == ({}, True)
    (value,) = logged(spool, "custom")
    assert orjson.loads(blob(spool, value["blob"])) == list(range(200_000))


def test_many_names_without_a_step_are_one_row(spool, tmp_path):
    with SpoolRun(run="native") as run:
        run.log({"a": 1.0})
        run.log({f"m{i}": i for i in range(100_000)})
        run.log({"a": 2.0})
    rows = help_.history(help_.replay(spool, "native", tmp_path / "log"))
    assert [len(row) for row in rows] == [2, 100_001, 2]


def test_a_bad_disk_never_raises(spool, capsys):
    def refuse(op, path):
        if str(spool) in str(path) or "/wandb/" in str(path):
            raise OSError(28, "No space left on device", str(path))

    set_fault(refuse)
    try:
        run = wandb.init(id="full", config={"a": 1})
        run.log({"a": 1, "s": "x", "img": wandb.Image(np.zeros((2, 2), np.uint8))})
        run.summary["best"] = 1
        run.config.update({"b": 2})
        run.log_artifact(__file__, name="me", type="code")
        run.name = "n"
        run.save(__file__)
        assert os.path.isdir(run.dir)
        run.finish()
    finally:
        set_fault(None)
    assert "cannot write to the spool" in capsys.readouterr().err


def test_unwritable_working_directory(spool, tmp_path):
    (tmp_path / "flat").write_text("a file, no directory")
    run = wandb.init(id="ro", dir=str(tmp_path / "flat"))
    assert os.path.isdir(run.dir)
    assert not run.dir.startswith(str(tmp_path / "flat"))
    run.finish()


def test_import_is_light():
    script = (
        "import sys, spoolagent.writers.wandb\n"
        "heavy = {'wandb', 'numpy', 'PIL', 'torch', 'logging', 'tempfile', 'socket', 'subprocess', 'yaml', 'mlflow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"


def test_the_run_can_be_used_by_name(spool):
    assert wandb.run is None
    run = wandb.init(id="follow")
    assert wandb.run is run
    assert isinstance(run, Run)
    wandb.config.update({"x": 1})
    wandb.log({"a": 2})
    assert (wandb.config.x, wandb.summary["a"]) == (1, 2)
    wandb.finish()
    assert wandb.run is None


SUMMARY_MEDIA = """
import numpy as np
run = wandb.init(project="p", id="s1")
run.log({"v": 1})
run.summary["im"] = wandb.Image(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), caption="c")
run.summary.update({"t": wandb.Table(columns=["a"], data=[[1], [2]]), "best": 0.5})
run.log({"v": 2})
note(sorted(k for k in run.summary.keys() if not k.startswith("_")))
run.finish()
"""


def test_media_in_the_summary_keep_their_files(tmp_path):
    for which in ("real", "ours"):
        help_.ended(help_.start(tmp_path / which, which, SUMMARY_MEDIA))
    assert help_.seen(tmp_path / "ours") == help_.seen(tmp_path / "real")
    real = next((tmp_path / "real").rglob("run-s1.wandb"))
    ours = help_.replay(tmp_path / "ours" / "spool", "s1", tmp_path / "out")
    theirs, mine = (help_.merged(log, "summary") for log in (real, ours))
    files = ("path", "sha256", "size", "artifact_path", "_latest_artifact_path", "log_mode")
    kept = [{k: v for k, v in held.items() if k[-1] not in files} for held in (mine, theirs)]
    assert help_.differences(*kept) == {}
    for key in ("im", "t"):
        same_content(ours.parent / "files" / mine[key, "path"], real.parent / "files" / theirs[key, "path"])


ANNOTATED = """
def train(run: wandb.sdk.wandb_run.Run, table: wandb.data_types.Table, lib: "wandb.sdk.lib.RunDisabled | None" = None):
    return isinstance(run, wandb.sdk.wandb_run.Run)
note(train(wandb.init(project="p", id="a1"), None))
wandb.finish()
"""


def test_annotations_by_the_names_of_the_sdk(tmp_path):
    for which in ("real", "ours"):
        help_.ended(help_.start(tmp_path / which, which, ANNOTATED))
        assert help_.seen(tmp_path / which) == [True]
