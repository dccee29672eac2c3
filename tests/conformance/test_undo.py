"""A scenario puts back what it changes, also that of a session that was killed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conformance.cluster import Cluster, Settings

_SECRETS = "/api/v1/namespaces/runs/secrets"
_THEIRS = {"type": "Opaque", "data": {"url": "aHR0cHM6Ly9ob29rcw=="}}


class _Cluster(Cluster):
    """A cluster that has Secrets alone."""

    def __init__(self) -> None:
        values = dict.fromkeys(("services_namespace", "image", "other_image", "bucket", "session"), "")
        settings = Settings(namespace="runs", gap_seconds=0.0, away_seconds=0.0, folder=Path(), **values)
        super().__init__(settings=settings, kfp=None, mlflow_url=str, _api=None)  # type: ignore[arg-type]
        self.secrets: dict[str, Any] = {}

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: str) -> dict[str, Any] | None:
        name = path.removeprefix(_SECRETS).strip("/")
        if method == "POST":
            assert body is not None
            name = body["metadata"]["name"]
            assert name not in self.secrets
            self.secrets[name] = {"type": "Opaque", **body}
        return dict(self.secrets.pop(name, {}) if method == "DELETE" else self.secrets.get(name, {})) or None

    def items(self, path: str, **query: str) -> list[dict[str, Any]]:
        return [each for each in self.secrets.values() if each["metadata"].get("labels")] if path == _SECRETS else []


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("there", [True, False])
def test_the_secret_that_was_there_is_there_again(there: bool, is_killed: bool) -> None:
    cluster = _Cluster()
    if there:
        cluster.secrets["iddpm-webhook"] = {**_THEIRS, "metadata": {"name": "iddpm-webhook"}}
    cluster.set_secret("iddpm-webhook", {"url": "http://receiver"})
    assert cluster.secrets["iddpm-webhook"]["stringData"] == {"url": "http://receiver"}
    if is_killed:
        cluster.repair()
    else:
        cluster.undo.close()
    assert [each["data"] for each in cluster.secrets.values()] == ([_THEIRS["data"]] if there else [])
