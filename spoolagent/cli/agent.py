"""`ship` and `serve`: the verbs that run as services."""

import threading
from typing import Annotated

import typer

from spoolagent.cli.common import ConfigOption, note
from spoolagent.cli.settings import load

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
        "--sweep-interval", metavar="TIME", help="How often every stream is looked at, such as 500ms or 5s."
    ),
]
PollOption = Annotated[
    bool | None,
    typer.Option(
        "--poll/--no-poll",
        help="Never (or always) use file-system events; default: whatever the disk allows.",
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
    config: ConfigOption = None,
    sweep_interval: SweepOption = None,
    poll: PollOption = None,
) -> int:
    """Copy a spool to another one, resumably.

    Runs until it is stopped, or once. What the target has already is compared by hash.
    """
    found = load(config, spool=spool, ship__to=to, agent__sweep_interval=sweep_interval, agent__poll=poll)
    settings = found.ship_settings(once=once)
    from spoolagent.shipping.shipper import ship as run

    return run(settings, stop=threading.Event(), report=note)


@app.command(
    epilog="Examples: [bold]spoolagent serve --spool ./spool --to tensorboard:./tb[/bold]\n\n"
    "[bold]spoolagent serve --spool /srv/spool --to mlflow:http://localhost:5000 --to tensorboard:/srv/tb[/bold]\n\n"
    "[bold]spoolagent serve --config /etc/spoolagent.toml[/bold]"
)
def serve(
    spool: SpoolOption = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to", metavar="RECEIVER", help="kind:target, or a name in the configuration; may be repeated."
        ),
    ] = None,
    config: ConfigOption = None,
    sweep_interval: SweepOption = None,
    poll: PollOption = None,
) -> int:
    """Watch a spool and deliver it to receivers until stopped.

    A receiver is tensorboard:LOGDIR, mlflow:TRACKING_URI, wandb:offline:DIR,
    jsonl:FILE, or a name from the configuration.
    Each has its own process and cursor: one that is away delays nobody.
    """
    found = load(config, spool=spool, serve__to=to, agent__sweep_interval=sweep_interval, agent__poll=poll)
    settings = found.serve_settings()
    from spoolagent.serving.supervisor import serve as run

    return run(settings, report=note)
