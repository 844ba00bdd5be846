"""Repairing blobs: damaged ones make room for the whole ones that a shipper or writer brings; orphans, if asked for."""

import os
import time
from collections.abc import Iterator

from spoolagent import again
from spoolagent.format import durable
from spoolagent.format.blobs import check_blob
from spoolagent.format.layout import blob_path
from spoolagent.repair_aside import DAY_S, Repair, take_aside


def move_damaged(spool: str, site: str, path: str) -> Iterator[Repair]:
    """Moves a blob whose content is not what its name says into the quarantine. Raises OSError."""
    sha256 = os.path.basename(path)
    try:
        if check_blob(path, sha256):
            return  # it was replaced since
        aside = take_aside(spool, path, site, ".blobs", sha256)
        if check_blob(aside, sha256):  # replaced between the look and the move
            _put_back(aside, path)
            return
    except FileNotFoundError:
        return  # pruned just now
    again.ask_blob(spool, site, sha256)
    yield Repair(
        path=path,
        message="its content does not match its name: moved to the quarantine",
        next_step="ship the site's spool again: it brings the blob, if it is whole there",
    )


def remove_orphans(spool: str, site: str, found: list[tuple[str, int]]) -> Iterator[Repair]:
    """Removes blobs that nothing names and that are a day old. `found` is (sha256, bytes). Raises OSError.

    A writer that is about to name one renews its age first: so it is hidden, looked at again, and put back then.
    """
    count = freed = 0
    for sha256, size in found:
        path = blob_path(spool, site, sha256)
        hidden = os.path.join(os.path.dirname(path), f".tmp-orphan-{sha256}")
        try:
            if not _is_old(path):
                continue
            os.rename(path, hidden)
            if not _is_old(hidden):
                _put_back(hidden, path)
                continue
            durable.unlink(hidden)
        except FileNotFoundError:
            continue
        count, freed = count + 1, freed + size
    if count:
        folder = os.path.dirname(os.path.dirname(blob_path(spool, site, "0" * 64)))
        yield Repair(path=folder, message=f"{count} blobs ({freed} bytes) that no event names were removed")


def _is_old(path: str) -> bool:
    return time.time() - os.stat(path).st_mtime >= DAY_S


def _put_back(hidden: str, path: str) -> None:
    if os.path.lexists(path):
        durable.unlink(hidden)
    else:
        durable.rename(hidden, path)
