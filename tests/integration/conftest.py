"""A disk that a test can fill, and a count of requests to MLflow."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of 1 MiB, or of as many MiB as the test's parameter."""
    size = getattr(request, "param", 1)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(disk)], capture_output=True, check=False)
    if mount.returncode != 0:
        pytest.skip("mounting a small file system is not allowed here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)  # a failed test may still hold a file open


@pytest.fixture
def mlflow_calls(services: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bodies of the requests to MLflow's API that this process makes, as text."""
    from mlflow.store.tracking.rest_store import RestStore

    calls: list[str] = []
    ask = RestStore._call_endpoint

    def count(store: RestStore, api: Any, json_body: Any = None, *arguments: Any, **options: Any) -> Any:
        calls.append(str(json_body))
        return ask(store, api, json_body, *arguments, **options)

    monkeypatch.setattr(RestStore, "_call_endpoint", count)
    return calls
