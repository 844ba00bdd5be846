"""`python -m benchmarks [--only NAME ...] [--json FILE] [--dir DIR]`: runs all, prints the table, exits with 0."""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.places import workplace
from benchmarks.rows import Row, figure

# name -> (module, function, what it needs installed)
SECTIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "calls": ("calls", "tensorboard", ("torch", "tensorboard")),
    "mlflow-calls": ("calls", "mlflow", ("mlflow",)),
    "wandb-calls": ("calls", "wandb", ("wandb",)),
    "trackio-calls": ("trackio_calls", "trackio", ("trackio",)),
    "imports": ("imports", "imports", ("torch", "mlflow", "wandb")),
    "tail": ("tail", "tail", ("msgspec",)),
    "event-file": ("event_file", "event_file", ("tensorboard", "google_crc32c")),
    "mlflow-batch": ("mlflow_batch", "mlflow_batch", ("mlflow",)),
}
_SHOWN = (
    "orjson",
    "msgspec",
    "torch",
    "tensorboard",
    "mlflow",
    "wandb",
    "trackio",
    "google-crc32c",
    "protobuf",
)


def main() -> None:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=SECTIONS, help="run this section; may be repeated")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE, too")
    parser.add_argument(
        "--dir", metavar="DIR", help="measure on this file system; default: the system's temporary one"
    )
    given = parser.parse_args()
    json_file = os.path.abspath(given.json) if given.json else None
    console = Console(stderr=True)
    begin = time.monotonic()
    rows, notes = run(given.only or list(SECTIONS), given.dir, console)
    taken_s = time.monotonic() - begin
    show(rows, notes, taken_s)
    if json_file is not None:
        with open(json_file, "w", encoding="utf-8") as file:
            json.dump(
                {
                    "machine": machine(),
                    "seconds": taken_s,
                    "rows": [r.as_json() for r in rows],
                    "notes": notes,
                },
                file,
                indent=1,
            )
            file.write("\n")


def run(names: list[str], parent: str | None, console: Console) -> tuple[list[Row], list[str]]:
    """Rows of the sections, and what was left out."""
    rows: list[Row] = []
    notes = ["NVFLARE's own SummaryWriter: left out, NVFLARE is not part of this environment"]
    for name in names:
        module, function, needs = SECTIONS[name]
        missing = [need for need in needs if importlib.util.find_spec(need) is None]
        if missing:
            notes.append(f"{name}: left out, {', '.join(missing)} is not installed")
            continue
        begin = time.monotonic()
        with workplace(parent) as place:
            section = getattr(importlib.import_module(f"benchmarks.{module}"), function)
            rows += section(place)
        console.print(f"{name}: {time.monotonic() - begin:.0f} s", highlight=False)
    return rows, notes


def show(rows: list[Row], notes: list[str], taken_s: float) -> None:
    """Prints the table."""
    table = Table(
        title="Speed: best of the interleaved rounds; the verdict goes by the median of the rounds' ratios"
    )
    for heading in ("what", "compared with"):
        table.add_column(heading, overflow="fold")
    for heading in ("ours", "theirs", "ratio", "median / cpu", "required"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        verdict = {None: "", True: "[green]meets[/]", False: "[bold red]misses[/]"}[row.meets]
        compared = row.reference if row.reference != row.what else ""
        ours, theirs = figure(row.ours_s, row.unit), figure(row.reference_s, row.unit)
        table.add_row(
            row.what,
            compared,
            ours,
            theirs,
            _plain(row.ratio) if row.ratio else "",
            _others(row),
            row.required,
            verdict,
        )
    console = Console(width=None if Console().is_terminal else 170)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)
    facts = machine()
    console.print(
        f"{facts['when']}, {facts['cpu']}, {facts['cpus']} cores, load {facts['load']}, Python {facts['python']}, {taken_s:.0f} s",
        highlight=False,
    )
    console.print(
        ", ".join(f"{name} {version}" for name, version in facts["versions"].items()), highlight=False
    )


def _others(row: Row) -> str:
    return (
        " / ".join("-" if r is None else _plain(r) for r in (row.ratio_median, row.ratio_cpu))
        if row.ratio
        else ""
    )


def _plain(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def machine() -> dict[str, Any]:
    """Where and when this was measured."""
    versions = {}
    for name in _SHOWN:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
