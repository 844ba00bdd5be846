"""From a spool to a TensorBoard event file, every batch committed, beside tensorboard's own EventFileWriter."""

import itertools
import os
import time

from benchmarks.rounds import Subject, interleave
from benchmarks.rows import Row, at_least
from benchmarks.spools import deliver, write_spool

EVENTS = 40_000
ROUNDS = 3


def event_file(place: str) -> list[Row]:
    """Ours fsyncs the file and commits the cursor for each batch; the peer writes through its thread, without fsync."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    from spoolagent.receivers.tensorboard import TensorBoardReceiver

    spool = os.path.join(place, "event-file")
    write_spool(spool, EVENTS)
    number = itertools.count()

    def ours() -> None:
        receiver = TensorBoardReceiver(os.path.join(place, f"tb-{next(number)}"), {})
        deliver(spool, receiver, EVENTS + 2)

    def theirs() -> None:
        writer = EventFileWriter(os.path.join(place, f"tb-{next(number)}"))
        for step in range(EVENTS):
            summary = Summary(value=[Summary.Value(tag="loss", simple_value=0.5 + step)])
            writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
        writer.close()

    us = Subject(name="spool to event file, committed", count=EVENTS, run=ours)
    peer = Subject(name="tensorboard EventFileWriter", count=EVENTS, run=theirs)
    interleave([us, peer], ROUNDS)
    return [at_least(us, peer, 3, "/s", "as fast")]
