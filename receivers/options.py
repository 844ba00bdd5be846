"""A receiver's own settings: an unknown one is refused, and the nearest known one is named."""

import difflib
from collections.abc import Collection

from spoolagent.contract import Options
from spoolagent.errors import UsageError


def check_options(receiver: str, options: Options, known: Collection[str]) -> None:
    """Raises UsageError when `options` has a key that is not in `known`."""
    for key in options:
        if key not in known:
            raise UsageError(f"{receiver}: unknown option {key!r}: {nearest(key, known)}")


def nearest(word: str, known: Collection[str]) -> str:
    """The next step for somebody who wrote `word` where only `known` is understood."""
    if not known:
        return "this receiver has no options, remove it"
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?" if close else f"the known ones are {', '.join(sorted(known))}"
