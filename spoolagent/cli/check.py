"""`fsck`: shows what `spoolagent.fsck` finds."""

import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from spoolagent.cli.common import (
    ConfigOption,
    JsonOption,
    SpoolArgument,
    SpoolFlag,
    clean,
    one_of,
    print_json,
    size_text,
)
from spoolagent.cli.progress import ByteProgress
from spoolagent.cli.settings import spool_of
from spoolagent.errors import UsageError
from spoolagent.format.layout import SPOOL_FILE
from spoolagent.format.names import check_name
from spoolagent.fsck import Finding, fsck, spool_bytes

if TYPE_CHECKING:
    from spoolagent.repair import Repair

app = typer.Typer()

_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}


@app.command(
    "fsck",
    epilog="Examples: [bold]spoolagent fsck ./spool[/bold]\n\n"
    "[bold]spoolagent fsck ./spool --site hospital-a --json | jq 'select(.severity == \"error\")'[/bold]\n\n"
    "[bold]spoolagent fsck ./spool --repair[/bold]",
)
def run_fsck(
    spool: SpoolArgument = None,
    site: Annotated[str | None, typer.Option("--site", metavar="SITE", help="Check this site only.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors and warnings only.")] = False,
    mend: Annotated[
        bool, typer.Option("--repair", help="First repair what can be, without inventing anything.")
    ] = False,
    orphans: Annotated[
        bool,
        typer.Option("--remove-orphans", help="With --repair: remove blobs that no event names, a day old."),
    ] = False,
    as_json: JsonOption = False,
    flag: SpoolFlag = None,
    config: ConfigOption = None,
) -> int:
    """Check every byte of a spool; changes nothing, unless told to repair.

    Checksums, seqs, hashes, names, ends and blobs. Writers may go on meanwhile.
    Exit code 1 when there are errors (after the repair, with --repair).
    With --json: one finding or repair a line, and a summary in the last line.
    """
    place = spool_of(one_of(spool, flag), config)
    if site is not None:
        check_name("site", site)
    if orphans and not mend:
        raise UsageError("--remove-orphans only goes with --repair")
    repaired = _repair(place, site, orphans=orphans, as_json=as_json) if mend else {}
    if mend and not os.path.exists(os.path.join(place, SPOOL_FILE)):
        return 1  # it could not be rebuilt, as was said; without it there is no spool to check
    with ByteProgress("checking", lambda: spool_bytes(place, site)) as progress:
        findings = fsck(place, site=site, progress=progress.advance)
        counts = _show(findings, progress.console, quiet=quiet, as_json=as_json)
    if as_json:
        facts = {"spool": place, "checked_bytes": progress.done, **_totals(counts), **repaired}
        print_json(facts, line=True)
    else:
        _summary(place, counts, progress.done, repaired)
    return 1 if counts["error"] or repaired.get("not_repaired") else 0


def _repair(place: str, site: str | None, *, orphans: bool, as_json: bool) -> dict[str, int]:
    from spoolagent.repair import repair

    counts = {"repaired": 0, "not_repaired": 0}
    with ByteProgress("repairing", lambda: spool_bytes(place, site)) as progress:
        for one in repair(place, site=site, orphans=orphans, progress=progress.advance):
            counts["repaired" if one.done else "not_repaired"] += 1
            if as_json:
                print_json({"severity": "repair", **asdict(one)}, line=True)
                continue
            progress.console.print(_repair_text(one), soft_wrap=True)
    return counts


def _repair_text(one: "Repair") -> Text:
    label = ("repaired: ", "bold green") if one.done else ("not repaired: ", "bold red")
    text = Text.assemble(label, (clean(one.path), "bold"), ": ", clean(one.message))
    if one.next_step:
        text.append(f"\n       next: {clean(one.next_step)}", style="dim")
    return text


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


def _summary(place: str, counts: Counter[str], checked: int, repaired: dict[str, int]) -> None:
    parts = [
        f"{counts[kind]} {name}"
        for kind, name in (("error", "errors"), ("warning", "warnings"))
        if counts[kind]
    ]
    before = f"{repaired['repaired']} repairs, then " if repaired else ""
    sys.stdout.write(f"{place}: {before}{size_text(checked)} checked, {', '.join(parts) or 'no errors'}\n")
