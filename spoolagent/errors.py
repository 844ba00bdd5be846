"""One root error. Each message names the file or place, and the next step to take."""


class SpoolError(Exception):
    """Whatever spoolagent raises on purpose."""

    exit_code = 1


class UsageError(SpoolError):
    """The command line, a setting or a name is wrong; nothing was touched."""

    exit_code = 2


class NameRefused(UsageError, ValueError):
    """A site, run or writer name is not legal (it is never cleaned up into a legal one)."""


class FormatError(SpoolError):
    """Bytes in a spool are not what format 1 says."""


class NewerFormat(FormatError):
    """The spool, stream or segment was written in a later format than this version reads."""


class Locked(SpoolError):
    """Another process of ours holds the lock that this one needs."""


class Unreachable(SpoolError):
    """A tracker, server or target cannot be reached now. Transient: the whole receiver backs off."""

    exit_code = 3


class Transient(SpoolError):
    """The tracker answered that it cannot take this batch *now* (5xx, 429, a lock). It is tried again.

    `retry_after_s` is the tracker's own wish (Retry-After), or None.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Refused(SpoolError):
    """The tracker refuses something in this batch for good. The worker bisects down to the bad event."""


def cannot_import(what: str, error: ImportError, extra: str) -> UsageError:
    """The error for a library that a receiver needs: missing, or there and not to be loaded. `extra` is ours to install."""
    if isinstance(error, ModuleNotFoundError):
        return UsageError(f"{what} is not installed ({error}): pip install 'spoolagent[{extra}]'")
    words = " ".join(str(error).split())  # numpy's own message has twenty lines, with the reason at the end
    why = words.rpartition("Original error was: ")[2][:300]
    return UsageError(
        f"{what} cannot be loaded ({why}): raise the memory limit (MemoryMax= of the service, ulimit -v) if there is one;"
        f" else install it again: pip install --force-reinstall 'spoolagent[{extra}]'"
    )
