"""A step's launcher pod: its requests to the cluster, and the results that it accepts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fake_kubernetes
import pytest
from fake_kubernetes import FakeKubernetes, recorded_statuses

from components.cluster.connection import KubernetesError
from components.launch import driver
from components.launch.call import Call, call_of
from components.launch.rayjob.follow import Pace, RayJobError
from components.launch.rayjob.launcher import run_on_rayjob
from components.launch.rayjob.manifest import rayjob_for, rayjob_name, render
from components.launch.resources import RayJobOptions, StageResources, read_resources
from components.launch.run import run_step
from components.steps.registry import EVALUATE, REFERENCE, TRAIN
from training import storage
from training.config.errors import UserError
from training.config.presets import preset
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.published import digits

_PACE = Pace(poll_seconds=0.02)
_GOOD = recorded_statuses("4504db")[-1]
_TWO = StageResources(ray_mode="rayjob", cpu="4", num_workers=2)
_WORKFLOW = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "train-x", "uid": "workflow-1", "controller": True}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    with fake_kubernetes.serve(tmp_path) as (fake, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        monkeypatch.setenv("KFP_POD_NAME", "launcher")
        monkeypatch.setenv("KFP_POD_UID", "uid-of-launcher")
        fake.add_pod(
            "launcher",
            {"pipeline/runid": "r"},
            metadata={"ownerReferences": [_WORKFLOW]},
            spec={
                "containers": [
                    {"name": "wait", "image": "argoexec"},
                    {"name": "main", "image": "iddpm@sha256:abc", "imagePullPolicy": "Always"},
                ],
                "imagePullSecrets": [{"name": "registry"}],
            },
        )
        fake.script = recorded_statuses("4504db")
        yield fake


@pytest.fixture(scope="module")
def data_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("digits")
    prepare(digits("train"), str(directory / "train"), image_size=8, options=Options(resize="none"))
    return str(directory)


@pytest.fixture
def arguments(data_uri: str, tmp_path: Path) -> dict[str, Any]:
    return {
        "experiment": preset("digits-hybrid-cosine", ["optim.num_steps=10"]).to_json(),
        "data_uri": data_uri,
        "reference_uri": "",
        "storage_root_uri": str(tmp_path / "store"),
        "tracking_experiment": "test",
        "resources": {"num_workers": 2},
    }


def _training_ends_well(cluster: FakeKubernetes) -> None:
    def write_result(rayjob: dict[str, Any]) -> None:
        if rayjob.get("status") == _GOOD:
            storage.write_json(storage.join(rayjob["metadata"]["annotations"]["iddpm/run-uri"], "result.json"), {"step": 10})

    cluster.on_look = write_result


def test_a_run_is_trained_on_the_cluster_and_its_result_read_from_storage(cluster, arguments, capsys):
    _training_ends_well(cluster)
    run_uri = run_on_rayjob(TRAIN, arguments, _TWO, pace=_PACE)
    manifest = cluster.created[0]
    assert manifest["metadata"]["name"] == rayjob_name(Path(run_uri).name)
    assert manifest["metadata"]["ownerReferences"] == [{**_WORKFLOW, "controller": False, "blockOwnerDeletion": False}]
    head = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["image"] == "iddpm@sha256:abc"
    assert manifest["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")
    expected = {"step": dataclasses.asdict(TRAIN), "arguments": arguments, "answer_uri": "", "ray_address": "auto"}
    uri = f"{run_uri}/rayjob-call-{manifest['metadata']['labels']['iddpm/launch']}.json"
    assert storage.read_json(uri) == expected
    assert manifest["spec"]["entrypoint"].endswith(f"components.launch.driver {uri}")
    assert f"{Path(run_uri).name} is done" in capsys.readouterr().out


def test_a_run_that_is_done_sends_the_cluster_no_request(cluster, arguments):
    _training_ends_well(cluster)
    first = run_on_rayjob(TRAIN, arguments, _TWO, pace=_PACE)
    asked = len(cluster.requests)
    assert run_on_rayjob(TRAIN, arguments, _TWO, pace=_PACE) == first
    assert len(cluster.requests) == asked


@pytest.mark.parametrize("launch", ["", "theirs"], ids=["of the version before", "of another launcher"])
def test_a_launcher_that_follows_a_job_leaves_its_call_as_it_is(cluster, arguments, launch):
    theirs = dataclasses.replace(call_of(TRAIN, {**arguments, "tracking_experiment": "theirs"}), launch=launch)
    theirs.write()
    job = rayjob_for(theirs, _TWO, launcher={"spec": _POD}, namespace=fake_kubernetes.NAMESPACE, launch="theirs")
    cluster.created.append(cluster.add_rayjob(render(job), cluster.script[0]))
    _training_ends_well(cluster)
    run_uri = run_on_rayjob(TRAIN, arguments, _TWO, pace=_PACE)
    assert cluster.count("POST") == 0
    assert storage.read_json(theirs.uri)["arguments"]["tracking_experiment"] == "theirs"
    assert [uri for uri in storage.list_uris(run_uri) if "rayjob-call" in uri] == [theirs.uri]


def test_a_job_that_succeeds_without_a_result_is_no_success(cluster, arguments):
    with pytest.raises(RayJobError, match=r"result\.json is not there"):
        run_on_rayjob(TRAIN, arguments, _TWO, pace=_PACE)


def test_ray_pods_pull_their_image_as_the_steps_pod_does(cluster, arguments):
    _training_ends_well(cluster)
    run_on_rayjob(TRAIN, arguments, _TWO, pace=_PACE)
    ray = cluster.created[0]["spec"]["rayClusterSpec"]
    for pod in (group["template"]["spec"] for group in (ray["workerGroupSpecs"][0], ray["headGroupSpec"])):
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["containers"][0]["imagePullPolicy"] == "Always"


def test_an_image_of_the_resources_takes_precedence_over_the_steps(cluster, arguments):
    _training_ends_well(cluster)
    run_on_rayjob(TRAIN, arguments, dataclasses.replace(_TWO, rayjob=RayJobOptions(image="mine:1")), pace=_PACE)
    worker = cluster.created[0]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert worker["containers"][0]["image"] == "mine:1"


_FOUR = '{"ray_mode": "rayjob", "cpu": "5", "num_workers": 4, "num_gpus_per_worker": 1, "rayjob": {"workers_per_pod": 4}}'


def _evaluation(tmp_path: Path) -> dict[str, Any]:
    resources = {"num_workers": 4, "num_gpus_per_worker": 1}
    return {"run_uri": str(tmp_path / "run"), "data_uri": "d", "reference_uri": "r", "resources": resources}


def _answered(cluster: FakeKubernetes, answer: str) -> None:
    """Write the result that the driver would have written."""

    def write_answer(rayjob: dict[str, Any]) -> None:
        if rayjob.get("status") == _GOOD:
            call = storage.read_json(rayjob["spec"]["entrypoint"].split()[-1])
            storage.write_json(call["answer_uri"], {"returned": answer})

    cluster.on_look = write_answer


def test_an_evaluation_has_a_cluster_of_its_own_and_its_result_comes_back(cluster, tmp_path):
    _answered(cluster, "s3://somewhere/final.json")
    assert (
        run_on_rayjob(EVALUATE, _evaluation(tmp_path), read_resources(_FOUR, stage="evaluate"), pace=_PACE) == "s3://somewhere/final.json"
    )
    (manifest,) = cluster.created
    assert manifest["metadata"]["name"].startswith("iddpm-evaluate-")
    worker = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"
    call = storage.read_json(manifest["spec"]["entrypoint"].split()[-1])
    assert (call["step"]["name"], call["arguments"]) == ("evaluate", _evaluation(tmp_path))


def test_a_launcher_that_is_tried_again_finds_its_evaluation_and_another_run_of_the_pipeline_does_not(cluster, tmp_path):
    _answered(cluster, "first")
    arguments, options = _evaluation(tmp_path), read_resources(_FOUR, stage="evaluate")
    run_on_rayjob(EVALUATE, arguments, options, pace=_PACE)
    assert run_on_rayjob(EVALUATE, arguments, options, pace=_PACE) == "first"
    assert len(cluster.created) == 1
    cluster.pods["launcher"]["metadata"]["ownerReferences"] = [{**_WORKFLOW, "uid": "workflow-2"}]
    _answered(cluster, "second")
    assert run_on_rayjob(EVALUATE, arguments, options, pace=_PACE) == "second"
    assert len(cluster.created) == 2


def test_a_later_try_outside_a_pipeline_finds_the_job_of_the_first_one(cluster, tmp_path, monkeypatch):
    """Two jobs would write to the same directories after an outage of the API, and Ctrl-C would end neither."""
    monkeypatch.delenv("KFP_POD_NAME")
    arguments, options = (
        _evaluation(tmp_path),
        dataclasses.replace(read_resources(_FOUR, stage="evaluate"), rayjob=RayJobOptions(image="i:1")),
    )
    tries = iter([True])

    def fail_once(rayjob: dict[str, Any]) -> None:
        if next(tries, False):
            cluster.faults["GET"] = [403]

    cluster.on_look = fail_once
    with pytest.raises(KubernetesError):
        run_on_rayjob(EVALUATE, arguments, options, pace=_PACE)
    _answered(cluster, "done")
    assert run_on_rayjob(EVALUATE, arguments, options, pace=_PACE) == "done"
    assert len(cluster.created) == 1


def test_a_step_that_returns_no_result_is_no_success(cluster, tmp_path):
    with pytest.raises(RayJobError, match=r"rayjob-answer\.json is not there"):
        run_on_rayjob(EVALUATE, _evaluation(tmp_path), _TWO, pace=_PACE)


_CALL = Call(step=TRAIN, arguments={}, key="k-0", directory_uri="s3://b/k-0", result_uri="s3://b/k-0/result.json")
_POD = {"containers": [{"name": "main", "image": "i:1"}]}


def test_workers_are_packed_into_pods_with_their_gpus():
    job = rayjob_for(_CALL, read_resources("rayjob-8x8gpu", stage="train"), launcher={"spec": _POD}, namespace="runs")
    assert (job.num_worker_pods, job.resources.workers_per_pod) == (8, 8)


def test_outside_a_pod_the_image_must_be_named():
    with pytest.raises(UserError, match=r"name one as rayjob\.image"):
        rayjob_for(_CALL, _TWO, launcher=None, namespace="runs")


def test_the_driver_runs_the_call_in_its_file(tmp_path, arguments, capsys):
    path = str(tmp_path / "call.json")
    arguments["experiment"] = "{}"
    storage.write_json(path, {"step": dataclasses.asdict(TRAIN), "arguments": arguments, "answer_uri": "", "ray_address": "auto"})
    assert driver.main([path]) == 1
    assert "UserError: " in capsys.readouterr().out


def test_the_driver_without_arguments_says_how_it_is_called(capsys):
    assert driver.main([]) == 2
    assert "usage" in capsys.readouterr().out


def test_the_resources_of_the_form_reach_the_cluster(cluster, arguments):
    _training_ends_well(cluster)
    cluster.script, cluster.queues = [_GOOD], {"training": {}}
    del arguments["resources"]
    run_step(TRAIN, arguments, '{"profile": "rayjob-2xcpu", "queue": "training", "gradient_checkpointing": true}')
    assert cluster.created[0]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    assert cluster.created[0]["spec"]["suspend"] is True
    call = storage.read_json(cluster.created[0]["spec"]["entrypoint"].split()[-1])
    assert (call["arguments"]["resources"]["num_workers"], call["arguments"]["resources"]["gradient_checkpointing"]) == (2, True)


def test_a_step_that_is_not_parallel_takes_one_worker_pod_of_its_stage(cluster, tmp_path):
    _answered(cluster, "statistics")
    cluster.script = [_GOOD]
    experiment = preset("digits-hybrid-cosine").to_json()
    arguments = {"experiment": experiment, "data_uri": "data", "data_digest": "d" * 64, "storage_root_uri": str(tmp_path)}
    assert run_step(REFERENCE, arguments, _FOUR) == "statistics"
    workers = cluster.created[0]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert workers["replicas"] == 1
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
