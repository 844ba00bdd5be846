"""Weights & Biases: `wandb:offline:DIR` writes logs for `wandb sync`, `wandb:online` also uploads them."""

from spoolagent.contract import Options, Receiver
from spoolagent.errors import UsageError
from spoolagent.receivers.wandb_offline import WandbOffline


def open_wandb(target: str, options: Options) -> Receiver:
    """The receiver for a target `offline:DIR` or `online`. Raises UsageError for another one."""
    mode, _, folder = target.partition(":")
    if mode == "offline" and folder:
        return WandbOffline(folder, options)
    if target == "online":
        from spoolagent.receivers.wandb_online import WandbOnline

        return WandbOnline(options)
    raise UsageError(f"wandb:{target}: write wandb:offline:DIR or wandb:online")
