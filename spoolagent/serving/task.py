"""One stream as a worker sees it: its reader, its cursor, and the chunk that waits for delivery."""

import contextlib
import os
from collections.abc import Callable

from spoolagent import again
from spoolagent.contract import Stream
from spoolagent.errors import FormatError
from spoolagent.format import live
from spoolagent.format.blobs import check_blob, references
from spoolagent.format.ends import is_closed, read_end
from spoolagent.format.events import check
from spoolagent.format.header import read_header
from spoolagent.format.layout import StreamKey, blob_path, list_segments, segment_name, stream_dir
from spoolagent.format.reader import Chunk, Position, StreamReader
from spoolagent.format.spool import Spool
from spoolagent.serving.changes import Named, StreamFacts
from spoolagent.serving.chunks import merge
from spoolagent.settings import AgentSettings, ReceiverSettings

_CHUNKS = 1000
"""Reads in one turn: a stream of a million empty segments must not keep the others waiting."""
_READ_ANYWAY = 30
"""An unchanged stream is read every so many looks."""


class Task:
    """Reads one stream ahead of its cursor, at most one batch.

    `held` is what was read and not yet delivered. A chunk that was named (committed as about to be delivered)
    is not extended any more: after a crash it must be the same.
    """

    def __init__(
        self,
        spool: Spool,
        key: StreamKey,
        position: Position,
        facts: StreamFacts,
        *,
        agent: AgentSettings,
        limits: ReceiverSettings,
        clock: Callable[[], float],
        is_stored: bool = False,
    ) -> None:
        self.key = key
        self.facts = facts
        self.is_stored = is_stored
        """True while its row in the database says what `facts` say."""
        self.position = position
        """The cursor: everything before it is resolved."""
        self.held: Chunk | None = None
        self.held_since = 0.0
        self.named = False
        self.again = False
        self.redoing: Named | None = None
        """The batch that went out before a crash, while it cannot be read again."""
        self._part: Chunk | None = None
        self.chosen: tuple[int, ...] | None = None
        """The seqs of the held chunk that a selection takes; None for all of them."""
        self.retry_at = 0.0
        self.state = "new"
        """The reader's last word, see `spoolagent.format.reader.State`; "gone" when the stream was removed."""
        self.note = ""
        self._spool, self._clock, self._limits, self._agent = spool, clock, limits, agent
        self._dir = stream_dir(spool.path, key)
        self._reader: StreamReader | None = None
        self._missing_since: tuple[str, float] | None = None
        self._blobs: dict[tuple[str, int, int, int], bool] = {}
        """Files that the held events name, and whether they are what their names say."""
        self._ended_hint = False
        self._seen: tuple[int, int, int] | None = None
        self._skipped = 0

    # -- reading -------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Reads on until a batch is full or the stream has no more. Raises OSError."""
        if self.redoing is not None:
            self._read_named(self.redoing)
            return
        if self.named or self._is_unchanged():
            return
        for _ in range(_CHUNKS):
            if self.is_full:
                return
            chunk = self._read_once()
            if chunk is None:
                return
            if not chunk.is_empty:
                if self.held is None:
                    self.held_since = self._clock()
                self.held = merge(self.held, chunk)
            elif self.held is None:
                self._skip_to(chunk)
            if chunk.state != "more":
                return

    def _is_unchanged(self) -> bool:
        """True when nothing has come since the reader was at the end: two stats instead of a read.

        Every so often it reads all the same: times are a hint, never the truth.
        """
        if self.held is not None:
            return False  # and what was seen stays as it is: a full batch is not read on
        seen, self._seen = self._seen, self._look()
        if self.state != "waiting" or seen is None or seen != self._seen:
            self._skipped = 0
            return False
        self._skipped = (self._skipped + 1) % _READ_ANYWAY
        return self._skipped != 0

    def _look(self) -> tuple[int, int, int] | None:
        if self._reader is None or not self._reader.position.segment:
            return None
        try:
            folder = os.stat(self._dir)
            file = os.stat(os.path.join(self._dir, segment_name(self._reader.position.segment)))
        except OSError:
            return None
        return folder.st_mtime_ns, file.st_size, file.st_mtime_ns

    def _skip_to(self, chunk: Chunk) -> None:
        """Moves over a header or seal, which resolves nothing."""
        self.position = chunk.position

    def _read_once(self) -> Chunk | None:
        reader = self._open()
        if reader is None:
            return None
        room = self._limits.max_events - (len(self.held.events) if self.held else 0)
        chunk = reader.read(self._limits.max_bytes, until_seq=reader.position.next_seq + room - 1)
        if chunk.state == "blocked" != self.state and not self.is_at_home:
            again.ask(self._spool.path, self.key)  # a shipper may mend it before it counts as lost
        self.state, self.note = chunk.state, chunk.note
        if reader.header is not None and not self.facts.created_ns:
            header = reader.header
            self.facts.role, self.facts.attempt = header.role, header.attempt
            self.facts.created_ns, self.facts.spool = header.created_ns, header.spool
        return chunk

    def _open(self) -> StreamReader | None:
        if self._reader is None:
            at_home = self.is_at_home
            if at_home is None:
                if not list_segments(self._dir):
                    self.state = "waiting" if os.path.isdir(self._dir) else "gone"
                    return None
                at_home = False
            self._reader = StreamReader(
                self._dir,
                self.position,
                at_home=at_home,
                clock=self._clock,
                patience_s=self._agent.patience_s,
            )
        return self._reader

    @property
    def is_at_home(self) -> bool | None:
        """True when the stream was born in this spool; None when no header tells yet."""
        if not self.facts.spool:
            try:
                header = read_header(self._dir)
            except (OSError, FormatError):  # the reader says what is wrong
                return None
            if header is None:
                return live.is_there(self._dir) or None
            self.facts.role, self.facts.attempt = header.role, header.attempt
            self.facts.created_ns, self.facts.spool = header.created_ns, header.spool
        return self.facts.spool == self._spool.uuid

    def redo(self, named: Named) -> None:
        """After a crash: the batch that was named comes next, exactly as it was. Raises OSError."""
        self.held, self._part, self.redoing = None, None, named
        self._read_named(named)

    def _read_named(self, named: Named) -> None:
        """Holds the named batch when all of it can be read; until then nothing else of the stream."""
        reader = self._open()
        if reader is None:
            return
        reader.impatient = named.damaged
        try:
            while reader.position.next_seq <= named.last_seq:
                chunk = reader.read(1 << 20, until_seq=named.last_seq)
                self._part = merge(self._part, chunk)
                self.state, self.note = chunk.state, chunk.note
                if chunk.state != "more":
                    break
        finally:
            reader.impatient = False
        if reader.position.next_seq <= named.last_seq and self.state not in ("closed", "dead"):
            return  # its bytes are away or bad; they may come back
        self.redoing = None
        if self._part is None or self._part.is_empty:
            return
        self.held, self._part = self._part, None
        self.held_since = self._clock()
        self.named = self.again = True
        self.chosen = named.chosen

    # -- deciding --------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """True when the held chunk is a whole batch."""
        held = self.held
        if held is None:
            return False
        if self.named or len(held.events) >= self._limits.max_events:
            return True
        return held.position.segment == self.position.segment and (
            held.position.offset - self.position.offset >= self._limits.max_bytes
        )

    def due_in(self, *, draining: bool) -> float | None:
        """Seconds until the held chunk is to be delivered: 0 or less for now, None for nothing held."""
        if self.held is None:
            return None
        wait_s = max(0.0, self.retry_at - self._clock())
        if draining or self.is_full or self.state in ("closed", "dead"):
            return wait_s
        return max(wait_s, self.held_since + self._limits.flush_interval_s - self._clock())

    @property
    def is_ended(self) -> bool:
        """True when no more events will be read: all of it is resolved and its end is known."""
        return self.held is None and self.state in ("closed", "dead")

    @property
    def may_rest(self) -> bool:
        """True when nothing is known of the stream, or waits, that its row in the database does not say."""
        reader = self._reader
        is_at_end = self.held is None and self.redoing is None and self.state == "waiting"
        return is_at_end and self.is_stored and reader is not None and reader.may_rest

    @property
    def looks_ended(self) -> bool:
        """True when the stream on disk has ended, read or not. False, too, while that cannot be read."""
        if not self._ended_hint:
            with contextlib.suppress(OSError):
                segments = list_segments(self._dir)
                if segments:
                    last = segments[-1]
                    self._ended_hint = is_closed(os.path.join(self._dir, segment_name(last))) or (
                        read_end(self._dir, last) is not None
                    )
        return self._ended_hint

    @property
    def stream(self) -> Stream:
        """What a receiver is told of the stream."""
        facts = self.facts
        return Stream(
            key=self.key,
            role=facts.role,
            attempt=facts.attempt,
            created_ns=facts.created_ns,
            spool=facts.spool,
        )

    # -- blobs -------------------------------------------------------------------------------------------------

    def missing_blob(self, on_look: Callable[[], None] = lambda: None) -> str | None:
        """What is wrong with a blob that held events name: it is not there (yet), or damaged. A shipper is asked for it.

        It is waited for; when patience is over, None is returned and the receiver meets it itself. `on_look` is called
        before each one that is read: many of them may take minutes.
        """
        assert self.held is not None
        for event in self.held.events:
            refs = references(event.data)
            if not refs or check(event) is not None:
                continue
            for ref in refs:
                trouble = self._blob_trouble(ref["sha256"], on_look)
                if trouble:
                    return None if self._waited_for(ref["sha256"]) else trouble
        return None

    def _blob_trouble(self, sha256: str, on_look: Callable[[], None]) -> str:
        path = blob_path(self._spool.path, self.key.site, sha256)
        try:
            status = os.stat(path)
            found = (sha256, status.st_ino, status.st_size, status.st_mtime_ns)
            if found not in self._blobs:
                on_look()
                self._blobs[found] = check_blob(path, sha256)
            if self._blobs[found]:
                return ""
            trouble = f"blob {sha256} is damaged"
        except FileNotFoundError:
            trouble = f"blob {sha256} has not arrived"
        except OSError as error:
            return f"blob {sha256} cannot be read: {error.strerror or error}"
        if self._missing_since is None or self._missing_since[0] != sha256:  # once
            again.ask_blob(self._spool.path, self.key.site, sha256)
        return trouble

    def _waited_for(self, sha256: str) -> bool:
        now = self._clock()
        if self._missing_since is None or self._missing_since[0] != sha256:
            self._missing_since = (sha256, now)
        patience = self._agent.patience_s if self.is_at_home else self._agent.presume_dead_after_s
        return now - self._missing_since[1] >= patience

    def delivered(self) -> None:
        """The held chunk is resolved."""
        assert self.held is not None
        self.position = self.held.position
        self.held, self.named, self.again, self.chosen = None, False, False, None
        self._blobs.clear()
