r"""Names that MLflow refuses, escaped so that they can be read back.

MLflow takes `[/\w.\- :]` in names of metrics, params and tags, at most 250 characters, and only names that equal
their own normpath. What it refuses becomes `_ux<4 to 6 hex digits>_`: `mAP@0.5` is `mAP_ux0040_0.5`. A literal
`_ux` followed by four hex digits has its underscore escaped too, so `unescape` gives back every name; only what
is too long is cut and gets a hash, and then the tag beside it is the only place that holds the whole name.
"""

import hashlib
import posixpath
import re
from functools import lru_cache

MAX_NAME = 250
"""Characters of the longest name that MLflow takes."""
_CUT = 200
"""What a name that is too long is cut to, before its hash: room for the prefixes of the tags that hold names."""
_PART_BYTES = 200
"""Bytes of the longest file name that is left alone: most file systems end at 255."""

_MAX_PATH_BYTES = 800

_MARK = re.compile(r"_ux[0-9a-f]{4}")
_ESCAPED = re.compile(r"_ux([0-9a-f]{4,6})_")
_NAME_CHARS = re.compile(r"[/\w.\- :]")
_KEY_CHARS = re.compile(r"[A-Za-z0-9_\-. /]")
_FILE_REFUSED = re.compile(r"[\x00-\x1f\x7f-\x9f#?%\\]")
_LEGAL = re.compile(r"[/\w.\- :]+")


@lru_cache(maxsize=65536)
def escape(name: str) -> str:
    """The name of a metric, param or tag as MLflow takes it. Raises ValueError for an empty one."""
    if not name:
        raise ValueError("an empty name has no form in MLflow")
    if len(name) <= MAX_NAME and _is_plain(name):
        return name
    return _fit("".join(_mark(c) if _refused(name, i) else c for i, c in enumerate(name)), name)


def unescape(name: str) -> str:
    """The original of what `escape` or `escape_path` made, unless it was too long and had to be cut."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), name)


@lru_cache(maxsize=4096)
def escape_path(path: str) -> str:
    """A relative artifact path that MLflow's proxy neither cuts (`#`, `?`), decodes (`%`) nor refuses."""
    return "/".join(_part(part, first=i == 0) for i, part in enumerate(path.split("/")))


@lru_cache(maxsize=4096)
def escape_key(key: str) -> str:
    """A key as MLflow's `log_image` writes it into a file name: `/` becomes `~`, and what it refuses is marked."""
    plain = "".join(
        c if _KEY_CHARS.match(c) and not _MARK.match(key, i) else _mark(c) for i, c in enumerate(key)
    )
    return _short(plain.replace("/", "~") or "_", _PART_BYTES - 60)


def _is_plain(name: str) -> bool:
    if "_ux" in name or _LEGAL.fullmatch(name) is None or name.startswith(".."):
        return False
    return name[0] != "/" and all(part not in ("", ".", "..") for part in name.split("/"))


def _refused(name: str, i: int) -> bool:
    char = name[i]
    if char == "_":
        return _MARK.match(name, i) is not None
    if char == "/":  # at an end, or after another
        return i in (0, len(name) - 1) or name[i - 1] == "/"
    if char == ".":
        start, end = name.rfind("/", 0, i) + 1, name.find("/", i)
        return name[start : None if end < 0 else end] in (".", "..") or (name.startswith("..") and i == 0)
    return _NAME_CHARS.match(char) is None


def _mark(char: str) -> str:
    return f"_ux{ord(char):04x}_"


def _fit(escaped: str, name: str) -> str:
    return escaped if len(escaped) <= MAX_NAME - 20 else f"{escaped[:_CUT]}-{_hash(name)}"


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def _part(part: str, *, first: bool) -> str:
    drive = first and len(part) > 1 and part[1] == ":"  # MLflow takes `c:x` for an absolute Windows path
    ends = (0, len(part) - 1)  # servers strip spaces there
    out = "".join(
        _mark(c)
        if _FILE_REFUSED.match(c) or _MARK.match(part, i) or (drive and i == 1) or (i in ends and c.isspace())
        else c
        for i, c in enumerate(part)
    )
    return _short(out, _PART_BYTES)


def _short(part: str, limit_bytes: int) -> str:
    raw = part.encode()
    if len(raw) <= limit_bytes:
        return part
    stem, dot, suffix = part.rpartition(".")
    if not stem or len(suffix.encode()) > 16:
        stem, dot, suffix = part, "", ""
    kept = stem.encode()[: limit_bytes - 40].decode(errors="ignore")
    return f"{kept}-{_hash(part)}{dot}{suffix}"


def clean_path(path: str) -> str:
    """`path` as a normal relative path. Raises ValueError when it leaves the run's artifacts, or names none."""
    normal = posixpath.normpath(path)
    if (
        not path
        or normal == "."
        or normal.startswith("/")
        or normal.split("/")[0] == ".."
        or path.endswith("/")
    ):
        raise ValueError(f"{path!r} is not the path of a file inside the run's artifacts")
    if len(normal.encode()) > _MAX_PATH_BYTES:
        raise ValueError(f"the path {path[:80]!r}... is longer than {_MAX_PATH_BYTES} bytes")
    return normal
