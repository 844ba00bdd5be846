"""Finds secrets in a configuration: they belong in the environment of the service, not in a file that is copied."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_KEY = re.compile(r"token|passw|secret|api_?key|credential|private_?key", re.IGNORECASE)
_URI = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


def find_secrets(raw: Mapping[str, Any]) -> list[str]:
    """The key paths whose name or value looks like a secret. The values themselves are never repeated."""
    return list(_walk(raw, ""))


def has_password(text: str) -> bool:
    """True for a URI with `user:password@`."""
    return _URI.search(text) is not None


def hide_password(text: str) -> str:
    """`text` with the password of a URI replaced, to be shown."""
    return _URI.sub("://***:***@", text)


def _walk(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            below = f"{path}.{key}" if path else str(key)
            if isinstance(inner, str) and inner and _KEY.search(str(key)):
                yield below
            else:
                yield from _walk(inner, below)
    elif isinstance(value, (list, tuple)):
        for place, inner in enumerate(value):
            yield from _walk(inner, f"{path}[{place}]")
    elif isinstance(value, str) and has_password(value):
        yield path
