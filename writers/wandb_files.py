"""A run's own directory, and the files that `wandb.save` puts on record."""

import glob
import os
import time
from typing import Any

from spoolagent.writers.run import Run as Spool
from spoolagent.writers.run import list_files
from spoolagent.writers.wandb_errors import notice

_POLICIES = ("live", "end", "now")


def make_run_dir(root: str, run_id: str) -> str:
    """`<root>/wandb/spool-run-<time>-<id>/files`, made now; in the temporary directory where `root` refuses.

    Not named `offline-run-*`: `wandb sync` would take it for a log of its own.
    """
    name = f"spool-run-{time.strftime('%Y%m%d_%H%M%S')}-{run_id}"
    try:
        return _make(os.path.join(os.path.abspath(os.path.expanduser(root)), "wandb"), name)
    except OSError as error:
        notice(f"{root} cannot be written to ({error.strerror}): the run's directory is a temporary one")
    import tempfile

    try:
        return _make(os.path.join(tempfile.gettempdir(), "wandb"), name)
    except OSError:
        return os.path.join(tempfile.gettempdir(), "wandb", name, "files")


def _make(parent: str, name: str) -> str:
    path = os.path.join(parent, name)
    number = 0
    while os.path.exists(path):
        number += 1
        path = os.path.join(parent, f"{name}-{number}")
    files = os.path.join(path, "files")
    os.makedirs(files)
    return files


class Saved:
    """The files that `save` was asked for. Those of policy "live" and "end" are logged again when the run ends."""

    def __init__(self, spool: Spool, folder: str) -> None:
        self._spool, self._folder = spool, folder
        self._later: dict[str, tuple[str, tuple[int, int] | None]] = {}

    def save(self, pattern: str, base: str | None, policy: str, *, expand: bool) -> list[str]:
        """Logs the files that match, under their paths below `base`; their places in the run's directory."""
        if policy not in _POLICIES:
            raise ValueError('Only "live", "end" and "now" policies are currently supported.')
        whole = os.path.abspath(pattern)
        if base is None:
            base = os.path.dirname(os.path.dirname(whole)) if os.path.isabs(pattern) else "."
        base = os.path.abspath(base)
        if os.path.commonpath([base, whole]) != base or base == whole:
            raise ValueError(f"{pattern!r} is not below the base path {base!r}")
        found = []
        for source in _matches(whole, expand=expand):
            for _, path in list_files(source):
                found.append((os.path.relpath(path, base), path))
        for inside, path in found:
            self._link(inside, path)
            if policy != "now":
                self._later[inside] = (path, _state(path) if policy == "live" else None)
        now = [(inside, path) for inside, path in found if policy != "end"]
        if now:
            self._spool.log_files("artifact", now, {})
        return [os.path.join(self._folder, inside) for inside, _ in sorted(found)]

    def _link(self, inside: str, source: str) -> None:
        target = os.path.join(self._folder, inside)
        try:
            if os.path.exists(target) and os.path.samefile(source, target):
                return
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if os.path.lexists(target):
                os.unlink(target)
            os.symlink(source, target)
        except OSError as error:
            notice(f"{target}: {error.strerror}")

    def finish(self) -> None:
        """Logs the files once more that changed since, or wait for the end."""
        later, self._later = self._later, {}
        changed = []
        for inside, (path, before) in later.items():
            state = _state(path)
            if state is not None and state != before:
                changed.append((inside, path))
        if changed:
            self._spool.log_files("artifact", changed, {})


def _state(path: str) -> tuple[int, int] | None:
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return seen.st_size, seen.st_mtime_ns


def _matches(whole: str, *, expand: bool) -> list[str]:
    if not expand:
        return [whole] if os.path.lexists(whole) else []
    return sorted(glob.glob(whole))


def as_text(path: Any) -> str:
    """A path as text."""
    return path.decode() if isinstance(path, bytes) else os.fspath(path)
