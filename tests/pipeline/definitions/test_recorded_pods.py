"""The pods of the compiled pipelines under what a real cluster injects: the drivers' patches of a recording, merged as Kubernetes does."""

import gzip
import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from pipelines.compile import PIPELINES, compiled
from pipelines.compile_checks import parse_documents

_RECORDING = Path(__file__).parents[2] / "recordings" / "workflows" / "plugin-env-collision-then-cancelled.json.gz"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    recording: dict[str, Any] = json.loads(gzip.decompress(_RECORDING.read_bytes()))
    return recording


def _patches(recorded: dict[str, Any]) -> list[dict[str, Any]]:
    """The drivers' patches of steps' pods."""
    return [json.loads(text) for text in recorded["driver_pod_spec_patches"].values()]


def _template(recorded: dict[str, Any]) -> dict[str, Any]:
    templates = recorded["created"]["spec"]["templates"]
    container: dict[str, Any] = next(each["container"] for each in templates if each["name"] == "retry-system-container-impl")
    return container


def _own_env(executor: dict[str, Any]) -> list[dict[str, Any]]:
    """The variables that the driver makes of a step's platform specification."""
    return [
        {"name": item["envVar"], "valueFrom": {kind: {"name": source[name], "key": item[key], "optional": source["optional"]}}}
        for sources, kind, name, key in (("secretAsEnv", "secretKeyRef", "secretName", "secretKey"),
                                         ("configMapAsEnv", "configMapKeyRef", "configMapName", "configMapKey"))
        for source in executor.get(sources, ())
        for item in source["keyToEnv"]
    ]  # fmt: skip


def _merged(*lists: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Variables merged as a strategic merge does: by name, field by field."""
    by_name: dict[str, dict[str, Any]] = {}
    for variable in (each for one in lists for each in one):
        by_name.setdefault(variable["name"], {}).update(variable)
    return list(by_name.values())


def _refused(env: list[dict[str, Any]]) -> list[str]:
    """The variables that the API server refuses: "may not be specified when `value` is not empty"."""
    return [variable["name"] for variable in env if variable.get("value") and "valueFrom" in variable]


def test_the_recorded_pod_is_refused_for_its_address_of_mlflow(recorded: dict[str, Any]) -> None:
    patch = _patches(recorded)[0]
    assert _refused(_merged(_template(recorded)["env"], patch["containers"][0]["env"])) == ["MLFLOW_TRACKING_URI"]


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pod_of_a_pipeline_bears_what_the_cluster_injects(name: str, recorded: dict[str, Any]) -> None:
    injected = [variable for variable in _patches(recorded)[0]["containers"][0]["env"] if "value" in variable]
    assert {"MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"} == {variable["name"] for variable in injected}
    _, platform = parse_documents(compiled(name))
    for label, executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].items():
        env = _merged(_template(recorded)["env"], injected, _own_env(executor))
        assert not _refused(env), label
        patch = _patches(recorded)[0]
        container = {**_template(recorded), **patch["containers"][0], "env": env}
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": label},
            "spec": {**patch, "containers": [container], "volumes": [{"name": mount, "emptyDir": {}} for mount in sorted(mounts)]},
        }
        kubernetes_validate.validate(pod, "1.34", strict=True)
