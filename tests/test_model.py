"""Random schedules of writers, shippers, workers, receivers and faults over the real code, against a model.

SPOOLAGENT_SCHEDULES says how many (default 150), SPOOLAGENT_SEED where they begin. A failure names its seed and
prints a schedule that was made smaller; put it into test_model_regressions.py.
"""

import pytest
from model_run import GROUP, counts, run_seed, shrunk_text
from report_facts import add
from sizes import GIVEN_SEED, SCHEDULES

FIRST = GIVEN_SEED or 1


@pytest.mark.schedules
@pytest.mark.parametrize("begin", range(FIRST, FIRST + SCHEDULES, GROUP))
def test_schedules(begin):
    before = counts()
    for seed in range(begin, min(begin + GROUP, FIRST + SCHEDULES)):
        failed = run_seed(seed)
        if failed is not None:
            pytest.fail(shrunk_text(seed, failed), pytrace=False)
    add("schedules", **{name: number - before.get(name, 0) for name, number in counts().items()})
