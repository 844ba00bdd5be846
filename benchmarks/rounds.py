"""Measuring several things in turn, so that the noise of a shared machine hits all of them alike."""

import gc
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median


@dataclass(kw_only=True, slots=True)
class Subject:
    """One thing that is measured: `run` does `count` operations; `before` and `after` are not timed."""

    name: str
    count: int
    run: Callable[[], object]
    before: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None
    times_s: list[float] = field(default_factory=list)
    """Seconds per operation, one for each round."""
    cpu_s: list[float] = field(default_factory=list)
    """Seconds of processor time per operation, all threads and ended children together."""

    @property
    def best_s(self) -> float:
        """The fastest round: the one that the rest of the machine disturbed least."""
        return min(self.times_s)

    @property
    def median_s(self) -> float:
        """The round in the middle."""
        return median(self.times_s)

    @property
    def best_cpu_s(self) -> float:
        """As `best_s`, of processor time: other work on the machine hardly moves it, and waiting costs nothing."""
        return min(self.cpu_s)

    def once(self) -> None:
        """One round, not kept."""
        self.before()
        self.run()
        self.after()

    def measure(self) -> None:
        """One round, kept."""
        self.before()
        cpu, begin = _cpu_s(), time.perf_counter()
        self.run()
        taken, used = time.perf_counter() - begin, _cpu_s() - cpu
        self.after()
        self.times_s.append(taken / self.count)
        self.cpu_s.append(used / self.count)


def _cpu_s() -> float:
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


@contextmanager
def quiet_collector() -> Iterator[None]:
    """What is there already (the modules of torch, MLflow, ...) is left out of garbage collections, which stay on."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def interleave(subjects: Sequence[Subject], rounds: int, warm_up: bool = True) -> None:
    """Runs all subjects `rounds` times, one after the other, each round beginning with another one."""
    with quiet_collector():
        if warm_up:
            for subject in subjects:
                subject.once()
        for number in range(rounds):
            first = number % len(subjects)
            for subject in (*subjects[first:], *subjects[:first]):
                subject.measure()
