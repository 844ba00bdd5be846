"""The command line: the composition root. It turns every foreseeable error into one line and an exit code.

Exit codes: 0 done, 1 something was not delivered or did not verify, 2 usage, 3 a tracker or server is away.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import spoolagent
from spoolagent.cli import agent, check, configure, dead_letters, demo, inspect, listing, replay, status
from spoolagent.cli.common import note
from spoolagent.errors import SpoolError
from spoolagent.words import Seldom, tell_words

_INTERRUPTED = 130
_BROKEN_PIPE = 141
_CommandLineError: type[Exception] = next(
    c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"
)
"""The base of what Typer raises for a wrong command line; newer versions of Typer bring their own click."""

app = typer.Typer(
    name="spoolagent",
    help="Experiment tracking that never needs the network: log to a spool, ship it, replay it into trackers.",
    epilog="Start with: [bold]spoolagent demo[/bold]",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (demo, agent, replay, status, listing, inspect, check):
    app.add_typer(module.app)
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(configure.app, name="config")


def _print_version(value: bool) -> None:
    if value:
        print(f"spoolagent {spoolagent.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def run(args: Sequence[str]) -> int:
    """Runs one command and returns its exit code; errors become a line on standard error."""
    try:
        result = app(list(args), standalone_mode=False, prog_name="spoolagent")
        sys.stdout.flush()
    except SpoolError as error:
        note(str(error))
        return error.exit_code
    except (BrokenPipeError, SystemExit):  # Typer exits by itself for a broken pipe, and for nothing else
        return _BROKEN_PIPE  # the reader (head, a pager) has left: nothing is wrong
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        note(
            f"{place}{error.strerror or error}; check the path, its owner and mode, and the space on the disk"
        )
        return 1
    except (KeyboardInterrupt, typer.Abort):
        note("interrupted")
        return _INTERRUPTED
    except _CommandLineError as error:
        note(_usage_message(error))
        return 2
    return result if isinstance(result, int) else 0


def _usage_message(error: Exception) -> str:
    """Typer's own message as one line, with where to read on."""
    text = " ".join(str(getattr(error, "format_message", lambda: error)()).split()).rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{text}; see '{context.command_path if context else 'spoolagent'} --help'"


def main() -> None:
    """The entry point of the `spoolagent` command."""
    for name in ("stdin", "stdout", "stderr"):  # closed by the caller (`>&-`): Python has None for them
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - until the end
    tell_words(Seldom(note))
    code = run(sys.argv[1:])
    _drop_unwritten()
    sys.exit(code)


def _drop_unwritten() -> None:
    """What a full disk, a closed terminal or pipe did not take is not tried again by Python at its exit.

    It would say so a second time, and end with its own code, 120.
    """
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


if __name__ == "__main__":
    main()
