"""The embedded MLflow server's one process: `python -m pipelines.services.mlflow_process DATABASE_FILE ARTIFACTS PORT`.

`mlflow server` imports all of MLflow, sees to the database's tables, and then starts a second Python that imports all of
it again and serves. This does the first's work in the second: half the time to start, half the memory. The names are
MLflow's own; the range in pyproject.toml holds it to the minor version that was tried.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

HOST = "127.0.0.1"


def main() -> None:
    """Serves until it is told to end."""
    file, artifacts_uri, port = sys.argv[1:]
    database = f"sqlite:///{file}"
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

    if not Path(file).exists():
        _make_database(Path(file))
    initialize_backend_stores(database, database, "mlflow-artifacts:/")
    for formatter in uvicorn.config.LOGGING_CONFIG["formatters"].values():
        formatter["fmt"] = f"%(asctime)s {formatter['fmt']}"
    uvicorn.run("mlflow.server.fastapi_app:app", host=HOST, port=int(port), workers=1)


def _make_database(file: Path) -> None:
    """Makes the database with its tables, whole or not at all: with some of them there, MLflow never starts again."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    unfinished = file.with_name("unfinished")  # a folder: SQLite puts a journal beside its file
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    engine = create_sqlalchemy_engine(f"sqlite:///{unfinished / file.name}")  # type: ignore[no-untyped-call]
    _initialize_tables(engine)  # type: ignore[no-untyped-call]
    engine.dispose()
    (unfinished / file.name).replace(file)
    unfinished.rmdir()


if __name__ == "__main__":
    main()
