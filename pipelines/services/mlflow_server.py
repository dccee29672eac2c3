"""The embedded MLflow server: SQLite for the records, S3 for the artifacts, one process.

The process is uvicorn with MLflow's own application. `mlflow server` starts the same, after it has imported MLflow a
first time in a process that then only waits: it takes twice the time to start and twice the memory.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

_HEALTH_SECONDS = 5.0
_SECONDS_TO_MAKE_TABLES = 120.0  # as long as a start may take: a second request would make them a second time


def command(port: int) -> list[str]:
    """Return the server's command line."""
    return [sys.executable, "-P", "-m", "uvicorn", "mlflow.server.fastapi_app:app", "--host", "127.0.0.1", "--port", str(port)]


def environment(base: Mapping[str, str], s3_env: Mapping[str, str], database: str, artifacts_uri: str) -> dict[str, str]:
    """Return the server's environment.

    Args:
        base: The environment to start from.
        s3_env: The variables of an S3 client.
        database: SQLite's file, as seen from the server's working directory; the server makes it.
        artifacts_uri: Directory of artifacts, `s3://...`. Clients send them through the server and need no S3 address.
    """
    return {
        **base,
        **s3_env,
        # `mlflow server` passes its options to the application in these variables.
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{database}",
        "_MLFLOW_SERVER_REGISTRY_STORE": f"sqlite:///{database}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": artifacts_uri,
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
        # No further processes, no calls home.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "OMP_NUM_THREADS": "1",
    }


def discard_unfinished(database: Path) -> None:
    """Delete a database that an interrupted first start left without all of its tables, which MLflow would refuse.

    MLflow creates its default experiment when all tables are there; a database without an experiment has no data.
    """
    if not database.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            is_finished = connection.execute("SELECT 1 FROM experiments LIMIT 1").fetchone() is not None
    except sqlite3.DatabaseError as error:
        if "no such table" not in str(error):
            return  # locked, unreadable or no database: MLflow's own message says so
        is_finished = False
    if not is_finished:
        for ending in ("", "-journal", "-wal", "-shm"):
            database.with_name(database.name + ending).unlink(missing_ok=True)


def is_ready(port: int) -> bool:
    """Tell whether a server answers on that port and can read its database. The first such request makes the tables.

    Raises:
        RuntimeError: It answers and cannot use its database.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the environment's proxy does not know our loopback
    address = f"http://127.0.0.1:{port}"
    try:
        with opener.open(f"{address}/health", timeout=_HEALTH_SECONDS):
            pass
        with opener.open(f"{address}/api/2.0/mlflow/experiments/search?max_results=1", timeout=_SECONDS_TO_MAKE_TABLES):
            return True
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise RuntimeError(f"answered {error.code}") from error
        return False
    except OSError:
        return False
