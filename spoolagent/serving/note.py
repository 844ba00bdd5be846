"""`worker.json`: what a worker leaves for `status` that is not in its database."""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import orjson

from spoolagent.format import durable

NOTE_FILE = "worker.json"


def write_note(folder: str, note: Mapping[str, Any]) -> None:
    """Replaces the note. Never raises for the disk: it is a hint for people, and not fsynced."""
    path = os.path.join(folder, NOTE_FILE)
    with contextlib.suppress(OSError), durable.temporary(path) as (fd, temp):
        durable.write_all(fd, orjson.dumps(note) + b"\n", temp)
        durable.fault_point("rename", path)
        os.rename(temp, path)
