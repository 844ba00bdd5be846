"""`ship` and `serve`: the verbs that run as services."""

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from spoolagent.cli.common import ConfigOption, JsonOption, note, print_json, size_text
from spoolagent.cli.progress import ByteProgress
from spoolagent.cli.settings import load

if TYPE_CHECKING:
    from spoolagent.shipping.report import Note, ShipReport

app = typer.Typer()

SpoolOption = Annotated[
    str | None,
    typer.Option(
        "--spool", metavar="DIR", help="The spool; default: SPOOLAGENT_SPOOL, `spool` in the config."
    ),
]
SweepOption = Annotated[
    str | None,
    typer.Option(
        "--sweep-interval", metavar="TIME", help="How often every stream is looked at, such as 500ms."
    ),
]
PollOption = Annotated[
    bool | None,
    typer.Option(
        "--poll/--no-poll", help="Never (always) use file-system events; default: as the disk allows."
    ),
]


@app.command(
    epilog="Examples: [bold]spoolagent ship --spool ./spool --to /mnt/server/spool[/bold]\n\n"
    "[bold]spoolagent ship --spool ./spool --to /media/disk/spool --once[/bold]"
)
def ship(
    spool: SpoolOption = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="TARGET", help="A directory: the spool to copy to.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Copy what is there, then end.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    sweep_interval: SweepOption = None,
    poll: PollOption = None,
) -> int:
    """Copy a spool to another one, resumably.

    Runs until it is stopped (Ctrl-C, SIGTERM, SIGHUP), or once. What the target has already is compared by hash.
    Exit code 1: something could not be shipped. 3: the target was away (with --once).
    """
    found = load(config, spool=spool, ship__to=to, agent__sweep_interval=sweep_interval, agent__poll=poll)
    settings = found.ship_settings(once=once)
    from spoolagent.notify import notify
    from spoolagent.shipping.shipper import ship as run
    from spoolagent.stopping import Stop, stop_on_signals

    stop = Stop()
    with stop_on_signals(stop), ByteProgress("shipping", lambda: None) as progress:

        def tell(said: "Note") -> None:
            if said.kind == "shipped":
                progress.advance(said.size_bytes)
            else:
                progress.say(said.text)

        if not once:
            note(f"shipping {settings.agent.spool} to {settings.target} (pid {os.getpid()})")
        notify("READY=1")
        report = run(settings, stop=stop, report=tell)
        notify("STOPPING=1")
    is_cut_short = once and stop.is_set()
    code = stop.exit_code if is_cut_short else report.exit_code
    if as_json:
        print_json({**asdict(report), "exit_code": code})
    else:
        _summary(report, settings.target)
    if is_cut_short:
        note("interrupted: run it again, it goes on where it stopped")
    return code


def _summary(report: "ShipReport", target: str) -> None:
    line = f"{target}: {size_text(report.shipped_bytes)} shipped, {report.shipped_lines} lines"
    if report.shipped_blobs:
        line += f", {report.shipped_blobs} blobs"
    line += f"; {report.complete} of {report.streams} streams are ended and complete"
    for kind in ("forks", "longer", "parked", "waiting", "errors"):
        found = getattr(report, kind)
        if found:
            line += f", {len(found)} {kind}"
    note(line)


@app.command(
    epilog="Examples: [bold]spoolagent serve --spool ./spool --to tensorboard:./tb[/bold]\n\n"
    "[bold]spoolagent serve --spool /srv/spool --to mlflow:http://localhost:5000 --to jsonl:/srv/events.jsonl[/bold]\n\n"
    "[bold]spoolagent serve --config /etc/spoolagent.toml[/bold]"
)
def serve(
    spool: SpoolOption = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to", metavar="RECEIVER", help="kind:target, or a name in the config; may be repeated."
        ),
    ] = None,
    config: ConfigOption = None,
    sweep_interval: SweepOption = None,
    poll: PollOption = None,
) -> int:
    """Watch a spool and deliver it to receivers until stopped (Ctrl-C, SIGTERM, SIGHUP).

    A receiver is tensorboard:LOGDIR, mlflow:TRACKING_URI, wandb:offline:DIR,
    jsonl:FILE, or a name from the configuration.
    Each has its own process and cursor: one that is away delays nobody.
    """
    found = load(config, spool=spool, serve__to=to, agent__sweep_interval=sweep_interval, agent__poll=poll)
    settings = found.serve_settings()
    from spoolagent.serving.supervisor import serve as run

    return run(settings, report=note)
