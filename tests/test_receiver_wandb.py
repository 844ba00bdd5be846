"""`wandb:offline`: what its logs hold, and that crashes at any byte change nothing."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from report_facts import add
from sizes import EVERY_BYTE
from wandb_help import comparable, config_of, kinds_of, one_of, read_log, read_records, rows_of, summary_of

from spoolagent.contract import RunEnd
from spoolagent.errors import UsageError
from spoolagent.receivers import appendfile, wandb_media
from spoolagent.receivers.pixels import encode_png
from spoolagent.receivers.wandb import open_wandb
from spoolagent.testing import MemoryState, make_batch, make_stream

START = 1_700_000_000_000_000_000
RUN_START = ("run_start", {"api": "native", "project": "digits", "host": "node7", "pid": 1, "attempt": 1})


class Target:
    """A receiver with its state, and what the worker does around it."""

    def __init__(self, folder, options=None, state=None):
        self.folder = Path(folder)
        self.state = state or MemoryState()
        self.receiver = open_wandb(f"offline:{folder}", options or {})
        self.receiver.open(self.state)
        self.seqs = {}

    def deliver(self, stream, *events, blobs=""):
        first = self.seqs.get(stream.key, 1)
        self.seqs[stream.key] = first + len(events)
        return self.give(make_batch(stream, *events, first_seq=first, blobs=str(blobs)))

    def give(self, batch):
        outcome = self.receiver.deliver(batch)
        self.state.commit()
        return outcome

    def end(self, status="finished", exit_code=None, site="site-1", run="run-1", seconds=60):
        self.receiver.set_status(
            RunEnd(site=site, run=run, status=status, time_ns=START + seconds * 10**9, exit_code=exit_code)
        )
        self.state.commit()

    def logs(self):
        return sorted(self.folder.rglob("*.wandb"))

    def files(self):
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def target(tmp_path):
    return Target(tmp_path / "wandb")


def metrics(step=None, **values):
    return ("metrics", {"metrics": values, **({} if step is None else {"step": step})})


def put_blob(folder, data):
    digest = hashlib.sha256(data).hexdigest()
    place = Path(folder) / digest[:2]
    place.mkdir(parents=True, exist_ok=True)
    (place / digest).write_bytes(data)
    return {"sha256": digest, "size": len(data)}


def test_a_run_from_start_to_end(target):
    stream = make_stream()
    start = {
        "api": "wandb",
        "project": "digits",
        "entity": "team",
        "name": "baseline",
        "group": "sweep",
        "job_type": "train",
        "notes": "first",
        "labels": ["x", "y"],
        "tags": {"owner": "me"},
        "config": {"lr": 0.1, "net": {"depth": 3}, "big": {"$int": str(2**70)}, "nan": {"$float": "NaN"}},
        "host": "node7",
        "pid": 1,
        "attempt": 1,
    }
    target.deliver(
        stream, ("run_start", start), metrics(loss=0.5, n="NaN", up="Infinity"), metrics(loss=0.25)
    )
    target.deliver(stream, ("run_end", {"status": "failed", "exit_code": 3}))
    target.end("failed", 3)
    (log,) = target.logs()
    assert str(log.relative_to(target.folder)) == (
        "offline-run-20231114_221320-site-1--run-1/run-site-1--run-1.wandb"
    )
    records = read_records(log)
    assert kinds_of(records) == ["header", "run", "history", "history", "summary", "summary", "exit"]
    assert [record.num for record in records] == list(range(1, 8))
    run = one_of(records, "run")
    assert (run.run_id, run.entity, run.project, run.display_name) == (
        "site-1--run-1",
        "team",
        "digits",
        "baseline",
    )
    assert (run.run_group, run.job_type, run.notes, list(run.tags)) == ("sweep", "train", "first", ["x", "y"])
    assert (run.host, run.resume, run.start_time.ToNanoseconds()) == ("node7", False, START + 1_000_000)
    assert comparable(config_of(records)) == {
        "lr": 0.1,
        "net": {"depth": 3},
        "big": 2**70,
        "nan": "NaN",
        "tags": {"owner": "me"},
    }
    assert comparable(rows_of(records)) == [
        {
            "loss": 0.5,
            "n": "NaN",
            "up": float("inf"),
            "_timestamp": 1_700_000_000.002,
            "_runtime": 0.001,
            "_step": 0,
        },
        {"loss": 0.25, "_timestamp": 1_700_000_000.003, "_runtime": 0.002, "_step": 1},
    ]
    assert comparable(summary_of(records)) == {
        "loss": 0.25,
        "n": "NaN",
        "up": float("inf"),
        "_timestamp": 1_700_000_000.003,
        "_runtime": 59,
        "_step": 1,
        "_wandb": {"runtime": 59},
    }
    end = one_of(records, "exit")
    assert (end.exit_code, end.runtime) == (3, 59)


@pytest.mark.parametrize(
    ("status", "given", "code"),
    [("finished", None, 0), ("failed", None, 1), ("failed", 7, 7), ("killed", None, 255)],
)
def test_exit_codes(target, status, given, code):
    target.deliver(make_stream(), RUN_START)
    target.end("running")
    assert "exit" not in kinds_of(read_records(target.logs()[0]))
    target.end(status, given)
    target.end(status, given)
    assert one_of(read_records(target.logs()[0]), "exit").exit_code == code


def test_sites_with_the_same_run_lie_side_by_side(target):
    start = ("run_start", {"api": "nvflare", "project": "fed", "host": "h", "pid": 1, "attempt": 1})
    for site in ("hospital-a", "hospital-b"):
        target.deliver(make_stream(site, "job"), start, metrics(0, site_metric=1))
        target.end(site=site, run="job")
    runs = [one_of(read_records(log), "run") for log in target.logs()]
    assert [run.run_id for run in runs] == ["hospital-a--job", "hospital-b--job"]
    assert [run.display_name for run in runs] == ["hospital-a-job", "hospital-b-job"]
    assert {(run.run_group, run.project) for run in runs} == {("job", "fed")}


def test_two_sites_never_share_an_id(tmp_path):
    target = Target(tmp_path, {"run_id": "{run}"})
    target.deliver(make_stream("a", "r"), RUN_START, metrics(0, m=1))
    outcome = target.deliver(make_stream("b", "r"), RUN_START, metrics(0, m=2))
    assert sorted(outcome.dead) == [1, 2]
    assert "{site}" in outcome.dead[1]
    target.end(site="b", run="r")
    (log,) = target.logs()
    assert one_of(read_records(log), "run").run_id == "r"
    assert [row["m"] for row in rows_of(read_records(log))] == []
    target.end(site="a", run="r")
    assert [row["m"] for row in rows_of(read_records(log))] == [1]


def test_templates_and_wrong_options(tmp_path):
    options = {
        "project": "P",
        "group": "{project}/{site}",
        "name": "{name}!",
        "run_id": "{run}-{site}",
        "job_type": "j",
    }
    target = Target(tmp_path, options)
    target.deliver(make_stream(), RUN_START)
    run = one_of(read_records(target.logs()[0]), "run")
    assert (run.project, run.run_group, run.display_name) == ("P", "P/site-1", "site-1-run-1!")
    assert (run.run_id, run.job_type) == ("run-1-site-1", "j")
    for wrong, words in (
        ({"projekt": "x"}, "did you mean 'project'"),
        ({"run_id": "{site}"}, "must hold {run}"),
        ({"name": "{runs}"}, "it may hold"),
        ({"group": 3}, "is a text"),
    ):
        with pytest.raises(UsageError, match=words.replace("{", r"\{")):
            open_wandb("offline:/x", wrong)
    for wrong_target in ("", "offline", "offline:", "cloud"):
        with pytest.raises(UsageError, match="write wandb:offline:DIR"):
            open_wandb(wrong_target, {})
    assert (
        open_wandb(f"offline:{tmp_path}/a/../b", {}).identity
        == f"wandb:offline:{os.path.realpath(tmp_path)}/b"
    )


def test_steps_that_fall_are_kept_and_drawn_against_the_users_step(target):
    stream = make_stream()
    target.deliver(stream, RUN_START, metrics(5, train=1.0), metrics(1, val=2.0), metrics(6, train=3.0))
    target.end()
    records = read_records(target.logs()[0])
    assert [
        (row["_step"], row["global_step"], row.get("train"), row.get("val")) for row in rows_of(records)
    ] == [
        (5, 5, 1.0, None),
        (6, 1, None, 2.0),
        (7, 6, 3.0, None),
    ]
    defined = [record.metric for record in records if record.WhichOneof("record_type") == "metric"]
    assert [(m.name, m.step_metric, m.options.hidden) for m in defined] == [
        ("global_step", "", True),
        ("val", "global_step", False),
        ("train", "global_step", False),
    ]


def test_contexts_are_prefixes_and_ranks_a_column(target):
    target.deliver(make_stream(writer="w0"), ("run_start", {**RUN_START[1], "rank": 0}), metrics(1, a=1))
    target.deliver(
        make_stream(writer="w1"),
        ("run_start", {**RUN_START[1], "rank": 1}),
        ("metrics", {"metrics": {"a": 2}, "step": 1, "context": {"subrun": "train"}}),
    )
    target.end()
    rows = rows_of(read_records(target.logs()[0]))
    assert [{k: v for k, v in row.items() if k in ("a", "train/a", "rank", "_step")} for row in rows] == [
        {"a": 1, "_step": 1},
        {"train/a": 2, "rank": 1, "_step": 2},
    ]


def test_media_files_and_values(target, tmp_path):
    blobs = tmp_path / "blobs"
    pixels = bytes(range(12))
    png = encode_png(bytes(6), 2, 3, 1)
    stream = make_stream()
    outcome = target.deliver(
        stream,
        RUN_START,
        metrics(4, loss=1.0),
        (
            "image",
            {
                "key": "train/im",
                "step": 4,
                "blob": put_blob(blobs, pixels),
                "encoding": "raw",
                "height": 2,
                "width": 2,
                "channels": 3,
                "caption": "c",
            },
        ),
        (
            "image",
            {
                "key": "list",
                "step": 4,
                "blob": put_blob(blobs, png),
                "encoding": "png",
                "index": 0,
                "count": 2,
            },
        ),
        (
            "image",
            {
                "key": "list",
                "step": 4,
                "blob": put_blob(blobs, png),
                "encoding": "png",
                "index": 1,
                "count": 2,
                "caption": "two",
            },
        ),
        (
            "histogram",
            {
                "key": "h",
                "step": 4,
                "min": 0,
                "max": 3,
                "num": 3,
                "sum": 4,
                "sum_squares": 6,
                "left": 0,
                "limits": [1, 1.7976931348623157e308],
                "counts": [1, 2],
            },
        ),
        ("audio", {"key": "snd", "step": 4, "blob": put_blob(blobs, b"wav"), "encoding": "wav"}),
        (
            "table",
            {"key": "t", "step": 4, "columns": ["a", "b"], "data": [[1, {"$float": "NaN"}], ["x", None]]},
        ),
        ("text", {"key": "words", "step": 4, "text": "héllo"}),
        ("text", {"key": "notes.md", "path": "doc/notes.md", "text": "# hi"}),
        ("artifact", {"path": "out", "files": [{"path": "a/b.bin", "blob": put_blob(blobs, b"\0\1")}]}),
        ("model", {"name": "net", "files": [{"path": "w.pt", "blob": put_blob(blobs, b"weights")}]}),
        ("artifact", {"files": [{"path": "config.yaml", "blob": put_blob(blobs, b"mine")}]}),
        blobs=blobs,
    )
    assert outcome.dead == {}
    assert outcome.skipped == {}
    target.end()
    (log,) = target.logs()
    records = read_records(log)
    (row,) = rows_of(records)
    files = log.parent / "files"
    image = encode_png(pixels, 2, 2, 3)
    digest = hashlib.sha256(image).hexdigest()
    assert row["train/im"] == {
        "_type": "image-file", "path": f"media/images/train/im_4_{digest[:20]}.png", "sha256": digest,
        "size": len(image), "caption": "c", "format": "png", "height": 2, "width": 2,
    }  # fmt: skip
    assert (files / row["train/im"]["path"]).read_bytes() == image
    listed = f"media/images/list_4_{hashlib.sha256(png).hexdigest()[:20]}.png"
    assert row["list"] == {
        "_type": "images/separated", "width": 3, "height": 2, "format": "png", "count": 2,
        "filenames": [listed, listed], "captions": ["", "two"],
    }  # fmt: skip
    assert row["h"] == {"_type": "histogram", "values": [1, 2], "bins": [0, 1, 3]}
    assert (row["snd"]["_type"], (files / row["snd"]["path"]).read_bytes()) == ("audio-file", b"wav")
    assert (row["t"]["ncols"], row["t"]["nrows"]) == (2, 2)
    assert json.loads((files / row["t"]["path"]).read_bytes()) == {
        "columns": ["a", "b"],
        "data": [[1, None], ["x", None]],
    }
    assert (row["words"], row["loss"], row["_step"]) == ("héllo", 1.0, 4)
    held = {str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*") if path.is_file()}
    assert held["doc/notes.md"] == b"# hi"
    assert held["out/a/b.bin"] == b"\0\1"
    assert held["artifacts/net/w.pt"] == b"weights"
    assert held["artifacts/config.yaml"] == b"mine"
    named = {item.path for record in records for item in record.files.files}
    assert named == set(held)


def test_boxes_masks_and_pages(target, tmp_path):
    blobs = tmp_path / "blobs"
    boxes = b'{"pred":{"box_data":[{"class_id":1}],"class_labels":{"1":"car"}}}'
    files = [
        {"path": "boxes.json", "blob": put_blob(blobs, boxes)},
        {"path": "masks/1", "blob": put_blob(blobs, bytes(4))},
    ]
    mask = {"name": "gt", "file": "masks/1", "encoding": "raw", "height": 2, "width": 2, "channels": 1}
    image = {
        "key": "im",
        "step": 3,
        "blob": put_blob(blobs, encode_png(bytes(4), 2, 2, 1)),
        "encoding": "png",
    }
    outcome = target.deliver(
        make_stream(),
        RUN_START,
        ("image", {**image, "files": files, "masks": [mask]}),
        ("text", {"key": "page", "step": 3, "path": "media/html/page_3_x.html", "text": "<p>"}),
        ("image", {**image, "files": files[:1], "masks": [mask]}),
        blobs=blobs,
    )
    assert outcome.dead == {4: "boxes or masks of the image: 'masks/1'"}
    target.end()
    (log,) = target.logs()
    (row,) = rows_of(read_records(log))
    (box,), (drawn,) = row["im"]["boxes"].items(), row["im"]["masks"].items()
    assert (box[0], box[1]["_type"], drawn[0], drawn[1]["_type"]) == ("pred", "boxes2D", "gt", "mask")
    held = log.parent / "files"
    assert json.loads((held / box[1]["path"]).read_bytes()) == json.loads(boxes)["pred"]
    assert (held / drawn[1]["path"]).read_bytes() == encode_png(bytes(4), 2, 2, 1)
    assert row["page"] == {
        "_type": "html-file", "path": "media/html/page_3_x.html", "size": 3,
        "sha256": hashlib.sha256(b"<p>").hexdigest(),
    }  # fmt: skip


def test_a_new_name_of_the_run(target):
    target.deliver(
        make_stream(),
        RUN_START,
        ("custom", {"name": "wandb.run", "data": {"name": "better", "labels": ["x"]}}),
        (
            "custom",
            {
                "name": "wandb.value",
                "data": {"key": "n", "value": {"a": {"b": [1]}}},
                "step": 0,
                "commit": False,
            },
        ),
        ("custom", {"name": "somebody.else", "data": {}}),
        metrics(0, m=1),
    )
    target.end("killed")
    target.deliver(make_stream(), metrics(1, m=2))
    target.end()
    first, second = target.logs()
    names = [r.run.display_name for r in read_records(first) if r.HasField("run")]
    assert names == ["better"]
    assert (one_of(read_records(second), "run").display_name, rows_of(read_records(first))[0]["n"]) == (
        "better",
        {"a": {"b": [1]}},
    )


def test_what_cannot_be_applied_is_a_dead_letter_and_the_rest_goes_on(target, tmp_path):
    blobs = tmp_path / "blobs"
    blob = put_blob(blobs, b"x")
    outcome = target.deliver(
        make_stream(),
        RUN_START,
        ("text", {"key": "k", "path": "../out", "text": "t"}),
        ("text", {"key": "k", "path": "a", "text": "t"}),
        ("artifact", {"path": "a", "files": [{"path": "b", "blob": blob}]}),
        ("image", {"key": "k", "blob": {"sha256": "0" * 64, "size": 1}, "encoding": "png"}),
        ("define_metric", {"name": "m", "summary": "median"}),
        ("param", {"params": {"p": {"$new": 1}}}),
        ("rewind", {"step": 3}),
        ("gap", {"dropped": 1, "from": 1, "to": 2, "reason": "full"}),
        ("tb_summary", {"key": "k", "base64": ""}),
        metrics(1, a=1),
        blobs=blobs,
    )
    assert sorted(outcome.dead) == [2, 4, 5, 6, 7]
    assert "ship it" in outcome.dead[5]
    assert outcome.skipped == {"rewind": 1, "gap": 1, "tb_summary": 1}
    target.end()
    assert [row["a"] for row in rows_of(read_records(target.logs()[0]))] == [1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE])
def test_a_blob_that_cannot_be_read(target, tmp_path, monkeypatch, number):
    """A bad sector is the event's trouble; a process without descriptors is nobody's, and passes."""
    blobs = tmp_path / "blobs"
    pixels, picture, page = (put_blob(blobs, data) for data in (bytes(12), b"png", b"<p>"))

    def refuse(path, mode):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(wandb_media, "open", refuse, raising=False)
    events = [
        ("image", {"key": "k", "encoding": "raw", "height": 2, "width": 2, "channels": 3, "blob": pixels}),
        ("image", {"key": "k", "encoding": "png", "blob": picture}),
        ("text", {"key": "k", "path": "media/html/a.html", "blob": page, "encoding": "html"}),
        metrics(1, a=1),
    ]
    if number == errno.EMFILE:
        with pytest.raises(OSError, match="Too many open files"):
            target.deliver(make_stream(), RUN_START, *events, blobs=blobs)
        return
    outcome = target.deliver(make_stream(), RUN_START, *events, blobs=blobs)
    assert {seq: "mend it, then retry the dead letter" in why for seq, why in outcome.dead.items()} == {
        2: True, 3: True, 4: True,
    }  # fmt: skip
    target.end()
    assert [row["a"] for row in rows_of(read_records(target.logs()[0]))] == [1]


def test_a_log_that_was_cut_before_an_end_is_reported_once(target):
    """The end takes the cut log's place with a second log, and what comes after the end a third."""
    stream = make_stream()
    target.deliver(stream, RUN_START, metrics(1, a=1))

    class Stop(BaseException):
        """A kill, right after the end was begun."""

    def kill():
        target.state.commit()
        raise Stop

    target.state.checkpoint = kill
    with pytest.raises(Stop):
        target.end("failed", 1)
    del target.state.checkpoint
    (log,) = target.logs()
    os.truncate(log, log.stat().st_size - 10)
    outcome = target.deliver(stream, metrics(2, a=2), metrics(3, a=3))
    assert len(target.logs()) == 3
    assert outcome.damage == [
        f"the last 10 bytes that were delivered to {log} are gone; what comes later is in {target.logs()[1]}"
    ]


def test_config_tags_summary_and_the_rest(target):
    target.deliver(
        make_stream(),
        RUN_START,
        ("param", {"params": {"lr": 0.1}}),
        ("param", {"params": {"lr": 0.2}, "overwrite": True}),
        ("hparams", {"hparams": {"depth": 2}, "metrics": {"hp/acc": 0.5}}),
        ("tag", {"tags": {"a": "1", "b": "2"}}),
        ("tag", {"tags": {"a": None}}),
        ("summary", {"summary": {"best": 3, "gone": 1}}),
        ("summary", {"summary": {"gone": None}}),
        ("alert", {"title": "T", "text": "x", "level": "WARN"}),
        ("log", {"message": "hello", "level": "INFO", "logger": "app"}),
        ("system", {"metrics": {"cpu": 0.5}}),
        ("define_metric", {"name": "val/*", "step_metric": "epoch", "summary": "min"}),
        ("metrics", {"metrics": {"val/loss": 2.0, "epoch": 1}, "step": 1}),
        ("metrics", {"metrics": {"val/loss": 3.0}, "step": 2}),
    )
    target.end()
    records = read_records(target.logs()[0])
    assert config_of(records) == {"lr": 0.2, "depth": 2, "tags": {"b": "2"}}
    summary = summary_of(records)
    assert {k: v for k, v in summary.items() if not k.startswith("_")} == {
        "best": 3, "hp/acc": 0.5, "val/loss": {"min": 2.0}, "epoch": 1,
    }  # fmt: skip
    assert [row["epoch"] for row in rows_of(records)] == [1, 1]
    alert = one_of(records, "alert")
    assert (alert.title, alert.text, alert.level) == ("T", "x", "WARN")
    line = one_of(records, "output_raw")
    assert (line.line, line.timestamp.ToNanoseconds()) == ("INFO app: hello", START + 10_000_000)
    stats = one_of(records, "stats")
    assert [(item.key, item.value_json) for item in stats.item] == [("cpu", "0.5")]


def test_explicit_summary_is_not_undone_by_an_earlier_event_of_another_stream(target):
    one, two = make_stream(writer="w1"), make_stream(writer="w2")
    target.deliver(
        one, RUN_START, metrics(1, acc=0.1), metrics(2, acc=0.2), ("summary", {"summary": {"acc": 0.9}})
    )
    target.deliver(two, RUN_START, metrics(1, acc=0.3), metrics(2, acc=0.4))
    target.end()
    assert summary_of(read_records(target.logs()[0]))["acc"] == 0.9


def test_after_its_end_a_run_goes_on_in_a_log_with_only_the_new_rows(target):
    stream = make_stream()
    target.deliver(stream, ("run_start", {**RUN_START[1], "config": {"lr": 1}}), metrics(1, a=1))
    target.end("killed")
    before = target.files()
    target.deliver(stream, metrics(2, a=2), ("param", {"params": {"p": 1}}))
    target.deliver(stream, metrics(3, a=3))
    target.end("finished", seconds=90)
    target.end("finished", seconds=99)
    first, second = target.logs()
    assert first < second
    assert first.read_bytes() == before[str(first.relative_to(target.folder))]
    records = read_records(second)
    assert [(row["_step"], row["a"]) for row in rows_of(records)] == [(2, 2), (3, 3)]
    run = one_of(records, "run")
    assert (run.run_id, run.resume) == ("site-1--run-1", True)
    assert run.start_time.ToNanoseconds() == START + 1_001_000_000
    assert config_of(records) == {"lr": 1, "p": 1}
    assert one_of(records, "exit").exit_code == 0
    assert kinds_of(records)[-1] == "exit"
    assert [row["_runtime"] for row in rows_of(records)] == [0.002, 0.004]


def test_another_end_without_new_events_is_told(target):
    target.deliver(make_stream(), RUN_START, metrics(1, a=1))
    target.end("killed")
    target.end("finished")
    first, second = target.logs()
    assert one_of(read_records(first), "exit").exit_code == 255
    assert one_of(read_records(second), "exit").exit_code == 0
    assert rows_of(read_records(second)) == []


def test_what_comes_late_from_a_stream_that_does_not_decide_keeps_the_end(target):
    main, old = make_stream(attempt=2), make_stream(writer="w0", attempt=1)
    aux = make_stream(writer="w9", role="aux")
    target.deliver(main, RUN_START, metrics(1, a=1))
    target.end("failed", 3)
    target.deliver(aux, RUN_START, ("run_end", {"status": "finished"}))
    assert len(target.logs()) == 1  # nothing to show
    target.deliver(aux, metrics(2, a=2))
    target.deliver(old, RUN_START, metrics(1, a=3), ("run_end", {"status": "killed"}))
    first, second, third = target.logs()
    for log, value in ((first, 1), (second, 2), (third, 3)):
        records = read_records(log)
        assert [row["a"] for row in rows_of(records)] == [value]
        assert kinds_of(records)[-1] == "exit"
        assert one_of(records, "exit").exit_code == 3
    target.end("failed", 3)
    assert len(target.logs()) == 3
    target.deliver(main, metrics(5, a=4), metrics(6, a=5))  # a main stream reopens the run
    target.deliver(aux, metrics(3, a=6))
    assert "exit" not in kinds_of(read_records(target.logs()[3]))
    target.end()
    assert len(target.logs()) == 4
    assert [row["a"] for row in rows_of(read_records(target.logs()[3]))] == [4, 5, 6]


def test_a_log_that_was_synced_or_removed_is_not_written_again(target):
    stream = make_stream()
    target.deliver(
        stream,
        RUN_START,
        ("define_metric", {"name": "x", "summary": "max"}),
        metrics(1, a=1),
        metrics(2, a=2),
    )
    (first,) = target.logs()
    Path(f"{first}.synced").touch()
    held = first.read_bytes()
    target.deliver(stream, metrics(3, a=3))
    assert first.read_bytes() == held
    second = target.logs()[1]
    assert [row["a"] for row in rows_of(read_records(second))] == [2]
    assert one_of(read_records(second), "metric").name == "x"
    second.unlink()
    target.deliver(stream, metrics(4, a=4))
    third = target.logs()[1]
    assert third > second
    assert [row["a"] for row in rows_of(read_records(third))] == [3]


def test_a_strangers_log_of_the_same_run_is_left_alone(target):
    """Another spool's replay made it: a second log beside it would show each row twice in W&B."""
    stranger = target.folder / "offline-run-20231114_221320-site-1--run-1" / "run-site-1--run-1.wandb"
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(b"theirs")
    outcome = target.deliver(make_stream(), RUN_START, ("text", {"key": "k", "path": "f.txt", "text": "t"}))
    assert set(outcome.dead) == {1, 2}
    assert "was not written by this spool's receiver" in outcome.dead[1]
    target.end()
    assert stranger.read_bytes() == b"theirs"
    assert target.logs() == [stranger]
    stranger.unlink()  # moved away: the dead letters can be retried
    assert not target.deliver(make_stream(), RUN_START).dead


def script(blobs):
    """Batches of two interleaved streams, then the end: what the crash tests replay."""
    one, two = make_stream(writer="w1"), make_stream(writer="w2")
    blob = put_blob(blobs, b"payload")
    return [
        make_batch(
            one,
            ("run_start", {**RUN_START[1], "config": {"lr": 1}}),
            metrics(1, a=1),
            metrics(1, b="NaN"),
            blobs=str(blobs),
        ),
        make_batch(
            two,
            RUN_START,
            metrics(1, a=2),
            ("text", {"key": "t", "step": 1, "text": "x" * 300}),
            metrics(2, a=4),
            blobs=str(blobs),
        ),
        make_batch(
            one,
            metrics(0, a=3),
            ("artifact", {"files": [{"path": "f", "blob": blob}]}),
            first_seq=4,
            blobs=str(blobs),
        ),
        RunEnd(site="site-1", run="run-1", status="killed", time_ns=START + 10**10, exit_code=None),
        make_batch(two, metrics(9, a=5), ("run_end", {"status": "finished"}), first_seq=5, blobs=str(blobs)),
        RunEnd(site="site-1", run="run-1", status="finished", time_ns=START + 2 * 10**10, exit_code=0),
    ]


def give(target, item):
    if isinstance(item, RunEnd):
        target.receiver.set_status(item)
    else:
        target.receiver.deliver(item)


class Crash(BaseException):
    """The process is gone."""


@pytest.mark.bytes
def test_a_crash_at_any_byte_leads_to_the_same_files(tmp_path, monkeypatch):
    for name in ("fsync", "fdatasync"):  # 500 crashes of a process, none of the machine
        monkeypatch.setattr(os, name, lambda fd: None)
    steps = script(tmp_path / "blobs")
    whole = Target(tmp_path / "whole")
    for item in steps:
        give(whole, item)
        whole.state.commit()
    want = whole.files()
    real = appendfile.write_all
    cuts = 0
    for number, crashing in enumerate(steps):
        cut = 0
        before = Target(tmp_path / f"{number}")
        for item in steps[:number]:
            give(before, item)
            before.state.commit()
        while True:
            state = MemoryState()
            state._committed = dict(before.state._committed)
            state.rollback()
            shutil.copytree(before.folder, tmp_path / f"{number}-{cut}")
            target = Target(tmp_path / f"{number}-{cut}", state=state)
            length = 0

            def torn(fd, data, path, cut=cut):
                nonlocal length
                length = len(data)
                real(fd, data[:cut], path)
                raise Crash

            monkeypatch.setattr(appendfile, "write_all", torn)
            with pytest.raises(Crash):
                give(target, crashing)
            monkeypatch.setattr(appendfile, "write_all", real)
            target.state.rollback()
            again = Target(target.folder, state=target.state)
            for item in steps[number:]:
                give(again, item)
                again.state.commit()
            assert again.files() == want, (number, cut)
            cuts += 1
            if cut >= length:
                break
            every = EVERY_BYTE or number == 2  # one batch byte by byte, of the others the ends and a sample
            cut += 1 if every or cut < 9 or length - cut < 4 else 37
    add("byte positions tested", **{"W&B offline, crash": cuts})
    assert cuts > 200


def test_delivered_again_after_a_crash_before_the_commit(tmp_path):
    steps = script(tmp_path / "blobs")
    whole, twice = Target(tmp_path / "whole"), Target(tmp_path / "twice")
    for item in steps:
        give(whole, item)
        whole.state.commit()
        give(twice, item)
        twice.state.rollback()
        give(twice, item)
        twice.state.commit()
    assert twice.files() == whole.files()
    first, second = whole.logs()
    for log in (first, second):
        assert read_log(log.read_bytes())[1] == 0
    rows = [row for log in (first, second) for row in rows_of(read_records(log))]
    assert [row["_step"] for row in rows] == [1, 2, 3, 4, 9]
    assert [row.get("a") for row in rows] == [2, 1, 3, 4, 5]


def test_new_events_between_the_crashed_end_and_its_repeat(tmp_path):
    """The end's bytes are there, its commit is not, and a later batch comes before the end is told again."""
    steps = script(tmp_path / "blobs")
    target = Target(tmp_path / "t")
    for item in steps[:3]:
        give(target, item)
        target.state.commit()
    give(target, steps[3])
    target.state.rollback()
    for item in steps[4:]:
        give(target, item)
        target.state.commit()
    rows = [row for log in target.logs() for row in rows_of(read_records(log))]
    assert [row.get("a") for row in rows] == [2, 1, 3, 4, 5]
    assert [one_of(read_records(log), "exit").exit_code for log in target.logs()] == [255, 0]


def test_foreign_bytes_at_the_end_begin_another_log(target):
    stream = make_stream()
    target.deliver(stream, RUN_START, metrics(1, a=1), metrics(2, a=2))
    (first,) = target.logs()
    with first.open("ab") as file:
        file.write(b"somebody else")
    target.deliver(stream, metrics(3, a=3), ("text", {"key": "k", "path": "f.txt", "text": "t"}))
    second = target.logs()[1]
    records = read_records(second)
    assert one_of(records, "run").resume
    assert [row["a"] for row in rows_of(records)] == [2]
    assert (second.parent / "files" / "f.txt").exists()
