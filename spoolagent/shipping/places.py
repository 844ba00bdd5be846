"""Which target this spool knows: its uuid is remembered, so that an empty mount point is not taken for a new target."""

import hashlib
import os

import orjson

from spoolagent.errors import UsageError
from spoolagent.format import durable, layout
from spoolagent.format.spool import Spool
from spoolagent.shipping.source import reading
from spoolagent.shipping.target import Target


def check_apart(spool: str, target: str) -> None:
    """Raises UsageError when the target directory is the spool or lies in it."""
    source, place = os.path.realpath(spool), os.path.realpath(target)
    if place == source or place.startswith(source + os.sep):
        raise UsageError(f"the target {target} lies in the spool {spool}: give a directory outside of it")


class KnownTarget:
    """The memory of one target: `SPOOL/.agent/ship/<hash>.json`."""

    def __init__(self, spool: Spool, target: Target) -> None:
        self._spool, self._target = spool, target
        name = hashlib.sha256(target.identity.encode()).hexdigest()[:16]
        self.path = os.path.join(spool.path, layout.AGENT_DIR, "ship", f"{name}.json")

    def uuid(self) -> str | None:
        """The uuid that the target had, or None when nothing was ever shipped there. Raises SourceError."""
        try:
            with reading(self.path), open(self.path, "rb") as file:
                found = orjson.loads(file.read(1 << 16)).get("uuid")
        except (orjson.JSONDecodeError, AttributeError):
            return None  # damaged: as if it were not there, and written anew
        return found if isinstance(found, str) else None

    def open(self) -> None:
        """Opens the target. Raises what `Target.open` raises, UsageError, SourceError."""
        known = self.uuid() if os.path.exists(self.path) else None
        uuid = self._target.open(known)
        if uuid == self._spool.uuid:
            raise UsageError(
                f"the target has the uuid of the spool {self._spool.path} itself: its spool.json was copied;"
                " remove spool.json at the target, so that it becomes a place of its own"
            )
        if known != uuid:
            with reading(self.path):
                durable.make_dirs(os.path.dirname(self.path))
                value = {"target": self._target.identity, "uuid": uuid}
                durable.write_file(self.path, orjson.dumps(value) + b"\n")
