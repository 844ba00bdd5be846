"""Bytes that are no valid line, kept aside once for all receivers: `SPOOL/.agent/quarantine/<site>/<run>/<writer>`."""

import os
from collections.abc import Iterable

from spoolagent.format import durable
from spoolagent.format.layout import AGENT_DIR, StreamKey
from spoolagent.format.reader import Bad


def keep_aside(spool: str, key: StreamKey, bad: Iterable[Bad]) -> None:
    """Writes each piece, durably, as `<segment>-<offset>`. Raises OSError."""
    folder = os.path.join(spool, AGENT_DIR, "quarantine", *key)
    for piece in bad:
        path = os.path.join(folder, f"{piece.segment:020d}-{piece.offset}")
        if not os.path.exists(path):
            durable.make_dirs(folder)
            durable.write_file(path, piece.data)
