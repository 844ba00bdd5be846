"""How much the random tests do, from `SPOOLAGENT_*`; `make torture` sets the large sizes, each run prints its seed.

| variable | what |
|---|---|
| `SPOOLAGENT_SEED` | where the random tests begin: the first schedule's number, the kill loop's seed |
| `SPOOLAGENT_SCHEDULES` | schedules of the model-based test |
| `SPOOLAGENT_KILLS` | SIGKILLs of the kill loop in all: a quarter each for writers, shipper, workers, supervisors |
| `SPOOLAGENT_EVERY_BYTE` | `1`: damage at every byte also where a sample is taken otherwise |
"""

import os
import random

GIVEN_SEED = int(os.environ.get("SPOOLAGENT_SEED", "0"))
SCHEDULES = int(os.environ.get("SPOOLAGENT_SCHEDULES", "150"))
KILLS = int(os.environ.get("SPOOLAGENT_KILLS", "24"))
EVERY_BYTE = bool(os.environ.get("SPOOLAGENT_EVERY_BYTE"))


def fresh_seed():
    """The given seed, else one of chance."""
    return GIVEN_SEED or random.SystemRandom().randrange(1, 10**6)
