"""The errors that MLflow raises, also reachable as `mlflow.exceptions`."""

from typing import Any, Self

INTERNAL_ERROR = "INTERNAL_ERROR"
INVALID_PARAMETER_VALUE = "INVALID_PARAMETER_VALUE"
RESOURCE_ALREADY_EXISTS = "RESOURCE_ALREADY_EXISTS"
RESOURCE_DOES_NOT_EXIST = "RESOURCE_DOES_NOT_EXIST"

_NUMBERS = {
    1: INTERNAL_ERROR,
    1000: INVALID_PARAMETER_VALUE,
    1001: "ENDPOINT_NOT_FOUND",
    3001: RESOURCE_ALREADY_EXISTS,
    3002: RESOURCE_DOES_NOT_EXIST,
}
"""The numbers of MLflow's protocol, for code that raises the error itself."""
_HTTP = {INVALID_PARAMETER_VALUE: 400, RESOURCE_ALREADY_EXISTS: 400, RESOURCE_DOES_NOT_EXIST: 404}


class MlflowException(Exception):
    """A call that MLflow refuses. `error_code` is the code's name, `message` the text."""

    def __init__(
        self,
        message: str,
        error_code: int | str = 1,
        sqlstate: str | None = None,
        error_class: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.message = str(message)
        self.error_code = (
            error_code if isinstance(error_code, str) else _NUMBERS.get(error_code, INTERNAL_ERROR)
        )
        self.sqlstate, self.error_class = sqlstate, error_class
        self.json_kwargs = kwargs
        super().__init__(self.message)

    def get_http_status_code(self) -> int:
        """The HTTP status that a server would answer with."""
        return _HTTP.get(self.error_code, 500)

    @classmethod
    def invalid_parameter_value(
        cls, message: str, sqlstate: str | None = None, error_class: str | None = None, **kwargs: Any
    ) -> Self:
        """The error for a wrong argument."""
        return cls(message, INVALID_PARAMETER_VALUE, sqlstate, error_class, **kwargs)


class RestException(MlflowException):
    """What MLflow raises for a server's answer; never raised here, where no server is asked."""


class NotSupportedOffline(AttributeError, NotImplementedError):
    """A part of MLflow that needs its server, or that is not mimicked."""


def invalid(message: str) -> MlflowException:
    """The error for a wrong argument."""
    return MlflowException(message, INVALID_PARAMETER_VALUE)


def missing(message: str) -> MlflowException:
    """The error for something that is not there."""
    return MlflowException(message, RESOURCE_DOES_NOT_EXIST)


def not_offline(name: str, instead: str = "") -> NotSupportedOffline:
    """The error for `mlflow.<name>`, which cannot work without the tracking server."""
    hint = (
        instead or "log with log_metric(s), log_param(s), set_tag(s), log_artifact(s), log_image, log_table"
    )
    return NotSupportedOffline(
        f"mlflow.{name} is not supported offline (spoolagent.writers.mlflow only logs): {hint}"
    )
