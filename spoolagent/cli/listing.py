"""`ls`: the sites and runs of a spool."""

from typing import Annotated, Any

import typer

from spoolagent.cli.common import (
    ConfigOption,
    JsonOption,
    SpoolArgument,
    SpoolFlag,
    ago_text,
    one_of,
    out,
    print_json,
    shown,
    size_text,
    state_text,
    table,
)
from spoolagent.cli.settings import spool_of
from spoolagent.format.facts import RunFacts, StreamFacts, run_facts, start_fields
from spoolagent.format.names import check_name

app = typer.Typer()


@app.command(
    epilog="Examples: [bold]spoolagent ls ./spool[/bold]\n\n"
    "[bold]spoolagent ls ./spool --site hospital-a --json | jq '.runs[].run'[/bold]"
)
def ls(
    spool: SpoolArgument = None,
    site: Annotated[str | None, typer.Option("--site", metavar="SITE", help="Show this site only.")] = None,
    as_json: JsonOption = False,
    flag: SpoolFlag = None,
    config: ConfigOption = None,
) -> int:
    """List the runs of a spool.

    State, streams, events, size and last news.
    `running?` is a run whose writers are gone, while no agent has seen it yet.
    """
    place = spool_of(one_of(spool, flag), config)
    if site is not None:
        check_name("site", site)
    runs = list(run_facts(place, site))
    if as_json:
        print_json({"spool": place, "runs": [run_json(place, run) for run in runs]})
        return 0
    if not runs:
        out().print(f"{place}: no runs yet", markup=False)
        return 0
    rows = table("site", "run", "name", "state", ">streams", ">events", ">size", "last news")
    for run in runs:
        rows.add_row(
            shown(run.site),
            shown(run.run),
            shown(display_name(place, run), limit=40),
            state_text(run.state, is_orphan=run.is_orphan),
            str(len(run.streams)),
            str(sum(stream.last_seq for stream in run.streams)),
            size_text(sum(stream.bytes for stream in run.streams)),
            ago_text(run.last_time_ns),
        )
    out().print(rows)
    return 0


def display_name(spool: str, run: RunFacts) -> str:
    """The name that the run's writer gave it, or "" ."""
    for stream in run.streams:
        name = start_fields(spool, stream.key).get("name")
        if isinstance(name, str):
            return name
    return ""


def run_json(spool: str, run: RunFacts) -> dict[str, Any]:
    """The facts of a run for programs."""
    return {
        "site": run.site,
        "run": run.run,
        "name": display_name(spool, run) or None,
        "state": run.state,
        "writers_gone": run.is_orphan,
        "exit_code": run.exit_code,
        "last_time_ns": run.last_time_ns,
        "streams": [stream_json(stream) for stream in run.streams],
    }


def stream_json(stream: StreamFacts) -> dict[str, Any]:
    """The facts of a stream for programs."""
    header = stream.header
    return {
        "writer": stream.key.writer,
        "role": header.role if header else None,
        "attempt": header.attempt if header else None,
        "spool": header.spool if header else None,
        "created_ns": header.created_ns if header else None,
        "segments": stream.segments,
        "bytes": stream.bytes,
        "first_seq": stream.first_seq,
        "last_seq": stream.last_seq,
        "last_time_ns": stream.last_time_ns,
        "ended": stream.ended,
        "end_status": stream.end_status,
        "exit_code": stream.exit_code,
        "alive": stream.alive,
        "note": stream.note or None,
    }
