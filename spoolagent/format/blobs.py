"""Blobs: payloads beside the events, named by their SHA-256, equal content stored once."""

import errno
import os
from typing import Any

from spoolagent.errors import FormatError, SpoolError
from spoolagent.format.durable import fsync_dir, make_dirs, publish, temporary, write_all
from spoolagent.format.hashes import new_sha256
from spoolagent.format.layout import blob_path
from spoolagent.format.plain import open_plain
from spoolagent.format.spool import create_spool

_CHUNK = 1 << 20


def reference(sha256: str, size: int) -> dict[str, Any]:
    """How an event names a blob."""
    return {"sha256": sha256, "size": size}


_ours: set[str] = set()
"""Spools that this process has found to be of a format that it may write."""


def _check_spool(spool: str) -> None:
    """Makes the spool when it is not there. Raises OSError where it is not ours to write to (a later format)."""
    if spool in _ours:
        return
    try:
        create_spool(spool)
    except SpoolError as error:
        raise OSError(errno.EPERM, str(error), spool) from error
    _ours.add(spool)


def put_bytes(spool: str, site: str, data: bytes) -> dict[str, Any]:
    """Stores `data`, durably, and returns its reference."""
    _check_spool(spool)
    digest = new_sha256(data).hexdigest()
    path = blob_path(spool, site, digest)
    if not _is_there(path, len(data)):
        make_dirs(os.path.dirname(path))
        with temporary(path) as (fd, temp):
            write_all(fd, data, temp)
            publish(fd, temp, path)
    return reference(digest, len(data))


def put_file(spool: str, site: str, source: str) -> dict[str, Any]:
    """Stores a copy of the file `source`, durably, and returns its reference. Raises OSError."""
    _check_spool(spool)
    folder = os.path.join(spool, "sites", site, "blobs")
    make_dirs(folder)
    digest, size = new_sha256(), 0
    with open(source, "rb") as file, temporary(os.path.join(folder, "incoming")) as (fd, temp):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            write_all(fd, chunk, temp)
        path = blob_path(spool, site, digest.hexdigest())
        if not _is_there(path, size):
            make_dirs(os.path.dirname(path))
            publish(fd, temp, path)
    return reference(digest.hexdigest(), size)


def _is_there(path: str, size: int) -> bool:
    try:
        there = os.stat(path).st_size == size
        if there:
            os.utime(path)  # its age counts from the last event that names it
            fsync_dir(os.path.dirname(path))  # whoever made it may not have come to this
    except OSError:
        return False
    return there


def read_blob(path: str, ref: dict[str, Any]) -> bytes:
    """The bytes of the blob at `path`. Raises FormatError when they are not what `ref` names, OSError when missing."""
    with open_plain(path) as file:
        data = file.read(ref["size"] + 1)
    if len(data) != ref["size"] or new_sha256(data).hexdigest() != ref["sha256"]:
        raise FormatError(f"{path} is damaged: its content does not match its name; run 'spoolagent fsck'")
    return data


def check_blob(path: str, sha256: str) -> bool:
    """True when the file's content has the hash that its name says."""
    digest = new_sha256()
    with open_plain(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == sha256


def references(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The blobs that an event names; malformed ones are left to the event's check."""
    if "blob" not in data and "files" not in data:
        return []
    found = [data.get("blob"), *(f.get("blob") for f in data.get("files") or () if isinstance(f, dict))]
    return [ref for ref in found if isinstance(ref, dict) and isinstance(ref.get("sha256"), str)]
