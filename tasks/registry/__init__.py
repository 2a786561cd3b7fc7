"""Who is what: the record of runs and the model registry in MLflow, and the history of its champions."""
