"""Checks a whole spool, changes nothing in it: every checksum, seq, hash, name, end and blob.

A damaged stream that was shipped here is asked for again (`spoolagent.again`), so that the next `ship` mends it.

Streams are read once, line by line; what must be remembered about blobs lies in a temporary database, so memory
does not grow with the spool.
"""

import os
from collections.abc import Callable, Iterator

from spoolagent import again
from spoolagent.errors import FormatError, NewerFormat
from spoolagent.format.layout import (
    SPOOL_FILE,
    iter_streams,
    list_names,
    run_dir,
    site_dir,
)
from spoolagent.format.names import is_legal
from spoolagent.format.spool import open_spool
from spoolagent.fsck_blobs import BlobCheck, OnOrphan
from spoolagent.fsck_finding import Finding, Severity, unreadable
from spoolagent.fsck_stream import StreamCheck

__all__ = ["Finding", "Severity", "fsck", "spool_bytes"]

_NEAR = 2
Progress = Callable[[int], None]
"""Called with the number of bytes that were just checked."""


def _no_progress(size: int) -> None:
    del size


def fsck(
    spool: str,
    *,
    site: str | None = None,
    progress: Progress = _no_progress,
    on_orphan: OnOrphan | None = None,
) -> Iterator[Finding]:
    """What is wrong or notable in the spool, as it is found; optionally of one site only.

    Raises UsageError when there is no spool at `spool`. A file that cannot be read is a finding.
    """
    spool = os.path.abspath(spool)
    home = ""
    try:
        home = open_spool(spool).uuid
    except NewerFormat as error:
        yield Finding(
            severity="warning",
            path=os.path.join(spool, SPOOL_FILE),
            message=str(error).partition(": upgrade")[0],
            next_step="upgrade spoolagent; nothing here was checked",
        )
        return
    except FormatError as error:
        yield _damaged_spool_file(spool, error)
    yield from _tree(spool, site)
    born: set[object] = set()
    with BlobCheck(spool, progress, on_orphan) as blobs:
        for key in iter_streams(spool, site):
            check = StreamCheck(spool, key, home=home, blobs=blobs, progress=progress)
            is_damaged = False
            for finding in check.run():
                is_damaged = is_damaged or finding.severity == "error"
                yield finding
            if is_damaged and check.born != home:
                again.ask(spool, key)
            born.add(check.born)
        for name in _sites(spool, site):
            yield from blobs.check_site(name)
    yield from _almost_home(spool, home, {str(uuid) for uuid in born if uuid})


def is_near(one: str, other: str) -> bool:
    """True when one uuid is the other with a flipped bit or two: two drawn at random differ in about 30 places."""
    return len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) <= _NEAR


def _almost_home(spool: str, home: str, born: set[str]) -> Iterator[Finding]:
    """spool.json has no checksum; but the headers repeat its uuid."""
    if home and len(born) == 1 and home not in born and is_near(home, *born):
        yield Finding(
            severity="error",
            path=os.path.join(spool, SPOOL_FILE),
            message=f"names uuid {home}, all its streams were born in {born.pop()}: a bit was flipped",
            next_step="run 'spoolagent fsck --repair'; until then no dead writer's stream is ended here",
        )


def spool_bytes(spool: str, site: str | None = None) -> int:
    """About how many bytes `fsck` will read, for a progress bar."""
    total = 0
    for name in _sites(spool, site):
        for folder, _, files in os.walk(site_dir(spool, name)):
            for file in files:
                try:
                    total += os.lstat(os.path.join(folder, file)).st_size
                except OSError:
                    continue  # removed just now
    return total


def _sites(spool: str, site: str | None) -> list[str]:
    return list_names(os.path.join(spool, "sites")) if site is None else [site]


def _damaged_spool_file(spool: str, error: FormatError) -> Finding:
    return Finding(
        severity="error",
        path=os.path.join(spool, SPOOL_FILE),
        message=str(error).partition("; ")[0].removeprefix(os.path.join(spool, SPOOL_FILE)).strip(),
        next_step='run spoolagent fsck --repair, or write {"format":1,"spool":"<uuid>"} with the uuid that the headers of its streams name',
    )


def _tree(spool: str, site: str | None) -> Iterator[Finding]:
    """Names and files above the streams."""
    if site is None:
        yield from check_folder(spool, "file", {SPOOL_FILE, "sites"}, is_known=lambda _: False)
        yield from check_folder(os.path.join(spool, "sites"), "site")
    for name in _sites(spool, site):
        yield from check_folder(site_dir(spool, name), "file", {"runs", "blobs"}, is_known=lambda _: False)
        yield from check_folder(os.path.join(site_dir(spool, name), "runs"), "run")
        for run in list_names(os.path.join(site_dir(spool, name), "runs")):
            yield from check_folder(run_dir(spool, name, run), "writer")


def check_folder(
    folder: str,
    kind: str,
    expected: set[str] | None = None,
    *,
    is_known: Callable[[str], bool] = is_legal,
) -> Iterator[Finding]:
    """Entries of a directory that no reader looks at, and names that differ only by case."""
    folded: dict[str, str] = {}
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError as error:
        yield unreadable(folder, error)
        return
    for entry in entries:
        name = entry.name
        if name.startswith("."):
            continue
        other = folded.setdefault(name.lower(), name)
        if other != name:
            yield Finding(
                severity="error",
                path=entry.path,
                message=f"differs only by case from {other!r}",
                next_step="a disk that folds case would mix the two: rename one where it was born",
            )
        if expected is not None and name in expected:
            continue
        if not is_known(name) or not entry.is_dir(follow_symlinks=False):
            yield _stray(entry, kind)


def _stray(entry: "os.DirEntry[str]", kind: str) -> Finding:
    what = "a symbolic link" if entry.is_symlink() else f"no {kind} of a spool"
    return Finding(
        severity="warning",
        path=entry.path,
        message=f"is {what}; every reader ignores it",
        next_step="move it out of the spool",
    )
