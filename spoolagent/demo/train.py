"""One site of the demo: trains a model on its third of scikit-learn's digits and logs with one API.

    python -m spoolagent.demo.train tensorboard|mlflow|wandb WORKDIR STEPS

It keeps a checkpoint, as a real job does: started again after a kill, it goes on from there and logs to the
same run. Where to log comes from `SPOOLAGENT_*`; the script itself knows nothing of spools.
"""

import os
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any

SITES = {"tensorboard": 0, "mlflow": 1, "wandb": 2}
CHECKPOINT_EVERY = 25
PACE_S = 0.02
"""Between two steps: the digits are small, and a demo should last long enough to be interrupted."""

Log = Callable[[dict[str, float], int], object]


def load_site(number: int) -> Any:
    """(train images, train labels, test images, test labels) of one of the three sites."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    return train_test_split(images[number::3] / 16.0, labels[number::3], test_size=0.25, random_state=number)


class Trainer:
    """A multi-layer perceptron, one mini-batch a step, with a checkpoint on disk."""

    def __init__(self, number: int, folder: str) -> None:
        import numpy as np
        from sklearn.neural_network import MLPClassifier

        self._x, self._x_test, self._y, self._y_test = load_site(number)
        self._path = os.path.join(folder, "checkpoint.pkl")
        self._rng = np.random.default_rng(number)
        self._model = MLPClassifier(hidden_layer_sizes=(32,), learning_rate_init=0.003, random_state=number)
        self._classes = list(range(10))
        self.step = 0
        if os.path.exists(self._path):
            with open(self._path, "rb") as file:  # our own file of a moment ago
                self.step, self._model = pickle.load(file)  # noqa: S301 - written by this very script

    def advance(self) -> dict[str, float]:
        """Trains one step and measures."""
        picks = self._rng.integers(0, len(self._x), 64)
        self._model.partial_fit(self._x[picks], self._y[picks], classes=self._classes)
        self.step += 1
        accuracy = float(self._model.score(self._x_test, self._y_test))
        return {"train/loss": float(self._model.loss_), "test/accuracy": accuracy}

    def checkpoint(self) -> None:
        """Saves, so that a killed job loses little."""
        with open(self._path + ".new", "wb") as file:
            pickle.dump((self.step, self._model), file)
        os.replace(self._path + ".new", self._path)

    def sample(self) -> Any:
        """One digit, 8 x 8, 0..1."""
        return self._x[0].reshape(8, 8)


def train(trainer: Trainer, steps: int, log: Log) -> float:
    """Trains up to `steps` and returns the last accuracy."""
    accuracy = 0.0
    while trainer.step < steps:
        metrics = trainer.advance()
        accuracy = metrics["test/accuracy"]
        log(metrics, trainer.step)
        if trainer.step % CHECKPOINT_EVERY == 0:
            trainer.checkpoint()
        time.sleep(PACE_S)
    return accuracy


def with_tensorboard(trainer: Trainer, steps: int, folder: str) -> None:
    """Site one."""
    from spoolagent.writers.tensorboard import SummaryWriter

    with SummaryWriter(os.path.join(folder, "runs", "digits")) as writer:

        def log(metrics: dict[str, float], step: int) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)

        if trainer.step == 0:
            writer.add_image("digit", trainer.sample(), 0, dataformats="HW")
            writer.add_text("note", "A third of scikit-learn's digits.", 0)
        train(trainer, steps, log)


def with_mlflow(trainer: Trainer, steps: int, folder: str) -> None:
    """Site two."""
    import spoolagent.writers.mlflow as mlflow

    mlflow.set_experiment("digits")
    with mlflow.start_run(run_name="digits"):
        mlflow.log_params({"hidden": 32, "lr": 0.003})
        accuracy = train(trainer, steps, lambda metrics, step: mlflow.log_metrics(metrics, step=step))
        path = os.path.join(folder, "model-card.txt")
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"accuracy {accuracy}\n")
        mlflow.log_artifact(path)


def with_wandb(trainer: Trainer, steps: int, folder: str) -> None:
    """Site three."""
    import spoolagent.writers.wandb as wandb

    run = wandb.init(project="digits", name="digits", dir=folder, config={"hidden": 32, "lr": 0.003})
    accuracy = train(trainer, steps, lambda metrics, step: run.log(metrics, step=step))
    run.summary["final_accuracy"] = accuracy
    run.finish()


def main() -> None:
    """Runs one site."""
    api, folder, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    run = {"tensorboard": with_tensorboard, "mlflow": with_mlflow, "wandb": with_wandb}[api]
    run(Trainer(SITES[api], folder), steps, folder)


if __name__ == "__main__":
    main()
