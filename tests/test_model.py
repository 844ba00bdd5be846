"""Random schedules of writers, shippers, workers, receivers and faults over the real code, against a model.

SPOOLAGENT_SCHEDULES says how many (default 150), SPOOLAGENT_SEED where they begin. A failure names its seed and
prints a schedule that was made smaller; put it into test_model_regressions.py.
"""

import os

import pytest
from model_run import GROUP, run_seed, shrunk_text, summary, total

SCHEDULES = int(os.environ.get("SPOOLAGENT_SCHEDULES", "150"))
FIRST = int(os.environ.get("SPOOLAGENT_SEED", "1"))


@pytest.mark.schedules
@pytest.mark.parametrize("begin", range(FIRST, FIRST + SCHEDULES, GROUP))
def test_schedules(begin):
    for seed in range(begin, min(begin + GROUP, FIRST + SCHEDULES)):
        failed = run_seed(seed)
        if failed is not None:
            pytest.fail(shrunk_text(seed, failed), pytrace=False)


@pytest.mark.schedules
def test_the_schedules_were_worth_something():
    """Idempotence is only tested where deliveries were repeated."""
    if not total["schedules"]:
        pytest.skip("no schedule ran in this process")
    assert total["repeats"] > 0 and total["power"] > 0 and total["kills"] > 0, summary()
    print(summary())
