"""A request to compare one stream in full, or for one blob, left by a spool that is shipped to, for whoever ships to it.

A shipper takes two segments that end with the same seal as the same: to hash weeks of data in every session would
cost too much. So bits that were flipped before the seal are found by a reader at the target, which asks here with
an empty file, `SPOOL/.agent/again/<site>/<run>/<writer>`. The shipper that has the stream compares every byte, mends
what it can, and takes the request away. In the same way a shipper takes a blob of the right length for the right one;
who finds one that is damaged or missing at the target asks with `SPOOL/.agent/again-blobs/<site>/<sha256>`. There is at
most one request per stream or blob, nobody reads what is in it, and one that cannot be made or read is as if there were
none.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator

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
    _ask(spool, _path_of_blob(spool, site, sha256))


def _ask(spool: str, path: str) -> None:
    with contextlib.suppress(OSError):
        incoming = os.stat(os.path.join(spool, AGENT_DIR, "incoming"))
        # The shipper could not take away what another user (an administrator's fsck) has put there.
        if incoming.st_uid == os.geteuid() and _is_confined(spool, path) and not is_plain(path):
            durable.make_dirs(os.path.dirname(path))
            durable.write_file(path, b"")


def asked(spool: str) -> Iterator[StreamKey]:
    """The streams that are asked for. What is no such request, or could not be taken away, is passed over."""
    folder = os.path.join(spool, AGENT_DIR, _FOLDER)
    for site in _sites(spool, _FOLDER):
        for run in _names(os.path.join(folder, site)):
            for writer in _requests(os.path.join(folder, site, run), is_legal):
                yield StreamKey(site, run, writer)


def asked_blobs(spool: str) -> Iterator[tuple[str, str]]:
    """The (site, SHA-256) of the blobs that are asked for, in the same way."""
    for site in _sites(spool, _BLOBS):
        place = os.path.join(spool, AGENT_DIR, _BLOBS, site)
        for sha256 in _requests(place, lambda name: _HASH.fullmatch(name) is not None):
            yield site, sha256


def _sites(spool: str, kind: str) -> list[str]:
    if kind not in list_names(os.path.join(spool, AGENT_DIR)):
        return []  # almost always; and a symbolic link is not followed
    return _names(os.path.join(spool, AGENT_DIR, kind))


def _requests(place: str, is_one: Callable[[str], bool]) -> list[str]:
    with contextlib.suppress(OSError):
        if os.access(place, os.W_OK | os.X_OK):
            with os.scandir(place) as entries:
                return sorted(e.name for e in entries if is_one(e.name) and e.is_file(follow_symlinks=False))
    return []


def answer(spool: str, key: StreamKey) -> None:
    """Takes the request away, and directories that are empty then. Never raises OSError."""
    _answer(spool, _path(spool, key), levels=2)


def answer_blob(spool: str, site: str, sha256: str) -> None:
    """Takes such a request away in the same way."""
    _answer(spool, _path_of_blob(spool, site, sha256), levels=1)


def _answer(spool: str, path: str, *, levels: int) -> None:
    if not _is_confined(spool, path):
        return
    with contextlib.suppress(OSError):
        durable.unlink(path)
        for _ in range(levels):
            path = os.path.dirname(path)
            durable.discard_dir(path)  # fails when another request is in it


def _path_of_blob(spool: str, site: str, sha256: str) -> str:
    return os.path.join(spool, AGENT_DIR, _BLOBS, site, sha256)


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
