"""`mlflow.sklearn`, `mlflow.models` and their like: borrowed from the installed mlflow, as far as no server is needed.

`log_model` saves the model with the flavor's own `save_model` into a temporary folder and logs the folder; what knows
of no server (signatures, schemas, `save_model`) is handed through. mlflow is imported by these calls only.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

from spoolagent.writers.mlflow_active import current
from spoolagent.writers.mlflow_checks import check_folder
from spoolagent.writers.mlflow_errors import NotSupportedOffline, not_offline
from spoolagent.writers.process import warn_once

_FLAVORS = """ag2 agno anthropic autogen bedrock catboost crewai diffusers dspy gemini groq h2o haystack johnsnowlabs keras
    langchain lightgbm litellm llama_index mistral onnx openai paddle pmdarima prophet pydantic_ai pyfunc pyspark
    pytorch rfunc semantic_kernel sentence_transformers shap sklearn smolagents spacy spark statsmodels strands
    tensorflow transformers txtai xgboost"""
_LIBRARIES = ("models", "models.signature", "types", "types.schema")
"""Modules that know of no server."""
_LOCAL = frozenset(
    (
        "save_model",
        "get_default_conda_env",
        "get_default_pip_requirements",
        "PythonModel",
        "PythonModelContext",
    )
)
_OF_SERVER = (
    *("registered_model_name", "await_registration_for", "params", "tags", "model_type", "step", "model_id"),
    *("resources", "auth_policy", "prompts", "task"),
)
"""Arguments of `log_model` that `save_model` does not have."""


class ModelInfo:
    """What `log_model` returns: where the model lies among the run's artifacts."""

    def __init__(self, run_id: str, artifact_path: str) -> None:
        self.run_id, self.artifact_path, self.name = run_id, artifact_path, artifact_path
        self.model_uri = f"runs:/{run_id}/{artifact_path}"
        self.model_id: str | None = None


def no_autolog(name: str) -> NotSupportedOffline:
    """The error for an `autolog`."""
    return not_offline(
        name,
        "it patches the training library through mlflow itself. Log from the library's own callback or logger "
        "(Lightning's MLFlowLogger, Hugging Face's TrainerCallback, Keras' Callback, XGBoost's TrainingCallback) "
        "with log_params and log_metrics",
    )


def _real(name: str, wanted: str) -> Any:
    trouble: object = "frameworks.use('mlflow') put this module in the place of mlflow"
    try:
        found: Any = importlib.import_module(f"mlflow.{name}")
    except ImportError as error:
        found, trouble = None, error
    if found is not None and not isinstance(found, (Library, Flavor)):
        return found
    raise not_offline(
        f"{name}.{wanted}",
        f"it needs mlflow and its library here ({trouble}). Or save the model with its own library into a folder and "
        "call log_artifacts(folder, 'model')",
    )


class Library(ModuleType):
    """A module of mlflow that knows of no server, imported when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real(self.__name__.partition("mlflow.")[2], name), name)


class Flavor(ModuleType):
    """`mlflow.<flavor>`: `log_model` and what else needs no server; the rest raises."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        flavor = self.__name__.rpartition(".")[2]
        full = f"{flavor}.{name}"
        if name == "autolog":

            def autolog(*args: Any, disable: bool = False, **kwargs: Any) -> None:
                del args, kwargs
                if not disable:
                    raise no_autolog(full)

            return autolog
        if name in _LOCAL:
            return getattr(_real(flavor, name), name)
        raise not_offline(
            full, "log the model with log_model, or its files with log_artifacts(folder, 'model')"
        )

    def log_model(
        self, *args: Any, artifact_path: str | None = None, name: str | None = None, **kwargs: Any
    ) -> ModelInfo:
        """Saves the model as its flavor does, and logs the folder under `name` (default "model")."""
        import inspect

        flavor = self.__name__.rpartition(".")[2]
        save = _real(flavor, "log_model").save_model
        at = 0 if flavor == "pyfunc" else 1  # log_model(model, "name", ...): where save_model has its path
        named = name or artifact_path or (args[at] if len(args) > at else None)
        path = check_folder(named or "model") or "model"
        known = inspect.signature(save).parameters
        lost = [
            key for key in _OF_SERVER if key in kwargs and key not in known and kwargs.pop(key) is not None
        ]
        if lost:
            warn_once(
                "model", f"mlflow.{flavor}.log_model: not kept offline: {', '.join(lost)}; the model is"
            )

        def make(where: str) -> None:
            if len(args) > at:
                save(*args[:at], where, *args[at + 1 :], **kwargs)
            else:
                save(*args, path=where, **kwargs)

        run = current()
        run.writer().log_made("model", f"model {path}", make, {"path": path, "flavor": flavor})
        return ModelInfo(run.id, path)


def register(package: str) -> dict[str, ModuleType]:
    """Makes these modules importable below `package`; those directly below it, by name."""
    made: dict[str, ModuleType] = {}
    for name in (*_FLAVORS.split(), *_LIBRARIES):
        kind = Library if name in _LIBRARIES else Flavor
        made[name] = sys.modules.setdefault(f"{package}.{name}", kind(f"{package}.{name}"))
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(made[parent], leaf, made[name])
    return made
