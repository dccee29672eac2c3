"""MLflow: its client, runs, metrics and model registry. The only package that imports mlflow; training.loop and all above import it."""
