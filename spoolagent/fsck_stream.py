"""The stream half of `fsck`: segment after segment, with the chain of hashes between them."""

import os
from collections.abc import Callable, Iterator

from spoolagent.errors import NewerFormat
from spoolagent.format.ends import read_end, read_pruned
from spoolagent.format.facts import is_alive
from spoolagent.format.layout import (
    END_SUFFIX,
    LIVE_FILE,
    PRUNED_FILE,
    SEGMENT_SUFFIX,
    StreamKey,
    end_name,
    list_ends,
    list_segments,
    segment_name,
    stream_dir,
)
from spoolagent.format.plain import is_plain
from spoolagent.fsck_blobs import BlobCheck
from spoolagent.fsck_finding import Finding, Severity, unreadable
from spoolagent.fsck_segment import SegmentCheck


class StreamCheck:
    """Checks one stream. `home` is the uuid of the spool, "" when that is not known."""

    def __init__(
        self, spool: str, key: StreamKey, *, home: str, blobs: BlobCheck, progress: Callable[[int], None]
    ) -> None:
        self._folder = stream_dir(spool, key)
        self._key, self._home, self._blobs, self._progress = key, home, blobs, progress
        self._next_seq = 1
        self._identity: tuple[object, ...] | None = None
        self._before: SegmentCheck | None = None

    def run(self) -> Iterator[Finding]:
        """All findings of the stream. It may grow meanwhile; it may even be removed."""
        try:
            yield from self._files()
            yield from self._front()
            segments = list_segments(self._folder)
            while segments:
                for first in segments:
                    yield from self._segment(first)
                # listed anew: a living writer may have begun the next one since
                segments = [first for first in list_segments(self._folder) if first > segments[-1]]
            yield from self._last()
        except NewerFormat as error:
            yield Finding(
                severity="warning",
                path=self._folder,
                message=str(error).partition(": upgrade")[0],
                next_step="upgrade spoolagent; until then the stream is shipped unread and not delivered",
            )

    @property
    def born(self) -> str | None:
        """The uuid of the spool where the stream was born, once it was checked; None when no header tells."""
        return None if self._identity is None else str(self._identity[0])

    # -- beside the segments -------------------------------------------------------------------------------

    def _files(self) -> Iterator[Finding]:
        segments, ends = list_segments(self._folder), list_ends(self._folder)
        known = {LIVE_FILE, PRUNED_FILE, *map(segment_name, segments), *map(end_name, ends)}
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return
        except OSError as error:
            yield unreadable(self._folder, error)
            return
        for name in names:
            if name.endswith((SEGMENT_SUFFIX, END_SUFFIX, PRUNED_FILE)) and not is_plain(self._path(name)):
                yield self._finding(
                    "error", name, "is not a plain file: to every reader it is missing", "move it away"
                )
            elif name not in known and not name.startswith("."):
                yield self._finding(
                    "warning", name, "is no file of a stream; every reader ignores it", "move it away"
                )
        for first in ends:
            if first not in segments and segments:
                yield self._finding(
                    "warning", end_name(first), "its segment is not here", "ship the stream again"
                )
            elif read_end(self._folder, first) is None:
                step = "remove it where the stream was born: the agent there writes it anew"
                yield self._finding("error", end_name(first), "is damaged", step)

    def _front(self) -> Iterator[Finding]:
        """What was pruned, and whether the first segment follows on it."""
        segments, pruned = list_segments(self._folder), read_pruned(self._folder)
        if pruned is None and is_plain(self._path(PRUNED_FILE)):
            yield self._finding("error", PRUNED_FILE, "is damaged", "restore it, or ship the stream again")
        if pruned is not None:
            self._next_seq = min([pruned.through + 1, *segments[:1]])
        if not segments:
            if pruned is None:
                yield self._finding(
                    "warning", "", "holds no segment", "remove it when no shipper is at work here"
                )
            return

    def _segment(self, first: int) -> Iterator[Finding]:
        path = os.path.join(self._folder, segment_name(first))
        if first > self._next_seq:
            yield self._missing(path, first)
            self._next_seq, self._before = first, None
        check = SegmentCheck(path, self._key, first, self._next_seq, self._blobs, self._progress)
        try:
            yield from check.run(read_end(self._folder, first))
        except FileNotFoundError:
            return  # pruned just now
        except OSError as error:
            yield unreadable(path, error)
            check.is_damaged = True
        yield from self._chain(check)
        self._next_seq, self._before = max(check.next_seq, first), check

    def _missing(self, path: str, first: int) -> Finding:
        return Finding(
            severity="error",
            path=path,
            message=f"seqs {self._next_seq} to {first - 1} are missing before it: a segment is not here",
            next_step="ship the stream again from where it was born",
        )

    def _chain(self, check: SegmentCheck) -> Iterator[Finding]:
        """The header names the hash of all bytes before it, and repeats what the stream's first one said."""
        header, before = check.header, self._before
        if header is None:
            return
        identity = tuple(header[:5])
        first, self._identity = self._identity, self._identity or identity
        if first is not None and identity != first:
            yield check.at_header(
                "error", "spool, run, writer, role or attempt are not those of the segment before it"
            )
        if before is None:
            pruned = read_pruned(self._folder)
            expected = pruned.prev if pruned is not None and pruned.through + 1 == check.first else None
            if expected is not None and header.prev != expected:
                yield check.at_header("error", f"`prev` is not the hash that {PRUNED_FILE} names")
            elif check.first == 1 and header.prev is not None:
                yield check.at_header("error", "`prev` is not null in a stream's first segment")
            return
        if before.is_closed:
            yield check.at_header("error", "follows a segment by which the writer had closed the stream")
        if header.prev != before.sha256 and not before.is_damaged:
            yield before.whole(
                "error", "its hash is not the one in the next header: bytes were changed, added or lost"
            )
            before.is_damaged = True

    def _last(self) -> Iterator[Finding]:
        """How the stream ends."""
        last = self._before
        if last is None or last.is_closed:
            return
        if read_end(self._folder, last.first) is not None:
            return  # compared while the segment was read
        if self._identity is None:
            step = (
                "nothing while a shipper or the writer is at work; else its beginning is lost: ship it again"
            )
            yield self._finding("warning", "", "has no whole header yet", step)
            return
        if self._identity[0] != self._home or is_alive(self._folder, at_home=True) is not False:
            return
        torn = f"; its last line is torn ({last.torn_bytes} bytes)" if last.torn_bytes else ""
        step = "nothing; the next agent that looks at this spool writes its .end"
        if os.path.exists(os.path.join(self._folder, LIVE_FILE)):
            yield self._finding("info", "", f"its writer died{torn}", step)
        else:
            # Only a writer that ends in order removes LIVE, and before that it writes the seal.
            why = "the disk was full when it closed, or bytes were cut off since"
            yield self._finding(
                "warning", "", f"its writer has closed it, but there is no seal{torn}: {why}", step
            )

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _finding(self, severity: Severity, name: str, message: str, next_step: str) -> Finding:
        path = os.path.join(self._folder, name) if name else self._folder
        return Finding(severity=severity, path=path, message=message, next_step=next_step)
