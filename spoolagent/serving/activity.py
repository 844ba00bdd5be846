"""What a worker is doing now and for how long, told to its supervisor and to `status` while it does it.

A call into a tracker's library can hang for ever. The worker's own thread cannot say so then; another one does.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from spoolagent.format import live
from spoolagent.format.layout import FILE_MODE

HEARTBEAT_FILE = "heartbeat.json"
_EVERY_S = 2.0


class Activity:
    """Set by the worker's thread, read by any."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._now: tuple[str, object, float, float] = ("starting", "", clock(), 0.0)

    def begin(self, what: str, about: object = "", *, allowed_s: float = 0.0) -> None:
        """From now on it does this. `allowed_s`: so long is planned (a wait), and does not count."""
        self._now = (what, about, self._clock(), allowed_s)

    @property
    def what(self) -> str:
        """For people, such as "delivering site/run/writer"."""
        what, about, _, _ = self._now
        return f"{what} {about}".rstrip()

    @property
    def is_waiting(self) -> bool:
        """True while it waits on purpose."""
        return self._now[3] > 0

    @property
    def age_s(self) -> float:
        """How long it does that, without the time that was planned."""
        _, _, since, allowed_s = self._now
        return max(0.0, self._clock() - since - allowed_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """One sign of life."""

    state: str
    """"idle", "working" or "backoff"."""
    doing: str
    age_s: float
    """How long it has been doing that, or has made no progress though there is work."""
    error: str = ""
    """Why it backs off."""
    retry_in_s: float = 0.0


class Heartbeat:
    """A thread that asks `look` now and then and hands the beat to `tell`; also leaves it in a file, once it has a folder."""

    def __init__(
        self, look: Callable[[], Beat], tell: Callable[[Beat], None], *, stuck_after_s: float
    ) -> None:
        self._look, self._tell = look, tell
        self._every_s = min(_EVERY_S, stuck_after_s / 4)
        self._stuck_after_s = stuck_after_s
        self._stop = threading.Event()
        self.folder: str | None = None
        """The receiver's folder, once the worker holds its lock."""

    def start(self) -> None:
        """Begins; ends with the process, or at `stop`."""
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """No further beat."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            beat = self._look()
            self._tell(beat)
            if self.folder is not None:
                self._write(self.folder, beat)

    def _write(self, folder: str, beat: Beat) -> None:
        note = {
            "pid": os.getpid(),
            "host": live.host_name(),
            "boot": live.boot_id(),
            "time": time.time_ns(),
            "state": beat.state,
            "doing": beat.doing,
            "age_s": round(beat.age_s, 3),
            "error": beat.error,
            "retry_in_s": round(beat.retry_in_s, 3),
            "stuck_after_s": self._stuck_after_s,
        }
        path = os.path.join(folder, HEARTBEAT_FILE)
        temp = os.path.join(
            folder, f".tmp-{HEARTBEAT_FILE}"
        )  # one name: a killed worker leaves one file, not many
        with contextlib.suppress(OSError):  # a hint for people: nothing depends on it
            fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
            try:
                os.write(fd, orjson.dumps(note) + b"\n")
            finally:
                os.close(fd)
            os.rename(temp, path)
