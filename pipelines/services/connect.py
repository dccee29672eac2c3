"""Make this process a client of S3 and MLflow: for the commands and for notebooks."""

from __future__ import annotations

import os

from pipelines.services import services


def connect() -> None:
    """Use the S3 and the MLflow that the environment names, or else the local ones if they run.

    The two are independent: with `MLFLOW_TRACKING_URI` alone, S3 is still the local one. AWS's own keys together with an
    MLflow in the environment mean AWS's own S3.
    """
    has_mlflow = "MLFLOW_TRACKING_URI" in os.environ
    has_s3 = "AWS_ENDPOINT_URL" in os.environ or (has_mlflow and "AWS_ACCESS_KEY_ID" in os.environ)
    if has_s3 and has_mlflow:
        return
    try:
        env = services.current().env
    except services.ServicesError:
        return  # a path on disk needs none; an s3:// address will fail with a message
    skipped = ("AWS_", "MLFLOW_S3_") if has_s3 else ("MLFLOW_TRACKING_URI",) if has_mlflow else ()
    os.environ.update({name: value for name, value in env.items() if not name.startswith(skipped)})
