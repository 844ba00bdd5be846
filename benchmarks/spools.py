"""Spools to read from, and workers that deliver them."""

from spoolagent.contract import Batch, Outcome, Receiver, RunEnd, State
from spoolagent.format.layout import StreamKey, iter_streams, stream_dir
from spoolagent.format.spool import open_spool
from spoolagent.format.stream import StreamOptions, StreamWriter
from spoolagent.serving.store import open_store
from spoolagent.serving.worker import Worker
from spoolagent.settings import AgentSettings, ReceiverSettings


def write_spool(path: str, events: int, run: str = "run-1") -> str:
    """A spool with one closed stream of `events` scalars. Returns the stream's directory."""
    options = StreamOptions(durability="process")
    writer = StreamWriter(path, "bench", run, lambda: {"api": "native", "host": "bench"}, options=options)
    for step in range(events):
        writer.append("metrics", {"metrics": {"loss": 0.5 + step}, "step": step})
    writer.append("run_end", {"status": "finished", "exit_code": 0})
    writer.close()
    (key,) = iter_streams(path)
    return stream_dir(path, key)


class _Never:
    """Hints that never come: everything is there when the worker starts."""

    sees_all = False

    def watch(self, key: StreamKey) -> None:
        """Nothing is watched."""

    def forget(self, key: StreamKey) -> None:
        """Nothing was."""

    def wait(self, timeout_s: float) -> None:
        del timeout_s


def deliver(path: str, receiver: Receiver, expected: int) -> None:
    """Delivers the whole spool as `replay` does, with its default limits. Raises when events are left out."""
    spool = open_spool(path)
    with open_store(spool, receiver) as store:
        receiver.open(store)
        worker = Worker(
            spool,
            receiver,
            store,
            agent=AgentSettings(spool=spool.path),
            limits=ReceiverSettings(name="bench", spec="bench:"),
            hints=_Never(),
        )
        worker.run(until_drained=True)
        receiver.close()
        if worker.delivered != expected:
            raise RuntimeError(f"{worker.delivered} of {expected} events were delivered")


class NullReceiver:
    """Takes everything and keeps nothing."""

    def __init__(self, name: str) -> None:
        self.identity = f"null:{name}"

    def open(self, state: State) -> None:
        """Nothing to check."""

    def deliver(self, batch: Batch) -> Outcome:
        """Forgets the batch."""
        del batch
        return Outcome()

    def set_status(self, end: RunEnd) -> None:
        """Forgets it."""

    def close(self) -> None:
        """Nothing to release."""
