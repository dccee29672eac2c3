"""The RayJob that is sent to a cluster, against KubeRay's schema and the rules that the schema misses."""

from __future__ import annotations

import copy
import functools
import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kuberay_rules import violations

from components.cluster.workflows import Owner
from components.launch.rayjob.manifest import RayJob, rayjob_name, render
from components.launch.resources import StageResources, read_resources
from training.config.errors import UserError

_SCHEMA = Path(os.environ["IDDPM_RAYJOB_SCHEMA"]) if "IDDPM_RAYJOB_SCHEMA" in os.environ else None

_PLAIN: dict[str, Any] = {
    "run_key": "digits-hybrid-cosine-0123456789",
    "run_uri": "s3://iddpm/runs/digits-hybrid-cosine-0123456789",
    "entrypoint": ("python", "-m", "components.launch.driver", "s3://iddpm/a b's.json"),
    "namespace": "kubeflow",
    "image": "iddpm-pipelines:0.1.0",
}
_GPUS = """{"profile": "rayjob-8xgpu", "num_workers": 32, "node_selector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]}"""
_OPTIONS = """{"profile": "rayjob-8xgpu", "queue": "training", "rayjob": {
    "labels": {"example.com/team": "vision"}, "annotations": {"example.com/cost": "42"},
    "env": {"NCCL_DEBUG": "INFO", "RAY_DEDUP_LOGS": "1"},
    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
    "volume_mounts": [{"name": "data", "mountPath": "/data", "readOnly": true}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["a100"]}]}]}}},
    "runtime_class": "nvidia", "priority_class": "research", "queue_priority_class": "low"}}"""
_JOBS = {
    "plain": RayJob(**_PLAIN, resources=StageResources(ray_mode="rayjob", cpu="4")),
    "gpu": RayJob(**_PLAIN, resources=read_resources(_GPUS, stage="train")),
    "queued": RayJob(**_PLAIN, resources=StageResources(ray_mode="rayjob", cpu="4", queue="training")),
    "options": RayJob(**_PLAIN, resources=read_resources(_OPTIONS, stage="train")),
    "owned": RayJob(
        **_PLAIN,
        resources=StageResources(ray_mode="rayjob", cpu="4"),
        owner=Owner("argoproj.io/v1alpha1", "train-x", "4c1d"),
        image_pull_secrets=("registry",),
    ),
}


@functools.cache
def _schema() -> Any:
    return jsonschema.Draft202012Validator(json.loads(gzip.decompress(_SCHEMA.read_bytes())))


@pytest.mark.kuberay_schema
@pytest.mark.parametrize("name", _JOBS)
def test_every_kind_of_job_fits_kuberays_schema(name):
    errors = [f"{error.json_path}: {error.message}" for error in _schema().iter_errors(render(_JOBS[name]))]
    assert errors == []


@pytest.mark.kuberay_schema
def test_the_schema_would_notice_a_misspelt_field():
    manifest = render(_JOBS["plain"])
    manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["terminationGracePeriod"] = 120
    assert list(_schema().iter_errors(manifest))


@pytest.mark.parametrize("name", _JOBS)
def test_every_kind_of_job_keeps_the_rules_that_the_schema_misses(name):
    assert violations(render(_JOBS[name])) == []


def _spec(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        node = manifest["spec"]
        for part in path[:-1]:
            node = node[part]
        if value is None:
            del node[path[-1]]
        else:
            node[path[-1]] = value

    return change


_HEAD = ("rayClusterSpec", "headGroupSpec")
_WORKERS = ("rayClusterSpec", "workerGroupSpecs", 0)
_CONTAINER = ("template", "spec", "containers", 0)


def _named(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["metadata"].update(name=name)


def _suspended_without_shutdown(manifest: dict[str, Any]) -> None:
    manifest["spec"].update(suspend=True, shutdownAfterJobFinishes=False)
    del manifest["spec"]["ttlSecondsAfterFinished"]


_BREAKS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "long name": (_named("a" * 48), "48 characters"),
    "name begins with a digit": (_named("1abc"), "begin with a letter"),
    "mode": (_spec("submissionMode", value="K8SJobMode"), "submissionMode"),
    "no entrypoint": (_spec("entrypoint", value=""), "entrypoint"),
    "ttl without shutdown": (_spec("shutdownAfterJobFinishes", value=False), "ttlSecondsAfterFinished needs"),
    "suspend without shutdown": (_suspended_without_shutdown, "suspend needs"),
    "deletion rules and shutdown": (_spec("deletionStrategy", value={"deletionRules": [{}]}), "exclude each other"),
    "deadline": (_spec("activeDeadlineSeconds", value=0), "activeDeadlineSeconds"),
    "backoff": (_spec("backoffLimit", value=-1), "backoffLimit"),
    "sidecar with submitter": (_spec("submissionMode", value="SidecarMode"), "SidecarMode can't be used with submitterPodTemplate"),
    "no cluster": (_spec("rayClusterSpec", value=None), "one of rayClusterSpec"),
    "number as a start parameter": (_spec(*_WORKERS, "rayStartParams", value={"num-gpus": 1}), "must be a string"),
    "workers on the head": (_spec(*_HEAD, "rayStartParams", value={}), "land on it"),
    "resources twice": (_spec(*_HEAD, "resources", value={"cpu": "1"}), "in the group as well"),
    "replicas over the maximum": (_spec(*_WORKERS, "replicas", value=9), "maxReplicas does not hold"),
    "requests below limits": (_spec(*_WORKERS, *_CONTAINER, "resources", "requests", "cpu", value="1"), "requests equal to limits"),
    "no limits": (_spec(*_WORKERS, *_CONTAINER, "resources", value={}), "requests equal to limits"),
    "GB": (
        _spec(
            *_WORKERS,
            *_CONTAINER,
            "resources",
            value={"requests": {"cpu": "1", "memory": "32GB"}, "limits": {"cpu": "1", "memory": "32GB"}},
        ),
        "no quantity",
    ),
    "number in the environment": (_spec(*_HEAD, *_CONTAINER, "env", 0, value={"name": "A", "value": 1}), "must be a string"),
    "autoscaler without autoscaling": (
        _spec(*_HEAD, *_CONTAINER, "env", 0, value={"name": "RAY_enable_autoscaler_v2", "value": "1"}),
        "autoscaling is off",
    ),
    "no time to drain": (_spec(*_WORKERS, "template", "spec", "terminationGracePeriodSeconds", value=30), "must exceed"),
    "token with an old Ray": (_spec("rayClusterSpec", "rayVersion", value="2.51.1"), "2.52 or later"),
    "token without a version": (_spec("rayClusterSpec", "rayVersion", value=None), "rayVersion to be set"),
    "token of Kubernetes": (_spec("rayClusterSpec", "authOptions", "enableK8sTokenAuth", value=True), "enableK8sTokenAuth"),
}


@pytest.mark.parametrize("name", _BREAKS)
def test_each_rule_finds_its_violation(name):
    change, words = _BREAKS[name]
    manifest = copy.deepcopy(render(_JOBS["plain"]))
    change(manifest)
    assert any(words in line for line in violations(manifest))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=120))
def test_any_run_key_gives_a_name_that_kuberay_takes(run_key):
    name = rayjob_name(run_key)
    assert len(name) <= 47
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert rayjob_name(run_key) == name


def test_keys_that_begin_alike_have_different_names():
    assert rayjob_name("x" * 60 + "a") != rayjob_name("x" * 60 + "b")


def test_the_same_job_gives_the_same_manifest():
    assert render(_JOBS["gpu"]) == render(copy.deepcopy(_JOBS["gpu"]))


def test_the_workflow_owns_the_job_without_controlling_it():
    metadata = render(_JOBS["owned"])["metadata"]
    assert metadata["ownerReferences"] == [
        {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "name": "train-x",
            "uid": "4c1d",
            "controller": False,
            "blockOwnerDeletion": False,
        }
    ]


def test_a_queued_job_waits_for_kueue_and_another_does_not():
    queued, plain = render(_JOBS["queued"]), render(_JOBS["plain"])
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    assert queued["spec"]["suspend"] is True
    assert "suspend" not in plain["spec"]


def test_pods_keep_the_labels_by_which_kuberays_services_select_the_head():
    spec = render(_JOBS["plain"])["spec"]
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    kuberays = {"app.kubernetes.io/name", "app.kubernetes.io/created-by"}
    assert not any(
        label in kuberays or label.startswith("ray.io/") for group in groups for label in group["template"]["metadata"]["labels"]
    )


def test_gpus_node_selector_and_tolerations_reach_the_workers_alone():
    cluster = render(_JOBS["gpu"])["spec"]["rayClusterSpec"]
    worker, head = cluster["workerGroupSpecs"][0], cluster["headGroupSpec"]["template"]["spec"]
    assert worker["replicas"] == worker["minReplicas"] == worker["maxReplicas"] == 4
    assert worker["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert worker["template"]["spec"]["nodeSelector"] == {"pool": "gpu"}
    assert worker["template"]["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]
    assert "nodeSelector" not in head


def test_a_submitter_may_come_back_but_only_the_launcher_starts_a_new_cluster():
    spec = render(_JOBS["plain"])["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["submitterConfig"]["backoffLimit"] == 2


def test_options_reach_the_pods_that_they_are_for():
    manifest = render(_JOBS["options"])
    cluster = manifest["spec"]["rayClusterSpec"]
    head, worker = (group["template"] for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]))
    submitter = manifest["spec"]["submitterPodTemplate"]
    for each in (manifest, head, worker, submitter):
        assert each["metadata"]["labels"]["example.com/team"] == "vision"
        assert each["metadata"]["annotations"]["example.com/cost"] == "42"
    assert [each["spec"].get("priorityClassName") for each in (head, worker, submitter)] == ["research"] * 3
    for each in (head, worker):
        container = each["spec"]["containers"][0]
        assert {"name": "NCCL_DEBUG", "value": "INFO"} in container["env"]
        assert len({variable["name"] for variable in container["env"]}) == len(container["env"])
        assert {"name": "data", "mountPath": "/data", "readOnly": True} in container["volumeMounts"]
        assert {volume["name"] for volume in each["spec"]["volumes"]} == {"scratch", "data"}
    assert worker["spec"]["runtimeClassName"] == "nvidia"
    assert "nodeAffinity" in worker["spec"]["affinity"]
    assert not {"runtimeClassName", "affinity"} & head["spec"].keys()
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "low"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ('{"labels": {"ray.io/cluster": "x"}}', "ray.io/cluster is set by"),
        ('{"labels": {"team": "a b"}}', "the value 'a b' of team is no label"),
        ('{"annotations": {"a b": "x"}}', "can't be a key"),
        ('{"env": {"AWS_SECRET_ACCESS_KEY": "x"}}', "comes from the cluster's Secrets"),
        ('{"env": {"1A": "x"}}', "can't name an environment variable"),
        ('{"volumes": [{"name": "scratch", "emptyDir": {}}]}', "a name of its own"),
        ('{"volume_mounts": [{"name": "data", "mountPath": "/data"}]}', "mounts no volume"),
        ('{"volumes": [{"name": "d", "emptyDir": {}}], "volume_mounts": [{"name": "d", "mountPath": "/tmp"}]}', "path of its own"),
        ('{"priority_class": "A B"}', "not a name of a Kubernetes object"),
        ('{"queue_priority_class": "low"}', "needs a queue"),
        ('{"tolerations": []}', "tolerations"),
    ],
)
def test_options_that_can_not_work_are_refused_before_anything_is_sent(options, words):
    with pytest.raises(UserError, match=re.escape(words)):
        read_resources(f'{{"profile": "rayjob-2xcpu", "rayjob": {options}}}', stage="train")


def test_credentials_are_named_and_never_written(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-value")
    manifest = render(_JOBS["owned"])
    assert "very-secret-value" not in json.dumps(manifest)
    sources = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["envFrom"]
    assert {"secretRef": {"name": "iddpm-s3", "optional": True}} in sources


def test_the_entrypoint_survives_a_shell():
    import shlex

    assert shlex.split(render(_JOBS["plain"])["spec"]["entrypoint"]) == list(_PLAIN["entrypoint"])


def _containers(manifest: dict[str, Any]) -> dict[str, set[str]]:
    """Names of the variables of each container of a RayJob's pods."""
    spec = manifest["spec"]
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    templates = [spec["submitterPodTemplate"], *(group["template"] for group in groups)]
    containers = [container for template in templates for container in template["spec"]["containers"]]
    return {container["name"]: {variable["name"] for variable in container["env"]} for container in containers}


def test_no_variable_of_ours_is_one_that_kuberay_injects():
    recordings = Path(__file__).parents[2] / "recordings"
    (rayjob,) = recordings.glob("rayjobs/*-4504db-*.gz")
    (pods,) = recordings.glob("pods/*-4504db-*.gz")
    sent = _containers(json.loads(gzip.decompress(rayjob.read_bytes()))[0]["object"])
    ours = _containers(render(_JOBS["owned"]))
    seen = set()
    for events in json.loads(gzip.decompress(pods.read_bytes())).values():
        for container in (events[0].get("object") or events[0]).get("spec", {}).get("containers", ()):
            injected = {variable["name"] for variable in container["env"]} - sent[container["name"]]
            assert injected
            assert not injected & ours[container["name"]]
            seen.add(container["name"])
    assert seen == {"ray-head", "ray-worker", "ray-job-submitter"}
