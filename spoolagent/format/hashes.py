"""SHA-256, loaded when it is first needed: OpenSSL costs 5 ms, which an import of a writer need not."""

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import hashlib


def new_sha256(data: bytes = b"") -> "hashlib._Hash":
    """A hash of `data`. Raises OSError where it cannot be loaded now (no descriptor is left), and can be later."""
    try:
        import _hashlib  # noqa: F401 - first: without it hashlib would load all the same, and be crippled for good
    except ModuleNotFoundError:
        pass  # a Python without OpenSSL
    except ImportError as error:
        raise OSError(errno.EMFILE, f"OpenSSL cannot be loaded: {error}") from error
    import hashlib

    return hashlib.sha256(data)
