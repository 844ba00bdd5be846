"""Repairing what lies beside a stream's segments: `.end`, `pruned.json`; keeping copies of bad bytes. No segment changes."""

import os
import re
import time
from collections.abc import Iterator

from spoolagent.errors import FormatError, Locked
from spoolagent.format import durable
from spoolagent.format.ends import DeathWatch, end_dead_stream, read_end, read_pruned
from spoolagent.format.header import Header, read_header, read_segment_header
from spoolagent.format.layout import (
    AGENT_DIR,
    PRUNED_FILE,
    StreamKey,
    end_name,
    list_ends,
    list_segments,
    segment_name,
    stream_dir,
)
from spoolagent.format.lines import encode_line
from spoolagent.format.plain import is_plain, open_plain
from spoolagent.format.reader import START, StreamReader
from spoolagent.repair_aside import Repair, keep_aside, shipping_lock, take_aside

_THROUGH = re.compile(rb'"through":(\d{1,18})[,}]')


class StreamRepair:
    """Repairs one stream. `home` is the uuid of the spool, "" when that is not known."""

    def __init__(self, spool: str, key: StreamKey, *, home: str, watch: DeathWatch) -> None:
        self._spool, self._key, self._watch = spool, key, watch
        self._folder = stream_dir(spool, key)
        self._header: Header | None = None
        self._home = home

    def run(self) -> Iterator[Repair]:
        """All repairs. Raises OSError."""
        try:
            yield from self._run()
        except IsADirectoryError as error:
            where = str(error.filename2 or error.filename)
            yield Repair(
                path=where,
                message="is a directory, so that nothing is written there",
                done=False,
                next_step="move it away",
            )

    def _run(self) -> Iterator[Repair]:
        try:
            self._header = read_header(self._folder)
        except FormatError:  # of a later format: not ours to judge
            return
        if self._is_at_home:
            yield from self._side_files()
            return
        if not self._needs_work():
            return
        try:
            with shipping_lock(self._spool, self._key.site, self._key.run):
                yield from self._side_files()
        except Locked as error:
            yield Repair(path=self._folder, message=str(error), done=False, next_step="repair it again later")

    @property
    def _is_at_home(self) -> bool:
        return self._header is not None and self._header.spool == self._home

    def _needs_work(self) -> bool:
        is_damaged = any(read_end(self._folder, first) is None for first in list_ends(self._folder))
        return is_damaged or (self._has(PRUNED_FILE) and read_pruned(self._folder) is None)

    def _side_files(self) -> Iterator[Repair]:
        left = False
        for first in list_ends(self._folder):
            if read_end(self._folder, first) is None:
                one = self._damaged_end(first)
                left = left or not one.done
                yield one
        if self._is_at_home and not left:
            yield from self._missing_end()
        if self._has(PRUNED_FILE) and read_pruned(self._folder) is None:
            yield self._pruned()

    # -- .end ------------------------------------------------------------------------------------------------

    def _damaged_end(self, first: int) -> Repair:
        path = self._path(end_name(first))
        if self._is_at_home and first == max(list_segments(self._folder), default=0):
            raw = _read(path)
            if not self._watch.is_dead(self._folder):
                return Repair(
                    path=path,
                    message="is damaged, and its writer is not known to be dead",
                    done=False,
                    next_step="nothing while it lives; later an agent or a repair on its machine writes it anew",
                )
            keep_aside(self._spool, *self._key, end_name(first), data=raw)
            end_dead_stream(self._folder, self._watch)
            end = read_end(self._folder, first)
            if end is not None:
                missing = end.reason.partition("; ")[2]
                return Repair(
                    path=path, message=f"written anew, as its segment is now{missing and ': '}{missing}"
                )
        take_aside(self._spool, path, *self._key, end_name(first))
        then = "it says nothing of use any more" if self._is_at_home else "the next ship brings it again"
        return Repair(path=path, message=f"damaged, moved to the quarantine: {then}")

    def _missing_end(self) -> Iterator[Repair]:
        before = list_ends(self._folder)
        if end_dead_stream(self._folder, self._watch):
            for first in set(list_ends(self._folder)) - set(before):
                path = self._path(end_name(first))
                yield Repair(path=path, message="written: its writer is dead, and had not closed the stream")

    # -- pruned.json -----------------------------------------------------------------------------------------

    def _pruned(self) -> Repair:
        """The first segment at hand tells all that pruned.json did, if that is what it spoke of."""
        path, raw = self._path(PRUNED_FILE), _read(self._path(PRUNED_FILE))
        segments = list_segments(self._folder)
        header = None
        if segments:
            try:
                header = read_segment_header(self._path(segment_name(segments[0])))
            except FormatError:
                header = None
        if header is None or header.first_seq != segments[0] or header.prev is None:
            return self._keep_pruned(path, "no segment after it tells what was pruned")
        through = _THROUGH.search(raw)
        agrees = through is not None and int(through[1]) == header.first_seq - 1
        if not agrees and header.prev.encode() not in raw:
            return self._keep_pruned(
                path, f"what is left of it does not agree with segment {header.first_seq}"
            )
        keep_aside(self._spool, *self._key, PRUNED_FILE, data=raw)
        line = {"through": header.first_seq - 1, "prev": header.prev, "time": time.time_ns()}
        durable.write_file(path, encode_line(line))
        return Repair(path=path, message=f"written anew from the header of segment {header.first_seq}")

    def _keep_pruned(self, path: str, why: str) -> Repair:
        return Repair(
            path=path,
            message=f"is damaged, and cannot be rebuilt: {why}",
            done=False,
            next_step="restore it, or ship the stream again",
        )

    # -- bad bytes -------------------------------------------------------------------------------------------

    def keep_bad_bytes(self) -> Iterator[Repair]:
        """Copies of what is no valid line, under the names that workers use, too."""
        reader = StreamReader(self._folder, START, at_home=False, patience_s=0.0, patience_elsewhere_s=0.0)
        folder = os.path.join(self._spool, AGENT_DIR, "quarantine", *self._key)
        state = "more"
        while state == "more":
            chunk = reader.read()
            state = chunk.state
            for bad in chunk.bad:
                target = os.path.join(folder, f"{bad.segment:020d}-{bad.offset}")
                if not os.path.exists(target):
                    durable.make_dirs(folder)
                    durable.write_file(target, bad.data)
                    what = f"{len(bad.data)} bad bytes at byte {bad.offset} were copied to the quarantine"
                    yield Repair(path=self._path(segment_name(bad.segment)), message=f"{what}: {bad.reason}")

    def _has(self, name: str) -> bool:
        return is_plain(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)


def _read(path: str) -> bytes:
    with open_plain(path) as file:
        return file.read(1 << 20)
