"""Every writer API through every receiver, all receivers at once: values, steps, times, files and states are equal.

Each writer's five runs are made by real scripts and delivered by one `spoolagent replay` to TensorBoard, MLflow (a
real `mlflow server`), W&B offline and JSON lines, each of which has a worker process of its own.
"""

import io
import json
import math
from pathlib import Path

import pytest
from acceptance_help import (
    assert_delivered_once,
    comparable,
    json_lines,
    last_states,
    mlflow_file,
    mlflow_files,
    mlflow_points,
    mlflow_run,
    mlflow_value,
    run,
    scalars,
    script,
    site_env,
    spool_streams,
    tensorboard_runs,
    tensorboard_state,
    texts,
    to,
    wandb_exits,
    wandb_logs,
)
from mlflow_help import client_of
from pair_scripts import ENDS, SCRIPTS
from tb_help import event_files, f32
from wandb_help import config_of, rows_of, summary_of

from spoolagent.receivers.mlflow_names import escape, unescape

NAN, INF = float("nan"), float("inf")
CALLS = [
    ({"loss": 0.5}, 0, None),
    ({"loss": 0.25, "acc/train": 1 / 3}, 1, None),
    ({"loss": 0.125}, 1, None),  # the same step again
    ({"loss": 1e-8}, 0, None),  # and back
    ({"loss": NAN}, 2, None),
    ({"loss": INF}, 3, None),
    ({"loss": -INF}, 4, None),
    ({"free": 2 / 3}, None, None),
    ({"free": 0.75}, None, None),
    ({"own time": 3.5}, 50, 1_600_000_000.125),
    ({"big": 1e300, "count": 7}, 1_000_000, None),
]
ODD = [
    ({name: 0.1 + i}, 1_000_001 + i, None) for i, name in enumerate(("mAP@0.5", "loss%", "a//b", "Größe λ"))
]
PIXELS = bytes(10 * i % 256 for i in range(24))
"""2 x 4 pixels, as the scripts log them."""
WRITERS = list(SCRIPTS)
HOWS = [
    pytest.param(writer, how) for writer in WRITERS for how in ENDS if (writer, how) != ("nvflare", "with")
]


class Replayed:
    """One writer's runs, as they lie in the spool, and in the four targets."""

    def __init__(self, writer, folder, server):
        self.writer, self.site = writer, f"pairs-{writer}"
        self.spool, self.tb, self.wandb = folder / "spool", folder / "tb", folder / "wandb-logs"
        self.jsonl = folder / "events.jsonl"
        self.hows = [how for how in ENDS if (writer, how) != ("nvflare", "with")]
        self.codes = self._train(folder)
        self.client = client_of(server.uri)
        receivers = [f"tensorboard:{self.tb}", f"mlflow:{server.uri}"]
        receivers += [f"wandb:offline:{self.wandb}", f"jsonl:{self.jsonl}"]
        self.done = run("replay", self.spool, *to(*receivers), cwd=folder)

    def _train(self, folder):
        started = {}
        for how in self.hows:
            place = folder / how
            place.mkdir()
            calls = (CALLS if self.writer == "mlflow" else CALLS + ODD) if how == "finished" else CALLS[:3]
            code = SCRIPTS[self.writer]
            env = site_env(self.spool, self.site, how)
            started[how] = script(code, json.dumps(calls), how, cwd=place, env=env)
        return {how: process.wait() for how, process in started.items()}

    def events(self, how="finished"):
        """The events of a run."""
        ((events, _),) = spool_streams(self.spool, self.site, how).values()
        return events

    def of_type(self, kind):
        """The finished run's events of a type."""
        return [event for event in self.events() if event["type"] == kind]

    def points(self):
        """(sub-run, name, value, step, ns) of the finished run."""
        return [
            (
                (event.get("context") or {}).get("subrun", ""),
                name,
                float(value),
                event.get("step"),
                _shown_ns(event),
            )
            for event in self.of_type("metrics")
            for name, value in event["metrics"].items()
        ]

    def shown_points(self):
        """As `points`, with the numbers of W&B's nested values, which other trackers show by their dotted name."""
        nested = [event for event in self.of_type("custom") if event["name"] == "wandb.value"]
        assert [event["data"] for event in nested] == [{"key": "net", "value": {"depth": 2}}] * len(nested)
        return self.points() + [("", "net.depth", 2.0, event["step"], _shown_ns(event)) for event in nested]

    def wandb_id(self, how="finished"):
        return f"{self.site}--{how}"

    def records(self):
        """The records of the finished run's only W&B log."""
        (log,) = wandb_logs(self.wandb, self.wandb_id())
        return log


def _shown_ns(event):
    return event.get("at") or event["time"]


_made = {}


@pytest.fixture(scope="session")
def replayed(tmp_path_factory, mlflow_server):
    """A function that makes a writer's runs and replays them, once a session."""

    def of(writer):
        if writer not in _made:
            _made[writer] = Replayed(writer, tmp_path_factory.mktemp(writer), mlflow_server)
        return _made[writer]

    return of


@pytest.fixture(params=WRITERS)
def case(request, replayed):
    return replayed(request.param)


# -- what was logged -------------------------------------------------------------------------------------------------


def test_the_spool_holds_what_was_logged(case):
    """The scripts' own numbers, under the rules of the API that logged them, each within its process's life."""
    assert case.codes == {how: ENDS[how][0] for how in case.hows}
    calls = CALLS if case.writer == "mlflow" else CALLS + ODD
    wanted = [(name, float(value), step) for metrics, step, _ in calls for name, value in metrics.items()]
    if case.writer == "mlflow":
        wanted = [(name, value, step or 0) for name, value, step in wanted]
    if case.writer == "wandb":  # a call without a step completes the current row: 4, then the next one
        free = {2 / 3: 4, 0.75: 5}
        wanted = [(name, value, free.get(value, step)) for name, value, step in wanted]
    got = [(name, value, step) for subrun, name, value, step, _ in case.points() if not subrun]
    assert [tuple(map(str, point)) for point in got] == [tuple(map(str, point)) for point in wanted]
    own = [ns for _, name, _, _, ns in case.points() if name == "own time"]
    assert own == [1_600_000_000_125_000_000]
    begun = case.events()[0]["time"]
    assert all(ns == own[0] or begun <= ns <= case.events()[-1]["time"] for *_, ns in case.points())
    heads = {(subrun, value) for subrun, name, value, _, _ in case.points() if name == "heads"}
    assert heads == (
        {("heads_a", 1.5), ("heads_b", 2.5)} if case.writer in ("tensorboard", "nvflare") else set()
    )


def test_one_replay_delivers_to_all(case):
    assert case.done.returncode == 0, case.done.stderr
    assert "Traceback" not in case.done.stderr
    total = sum(len(case.events(how)) for how in case.hows)
    for kind in ("tensorboard", "mlflow", "wandb", "jsonl"):
        lines = [line for line in case.done.stderr.splitlines() if line.startswith(f"spoolagent: {kind}:")]
        assert lines[-1].endswith(f": {total} events delivered"), lines
    status = run("status", case.spool, "--json", cwd=case.spool)
    for receiver in json.loads(status.stdout)["receivers"]:
        assert (receiver["delivered"], receiver["pending"]) == (total, 0)


# -- each tracker ----------------------------------------------------------------------------------------------------


def test_jsonl_has_every_event_once(case):
    lines = json_lines(case.jsonl)
    for how in case.hows:
        assert_delivered_once(lines, spool_streams(case.spool, case.site, how), case.site, how)
    assert last_states(lines) == {(case.site, how): ENDS[how][1:] for how in case.hows}


def test_tensorboard_has_the_points(case):
    runs = tensorboard_runs(case.tb)
    got = []
    for folder, accumulator in runs.items():
        if folder.startswith(f"{case.site}/finished"):
            subrun = folder.removeprefix(f"{case.site}/finished").lstrip("/")
            got += [(subrun, *point) for point in scalars(accumulator)]
            assert len(event_files(case.tb / folder)) == 1
    wanted = [
        (s, name, _float32(value), step or 0, ns / 10**9) for s, name, value, step, ns in case.shown_points()
    ]
    assert comparable(got) == comparable(wanted)
    for name in ("loss", "free"):  # within a tag in the order of the calls
        mine = runs[f"{case.site}/finished"].Scalars(name)
        assert [p.step for p in mine] == [
            step or 0 for s, n, _, step, _ in case.points() if (s, n) == ("", name)
        ]


def _float32(value):
    return f32(value) if abs(value) < 3.5e38 or not math.isfinite(value) else math.copysign(INF, value)


def test_mlflow_has_the_points(case):
    found = mlflow_run(case.client, case.site, "finished")
    wanted = [
        (escape(f"{subrun}/{name}" if subrun else name), mlflow_value(value), step or 0, ns // 1_000_000)
        for subrun, name, value, step, ns in case.shown_points()
    ]
    assert comparable(mlflow_points(case.client, found)) == comparable(wanted)
    names = {f"{subrun}/{name}" if subrun else name for subrun, name, *_ in case.shown_points()}
    assert {unescape(key) for key in found.data.metrics} == names
    assert found.info.start_time == case.events()[0]["time"] // 1_000_000
    assert found.info.end_time == case.events()[-1]["time"] // 1_000_000


def test_wandb_has_the_rows(case):
    rows = [{k: v for k, v in _flat(row).items() if _is_number(v)} for row in rows_of(case.records())]
    rows = [row for row in rows if set(row) - {"_step", "_timestamp", "_runtime", "global_step"}]
    start_ns = case.events()[0]["time"]
    wanted = []
    for row in _expected_rows(case):
        times = {"_timestamp": row["ns"] / 10**9, "_runtime": (row["ns"] - start_ns) / 10**9}
        wanted.append({**row["values"], **times, "_step": row["_step"], **row["axis"]})
    assert [_texts(row) for row in rows] == [_texts(row) for row in wanted]


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _flat(row):
    """Numbers that W&B keeps nested (`a.b` from {"a": {"b": 1}}) are none of these tests' metrics."""
    return {k: v for k, v in row.items() if not isinstance(v, dict)}


def _texts(row):
    return {name: repr(float(value)) for name, value in row.items()}


def _expected_rows(case):
    """The rows by W&B's rules, told anew: equal steps share a row, steps rise, the user's own is a column beside."""
    rows, current, last = [], None, -1
    for event in case.of_type("metrics"):
        step, subrun = event.get("step"), (event.get("context") or {}).get("subrun")
        values = {f"{subrun}/{k}" if subrun else k: float(v) for k, v in event["metrics"].items()}
        joins = current is not None and step is not None and step == current["step"]
        if not joins or (case.writer != "wandb" and values.keys() & current["values"].keys()):
            current = {"step": step, "values": {}}
            rows.append(current)
        current["values"] |= values
        current["ns"] = _shown_ns(event)
        if event.get("commit", step is None):
            current = None
    for row in rows:
        row["_step"] = last = row["step"] if row["step"] is not None and row["step"] > last else last + 1
        shown = row["step"] is not None and (case.writer != "wandb" or row["step"] != last)
        row["axis"] = {"global_step": row["step"]} if shown else {}
    return [row for row in rows if row["values"]]


# -- params, tags, config, summary -------------------------------------------------------------------------------------


def test_params_and_tags(case):
    found = mlflow_run(case.client, case.site, "finished")
    config = config_of(case.records())
    own_tags = {k: v for k, v in found.data.tags.items() if not k.startswith(("mlflow.", "spoolagent."))}
    if case.writer == "tensorboard":
        assert found.data.params == {}
        assert own_tags == {}
    elif case.writer == "wandb":
        assert found.data.params == {"lr": "0.1", "net.layers": "[3, 4]"}
        assert own_tags == {"blue": "", "config.lr": "0.2", "summary.best": "0.125"}
        assert {k: v for k, v in config.items() if k != "_wandb"} == {"lr": 0.2, "net": {"layers": [3, 4]}}
        assert summary_of(case.records())["best"] == 0.125
    else:
        assert found.data.params == {"lr": "0.1", "layers": "[3, 4]"}
        assert own_tags == {"team": "blue", "phase": "two"}
        layers = (
            "[3, 4]" if case.writer == "mlflow" else [3, 4]
        )  # MLflow's API makes texts of all but numbers
        assert {name: config[name] for name in ("lr", "layers")} == {"lr": 0.1, "layers": layers}
        assert {k: v for k, v in config["tags"].items() if not k.startswith("mlflow.")} == own_tags


# -- texts, images, files ------------------------------------------------------------------------------------------------


def _pixels(data):
    from PIL import Image

    image = Image.open(io.BytesIO(data))
    return image.size, image.convert("RGB").tobytes()


def test_text_and_image_in_tensorboard(case):
    found = tensorboard_runs(case.tb)[f"{case.site}/finished"]
    (tag,) = found.Tags()["images"]
    (picture,) = found.Images(tag)
    (event,) = case.of_type("image")
    assert _pixels(picture.encoded_image_string) == ((4, 2), PIXELS)
    assert (tag, picture.step) == ("pic", 3_000_001)
    assert picture.wall_time == _shown_ns(event) / 10**9
    assert [text for found_texts in texts(found).values() for text in found_texts] == ["a *note*"]


def test_text_image_and_artifact_in_mlflow(case):
    found = mlflow_run(case.client, case.site, "finished")
    files = mlflow_files(case.client, found)
    (picture,) = [path for path in files if path.endswith(".png")]
    (note,) = [path for path in files if "note" in path]
    (event,) = case.of_type("image")
    assert _pixels(mlflow_file(case.client, found, picture)) == ((4, 2), PIXELS)
    assert picture.startswith(f"images/pic+step+3000001+timestamp+{_shown_ns(event) // 1_000_000}+")
    assert mlflow_file(case.client, found, note) == b"a *note*"
    cards = [path for path in files if path.endswith("card.txt")]
    assert len(cards) == (1 if case.writer in ("mlflow", "wandb", "native") else 0)
    for card in cards:
        assert mlflow_file(case.client, found, card) == b"a card"


def test_text_image_and_artifact_in_wandb(case):
    (folder,) = case.wandb.glob(f"offline-run-*-{case.wandb_id()}")
    rows = rows_of(case.records())
    (picture,) = [row["pic"] for row in rows if "pic" in row]
    assert (picture["_type"], picture["width"], picture["height"]) == ("image-file", 4, 2)
    assert _pixels((folder / "files" / picture["path"]).read_bytes()) == ((4, 2), PIXELS)
    if case.writer in ("mlflow", "nvflare"):  # a text with a path is a file of the run
        assert (folder / "files/notes/note.txt").read_bytes() == b"a *note*"
    else:
        assert [row["note"] for row in rows if "note" in row] == ["a *note*"]
    cards = list(Path(folder, "files").rglob("card.txt"))
    assert [card.read_bytes() for card in cards] == ([b"a card"] if case.of_type("artifact") else [])


def test_what_tensorboard_cannot_show_is_counted(case):
    """Nothing is dropped in silence."""
    done = run("status", case.spool, "--json", cwd=case.spool)
    found = {r["target"].split(":")[0]: r for r in json.loads(done.stdout)["receivers"]}
    events = [event for how in case.hows for event in case.events(how)]
    kinds = ("param", "tag", "artifact", "summary", "define_metric")
    wanted = {kind: sum(event["type"] == kind for event in events) for kind in kinds}
    assert found["tensorboard"]["skipped"] == {kind: count for kind, count in wanted.items() if count}
    assert found["jsonl"]["skipped"] == {}


# -- states --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("writer", "how"), HOWS)
def test_run_states(writer, how, replayed):
    """Finished; failed after an exception, in and out of the context manager, and by sys.exit; killed."""
    case = replayed(writer)
    _, status, code = ENDS[how]
    found = mlflow_run(case.client, case.site, how)
    assert (found.info.status, found.info.lifecycle_stage) == (status.upper(), "active")
    assert found.info.end_time == case.events(how)[-1]["time"] // 1_000_000
    assert wandb_exits(case.wandb, case.wandb_id(how)) == [255 if status == "killed" else code]
    assert tensorboard_state(case.tb, case.site, how) == (None if status == "finished" else status)
    (_, end) = next(iter(spool_streams(case.spool, case.site, how).values()))
    assert end == ("dead" if status == "killed" else "closed")
