"""torch's SummaryWriter over a spool: change the import line, keep the rest.

    from spoolagent.writers.tensorboard import SummaryWriter

    with SummaryWriter("runs/baseline") as writer:
        writer.add_scalar("loss", 0.5, 1)

Each call appends one line to the spool and returns. Calls raise what torch's raise for a caller's mistake, and
nothing else. A value that the caller gave as a double stays one in the spool; the receiver narrows it.
"""

import os
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from spoolagent.format.stream import blank
from spoolagent.format.values import clean_text
from spoolagent.writers import tb_runs, tb_values
from spoolagent.writers.run import optional, status_of
from spoolagent.writers.tb_files import FileWriter
from spoolagent.writers.tb_plugins import Plugins

_STEPS = tb_values.STEPS


class SummaryWriter(Plugins):
    """Logs to the run that `log_dir` names (default: `runs/<time>_<host><comment>`).

    The directory is created and can be written to; the event file is the receiver's affair. `max_queue`,
    `flush_secs` and `filename_suffix` are kept and mean nothing here. `purge_step` takes back what was logged
    at this step and later.
    """

    def __init__(
        self,
        log_dir: Any = None,
        comment: str = "",
        purge_step: Any = None,
        max_queue: int = 10,
        flush_secs: int = 120,
        filename_suffix: str = "",
    ) -> None:
        self.log_dir = log_dir or tb_runs.default_log_dir(comment)
        self.purge_step = purge_step
        self.max_queue = max_queue
        self.flush_secs = flush_secs
        self.filename_suffix = filename_suffix
        path = os.fspath(self.log_dir) if isinstance(self.log_dir, os.PathLike) else str(self.log_dir)
        tb_runs.make_log_dir(path)
        self._run, self._part = tb_runs.join(path, path if log_dir else os.path.basename(path))
        self._context = {"subrun": self._part} if self._part else None
        self._append = self._run.stream.append_event
        self._files = FileWriter(self)
        self._purge()

    def __repr__(self) -> str:
        return f"SummaryWriter({self.log_dir!r}, run={self._run.id!r})"

    # -- scalars -----------------------------------------------------------------------------------------

    def add_scalar(
        self,
        tag: Any,
        scalar_value: Any,
        global_step: Any = None,
        walltime: Any = None,
        new_style: bool = False,
        double_precision: bool = False,
    ) -> None:
        """Logs one number. `new_style` asks for a tensor, and then `double_precision` for one of doubles."""
        if type(scalar_value) is not float or scalar_value - scalar_value != 0.0:
            scalar_value = tb_values.scalar(scalar_value)
        if type(tag) is not str:
            tag = tb_values.text_tag(tag)
        fields: dict[str, Any] = {"seq": 0, "time": 0, "type": "metrics", "metrics": {tag: scalar_value}}
        if global_step is not None:
            fields["step"] = (
                global_step
                if type(global_step) is int and -_STEPS <= global_step < _STEPS
                else tb_values.step_number(global_step)
            )
        if walltime is not None:
            fields["at"] = tb_values.wall_ns(walltime)
        if self._context is not None:
            fields["context"] = self._context
        if new_style:
            fields["tensor"] = "float64" if double_precision else "float32"
        self._append(fields)

    def add_scalars(
        self, main_tag: Any, tag_scalar_dict: Mapping[Any, Any], global_step: Any = None, walltime: Any = None
    ) -> None:
        """Logs numbers under one tag, each in a sub-run `<main_tag>_<tag>`."""
        at = tb_values.now_ns() if walltime is None else tb_values.wall_ns(walltime)
        main = tb_values.text_tag(main_tag)
        step = None if global_step is None else tb_values.step_number(global_step)
        for part, value in tag_scalar_dict.items():
            name = main.replace("/", "_") + "_" + part
            context = {"subrun": f"{self._part}/{name}" if self._part else name}
            fields = {"metrics": {main: tb_values.scalar(value)}, "at": at, "context": context}
            self._append(blank("metrics", fields if step is None else {**fields, "step": step}))

    def add_histogram(
        self,
        tag: Any,
        values: Any,
        global_step: Any = None,
        bins: Any = "tensorflow",
        walltime: Any = None,
        max_bins: int | None = None,
    ) -> None:
        """Logs the distribution of an array. Raises ValueError when nothing of it falls into a bin."""
        fields = tb_values.histogram(values, bins, max_bins)
        self._log("histogram", {"key": tb_values.text_tag(tag), **fields}, global_step, walltime)

    def add_histogram_raw(
        self,
        tag: Any,
        min: Any,  # noqa: A002 - torch's name
        max: Any,  # noqa: A002 - torch's name
        num: Any,
        sum: Any,  # noqa: A002 - torch's name
        sum_squares: Any,
        bucket_limits: Any,
        bucket_counts: Any,
        global_step: Any = None,
        walltime: Any = None,
    ) -> None:
        """Logs a distribution given by its bins. Raises ValueError when limits and counts differ in length."""
        if len(bucket_limits) != len(bucket_counts):
            raise ValueError("bucket_limits and bucket_counts must have the same length")
        numbers = {"min": min, "max": max, "num": num, "sum": sum, "sum_squares": sum_squares}
        fields: dict[str, Any] = {name: tb_values.scalar(value) for name, value in numbers.items()}
        fields["limits"] = [tb_values.scalar(limit) for limit in bucket_limits]
        fields["counts"] = [tb_values.scalar(count) for count in bucket_counts]
        self._log("histogram", {"key": tb_values.text_tag(tag), **fields}, global_step, walltime)

    # -- images ------------------------------------------------------------------------------------------

    def add_image(
        self,
        tag: Any,
        img_tensor: Any,
        global_step: Any = None,
        walltime: Any = None,
        dataformats: str = "CHW",
    ) -> None:
        """Logs an image: uint8 as it is, anything else times 255. `dataformats` orders CHW, HW or NCHW."""
        data, fields = tb_values.image(img_tensor, dataformats)
        self._log("image", {"key": tb_values.text_tag(tag), **fields}, global_step, walltime, data)

    def add_images(
        self,
        tag: Any,
        img_tensor: Any,
        global_step: Any = None,
        walltime: Any = None,
        dataformats: str = "NCHW",
    ) -> None:
        """Logs a batch as one image, a grid with up to eight columns."""
        self.add_image(tag, img_tensor, global_step, walltime, dataformats)

    def add_figure(
        self, tag: Any, figure: Any, global_step: Any = None, close: bool = True, walltime: Any = None
    ) -> None:
        """Logs a matplotlib figure, or a list of them as a grid, as an image."""
        if not isinstance(figure, list):
            pixels = tb_values.figure_pixels(figure, close=close)
            self.add_image(tag, pixels, global_step, walltime, "HWC")
            return
        import numpy as np

        batch = np.stack([tb_values.figure_pixels(one, close=close) for one in figure])
        self.add_image(tag, batch, global_step, walltime, "NHWC")

    # -- the rest ----------------------------------------------------------------------------------------

    def add_text(self, tag: Any, text_string: str, global_step: Any = None, walltime: Any = None) -> None:
        """Logs a text. Raises TypeError for anything else."""
        if not isinstance(text_string, str):
            raise TypeError(f"text_string must be a str, got {type(text_string).__name__}")
        text = clean_text(text_string)
        fields = {"key": tb_values.text_tag(tag)}
        data = text.encode()
        if len(data) < tb_values.LARGE:
            self._log("text", {**fields, "text": text}, global_step, walltime)
        else:
            self._log("text", fields, global_step, walltime, data)

    def add_hparams(
        self,
        hparam_dict: dict[Any, Any],
        metric_dict: dict[Any, Any],
        hparam_domain_discrete: dict[Any, Any] | None = None,
        run_name: str | None = None,
        global_step: Any = None,
    ) -> None:
        """Logs hyperparameters with the metrics they led to, in a sub-run (default: named by the time)."""
        fields = tb_values.hparams(hparam_dict, metric_dict, hparam_domain_discrete)
        name = tb_runs.below(self.log_dir, run_name) if run_name else None
        self._log("hparams", {**fields, **optional(run_name=name)}, global_step, None)

    def _log(
        self, kind: str, fields: dict[str, Any], global_step: Any, walltime: Any, blob: bytes | None = None
    ) -> None:
        """An event of any type, with `blob` as its payload."""
        if global_step is not None:
            fields["step"] = tb_values.step_number(global_step)
        if walltime is not None:
            fields["at"] = tb_values.wall_ns(walltime)
        if self._context is not None:
            fields["context"] = self._context
        if blob is None:
            self._append(blank(kind, fields))
        else:
            self._get_file_writer()
            self._run.with_blob(kind, fields, blob)

    # -- state -------------------------------------------------------------------------------------------

    def get_logdir(self) -> Any:
        """`log_dir`, as it was given."""
        return self.log_dir

    def flush(self) -> None:
        """Returns when all that was logged so far is in the kernel's hands: torch promises no more either.

        A call that logs returns in that state already, except with the durability "queued". What makes events
        survive a power loss is the durability, not this call.
        """
        stream = self._run.stream
        if stream.options.durability == "queued":
            stream.flush()

    def close(self) -> None:
        """Ends the run, or this part of it while others are open. A later call that logs reopens it."""
        self._finish(0)

    def _finish(self, code: int) -> None:
        with _guard:
            if not self._run.finished:
                self._append = self._append_reopened
                self._run.finish("failed" if code else "finished", code)

    def _append_reopened(self, event: dict[str, Any]) -> None:
        self._get_file_writer()
        self._append(event)

    def _get_file_writer(self) -> FileWriter:
        with _guard:
            if self._run.finished:
                self._run.reopen()
                self._append = self._run.stream.append_event
        if self.purge_step is not None:
            self._purge()
        return self._files

    def _purge(self) -> None:
        step, self.purge_step = self.purge_step, None
        if step is not None:
            fields = {"step": tb_values.step_number(step), **optional(context=self._context)}
            self._append(blank("rewind", fields))

    @property
    def file_writer(self) -> FileWriter | None:
        """What takes serialized summaries; None after `close`."""
        return None if self._run.finished else self._files

    @property
    def all_writers(self) -> dict[Any, FileWriter] | None:
        """`file_writer` by its directory; None after `close`."""
        return None if self._run.finished else {self.log_dir: self._files}

    @property
    def default_bins(self) -> list[float]:
        """The bin edges of `add_histogram`."""
        return tb_values.default_bins()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self._finish(status_of(exc_type, exc_val))


_guard = threading.RLock()


def _after_fork_in_child() -> None:
    global _guard  # noqa: PLW0603 - the child's own: another thread may hold the parent's
    _guard = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = ["FileWriter", "SummaryWriter"]
