"""Writes the golden spool of this release: `python tests/make_golden.py tests/golden/NAME`. Never run over an old one.

One process and one clock, so that the result is a fixed tree; it has every event type, rotation, a killed
writer's `.end`, an aux stream, a second attempt, a gap, tagged values and blobs.
"""

import itertools
import os
import sys

from spoolagent.format import live, stream
from spoolagent.format.blobs import put_bytes
from spoolagent.format.ends import DeathWatch, end_dead_stream
from spoolagent.format.layout import run_dir
from spoolagent.format.spool import create_spool
from spoolagent.format.stream import StreamOptions, StreamWriter


def events(spool):
    """One event of every type beside run_start, gap and run_end."""
    blob = put_bytes(spool, "site-1", b"\x00\x7f\xff" * 4)
    text = put_bytes(spool, "site-1", "Größe\n".encode())
    yield "metrics", {"metrics": {"loss": 0.1, "n": 3, "bad": "NaN", "up": "Infinity"}, "step": -1}
    yield "metrics", {"metrics": {"a/b": 1e308}, "step": None, "at": 5, "context": {"subrun": "train"}}
    yield (
        "param",
        {"params": {"lr": {"$float": "-Infinity"}, "big": {"$int": str(2**70)}, "$$key": [1, None, True]}},
    )
    yield "tag", {"tags": {"stage": "ü\u2028", "gone": None}}
    yield "text", {"key": "note", "text": "Größe", "step": 2}
    yield "text", {"key": "note", "blob": text, "path": "notes/a.txt"}
    yield (
        "image",
        {"key": "im", "step": 1, "blob": blob, "encoding": "raw", "height": 2, "width": 2, "channels": 3},
    )
    counts = {"limits": [0.5, 1.0], "counts": [1, 2], "left": 0.0}
    yield (
        "histogram",
        {"key": "h", "min": 0.0, "max": 1.0, "num": 3, "sum": 2.0, "sum_squares": 1.5, **counts},
    )
    yield "audio", {"key": "a", "blob": blob, "encoding": "wav", "sample_rate": 8000}
    yield "video", {"key": "v", "blob": blob, "encoding": "mp4"}
    yield "table", {"key": "t", "columns": ["x", "y"], "data": [[1, "a"], [{"$float": "NaN"}, None]]}
    yield (
        "artifact",
        {"path": "out", "files": [{"path": "a/b.bin", "blob": blob}], "name": "out", "kind": "dataset"},
    )
    yield "model", {"path": "model", "files": [{"path": "MLmodel", "blob": text}], "flavor": "sklearn"}
    yield "hparams", {"hparams": {"lr": 0.1}, "metrics": {"acc": 0.5}, "run_name": "hp"}
    yield "summary", {"summary": {"best": 0.5, "gone": None}}
    yield "define_metric", {"name": "loss", "step_metric": "epoch", "summary": "min"}
    yield "alert", {"title": "hot", "text": "too hot", "level": "WARN"}
    yield "log", {"message": "hello", "level": "INFO", "logger": "root"}
    yield "system", {"metrics": {"gpu.0.power": 250.5}}
    yield "tb_summary", {"key": "pr", "base64": "CgA=", "step": 1}
    yield "rewind", {"step": 1}
    yield "gap", {"dropped": 2, "from": 1, "to": 2, "reason": "No space left on device"}
    yield "custom", {"name": "x", "data": {"deep": [[[{"a": {"$bytes": "AAE="}}]]]}}


def main(target):
    """Writes the golden spool into `target`, which must not exist."""
    assert not os.path.exists(target)
    clock = itertools.count(1_700_000_000_000_000_000, 1_000_000)
    stream.time.time_ns = lambda: next(clock)
    names = iter(["w-main", "w-killed", "w-aux", "w-again"])
    stream.new_writer_id = lambda: next(names)
    live.host_name = lambda: "golden"
    spool = create_spool(target)

    def begin(role="main", attempt=1):
        start = {
            "api": "native",
            "project": "golden",
            "name": "Größe",
            "config": {"lr": 0.1},
            "host": "golden",
            "pid": 1,
        }
        options = StreamOptions(segment_bytes=1500)
        return StreamWriter(
            target,
            "site-1",
            "run-1",
            lambda: {**start, "attempt": attempt},
            role=role,
            attempt=attempt,
            options=options,
        )

    writer = begin()
    for kind, fields in events(spool.path):
        writer.append(kind, fields)
    writer.append("run_end", {"status": "failed", "exit_code": 1})
    writer.close()
    for role, attempt in (("main", 1), ("aux", 1)):
        writer = begin(role, attempt)
        for step in range(20):
            writer.append("metrics", {"metrics": {"loss": step / 4}, "step": step})
        writer._close_files()
        folder = os.path.join(run_dir(spool.path, "site-1", "run-1"), writer.writer)
        if role == "main":
            with open(os.path.join(folder, max(os.listdir(folder))), "ab") as file:
                file.write(b'{"seq":22,"ti')
        assert end_dead_stream(folder, DeathWatch())
    writer = begin(attempt=2)
    writer.append("run_end", {"status": "finished", "exit_code": 0})
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1])
