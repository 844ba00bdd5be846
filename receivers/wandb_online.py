"""`wandb:online`: each batch is durable in an offline log first; child processes upload the logs.

Delivery never waits for W&B: unreachable or refusing, it only leaves the logs to be uploaded later, also by hand
with `wandb sync`. Uploading is at least once: the server's own last step keeps rows from coming twice, an alert may.
"""

import hashlib
import os

from spoolagent.contract import Batch, Options, Outcome, RunEnd, State
from spoolagent.errors import UsageError
from spoolagent.receivers.options import check_options
from spoolagent.receivers.wandb_children import Children, Limits
from spoolagent.receivers.wandb_offline import WandbOffline
from spoolagent.receivers.wandb_start import OPTIONS

DEFAULT_URL = "https://api.wandb.ai"
ONLINE_OPTIONS = {
    **OPTIONS,
    "base_url": "address of the W&B server; default: WANDB_BASE_URL, else " + DEFAULT_URL,
    "dir": "where the logs lie; default: a directory below $XDG_STATE_HOME/spoolagent/wandb (~/.local/state)",
    "max_uploads": "how many runs are uploaded at a time; default 4",
    "linger": "seconds that an upload waits for more before it leaves its place; default 30",
    "stuck_after": "seconds without a sign of life after which an upload is ended and tried again; default 300",
    "close_wait": "seconds that the end of the receiver waits for what is not uploaded yet; default 30",
}
"""Options; those of `wandb_start.OPTIONS` mean the same."""


class WandbOnline:
    """The receiver. Options: `ONLINE_OPTIONS`. The API key is W&B's own business: WANDB_API_KEY or netrc."""

    def __init__(self, options: Options) -> None:
        check_options("wandb", options, ONLINE_OPTIONS)
        url = str(options.get("base_url") or os.environ.get("WANDB_BASE_URL") or DEFAULT_URL).rstrip("/")
        place = "/".join(str(options.get(name) or "") for name in ("entity", "project"))
        self.identity = f"wandb:online:{url}/{place}"
        self._limits = Limits(
            uploads=int(_number(options, "max_uploads", 4, least=1)),
            linger_s=_number(options, "linger", 30),
            stuck_s=_number(options, "stuck_after", 300),
            close_s=_number(options, "close_wait", 30),
        )
        folder = options.get("dir") or _default_dir(self.identity)
        self._offline = WandbOffline(
            str(folder), {name: options[name] for name in OPTIONS if name in options}
        )
        self.beside = self._offline.beside
        self._environment = {"WANDB_BASE_URL": url, "WANDB_MODE": "online"}
        self._children: Children | None = None

    def open(self, state: State) -> None:
        """Makes the directory, and goes on with uploads of before. Does not ask whether W&B can be reached."""
        self._offline.open(state)
        home = os.path.join(self._offline.folder, ".upload")
        self._children = Children(home, self._limits, self._environment)
        for run in self._offline.all_logs():
            self._children.tell(run)

    def deliver(self, batch: Batch) -> Outcome:
        """Appends the batch to its run's log, durably."""
        outcome = self._offline.deliver(batch)
        self._tell(batch.stream.key.site, batch.stream.key.run)
        return outcome

    def set_status(self, end: RunEnd) -> Outcome:
        """Ends the run's log."""
        outcome = self._offline.set_status(end)
        self._tell(end.site, end.run)
        return outcome

    def close(self) -> None:
        """Waits a while for the uploads, then ends them; the rest is uploaded when the receiver opens again."""
        if self._children is not None:
            self._children.close()
            self._children = None
        self._offline.close()

    def _tell(self, site: str, run: str) -> None:
        logs = self._offline.logs(site, run)
        if logs is not None and logs.logs and self._children is not None:
            self._children.tell(logs)


def _number(options: Options, name: str, default: float, *, least: float = 0) -> float:
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
        raise UsageError(f"wandb: option {name} is a number, at least {least:g}, got {value!r}")
    return float(value)


def _default_dir(identity: str) -> str:
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "spoolagent", "wandb", hashlib.sha256(identity.encode()).hexdigest()[:12])
