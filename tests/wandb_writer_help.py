"""One script that runs unchanged over the real wandb and over ours, and readers of what each of them left."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from wandb_help import read_records

from spoolagent.contract import Batch, RunEnd, Stream
from spoolagent.format import layout
from spoolagent.format.events import Event, check, parse_event
from spoolagent.format.header import read_header
from spoolagent.format.lines import decode_line
from spoolagent.testing import MemoryState

PRELUDE = """
import json, os, sys
if os.environ["WHICH"] == "real":
    import wandb
else:
    import spoolagent.writers.wandb as wandb
seen = []
def note(value):
    seen.append(value)
def attempt(call):
    try:
        note(["value", plain(call())])
    except BaseException as error:
        names = [kind.__name__ for kind in type(error).__mro__]
        note(["error", [n for n in ("Error", "UsageError", "ConfigError", "TypeError", "ValueError", "KeyError",
             "AttributeError", "UnicodeDecodeError", "AssertionError") if n in names]])
def plain(value):
    if hasattr(value, "_as_dict"):
        return plain(value._as_dict())
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, float) and value.is_integer():
        return int(value)  # W&B's summary comes back through JSON that knows no 1.0
    if value is None or isinstance(value, (int, float, str)):
        return value
    return type(value).__name__
"""
EPILOGUE = """
with open(os.environ["SEEN"], "w") as file:
    json.dump(seen, file)
"""


def environment(folder: Path, which: str) -> dict[str, str]:
    """The environment of either side, with nothing of the caller's WANDB_* or SPOOLAGENT_*."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "SPOOLAGENT"))}
    return {
        **clean,
        "WHICH": which,
        "SEEN": str(folder / "seen.json"),
        "HOME": str(folder),
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
        "WANDB_DISABLE_GIT": "true",
        "WANDB_X_DISABLE_STATS": "true",
        "WANDB__DISABLE_STATS": "true",
        "WANDB_ERROR_REPORTING": "false",
        "SPOOLAGENT_SPOOL": str(folder / "spool"),
        "SPOOLAGENT_SITE": "site-1",
    }


def start(folder: Path, which: str, script: str, **more: str) -> "subprocess.Popen[str]":
    """Starts the script over one side."""
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script + EPILOGUE],
        cwd=folder,
        env={**environment(folder, which), **more},
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )


def ended(process: "subprocess.Popen[str]", code: int = 0) -> str:
    """Waits for it; its standard error. Fails when it did not leave with `code`."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    return errors


def seen(folder: Path) -> list[Any]:
    """What the script took note of."""
    return json.loads((folder / "seen.json").read_text())


def batches(spool: Path, run: str | None = None) -> list[Batch]:
    """The events of each stream, read without the agent's reader; each of them is checked against the format."""
    made = []
    for key in layout.iter_streams(str(spool), None, run):
        folder = Path(layout.stream_dir(str(spool), key))
        header = read_header(str(folder))
        assert header is not None
        events: list[Event] = []
        for first in layout.list_segments(str(folder)):
            for line in (folder / layout.segment_name(first)).read_bytes().splitlines():
                event = parse_event(decode_line(line))
                if event is not None:
                    assert check(event) is None, (check(event), event)
                    events.append(event)
        stream = Stream(
            key=key,
            role=header.role,
            attempt=header.attempt,
            created_ns=header.created_ns,
            spool=header.spool,
        )
        made.append(Batch(stream=stream, events=tuple(events), blobs=layout.blob_dir(str(spool), key.site)))
    return made


def events(spool: Path, run: str | None = None) -> list[Event]:
    """The events of all streams."""
    return [event for batch in batches(spool, run) for event in batch.events]


def replay(spool: Path, run: str, folder: Path) -> Path:
    """Delivers a run through the W&B receiver; the log that it wrote."""
    from spoolagent.receivers.wandb import open_wandb

    receiver = open_wandb(f"offline:{folder}", {})
    state = MemoryState()
    receiver.open(state)
    end = None
    for batch in batches(spool, run):
        outcome = receiver.deliver(batch)
        state.commit()
        assert not outcome.dead, outcome.dead
        last = batch.events[-1]
        if last.type == "run_end":
            data = last.data
            end = RunEnd(
                site=batch.stream.key.site,
                run=run,
                status=data["status"],
                time_ns=last.time_ns,
                exit_code=data.get("exit_code"),
            )
    assert end is not None
    receiver.set_status(end)
    state.commit()
    receiver.close()
    return find_log(folder)


def find_log(folder: Path) -> Path:
    """The one `.wandb` file below a folder."""
    (found,) = folder.rglob("*.wandb")
    return found


def history(log: Path) -> list[dict[Any, Any]]:
    """The history rows of a `.wandb` file as {path: value}, without what depends on the clock."""
    rows = []
    for record in read_records(log):
        if record.WhichOneof("record_type") == "history":
            items = {
                (i.key,) if i.key else tuple(i.nested_key): number(json.loads(i.value_json))
                for i in record.history.item
            }
            rows.append({k: v for k, v in items.items() if k[0] not in ("_runtime", "_timestamp")})
    return rows


def number(value: Any) -> Any:
    """JSON with 1.0 as 1, in which W&B's core writes numbers."""
    if isinstance(value, list):
        return [number(v) for v in value]
    if isinstance(value, dict):
        return {k: number(value[k]) for k in sorted(value)}  # theirs come in any order
    return int(value) if isinstance(value, float) and value.is_integer() else value


def merged(log: Path, kind: str) -> dict[Any, Any]:
    """The summary or config as the records of a `.wandb` file leave it, {path: value}."""
    held: dict[Any, Any] = {}
    for record in read_records(log):
        found = record.WhichOneof("record_type")
        parts = (
            [getattr(record, found)]
            if found == kind
            else [record.run.config]
            if found == "run" and kind == "config"
            else []
        )
        for part in parts:
            for item in part.update:
                path = tuple(item.nested_key) or (item.key,)
                held = {k: v for k, v in held.items() if k[: len(path)] != path}
                for leaf, value in leaves(path, number(json.loads(item.value_json))):
                    held[leaf] = value
            for item in part.remove:
                path = tuple(item.nested_key) or (item.key,)
                held = {k: v for k, v in held.items() if k[: len(path)] != path}
    return {
        k: v for k, v in held.items() if k[0] not in ("_runtime", "_timestamp", "_wandb") and v is not None
    }


def leaves(path: tuple[str, ...], value: Any) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in leaves((*path, key), inner)]
    return [(path, value)]


def differences(mine: dict[Any, Any], theirs: dict[Any, Any]) -> dict[Any, Any]:
    """What differs, by its `repr` (so that NaN equals NaN, and True is not 1)."""
    missing = "missing"
    pairs = {
        k: (repr(mine.get(k, missing)), repr(theirs.get(k, missing))) for k in mine.keys() | theirs.keys()
    }
    return {k: pair for k, pair in pairs.items() if pair[0] != pair[1]}
