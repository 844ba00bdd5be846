"""What one call of trackio costs; only where it is installed."""

import os

from benchmarks.calls import CALLS, ROUNDS
from benchmarks.rounds import Subject, interleave
from benchmarks.rows import Row, at_least


def trackio(place: str) -> list[Row]:
    """Our Run.log beside trackio.log, which keeps events in memory until its thread writes them."""
    import trackio as real

    from spoolagent.writers.run import Run

    def calls(log: object, count: int) -> None:
        for step in range(count):
            log({"loss": 0.5 + step}, step=step)  # type: ignore[operator] # two callables of one shape

    real.init(project="bench", name=os.path.basename(place), embed=False)
    with Run(run="trackio") as run:
        ours = Subject(name="Run.log, native", count=CALLS, run=lambda: calls(run.log, CALLS))
        theirs = Subject(name="trackio.log, in memory", count=CALLS, run=lambda: calls(real.log, CALLS))
        interleave([ours, theirs], ROUNDS // 2)
    real.finish()
    return [at_least(ours, theirs, None, "us", "cheaper")]
