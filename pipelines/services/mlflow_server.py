"""The embedded MLflow server: SQLite for the records, S3 for the artifacts, one process."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path


def command(data_path: Path, artifacts_uri: str, port: int) -> list[str]:
    """The server's command line; clients send artifacts through it, so they need no S3 address of their own.

    Args:
        data_path: Folder of the database, which exists.
        artifacts_uri: Where artifacts go, `s3://...`.
        port: On loopback.
    """
    return [sys.executable, "-m", "pipelines.services.mlflow_process", str(data_path / "mlflow.db"), artifacts_uri, str(port)]


def environment(base: Mapping[str, str], s3_env: Mapping[str, str]) -> dict[str, str]:
    """The server's environment: `base`, the way to S3, and everything off that starts further processes or calls home."""
    return {
        **base,
        **s3_env,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "OMP_NUM_THREADS": "1",
    }


def answers(port: int) -> bool:
    """Whether a server is up on that port."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the proxy to the internet doesn't know our loopback
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=5.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
