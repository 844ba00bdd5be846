"""The way for summaries that the caller has built: Lightning's hyperparameters, and plugins without a method here."""

import base64
from typing import TYPE_CHECKING, Any

from spoolagent.writers import tb_values

if TYPE_CHECKING:
    from spoolagent.writers.tensorboard import SummaryWriter


class FileWriter:
    """What `SummaryWriter._get_file_writer()` gives: takes protocol buffers that the caller has built."""

    def __init__(self, writer: "SummaryWriter") -> None:
        self._writer = writer

    def get_logdir(self) -> str:
        """The directory that torch would have put an event file in."""
        return str(self._writer.log_dir)

    def add_summary(self, summary: Any, global_step: Any = None, walltime: Any = None) -> None:
        """Logs a tensorboard.Summary as it is; for plugins that have no event type of their own."""
        if not hasattr(summary, "SerializeToString"):
            raise TypeError(f"expected a tensorboard.Summary, got {type(summary)}")
        data = summary.SerializeToString()
        key = summary.value[0].tag if summary.value else ""
        log = self._writer._log  # noqa: SLF001 - the two classes are one thing
        if len(data) < tb_values.LARGE:
            log("tb_summary", {"key": key, "base64": base64.b64encode(data).decode()}, global_step, walltime)
        else:
            log("tb_summary", {"key": key}, global_step, walltime, data)

    def add_event(self, event: Any, step: Any = None, walltime: Any = None) -> None:
        """Logs the summary of a tensorboard.Event, now. Raises NotImplementedError for other events."""
        if event.WhichOneof("what") != "summary":
            raise NotImplementedError(
                f"an Event with {event.WhichOneof('what')} is not supported by spoolagent yet: only summaries are"
            )
        self.add_summary(event.summary, (event.step or None) if step is None else step, walltime)

    def add_graph(self, graph_profile: Any, walltime: Any = None) -> None:
        """Not supported yet."""
        raise NotImplementedError("FileWriter.add_graph is not supported by spoolagent yet")

    def add_onnx_graph(self, graph: Any, walltime: Any = None) -> None:
        """Not supported yet."""
        raise NotImplementedError("FileWriter.add_onnx_graph is not supported by spoolagent yet")

    def flush(self) -> None:
        """As `SummaryWriter.flush`."""
        self._writer.flush()

    def close(self) -> None:
        """As `SummaryWriter.close`."""
        self._writer.close()

    def reopen(self) -> None:
        """After `close`: goes on with the same run."""
        self._writer._get_file_writer()  # noqa: SLF001 - the two classes are one thing
