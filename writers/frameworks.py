"""Frameworks that import their tracker themselves (Lightning, Hugging Face, Keras ...), logging to the spool.

    from spoolagent.writers import frameworks

    frameworks.use("wandb")     # also "mlflow", "tensorboard"; before the framework's logger is made

From then on `import wandb` in this process, also inside of libraries, finds `spoolagent.writers.wandb`, whether wandb
is installed or not. `use("tensorboard")` puts ours in the place of torch's SummaryWriter and of tensorboardX's.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


def use(*trackers: str) -> None:
    """Lets the names "mlflow", "wandb" and "tensorboard" mean the writers of this package, in the whole process.

    Raises ValueError for another name. What was imported from a tracker before stays what it was.
    """
    for name in trackers:
        if name == "tensorboard":
            _use_tensorboard()
        elif name in ("mlflow", "wandb"):
            _use_modules(name)
        else:
            raise ValueError(f"{name!r} is not one of 'mlflow', 'wandb', 'tensorboard'")


def _ours(name: str) -> ModuleType:
    return importlib.import_module(f"spoolagent.writers.{name}")


def _use_modules(name: str) -> None:
    for loaded in [other for other in sys.modules if other.startswith(f"{name}.")]:
        del sys.modules[loaded]  # a library must not get one half of each
    sys.modules[name] = tracker = _ours(name)
    if name == "mlflow":
        _ours("mlflow_flavors").register(name)
    for part, module in tracker._SUBMODULES.items():  # noqa: SLF001 - of this package
        parent, _, leaf = f"{name}.{part}".rpartition(".")
        sys.modules[f"{name}.{part}"] = module
        setattr(sys.modules[parent], leaf, module)


def _use_tensorboard() -> None:
    writer: Any = _ours("tensorboard").SummaryWriter
    for name in ("torch.utils.tensorboard", "torch.utils.tensorboard.writer", "tensorboardX"):
        try:
            module: Any = importlib.import_module(name)
        except ImportError:
            # Not installed: then no library can log through it either, but through a module of ours.
            if name == "torch.utils.tensorboard":
                sys.modules[name] = _ours("tensorboard")
            continue
        module.SummaryWriter = writer


__all__ = ["use"]
