"""What frameworks import from `mlflow.utils` and `mlflow.tracking.context`: names of tags, limits, `resolve_tags`.

This one module stands for `mlflow.utils`, its `mlflow_tags` and `validation`, and `mlflow.tracking.context` with its
`registry`.
"""

import sys
from typing import Any

from spoolagent.writers import mlflow_names
from spoolagent.writers.mlflow_checks import MAX_KEY, MAX_PARAM, MAX_TAG

MLFLOW_RUN_NAME = mlflow_names.RUN_NAME
MLFLOW_RUN_NOTE = mlflow_names.NOTE
MLFLOW_PARENT_RUN_ID = mlflow_names.PARENT
MLFLOW_USER = mlflow_names.USER
MLFLOW_SOURCE_NAME = "mlflow.source.name"
MLFLOW_SOURCE_TYPE = "mlflow.source.type"
MLFLOW_GIT_COMMIT = "mlflow.source.git.commit"

MAX_ENTITY_KEY_LENGTH, MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH = MAX_KEY, MAX_PARAM, MAX_TAG
MAX_PARAMS_TAGS_PER_BATCH, MAX_METRICS_PER_BATCH = 100, 1000


def resolve_tags(tags: dict[str, Any] | None = None, ignore: Any = None) -> dict[str, Any]:
    """The tags that say who runs what, with the caller's over them."""
    del ignore
    return {**mlflow_names.context_tags(), **(tags or {})}


mlflow_tags = validation = context = registry = sys.modules[__name__]
