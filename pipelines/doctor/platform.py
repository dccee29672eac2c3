"""Check the platform: network policies, storage, queues, meshes, and the settings of KFP and its MLflow plugin."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from components.cluster.cluster_api import Response
from pipelines.doctor.findings import ASK_ADMINISTRATOR, FAILURE, OK, WARNING, Finding
from pipelines.doctor.scope import Scope
from training.config.addresses import contains_password, is_cluster_internal

SERVICES_NAMESPACE = "iddpm"
_ENFORCING = ("calico", "canal", "cilium", "antrea", "kube-router", "weave", "ovn", "kindnet", "anetd", "azure-npm", "aws-eks-nodeagent")
"""Parts of the names of network plugins, or of their containers, that enforce policies; kind's does since its release 0.24."""
_TRAININGS = "iddpm"
"""The experiment of MLflow in which pipelines put trainings, unless their `tracking_experiment` says otherwise."""
_PROFILE_LABEL = "pipelines.kubeflow.org/enabled"
_ISTIO_ROOT = "istio-system"
"""The namespace whose PeerAuthentication is that of all others."""
_REACHED_BY_STEPS = (("app", "ml-pipeline", (8887, 8888)), ("component", "metadata-grpc-server", (8080,)), ("app", "seaweedfs", (8333,)))
"""Pods of KFP that its own steps reach: a label, its value, their ports."""


def check_network_plugin(scope: Scope) -> Iterator[Finding]:
    """Look for a network plugin that enforces NetworkPolicy, by name: Kubernetes itself accepts policies that nobody enforces."""
    answer = scope.cluster.get("/apis/apps/v1/daemonsets")
    names = {
        name
        for each in answer.body.get("items", [])
        for name in (each["metadata"]["name"], *(container["name"] for container in each["spec"]["template"]["spec"]["containers"]))
    }
    found = sorted(name for name in names if any(part in name for part in _ENFORCING))
    if found:
        yield Finding(OK, "network plugin", f"{found[0]} enforces network policies")
    else:
        yield Finding(WARNING, "network plugin", f"none that enforces network policies is known here{_reason(answer)}")


def check_storage_class(scope: Scope) -> Iterator[Finding]:
    """Check that claims of the services are bound, or that a default StorageClass will bind them."""
    claims = scope.cluster.get(f"/api/v1/namespaces/{SERVICES_NAMESPACE}/persistentvolumeclaims")
    waiting = [each["metadata"]["name"] for each in claims.body.get("items", []) if each.get("status", {}).get("phase") != "Bound"]
    classes = scope.cluster.get("/apis/storage.k8s.io/v1/storageclasses")
    annotation = "storageclass.kubernetes.io/is-default-class"
    default = [
        each["metadata"]["name"]
        for each in classes.body.get("items", [])
        if (each["metadata"].get("annotations") or {}).get(annotation) == "true"
    ]
    if waiting:
        yield Finding(FAILURE, "storage class", f"claims wait for a volume: {', '.join(waiting)}")
    elif default or claims.body.get("items"):
        yield Finding(OK, "storage class", f"{default[0]} is the default" if default else "none is the default, but all claims are bound")
    else:
        yield Finding(WARNING, "storage class", f"none is the default{_reason(classes)}")


def check_services_pods(scope: Scope) -> Iterator[Finding]:
    """Name pods of the services that don't serve, with the reason that Kubernetes gives."""
    answer = scope.cluster.get(f"/api/v1/namespaces/{SERVICES_NAMESPACE}/pods")
    waiting = [f"{pod['metadata']['name']} ({reason})" for pod in answer.body.get("items", []) for reason in _obstacles(pod)]
    if waiting:
        yield Finding(FAILURE, "pods of the services", f"do not start, or are not ready: {', '.join(waiting)}")
    elif answer.ok and not answer.body.get("items"):
        remedy = "'kubectl apply -k' of your overlay creates them (k8s/README.md, step 6)"
        yield Finding(WARNING, "pods of the services", f"there are none in namespace {SERVICES_NAMESPACE}", remedy)
    elif answer.ok:
        yield Finding(OK, "pods of the services", f"none of {len(answer.body.get('items', []))} waits in namespace {SERVICES_NAMESPACE}")
    else:
        yield Finding(WARNING, "pods of the services", f"cannot be seen{_reason(answer)}")


def _obstacles(pod: Mapping[str, Any]) -> list[str]:
    """Return why a pod does not serve, in Kubernetes' words. One that is going or has ended need not serve; a Job's pod must only start."""
    status = pod.get("status", {})
    if "deletionTimestamp" in pod["metadata"] or status.get("phase") in ("Succeeded", "Failed"):
        return []
    unmet = {each["type"]: each for each in status.get("conditions") or () if each["status"] == "False"}
    if "PodScheduled" in unmet:
        return [_words(unmet["PodScheduled"])]
    reasons = [
        f"{container['name']}: {reason}"
        for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))
        if (reason := container.get("state", {}).get("waiting", {}).get("reason", "")) not in ("", "PodInitializing", "ContainerCreating")
    ]
    is_of_job = any(owner["kind"] == "Job" for owner in pod["metadata"].get("ownerReferences") or ())
    return reasons or ([_words(unmet["Ready"])] if "Ready" in unmet and not is_of_job else [])


def _words(condition: Mapping[str, Any]) -> str:
    return ": ".join(str(condition[name]) for name in ("reason", "message") if condition.get(name))


def check_queues(scope: Scope) -> Iterator[Finding]:
    """Check that the local queues of a run exist. With a wrong one its pods would wait until the run's deadline."""
    wanted = {resources.queue for resources in scope.resources.values()} - {""}
    api = scope.cluster.get("/apis/kueue.x-k8s.io")
    if api.status == 404:
        if wanted:
            yield Finding(FAILURE, "kueue", f"is not installed, but queue names {', '.join(sorted(wanted))}")
        else:
            yield Finding(OK, "kueue", "is not installed; RayJobs start as pods do, and queue must stay empty")
        return
    version = api.body.get("preferredVersion", {}).get("version", "v1beta1")
    answer = scope.cluster.get(f"/apis/kueue.x-k8s.io/{version}/namespaces/{scope.cluster.namespace}/localqueues") if api.ok else api
    if not answer.ok:
        yield Finding(WARNING, "kueue", f"its local queues in {scope.cluster.namespace} cannot be seen{_reason(answer)}", ASK_ADMINISTRATOR)
        return
    queues = {each["metadata"]["name"]: each for each in answer.body.get("items", [])}
    message = f"local queues in {scope.cluster.namespace}: {', '.join(sorted(queues)) or 'none; queue must stay empty'}"
    missing = sorted(wanted - set(queues))
    inactive = {
        name: _words(condition)
        for name, queue in sorted(queues.items())
        for condition in queue.get("status", {}).get("conditions") or ()
        if (condition["type"], condition["status"]) == ("Active", "False")
    }
    if missing:
        yield Finding(FAILURE, "kueue", f"{message}; {', '.join(missing)} is not among them")
    elif inactive:
        remedy = f"a run would wait there for ever: see its cluster queue in 'kubectl -n {scope.cluster.namespace} describe localqueue'"
        state = FAILURE if wanted & set(inactive) else WARNING
        said = ", ".join(f"{name} is not active ({reason})" for name, reason in inactive.items())
        yield Finding(state, "kueue", f"{message}; {said}", remedy)
    else:
        yield Finding(OK, "kueue", message)


def check_namespaces(scope: Scope) -> Iterator[Finding]:
    """Check that the services admit the namespace of runs, and that no mesh stands between them."""
    runs = scope.cluster.namespace
    if runs != scope.connection.kfp_namespace:
        answer = _namespace(scope, runs)
        if not answer.ok and answer.status != 404:
            yield Finding(WARNING, f"namespace {runs}", f"cannot be seen{_reason(answer)}")
        elif _labels(answer).get(_PROFILE_LABEL) != "true":
            yield Finding(FAILURE, f"namespace {runs}", f"lacks the label {_PROFILE_LABEL}=true, so MLflow does not admit its pods")
        else:
            yield Finding(OK, f"namespace {runs}", "is admitted by MLflow")
    if _has_sidecars(_namespace(scope, SERVICES_NAMESPACE)):
        message = "gets Istio's sidecars, which may refuse the pods of runs: these have none"
        yield Finding(WARNING, f"namespace {SERVICES_NAMESPACE}", message)


def check_mutual_tls(scope: Scope) -> Iterator[Finding]:
    """Check that pods of KFP with Istio's sidecars take the plain connections of steps, which have none."""
    namespace = scope.connection.kfp_namespace
    if not _has_sidecars(_namespace(scope, namespace)):
        return
    answer = scope.cluster.get("/apis/security.istio.io/v1/peerauthentications")
    policies = [each for each in answer.body.get("items", []) if each["metadata"]["namespace"] in (namespace, _ISTIO_ROOT)]
    closed = [
        f"{ports} of {value}"
        for label, value, wanted in _REACHED_BY_STEPS
        if (ports := ", ".join(str(port) for port in wanted if _mode(policies, namespace, {label: value}, port) == "STRICT"))
    ]
    if closed:
        message = f"mutual TLS is required in namespace {namespace} at {'; '.join(closed)}: steps have no sidecar, and can't connect"
        remedy = "apply the three PeerAuthentications of k8s/README.md, 'For platform teams', Istio"
        yield Finding(WARNING, "istio", message, remedy)


def _mode(policies: Sequence[Mapping[str, Any]], namespace: str, labels: Mapping[str, str], port: int) -> str:
    """Return Istio's mode of mutual TLS at a port: the pod's own for the port, then the pod's, its namespace's, the mesh's."""
    ranked: list[tuple[int, str]] = []
    for each in policies:
        spec, is_here = each.get("spec") or {}, each["metadata"]["namespace"] == namespace
        selected = (spec.get("selector") or {}).get("matchLabels") or {}
        mode = (spec.get("mtls") or {}).get("mode", "UNSET")
        if not selected:
            ranked.append((2 if is_here else 3, mode))
        elif is_here and selected.items() <= labels.items():
            at_port = (spec.get("portLevelMtls") or {}).get(str(port)) or {}
            ranked += [(0, at_port.get("mode", "UNSET")), (1, mode)]
    return next((mode for _, mode in sorted(ranked) if mode != "UNSET"), "PERMISSIVE")


def check_rayjob_names(scope: Scope) -> Iterator[Finding]:
    """Look for RayJobs of one training in two namespaces: both would write to the same run."""
    answer = scope.cluster.get("/apis/ray.io/v1/rayjobs", labelSelector="app.kubernetes.io/managed-by=iddpm")
    names = Counter(each["metadata"]["name"] for each in answer.body.get("items", []))
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        yield Finding(WARNING, "rayjobs", f"in more than one namespace: {', '.join(twice)}")
    elif names:
        yield Finding(OK, "rayjobs", f"{len(names)}, each in one namespace")


def check_step_retries(scope: Scope) -> Iterator[Finding]:
    """Check that Argo retries a step whose pod was stopped; `k8s/components/kfp/workflow-defaults.yaml` sets that."""
    path = f"/api/v1/namespaces/{scope.connection.kfp_namespace}/configmaps/workflow-controller-configmap"
    answer = scope.cluster.get(path)
    if not answer.ok:
        return
    try:
        defaults = yaml.safe_load((answer.body.get("data") or {}).get("workflowDefaults", ""))
        strategy = defaults["spec"]["templateDefaults"]["retryStrategy"]
        # Without a policy Argo takes Always where there is an expression, else OnFailure.
        is_always = strategy.get("retryPolicy", "Always" if strategy.get("expression") else "") == "Always"
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        is_always = False
    if is_always:
        yield Finding(OK, "retries of steps", "a step whose pod was stopped is tried again")
    else:
        message = "KFP was not set up with our defaults: a run may end for good when a step's pod is drained or out of memory"
        yield Finding(WARNING, "retries of steps", message)


def check_kfp_settings(scope: Scope) -> Iterator[Finding]:
    """Check the images of KFP's driver and launcher against its server's, and the settings of its MLflow plugin."""
    namespace = scope.connection.kfp_namespace
    answer = scope.cluster.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/ml-pipeline")
    if not answer.ok:
        return
    pod = answer.body["spec"]["template"]["spec"]
    (server, *_) = pod["containers"]
    names = ("V2_DRIVER_IMAGE", "V2_LAUNCHER_IMAGE")
    # A variable from a config map has no value here, and a digest does not tell the release.
    images = {each["name"]: each["value"] for each in server.get("env") or () if each["name"] in names and each.get("value")}
    release = _tag(server["image"])
    other = sorted(image for image in images.values() if release and _tag(image) not in ("", release))
    if other:
        yield Finding(WARNING, "kfp driver and launcher", f"{', '.join(other)} are of another release than the server ({release})")
    elif images:
        yield Finding(OK, "kfp driver and launcher", ", ".join(sorted(images.values())))
    maps = [volume["configMap"]["name"] for volume in pod.get("volumes") or () if "configMap" in volume]
    for name in maps:
        data = scope.cluster.get(f"/api/v1/namespaces/{namespace}/configmaps/{name}").body.get("data") or {}
        plugin = _plugin(data.get("config.json", ""))
        if plugin is None:
            continue
        settings = plugin.get("settings") or {}
        wrong = []
        if settings.get("injectUserEnvVars"):
            wrong.append("injectUserEnvVars is true: while MLflow is away no step starts")
        if settings.get("defaultExperimentName") == _TRAININGS:
            wrong.append(f"defaultExperimentName is {_TRAININGS}: its runs of pipelines and steps stand among the trainings")
        link = settings.get("mlflowBaseURL") or plugin.get("endpoint", "")
        if contains_password(link):
            wrong.append("KFP's links to MLflow show a password: remove it from the address")
        elif is_cluster_internal(link):
            wrong.append(f"KFP's links to MLflow begin with {link}, which no browser outside opens: set settings.mlflowBaseURL")
        yield Finding(WARNING if wrong else OK, "mlflow plugin", f"is on; {'; '.join(wrong) or 'steps start while MLflow is away'}")


def _plugin(text: str) -> dict[str, Any] | None:
    try:
        plugin = json.loads(text)["plugins"]["mlflow"]
    except (ValueError, KeyError, TypeError):
        return None
    return plugin if isinstance(plugin, dict) else None


def _tag(image: str) -> str:
    return image.partition("@")[0].rpartition("/")[2].partition(":")[2]


def _namespace(scope: Scope, name: str) -> Response:
    return scope.cluster.get(f"/api/v1/namespaces/{name}")


def _labels(namespace: Response) -> dict[str, str]:
    return dict(namespace.body.get("metadata", {}).get("labels") or {})


def _has_sidecars(namespace: Response) -> bool:
    """True if a label of the namespace makes Istio inject its sidecars. A revision's label counts only without `istio-injection`."""
    labels = _labels(namespace)
    return labels.get("istio-injection", "enabled" if labels.get("istio.io/rev") else "") == "enabled"


def _reason(answer: Any) -> str:
    return "" if answer.ok else f": {answer.reason}"
