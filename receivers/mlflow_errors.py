"""What MLflow raises, and what it means here: the one place that decides.

A transport error is transient whatever its error code says: MLflow wraps a refused connection as INTERNAL_ERROR.
The status of an HTTP answer survives only in the text of its exceptions, so it is read from there.
"""

import re
from collections.abc import Iterator

from spoolagent.errors import Refused, SpoolError, Transient, Unreachable

_REFUSED = frozenset(
    [
        "INVALID_PARAMETER_VALUE",
        "BAD_REQUEST",
        "NOT_IMPLEMENTED",
        "MALFORMED_REQUEST",
        "INVALID_STATE_TRANSITION",
        "RESOURCE_LIMIT_EXCEEDED",
    ]
)
_UNREACHABLE = frozenset({"UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "ENDPOINT_NOT_FOUND"})
# Anchored, so that no name or value that a site chose can pass for a status.
_NOT_JSON = re.compile(r"API request to endpoint \S+ failed with error code (\d{3}) ")
_RETRIED = re.compile(r"ResponseError\('too many (\d{3}) error responses'\)\)$")
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_MAX_MESSAGE = 500


class NotThere(Refused):
    """The run or experiment that was asked for does not exist."""


class AlreadyThere(Refused):
    """What was to be created exists."""


def translate(error: BaseException, doing: str) -> SpoolError:
    """The error to raise for `error`, which came while `doing`: Unreachable, Transient or Refused."""
    import requests

    chain = list(_chain(error))
    text = f"MLflow, {doing}: {describe(error)}"
    status = _status(chain)
    for link in chain:
        if isinstance(link, requests.exceptions.RequestException) and status is None:
            return Unreachable(text)  # no answer came: refused, timed out, unknown host, broken off
    if status is not None and not _has_code(error):
        return _by_status(status, text)
    code = str(getattr(error, "error_code", "INTERNAL_ERROR"))
    if code in _UNREACHABLE:
        return Unreachable(text)
    if code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
        return NotThere(text)
    if code in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
        return AlreadyThere(text)
    return Refused(text) if code in _REFUSED else Transient(text)


def describe(error: BaseException) -> str:
    """The error's text on one line, without credentials, cut to a readable length."""
    text = " ".join(without_credentials(str(error)).split()) or type(error).__name__
    return text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + "..."


def reason(error: BaseException) -> str:
    """Why nothing answered, in a word or two where the system says so, else the whole of `describe`."""
    for link in _chain(error):
        if isinstance(link, OSError) and link.strerror:
            return link.strerror.lower()
    return describe(error)


def without_credentials(uri: str) -> str:
    """The URI, without user and password."""
    return _USERINFO.sub("", uri)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _has_code(error: BaseException) -> bool:
    """True when the server itself named the error (MLflow's RestException), not only a status."""
    return hasattr(error, "json") and hasattr(error, "error_code")


def _status(chain: list[BaseException]) -> int | None:
    for link in chain:
        response = getattr(link, "response", None)
        if response is not None and isinstance(getattr(response, "status_code", None), int):
            return int(response.status_code)
    for link in chain:
        text = str(link)
        found = _NOT_JSON.match(text) or (
            _RETRIED.search(text) if type(link).__name__ == "RetryError" else None
        )
        if found:
            return int(found[1])
    return None


def _by_status(status: int, text: str) -> SpoolError:
    if status in (401, 404, 407):  # wrong credentials, or not an MLflow server
        return Unreachable(text)
    # 403 can be about one experiment only: it must not hold up the other runs.
    if status in (403, 408, 425, 429) or status >= 500 or status < 400:
        return Transient(text)
    return Refused(text)
