"""`replay`: deliver a spool, or a part of it, into receivers; `--plan` only tells what that would be."""

import re
import time
from collections import Counter
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from spoolagent.cli.common import ConfigOption, SpoolFlag, one_of, out, print_json, shown, table
from spoolagent.cli.progress import EventProgress
from spoolagent.cli.scan import chunks
from spoolagent.cli.settings import load
from spoolagent.config_values import nearest, parse_duration
from spoolagent.errors import UsageError
from spoolagent.format.events import TYPES
from spoolagent.format.layout import iter_streams
from spoolagent.format.spool import open_spool
from spoolagent.settings import Selection

app = typer.Typer()

_STEPS = re.compile(r"(-?\d+)?:(-?\d+)?|(-?\d+)", re.ASCII)


@app.command(
    epilog="Examples: [bold]spoolagent replay ./spool --to tensorboard:./tb[/bold]\n\n"
    "[bold]spoolagent replay ./spool --to mlflow:http://localhost:5000 --run 'sweep-*' --since 2d --plan[/bold]"
)
def replay(
    spool: Annotated[
        str | None,
        typer.Argument(metavar="SPOOL", help="The spool; default: SPOOLAGENT_SPOOL, `spool` in the config."),
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to", metavar="RECEIVER", help="kind:target, or a name in the configuration; may be repeated."
        ),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option("--site", metavar="SITE", help="Only this site (or pattern); may be repeated."),
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option("--run", metavar="RUN", help="Only this run id (or pattern); may be repeated."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="From this time on: 2026-05-01T12:00, or 2d (ago)."),
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before this time.")] = None,
    event_type: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TYPE", help="Only events of this type; may be repeated."),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option("--steps", metavar="FIRST:LAST", help="Only these steps; either end may be left out."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be delivered, and end.")] = False,
    give_up_after: Annotated[
        str | None,
        typer.Option(
            "--give-up-after", metavar="TIME", help="The longest time without progress, default 2m."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --plan: print JSON for programs.")] = False,
    flag: SpoolFlag = None,
    config: ConfigOption = None,
) -> int:
    """Deliver a spool into receivers and end when everything is there.

    What a receiver has already is not delivered again: a replay goes on.
    A run's start and end come along whatever --type, --since and --steps say.
    Exit code 1: something could not be delivered. 3: a tracker was away.
    """
    found = load(config, spool=one_of(spool, flag), serve__to=to)
    selection = Selection(
        sites=tuple(site or ()),
        runs=tuple(run or ()),
        since_ns=_time_ns(since, "--since"),
        until_ns=_time_ns(until, "--until"),
        types=_types(event_type or []),
        steps=_steps(steps),
    )
    _check_names(found.agent_settings().spool, selection)
    if plan:
        return _plan(found.agent_settings().spool, selection, as_json=as_json)
    settings = found.serve_settings(
        give_up_after_s=None if give_up_after is None else parse_duration(give_up_after, "--give-up-after")
    )
    from spoolagent.serving.supervisor import replay as deliver

    with EventProgress() as progress:
        return deliver(settings, selection, report=progress.report, progress=progress)


def _check_names(spool: str, selection: Selection) -> None:
    """A misspelt --site or --run must not look like a replay that had nothing to do."""
    open_spool(spool)
    if not (selection.sites or selection.runs):
        return
    known = {(key.site, key.run) for key in iter_streams(spool)}
    if any(selection.takes_run(site, run) for site, run in known):
        return
    for flag, given, names in (
        ("--site", selection.sites, {site for site, _ in known}),
        ("--run", selection.runs, {run for _, run in known}),
    ):
        for pattern in given:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UsageError(f"{flag}: {spool} has no {pattern!r}: {nearest(pattern, names)}")
    raise UsageError(f"--site, --run: no run of {spool} is selected; 'spoolagent ls' shows what there is")


def _types(given: list[str]) -> frozenset[str]:
    for name in given:
        if name not in TYPES:
            raise UsageError(f"--type: no event type {name!r}: {nearest(name, TYPES)}")
    return frozenset(given)


def _steps(text: str | None) -> tuple[int | None, int | None] | None:
    if text is None:
        return None
    match = _STEPS.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"--steps: {text!r} is no range of steps: write FIRST:LAST, such as 0:1000, 500: or :99"
        )
    if match[3] is not None:
        return int(match[3]), int(match[3])
    low, high = (None if part is None else int(part) for part in match.group(1, 2))
    if low is not None and high is not None and low > high:
        raise UsageError(f"--steps: {text!r} is empty: the first step is behind the last")
    return low, high


def _time_ns(text: str | None, flag: str) -> int | None:
    """A time as ISO 8601 (of this machine's zone when it names none), or as a duration before now."""
    if text is None:
        return None
    try:
        return time.time_ns() - int(parse_duration(text, flag) * 1e9)
    except UsageError:
        pass
    try:
        moment = datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise UsageError(
            f"{flag}: {text!r} is no time: write it as 2026-05-01, 2026-05-01T12:00+02:00, or as 2d for two days ago"
        ) from None
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000


# -- the plan ----------------------------------------------------------------------------------------------------------


def _plan(spool: str, selection: Selection, *, as_json: bool) -> int:
    runs: dict[tuple[str, str], Counter[str]] = {}
    open_spool(spool)
    for key in iter_streams(spool):
        if not selection.takes_run(key.site, key.run):
            continue
        counts = runs.setdefault((key.site, key.run), Counter())
        for chunk in chunks(spool, key):
            counts.update(str(event.type) for event in chunk.events if selection.takes_event(event))
            counts["(lost)"] += sum(lost.last - lost.first + 1 for lost in chunk.lost)
    facts = [_planned(site, run, +counts) for (site, run), counts in runs.items()]
    if as_json:
        print_json({"spool": spool, "runs": facts, "events": sum(fact["events"] for fact in facts)})
    else:
        _print_plan(spool, facts)
    return 0


def _planned(site: str, run: str, counts: Counter[str]) -> dict[str, Any]:
    lost = counts.pop("(lost)", 0)
    types = dict(sorted(counts.items()))
    return {"site": site, "run": run, "events": sum(types.values()), "types": types, "lost": lost}


def _print_plan(spool: str, facts: list[dict[str, Any]]) -> None:
    console = out()
    if not facts:
        console.print(f"{spool}: no run is selected", markup=False)
        return
    rows = table("site", "run", ">events", "by type")
    for fact in facts:
        types = ", ".join(f"{count} {name}" for name, count in fact["types"].items())
        lost = f"; {fact['lost']} lost" if fact["lost"] else ""
        rows.add_row(shown(fact["site"]), shown(fact["run"]), str(fact["events"]), shown(types + lost))
    console.print(rows)
    total = sum(fact["events"] for fact in facts)
    console.print(f"{total} events of {len(facts)} runs; what a receiver has already is not delivered again")
