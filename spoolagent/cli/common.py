"""What the verbs share: options, consoles, JSON, and how times, sizes and foreign text are shown."""

import contextlib
import os
import sys
import time
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spoolagent.errors import UsageError

ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE", help="Settings; default: SPOOLAGENT_CONFIG, else ./spoolagent.toml."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")]
SpoolArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="SPOOL", help="The spool; default: SPOOLAGENT_SPOOL, `spool` in the config, else ./spool."
    ),
]
SpoolFlag = Annotated[
    str | None, typer.Option("--spool", metavar="DIR", help="The spool, where it is not given as SPOOL.")
]


def one_of(argument: str | None, flag: str | None) -> str | None:
    """The spool that was given as an argument or by `--spool`. Raises UsageError when both name one."""
    if argument is not None and flag is not None:
        raise UsageError(f"the spool is given twice, as {argument!r} and with --spool {flag!r}: give it once")
    return argument if flag is None else flag


def out() -> Console:
    """The console of standard output; elsewhere than on a terminal it has a fixed width and no colours."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    width = os.environ.get("COLUMNS", "")
    return Console(highlight=False, width=int(width) if width.isdigit() and int(width) > 0 else 200)


def note(message: str) -> None:
    """One line for a person, on standard error; a terminal or pipe that is gone stops no agent."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"spoolagent: {clean(message)}\n")
        sys.stderr.flush()


def print_json(value: Any, *, line: bool = False) -> None:
    """`value` on standard output as JSON: indented, or as one line."""
    option = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS | (0 if line else orjson.OPT_INDENT_2)
    try:
        data = orjson.dumps(value, option=option)
    except TypeError:  # a file's name need not be UTF-8
        data = orjson.dumps(_utf8(value), option=option)
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _utf8(value: Any) -> Any:
    r"""`value` with the bytes of names that are no UTF-8 written as `\xff`."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return {_utf8(key): _utf8(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_utf8(item) for item in value]
    return value


def clean(text: str) -> str:
    """Foreign text made harmless: a site must not send control sequences to the operator's terminal."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        f"\\x{ord(c):02x}" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else c
        for c in text
    )


def shown(text: str, style: str = "", *, limit: int = 0) -> Text:
    """Foreign text as a cell: harmless, never markup, at most `limit` characters."""
    text = clean(text)
    return Text(f"{text[: limit - 1]}…" if limit and len(text) > limit else text, style=style)


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table in the style of all verbs; a column that begins with `>` is right-aligned."""
    made = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim"
    )
    for column in columns:
        made.add_column(
            column.lstrip(">"),
            justify="right" if column.startswith(">") else "left",
            overflow="fold",
            no_wrap=False,
        )
    return made


def size_text(size: int) -> str:
    """A number of bytes for people."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def time_text(time_ns: int | None) -> str:
    """A time in this machine's zone, to the second; "-" for none."""
    if time_ns is None:
        return "-"
    try:
        return (
            datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        )
    except (OverflowError, ValueError, OSError):
        return f"{time_ns} ns"


def ago_text(time_ns: int | None) -> str:
    """How long ago, roughly."""
    if time_ns is None:
        return "-"
    seconds = (time.time_ns() - time_ns) / 1e9
    if seconds < -60:
        return "in the future"
    for limit, unit, name in (
        (90, 1, "s"),
        (5400, 60, "min"),
        (129_600, 3600, "h"),
        (float("inf"), 86_400, "d"),
    ):
        if seconds < limit:
            return f"{max(0, round(seconds / unit))} {name} ago"
    return "-"


def state_text(state: str | None, *, is_orphan: bool = False) -> Text:
    """A run's state in its colour."""
    style = {"running": "cyan", "finished": "green", "failed": "red", "killed": "yellow"}.get(
        state or "", "dim"
    )
    if is_orphan:
        return Text("running?", style="yellow")
    return Text(state or "unknown", style=style)
