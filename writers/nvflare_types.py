"""NVFLARE's 13 data types: how a value is checked, and which event it becomes.

SCALAR, METRIC, METRICS   metrics, by name
SCALARS                   metrics, each in a sub-run `<tag>_<name>`, as TensorBoard's add_scalars
PARAMETER, PARAMETERS     param
TAG, TAGS                 tag
TEXT                      text; with `path` a file of the run
IMAGE                     image: an array (`dataformats`, default CHW), a path, encoded bytes, a PIL image
MODEL                     model: a file or a directory by its path, or bytes that become a file named `key`
LOG_RECORD                log: a text, or a logging.LogRecord
INIT_DATA                 param that later ones may replace: a dict by its names, anything else under `key`
"""

import os
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, cast

from spoolagent.format import blobs
from spoolagent.format.values import clean_text, metric_value, to_json
from spoolagent.writers import tb_values
from spoolagent.writers.run import Run, list_files, optional


class AnalyticsDataType(Enum):
    """What a logged value is."""

    SCALARS = "SCALARS"
    SCALAR = "SCALAR"
    IMAGE = "IMAGE"
    TEXT = "TEXT"
    LOG_RECORD = "LOG_RECORD"
    PARAMETER = "PARAMETER"
    PARAMETERS = "PARAMETERS"
    METRIC = "METRIC"
    METRICS = "METRICS"
    MODEL = "MODEL"
    TAG = "TAG"
    TAGS = "TAGS"
    INIT_DATA = "INIT_DATA"


_Kind = AnalyticsDataType
_MAPPINGS = frozenset({_Kind.SCALARS, _Kind.METRICS, _Kind.PARAMETERS, _Kind.TAGS})


def check(key: Any, value: Any, data_type: Any, kwargs: Mapping[str, Any]) -> AnalyticsDataType:
    """The data type, when all arguments fit. Raises TypeError, and ValueError for a negative step.

    NVFLARE's own enum is accepted, too: a script may import it from there.
    """
    if not isinstance(key, str):
        raise TypeError(f"a tag must be a str, got {type(key)}")
    kind = data_type if isinstance(data_type, AnalyticsDataType) else _own(data_type)
    _check_step(kwargs.get("global_step"))
    path = kwargs.get("path")
    if path is not None and not isinstance(path, str):
        raise TypeError(f"path must be a str, got {type(path)}")
    if kind in (_Kind.SCALAR, _Kind.METRIC):
        _check_number(key, value)
    elif kind in _MAPPINGS:
        _check_mapping(key, value, numbers=kind in (_Kind.SCALARS, _Kind.METRICS))
    elif kind is _Kind.TEXT and not isinstance(value, str):
        raise TypeError(f"{key!r}: a TEXT must be a str, got {type(value)}")
    return kind


def _own(data_type: Any) -> AnalyticsDataType:
    """The member of NVFLARE's enum as one of ours."""
    if isinstance(data_type, Enum) and type(data_type).__name__ == "AnalyticsDataType":
        found = AnalyticsDataType.__members__.get(data_type.name)
        if found is not None:
            return found
    raise TypeError(f"data_type must be an AnalyticsDataType, got {data_type!r}")


def _check_step(step: Any) -> None:
    if step is None:
        return
    if not isinstance(step, int):
        raise TypeError(f"global_step must be an int, got {type(step)}")
    if step < 0:
        raise ValueError(f"global_step must not be negative, got {step}")


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, (int, float)):
        return
    if getattr(value, "shape", None) != ():  # a 0-d tensor or array has this shape
        raise TypeError(f"{name!r}: the value must be a number or a 0-d tensor, got {type(value)}")


def _check_mapping(key: str, value: Any, *, numbers: bool) -> None:
    if not isinstance(value, dict):
        raise TypeError(f"{key!r}: the value must be a dict, got {type(value)}")
    for name, number in value.items():
        if numbers:
            _check_number(f"{key}[{name}]", number)
            if not isinstance(name, str):
                raise TypeError(f"{key!r}: a name must be a str, got {type(name)}")


def write(run: Run, key: str, value: Any, kind: AnalyticsDataType, kwargs: Mapping[str, Any]) -> None:
    """Appends the event, or events, of a value that `check` has passed."""
    walltime, step = kwargs.get("walltime"), kwargs.get("global_step")
    common = {} if step is None else {"step": tb_values.step_number(step)}
    if walltime is not None:
        common["at"] = tb_values.wall_ns(walltime)
    _WRITERS[kind](run, key, value, common, kwargs)


_Common = dict[str, int]
_Write = Callable[[Run, str, Any, _Common, Mapping[str, Any]], None]


def _number(run: Run, key: str, value: Any, common: _Common, _: Mapping[str, Any]) -> None:
    run.event("metrics", {"metrics": {key: metric_value(value)}, **common})


def _numbers(run: Run, _key: str, value: Any, common: _Common, _: Mapping[str, Any]) -> None:
    run.event("metrics", {"metrics": {name: metric_value(v) for name, v in value.items()}, **common})


def _subruns(run: Run, key: str, value: Any, common: _Common, _: Mapping[str, Any]) -> None:
    at = {"at": tb_values.now_ns()}  # one time for all of them
    for name, number in value.items():
        context = {"subrun": f"{key.replace('/', '_')}_{name}"}
        run.event("metrics", {"metrics": {key: metric_value(number)}, **at, **common, "context": context})


def _param(run: Run, key: str, value: Any, _common: _Common, _: Mapping[str, Any]) -> None:
    run.log_params({key: value})


def _params(run: Run, _key: str, value: Any, _common: _Common, _: Mapping[str, Any]) -> None:
    run.log_params(value)


def _tag(run: Run, key: str, value: Any, _common: _Common, _: Mapping[str, Any]) -> None:
    run.set_tags({key: str(value)})


def _tags(run: Run, _key: str, value: Any, _common: _Common, _: Mapping[str, Any]) -> None:
    run.set_tags({name: str(tag) for name, tag in value.items()})


def _text(run: Run, key: str, value: Any, common: _Common, kwargs: Mapping[str, Any]) -> None:
    text = clean_text(value)
    fields = {"key": key, **common, **optional(path=kwargs.get("path"))}
    data = text.encode()
    if len(data) < tb_values.LARGE:
        run.event("text", {**fields, "text": text})
    else:
        run.with_blob("text", fields, data)


def _image(run: Run, key: str, value: Any, common: _Common, kwargs: Mapping[str, Any]) -> None:
    if hasattr(value, "shape"):
        data, fields = tb_values.image(value, kwargs.get("dataformats") or "CHW")
    else:
        from spoolagent.writers.media import image_payload

        data, fields = image_payload(value)
    run.with_blob("image", {"key": key, **fields, **common, **optional(path=kwargs.get("path"))}, data)


def _model(run: Run, key: str, value: Any, _common: _Common, _: Mapping[str, Any]) -> None:
    if isinstance(value, (str, os.PathLike)):
        run.log_files("model", list_files(os.fspath(cast(str, value))), {"name": key})
        return
    if not isinstance(value, (bytes, bytearray)):
        raise TypeError(f"{key!r}: a MODEL is the path of its file or directory, or bytes, got {type(value)}")
    try:
        ref = blobs.put_bytes(run.spool, run.site, bytes(value))
    except OSError as error:
        run.drop(f"model: {error.strerror}")
        return
    name = key.strip("/").replace("/", "_") or "model"
    run.event("model", {"files": [{"path": name, "blob": ref}], "name": key})


def _log_record(run: Run, _key: str, value: Any, _common: _Common, _: Mapping[str, Any]) -> None:
    if hasattr(value, "getMessage"):  # a logging.LogRecord
        fields = {"message": value.getMessage(), "level": value.levelname, "logger": value.name}
    else:
        fields = {"message": str(value)}
    run.event("log", to_json(fields))


def _init_data(run: Run, key: str, value: Any, _common: _Common, _: Mapping[str, Any]) -> None:
    params = value if isinstance(value, dict) else {key: value}
    run.event("param", {"params": to_json(params), "overwrite": True})


_WRITERS: dict[AnalyticsDataType, _Write] = {
    _Kind.SCALAR: _number,
    _Kind.METRIC: _number,
    _Kind.SCALARS: _subruns,
    _Kind.METRICS: _numbers,
    _Kind.PARAMETER: _param,
    _Kind.PARAMETERS: _params,
    _Kind.TAG: _tag,
    _Kind.TAGS: _tags,
    _Kind.TEXT: _text,
    _Kind.IMAGE: _image,
    _Kind.MODEL: _model,
    _Kind.LOG_RECORD: _log_record,
    _Kind.INIT_DATA: _init_data,
}
