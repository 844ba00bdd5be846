"""A NumPy gradient descent with W&B's API: config, nested metrics, a histogram, an image, a table, a summary."""

import numpy as np

import spoolagent.writers.wandb as wandb

rng = np.random.default_rng(0)
x = rng.normal(size=(200, 3))
y = x @ np.array([1.0, -2.0, 0.5])
weights = np.zeros(3)

with wandb.init(project="examples", name="descent", config={"lr": 0.1, "steps": 40}) as run:
    for _ in range(run.config["steps"]):
        error = x @ weights - y
        weights -= run.config["lr"] * (x.T @ error) / len(x)
        run.log({"loss": float((error**2).mean()), "weights": {"norm": float(np.linalg.norm(weights))}})
    run.log(
        {
            "errors": wandb.Histogram(error),
            "weights/image": wandb.Image(rng.integers(0, 255, (8, 8, 3), dtype="uint8")),
        }
    )
    table = wandb.Table(columns=["index", "weight"], data=[[i, float(w)] for i, w in enumerate(weights)])
    run.log({"weights/table": table})
    run.summary["converged"] = bool(np.allclose(weights, [1.0, -2.0, 0.5], atol=0.1))
print("weights", weights)
