"""A training with a Kueue queue waits, says so, and has no pod while the queue has no room; with room it starts and succeeds."""

import json
from collections.abc import Callable

from conformance.cluster import RAYJOB, Cluster, NotHereError
from conformance.record import Claim, Record, status_of

_NAME = "iddpm-conformance"


def drive(cluster: Cluster) -> None:
    """Make a queue without room, train in it, and make room."""
    group = cluster.call("GET", "/apis/kueue.x-k8s.io")
    if group is None:
        raise NotHereError("Kueue is not on this cluster")
    version = group["preferredVersion"]["version"]
    make_room = _make_queue(cluster, version)
    train = {**json.loads(RAYJOB), "queue": "iddpm-conformance-nowhere"}
    wrong = cluster.submit("--resources", f"train={json.dumps(train)}")
    cluster.finish(wrong)
    run = cluster.submit("--resources", f"train={json.dumps({**train, 'queue': _NAME})}")
    pod = cluster.wait("the step waits", lambda: _waiting(cluster, run.run_id), 1200)
    cluster.record.texts["pods while it waits"] = f"{len(cluster.ray_pods())} pods"
    make_room()
    cluster.finish(run)
    cluster.record.texts["log"] = cluster.log(pod)


def _waiting(cluster: Cluster, run_id: str) -> str:
    pod = cluster.try_of(run_id, "train")
    name = str(pod["metadata"]["name"]) if pod else ""
    return name if name and "queue: " in cluster.log(name) else ""


def _make_queue(cluster: Cluster, version: str) -> Callable[[], None]:
    """Make a queue without room, and return what makes room in it."""
    api = f"kueue.x-k8s.io/{version}"
    root = f"/apis/{api}"

    def resource_group(cores: str, memory: str) -> list[object]:
        quota = [{"name": "cpu", "nominalQuota": cores}, {"name": "memory", "nominalQuota": memory}]
        return [{"coveredResources": ["cpu", "memory"], "flavors": [{"name": _NAME, "resources": quota}]}]

    def make(path: str, kind: str, spec: dict[str, object]) -> None:
        cluster.undo.callback(cluster.call, "DELETE", f"{root}/{path}/{_NAME}")
        cluster.call("POST", f"{root}/{path}", {"apiVersion": api, "kind": kind, "metadata": {"name": _NAME}, **spec})

    def make_room() -> None:
        cluster.call("PATCH", f"{root}/clusterqueues/{_NAME}", {"spec": {"resourceGroups": resource_group("100", "400Gi")}})

    make("resourceflavors", "ResourceFlavor", {"spec": {}})
    make("clusterqueues", "ClusterQueue", {"spec": {"namespaceSelector": {}, "resourceGroups": resource_group("1", "1Gi")}})
    make(f"namespaces/{cluster.settings.namespace}/localqueues", "LocalQueue", {"spec": {"clusterQueue": _NAME}})
    return make_room


def judge(record: Record) -> list[Claim]:
    """Judge both runs."""
    states = [status_of(state).get("jobDeploymentStatus", "") for states in record.rayjobs.values() for state in states]
    return [
        Claim("a queue that does not exist fails the run", record.phase() == "Failed", record.message()),
        record.says("and the error names it", "submit", r"there is no LocalQueue 'iddpm-conformance-nowhere'"),
        record.says("the step says what it waits for", "log", r"queue: .*quota"),
        record.says("no pod of Ray is there meanwhile", "pods while it waits", r"\A0 pods\Z"),
        Claim("the RayJob is suspended at first", "Suspended" in states if record.rayjobs else None, str(list(dict.fromkeys(states)))),
        record.succeeded(1),
    ]
