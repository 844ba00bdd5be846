"""Reading a stream back: our reader beside msgspec's `decode_lines`, and beside a whole worker that commits."""

import itertools
import os

import msgspec

from benchmarks.rounds import Subject, interleave
from benchmarks.rows import Row, at_least
from benchmarks.spools import NullReceiver, deliver, write_spool
from spoolagent.format.reader import StreamReader

EVENTS = 50_000
ROUNDS = 20
PIECE = 1 << 18
"""Bytes read at once, as our reader does: all of a large file at once would cost the peer memory and collections."""


class _Event(msgspec.Struct):
    seq: int = 0
    time: int = 0
    type: str = ""
    metrics: dict[str, float] = {}
    step: int | None = None
    crc: str = ""


def tail(place: str) -> list[Row]:
    """Both read the same segment, which is in the page cache."""
    spool = os.path.join(place, "tail")
    stream = write_spool(spool, EVENTS)
    number = itertools.count()
    decoder = msgspec.json.Decoder(_Event)

    def decode_lines() -> None:
        for name in sorted(n for n in os.listdir(stream) if n.endswith(".jsonl")):
            with open(os.path.join(stream, name), "rb") as file:
                rest = b""
                while data := file.read(PIECE):
                    whole, newline, rest = (rest + data).rpartition(b"\n")
                    decoder.decode_lines(whole + newline)

    def read() -> None:
        # Not at home: a server's spool, whose bytes the shipper has fsynced. The peer does not fsync either.
        reader, found, state = StreamReader(stream, at_home=False), 0, "more"
        while state == "more":
            chunk = reader.read()
            found, state = found + len(chunk.events), chunk.state
            del chunk  # as the peer's list is gone before the next is made
        if found != EVENTS + 2:
            raise RuntimeError(f"{found} events were read")

    def work() -> None:
        deliver(spool, NullReceiver(str(next(number))), EVENTS + 2)

    reader = Subject(name="tail to a null receiver (StreamReader)", count=EVENTS, run=read)
    worker = Subject(name="the same through worker and store, committed", count=EVENTS, run=work)
    peer = Subject(name="msgspec decode_lines", count=EVENTS, run=decode_lines)
    interleave([reader, peer], ROUNDS)
    again = Subject(name=peer.name, count=EVENTS, run=decode_lines)
    interleave([worker, again], 4)
    return [at_least(reader, peer, 0.3, "/s", "as fast"), at_least(worker, again, None, "/s", "")]
