"""`config check` and `config init`."""

import contextlib
import os
from typing import Annotated, Any

import typer
from rich.text import Text

from spoolagent.cli.common import ConfigOption, JsonOption, clean, note, out, print_json, shown, table
from spoolagent.cli.example import EXAMPLE
from spoolagent.cli.settings import load
from spoolagent.config import DEFAULT_FILE, Config
from spoolagent.config_receivers import receiver_from_argument
from spoolagent.config_secrets import hide_password
from spoolagent.errors import UsageError
from spoolagent.format.durable import write_file
from spoolagent.serving.registry import load_receiver
from spoolagent.settings import AgentSettings, ReceiverSettings

app = typer.Typer(help="Check or begin a configuration file.", invoke_without_command=True)


@app.callback()
def _root(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@app.command(epilog="Example: [bold]spoolagent config check --config spoolagent.toml[/bold]")
def check(config: ConfigOption = None, as_json: JsonOption = False) -> int:
    """Check the configuration as `ship`, `serve` and `replay` would see it, and show it. Connects to nothing.

    Exit code 2 when something is wrong. Warns of secrets that stand in the file.
    """
    found = load(config)
    for receiver in _all_receivers(found):
        try:
            load_receiver(receiver.spec, receiver.options)
        except UsageError as error:
            raise UsageError(f"{_where(found, receiver)}: {hide_password(str(error))}") from None
    if as_json:
        print_json(_as_dict(found))
    else:
        _show(found)
    for warning in found.warnings:
        note(f"warning: {warning}")
    return 0


@app.command(epilog="Example: [bold]spoolagent config init spoolagent.toml[/bold]")
def init(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Where to write it; never over a file.")
    ] = DEFAULT_FILE,
) -> int:
    """Write a commented example configuration."""
    path = os.path.abspath(file)
    with contextlib.suppress(OSError):
        if os.path.isdir(path):
            raise UsageError(
                f"{file} is a directory: name a file in it, such as {os.path.join(file, DEFAULT_FILE)}"
            )
    try:
        write_file(path, EXAMPLE.encode(), exclusive=True)
    except FileExistsError:
        raise UsageError(
            f"{file} is there already and was left alone: choose another name, or remove it"
        ) from None
    except FileNotFoundError:
        raise UsageError(f"{os.path.dirname(path)} does not exist: make the directory first") from None
    print(f"wrote {clean(file)}; edit it, then run: spoolagent config check --config {clean(file)}")
    return 0


def _all_receivers(found: Config) -> list[ReceiverSettings]:
    """Those in the file, and those that `serve` would use."""
    where = found.sources.get("serve.to", "serve.to")
    named = dict(found.receivers)
    for argument in found.serve_to:
        receiver = receiver_from_argument(argument, found.receivers, where)
        named.setdefault(receiver.name, receiver)
    return list(named.values())


def _where(found: Config, receiver: ReceiverSettings) -> str:
    if receiver.name in found.receivers:
        return f"{found.file}: receivers.{receiver.name}"
    return found.sources.get("serve.to", receiver.name)


def _values(found: Config) -> dict[str, Any]:
    """Every key with the value that counts."""
    agent = AgentSettings(spool=found.spool, **found.agent)
    return {
        "spool": found.spool or None,
        "agent.sweep_interval": agent.sweep_interval_s,
        "agent.stale_after": agent.stale_after_s,
        "agent.presume_dead_after": agent.presume_dead_after_s,
        "agent.patience": agent.patience_s,
        "agent.stuck_after": agent.stuck_after_s,
        "agent.poll": "auto" if agent.poll is None else agent.poll,
        "ship.to": hide_password(found.ship_to) if found.ship_to else None,
        "serve.to": [hide_password(item) for item in found.serve_to],
    }


def _as_dict(found: Config) -> dict[str, Any]:
    receivers = {
        receiver.name: {
            "to": hide_password(receiver.spec),
            "max_events": receiver.max_events,
            "max_bytes": receiver.max_bytes,
            "flush_interval": receiver.flush_interval_s,
            "options": sorted(receiver.options),
        }
        for receiver in _all_receivers(found)
    }
    return {
        "file": found.file,
        "values": _values(found),
        "sources": {key: _source(where) for key, where in found.sources.items()},
        "receivers": receivers,
        "warnings": list(found.warnings),
    }


def _source(where: str) -> str:
    return where.rpartition(": ")[0] or where


def _show(found: Config) -> None:
    console = out()
    console.print(Text(f"{found.file or 'no configuration file'}: correct", style="bold"), soft_wrap=True)
    rows = table("key", "value", "from")
    for key, value in _values(found).items():
        text = "-" if value in (None, []) else f"{value:g} s" if isinstance(value, float) else _plain(value)
        rows.add_row(
            key, shown(text), shown(_source(found.sources[key]) if key in found.sources else "default", "dim")
        )
    console.print(rows)
    receivers = table(
        "receiver", "delivers to", ">max_events", ">max_bytes", ">flush_interval", "own options"
    )
    for one in _all_receivers(found):
        receivers.add_row(
            shown(hide_password(one.name)),
            shown(hide_password(one.spec)),
            str(one.max_events),
            str(one.max_bytes),
            f"{one.flush_interval_s:g} s",
            shown(", ".join(sorted(one.options)) or "-"),
        )
    if receivers.row_count:
        console.print(receivers)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
