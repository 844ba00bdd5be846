"""Processes of the model: real code in greenlets, stopped, failed and killed at the product's own fault points.

A process runs until it waits (for hints, for a retry), until a planned fault stops it, or until it ends. A dead
process does nothing any more: every further durable operation of its clean-up code raises Crash, too.
"""

import gc
import os

from greenlet import getcurrent, greenlet

from spoolagent.format import durable
from spoolagent.format.durable import set_fault

HINTS = ("sweep", "sweep", "lost", "all")
WRITES = frozenset(("append", "write", "create", "mkdir", "commit", "link", "renew"))


class Crash(BaseException):
    """The death of a process. `written` bytes of the write under way got into the file."""

    written = 0


class Violation(BaseException):
    """An invariant does not hold. Not an Exception: no product code may catch it."""


class Clock:
    """Stands in for the module `time`: monotonic and wall clock of all machines."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.now, self.wall = 1000.0, 1_700_000_000_000_000_000

    def monotonic(self):
        return self.now

    def time_ns(self):
        self.wall += 1000
        return self.wall

    def time(self):
        return self.time_ns() / 1e9

    def advance(self, seconds):
        self.now += seconds
        self.wall += int(seconds * 1e9)

    def sleep(self, seconds):
        raise AssertionError("nothing may sleep")


class Kernel:
    """Runs one process at a time, and stands at every fault point."""

    def __init__(self, files, roots):
        self.files, self.roots = files, roots
        self.current = None
        self.full = set()
        """Roots whose disk is full."""
        self.operations = 0
        self.seen = {}
        """operation -> how many faults hit it"""
        self.violation = None
        self.ended = []
        """(process, exception) of processes that ended with an error of their own."""

    def __enter__(self):
        set_fault(self.hook)
        return self

    def __exit__(self, *exc):
        set_fault(None)

    def hook(self, operation, path):
        process, place = self.current, real(path)
        if process is not None and process.dead:
            raise Crash
        root = next((r for r in self.roots if place.startswith(r)), None)
        if root is None:
            raise Violation(f"confinement: {operation} of {place}, outside of {self.roots}")
        self.operations += 1
        if process is not None:
            if root in self.full and operation in WRITES:
                self._count(operation)
                raise failure(28, path, self.operations % 50)
            process.meet(operation, path)
        self.files.note(operation, path)

    def _count(self, operation):
        self.seen[operation] = self.seen.get(operation, 0) + 1

    def run(self, process, call, *given):
        """Switches into `process` until it waits, pauses or ends."""
        before, self.current = self.current, process
        sure, durable._sure = durable._sure, process.sure
        try:
            return call(*given)
        finally:
            self.current, durable._sure = before, sure
            if self.violation is not None:
                raise self.violation


def failure(code, path, written):
    error = OSError(code, os.strerror(code), path)
    error.written = written
    return error


def real(path):
    """`path` without the descriptor through which a directory target names everything."""
    if path.startswith("/proc/self/fd/"):
        number, _, rest = path[14:].partition("/")
        return os.path.join(os.readlink(f"/proc/self/fd/{number}"), rest)
    return os.path.abspath(path)


class Process:
    """One process on a machine. `state`: "idle" (nothing runs), "waiting", "paused" at a fault point."""

    def __init__(self, kernel, name, host):
        self.kernel, self.name, self.host = kernel, name, host
        self.dead = False
        self.stopping = False
        self.plan = []
        """[countdown, kind, argument]: what happens at one of the next fault points."""
        self.hit = 0
        """Faults that hit it."""
        self.state = "idle"
        self.sure = set()
        """Its `durable._sure`: what it knows to be on disk, which another process does not."""
        self._green = None

    def meet(self, operation, path):
        """At a fault point: carries out what is planned."""
        if not self.plan:
            return
        self.plan[0][0] -= 1
        if self.plan[0][0] > 0:
            return
        _, kind, argument = self.plan.pop(0)
        self.kernel._count(operation)
        if kind == "pause":
            self._leave("paused")
            return
        self.hit += 1
        if kind == "crash":
            self.dead = True
            crash = Crash()
            crash.written = argument
            raise crash
        raise failure(argument[0], path, argument[1])

    def start(self, call):
        """Runs `call` in the process until it waits, pauses or ends."""
        assert self.state == "idle" and not self.dead
        self._green = greenlet(self._main, parent=getcurrent())
        self.kernel.run(self, self._green.switch, call)

    def resume(self, value=None):
        """Goes on where it waits or is paused."""
        self.kernel.run(self, self._green.switch, value)

    def wait(self, value=None):
        """Called inside: leaves until `resume`, whose value is returned."""
        if self.dead:
            raise Crash
        return self._leave("waiting")

    def _leave(self, state):
        self.state = state
        return self._green.parent.switch()

    def _main(self, call):
        self.state = "running"
        try:
            call()
        except Crash:
            self.dead = True
        except Violation as error:
            self.dead = True
            self.kernel.violation = error
        except Exception as error:
            self.kernel.ended.append((self.name, error))
        finally:
            self.state = "idle"

    def kill(self):
        """SIGKILL, wherever it is."""
        self.dead = True
        if self.state in ("waiting", "paused"):
            self.kernel.run(self, self._green.throw, Crash)
        assert self.state == "idle", f"{self.name} did not die"


def open_files(expected=None):
    """Descriptors of this process; garbage is collected when they are not as many as `expected`."""
    found = len(os.listdir("/proc/self/fd"))
    if expected is not None and found != expected:
        gc.collect()
        found = len(os.listdir("/proc/self/fd"))
    return found
