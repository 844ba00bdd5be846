"""What the model knows of each stream: what was logged, acknowledged, made durable, and what a fault destroyed."""

from dataclasses import dataclass, field

from spoolagent.errors import FormatError
from spoolagent.format.layout import StreamKey
from spoolagent.format.lines import decode_line


@dataclass
class Record:
    """One stream."""

    key: StreamKey
    client: int
    role: str
    attempt: int
    writer: object = None
    tried: dict = field(default_factory=dict)
    """n -> fields of each event that was handed to the writer, whatever became of it."""
    acked: dict = field(default_factory=dict)
    """seq -> n of each event whose append returned without counting a drop."""
    synced: int = 0
    """Everything through this seq was promised to be on disk."""
    unsure: set = field(default_factory=set)
    """Seqs that are in the file though their append counted a drop: their fsync failed, a power cut may take them."""
    vanishing_from: int | None = None
    """A power cut came when this seq and later ones were not yet promised to be on disk."""
    destroyed: set = field(default_factory=set)
    """Seqs whose bytes a fault changed or removed at home."""
    destroyed_there: set = field(default_factory=set)
    """The same at the server."""
    phantoms: int = 0
    """Destroyed lines that were no events, and may be taken for one."""
    copied: bool = False
    """Somebody's rsync brought it to the server, without fsync."""
    tainted: bool = False
    """Its file was cut under a living writer: another stream may have come of it."""
    ended: str = ""
    """"" while its writer lives, "closed" or "killed"."""
    status: str = ""
    """That of its acknowledged `run_end`."""

    def may_be_lost(self, seq, *, at_home):
        """True when a reader may find the event's bytes destroyed."""
        gone = seq in self.destroyed or (not at_home and seq in self.destroyed_there)
        return gone or self.tainted or (self.vanishing_from is not None and seq >= self.vanishing_from)


def lines_hit(data, start, end):
    """The lines of a segment that a change of data[start:end] destroys, as seqs, None for other lines.

    A destroyed newline glues the next line to it: then that one is destroyed, too, also when it comes later.
    """
    hit, at, glued = [], 0, False
    last = None
    for line in data.splitlines(keepends=True):
        stop = at + len(line)
        seq = seq_of(line)
        last = seq if seq is not None else last
        if glued or (at < end and stop > start):
            hit.append(seq)
        glued = at < end and start <= stop - 1 < end
        at = stop
    if (glued or not data.endswith(b"\n") or end >= len(data)) and last is not None:
        hit.append(last + 1)
    return hit


def seq_of(line):
    """The seq of a whole line, None for what is no event."""
    try:
        seq = decode_line(line.rstrip(b"\n")).get("seq")
    except FormatError:
        return None
    return seq if type(seq) is int else None
