"""The way for summaries and graphs that the caller, or the caller's torch, has built."""

import base64
import importlib
from typing import TYPE_CHECKING, Any

from spoolagent.writers import tb_values
from spoolagent.writers.run import optional

if TYPE_CHECKING:
    from spoolagent.writers.tensorboard import SummaryWriter


def torch_module(method: str, name: str) -> Any:
    """A module of torch.utils.tensorboard; by name, so that nothing here depends on it."""
    try:
        return importlib.import_module(f"torch.utils.tensorboard.{name}")
    except ImportError as error:
        raise NotImplementedError(
            f"SummaryWriter.{method} needs torch and tensorboard in this environment, as with torch's own "
            f"SummaryWriter ({error}): pip install tensorboard"
        ) from error


class FileWriter:
    """What `SummaryWriter._get_file_writer()` gives: takes protocol buffers that the caller has built."""

    def __init__(self, writer: "SummaryWriter") -> None:
        self._writer = writer

    def get_logdir(self) -> str:
        """The directory that torch would have put an event file in."""
        return str(self._writer.log_dir)

    def add_summary(self, summary: Any, global_step: Any = None, walltime: Any = None) -> None:
        """Logs a tensorboard.Summary as it is."""
        if not hasattr(summary, "SerializeToString"):
            raise TypeError(f"expected a tensorboard.Summary, got {type(summary)}")
        self._add(
            summary.SerializeToString(), summary.value[0].tag if summary.value else "", global_step, walltime
        )

    def _add(self, data: bytes, key: str, step: Any, walltime: Any, part: str | None = None) -> None:
        log = self._writer._log  # noqa: SLF001 - the two classes are one thing
        fields: dict[str, Any] = {"key": key, **optional(part=part)}
        if len(data) < tb_values.LARGE:
            log("tb_summary", {**fields, "base64": base64.b64encode(data).decode()}, step, walltime)
        else:
            log("tb_summary", fields, step, walltime, data)

    def add_event(self, event: Any, step: Any = None, walltime: Any = None) -> None:
        """Logs what a tensorboard.Event holds, now: a summary or a graph. Raises NotImplementedError for the rest."""
        what = event.WhichOneof("what")
        step = (event.step or None) if step is None else step
        if what == "summary":
            self.add_summary(event.summary, step, walltime)
        elif what == "graph_def":
            self._add(event.graph_def, "graph", step, walltime, what)
        elif what == "tagged_run_metadata":
            self._add(event.tagged_run_metadata.SerializeToString(), "graph", step, walltime, what)
        else:
            raise NotImplementedError(
                f"an Event with {what} is not supported by spoolagent: only summaries and graphs are"
            )

    def add_graph(self, graph_profile: Any, walltime: Any = None) -> None:
        """Logs a GraphDef and its StepStats."""
        graph, stats = graph_profile
        self.add_onnx_graph(graph, walltime)
        events = torch_module("add_graph", "writer").event_pb2
        tagged = events.TaggedRunMetadata(tag="step1", run_metadata=stats.SerializeToString())
        self.add_event(events.Event(tagged_run_metadata=tagged), None, walltime)

    def add_onnx_graph(self, graph: Any, walltime: Any = None) -> None:
        """Logs a GraphDef."""
        self._add(graph.SerializeToString(), "graph", None, walltime, "graph_def")

    def flush(self) -> None:
        """As `SummaryWriter.flush`."""
        self._writer.flush()

    def close(self) -> None:
        """As `SummaryWriter.close`."""
        self._writer.close()

    def reopen(self) -> None:
        """After `close`: goes on with the same run."""
        self._writer._get_file_writer()  # noqa: SLF001 - the two classes are one thing
