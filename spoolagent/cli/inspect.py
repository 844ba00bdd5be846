"""`inspect`: one run, one stream or one event, decoded."""

import json
from collections import Counter
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from spoolagent.cli.common import (
    JsonOption,
    ago_text,
    clean,
    out,
    print_json,
    shown,
    size_text,
    state_text,
    table,
    time_text,
)
from spoolagent.cli.listing import run_json
from spoolagent.cli.scan import Tally, last_events, one_event, tally
from spoolagent.cli.settings import load
from spoolagent.config_values import nearest
from spoolagent.errors import UsageError
from spoolagent.format.events import Event
from spoolagent.format.facts import RunFacts, StreamFacts, run_facts, start_fields
from spoolagent.format.layout import StreamKey, iter_streams
from spoolagent.format.names import is_legal
from spoolagent.format.spool import open_spool
from spoolagent.format.values import from_json

app = typer.Typer()

_SHOWN_METRICS = 30


@app.command(
    epilog="Examples: [bold]spoolagent inspect ./spool my-run[/bold]\n\n"
    "[bold]spoolagent inspect ./spool site-a/my-run --events 20[/bold]\n\n"
    "[bold]spoolagent inspect ./spool site-a/my-run/w0199-7f --seq 4097[/bold]"
)
def inspect(
    spool: Annotated[str, typer.Argument(metavar="SPOOL", help="The spool.")],
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN|SITE/RUN|SITE/RUN/WRITER", help="What to look at; default: the whole spool."
        ),
    ] = "",
    events: Annotated[
        int,
        typer.Option(
            "--events", "-n", min=0, max=100_000, metavar="N", help="Show the last N events of each stream."
        ),
    ] = 0,
    seq: Annotated[
        int | None, typer.Option("--seq", min=1, metavar="SEQ", help="Show this event in full.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Show one run, stream or event, decoded.

    Of a run: how it started, its streams, events by type, last values, and what was lost.
    """
    place = load(None, spool=spool).spool
    home = open_spool(place).uuid
    if not what:
        return _spool(place, home, as_json=as_json)
    site, run, writer = _find(place, what)
    if seq is not None:
        return _one(place, _only_stream(place, site, run, writer), seq, as_json=as_json)
    (facts,) = run_facts(place, site, run)
    if writer:
        streams = tuple(stream for stream in facts.streams if stream.key.writer == writer)
        facts = RunFacts(site=site, run=run, streams=streams, state=facts.state)
    if events:
        return _tail(place, facts, events, as_json=as_json)
    return _run(place, facts, as_json=as_json)


# -- finding -----------------------------------------------------------------------------------------------------------


def _find(spool: str, what: str) -> tuple[str, str, str]:
    """(site, run, writer or "") of RUN, SITE/RUN or SITE/RUN/WRITER. Raises UsageError when there is none."""
    parts = what.strip("/").split("/")
    if len(parts) > 3 or not all(is_legal(part) for part in parts):
        raise UsageError(f"{what!r} is not RUN, SITE/RUN or SITE/RUN/WRITER")
    found = list(iter_streams(spool))
    if len(parts) == 1:
        sites = sorted({key.site for key in found if key.run == parts[0]})
        if len(sites) > 1:
            choices = ", ".join(f"{site}/{parts[0]}" for site in sites)
            raise UsageError(f"run {parts[0]!r} is at several sites: name one of {choices}")
        parts = [*(sites or ["?"]), *parts]
    wanted = tuple(parts)
    if not any(key[: len(wanted)] == wanted for key in found):
        by_run = wanted[0] == "?"
        known = {key.run if by_run else "/".join(key[: len(wanted)]) for key in found}
        hint = (
            nearest(what.strip("/"), known) if len(known) <= 1000 else "'spoolagent ls' shows what there is"
        )
        raise UsageError(f"{spool} has no {what!r}: {hint}")
    return parts[0], parts[1], parts[2] if len(parts) > 2 else ""


def _only_stream(spool: str, site: str, run: str, writer: str) -> StreamKey:
    writers = [writer] if writer else [key.writer for key in iter_streams(spool, site, run)]
    if len(writers) != 1:
        choices = ", ".join(f"{site}/{run}/{name}" for name in writers)
        raise UsageError(f"--seq needs one stream, {site}/{run} has {len(writers)}: name one of {choices}")
    return StreamKey(site, run, writers[0])


# -- showing -----------------------------------------------------------------------------------------------------------


def _spool(place: str, home: str, *, as_json: bool) -> int:
    runs = list(run_facts(place))
    sites: dict[str, list[RunFacts]] = {}
    for run in runs:
        sites.setdefault(run.site, []).append(run)
    if as_json:
        print_json(
            {"spool": place, "uuid": home, "sites": {name: len(found) for name, found in sites.items()}}
        )
        return 0
    console = out()
    console.print(Text(f"spool {home}, format 1, {place}"), soft_wrap=True)
    rows = table("site", ">runs", ">streams", ">events", ">size", "states", "last news")
    for name, found in sites.items():
        streams = [stream for run in found for stream in run.streams]
        states = Counter(run.state or "unknown" for run in found)
        rows.add_row(
            shown(name),
            str(len(found)),
            str(len(streams)),
            str(sum(stream.last_seq for stream in streams)),
            size_text(sum(stream.bytes for stream in streams)),
            ", ".join(f"{count} {state}" for state, count in sorted(states.items())),
            ago_text(max((run.last_time_ns for run in found if run.last_time_ns is not None), default=None)),
        )
    console.print(rows)
    return 0


def _run(spool: str, facts: RunFacts, *, as_json: bool) -> int:
    tallies = {stream.key.writer: tally(spool, stream.key) for stream in facts.streams}
    start = _start(spool, facts)
    if as_json:
        print_json(_run_dict(spool, facts, tallies, start))
        return 0
    console = out()
    head = Text.assemble(
        (f"{facts.site}/{facts.run}", "bold"), "  ", state_text(facts.state, is_orphan=facts.is_orphan)
    )
    if facts.exit_code:
        head.append(f" (exit code {facts.exit_code})")
    console.print(head)
    for name, value in start.items():
        console.print(Text.assemble((f"  {clean(name)}: ", "dim"), clean(_plain(value))), soft_wrap=True)
    console.print(_streams(facts.streams, tallies))
    _print_metrics(console, tallies)
    return 0


def _start(spool: str, facts: RunFacts) -> dict[str, Any]:
    """What the run's first main stream says about it."""
    for stream in sorted(facts.streams, key=lambda s: (s.header is None or s.header.role != "main", s.key)):
        fields = start_fields(spool, stream.key)
        if fields:
            return {
                k: v for k, v in fields.items() if k not in ("seq", "type", "crc", "time", "attempt", "pid")
            }
    return {}


def _run_dict(
    spool: str, facts: RunFacts, tallies: dict[str, Tally], start: dict[str, Any]
) -> dict[str, Any]:
    found = run_json(spool, facts)
    found["start"] = start
    for stream in found["streams"]:
        counted = tallies[stream["writer"]]
        stream["types"] = dict(counted.types)
        stream["lost"], stream["bad_bytes"], stream["dropped"] = (
            counted.lost,
            counted.bad_bytes,
            counted.dropped,
        )
        stream["last_metrics"] = {
            k: {"step": step, "value": value} for k, (step, value) in counted.metrics.items()
        }
    return found


def _streams(streams: tuple[StreamFacts, ...], tallies: dict[str, Tally]) -> Any:
    rows = table(
        "stream", "role", ">attempt", "end", ">segments", ">events", ">size", "last event", "by type"
    )
    for stream in streams:
        counted = tallies[stream.key.writer]
        types = ", ".join(f"{count} {name}" for name, count in counted.types.most_common())
        for count, what in (
            (counted.lost, "lost"),
            (counted.dropped, "dropped by the writer"),
            (counted.bad_bytes, "bad bytes"),
        ):
            types += f"; {count} {what}" if count else ""
        types += f"; {stream.note or counted.note}" if stream.note or counted.note else ""
        rows.add_row(
            shown(stream.key.writer),
            stream.header.role if stream.header else "?",
            str(stream.header.attempt) if stream.header else "?",
            _end(stream),
            str(stream.segments),
            str(stream.last_seq),
            size_text(stream.bytes),
            time_text(stream.last_time_ns),
            shown(types),
        )
    return rows


def _end(stream: StreamFacts) -> str:
    if stream.ended is None:
        return {True: "open, alive", False: "open, writer gone", None: "open"}[stream.alive]
    return (
        f"{stream.ended}, {stream.end_status}"
        if stream.header and stream.header.role == "main"
        else stream.ended
    )


def _print_metrics(console: Console, tallies: dict[str, Tally]) -> None:
    merged: dict[str, tuple[int | None, object]] = {}
    for counted in tallies.values():
        merged.update(counted.metrics)
    if not merged:
        return
    rows = table("metric", ">last step", ">last value")
    for name, (step, value) in sorted(merged.items())[:_SHOWN_METRICS]:
        rows.add_row(shown(name, limit=60), "-" if step is None else str(step), shown(str(value), limit=40))
    console.print(rows)
    if len(merged) > _SHOWN_METRICS:
        console.print(f"and {len(merged) - _SHOWN_METRICS} metrics more; --json shows them")


def _tail(spool: str, facts: RunFacts, count: int, *, as_json: bool) -> int:
    console = out()
    for stream in facts.streams:
        found = last_events(spool, stream.key, count)
        if as_json:
            for event in found:
                print_json({"stream": str(stream.key), **_fields(event)}, line=True)
            continue
        console.print(Text(str(stream.key), style="bold"), soft_wrap=True)
        for event in found:
            console.print(
                _event_line(event), soft_wrap=not console.is_terminal, no_wrap=True, overflow="ellipsis"
            )
    return 0


def _event_line(event: Event) -> Text:
    rest = {k: v for k, v in event.data.items() if k not in ("seq", "time", "type", "crc", "step")}
    step = "" if event.step is None else f" step {event.step}"
    return Text.assemble(
        (f"{event.seq:>8}  ", "dim"),
        (time_text(event.time_ns if type(event.time_ns) is int else None), "dim"),
        "  ",
        (clean(str(event.type)), "cyan"),
        clean(step),
        "  ",
        clean(_plain(rest)),
    )


def _one(spool: str, key: StreamKey, seq: int, *, as_json: bool) -> int:
    event = one_event(spool, key, seq)
    if event is None:
        raise UsageError(f"{key} has no event {seq}: 'spoolagent inspect {spool} {key}' shows what it has")
    if as_json:
        print_json(_fields(event))
        return 0
    console = out()
    console.print(Text(f"{key}, seq {seq}, {time_text(event.time_ns)}", style="bold"), soft_wrap=True)
    text = json.dumps(_decoded(_fields(event)), indent=2, ensure_ascii=False, default=_bytes)
    console.print(Text("\n".join(clean(line) for line in text.split("\n"))), soft_wrap=True)
    return 0


def _fields(event: Event) -> dict[str, Any]:
    return {name: value for name, value in event.data.items() if name != "crc"}


def _decoded(value: Any) -> Any:
    try:
        return from_json(value)
    except ValueError:
        return value  # a tag of a later version: shown as it is


def _plain(value: Any) -> str:
    value = _decoded(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_bytes)


def _bytes(value: Any) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)
