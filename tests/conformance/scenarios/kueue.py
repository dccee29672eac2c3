"""A training in a Kueue queue waits without a pod while there is no room, and goes on later when its room is taken back as it runs."""

import json
from collections.abc import Callable, Mapping

from conformance.cluster import RAYJOB, Cluster, NotHereError
from conformance.record import Claim, Record, status_of

_NAME = "iddpm-conformance"


def drive(cluster: Cluster) -> None:
    """Make a queue without room, train in it, make room, and take it back for a while."""
    group = cluster.call("GET", "/apis/kueue.x-k8s.io")
    if group is None:
        raise NotHereError("Kueue is not on this cluster")
    change_queue = _make_queue(cluster, group["preferredVersion"]["version"])
    train = {**json.loads(RAYJOB), "queue": "iddpm-conformance-nowhere"}
    wrong = cluster.submit("--resources", f"train={json.dumps(train)}")
    cluster.finish(wrong)
    run = cluster.submit("--resources", f"train={json.dumps({**train, 'queue': _NAME})}", *cluster.lasting(150))
    pod = cluster.wait("the step waits", lambda: _waiting(cluster, run.run_id), 1200)
    cluster.record.texts["pods while it waits"] = f"{len(cluster.ray_pods())} pods"
    change_queue({"resourceGroups": _resource_group("100", "400Gi")})
    cluster.training(run, step=100)
    cluster.wait("a checkpoint was scored", lambda: "scored step" in cluster.log(pod), 300)
    change_queue({"stopPolicy": "HoldAndDrain"})
    cluster.wait("its Ray cluster is gone", lambda: not cluster.ray_pods("head") and not cluster.ray_pods("worker"), 600)
    change_queue({"stopPolicy": "None"})
    cluster.finish(run)
    cluster.record.texts["log"] = cluster.log(pod)


def _waiting(cluster: Cluster, run_id: str) -> str:
    pod = cluster.try_of(run_id, "train")
    name = str(pod["metadata"]["name"]) if pod else ""
    return name if name and "queue: " in cluster.log(name) else ""


def _make_queue(cluster: Cluster, version: str) -> Callable[[Mapping[str, object]], None]:
    """Make a queue without room, and return what changes its settings."""
    api = f"kueue.x-k8s.io/{version}"
    root = f"/apis/{api}"

    def make(path: str, kind: str, spec: Mapping[str, object]) -> None:
        cluster.undo.callback(cluster.call, "DELETE", f"{root}/{path}/{_NAME}")
        cluster.call("POST", f"{root}/{path}", {"apiVersion": api, "kind": kind, "metadata": {"name": _NAME}, "spec": spec})

    def change(spec: Mapping[str, object]) -> None:
        print(f"    the queue gets {json.dumps(spec)}", flush=True)
        cluster.call("PATCH", f"{root}/clusterqueues/{_NAME}", {"spec": spec})

    make("resourceflavors", "ResourceFlavor", {})
    make("clusterqueues", "ClusterQueue", {"namespaceSelector": {}, "resourceGroups": _resource_group("1", "1Gi")})
    make(f"namespaces/{cluster.settings.namespace}/localqueues", "LocalQueue", {"clusterQueue": _NAME})
    return change


def _resource_group(cores: str, memory: str) -> list[object]:
    quota = [{"name": "cpu", "nominalQuota": cores}, {"name": "memory", "nominalQuota": memory}]
    return [{"coveredResources": ["cpu", "memory"], "flavors": [{"name": _NAME, "resources": quota}]}]


def judge(record: Record) -> list[Claim]:
    """Judge both runs."""
    states = [status_of(state).get("jobDeploymentStatus", "") for states in record.rayjobs.values() for state in states]
    return [
        Claim("a queue that does not exist fails the run", record.phase() == "Failed", record.message()),
        record.says("and the error names it", "submit", r"there is no LocalQueue 'iddpm-conformance-nowhere'"),
        record.says("the step says what it waits for", "log", r"queue: .*quota"),
        record.says("no pod of Ray is there meanwhile", "pods while it waits", r"\A0 pods\Z"),
        Claim("the RayJob is suspended at first", "Suspended" in states if record.rayjobs else None, str(list(dict.fromkeys(states)))),
        Claim("and again after it ran", "Suspended" in states[states.index("Running") :] if "Running" in states else None, str(states)),
        record.says("it goes on from its last checkpoint", "log", r"resuming from step [\d,]+"),
        record.succeeded(1),
    ]
