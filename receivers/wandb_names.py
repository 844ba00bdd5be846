"""Names in W&B, each a pure function of what it names."""

import hashlib
import re
import time

ID_LIMIT = 64
"""W&B's limit for run ids."""
_ID = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_NOT_ID = re.compile(r"[^A-Za-z0-9_-]", re.ASCII)
_NOT_FILE = re.compile(r"[^A-Za-z0-9_ .-]", re.ASCII)
_PART_LIMIT = 80


def run_id(site: str, run: str) -> str:
    """The W&B id of a site's run: `<site>--<run>` where that can have come from no other pair, else with a hash.

    Two sites that use the same run id never meet in one W&B run. A name that itself holds `--` or `__`, has a
    character that W&B refuses, or makes the id longer than 64, leads to `<front of it>__<16 hex digits>`; the
    plain form never holds `__`.
    """
    plain = f"{site}--{run}"
    clear = _ID.fullmatch(plain) and len(plain) <= ID_LIMIT and plain.count("--") == 1 and "__" not in plain
    if clear and "---" not in plain:
        return plain
    return _hashed(plain, f"{site}\0{run}")


def given_run_id(text: str) -> str:
    """The id from a template's text: itself where W&B takes it, else shortened and cleaned, with a hash."""
    return text if _ID.fullmatch(text) and len(text) <= ID_LIMIT else _hashed(text, text)


def _hashed(text: str, secret: str) -> str:
    digest = hashlib.sha256(secret.encode()).hexdigest()[:16]
    front = re.sub("_{2,}", "_", _NOT_ID.sub("_", text))[: ID_LIMIT - 18]
    return f"{front}__{digest}"


def folder_name(start_ns: int, wandb_id: str) -> str:
    """`offline-run-<UTC time>-<id>`, as the SDK names it."""
    stamp = time.strftime("%Y%m%d_%H%M%S", time.gmtime(start_ns // 1_000_000_000))
    return f"offline-run-{stamp}-{wandb_id}"


def file_part(key: str) -> str:
    """A path below the run's files for a user's key: its slashes are kept, what a file system may refuse is `_`."""
    parts = [_NOT_FILE.sub("_", part)[:_PART_LIMIT] for part in key.split("/")]
    return "/".join("_" if part.strip(". ") == "" else part for part in parts)
