"""A request to compare one stream in full, left by a spool that streams are shipped to, for whoever ships them.

A shipper takes two segments that end with the same seal as the same: to hash weeks of data in every session would
cost too much. So bits that were flipped before the seal are found by a reader at the target, which asks here with
an empty file, `SPOOL/.agent/again/<site>/<run>/<writer>`. The shipper that has the stream compares every byte, mends
what it can, and takes the request away. There is at most one request per stream, nobody reads what is in it, and
one that cannot be made or read is as if there were none.
"""

import contextlib
import os
from collections.abc import Iterator

from spoolagent.format import durable
from spoolagent.format.layout import AGENT_DIR, StreamKey, list_names
from spoolagent.format.names import is_legal
from spoolagent.format.plain import is_plain

_FOLDER = "again"


def ask(spool: str, key: StreamKey) -> None:
    """Asks for the stream, durably, unless it is asked for already, or nobody ships to this spool. Never raises OSError."""
    path = _path(spool, key)
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
