"""`fsck`: shows what `spoolagent.fsck` finds."""

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from spoolagent.cli.common import ConfigOption, JsonOption, SpoolArgument, clean, print_json, size_text
from spoolagent.cli.progress import ByteProgress
from spoolagent.cli.settings import spool_of
from spoolagent.format.names import check_name
from spoolagent.fsck import Finding, fsck, spool_bytes

app = typer.Typer()

_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}


@app.command(
    "fsck",
    epilog="Examples: [bold]spoolagent fsck ./spool[/bold]\n\n"
    "[bold]spoolagent fsck ./spool --site hospital-a --json | jq 'select(.severity == \"error\")'[/bold]",
)
def run_fsck(
    spool: SpoolArgument = None,
    site: Annotated[str | None, typer.Option("--site", metavar="SITE", help="Check this site only.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors and warnings only.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Check every byte of a spool; changes nothing.

    Checksums, seqs, hashes, names, ends and blobs. Writers may go on meanwhile.
    Exit code 1 when there are errors.
    With --json: one finding a line, and a summary in the last line.
    """
    place = spool_of(spool, config)
    if site is not None:
        check_name("site", site)
    with ByteProgress("checking", lambda: spool_bytes(place, site)) as progress:
        findings = fsck(place, site=site, progress=progress.advance)
        counts = _show(findings, progress.console, quiet=quiet, as_json=as_json)
    if as_json:
        print_json({"spool": place, "checked_bytes": progress.done, **_totals(counts)}, line=True)
    else:
        _summary(place, counts, progress.done)
    return 1 if counts["error"] else 0


def _show(findings: Iterable[Finding], console: Console, *, quiet: bool, as_json: bool) -> Counter[str]:
    counts: Counter[str] = Counter()
    for finding in findings:
        counts[finding.severity] += 1
        if quiet and finding.severity == "info":
            continue
        if as_json:
            print_json(asdict(finding), line=True)
        else:
            console.print(_text(finding), soft_wrap=True)
    return counts


def _text(finding: Finding) -> Text:
    place = f" ({clean(finding.place)})" if finding.place else ""
    text = Text.assemble(
        (f"{finding.severity}: ", _STYLES[finding.severity]),
        (clean(finding.path), "bold"),
        place,
        ": ",
        clean(finding.message),
    )
    if finding.next_step and finding.next_step != "nothing":
        text.append(f"\n       next: {clean(finding.next_step)}", style="dim")
    return text


def _totals(counts: Counter[str]) -> dict[str, Any]:
    return {"errors": counts["error"], "warnings": counts["warning"], "infos": counts["info"]}


def _summary(place: str, counts: Counter[str], checked: int) -> None:
    parts = [
        f"{counts[kind]} {name}"
        for kind, name in (("error", "errors"), ("warning", "warnings"))
        if counts[kind]
    ]
    sys.stdout.write(f"{place}: {size_text(checked)} checked, {', '.join(parts) or 'no errors'}\n")
