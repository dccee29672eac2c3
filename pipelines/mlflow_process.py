"""The embedded MLflow server's one process: `python -m pipelines.mlflow_process DATABASE ARTIFACTS PORT`.

`mlflow server` imports all of MLflow, sees to the database's tables, and then starts a second Python that imports all of
it again and serves. This does the first's work in the second: half the time to start, half the memory. The names are
MLflow's own; the range in pyproject.toml holds it to the minor version that was tried.
"""

from __future__ import annotations

import os
import sys

HOST = "127.0.0.1"


def main() -> None:
    """Serves until it is told to end."""
    database, artifacts_uri, port = sys.argv[1:]
    from mlflow.server import constants

    # What the application reads when it is imported; clients send artifacts through it.
    os.environ.update(
        {
            constants.BACKEND_STORE_URI_ENV_VAR: database,
            constants.REGISTRY_STORE_URI_ENV_VAR: database,
            constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
            constants.ARTIFACTS_DESTINATION_ENV_VAR: artifacts_uri,
            constants.SERVE_ARTIFACTS_ENV_VAR: "true",
            "_MLFLOW_SGI_NAME": "uvicorn",
        }
    )
    import uvicorn
    import uvicorn.config
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(database, database, "mlflow-artifacts:/")
    for formatter in uvicorn.config.LOGGING_CONFIG["formatters"].values():
        formatter["fmt"] = f"%(asctime)s {formatter['fmt']}"
    uvicorn.run("mlflow.server.fastapi_app:app", host=HOST, port=int(port), workers=1)


if __name__ == "__main__":
    main()
