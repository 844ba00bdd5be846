"""A request to compare one stream in full, or for one blob, left by a spool that is shipped to, for whoever ships to it.

A shipper takes two segments that end with the same seal as the same: to hash weeks of data in every session would
cost too much. So bits that were flipped before the seal are found by a reader at the target, which asks here with
an empty file, `SPOOL/.agent/again/<site>/<run>/<writer>`. The shipper that has the stream compares every byte, mends
what it can, and takes the request away. In the same way a shipper takes a blob of the right length for the right one; who
finds one that is damaged or missing at the target asks with `SPOOL/.agent/again-blobs/<site>/<sha256>`. There is at most one request per stream or blob, nobody reads what is in it, and
one that cannot be made or read is as if there were none.
"""

import contextlib
import os
import re
from collections.abc import Iterator

from spoolagent.format import durable
from spoolagent.format.layout import AGENT_DIR, StreamKey, list_names
from spoolagent.format.names import is_legal
from spoolagent.format.plain import is_plain

_FOLDER = "again"
_BLOBS = "again-blobs"
_HASH = re.compile("[0-9a-f]{64}")


def ask(spool: str, key: StreamKey) -> None:
    """Asks for the stream, durably, unless it is asked for already, or nobody ships to this spool. Never raises OSError."""
    _ask(spool, _path(spool, key))


def ask_blob(spool: str, site: str, sha256: str) -> None:
    """Asks for a blob in the same way."""
    _ask(spool, os.path.join(spool, AGENT_DIR, _BLOBS, site, sha256))


def _ask(spool: str, path: str) -> None:
    with contextlib.suppress(OSError):
        incoming = os.stat(os.path.join(spool, AGENT_DIR, "incoming"))
        # The shipper could not take away what another user (an administrator's fsck) has put there.
        if incoming.st_uid == os.geteuid() and _is_confined(spool, path) and not is_plain(path):
            durable.make_dirs(os.path.dirname(path))
            durable.write_file(path, b"")


def asked(spool: str) -> Iterator[StreamKey]:
    """The streams that are asked for. What is no such request, or could not be taken away, is passed over."""
    if _FOLDER not in list_names(os.path.join(spool, AGENT_DIR)):
        return  # almost always; and a symbolic link is not followed
    folder = os.path.join(spool, AGENT_DIR, _FOLDER)
    for site in _names(folder):
        for run in _names(os.path.join(folder, site)):
            place = os.path.join(folder, site, run)
            with contextlib.suppress(OSError):
                if os.access(place, os.W_OK | os.X_OK):
                    with os.scandir(place) as entries:
                        found = [
                            e.name for e in entries if is_legal(e.name) and e.is_file(follow_symlinks=False)
                        ]
                    yield from (StreamKey(site, run, writer) for writer in sorted(found))


def asked_blobs(spool: str) -> Iterator[tuple[str, str]]:
    """The (site, SHA-256) of the blobs that are asked for, in the same way."""
    if _BLOBS not in list_names(os.path.join(spool, AGENT_DIR)):
        return
    folder = os.path.join(spool, AGENT_DIR, _BLOBS)
    for site in _names(folder):
        place = os.path.join(folder, site)
        with contextlib.suppress(OSError):
            if os.access(place, os.W_OK | os.X_OK):
                with os.scandir(place) as entries:
                    found = [
                        e.name
                        for e in entries
                        if _HASH.fullmatch(e.name) and e.is_file(follow_symlinks=False)
                    ]
                yield from ((site, sha256) for sha256 in sorted(found))


def answer_blob(spool: str, site: str, sha256: str) -> None:
    """Takes such a request away. Never raises OSError."""
    path = os.path.join(spool, AGENT_DIR, _BLOBS, site, sha256)
    if not _is_confined(spool, path):
        return
    with contextlib.suppress(OSError):
        durable.unlink(path)
        durable.discard_dir(os.path.dirname(path))


def answer(spool: str, key: StreamKey) -> None:
    """Takes the request away, and directories that are empty then. Never raises OSError."""
    path = _path(spool, key)
    if not _is_confined(spool, path):
        return
    with contextlib.suppress(OSError):
        durable.unlink(path)
        run = os.path.dirname(path)
        durable.discard_dir(run)  # fails when another request is in it
        durable.discard_dir(os.path.dirname(run))


def _path(spool: str, key: StreamKey) -> str:
    return os.path.join(spool, AGENT_DIR, _FOLDER, *key)


def _is_confined(spool: str, path: str) -> bool:
    """True when no symbolic link leads from the spool to another place."""
    folder = os.path.relpath(os.path.dirname(path), spool)
    return os.path.realpath(os.path.dirname(path)) == os.path.join(os.path.realpath(spool), folder)


def _names(folder: str) -> list[str]:
    try:
        return list_names(folder)
    except OSError:
        return []
