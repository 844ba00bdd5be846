"""The native API: metrics, parameters, a text, a histogram, an image and a file. Writes to ./spool by default."""

import math
import random
import tempfile

from spoolagent.writers import Run

with Run(
    project="examples", name="native", config={"lr": 0.1, "layers": [32, 16]}, tags={"kind": "example"}
) as run:
    for step in range(50):
        run.log({"loss": math.exp(-step / 20), "lr": 0.1 / (1 + step)}, step=step)
    run.log_params({"seed": 1})
    run.log_text("note", "A run of the native API.")
    run.log_histogram("weights", [random.gauss(0, 1) for _ in range(500)], step=49)
    run.log_image("ramp", [[[x / 15, y / 15, 0.5] for x in range(16)] for y in range(16)], step=49)
    with tempfile.NamedTemporaryFile("w", suffix=".csv") as table:
        table.write("a,b\n1,2\n")
        table.flush()
        run.log_artifact(table.name, "tables")
print("run", run.id, "is in", run.spool)
