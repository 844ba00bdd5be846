"""`wandb.watch`: histograms of a torch model's gradients and parameters, from hooks on the model.

torch is the caller's: whoever has a model has loaded it.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from spoolagent.writers.wandb_errors import notice
from spoolagent.writers.wandb_media import Histogram

_BINS = 64
Log = Callable[[dict[str, Any]], None]


class Watched:
    """The hooks of one run. `log` puts values into its current row."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._hooks: list[tuple[Any, Any]] = []
        self._count = 0

    def watch(self, models: Any, log: str | None, log_freq: int, idx: int | None, *, log_graph: bool) -> None:
        """Raises ValueError for another `log`, TypeError for what is no model of torch."""
        if log not in ("gradients", "parameters", "all", None):
            raise ValueError("log must be one of 'gradients', 'parameters', 'all', or None")
        models = models if isinstance(models, (tuple, list)) else (models,)
        module: Any = getattr(sys.modules.get("torch"), "nn", None)
        for model in models:
            if module is None or not isinstance(model, module.Module):
                raise TypeError(f"Expected a pytorch model (torch.nn.Module). Received {type(model)}")
        if log_graph:
            notice("watch(log_graph=True): the graph is not logged, gradients and parameters are")
        first = self._count if idx is None else idx
        for number, model in enumerate(models, first):
            self._count += 1
            prefix = f"graph_{number}" if number > 0 else ""
            if log in ("parameters", "all"):
                self._watch_parameters(model, prefix, log_freq)
            if log in ("gradients", "all"):
                self._watch_gradients(model, prefix, log_freq)

    def unwatch(self, models: Any = None) -> None:
        """Takes the hooks of these models off, or all."""
        chosen: Sequence[Any] = models if isinstance(models, (tuple, list)) else (models,)
        kept = []
        for model, hook in self._hooks:
            if models is None or any(model is one for one in chosen):
                hook.remove()
            else:
                kept.append((model, hook))
        self._hooks = kept

    def _watch_parameters(self, model: Any, prefix: str, log_freq: int) -> None:
        due = _each(log_freq)

        def hook(module: Any, given: Any, made: Any) -> None:
            del given, made
            if due():
                for name, parameter in module.named_parameters():
                    self._show(f"parameters/{prefix}{name}", parameter)

        try:
            self._hooks.append((model, model.register_forward_hook(hook)))
        except RuntimeError as error:  # a ScriptModule takes none
            notice(f"Trying to register forward_hook failed ({error}) - skipping parameters tracking.")

    def _watch_gradients(self, model: Any, prefix: str, log_freq: int) -> None:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                hook = self._gradient_hook(f"gradients/{prefix}{name}", log_freq)
                self._hooks.append((model, parameter.register_hook(hook)))

    def _gradient_hook(self, name: str, log_freq: int) -> Callable[[Any], None]:
        due = _each(log_freq)

        def hook(gradient: Any) -> None:
            if due():
                self._show(name, gradient)

        return hook

    def _show(self, name: str, tensor: Any) -> None:
        flat = tensor.detach()
        flat = (flat.to_dense() if flat.is_sparse else flat).reshape(-1).cpu()
        if str(flat.dtype) not in ("torch.float32", "torch.float64"):
            flat = flat.float()
        flat = flat[flat.isfinite()]
        if not flat.numel():
            return
        low, high = flat.min().item(), flat.max().item()
        if low == high:
            counts, edges = [flat.numel()], [low, high]
        else:
            counts = flat.histc(bins=_BINS, min=low, max=high).tolist()
            edges = sys.modules["torch"].linspace(low, high, steps=_BINS + 1).tolist()
        self._log({name: Histogram(np_histogram=(counts, edges))})


def _each(count: int) -> Callable[[], bool]:
    """True at every count-th call."""
    calls = 0

    def due() -> bool:
        nonlocal calls
        calls += 1
        if calls < count:
            return False
        calls = 0
        return True

    return due
