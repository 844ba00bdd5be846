"""`status`: how the spool and its receivers stand."""

import re
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from spoolagent.cli.common import (
    ConfigOption,
    JsonOption,
    SpoolArgument,
    SpoolFlag,
    ago_text,
    clean,
    one_of,
    out,
    print_json,
    shown,
    size_text,
    state_text,
    table,
)
from spoolagent.cli.settings import spool_of
from spoolagent.config_secrets import hide_password
from spoolagent.format.facts import RunFacts, run_facts
from spoolagent.format.layout import StreamKey
from spoolagent.format.spool import open_spool
from spoolagent.serving.status import ReceiverStatus, read_status

app = typer.Typer()

_BEHIND_SHOWN = 10
_BLOB = re.compile(r"blob ([0-9a-f]{64}) (?:has not arrived|is damaged)")
_LONG_S = 10.0
"""A call that takes longer than this is worth a line."""


@app.command(
    epilog="Examples: [bold]spoolagent status ./spool[/bold]\n\n"
    "[bold]spoolagent status ./spool --json | jq '.receivers[] | {name, pending, dead}'[/bold]"
)
def status(
    spool: SpoolArgument = None,
    as_json: JsonOption = False,
    every: Annotated[
        bool, typer.Option("--all", help="Name every stream that is behind, not only ten.")
    ] = False,
    flag: SpoolFlag = None,
    config: ConfigOption = None,
) -> int:
    """Show how a spool and its receivers stand.

    Per receiver: its worker's state, delivered, pending, dead letters, lost,
    dropped, and why it waits. Exit code 0, however things stand.
    A spool that was never served shows its streams.
    """
    place = spool_of(one_of(spool, flag), config)
    uuid = open_spool(place).uuid
    runs = list(run_facts(place))
    last = {stream.key: stream.last_seq for run in runs for stream in run.streams}
    receivers = [_facts(receiver, last) for receiver in read_status(place)]
    if as_json:
        print_json({"spool": place, "uuid": uuid, **_spool_facts(runs), "receivers": receivers})
        return 0
    console = out()
    _print_spool(console, place, uuid, runs)
    for receiver in receivers:
        _print_receiver(console, receiver, None if every else _BEHIND_SHOWN)
    if not receivers:
        _print_streams(console, runs)
    return 0


def _spool_facts(runs: list[RunFacts]) -> dict[str, Any]:
    streams = [stream for run in runs for stream in run.streams]
    states: dict[str, int] = {}
    for run in runs:
        states[run.state or "unknown"] = states.get(run.state or "unknown", 0) + 1
    return {
        "sites": len({run.site for run in runs}),
        "runs": len(runs),
        "states": states,
        "streams": len(streams),
        "open_streams": sum(stream.ended is None for stream in streams),
        "writers_gone": sum(stream.ended is None and stream.alive is False for stream in streams),
        "events": sum(stream.last_seq for stream in streams),
        "bytes": sum(stream.bytes for stream in streams),
        "last_time_ns": max((run.last_time_ns for run in runs if run.last_time_ns is not None), default=None),
    }


def _facts(receiver: ReceiverStatus, last: dict[StreamKey, int]) -> dict[str, Any]:
    """What is told of a receiver; passwords in its target's address are hidden."""
    resolved = {cursor.key: cursor.next_seq - 1 for cursor in receiver.cursors}
    behind = {
        str(key): seq - resolved.get(key, 0)
        for key, seq in last.items()
        if ".fork-" not in key.writer and seq > resolved.get(key, 0)  # forks are kept, and never delivered
    }
    return {
        "name": hide_password(receiver.name),
        "target": hide_password(receiver.identity),
        "running": receiver.is_running,
        "state": receiver.state,
        "doing": receiver.doing,
        "doing_s": round(receiver.doing_s, 1),
        "pid": receiver.pid,
        "error": hide_password(receiver.error),
        "retry_in_s": receiver.retry_in_s if receiver.error else None,
        "recovered": receiver.recovered,
        "delivered": receiver.applied,
        "pending": sum(behind.values()),
        "dead": receiver.dead,
        "to_retry": receiver.to_retry,
        "dropped_dead_letters": receiver.dropped_letters,
        "lost": receiver.lost,
        "lost_seqs": [
            {"stream": stream, "first": first, "last": last, "reason": reason}
            for stream, first, last, reason in receiver.lost_seqs
        ],
        "quarantined": receiver.quarantined,
        "damaged": receiver.damaged,
        "damage": list(receiver.damage),
        "skipped": receiver.skipped,
        "dropped_by_writers": sum(cursor.dropped for cursor in receiver.cursors),
        "behind": dict(sorted(behind.items(), key=lambda item: -item[1])),
        "gaps": {str(cursor.key): cursor.dropped for cursor in receiver.cursors if cursor.dropped},
        "blocked": [
            {"stream": stream, "reason": reason, "blob": _blob_in(reason)}
            for stream, reason in receiver.blocked
        ],
        "folder": receiver.folder,
    }


def _blob_in(reason: str) -> str | None:
    """The hash of the missing or damaged blob for which a stream waits."""
    found = _BLOB.search(reason)
    return found[1] if found else None


# -- for people ----------------------------------------------------------------------------------------------------


def _print_spool(console: Console, place: str, uuid: str, runs: list[RunFacts]) -> None:
    facts = _spool_facts(runs)
    states = (
        ", ".join(f"{count} {state}" for state, count in sorted(facts["states"].items())) or "no runs yet"
    )
    console.print(Text.assemble((place, "bold"), (f"  {uuid}", "dim")), soft_wrap=True)
    console.print(
        Text(
            f"  {facts['sites']} sites, {facts['runs']} runs ({states}), {facts['streams']} streams "
            f"({facts['open_streams']} open), {facts['events']} events, {size_text(facts['bytes'])}, "
            f"last news {ago_text(facts['last_time_ns'])}"
        ),
        soft_wrap=True,
    )
    if facts["writers_gone"]:
        text = f"  {facts['writers_gone']} streams are open though their writers are gone: an agent on this machine ends them"
        console.print(Text(text, style="yellow"), soft_wrap=True)


def _print_receiver(console: Console, facts: dict[str, Any], limit: int | None) -> None:
    running = Text("not running", style="dim")
    if facts["running"]:
        style = {"idle": "green", "working": "green", "backoff": "yellow"}.get(facts["state"], "bold red")
        running = Text(f"running, pid {facts['pid']}, {facts['state']}", style=style)
    console.print()
    console.print(Text.assemble((clean(facts["name"]), "bold"), "  ", running), soft_wrap=True)
    for name, text, style in _lines(facts, limit):
        console.print(Text.assemble((f"  {name:<13}", "dim"), (clean(text), style)), soft_wrap=True)


def _lines(facts: dict[str, Any], limit: int | None) -> Iterable[tuple[str, str, str]]:
    """(what, how it stands, style), what is fine left out."""
    if facts["target"] != facts["name"]:
        yield "target", facts["target"], ""
    if facts["state"] == "stuck" or facts["doing_s"] > _LONG_S:
        style = "bold red" if facts["state"] == "stuck" else "yellow"
        yield "no progress", f"{facts['doing']}, for {facts['doing_s']:.0f} s", style
    yield "delivered", f"{facts['delivered']} events", ""
    behind = facts["behind"]
    where = f" in {len(behind)} streams" if behind else ""
    yield "pending", f"{facts['pending']} events{where}", "yellow" if behind and not facts["running"] else ""
    for stream, count in list(behind.items())[:limit]:
        yield "", f"{stream}: {count}", "dim"
    if limit is not None and len(behind) > limit:
        yield "", f"and {len(behind) - limit} streams more; --all names them", "dim"
    yield from _troubles(facts)
    for key, name, style, unit in (
        ("dead", "dead letters", "red", "events were refused for good"),
        ("to_retry", "to retry", "yellow", "of them are to be delivered again"),
        ("dropped_dead_letters", "not wanted", "dim", "dead letters were dropped by an operator"),
        ("lost", "lost", "red", "events: their bytes are destroyed"),
        ("quarantined", "quarantine", "yellow", "pieces of bytes that are no events"),
        ("damaged", "damage", "red", "times its files were found damaged"),
        ("dropped_by_writers", "dropped", "yellow", "events could not be written when they were logged"),
    ):
        if facts[key]:
            yield name, f"{facts[key]} {unit}", style
        yield from _details(facts, key)
    if facts["skipped"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in facts["skipped"].items())
        yield "skipped", f"{kinds}: this tracker has no way to show them", ""
    for item in facts["blocked"]:
        yield "blocked", f"{item['stream']}: {item['reason']}", "yellow"


def _troubles(facts: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    if facts["state"] == "damaged":
        yield "damaged", facts["error"], "bold red"
    elif facts["error"]:
        yield "waits", f"{facts['error']}; tries again in {facts['retry_in_s']:.0f} s", "red"
    if facts["recovered"]:
        yield "recovered", facts["recovered"], "yellow"


def _details(facts: dict[str, Any], key: str) -> Iterable[tuple[str, str, str]]:
    """Where it is that events are lost or were never written."""
    lines = []
    if key == "lost":
        lines = [
            f"{x['stream']}: seqs {x['first']} to {x['last']}: {x['reason']}" for x in facts["lost_seqs"]
        ]
    elif key == "damaged":
        lines = facts["damage"]
    elif key == "dropped_by_writers":
        lines = [f"{stream}: {count}" for stream, count in facts["gaps"].items()]
    for line in lines[:_BEHIND_SHOWN]:
        yield "", line, "dim"
    if len(lines) > _BEHIND_SHOWN:
        yield "", f"and {len(lines) - _BEHIND_SHOWN} more; --json names them", "dim"


def _print_streams(console: Console, runs: list[RunFacts]) -> None:
    console.print()
    console.print(
        Text("no receiver was ever used with this spool; its streams:", style="dim"), soft_wrap=True
    )
    rows = table("stream", "run is", "stream is", ">events", ">size", "last news")
    for run in runs:
        for stream in run.streams:
            open_ = {True: "open, alive", False: "open, writer gone", None: "open"}[stream.alive]
            rows.add_row(
                shown(str(stream.key)),
                state_text(run.state, is_orphan=run.is_orphan),
                stream.ended or open_,
                str(stream.last_seq),
                size_text(stream.bytes),
                ago_text(stream.last_time_ns),
            )
    if rows.row_count:
        console.print(rows)
