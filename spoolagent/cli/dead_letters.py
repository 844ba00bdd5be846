"""`dead-letters list|show|retry|drop`: what receivers refused for good, and what is to become of it."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.text import Text

from spoolagent.cli.common import ConfigOption, JsonOption, ago_text, clean, note, out, print_json, time_text
from spoolagent.cli.settings import load, spool_of
from spoolagent.config_receivers import receiver_from_argument
from spoolagent.config_secrets import hide_password
from spoolagent.config_values import nearest
from spoolagent.errors import SpoolError, UsageError
from spoolagent.format.spool import open_spool
from spoolagent.format.values import from_json
from spoolagent.serving.dead_letters import Choice, DeadLetter, LetterState, event_of, mark, read_letters
from spoolagent.serving.registry import load_receiver
from spoolagent.serving.status import ReceiverStatus, read_status

app = typer.Typer(help="Events that a receiver refused for good.", invoke_without_command=True)

_SHOWN = 100
_STATES: tuple[LetterState, ...] = ("dead", "retry", "dropped")

SpoolOption = Annotated[
    str | None,
    typer.Option(
        "--spool", metavar="DIR", help="The spool; default: SPOOLAGENT_SPOOL, `spool` in the config, ./spool."
    ),
]
ReceiverOption = Annotated[
    str | None,
    typer.Option("--receiver", metavar="RECEIVER", help="Of this receiver only: its name, or kind:target."),
]
SiteOption = Annotated[
    list[str] | None, typer.Option("--site", metavar="SITE", help="Of this site; may be repeated.")
]
RunOption = Annotated[
    list[str] | None, typer.Option("--run", metavar="RUN", help="Of this run; may be repeated.")
]
WriterOption = Annotated[
    list[str] | None, typer.Option("--writer", metavar="WRITER", help="Of this writer; may be repeated.")
]
TypeOption = Annotated[
    list[str] | None, typer.Option("--type", metavar="TYPE", help="Events of this type; may be repeated.")
]
SeqOption = Annotated[
    list[int] | None, typer.Option("--seq", min=1, metavar="SEQ", help="This event; may be repeated.")
]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Those whose reason has this text in it.")
]
EveryOption = Annotated[bool, typer.Option("--all", help="All of them; else say which.")]


@app.callback()
def _root(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@app.command(
    "list",
    epilog="Examples: [bold]spoolagent dead-letters list --spool ./spool[/bold]\n\n"
    "[bold]spoolagent dead-letters list --spool ./spool --receiver mlflow --json | jq -r .reason[/bold]",
)
def list_(
    spool: SpoolOption = None,
    receiver: ReceiverOption = None,
    site: SiteOption = None,
    run: RunOption = None,
    writer: WriterOption = None,
    event_type: TypeOption = None,
    seq: SeqOption = None,
    reason: ReasonOption = None,
    state: Annotated[
        str | None,
        typer.Option("--state", metavar="STATE", help="Only those that are dead, retry or dropped."),
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """List dead letters: stream, seq, type, when, and why.

    Exit code 1 when there are any that nobody dropped, else 0.
    With --json: one a line, and a summary in the last line.
    """
    place = _place(spool, config)
    choice = _choice(site, run, writer, event_type, seq, reason)
    if state is not None:
        choice = replace(choice, states=(_state(state),))
    counts: dict[str, int] = dict.fromkeys(_STATES, 0)
    for target in _targets(place, receiver, config):
        _list_one(target, choice, counts, as_json=as_json)
    if as_json:
        print_json({"spool": place, **counts}, line=True)
    elif not any(counts.values()):
        print(f"{clean(place)}: no dead letters")
    return 1 if counts["dead"] + counts["retry"] else 0


@app.command(
    epilog="Example: [bold]spoolagent dead-letters show --spool ./spool --run my-run --seq 4097[/bold]"
)
def show(
    spool: SpoolOption = None,
    receiver: ReceiverOption = None,
    site: SiteOption = None,
    run: RunOption = None,
    writer: WriterOption = None,
    event_type: TypeOption = None,
    seq: SeqOption = None,
    reason: ReasonOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Show dead letters with their events, decoded from the spool.

    Exit code 1 when the bytes of one are gone (pruned, damaged).
    """
    place = _place(spool, config)
    choice = _choice(site, run, writer, event_type, seq, reason)
    seen, code = 0, 0
    for target in _targets(place, receiver, config):
        for letter in _letters(target, choice):
            seen += 1
            code |= _show_one(place, target, letter, as_json=as_json)
            if seen == _SHOWN and not as_json:
                note(f"only the first {_SHOWN} are shown: narrow it, or use --json")
                return code
    if not seen:
        raise UsageError(_nothing(place))
    return code


@app.command(
    epilog="Examples: [bold]spoolagent dead-letters retry --spool ./spool --receiver mlflow --all[/bold]\n\n"
    "[bold]spoolagent dead-letters retry --spool ./spool --run my-run --type image[/bold]"
)
def retry(
    spool: SpoolOption = None,
    receiver: ReceiverOption = None,
    site: SiteOption = None,
    run: RunOption = None,
    writer: WriterOption = None,
    event_type: TypeOption = None,
    seq: SeqOption = None,
    reason: ReasonOption = None,
    every: EveryOption = False,
    dropped: Annotated[bool, typer.Option("--dropped", help="Also those that were dropped.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Mark dead letters as to be delivered again.

    A running `serve` does it at its next sweep; else the next `serve` or `replay` does.
    """
    choice = _narrow(_choice(site, run, writer, event_type, seq, reason), every=every)
    states: tuple[LetterState, ...] = ("dead", "retry", "dropped") if dropped else ("dead", "retry")
    return _mark(_place(spool, config), receiver, replace(choice, states=states), "retry", config, as_json)


@app.command(
    epilog="Example: [bold]spoolagent dead-letters drop --spool ./spool --run old-run --type video[/bold]"
)
def drop(
    spool: SpoolOption = None,
    receiver: ReceiverOption = None,
    site: SiteOption = None,
    run: RunOption = None,
    writer: WriterOption = None,
    event_type: TypeOption = None,
    seq: SeqOption = None,
    reason: ReasonOption = None,
    every: EveryOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Acknowledge dead letters as not wanted: they stay on record as dropped.

    One whose retry is under way may still be delivered.
    """
    choice = _narrow(_choice(site, run, writer, event_type, seq, reason), every=every)
    return _mark(_place(spool, config), receiver, choice, "dropped", config, as_json)


# -- which -----------------------------------------------------------------------------------------------------------


def _place(spool: str | None, config: str | None) -> str:
    return open_spool(spool_of(spool, config)).path


def _choice(
    site: list[str] | None,
    run: list[str] | None,
    writer: list[str] | None,
    event_type: list[str] | None,
    seq: list[int] | None,
    reason: str | None,
) -> Choice:
    return Choice(
        sites=tuple(site or ()),
        runs=tuple(run or ()),
        writers=tuple(writer or ()),
        types=tuple(event_type or ()),
        seqs=tuple(seq or ()),
        reason=reason or "",
    )


def _narrow(choice: Choice, *, every: bool) -> Choice:
    """To mark everything by a forgotten option would be a pity."""
    if choice == Choice() and not every:
        raise UsageError("which ones? give --site, --run, --writer, --type, --seq or --reason, or --all")
    return choice


def _state(text: str) -> LetterState:
    for state in _STATES:
        if text == state:
            return state
    raise UsageError(f"--state: no state {text!r}: {nearest(text, _STATES)}")


def _targets(place: str, receiver: str | None, config: str | None) -> list[ReceiverStatus]:
    """The receivers that the spool was ever used with; or the one that is meant. Raises UsageError."""
    known = read_status(place)
    if receiver is None:
        return known
    found = [target for target in known if receiver in (target.name, target.identity)]
    if not found:
        meant = receiver_from_argument(receiver, load(config).receivers, "--receiver")
        identity = load_receiver(meant.spec, meant.options).identity
        found = [target for target in known if target.identity == identity]
    if not found:
        names = ", ".join(sorted({hide_password(target.name) for target in known})) or "none"
        raise UsageError(f"--receiver: {hide_password(receiver)} was never used with {place}; known: {names}")
    return found


def _letters(target: ReceiverStatus, choice: Choice) -> Iterator[DeadLetter]:
    try:
        yield from read_letters(target.folder, choice)
    except sqlite3.Error as error:
        raise SpoolError(f"{target.folder}/state.sqlite cannot be read: {error}") from error


def _nothing(place: str) -> str:
    return f"{place} has no such dead letter; 'spoolagent dead-letters list' shows what there is"


# -- marking -----------------------------------------------------------------------------------------------------------


def _mark(
    place: str, receiver: str | None, choice: Choice, state: LetterState, config: str | None, as_json: bool
) -> int:
    changed: dict[str, int] = {}
    matched = 0
    targets = _targets(place, receiver, config)
    for target in targets:
        try:
            if next(read_letters(target.folder, choice), None) is None:
                continue
            matched += 1
            changed[hide_password(target.identity)] = mark(target.folder, choice, state)
        except sqlite3.Error as error:
            raise SpoolError(
                f"{target.folder}/state.sqlite: {error}: make room or check its mode, then try again"
            ) from error
    if not matched and replace(choice, states=()) != Choice():
        raise UsageError(_nothing(place))
    total = sum(changed.values())
    if as_json:
        print_json({"spool": place, state: total, "receivers": changed})
        return 0
    running = any(target.is_running for target in targets)
    when = "the worker retries them at its next sweep" if running else "the next serve or replay retries them"
    after = f"; {when}" if total and state == "retry" else ""
    print(f"{total} dead letters {'are to be retried' if state == 'retry' else 'dropped'}{after}")
    return 0


# -- showing -----------------------------------------------------------------------------------------------------------


def _facts(target: ReceiverStatus, letter: DeadLetter) -> dict[str, Any]:
    return {
        "receiver": hide_password(target.name),
        "target": hide_password(target.identity),
        "site": letter.key.site,
        "run": letter.key.run,
        "writer": letter.key.writer,
        "seq": letter.seq,
        "type": letter.type,
        "state": letter.state,
        "reason": letter.reason,
        "time_ns": letter.time_ns,
        "retries": letter.retries,
    }


def _list_one(target: ReceiverStatus, choice: Choice, counts: dict[str, int], *, as_json: bool) -> None:
    console, shown = out(), 0
    for letter in _letters(target, choice):
        counts[letter.state] += 1
        if as_json:
            print_json(_facts(target, letter), line=True)
            continue
        if not shown:
            console.print(Text(clean(hide_password(target.name)), style="bold"), soft_wrap=True)
        shown += 1
        if shown <= _SHOWN:
            console.print(_line(letter), soft_wrap=True)
    if shown > _SHOWN:
        console.print(f"  and {shown - _SHOWN} more; --json lists them all", style="dim", soft_wrap=True)


def _line(letter: DeadLetter) -> Text:
    style = {"dead": "red", "retry": "yellow", "dropped": "dim"}[letter.state]
    return Text.assemble(
        "  ",
        (f"{letter.state:<8}", style),
        clean(f"{letter.key} seq {letter.seq} {letter.type}"),
        (f", {ago_text(letter.time_ns)}: ", "dim"),
        clean(letter.reason),
    )


def _show_one(place: str, target: ReceiverStatus, letter: DeadLetter, *, as_json: bool) -> int:
    event, why = event_of(place, letter)
    data = None if event is None else {name: value for name, value in event.data.items() if name != "crc"}
    if as_json:
        print_json({**_facts(target, letter), "event": data, "missing": why or None}, line=True)
        return int(event is None)
    console = out()
    console.print(_line(letter), soft_wrap=True)
    tried = f", retried {letter.retries} times" if letter.retries else ""
    about = f"    {hide_password(target.name)}, refused {time_text(letter.time_ns)}{tried}"
    console.print(Text(clean(about), style="dim"), soft_wrap=True)
    text = f"the event cannot be shown: {why}" if data is None else _decoded(data)
    for line in text.splitlines():
        console.print(Text(f"    {clean(line)}"), soft_wrap=True)
    return int(event is None)


def _decoded(data: dict[str, Any]) -> str:
    try:
        value = from_json(data)
    except ValueError:
        value = data
    return json.dumps(value, indent=2, ensure_ascii=False, default=_odd)


def _odd(value: Any) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)
