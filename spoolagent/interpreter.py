"""How a process of ours starts another one."""

import os
import sys
from contextlib import suppress


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with this Python.

    With `-m` alone it would look for every library in the working directory first, and a user's own `logging.py` or
    `queue.py` there would end it. It looks there only when this process does (`python -m spoolagent` in a checkout).
    """
    here = {""}
    with suppress(OSError):  # a working directory that was removed
        here.add(os.getcwd())
    looks_here = not here.isdisjoint(sys.path)
    return [sys.executable, *(() if looks_here else ("-P",)), "-m", module, *arguments]
