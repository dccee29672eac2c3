"""The train step's launcher pod: what it asks of the cluster, and what it takes for a result."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fake_kubernetes
import pytest
from fake_kubernetes import FakeKubernetes

from components.cluster.rayjob_spec import RayJobSpecError, rayjob_name
from components.launch import rayjob_driver
from components.launch.call import CALL, Call
from components.launch.modes import run_in_mode
from components.launch.rayjob import Pace, RayJobError
from components.launch.rayjob_launcher import run_on_rayjob
from components.launch.rayjob_options import RayJobOptions, rayjob_for
from components.steps.registry import EVALUATE, TRAIN
from training import storage
from training.config.errors import UserError
from training.config.experiment import Resources
from training.data.preparation.prepare import Options, prepare
from training.data.sources.source import digits

_PACE = Pace(poll_seconds=0.02, teardown_seconds=1)
_GOOD = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
_GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
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
                "nodeSelector": {"pool": "gpu"},
                "tolerations": [_GPU_TAINT, {"key": "node.kubernetes.io/not-ready", "operator": "Exists"}],
                "imagePullSecrets": [{"name": "registry"}],
            },
        )
        fake.script = [{"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, _GOOD]
        yield fake


@pytest.fixture(scope="module")
def data_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("digits")
    prepare(digits("train"), str(directory / "train"), image_size=8, options=Options(resize="none"))
    return str(directory)


@pytest.fixture
def arguments(data_uri: str, tmp_path: Path) -> dict[str, Any]:
    return {
        "experiment_preset": "digits-hybrid-cosine",
        "experiment_overrides": ["optim.num_steps=10"],
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
    run_uri = run_on_rayjob(TRAIN, arguments, RayJobOptions(), pace=_PACE)
    manifest = cluster.created[0]
    assert manifest["metadata"]["name"] == rayjob_name(Path(run_uri).name)
    assert manifest["metadata"]["ownerReferences"] == [{**_WORKFLOW, "controller": False, "blockOwnerDeletion": False}]
    head = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["image"] == "iddpm@sha256:abc"
    assert manifest["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")
    assert storage.read_json(storage.join(run_uri, CALL)) == {"step": dataclasses.asdict(TRAIN), "arguments": arguments, "answer_uri": ""}
    assert manifest["spec"]["entrypoint"].endswith(f"components.launch.rayjob_driver {run_uri}/{CALL}")
    assert f"{Path(run_uri).name} is done" in capsys.readouterr().out


def test_a_run_that_is_done_asks_nothing_of_the_cluster(cluster, arguments):
    _training_ends_well(cluster)
    first = run_on_rayjob(TRAIN, arguments, RayJobOptions(), pace=_PACE)
    asked = len(cluster.requests)
    assert run_on_rayjob(TRAIN, arguments, RayJobOptions(), pace=_PACE) == first
    assert len(cluster.requests) == asked


def test_a_job_that_succeeds_without_a_result_is_no_success(cluster, arguments):
    with pytest.raises(RayJobError, match=r"result\.json is not there"):
        run_on_rayjob(TRAIN, arguments, RayJobOptions(), pace=_PACE)


def test_the_mlflow_run_that_kfp_made_reaches_the_driver_and_no_worker(cluster, arguments, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "kfp-run")
    _training_ends_well(cluster)
    run_on_rayjob(TRAIN, arguments, RayJobOptions(), pace=_PACE)
    ray = cluster.created[0]["spec"]["rayClusterSpec"]
    mine = {"name": "MLFLOW_RUN_ID", "value": "kfp-run"}
    assert mine in ray["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    assert mine not in ray["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["env"]


def test_the_nodes_and_the_pulling_that_kfp_gave_the_step_are_those_of_the_workers(cluster, arguments):
    _training_ends_well(cluster)
    run_on_rayjob(TRAIN, arguments, RayJobOptions(), pace=_PACE)
    ray = cluster.created[0]["spec"]["rayClusterSpec"]
    worker, head = (group["template"]["spec"] for group in (ray["workerGroupSpecs"][0], ray["headGroupSpec"]))
    assert (worker["nodeSelector"], worker["tolerations"]) == ({"pool": "gpu"}, [_GPU_TAINT])
    assert "nodeSelector" not in head
    for pod in (worker, head):
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["containers"][0]["imagePullPolicy"] == "Always"


def test_options_outrank_what_the_step_was_given(cluster, arguments):
    _training_ends_well(cluster)
    options = RayJobOptions(node_selector={"pool": "other"}, tolerations=[{"operator": "Exists"}], image="mine:1")
    run_on_rayjob(TRAIN, arguments, options, pace=_PACE)
    worker = cluster.created[0]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert (worker["nodeSelector"], worker["tolerations"]) == ({"pool": "other"}, [{"operator": "Exists"}])
    assert worker["containers"][0]["image"] == "mine:1"


def _evaluation(tmp_path: Path) -> dict[str, Any]:
    resources = {"num_workers": 4, "num_gpus_per_worker": 1}
    return {"run_uri": str(tmp_path / "run"), "data_uri": "d", "reference_uri": "r", "resources": resources}


def _answered(cluster: FakeKubernetes, answer: str) -> None:
    """Writes what the driver would have written, where its call says."""

    def write_answer(rayjob: dict[str, Any]) -> None:
        if rayjob.get("status") == _GOOD:
            call = storage.read_json(rayjob["spec"]["entrypoint"].split()[-1])
            storage.write_json(call["answer_uri"], {"returned": answer})

    cluster.on_look = write_answer


def test_an_evaluation_has_a_cluster_of_its_own_and_its_answer_comes_back(cluster, tmp_path):
    _answered(cluster, "s3://somewhere/final.json")
    options = RayJobOptions(worker_cpu="5", workers_per_pod=4)
    assert run_on_rayjob(EVALUATE, _evaluation(tmp_path), options, pace=_PACE) == "s3://somewhere/final.json"
    (manifest,) = cluster.created
    assert manifest["metadata"]["name"].startswith("iddpm-evaluate-")
    worker = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"
    call = storage.read_json(manifest["spec"]["entrypoint"].split()[-1])
    assert (call["step"]["name"], call["arguments"]) == ("evaluate", _evaluation(tmp_path))


def test_a_launcher_that_is_tried_again_finds_its_evaluation_and_another_run_of_the_pipeline_does_not(cluster, tmp_path):
    _answered(cluster, "first")
    arguments, options = _evaluation(tmp_path), RayJobOptions()
    run_on_rayjob(EVALUATE, arguments, options, pace=_PACE)
    assert run_on_rayjob(EVALUATE, arguments, options, pace=_PACE) == "first"
    assert len(cluster.created) == 1
    cluster.pods["launcher"]["metadata"]["ownerReferences"] = [{**_WORKFLOW, "uid": "workflow-2"}]
    _answered(cluster, "second")
    assert run_on_rayjob(EVALUATE, arguments, options, pace=_PACE) == "second"
    assert len(cluster.created) == 2


def test_a_step_that_answers_nothing_is_no_success(cluster, tmp_path):
    with pytest.raises(RayJobError, match=r"rayjob-answer\.json is not there"):
        run_on_rayjob(EVALUATE, _evaluation(tmp_path), RayJobOptions(), pace=_PACE)


_CALL = Call(step=TRAIN, arguments={}, key="k-0", directory_uri="s3://b/k-0", result_uri="s3://b/k-0/result.json")


def _job_for(resources: Resources, **options: Any) -> Any:
    return rayjob_for(_CALL, resources, RayJobOptions(**{"image": "i:1", **options}), launcher=None, namespace="runs")


def test_workers_are_packed_into_pods_with_their_gpus():
    job = _job_for(Resources(num_workers=8, num_gpus_per_worker=1), workers_per_pod=4, worker_cpu="16")
    assert (job.num_worker_pods, job.worker.num_gpus) == (2, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers_per_pod": 3}, "must divide"),
        ({"worker_cpu": "1"}, "goes on beside them"),
        ({"worker_cpu": "1900m"}, "goes on beside them"),
        ({"worker_memory": "16GB"}, "quantity"),
        ({"scratch_size": "50GB"}, "scratch_size '50GB' is not a quantity"),
        ({"gpu_resource": "gpu"}, "reads like nvidia.com/gpu"),
        ({"node_selector": {"gpu": True}}, "the label gpu is text"),
        ({"tolerations": ["nvidia.com/gpu"]}, "no toleration"),
        ({"tolerations": [{"key": "gpu", "opertor": "Exists"}]}, "no toleration"),
        ({"image_pull_policy": "always"}, "Always, IfNotPresent, Never"),
        ({"image_pull_secrets": [1]}, "image_pull_secrets: 1 is no name"),
        ({"service_account": "Ray Pods"}, "service_account: 'Ray Pods' is no name"),
        ({"queue_name": "The Queue"}, "queue_name: 'The Queue' is no name"),
        ({"active_deadline_seconds": 2**31}, "active_deadline_seconds must be 1 to"),
        ({"image": "not an image"}, "not an image reference"),
        ({"image": "iddpm:latest"}, "can change"),
    ],
)
def test_options_that_do_not_go_together_are_refused_with_the_reason(options, words):
    with pytest.raises(RayJobSpecError, match=words):
        _job_for(Resources(num_workers=2), **options)


def test_outside_a_pod_the_image_must_be_named():
    with pytest.raises(RayJobSpecError, match="image"):
        rayjob_for(_CALL, Resources(), RayJobOptions(), launcher=None, namespace="runs")


def test_the_driver_does_the_call_that_it_is_pointed_at(tmp_path, arguments, capsys):
    path = str(tmp_path / "call.json")
    arguments["experiment_preset"] = "no-such-preset"
    storage.write_json(path, {"step": dataclasses.asdict(TRAIN), "arguments": arguments, "answer_uri": ""})
    assert rayjob_driver.main([path]) == 1
    assert "no-such-preset" in capsys.readouterr().out


def test_the_driver_without_arguments_says_how_it_is_called(capsys):
    assert rayjob_driver.main([]) == 2
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ({"ray_mode": "cluster"}, "local, rayjob, address"),
        ({"ray_mode": "address"}, "ray_address"),
        ({"ray_mode": "local", "ray_address": "10.0.0.1:6379"}, "ray_address"),
        ({"ray_mode": "local", "rayjob_options": {"worker_cpu": "4"}}, "ray_mode=rayjob"),
    ],
)
def test_a_mode_that_does_not_fit_its_arguments_is_refused(mode, words):
    with pytest.raises(UserError, match=words):
        run_in_mode(TRAIN, {}, **mode)


def test_an_unknown_option_is_named_beside_the_known_ones():
    with pytest.raises(RayJobSpecError, match=r"worker_cpus.*worker_cpu,"):
        run_in_mode(TRAIN, {}, ray_mode="rayjob", rayjob_options={"worker_cpus": "4"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers_per_pod": "eight"}, "workers_per_pod must be a whole number, got 'eight'"),
        ({"workers_per_pod": 1.5}, "workers_per_pod must be a whole number"),
        ({"worker_cpu": ["4"]}, "worker_cpu must be text"),
        ({"node_selector": "gpu"}, "node_selector must be an object"),
        ({"tolerations": {"operator": "Exists"}}, "tolerations must be a list"),
    ],
)
def test_an_option_of_the_wrong_kind_is_refused(options, words):
    with pytest.raises(RayJobSpecError, match=words):
        RayJobOptions.from_dict(options)


def test_numbers_are_taken_as_a_form_gives_them():
    options = RayJobOptions.from_dict({"workers_per_pod": 8.0, "worker_cpu": 9, "head_cpu": 2.5, "worker_memory": 17179869184.0})
    assert (options.workers_per_pod, options.worker_cpu, options.head_cpu, options.worker_memory) == (8, "9", "2.5", "17179869184")


def test_the_queue_of_the_pipeline_holds_where_the_options_name_none(cluster, arguments):
    _training_ends_well(cluster)
    cluster.script = [_GOOD]
    run_in_mode(TRAIN, arguments, ray_mode="rayjob", ray_queue="training")
    assert cluster.created[0]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    assert cluster.created[0]["spec"]["suspend"] is True


def test_the_mode_rayjob_reaches_the_cluster(cluster, arguments):
    _training_ends_well(cluster)
    # A pause of five seconds would follow the first look: the job is done by then.
    cluster.script = [_GOOD]
    run_uri = run_in_mode(TRAIN, arguments, ray_mode="rayjob", rayjob_options={"worker_memory": "4Gi"})
    assert storage.exists(storage.join(run_uri, "result.json"))
