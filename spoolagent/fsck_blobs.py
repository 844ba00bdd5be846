"""The blob half of `fsck`: each blob matches its name, each named one is there, orphans are counted."""

import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from spoolagent import again
from spoolagent.format.blobs import check_blob
from spoolagent.format.layout import blob_dir, blob_path
from spoolagent.format.plain import plain_size
from spoolagent.fsck_finding import Finding, unreadable

_HASH = re.compile(r"[0-9a-f]{64}")
_BUFFER = 1000
OnOrphan = Callable[[str, str, int], None]
"""Called with (site, SHA-256, bytes) of a blob that no event at hand names."""
_SCHEMA = """
CREATE TABLE named (site TEXT, sha256 TEXT, size INTEGER, path TEXT, place TEXT, found INTEGER DEFAULT 0,
                    PRIMARY KEY (site, sha256)) WITHOUT ROWID
"""


class BlobCheck:
    """Collects what events name (`note`), then compares it with what lies in a site (`check_site`)."""

    def __init__(
        self, spool: str, progress: Callable[[int], None], on_orphan: OnOrphan | None = None
    ) -> None:
        self._spool = spool
        self._on_orphan = on_orphan
        self._progress = progress
        self._db = sqlite3.connect("")  # a private file on disk with a bounded cache, gone when closed
        self._db.execute(_SCHEMA)
        self._waiting: list[tuple[str, str, int, str, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def note(self, site: str, ref: dict[str, Any], path: str, place: str) -> None:
        """An event at `place` of the segment `path` names the blob `ref`; malformed references are left out."""
        sha256, size = ref.get("sha256"), ref.get("size")
        if isinstance(sha256, str) and _HASH.fullmatch(sha256) and type(size) is int and 0 <= size < 2**63:
            self._waiting.append((site, sha256, size, path, place))
            if len(self._waiting) >= _BUFFER:
                self._write()

    def _write(self) -> None:
        insert = "INSERT OR IGNORE INTO named (site, sha256, size, path, place) VALUES (?, ?, ?, ?, ?)"
        self._db.executemany(insert, self._waiting)
        self._waiting.clear()

    def check_site(self, site: str) -> Iterator[Finding]:
        """Findings about the blobs of one site, after all its streams were read."""
        self._write()
        orphans = orphan_bytes = 0
        for folder, names in _files(blob_dir(self._spool, site)):
            for name in names:
                path = os.path.join(folder, name)
                if not _HASH.fullmatch(name) or name[:2] != os.path.basename(folder):
                    yield _stray(path)
                    continue
                try:
                    size = plain_size(path)
                    yield from self._one(site, path, name, size)
                except FileNotFoundError:
                    continue  # pruned just now
                except OSError as error:
                    yield unreadable(path, error)
                    continue
                if not self._mark(site, name):
                    orphans, orphan_bytes = orphans + 1, orphan_bytes + size
                    if self._on_orphan is not None:
                        self._on_orphan(site, name, size)
        yield from self._missing(site)
        if orphans:
            yield Finding(
                severity="info",
                path=blob_dir(self._spool, site),
                message=f"{orphans} blobs ({orphan_bytes} bytes) are named by no event at hand",
                next_step="nothing; pruning removes them when they are a day old",
            )

    def _one(self, site: str, path: str, sha256: str, size: int) -> Iterator[Finding]:
        fine = check_blob(path, sha256)
        self._progress(size)
        if not fine:
            again.ask_blob(self._spool, site, sha256)
            yield Finding(
                severity="error",
                path=path,
                message="its content does not match its name",
                next_step="ship the site's spool again, or copy the blob from it; what names it cannot be delivered until then",
            )
            return
        row = self._db.execute(
            "SELECT size, path, place FROM named WHERE (site, sha256) = (?, ?)", (site, sha256)
        ).fetchone()
        if row is not None and row[0] != size:
            yield Finding(
                severity="error",
                path=row[1],
                place=row[2],
                message=f"says that blob {sha256[:12]} has {row[0]} bytes, it has {size}",
                next_step="the event will be a dead letter; its writer wrote a wrong size",
            )

    def _mark(self, site: str, sha256: str) -> bool:
        """True when some event names the blob."""
        update = "UPDATE named SET found = 1 WHERE (site, sha256) = (?, ?)"
        return self._db.execute(update, (site, sha256)).rowcount > 0

    def _missing(self, site: str) -> Iterator[Finding]:
        query = "SELECT sha256, path, place FROM named WHERE site = ? AND found = 0"
        for sha256, path, place in self._db.execute(query, (site,)):
            again.ask_blob(self._spool, site, sha256)
            yield Finding(
                severity="error",
                path=blob_path(self._spool, site, sha256),
                place=f"named by {path}, {place}",
                message="is missing",
                next_step="ship the site's spool again, or copy the blob from it",
            )


def _files(root: str) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of the files in it), dot files left out, folder by folder."""
    for folder, below, names in os.walk(root):
        below.sort()
        yield folder, sorted(name for name in names if not name.startswith("."))


def _stray(path: str) -> Finding:
    return Finding(
        severity="warning",
        path=path,
        message="is no blob: its name is not its SHA-256, in the directory of its first two digits",
        next_step="move it out of the spool",
    )
