"""The manifests in k8s/: they build, are valid for Kubernetes, and keep our rules of security."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import importlib
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_kubernetes
import pytest
import yaml
from kubernetes.utils.quantity import parse_quantity

from components.cluster.kubernetes_api import KubernetesApi, QuickRequests
from components.cluster.names import MLFLOW_SECRET, S3_SECRET, SERVICES_CONFIG_MAP
from components.cluster.workflows import Owner
from components.launch.rayjob.follow import Pace, run_rayjob
from components.launch.rayjob.manifest import POD_ANNOTATIONS, RayJob, render
from components.launch.resources import PROFILES, RayJobOptions, StageResources, read_resources
from components.reaper.messages import REPORTED_LABEL
from components.reaper.rayjobs import delete_finished_rayjobs
from pipelines.cli import main as cli

_ROOT = Path(__file__).resolve().parents[3]
_K8S = _ROOT / "k8s"
_OVERLAYS = ("kind", "cluster", "cluster-oidc")
_KUBERNETES = "1.34"


def _kustomize(directory: Path) -> subprocess.CompletedProcess[str]:
    kubectl = Path(sys.executable).with_name("kubectl")
    return subprocess.run([kubectl, "kustomize", str(directory)], capture_output=True, text=True, check=False)


@functools.cache
def _objects(overlay: str) -> tuple[dict[str, Any], ...]:
    built = _kustomize(_K8S / "overlays" / overlay)
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""  # kustomize reports deprecated fields there
    return tuple(yaml.safe_load_all(built.stdout))


def _of(overlay: str, *kinds: str) -> Iterator[dict[str, Any]]:
    return (item for item in _objects(overlay) if item["kind"] in kinds)


def _named(overlay: str, kind: str, name: str, namespace: str = "iddpm") -> dict[str, Any]:
    [found] = [item for item in _of(overlay, kind) if item["metadata"]["name"] == name and item["metadata"].get("namespace") == namespace]
    return found


def _pods(overlay: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for item in _of(overlay, "Deployment", "StatefulSet", "DaemonSet", "Job"):
        yield f"{item['kind']} {item['metadata']['name']}", item["spec"]["template"]


def _scheduled_pods(overlay: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for item in _of(overlay, "CronJob"):
        yield f"CronJob {item['metadata']['name']}", item["spec"]["jobTemplate"]["spec"]["template"]


def _ray_pods() -> Iterator[tuple[str, dict[str, Any]]]:
    spec = render(_rayjob())["spec"]
    yield "submitter", spec["submitterPodTemplate"]
    yield "head", spec["rayClusterSpec"]["headGroupSpec"]["template"]
    yield "worker", spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]


def _rayjob() -> RayJob:
    return RayJob(
        run_key="digits-0",
        run_uri="s3://iddpm/runs/digits-0",
        entrypoint=("true",),
        namespace=fake_kubernetes.NAMESPACE,
        image="iddpm-pipelines:0.1.0",
        resources=StageResources(ray_mode="rayjob", cpu="4", memory="16Gi", num_gpus_per_worker=1),
    )


# -- valid -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", _OVERLAYS)
def test_every_object_is_strictly_valid(overlay):
    validate = importlib.import_module("kubernetes_validate")
    for item in _objects(overlay):
        validate.validate(item, _KUBERNETES, strict=True)


def test_strict_validation_would_notice_a_misspelt_field():
    validate = importlib.import_module("kubernetes_validate")
    item = json.loads(json.dumps(_named("kind", "Deployment", "mlflow")))
    item["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(validate.ValidationError):
        validate.validate(item, _KUBERNETES, strict=True)


@pytest.mark.parametrize("overlay", _OVERLAYS)
def test_no_object_is_there_twice(overlay):
    names = [(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in _objects(overlay)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("overlay", _OVERLAYS)
def test_every_service_disruption_budget_and_policy_finds_its_pods(overlay):
    labels = [pod["metadata"]["labels"] for _, pod in itertools.chain(_pods(overlay), _scheduled_pods(overlay))]
    heads = [{**pod["metadata"]["labels"], "ray.io/node-type": "head"} for _, pod in _ray_pods()]
    for item in _of(overlay, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        selector = item["spec"].get("selector") or item["spec"].get("podSelector") or {}
        wanted = selector.get("matchLabels", {}) if selector.keys() & {"matchLabels", "matchExpressions"} else selector
        one_of = {each["key"]: each["values"] for each in selector.get("matchExpressions", ())}
        found = [there for there in (*labels, *heads) if wanted.items() <= there.items()]
        assert found, item["metadata"]["name"]
        for label, values in one_of.items():
            assert set(values) <= {there.get(label) for there in found}, item["metadata"]["name"]


@pytest.mark.parametrize("overlay", _OVERLAYS)
def test_every_secret_and_config_map_that_a_pod_asks_for_is_made_or_described(overlay):
    made = {("configMap", item["metadata"]["namespace"], item["metadata"]["name"]): set(item["data"]) for item in _of(overlay, "ConfigMap")}
    known = {**made, **_described()}
    for item in _of(overlay, "Deployment", "StatefulSet"):
        namespace = item["metadata"]["namespace"]
        for kind, name, key in _references(item["spec"]["template"]["spec"]):
            keys = known.get((kind, namespace, name))
            assert keys is not None, f"{item['metadata']['name']} asks for {kind} {name}"
            assert key is None or key in keys


def _described() -> dict[tuple[str, str, str], set[str]]:
    """The Secrets of k8s/secrets/; one without a namespace stands in both."""
    described = {}
    for secret in _templates():
        places = [secret["metadata"]["namespace"]] if "namespace" in secret["metadata"] else ["iddpm", "kubeflow"]
        for place in places:
            described["secret", place, secret["metadata"]["name"]] = set(secret["stringData"])
    return described


def _templates() -> list[dict[str, Any]]:
    return [secret for path in sorted((_K8S / "secrets").glob("*.yaml")) for secret in yaml.safe_load_all(path.read_text())]


def _references(pod: dict[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    for container in pod["containers"]:
        for source in container.get("envFrom", ()):
            for kind in ("secret", "configMap"):
                if f"{kind}Ref" in source:
                    yield kind, source[f"{kind}Ref"]["name"], None
        for variable in container.get("env", ()):
            for kind in ("secret", "configMap"):
                reference = variable.get("valueFrom", {}).get(f"{kind}KeyRef")
                if reference:
                    yield kind, reference["name"], reference["key"]
    for volume in pod.get("volumes", ()):
        if "configMap" in volume:
            yield "configMap", volume["configMap"]["name"], None
        if "secret" in volume:
            yield "secret", volume["secret"]["secretName"], None


# -- safe --------------------------------------------------------------------------------------------------------------


def _breaches(label: str, pod: dict[str, Any]) -> Iterator[str]:
    spec = pod["spec"]
    if not spec["securityContext"].get("runAsNonRoot") or spec["securityContext"].get("runAsUser") == 0:
        yield f"{label} may run as root"
    if spec["securityContext"].get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield f"{label} has no seccomp profile"
    if any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")) or any("hostPath" in volume for volume in spec["volumes"]):
        yield f"{label} reaches into its node"
    if spec.get("automountServiceAccountToken") is not False:
        yield f"{label} has a token that it does not need"
    if any("emptyDir" in volume and "sizeLimit" not in volume["emptyDir"] for volume in spec["volumes"]):
        yield f"{label} may fill its node's disk"
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        security, name = container["securityContext"], f"{label}, container {container['name']}"
        if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
            yield f"{name} may gain privileges"
        if security.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name} keeps capabilities"
        if not security.get("readOnlyRootFilesystem"):
            yield f"{name} may write its root"
        for kind in ("requests", "limits"):
            if not {"cpu", "memory"} <= set(container["resources"].get(kind, {})):
                yield f"{name} has no {kind}"
        if not re.search(r"(:(?!latest$)[\w.\-]+|@sha256:[0-9a-f]{64})$", container["image"]):
            yield f"{name} has an image without a fixed tag"


@pytest.mark.parametrize("overlay", _OVERLAYS)
def test_no_pod_runs_as_root_gains_privileges_or_has_no_limits(overlay):
    pods = [(label, {**pod, "spec": {"volumes": [], **pod["spec"]}}) for label, pod in _pods(overlay)]
    assert pods
    assert [breach for label, pod in pods for breach in _breaches(label, pod)] == []


@pytest.mark.parametrize("overlay", _OVERLAYS)
def test_scheduled_pods_keep_the_same_rules_but_the_reaper_has_a_token(overlay):
    pods = dict(_scheduled_pods(overlay))
    assert set(pods) == {"CronJob iddpm-gc", "CronJob iddpm-reaper", "CronJob mlflow-backup"}
    for label, pod in pods.items():
        expected = [f"{label} has a token that it does not need"] if "reaper" in label else []
        assert list(_breaches(label, pod)) == expected
        namespace = "iddpm" if "backup" in label else "kubeflow"
        assert _named(overlay, "ServiceAccount", pod["spec"]["serviceAccountName"], namespace)


@pytest.mark.parametrize("overlay", _OVERLAYS)
def test_the_garbage_collector_is_suspended_and_its_command_takes_the_policy_of_its_config_map(overlay, tmp_path, monkeypatch, capsys):
    job = _named(overlay, "CronJob", "iddpm-gc", "kubeflow")["spec"]
    assert job["suspend"] is True
    [container] = job["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    policy = _named(overlay, "ConfigMap", "iddpm-gc", "kubeflow")["data"] | {"root": str(tmp_path)}
    values = {each["name"]: policy[each["valueFrom"]["configMapKeyRef"]["key"]] for each in container["env"] if "valueFrom" in each}
    words = [re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], word) for word in container["command"]]
    assert words[:3] == ["python", "-m", "pipelines.cli.main"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("IDDPM_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["iddpm", *words[3:]])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.startswith("error: no MLflow server is known")  # so it took every option


def test_the_pods_of_a_run_keep_the_same_rules():
    assert [breach for label, pod in _ray_pods() for breach in _breaches(label, pod)] == []


def test_the_policy_would_notice_a_privileged_pod():
    label, pod = next(_ray_pods())
    pod["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    pod["spec"]["hostNetwork"] = True
    del pod["spec"]["containers"][0]["resources"]["limits"]
    assert len(list(_breaches(label, pod))) >= 5


@pytest.mark.parametrize("overlay", _OVERLAYS)
def test_every_service_is_probed(overlay):
    for label, pod in _pods(overlay):
        for container in pod["spec"]["containers"]:
            assert {"readinessProbe", "livenessProbe"} <= set(container), label


@pytest.mark.parametrize("overlay", _OVERLAYS)
def test_our_namespace_enforces_restricted_and_has_a_quota_and_denies_by_default(overlay):
    [namespace] = _of(overlay, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert _named(overlay, "ResourceQuota", "services")["spec"]["hard"]["limits.memory"]
    assert _named(overlay, "LimitRange", "services")
    deny = _named(overlay, "NetworkPolicy", "nothing-else")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_the_quota_of_gpus_has_room_for_a_training_of_the_largest_profile():
    stages = [read_resources(name, stage="train") for name in PROFILES]
    largest = max(each.num_workers * each.num_gpus_per_worker for each in stages)
    quota = _named("cluster", "ResourceQuota", "iddpm-gpus", "kubeflow")
    assert int(quota["spec"]["hard"]["requests.nvidia.com/gpu"]) >= largest == 64


def test_the_guide_gives_the_registrys_password_to_every_account_that_pulls_our_image():
    pulling = {
        f"{item['metadata']['namespace']}/{pod['spec']['serviceAccountName']}"
        for item in _of("kind", "Deployment", "StatefulSet", "CronJob")
        for pod in [item["spec"]["jobTemplate"]["spec"]["template"] if item["kind"] == "CronJob" else item["spec"]["template"]]
        if any(container["image"].startswith("iddpm-pipelines") for container in pod["spec"]["containers"])
    }
    (line,) = re.findall(r"for account in (.*); do", (_K8S / "README.md").read_text())
    assert set(line.split()) == pulling | {"kubeflow/pipeline-runner"}


@pytest.mark.parametrize("overlay", _OVERLAYS)
def test_the_reaper_has_twice_the_memory_that_it_was_seen_to_take(overlay):
    seen = 409 * 2**20  # bytes, its largest on a cluster; a worst case took 516 MiB
    pod = _named(overlay, "CronJob", "iddpm-reaper", "kubeflow")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert parse_quantity(pod["containers"][0]["resources"]["limits"]["memory"]) > 2 * seen


@pytest.mark.parametrize("overlay", _OVERLAYS)
def test_no_secret_is_made_and_no_credential_has_a_value(overlay):
    assert list(_of(overlay, "Secret")) == []
    for label, pod in itertools.chain(_pods(overlay), _ray_pods()):
        for variable in (variable for container in pod["spec"]["containers"] for variable in container.get("env", ())):
            if re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", variable["name"]):
                assert "value" not in variable, f"{label}: {variable['name']}"


def test_no_file_holds_a_secrets_value():
    assert {value for secret in _templates() for value in secret["stringData"].values()} == {""}
    files = [path for path in _K8S.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        text = path.read_text()
        assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|minio123|://[^/\s:$<]+:[^@\s$<]+@", text), path
        if path.suffix == ".yaml":
            made = [item for item in yaml.safe_load_all(text) if isinstance(item, dict) and item.get("kind") == "Secret"]
            assert not made or path.parent.name == "secrets", path


# -- right -------------------------------------------------------------------------------------------------------------


def test_the_role_grants_exactly_the_requests_of_a_whole_run(tmp_path, monkeypatch):
    """The launcher's own requests, as the fake API records them, are compared with the Role."""
    with fake_kubernetes.serve(tmp_path) as (fake, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        fake.script = fake_kubernetes.recorded_statuses("4504db")
        job = _rayjob()
        fake.add_rayjob(render(job), fake_kubernetes.recorded_statuses("47d66d")[-1])
        fake.add_pod("launcher", {})
        fake.logs["submitter"] = ["t line"]

        def add_submitter(rayjob: dict[str, Any]) -> None:
            if rayjob in fake.created:
                pod_labels = render(job)["spec"]["submitterPodTemplate"]["metadata"]["labels"]
                fake.add_pod("submitter", pod_labels, spec={"containers": [{"name": "ray-job-submitter", "image": "i"}]})

        fake.on_look = add_submitter
        api = KubernetesApi(fake_kubernetes.NAMESPACE)
        api.pod("launcher")
        run_rayjob(job, api, is_done=lambda: True, pace=Pace(poll_seconds=0.05))
        list(api.workflows("pipeline/runid=1"))  # the request of the pipeline's last step
        fake.queues = {"training": {}}
        api.queue_problem("training")
        api.queue_reasons("uid")
        QuickRequests(api.namespace).workflow("train-x")  # that of a step whose pod is stopped
        asked = {_permission(method, path) for _, method, path in fake.requests if "/namespaces/" in path}
    role = _named("kind", "Role", "iddpm-rayjobs", "kubeflow")
    granted = {
        (resource, verb)
        for rule in role["rules"]
        for resource, verb in itertools.product(rule["resources"], rule["verbs"])
        if rule["apiGroups"] == [_GROUPS[resource]]
    }
    assert asked == granted


def test_the_reapers_role_grants_exactly_its_requests(tmp_path, monkeypatch):
    with fake_kubernetes.serve(tmp_path) as (fake, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        owner = Owner("argoproj.io/v1alpha1", "train-x", "w-1")
        fake.add_rayjob(render(dataclasses.replace(_rayjob(), owner=owner)))
        fake.workflows["train-x"] = {"metadata": {"name": "train-x", "uid": "w-1"}, "status": {"phase": "Failed"}}
        api = KubernetesApi(fake_kubernetes.NAMESPACE)
        delete_finished_rayjobs(api)
        list(api.workflows("pipeline/runid=1"))  # for each run that MLflow shows as running
        api.label_workflow("train-x", REPORTED_LABEL)
        api.log_tail("train-x-1")  # for each step that has failed
        asked = {_permission(method, path) for _, method, path in fake.requests}
    rules = _named("kind", "Role", "iddpm-reaper", "kubeflow")["rules"]
    assert asked == {(resource, verb) for rule in rules for resource, verb in itertools.product(rule["resources"], rule["verbs"])}


_GROUPS = {
    "pods": "",
    "pods/log": "",
    "workflows": "argoproj.io",
    "rayjobs": "ray.io",
    "localqueues": "kueue.x-k8s.io",
    "workloads": "kueue.x-k8s.io",
}


def _permission(method: str, path: str) -> tuple[str, str]:
    parts = path.split(f"/namespaces/{fake_kubernetes.NAMESPACE}/")[1].split("/")
    resource = "pods/log" if parts[-1] == "log" else parts[0]
    verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}.get(method) or ("get" if len(parts) > 1 else "list")
    return resource, verb


@pytest.mark.parametrize("overlay", _OVERLAYS)
def test_the_role_goes_to_the_account_that_kfp_runs_steps_as_and_ray_pods_have_none(overlay):
    bindings = {item["metadata"]["name"]: [subject["name"] for subject in item["subjects"]] for item in _of(overlay, "RoleBinding")}
    assert bindings == {"iddpm-rayjobs": ["pipeline-runner"], "iddpm-reaper": ["iddpm-reaper"]}
    assert _named(overlay, "ServiceAccount", RayJobOptions().service_account, "kubeflow")


@pytest.mark.parametrize("overlay", _OVERLAYS)
def test_steps_and_services_have_the_same_addresses(overlay):
    there, here = (_named(overlay, "ConfigMap", SERVICES_CONFIG_MAP, namespace)["data"] for namespace in ("kubeflow", "iddpm"))
    assert there == here
    public = {"IDDPM_MLFLOW_PUBLIC_URL", "IDDPM_KFP_PUBLIC_URL"}
    assert set(there) == {"AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "MLFLOW_TRACKING_URI"} | public


def _env(overlay: str) -> dict[str, str]:
    [container] = _named(overlay, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable.get("value", "") for variable in container["env"]}


@pytest.mark.parametrize("overlay", _OVERLAYS)
def test_mlflow_allows_the_host_names_by_which_it_is_reached(overlay):
    allowed = _env(overlay)["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    address = _named(overlay, "ConfigMap", SERVICES_CONFIG_MAP)["data"]["MLFLOW_TRACKING_URI"]
    assert address.removeprefix("http://") in allowed
    assert "localhost:*" in allowed  # kubectl port-forward
    for ingress in _of(overlay, "Ingress"):
        host = ingress["spec"]["rules"][0]["host"]
        assert host in allowed
        assert _env(overlay)["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == f"https://{host}"
        assert ingress["spec"]["tls"][0]["hosts"] == [host]
        assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"] == "0"  # artifacts


@pytest.mark.parametrize("overlay", _OVERLAYS)
def test_mlflow_runs_one_worker_and_no_jobs(overlay):
    assert (_env(overlay)["MLFLOW_WORKERS"], _env(overlay)["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"]) == ("1", "false")


def test_mlflow_knows_every_option_that_its_manifest_sets():
    help_text = subprocess.run([sys.executable, "-m", "mlflow", "server", "--help"], capture_output=True, text=True, check=True).stdout
    command = _named("cluster", "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]["command"]
    options = [word for word in command if word.startswith("--")]
    assert options
    assert [option for option in options if option not in help_text] == []


def test_people_outside_the_cluster_log_in_before_they_reach_mlflow():
    command = _named("cluster", "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[-2:] == ["--app-name", "basic-auth"]
    backend = _named("cluster-oidc", "Ingress", "mlflow")["spec"]["rules"][0]["http"]["paths"][0]["backend"]
    assert backend["service"]["name"] == "oidc-proxy"
    policy = _named("cluster-oidc", "NetworkPolicy", "ingress-to-mlflow")["spec"]
    assert policy["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "oidc-proxy"}}
    assert policy["ingress"][0]["ports"] == [{"port": 4180, "protocol": "TCP"}]
    assert list(_of("kind", "Ingress")) == []


def test_runs_log_in_where_mlflow_asks_for_it():
    assert MLFLOW_SECRET in {secret["metadata"]["name"] for secret in _templates()}


# -- Kubeflow Pipelines ------------------------------------------------------------------------------------------------

_UPSTREAM = {("ConfigMap", "kfp-launcher"), ("ConfigMap", "workflow-controller-configmap")}
"""Objects of KFP 2.17's manifests that we patch; its base is fetched from GitHub, so it can't be built here."""


_KFP_OVERLAY, _KFP_COMPONENT = Path("overlays/kfp"), Path("components/kfp")


def _kfp(name: str) -> Any:
    return yaml.safe_load((_K8S / _KFP_COMPONENT / name).read_text())


def test_kfps_patches_change_objects_that_upstream_has_and_its_version_is_pinned():
    overlay = yaml.safe_load((_K8S / _KFP_OVERLAY / "kustomization.yaml").read_text())
    assert re.search(r"\?ref=2\.17\.\d+$", overlay["resources"][0])
    assert overlay.keys().isdisjoint({"patches", "patchesStrategicMerge"})  # they would come after all components
    patches = [_kfp(patch["path"]) for patch in _kfp("kustomization.yaml")["patches"]]
    assert {(patch["kind"], patch["metadata"]["name"]) for patch in patches} == _UPSTREAM


def _built_kfp(tmp_path: Path, *more: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ConfigMaps of KFP's launcher and of Argo's controller, as the overlay makes them with more components after its own.

    Kustomize refuses a patch without its target, so the shape of ours is tried on a base with upstream's names.
    """
    shutil.copytree(_K8S, tmp_path, dirs_exist_ok=True)
    data = {
        "kfp-launcher": {"defaultPipelineRoot": "minio://"},
        "workflow-controller-configmap": {"executor": "{}", "workflowDefaults": "{}"},
    }
    upstream = [{"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "data": data[name]} for kind, name in sorted(_UPSTREAM)]
    file = tmp_path / _KFP_OVERLAY / "kustomization.yaml"
    (file.parent / "upstream.yaml").write_text(yaml.safe_dump_all(upstream))
    overlay = yaml.safe_load(file.read_text())
    overlay["resources"] = ["upstream.yaml"]
    overlay["components"] = [*overlay.get("components", ()), *more]
    file.write_text(yaml.safe_dump(overlay))
    built = _kustomize(file.parent)
    assert built.returncode == 0, built.stderr
    launcher, controller = yaml.safe_load_all(built.stdout)
    return launcher["data"], controller["data"]


def test_the_patches_merge_into_a_base_of_the_same_shape(tmp_path):
    launcher, controller = _built_kfp(tmp_path)
    assert launcher["defaultPipelineRoot"].startswith("s3://")
    assert yaml.safe_load(launcher["providers"])["s3"]["default"]["credentials"]["secretRef"]["secretName"] == S3_SECRET
    assert controller["executor"] == "{}"  # upstream's other settings stay
    assert "retryStrategy" in controller["workflowDefaults"]


def test_without_keys_kfps_launcher_takes_the_identity_of_the_pod_and_no_secret(tmp_path):
    launcher, _ = _built_kfp(tmp_path, "../../components/keyless-s3")
    assert yaml.safe_load(launcher["providers"])["s3"]["default"]["credentials"] == {"fromEnv": True}
    assert launcher["defaultPipelineRoot"].startswith("s3://")


def test_the_pods_of_a_step_ask_autoscalers_to_wait_as_rays_do():
    added = yaml.safe_load(_kfp("workflow-defaults.yaml")["data"]["workflowDefaults"])["spec"]["podMetadata"]["annotations"]
    assert len(added) == 2
    assert added.items() <= POD_ANNOTATIONS.items()


def _is_tried_again(**last: str) -> bool:
    strategy = yaml.safe_load(_kfp("workflow-defaults.yaml")["data"]["workflowDefaults"])["spec"]["templateDefaults"]["retryStrategy"]
    assert strategy["retryPolicy"] == "Always"  # all that the expression admits
    names = {"lastRetry": SimpleNamespace(**{"status": "Failed", "exitCode": "-1", "message": "", **last})}
    return bool(eval(strategy["expression"].replace("||", "or").replace("&&", "and"), {}, names))


def test_argo_tries_a_step_again_whose_pod_was_stopped_also_where_it_still_sees_the_pod():
    """A cluster had both for the same deletion: "pod deleted" as an Error, and a Failed container with the exit code 143.

    137 is that of a container that was killed as a whole, as with cgroup v2 where one of its processes ran out of memory.
    """
    assert _is_tried_again(status="Error", message="pod deleted")
    assert _is_tried_again(exitCode="143", message="main: Error (exit code 143)")
    assert _is_tried_again(exitCode="137", message="main: OOMKilled (exit code 137)")
    assert _is_tried_again(exitCode="137", message="main: Error (exit code 137)")
    assert not _is_tried_again(exitCode="1")
    assert not _is_tried_again()  # a step that failed with all its tries
    assert not _is_tried_again(status="Error")  # a DAG around it


def test_in_all_recorded_workflows_stopped_and_refused_pods_are_tried_again_and_the_dags_around_them_are_not():
    again: dict[tuple[str, str], set[bool]] = defaultdict(set)
    for path in sorted((_ROOT / "tests/recordings/workflows").glob("*.json.gz")):
        ended = {
            name: node
            for state in json.loads(gzip.decompress(path.read_bytes()))["states"]
            for name, node in (state["status"].get("nodes") or {}).items()
            if node["phase"] in ("Error", "Failed")
        }
        for node in ended.values():
            message = node.get("message", "")
            code = re.search(r"^main: .*exit code (\d+)", message)  # outputs, where Argo has it, are not recorded
            tried = _is_tried_again(status=node["phase"], message=message, exitCode=code[1] if code else "-1")
            kind = f"exit code {code[1]}" if code else node["phase"]
            again[node["type"], kind].add(tried)
    del again["Retry", "Error"]  # what ends with all its tries is not a try itself
    assert {key: found for key, found in again.items() if key[0] != "Retry"} == {
        ("Pod", "Error"): {True},
        ("Pod", "exit code 137"): {True},
        ("Pod", "exit code 143"): {True},
        ("Pod", "exit code 1"): {False},
        ("Pod", "Failed"): {False},  # "Step exceeded its deadline"
        ("DAG", "Error"): {False},
        ("DAG", "Failed"): {False},
    }


def test_kfp_keeps_artifacts_in_our_s3_with_our_credentials():
    data = _kfp("launcher.yaml")["data"]
    default = yaml.safe_load(data["providers"])["s3"]["default"]
    secret = default["credentials"]["secretRef"]
    assert secret["secretName"] == S3_SECRET
    assert {secret["accessKeyKey"], secret["secretKeyKey"]} == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert default["endpoint"] == _named("kind", "ConfigMap", SERVICES_CONFIG_MAP)["data"]["AWS_ENDPOINT_URL"]


def test_kfps_own_mlflow_plugin_is_not_set_up():
    """It adds a run for each step to the researcher's experiment."""
    files = [path for folder in (_KFP_OVERLAY, _KFP_COMPONENT) for path in (_K8S / folder).iterdir()]
    assert len(files) == 4
    assert not [path for path in files if "plugins" in path.read_text()]


# -- the guide ---------------------------------------------------------------------------------------------------------


def test_every_path_that_the_guide_names_exists():
    text = (_K8S / "README.md").read_text()
    paths = set(re.findall(r"k8s/[\w./\-]*\w", text))
    assert len(paths) >= 5
    assert [path for path in sorted(paths) if not (_ROOT / path).exists()] == []


def test_every_secret_that_pods_need_is_made_in_the_guide():
    text = (_K8S / "README.md").read_text()
    for secret in _templates():
        assert secret["metadata"]["name"] in text
        assert all(key in text for key in secret["stringData"])
