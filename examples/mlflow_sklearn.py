"""A scikit-learn search with MLflow's API: a parent run with a nested run for each candidate."""

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

import spoolagent.writers.mlflow as mlflow

images, labels = load_digits(return_X_y=True)
mlflow.set_experiment("digits")
with mlflow.start_run(run_name="search"):
    best = 0.0
    for index, c in enumerate((0.001, 0.01, 0.1)):
        with mlflow.start_run(run_name=f"C={c}", nested=True):
            mlflow.log_param("C", c)
            score = cross_val_score(LogisticRegression(C=c, max_iter=200), images / 16.0, labels, cv=3).mean()
            mlflow.log_metric("accuracy", score)
        best = max(best, score)
        mlflow.log_metric("best", best, step=index)
    mlflow.set_tag("stage", "example")
    mlflow.log_text("Logistic regression, three folds.", "notes/method.txt")
print("best accuracy", best)
