"""Reading a stream back: our reader beside msgspec's `decode_lines`, and beside a whole worker that commits."""

import itertools
import os

import msgspec

from benchmarks.rounds import Subject, interleave
from benchmarks.rows import Row, at_least
from benchmarks.spools import NullReceiver, deliver, write_spool
from spoolagent.format.reader import StreamReader

EVENTS = 100_000
ROUNDS = 12


class _Event(msgspec.Struct):
    seq: int = 0
    time: int = 0
    type: str = ""
    metrics: dict[str, float] = {}  # noqa: RUF012 - msgspec copies it
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
                decoder.decode_lines(file.read())

    def read() -> None:
        reader, found = StreamReader(stream, at_home=True), 0
        while (chunk := reader.read()).state == "more":
            found += len(chunk.events)
        if found + len(chunk.events) != EVENTS + 2:
            raise RuntimeError(f"{found} events were read")

    def work() -> None:
        deliver(spool, NullReceiver(str(next(number))), EVENTS + 2)

    reader = Subject(name="tail to a null receiver (StreamReader)", count=EVENTS, run=read)
    worker = Subject(name="the same through worker and store, committed", count=EVENTS, run=work)
    peer = Subject(name="msgspec decode_lines", count=EVENTS, run=decode_lines)
    interleave([reader, peer, worker], ROUNDS)
    return [at_least(reader, peer, 0.3, "/s", "as fast"), at_least(worker, peer, None, "/s", "")]
