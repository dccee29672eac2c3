"""`iddpm doctor`: against a small Kubernetes API, a KFP API and an MLflow over HTTP, and a real S3."""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fake_kfp
import fake_kubernetes
import pytest
import yaml
from fake_cluster import FakeCluster, deployment, listed, manifests, node, operator, plugin, recorded_dry_run, secret, whole
from fake_kfp import FakeKfp
from fake_kubernetes import NAMESPACE

from components.cluster.cluster_api import ClusterApi
from components.container.image import BASE_IMAGE
from pipelines.cli import main as cli
from pipelines.client.arguments import compiled_pipeline
from pipelines.compile import PIPELINES
from pipelines.doctor import image as doctor_image
from pipelines.doctor.cluster import RIGHTS
from pipelines.doctor.examine import CHECKS
from pipelines.doctor.findings import FAILURE, OK, WARNING, Finding
from pipelines.doctor.image import check_image
from pipelines.doctor.pod_environment import check_sources, find_sources
from pipelines.doctor.pods import restricted_pod
from pipelines.doctor.services import check_bucket, check_mlflow
from pipelines.services.services import Services
from training import storage

Doctor = Callable[..., "tuple[int, dict[str, tuple[str, str]]]"]
# -- the services ------------------------------------------------------------------------------------------------------


@dataclass
class FakeMlflow:
    """An MLflow that knows its name and, where it has one, its password."""

    url: str = ""
    allowed_host: str = ""
    allowed_origin: str = ""
    authorization: str = ""
    page: str = ""
    files_status: int = 200


@pytest.fixture
def mlflow() -> Iterator[FakeMlflow]:
    fake = FakeMlflow()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, said = 200, json.dumps({"experiments": []})
            if self.path == "/version":
                said = "3.17.2"
            elif fake.allowed_host and self.headers["Host"] not in fake.allowed_host.split(","):
                status, said = 403, "Invalid Host header - possible DNS rebinding attack detected"
            elif fake.authorization and self.headers.get("Authorization") != fake.authorization:
                status, said = 401, "You are not authenticated."
            elif fake.page:
                said = fake.page
            elif "/mlflow-artifacts/" in self.path:
                status = fake.files_status
            self.reply(status, said)

        def do_POST(self) -> None:
            json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            refused = self.headers["Host"] in fake.allowed_host.split(",") and self.headers["Origin"] != fake.allowed_origin
            if refused:
                self.reply(403, "Cross-origin request blocked")
            else:
                self.do_GET()

        def reply(self, status: int, said: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(said.encode())

        def log_message(self, format: str, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield fake
    server.shutdown()
    server.server_close()


@pytest.fixture
def kfp() -> Iterator[FakeKfp]:
    with fake_kfp.serve() as fake:
        yield fake


@pytest.fixture
def cluster(tmp_path: Path, mlflow: FakeMlflow, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    monkeypatch.setattr(fake_kubernetes, "FakeKubernetes", FakeCluster)
    with fake_kubernetes.serve(tmp_path) as (fake, kubeconfig):
        assert isinstance(fake, FakeCluster)
        fake.objects = whole(mlflow.url, "http://127.0.0.1:9")
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield fake


@pytest.fixture
def doctor(kfp: FakeKfp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Doctor:
    """Runs the command; gives its exit status, and by subject what was found: its state, and its words with the remedy."""
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kfp.url)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KFP_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str) -> tuple[int, dict[str, tuple[str, str]]]:
        monkeypatch.setattr(sys, "argv", ["iddpm", "doctor", "--kfp-namespace", NAMESPACE, "--json", "--bucket", "none", *words])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        assert "not-to-be-shown" not in said.out + said.err
        told = json.loads(said.out)
        assert told["ok"] == (status == 0)
        return status, {each["subject"]: (each["state"], f"{each['message']} -> {each['remedy']}") for each in told["findings"]}

    return run


# -- a cluster ---------------------------------------------------------------------------------------------------------


def test_all_is_seen_of_a_cluster_where_nothing_is_missing_but_the_bucket(cluster: FakeCluster, doctor: Doctor) -> None:
    status, found = doctor("--bucket", "s3://iddpm")
    assert status == 1
    assert {subject for subject, (state, _) in found.items() if state != OK} == {"bucket s3://iddpm"}
    assert found["kubernetes"][1].startswith("v1.31.4 at http://127.0.0.1:")
    assert found["time zone"][1].startswith("KFP reads cron expressions in Europe/Berlin")
    assert found["kuberay-operator"][1].startswith("operator:v1.7.0 is up in namespace kuberay-system")
    assert found["gpus"][1].startswith("8 nvidia.com/gpu on 1 of 1 ready node(s) (NVIDIA-H100), at most 8 on one")
    assert found["kfp"][1].startswith("2.17.0 at ")
    assert found["mlflow"][1].startswith("3.17.2 at ")
    assert "no answer from S3 at http://127.0.0.1:9" in found["bucket s3://iddpm"][1]


LAUNCHER = "s3: {default: {credentials: {fromEnv: false, secretRef: {secretName: another}}}}"


def waiting_pod(condition: str, reason: str, message: str) -> dict[str, Any]:
    """The status of a pod that has the reason of one condition, and runs otherwise."""
    unmet = {"type": condition, "status": "False", "reason": reason, "message": message}
    running = [{"name": "mlflow", "ready": False, "state": {"running": {}}}] if condition == "Ready" else []
    return {"phase": "Pending", "conditions": [unmet], "containerStatuses": running}


CORE, APPS = f"/api/v1/namespaces/{NAMESPACE}", f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"


@pytest.mark.parametrize(
    ("path", "becomes", "subject", "state", "said"),
    [
        ("/version", {"major": "1", "minor": "27", "gitVersion": "v1.27.0"}, "kubernetes", WARNING, "upgrade it to 1.30 or later"),
        ("/apis/argoproj.io/v1alpha1", "gone", "api argoproj.io/v1alpha1", FAILURE, "install Kubeflow Pipelines"),
        ("/apis/argoproj.io/v1alpha1", None, "api argoproj.io/v1alpha1", WARNING, "cannot be seen: it is forbidden (403) -> ask an admin"),
        ("/apis/ray.io/v1", "gone", "api ray.io/v1", WARNING, "install KubeRay's operator"),
        ("/apis/ray.io/v1", None, "api ray.io/v1", WARNING, "cannot be seen: it is forbidden (403) -> ask an administrator"),
        ("/apis/kueue.x-k8s.io", None, "kueue", WARNING, "cannot be seen: it is forbidden (403) -> ask an administrator"),
        (
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/rayjobs.ray.io",
            {"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": {}}}]}},
            "api ray.io/v1",
            FAILURE,
            "older than KubeRay 1.7",
        ),
        (
            "/api/v1/pods",
            {"items": []},
            "kuberay-operator",
            WARNING,
            "runs in no namespace -> RayJobs would wait for ever: install it",
        ),
        ("/api/v1/pods", operator(ready="False"), "kuberay-operator", FAILURE, "operator:v1.7.0 is not up in namespace kuberay-system"),
        ("/api/v1/pods", None, "kuberay-operator", WARNING, "cannot be seen: it is forbidden (403) -> ask an administrator"),
        (f"{APPS}/ml-pipeline", "gone", "ml-pipeline", FAILURE, "give its namespace by --kfp-namespace"),
        (f"{APPS}/ml-pipeline", deployment("x/kfp-api-server:2.16.1"), "ml-pipeline", WARNING, "2.17 is the tested version"),
        (
            f"{APPS}/workflow-controller",
            deployment("x/workflow-controller:v4.0.8", available=0),
            "workflow-controller",
            FAILURE,
            "is not up",
        ),
        (
            f"{APPS}/metadata-grpc-deployment",
            deployment("x/ml_metadata_store_server:1.14.0", available=0),
            "metadata-grpc-deployment",
            FAILURE,
            "ml_metadata_store_server:1.14.0 is not up; without it KFP starts no step",
        ),
        (
            f"{APPS}/ml-pipeline-persistenceagent",
            "gone",
            "ml-pipeline-persistenceagent",
            FAILURE,
            "without it KFP never shows how far a run is",
        ),
        (f"{CORE}/configmaps/pipeline-install-config", "gone", "time zone", WARNING, "assume UTC"),
        (f"{CORE}/serviceaccounts/pipeline-runner", "gone", "service account pipeline-runner", FAILURE, "default-editor"),
        (f"{CORE}/serviceaccounts/iddpm-ray", "gone", "service account iddpm-ray", WARNING, "RayJobs need it"),
        (f"{CORE}/secrets/iddpm-s3", secret(AWS_ACCESS_KEY_ID="key"), "secret iddpm-s3", FAILURE, "has no AWS_SECRET_ACCESS_KEY"),
        (
            f"{CORE}/secrets/iddpm-s3",
            secret(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="not-to-be-shown\n"),
            "secret iddpm-s3",
            FAILURE,
            "has white space around AWS_SECRET_ACCESS_KEY",
        ),
        (
            f"{CORE}/secrets/iddpm-s3",
            secret(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="not-to-be-shown", AWS_SESSION_TOKEN="not-to-be-shown\n"),
            "secret iddpm-s3",
            FAILURE,
            "has white space around AWS_SESSION_TOKEN",
        ),
        (f"{CORE}/secrets/iddpm-s3", None, "secret iddpm-s3", WARNING, "cannot be read: it is forbidden (403)"),
        (
            f"{CORE}/secrets/iddpm-mlflow",
            secret(MLFLOW_TRACKING_USERNAME="me"),
            "secret iddpm-mlflow",
            FAILURE,
            "has no MLFLOW_TRACKING_PASSWORD",
        ),
        (f"{CORE}/secrets/iddpm-webhook", secret(url="https://hooks.example", format="slack"), "secret iddpm-webhook", OK, "has url"),
        (f"{CORE}/secrets/iddpm-webhook", secret(format="slack"), "secret iddpm-webhook", FAILURE, "has no url"),
        (f"{CORE}/configmaps/iddpm-services", {"data": {}}, "config map iddpm-services", FAILURE, "has no AWS_ENDPOINT_URL"),
        (
            "/api/v1/nodes",
            {"items": [node(), node(gpus=4, ready="False")]},
            "gpus",
            WARNING,
            "none of 1 ready node(s) offers nvidia.com/gpu",
        ),
        *(
            ("/api/v1/nodes", {"items": [node(gpus=2, gpu_type=name)]}, subject, OK, f"2 {name} on 1 of 1 ready node(s)")
            for name, subject in (
                ("nvidia.com/gpu", "gpus"),
                ("nvidia.com/mig-1g.10gb", "gpus nvidia.com/mig-1g.10gb"),
                ("amd.com/gpu", "gpus amd.com/gpu"),
                ("nvidia.com/gpu.shared", "gpus nvidia.com/gpu.shared"),
            )
        ),
        ("/api/v1/nodes", {"items": [node(images=("other:1",))]}, f"image {BASE_IMAGE}", FAILURE, "kind load docker-image"),
        ("/api/v1/nodes", None, "gpus", WARNING, "cannot be seen"),
        (
            "/apis/kueue.x-k8s.io",
            {"preferredVersion": {"version": "v1beta1"}},
            "kueue",
            OK,
            "none; queue must stay empty",
        ),
        ("/api/v1/nodes", {"items": [node(cpu="1")]}, "room for train", FAILURE, "even if these were empty -> ask for less"),
        (
            "/api/v1/pods",
            operator(requests={"cpu": "15500m"}),
            "room for train",
            WARNING,
            "wait until other pods end",
        ),
        (
            "/api/v1/pods",
            operator(requests={"cpu": "8"}, sidecar={"cpu": "7500m", "memory": "1e9"}),
            "room for train",
            WARNING,
            "wait until other pods end",
        ),
        ("/apis/apps/v1/daemonsets", listed(), "network plugin", WARNING, "-> is there a plugin that enforces them"),
        (
            "/api/v1/namespaces/iddpm/persistentvolumeclaims",
            listed("data-mlflow-postgres-0", status={"phase": "Pending"}),
            "storage class",
            FAILURE,
            "claims wait for a volume: data-mlflow-postgres-0",
        ),
        (
            "/api/v1/namespaces/iddpm/pods",
            listed("mlflow-7", status={"initContainerStatuses": [{"name": "upgrade", "state": {"waiting": {"reason": "ErrImagePull"}}}]}),
            "pods of the services",
            FAILURE,
            "mlflow-7 (upgrade: ErrImagePull)",
        ),
        (
            "/api/v1/namespaces/iddpm/pods",
            listed("mlflow-7", status=waiting_pod("PodScheduled", "Unschedulable", "0/1 nodes are available: 1 Insufficient memory.")),
            "pods of the services",
            FAILURE,
            "mlflow-7 (Unschedulable: 0/1 nodes are available: 1 Insufficient memory.) -> see 'kubectl -n iddpm describe pod'",
        ),
        (
            "/api/v1/namespaces/iddpm/pods",
            listed("mlflow-7", status=waiting_pod("Ready", "ContainersNotReady", "containers with unready status: [mlflow]")),
            "pods of the services",
            FAILURE,
            "mlflow-7 (ContainersNotReady: containers with unready status: [mlflow])",
        ),
        ("/api/v1/namespaces/iddpm/pods", {"items": []}, "pods of the services", WARNING, "there are none in namespace iddpm"),
        (
            "/api/v1/namespaces/iddpm",
            {"metadata": {"labels": {"istio-injection": "enabled"}}},
            "namespace iddpm",
            WARNING,
            "Istio's sidecars",
        ),
        (
            "/api/v1/namespaces/iddpm",
            {"metadata": {"labels": {"istio.io/rev": "stable"}}},
            "namespace iddpm",
            WARNING,
            "Istio's sidecars",
        ),
        (
            f"{CORE}/configmaps/workflow-controller-configmap",
            {"data": {"executor": "imagePullPolicy: IfNotPresent"}},  # as upstream leaves it
            "retries of steps",
            WARNING,
            "a run may end for good when a step's pod is drained or out of memory -> apply k8s/overlays/kfp, or add",
        ),
        (
            f"{CORE}/configmaps/ml-pipeline-server-config-5h",
            plugin(inject=True),
            "mlflow plugin",
            WARNING,
            "while MLflow is away no step starts",
        ),
        (
            f"{CORE}/configmaps/ml-pipeline-server-config-5h",
            plugin(endpoint="http://mlflow.iddpm.svc:5000", defaultExperimentName="iddpm"),
            "mlflow plugin",
            WARNING,
            "is on; defaultExperimentName is iddpm: its runs of pipelines and steps stand among the trainings; KFP's links to MLflow begin "
            "with http://mlflow.iddpm.svc:5000, which no browser outside opens: set settings.mlflowBaseURL",
        ),
        (
            f"{CORE}/configmaps/ml-pipeline-server-config-5h",
            plugin(endpoint="http://me:s3cr3t@mlflow.example"),
            "mlflow plugin",
            WARNING,
            "is on; KFP's links to MLflow show a password: remove it from the address",
        ),
        (
            f"{APPS}/ml-pipeline",
            deployment("x/kfp-api-server:2.17.0", driver="mirror/kfp-driver:2.16.0"),
            "kfp driver and launcher",
            WARNING,
            "mirror/kfp-driver:2.16.0 are of another release than the server (2.17.0)",
        ),
        (
            f"{APPS}/ml-pipeline",
            deployment("x/kfp-api-server:2.17.0", driver=f"mirror/kfp-driver@sha256:{'a' * 64}"),
            "kfp driver and launcher",
            OK,
            "mirror/kfp-driver@sha256:",
        ),
        (
            f"{CORE}/configmaps/kfp-launcher",
            {"data": {"providers": LAUNCHER}},
            "config map kfp-launcher",
            FAILURE,
            f"takes the keys of artifacts from Secret another, which is not in namespace {NAMESPACE}: steps of a run would fail -> create",
        ),
        (f"{CORE}/secrets/iddpm-s3", "gone", "s3 credentials", WARNING, "pods of iddpm-ray, pipeline-runner get no identity"),
        (
            "/apis/ray.io/v1/rayjobs",
            listed("iddpm-digits-1", "iddpm-digits-1"),
            "rayjobs",
            WARNING,
            "in more than one namespace: iddpm-digits-1",
        ),
    ],
)
def test_what_is_wrong_is_found_with_its_remedy(
    cluster: FakeCluster, doctor: Doctor, path: str, becomes: Any, subject: str, state: str, said: str
) -> None:
    if becomes == "gone":
        del cluster.objects[path]
    else:
        cluster.objects[path] = becomes
    _, found = doctor()
    assert found[subject][0] == state
    assert said in found[subject][1]


@pytest.mark.parametrize(
    "more",
    [
        {"metadata": {"name": "mlflow-backup-1", "ownerReferences": [{"kind": "Job"}]}},
        {"metadata": {"name": "mlflow-7", "deletionTimestamp": "2026-11-30T12:00:00Z"}},
    ],
)
def test_the_pod_of_a_job_and_one_that_is_going_need_not_be_ready(cluster: FakeCluster, doctor: Doctor, more: dict[str, Any]) -> None:
    pod = {"status": waiting_pod("Ready", "ContainersNotReady", "containers with unready status: [dump]"), **more}
    cluster.objects["/api/v1/namespaces/iddpm/pods"] = {"items": [pod]}
    assert doctor()[1]["pods of the services"][0] == OK


def test_without_keys_kfps_launcher_must_name_no_secret(cluster: FakeCluster, doctor: Doctor) -> None:
    """So it would be if the component keyless-s3 stood before the one of KFP."""
    cluster.objects[f"{CORE}/configmaps/kfp-launcher"] = {"data": {"providers": LAUNCHER.replace("another", "iddpm-s3")}}
    assert "config map kfp-launcher" not in doctor()[1], "the Secret is there"
    del cluster.objects[f"{CORE}/secrets/iddpm-s3"]
    state, words = doctor()[1]["config map kfp-launcher"]
    assert (state, "without keys list components/keyless-s3 in k8s/overlays/kfp after components/kfp" in words) == (FAILURE, True)
    cluster.objects[f"{CORE}/configmaps/kfp-launcher"] = {"data": {"providers": "s3: {default: {credentials: {fromEnv: true}}}"}}
    assert "config map kfp-launcher" not in doctor()[1]


def test_an_image_that_comes_from_a_config_map_is_left_out(cluster: FakeCluster, doctor: Doctor) -> None:
    server = deployment("x/kfp-api-server:2.17.0", driver="mirror/kfp-driver:2.17.0")
    (container,) = server["spec"]["template"]["spec"]["containers"]
    container["env"].append({"name": "V2_LAUNCHER_IMAGE", "valueFrom": {"configMapKeyRef": {"name": "images", "key": "launcher"}}})
    cluster.objects[f"{APPS}/ml-pipeline"] = server
    state, words = doctor()[1]["kfp driver and launcher"]
    assert (state, words) == (OK, "mirror/kfp-driver:2.17.0 -> ")


def test_a_check_that_ends_with_an_error_is_a_failure_and_the_others_are_made(cluster: FakeCluster, doctor: Doctor) -> None:
    cluster.objects["/api/v1/namespaces/iddpm/pods"] = {"items": ["odd"]}
    cluster.objects[f"{CORE}/secrets/iddpm-s3"] = {"data": {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "not-to-be-shown"}}
    status, found = doctor()
    assert status == 1
    for name, error in (("pods of the services", "AttributeError: "), ("environment of pods", "Error: Invalid base64")):
        state, words = found[name]
        assert (state, f"could not be checked: {error}" in words, "report it" in words) == (FAILURE, True, True), name
    assert {"kfp", "bucket none", "mlflow", f"image {BASE_IMAGE}"} <= found.keys()


def test_a_runs_own_resources_are_placed_on_the_nodes(cluster: FakeCluster, doctor: Doctor) -> None:
    assert doctor("--resources", "train=1xgpu", "--resources", "train.memory=16Gi")[1]["room for train"][0] == OK
    found = doctor("--resources", "train=rayjob-8xgpu", "--resources", "train.queue=team")[1]
    assert found["room for train"] == (
        FAILURE,
        "train: 5 pod(s), of at most 64 cores, 512Gi, 8 nvidia.com/gpu, do not fit on 1 ready node(s), even if these were empty"
        " -> ask for less (--resources), tolerate the nodes' taints, or add nodes; an autoscaler adds some by itself if it has such nodes",
    )
    assert found["kueue"][0] == FAILURE
    cluster.objects["/apis/karpenter.sh"] = {}
    assert doctor("--resources", "train=rayjob-8xgpu")[1]["room for train"][0] == WARNING


def test_queues_that_may_not_be_listed_are_not_called_missing(cluster: FakeCluster, doctor: Doctor) -> None:
    """The account of runs may read a queue by its name, and not list them."""
    cluster.objects["/apis/kueue.x-k8s.io"] = {"preferredVersion": {"version": "v1beta2"}}
    cluster.objects[f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{NAMESPACE}/localqueues"] = None
    state, said = doctor("--resources", "train=rayjob-1xgpu", "--resources", "train.queue=team")[1]["kueue"]
    assert state == WARNING
    assert said == f"its local queues in {NAMESPACE} cannot be seen: it is forbidden (403) -> ask an administrator of the cluster"


def inactive_queue(reason: str, message: str) -> dict[str, Any]:
    """A local queue as Kueue's documentation shows one."""
    condition = {"type": "Active", "status": "False", "reason": reason, "message": message, "lastTransitionTime": "2024-05-03T18:57:32Z"}
    return listed("team", status={"admittedWorkloads": 0, "conditions": [condition]})


@pytest.mark.parametrize(
    ("reason", "message"),
    [("ClusterQueueIsInactive", "Can't submit new workloads to clusterQueue"), ("Stopped", "LocalQueue is stopped")],
)
def test_a_queue_that_is_not_active_is_named_with_kueues_words(cluster: FakeCluster, doctor: Doctor, reason: str, message: str) -> None:
    cluster.objects["/apis/kueue.x-k8s.io"] = {"preferredVersion": {"version": "v1beta2"}}
    path = f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{NAMESPACE}/localqueues"
    cluster.objects[path] = inactive_queue(reason, message)
    said = f"local queues in {NAMESPACE}: team; team is not active ({reason}: {message}) -> a run would wait there for ever"
    state, words = doctor("--resources", "train=rayjob-1xgpu", "--resources", "train.queue=team")[1]["kueue"]
    assert (state, words.startswith(said)) == (FAILURE, True)
    assert doctor()[1]["kueue"] == (WARNING, words), "no run of these resources waits in it"
    cluster.objects[path]["items"][0]["status"]["conditions"][0]["status"] = "True"
    assert doctor()[1]["kueue"][0] == OK


@pytest.mark.parametrize(
    ("defaults", "state"),
    [
        ("spec: {templateDefaults: {retryStrategy: {limit: '2', retryPolicy: OnError}}}", WARNING),
        ("spec: {templateDefaults: {retryStrategy: {limit: '2'}}}", WARNING),
        ("spec: {templateDefaults: {retryStrategy: {expression: lastRetry.exitCode == '143'}}}", OK),
        ("spec: {", WARNING),
    ],
)
def test_steps_are_tried_again_if_argo_always_asks(cluster: FakeCluster, doctor: Doctor, defaults: str, state: str) -> None:
    cluster.objects[f"{CORE}/configmaps/workflow-controller-configmap"] = {"data": {"workflowDefaults": defaults}}
    assert doctor()[1]["retries of steps"][0] == state


_POLICIES = "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies"


@pytest.fixture
def policies(cluster: FakeCluster) -> FakeCluster:
    """The cluster with our NetworkPolicies, and an S3 outside at another port than they let out."""
    cluster.objects[f"{CORE}/configmaps/iddpm-services"]["data"]["AWS_ENDPOINT_URL"] = "https://s3.example.com:9000"
    cluster.objects[_POLICIES.format(NAMESPACE)] = {"items": manifests("base/runs/network.yaml")}
    services = manifests("base/services/network.yaml") + manifests("components/cluster/network.yaml")
    cluster.objects[_POLICIES.format("iddpm")] = {"items": services}
    return cluster


def _ports_of_s3(doctor: Doctor) -> dict[str, tuple[str, str]]:
    return {subject.removeprefix("port of s3 for "): each for subject, each in doctor()[1].items() if subject.startswith("port of s3")}


def test_a_port_of_s3_that_no_policy_lets_out_is_named(policies: FakeCluster, doctor: Doctor) -> None:
    said = "no network policy of namespace {} admits 9000 of s3.example.com: where policies are enforced S3 is out of reach"
    add = "add the port to the egress in {}, and apply your overlay again"
    mlflow = {"MLflow": (WARNING, f"{said.format('iddpm')} -> {add.format('k8s/components/cluster/network.yaml')}")}
    ray = {"Ray's pods": (WARNING, f"{said.format(NAMESPACE)} -> {add.format('k8s/base/runs/network.yaml')}")}
    assert _ports_of_s3(doctor) == ray | mlflow
    (of_runs,) = policies.objects[_POLICIES.format(NAMESPACE)]["items"]
    of_runs["spec"]["egress"].append({"ports": [{"port": 8000, "endPort": 9000}], "to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]})
    ray = {"Ray's pods": (OK, "network policies admit 9000 -> ")}
    assert _ports_of_s3(doctor) == ray | mlflow
    policies.objects[_POLICIES.format("iddpm")] = None
    assert _ports_of_s3(doctor) == ray, "policies that may not be read are left out"
    of_runs["spec"]["podSelector"] = {
        "matchExpressions": [{"key": "app.kubernetes.io/managed-by", "operator": "NotIn", "values": ["iddpm"]}]
    }
    assert _ports_of_s3(doctor) == {}, "it chooses other pods"


@pytest.mark.parametrize(
    ("endpoint", "states"),
    [("https://s3.us-east-1.amazonaws.com", {OK}), ("http://s3.example.com", {WARNING}), ("http://s3.iddpm.svc:8333", set())],
)
def test_the_scheme_gives_the_port_of_s3_and_one_in_the_cluster_is_left_out(
    policies: FakeCluster, doctor: Doctor, endpoint: str, states: set[str]
) -> None:
    policies.objects[f"{CORE}/configmaps/iddpm-services"]["data"]["AWS_ENDPOINT_URL"] = endpoint
    assert {state for state, _ in _ports_of_s3(doctor).values()} == states


def _istio_of_the_guide() -> list[dict[str, Any]]:
    text = (Path(__file__).parents[3] / "k8s/README.md").read_text()
    block = text.partition("kubectl apply -f - <<'END'\n")[2].partition("    END\n")[0]
    return [
        {**each, "metadata": {**each["metadata"], "namespace": NAMESPACE}} for each in yaml.safe_load_all(block.replace("\n    ", "\n")[4:])
    ]


@pytest.mark.parametrize("where", [NAMESPACE, "istio-system"])
def test_strict_mutual_tls_must_let_steps_in_as_the_guide_says(cluster: FakeCluster, doctor: Doctor, where: str) -> None:
    path = "/apis/security.istio.io/v1/peerauthentications"
    strict = {"metadata": {"name": "default", "namespace": where}, "spec": {"mtls": {"mode": "STRICT"}}}
    cluster.objects[path] = {"items": [strict]}
    assert "istio" not in doctor()[1], "KFP has no sidecars"
    cluster.objects[f"/api/v1/namespaces/{NAMESPACE}"] = {"metadata": {"labels": {"istio.io/rev": "stable"}}}
    state, words = doctor()[1]["istio"]
    ports = "8887, 8888 of ml-pipeline; 8080 of metadata-grpc-server; 8333 of seaweedfs"
    assert (state, f"at {ports}: steps have no sidecar" in words, "-> apply the three" in words) == (WARNING, True, True)
    guide = _istio_of_the_guide()
    assert len(guide) == 3
    cluster.objects[path] = {"items": [strict, *guide]}
    assert "istio" not in doctor()[1]
    cluster.objects[path] = {"items": [strict, *guide[:2]]}
    assert "at 8333 of seaweedfs: " in doctor()[1]["istio"][1]
    cluster.objects[path] = {"items": [{**strict, "metadata": {"name": "default", "namespace": "another"}}]}
    assert "istio" not in doctor()[1]
    cluster.objects[path] = None
    assert "istio" not in doctor()[1], "it may not be read"


def test_a_tainted_node_takes_only_pods_that_tolerate_it(cluster: FakeCluster, doctor: Doctor) -> None:
    tainted = node(gpus=8)
    tainted["metadata"]["name"] = "tainted"
    tainted["spec"]["taints"] = [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]
    cluster.objects["/api/v1/nodes"] = {"items": [node(cpu="1"), tainted]}
    words = ["--resources", "train=1xgpu", "--resources", "train.memory=16Gi"]
    state, said = doctor(*words)[1]["room for train"]
    assert state == WARNING  # the admission plugin of some platforms adds the toleration of this taint alone
    assert "fit only nodes with the taint nvidia.com/gpu, which they do not tolerate -> give tolerations (--resources), unless" in said
    tainted["spec"]["taints"].append({"key": "team", "value": "vision", "effect": "NoSchedule"})
    assert doctor(*words)[1]["room for train"][0] == FAILURE
    tainted["spec"]["taints"].pop()
    tolerations = 'train.tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]'
    assert doctor(*words, "--resources", tolerations)[1]["room for train"][0] == OK


@pytest.fixture
def keyless(cluster: FakeCluster) -> FakeCluster:
    """The cluster as k8s/components/keyless-s3 leaves it: a role on each account, a token service, no Secret."""
    del cluster.objects[f"{CORE}/secrets/iddpm-s3"]
    for name in ("pipeline-runner", "iddpm-ray", "iddpm-reaper"):
        cluster.objects[f"{CORE}/serviceaccounts/{name}"] = {"metadata": {"annotations": {"eks.amazonaws.com/role-arn": "arn:x"}}}
        cluster.dry_runs[name] = "irsa"
    cluster.objects[f"{CORE}/configmaps/iddpm-services"]["data"]["AWS_ENDPOINT_URL_STS"] = "https://sts.us-east-1.amazonaws.com"
    return cluster


def test_a_platforms_identity_takes_the_place_of_keys(keyless: FakeCluster, doctor: Doctor) -> None:
    findings = doctor()[1]
    assert (findings["s3 credentials"][0], findings["secret iddpm-s3"][0]) == (OK, OK)
    assert keyless.created == []
    del keyless.objects[f"{CORE}/configmaps/iddpm-services"]["data"]["AWS_ENDPOINT_URL_STS"]
    state, words = doctor()[1]["s3 credentials"]
    assert state == FAILURE
    assert "has no AWS_ENDPOINT_URL_STS" in words
    assert "keyless-s3" in words


def test_eks_pod_identity_needs_no_annotation(keyless: FakeCluster, doctor: Doctor) -> None:
    for name in keyless.dry_runs:
        keyless.objects[f"{CORE}/serviceaccounts/{name}"] = {}
        keyless.dry_runs[name] = "pod-identity"
    assert doctor()[1]["s3 credentials"][0] == OK


@pytest.mark.parametrize("recording", ["no-webhook", "webhook-away"])
def test_an_account_whose_role_no_webhook_injects_is_named(keyless: FakeCluster, doctor: Doctor, recording: str) -> None:
    keyless.dry_runs["iddpm-ray"] = recording
    state, words = doctor()[1]["s3 credentials"]
    assert state == FAILURE
    assert words.startswith("pods of iddpm-ray get no identity, although a role is annotated")
    assert "install Amazon's pod identity webhook" in words
    assert keyless.created == []


def test_an_account_without_a_role_gets_no_identity_although_the_webhook_is_there(keyless: FakeCluster, doctor: Doctor) -> None:
    keyless.objects[f"{CORE}/serviceaccounts/iddpm-reaper"] = {}
    keyless.dry_runs["iddpm-reaper"] = "bare-account"
    state, words = doctor()[1]["s3 credentials"]
    assert state == WARNING
    assert "pods of iddpm-reaper get no identity -> create the Secret" in words


@pytest.mark.parametrize(
    ("recording", "reason", "remedy"),
    [
        ("no-right", 'cannot create resource "pods" in API group ""', "ask an administrator of the cluster for the right to create pods"),
        ("pod-security", 'violates PodSecurity "restricted:latest"', "may be refused too"),
        ("policy", "ValidatingAdmissionPolicy 'image-registry'", "may be refused too"),
        ("webhook-away-and-required", "failed calling webhook", "may be refused too"),
    ],
)
def test_a_refused_dry_run_is_said_as_what_it_is_and_not_as_a_missing_identity(
    keyless: FakeCluster, doctor: Doctor, recording: str, reason: str, remedy: str
) -> None:
    keyless.dry_runs = dict.fromkeys(keyless.dry_runs, recording)
    state, words = doctor()[1]["s3 credentials"]
    assert state == WARNING
    assert words.startswith("there are no keys, and whether pods of iddpm-ray, iddpm-reaper, pipeline-runner get an identity can't be seen")
    assert reason in words
    assert remedy in words


@pytest.mark.parametrize(
    ("recording", "account"), [("irsa", "pipeline-runner"), ("pod-identity", "iddpm-ray"), ("no-right", "pipeline-runner")]
)
def test_the_pod_of_the_recorded_dry_runs_is_the_one_that_is_sent(recording: str, account: str) -> None:
    assert recorded_dry_run(recording)["request"] == restricted_pod("iddpm-doctor", "iddpm-pipelines:0.1.0", account, seconds=60)


def test_a_users_namespace_must_be_admitted_by_mlflow(cluster: FakeCluster, doctor: Doctor) -> None:
    words = ("--kfp-namespace", "kubeflow", "--runs-namespace", NAMESPACE)
    assert doctor(*words)[1][f"namespace {NAMESPACE}"][0] == FAILURE
    cluster.objects[f"/api/v1/namespaces/{NAMESPACE}"] = None
    state, words_of_it = doctor(*words)[1][f"namespace {NAMESPACE}"]
    assert (state, "cannot be seen: it is forbidden (403)" in words_of_it) == (WARNING, True)
    cluster.objects[f"/api/v1/namespaces/{NAMESPACE}"] = {"metadata": {"labels": {"pipelines.kubeflow.org/enabled": "true"}}}
    assert doctor(*words)[1][f"namespace {NAMESPACE}"][0] == OK


def test_every_check_has_a_name_of_its_own() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_what_the_account_of_runs_may_not_do_is_named(cluster: FakeCluster, doctor: Doctor) -> None:
    cluster.denied = {"create rayjobs", "get pods/log"}
    state, words = doctor()[1]["rights of pipeline-runner"]
    assert state == FAILURE
    assert words.startswith("it may not create rayjobs, get pods/log -> the Role in k8s/base/runs grants it")
    assert {review["spec"]["user"] for review in cluster.reviews} == {f"system:serviceaccount:{NAMESPACE}:pipeline-runner"}


@pytest.mark.parametrize("account", ["pipeline-runner", "default-editor"])
def test_only_the_account_itself_asks_about_its_own_rights(cluster: FakeCluster, doctor: Doctor, account: str) -> None:
    """A notebook's pod has an account of its own."""
    cluster.caller = f"system:serviceaccount:{NAMESPACE}:pipeline-runner"
    doctor("--service-account", account)
    other = set() if account == "pipeline-runner" else {f"system:serviceaccount:{NAMESPACE}:default-editor"}
    assert {review["spec"]["user"] for review in cluster.reviews if "user" in review["spec"]} == other
    assert {review["kind"] for review in cluster.reviews} == {"SubjectAccessReview" if other else "SelfSubjectAccessReview"}


def test_who_may_not_ask_about_rights_is_told_who_may(cluster: FakeCluster, doctor: Doctor) -> None:
    cluster.denied = None
    state, words = doctor("--service-account", "default-editor")[1]["rights of default-editor"]
    assert state == WARNING
    assert "kubectl auth can-i" in words


def test_the_rights_that_are_looked_for_are_those_that_the_manifests_grant() -> None:
    documents = list(yaml.safe_load_all((Path(__file__).parents[3] / "k8s/base/runs/accounts.yaml").read_text()))
    (role,) = [each for each in documents if each["kind"] == "Role" and each["metadata"]["name"] == "iddpm-rayjobs"]
    granted = {(rule["apiGroups"][0], rule["resources"][0]): set(rule["verbs"]) for rule in role["rules"]}
    assert granted == {(group, resource): set(verbs) for group, resource, verbs in RIGHTS}


def test_the_bucket_is_tried_with_the_token_of_temporary_keys(cluster: FakeCluster) -> None:
    cluster.objects[f"{CORE}/secrets/iddpm-s3"] = secret(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="s", AWS_SESSION_TOKEN="t")
    environment: dict[str, str] = {}
    found = find_sources(compiled_pipeline(name).platform for name in PIPELINES)
    list(check_sources(ClusterApi(NAMESPACE), found, environment))
    assert environment["AWS_SESSION_TOKEN"] == "t"


def test_the_address_of_mlflow_that_people_use_has_no_password(cluster: FakeCluster) -> None:
    cluster.objects[f"{CORE}/configmaps/iddpm-services"]["data"]["IDDPM_MLFLOW_PUBLIC_URL"] = "https://me:s3cr3t@mlflow.example"
    environment: dict[str, str] = {}
    list(check_sources(ClusterApi(NAMESPACE), find_sources(compiled_pipeline(name).platform for name in PIPELINES), environment))
    found = _only(check_mlflow(environment, port_forward=False))
    assert (found.state, found.message) == (FAILURE, "IDDPM_MLFLOW_PUBLIC_URL contains a password")
    assert "s3cr3t" not in repr(found)


def test_what_is_looked_for_is_what_any_pipeline_takes() -> None:
    found = find_sources(compiled_pipeline(name).platform for name in PIPELINES)
    needed = {each.name: each.optional for each in found}
    assert needed.items() >= {"iddpm-services": False, "iddpm-s3": True, "iddpm-mlflow": True}.items()
    (keys,) = [each for each in found if each.name == "iddpm-s3"]
    assert keys.variables == {"AWS_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY"}
    assert keys.more == {"AWS_SESSION_TOKEN": "AWS_SESSION_TOKEN"}, "of temporary keys"
    assert len({each.name for each in found}) == len(found)


def test_without_a_kubeconfig_that_is_one_failure_and_the_services_are_tried_all_the_same(
    doctor: Doctor, mlflow: FakeMlflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.url)
    status, found = doctor("--bucket", "s3://iddpm")
    assert status == 1
    assert list(found) == ["kubernetes", "kfp", "bucket s3://iddpm", "mlflow"]
    assert [state for state, _ in found.values()] == [FAILURE, OK, WARNING, OK]
    assert "set KUBECONFIG" in found["kubernetes"][1]


@pytest.mark.parametrize(
    ("text", "said"), [("clusters: [", "no cluster is known here"), ('{"apiVersion": "v1", "kind": "Config"}', "no cluster is known here")]
)
def test_a_broken_kubeconfig_is_one_failure(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "broken").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "broken"))
    found = doctor()[1]
    assert found["kubernetes"][0] == FAILURE
    assert said in found["kubernetes"][1]


def test_expired_credentials_are_one_failure(cluster: FakeCluster, doctor: Doctor) -> None:
    cluster.tokens.clear()
    _, found = doctor()
    assert "does not accept your credentials" in found["kubernetes"][1]
    assert "gpus" not in found


def test_a_cluster_that_does_not_answer_is_one_failure(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_kubernetes.write_kubeconfig(tmp_path / "config", "http://127.0.0.1:9", "token")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    _, found = doctor()
    assert "no answer from http://127.0.0.1:9" in found["kubernetes"][1]
    assert "gpus" not in found


def test_what_a_person_reads_has_a_line_for_each_thing_and_one_for_each_remedy(
    cluster: FakeCluster, doctor: Doctor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["iddpm", "doctor", "--kfp-namespace", NAMESPACE, "--bucket", "none"])
    with pytest.raises(SystemExit):
        cli.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok        kubernetes: v1.31.4 at ")
    (at,) = [number for number, line in enumerate(lines) if line.startswith("FAILURE   bucket none: ")]
    assert lines[at + 1].startswith("          -> ")
    assert lines[-1].startswith("1 failure, 0 warnings, ")


def test_kfps_refusal_is_a_failure_with_its_words(cluster: FakeCluster, doctor: Doctor, kfp: FakeKfp) -> None:
    kfp.tokens = {"good"}
    state, words = doctor()[1]["kfp"]
    assert state == FAILURE
    assert "give one by --token-file or KFP_TOKEN" in words


# -- services ----------------------------------------------------------------------------------------------------------


def _only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_an_address_inside_the_cluster_is_not_tried_without_a_way_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    finding = _only(check_mlflow({"MLFLOW_TRACKING_URI": "http://mlflow.iddpm.svc.cluster.local:5000"}, port_forward=False))
    assert finding.state == WARNING
    assert "mlflow.iddpm.svc.cluster.local:5000 is an address inside the cluster" in finding.message
    assert "--port-forward" in finding.remedy


def test_mlflow_must_take_the_name_that_runs_call_it_by(mlflow: FakeMlflow) -> None:
    mlflow.allowed_host = "mlflow.iddpm.svc.cluster.local:5000"
    finding = _only(check_mlflow({"MLFLOW_TRACKING_URI": mlflow.url}, port_forward=False))
    assert finding.state == FAILURE
    assert "MLFLOW_SERVER_ALLOWED_HOSTS" in finding.remedy


def test_mlflow_must_take_the_name_that_people_call_it_by(mlflow: FakeMlflow) -> None:
    """The real MLflow says the same words in a slow test below."""
    inside = mlflow.url.removeprefix("http://")
    mlflow.allowed_host = inside
    settings = {"MLFLOW_TRACKING_URI": mlflow.url, "IDDPM_MLFLOW_PUBLIC_URL": "https://MLflow.example.com:443/ui"}
    found = _only(check_mlflow(settings, port_forward=False))
    assert (found.state, "refuses browsers, which use the name mlflow.example.com (403)" in found.message) == (WARNING, True)
    assert found.remedy.startswith(
        "add mlflow.example.com to MLFLOW_SERVER_ALLOWED_HOSTS and https://mlflow.example.com to MLFLOW_SERVER_CORS"
    )
    mlflow.allowed_host = f"{inside},mlflow.example.com"
    found = _only(check_mlflow(settings, port_forward=False))
    assert (found.state, "they show 'Request error'" in found.message) == (WARNING, True)
    assert found.remedy.startswith("add https://mlflow.example.com to MLFLOW_SERVER_CORS_ALLOWED_ORIGINS")
    mlflow.allowed_origin = "https://mlflow.example.com"
    assert _only(check_mlflow(settings, port_forward=False)).state == OK


def test_through_a_port_forward_the_name_that_runs_use_is_sent(mlflow: FakeMlflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for kubectl says that it forwards a port, and MLflow happens to listen there."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    mlflow.allowed_host = "mlflow.iddpm.svc.cluster.local:5000"
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/words\necho "Forwarding from 127.0.0.1"\nexec sleep 60\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("pipelines.client.port_forward.free_ports", lambda count: [int(mlflow.url.rpartition(":")[2])])
    environment = {"MLFLOW_TRACKING_URI": "http://mlflow.iddpm.svc.cluster.local:5000"}
    finding = _only(check_mlflow(environment, port_forward=True))
    assert finding.state == OK
    assert (tmp_path / "words").read_text().split()[:6] == ["--namespace", "iddpm", "port-forward", "--address", "127.0.0.1", "svc/mlflow"]


def test_mlflows_password_is_sent_and_its_refusal_told(mlflow: FakeMlflow) -> None:
    mlflow.authorization = "Basic " + base64.b64encode(b"me:right").decode()
    settings = {"MLFLOW_TRACKING_URI": mlflow.url}
    assert "needs a user and password (401)" in _only(check_mlflow(settings, port_forward=False)).message
    settings |= {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "wrong"}
    refused = _only(check_mlflow(settings, port_forward=False))
    assert "refuses the user and password" in refused.message
    assert "wrong" not in str(refused)
    assert _only(check_mlflow(settings | {"MLFLOW_TRACKING_PASSWORD": "right"}, port_forward=False)).state == OK
    mlflow.authorization = "Basic " + base64.b64encode("me:пароль".encode()).decode()  # as MLflow's own client sends it
    assert _only(check_mlflow(settings | {"MLFLOW_TRACKING_PASSWORD": "пароль"}, port_forward=False)).state == OK


@pytest.mark.parametrize("address", ["http://mlflow.iddpm.svc:port", "http://[::1", "http://[me/not-to-be@mlflow"])
def test_a_malformed_address_is_a_failure(address: str) -> None:
    found = _only(check_mlflow({"MLFLOW_TRACKING_URI": address}, port_forward=True))
    assert (found.state, "is malformed: correct it in config map iddpm-services" in found.remedy) == (FAILURE, True)
    assert "not-to-be" not in str(found)
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_ENDPOINT_URL": address}
    assert "is malformed" in _only(check_bucket(keys, "s3://iddpm", port_forward=True)).remedy


def test_a_page_is_no_mlflow_and_neither_is_nobody(mlflow: FakeMlflow) -> None:
    mlflow.page = "<html>"
    assert "answers with a web page" in _only(check_mlflow({"MLFLOW_TRACKING_URI": mlflow.url}, port_forward=False)).message
    assert "no answer from" in _only(check_mlflow({"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, port_forward=False)).message


def test_an_mlflow_that_has_no_keys_for_its_files_is_a_failure(mlflow: FakeMlflow) -> None:
    mlflow.files_status = 500  # as one said that had started before the Secret with the keys was there
    found = _only(check_mlflow({"MLFLOW_TRACKING_URI": mlflow.url}, port_forward=False))
    assert (found.state, "the storage of its files" in found.message, "rollout restart" in found.remedy) == (FAILURE, True, True)
    mlflow.files_status = 503  # it keeps its files elsewhere
    assert _only(check_mlflow({"MLFLOW_TRACKING_URI": mlflow.url}, port_forward=False)).state == OK


@pytest.mark.slow
def test_the_real_services_are_in_order_and_the_bucket_is_left_as_it_was(services: Services) -> None:
    before = storage.list_uris(services.bucket_uri)
    found = _only(check_bucket(services.env, services.bucket_uri, port_forward=False))
    assert (found.state, found.message) == (OK, f"at {services.s3_endpoint}: written, read, listed and deleted")
    assert storage.list_uris(services.bucket_uri) == before
    assert _only(check_mlflow(services.env, port_forward=False)).state == OK


@pytest.mark.slow
@pytest.mark.parametrize(
    ("public", "state", "said"),
    [
        ("https://mlflow.example.com", WARNING, "refuses browsers, which use the name mlflow.example.com (403)"),
        ("http://192.168.7.7:5000", WARNING, "refuses what its pages at http://192.168.7.7:5000 ask (403)"),
        ("http://localhost:5000", OK, "under the name that runs use"),
    ],
)
def test_the_real_mlflow_says_whether_it_takes_browsers(services: Services, public: str, state: str, said: str) -> None:
    found = _only(check_mlflow(services.env | {"IDDPM_MLFLOW_PUBLIC_URL": public}, port_forward=False))
    assert (found.state, said in found.message) == (state, True)


@pytest.mark.slow
def test_a_wrong_secret_and_a_missing_bucket_are_failures_and_the_environment_stays(services: Services) -> None:
    environment = dict(os.environ)
    refused = _only(check_bucket(services.env | {"AWS_SECRET_ACCESS_KEY": "wrong-one"}, services.bucket_uri, port_forward=False))
    assert refused.state == FAILURE
    assert "a run could not write to it" in refused.message
    assert "refused the credentials" in refused.remedy
    assert "wrong-one" not in str(refused)
    missing = _only(check_bucket(services.env, "s3://no-such-bucket", port_forward=False))
    assert "there is no such bucket" in missing.remedy
    assert dict(os.environ) == environment


def test_a_bucket_that_is_no_address_is_refused() -> None:
    assert "is not an address in S3" in _only(check_bucket({"AWS_ACCESS_KEY_ID": "key"}, "iddpm", port_forward=False)).message


# -- the image ---------------------------------------------------------------------------------------------------------


def _image(cluster: FakeCluster, reference: str, *, in_pod: bool = False) -> Finding:
    return _only(check_image(ClusterApi(NAMESPACE), reference, account="pipeline-runner", in_pod=in_pod))


def test_an_image_of_a_registry_is_left_to_a_pod_to_test(cluster: FakeCluster) -> None:
    finding = _image(cluster, "ghcr.io/team/iddpm:1")
    assert finding.state == WARNING
    assert "--pull-image" in finding.remedy
    of_docker_hub = [_image(cluster, name) for name in ("docker.io/team/iddpm:1", "team/iddpm:1")]
    assert {(each.state, each.message, each.remedy) for each in of_docker_hub} == {(WARNING, finding.message, finding.remedy)}


@pytest.mark.parametrize(
    ("reference", "name_on_node"),
    [
        ("iddpm-pipelines:0.1.0", "docker.io/library/iddpm-pipelines:0.1.0"),
        ("iddpm-pipelines", "localhost/iddpm-pipelines:latest"),
        ("team/iddpm:1", "docker.io/team/iddpm:1"),
        ("localhost:5000/iddpm:1", "localhost:5000/iddpm:1"),
        (f"ghcr.io/team/iddpm:1@sha256:{'a' * 64}", f"ghcr.io/team/iddpm@sha256:{'a' * 64}"),
    ],
)
def test_an_image_is_recognised_by_the_name_that_a_node_gives_it(cluster: FakeCluster, reference: str, name_on_node: str) -> None:
    cluster.objects["/api/v1/nodes"] = {"items": [node(images=("other:1", name_on_node))]}
    assert _image(cluster, reference).state == OK


def test_an_image_that_all_nodes_hold_needs_no_registry(cluster: FakeCluster) -> None:
    reference = "127.0.0.1:9/team/iddpm:1"
    cluster.objects["/api/v1/nodes"] = {"items": [node(images=(reference,)), node(images=(reference,))]}
    assert _image(cluster, reference).message == "is on all 2 nodes"
    cluster.objects["/api/v1/nodes"] = {"items": [node(), node(images=())]}
    assert _image(cluster, BASE_IMAGE).message == "is on 1 of 2 nodes, and names no registry"


@pytest.mark.parametrize(
    ("states", "state", "said"),
    [
        ([{"waiting": {"reason": "ContainerCreating"}}, {"terminated": {"exitCode": 0}}], OK, "node-7 has started a pod"),
        ([{"waiting": {"reason": "ErrImagePull", "message": "not found"}}], FAILURE, "node-7 cannot pull it: not found"),
        ([{"running": {}}, {"terminated": {"exitCode": 0}}], OK, "node-7 has started a pod"),
        (
            [{"running": {}}, {"terminated": {"exitCode": 255, "reason": "Error", "message": "exec /usr/bin/true: exec format error"}}],
            FAILURE,
            "node-7 has it, but it does not run: Error: exec /usr/bin/true: exec format error (exit code 255)",
        ),
        ([{"waiting": {"reason": "CreateContainerConfigError", "message": "image will run as root"}}], FAILURE, "will run as root"),
    ],
)
def test_a_pod_that_tries_the_image_tells_and_is_deleted(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, states: list[dict[str, Any]], state: str, said: str
) -> None:
    monkeypatch.setattr(doctor_image, "_POLL_SECONDS", 0.01)
    cluster.image_states = states
    finding = _image(cluster, "ghcr.io/team/iddpm:1", in_pod=True)
    assert finding.state == state
    assert said in finding.message
    (pod,) = cluster.created
    assert pod["spec"]["serviceAccountName"] == "pipeline-runner"
    assert pod["spec"]["containers"][0]["image"] == "ghcr.io/team/iddpm:1"
    assert cluster.pods == {}


def test_a_pod_that_starts_nowhere_is_a_failure_and_is_deleted(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_image, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(doctor_image, "_PULL_SECONDS", 0.05)
    cluster.image_states = [{"waiting": {"reason": "ContainerCreating"}}]
    assert "did not start" in _image(cluster, "ghcr.io/team/iddpm:1", in_pod=True).message
    assert cluster.pods == {}
