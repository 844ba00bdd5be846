"""`demo`: the whole thing on this machine."""

from typing import Annotated

import typer

app = typer.Typer()


@app.command(epilog="Example: [bold]spoolagent demo --out ./spoolagent-demo[/bold]")
def demo(
    out: Annotated[
        str,
        typer.Option("--out", metavar="DIR", help="Where the demo's spools and results go; made if missing."),
    ] = "spoolagent-demo",
) -> int:
    """Show the whole thing on this machine.

    Trains, logs to a spool, ships it, replays it into trackers and compares.
    """
    from spoolagent.demo.run import run_demo

    return run_demo(out)
