"""The train step's launcher pod: what it asks of the cluster, and what it takes for a result."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fake_kubernetes
import pytest
from fake_kubernetes import FakeKubernetes

from components import rayjob_driver
from components.ray_modes import train_in_mode
from components.rayjob import Pace, RayJobError
from components.rayjob_launcher import ARGUMENTS, RayJobOptions, rayjob_for, train_on_rayjob
from components.rayjob_spec import RayJobSpecError, rayjob_name
from training import storage
from training.config import ConfigError, Resources
from training.data.prepare import Options, prepare
from training.data.sources import digits

_PACE = Pace(poll_seconds=0.02, teardown_seconds=1)
_GOOD = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
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
            spec={"containers": [{"name": "wait", "image": "argoexec"}, {"name": "main", "image": "iddpm@sha256:abc"}]},
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
    run_uri = train_on_rayjob(arguments, RayJobOptions(), pace=_PACE)
    manifest = cluster.created[0]
    assert manifest["metadata"]["name"] == rayjob_name(Path(run_uri).name)
    assert manifest["metadata"]["ownerReferences"] == [{**_WORKFLOW, "controller": False, "blockOwnerDeletion": False}]
    head = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["image"] == "iddpm@sha256:abc"
    assert manifest["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")
    assert storage.read_json(storage.join(run_uri, ARGUMENTS)) == arguments
    assert manifest["spec"]["entrypoint"].endswith(f"components.rayjob_driver {run_uri}/{ARGUMENTS}")
    assert "trained to step 10" in capsys.readouterr().out


def test_a_run_that_is_done_asks_nothing_of_the_cluster(cluster, arguments):
    _training_ends_well(cluster)
    first = train_on_rayjob(arguments, RayJobOptions(), pace=_PACE)
    asked = len(cluster.requests)
    assert train_on_rayjob(arguments, RayJobOptions(), pace=_PACE) == first
    assert len(cluster.requests) == asked


def test_a_job_that_succeeds_without_a_result_is_no_success(cluster, arguments):
    with pytest.raises(RayJobError, match=r"result\.json is not there"):
        train_on_rayjob(arguments, RayJobOptions(), pace=_PACE)


def test_the_mlflow_run_that_kfp_made_reaches_the_driver_and_no_worker(cluster, arguments, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "kfp-run")
    _training_ends_well(cluster)
    train_on_rayjob(arguments, RayJobOptions(), pace=_PACE)
    ray = cluster.created[0]["spec"]["rayClusterSpec"]
    mine = {"name": "MLFLOW_RUN_ID", "value": "kfp-run"}
    assert mine in ray["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    assert mine not in ray["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["env"]


def _job_for(resources: Resources, **options: Any) -> Any:
    return rayjob_for("k-0", "s3://b/runs/k-0", resources, RayJobOptions(image="i:1", **options), launcher=None, namespace="runs")


def test_workers_are_packed_into_pods_with_their_gpus():
    job = _job_for(Resources(num_workers=8, num_gpus_per_worker=1), workers_per_pod=4, worker_cpu="16")
    assert (job.num_worker_pods, job.worker.num_gpus) == (2, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers_per_pod": 3}, "must divide"),
        ({"worker_cpu": "1"}, "scored beside training"),
        ({"worker_cpu": "1900m"}, "scored beside training"),
        ({"worker_memory": "16GB"}, "quantity"),
    ],
)
def test_options_that_do_not_go_together_are_refused_with_the_reason(options, words):
    with pytest.raises(RayJobSpecError, match=words):
        _job_for(Resources(num_workers=2), **options)


def test_outside_a_pod_the_image_must_be_named():
    with pytest.raises(RayJobSpecError, match="image"):
        rayjob_for("k-0", "s3://b/runs/k-0", Resources(), RayJobOptions(), launcher=None, namespace="runs")


def test_the_driver_trains_the_arguments_it_is_pointed_at(tmp_path, capsys):
    path = str(tmp_path / "arguments.json")
    storage.write_json(
        path,
        {
            "experiment_preset": "no-such-preset",
            "experiment_overrides": [],
            "data_uri": "x",
            "reference_uri": "",
            "storage_root_uri": "x",
            "tracking_experiment": "x",
            "resources": {},
        },
    )
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
        ({"ray_mode": "local", "rayjob_options": '{"worker_cpu": "4"}'}, "ray_mode=rayjob"),
        ({"ray_mode": "rayjob", "rayjob_options": "{"}, "not JSON"),
        ({"ray_mode": "rayjob", "rayjob_options": "[]"}, "JSON object"),
    ],
)
def test_a_mode_that_does_not_fit_its_arguments_is_refused(mode, words):
    with pytest.raises(ConfigError, match=words):
        train_in_mode({}, **mode)


def test_an_unknown_option_is_named_beside_the_known_ones():
    with pytest.raises(RayJobSpecError, match=r"worker_cpus.*worker_cpu,"):
        train_in_mode({}, ray_mode="rayjob", rayjob_options='{"worker_cpus": "4"}')


def test_the_mode_rayjob_reaches_the_cluster(cluster, arguments):
    _training_ends_well(cluster)
    # A pause of five seconds would follow the first look: the job is done by then.
    cluster.script = [_GOOD]
    run_uri = train_in_mode(arguments, ray_mode="rayjob", rayjob_options='{"worker_memory": "4Gi"}')
    assert storage.exists(storage.join(run_uri, "result.json"))
