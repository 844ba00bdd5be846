"""Where things lie in a spool. Only this module joins paths of the layout; docs/format.md shows the tree."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from spoolagent.format.names import is_legal

FORMAT = 1
"""The format that this version writes, and the latest that it reads."""
SPOOL_FILE = "spool.json"
AGENT_DIR = ".agent"
LIVE_FILE = "LIVE"
PRUNED_FILE = "pruned.json"
SEGMENT_SUFFIX = ".jsonl"
END_SUFFIX = ".end"
MAX_SEQ = 2**62
"""No seq, and no length in bytes, is larger: what says so is not taken for one (SQLite and orjson end at 2^63)."""
DIR_MODE = 0o700
FILE_MODE = 0o600


class StreamKey(NamedTuple):
    """Which stream: the place where it lies in a spool."""

    site: str
    run: str
    writer: str

    def __str__(self) -> str:
        return f"{self.site}/{self.run}/{self.writer}"


def site_dir(spool: str, site: str) -> str:
    """`SPOOL/sites/<site>`."""
    return os.path.join(spool, "sites", site)


def run_dir(spool: str, site: str, run: str) -> str:
    """`SPOOL/sites/<site>/runs/<run>`."""
    return os.path.join(spool, "sites", site, "runs", run)


def stream_dir(spool: str, key: StreamKey) -> str:
    """`SPOOL/sites/<site>/runs/<run>/<writer>`."""
    return os.path.join(spool, "sites", key.site, "runs", key.run, key.writer)


def blob_dir(spool: str, site: str) -> str:
    """`SPOOL/sites/<site>/blobs`."""
    return os.path.join(spool, "sites", site, "blobs")


def blob_path(spool: str, site: str, sha256: str) -> str:
    """`SPOOL/sites/<site>/blobs/<aa>/<sha256>`."""
    return os.path.join(spool, "sites", site, "blobs", sha256[:2], sha256)


def segment_name(first_seq: int) -> str:
    """The file name of the segment whose first event has seq `first_seq`."""
    return f"{first_seq:020d}{SEGMENT_SUFFIX}"


def end_name(first_seq: int) -> str:
    """The file name of the `.end` sidecar of the segment that begins with `first_seq`."""
    return f"{first_seq:020d}{END_SUFFIX}"


def _first_seq(name: str, suffix: str) -> int | None:
    stem = name[: -len(suffix)] if name.endswith(suffix) else ""
    # isdigit() alone takes digits of other scripts, and superscripts
    seq = int(stem) if len(stem) == 20 and stem.isascii() and stem.isdigit() else 0
    return seq if 0 < seq <= MAX_SEQ else None


def list_segments(stream: str) -> list[int]:
    """First seqs of the segments in the stream directory, rising. Empty when it is gone."""
    return _listed(stream, SEGMENT_SUFFIX)


def list_ends(stream: str) -> list[int]:
    """First seqs of the segments that have a `.end` sidecar, rising."""
    return _listed(stream, END_SUFFIX)


def _listed(stream: str, suffix: str) -> list[int]:
    try:
        with os.scandir(stream) as entries:
            found = [(seq, e) for e in entries if (seq := _first_seq(e.name, suffix)) is not None]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(seq for seq, entry in found if entry.is_file(follow_symlinks=False))


def list_names(parent: str) -> list[str]:
    """Legal names of the directories in `parent`, sorted. Dot files and anything else are ignored."""
    try:
        with os.scandir(parent) as entries:
            return sorted(e.name for e in entries if is_legal(e.name) and e.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def iter_streams(spool: str, site: str | None = None, run: str | None = None) -> Iterator[StreamKey]:
    """All streams in the spool in the order of their names, optionally of one site or run."""
    for site_name in list_names(os.path.join(spool, "sites")) if site is None else [site]:
        runs = os.path.join(site_dir(spool, site_name), "runs")
        for run_name in list_names(runs) if run is None else [run]:
            for writer in list_names(os.path.join(runs, run_name)):
                yield StreamKey(site_name, run_name, writer)
