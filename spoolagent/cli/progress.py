"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere. Always on standard error."""

import contextlib
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from spoolagent.cli.common import clean, note, out, size_text

_LINE_EVERY_S = 10.0
_LOOK_EVERY = 1 << 20


def _say(bar: Progress | None, line: str) -> None:
    if bar is None:
        note(line)
    else:
        with contextlib.suppress(OSError):  # the terminal was closed
            bar.console.print(Text(f"spoolagent: {clean(line)}"), soft_wrap=True)


class _Shown:
    """A bar that is on the screen as long as the `with` lasts; None where there is no terminal."""

    _bar: Progress | None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()


class ByteProgress(_Shown):
    """Counts bytes. `total` is called only where a bar is shown."""

    def __init__(self, what: str, total: Callable[[], int | None]) -> None:
        self.done = 0
        self.console: Console = out()
        """Where findings are printed, above the bar."""
        self._what = what
        self._shown = 0
        self._line_at = time.monotonic() + _LINE_EVERY_S
        self._bar = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(what, total=total())
            if sys.stdout.isatty():
                self.console = self._bar.console

    def say(self, line: str) -> None:
        """A line for the person who watches, above the bar."""
        _say(self._bar, line)

    def advance(self, size: int) -> None:
        """So many bytes more are done."""
        self.done += size
        if self.done - self._shown < _LOOK_EVERY:
            return
        self._shown = self.done
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
        elif time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + _LINE_EVERY_S
            note(f"{self._what}: {size_text(self.done)} so far")


class EventProgress(_Shown):
    """Shows how many events each receiver was given; called with {receiver: events}."""

    def __init__(self) -> None:
        self._line_at = time.monotonic() + _LINE_EVERY_S
        self._bar = None
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, int] = {}
        if sys.stderr.isatty():
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                TextColumn("{task.completed:.0f} events"),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)

    def report(self, line: str) -> None:
        """A line for the person who watches, above the bar."""
        _say(self._bar, line)

    def __call__(self, delivered: dict[str, int]) -> None:
        """What each receiver has by now."""
        if self._bar is not None:
            for name, events in delivered.items():
                if name not in self._tasks:
                    self._tasks[name] = self._bar.add_task(name, total=None)
                self._bar.update(self._tasks[name], completed=events)
        elif delivered != self._told and time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + _LINE_EVERY_S
            self._told = dict(delivered)
            note(", ".join(f"{name}: {events} events so far" for name, events in delivered.items()))
