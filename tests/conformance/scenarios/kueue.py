"""A training with a Kueue queue waits, says so, and has no pod while the queue has no room; with room it starts and succeeds."""

import json
from collections.abc import Callable, Mapping

from conformance.cluster import RAYJOB, Cluster, NotHereError
from conformance.record import Claim, Record

QUEUE = "iddpm-conformance"


def drive(cluster: Cluster) -> None:
    """Train in a queue that is not there, then in one without room, and make room."""
    change_queue = make_queue(cluster)
    wrong = cluster.submit("--resources", f"train={in_queue('iddpm-conformance-nowhere')}")
    cluster.finish(wrong)
    run = cluster.submit("--resources", f"train={in_queue(QUEUE)}")
    pod = cluster.wait("the step waits", lambda: _waiting(cluster, run.run_id), 1200)
    cluster.record.texts["pods while it waits"] = f"{len(cluster.ray_pods())} pods"
    change_queue(quota("100", "400Gi"))
    cluster.finish(run)
    cluster.record.texts["log"] = cluster.log(pod)


def in_queue(queue: str) -> str:
    """Return the train resources of the smallest Ray cluster in a queue."""
    return json.dumps({**json.loads(RAYJOB), "queue": queue})


def quota(cores: str, memory: str) -> Mapping[str, object]:
    """Return a queue's settings with so much room."""
    resources = [{"name": "cpu", "nominalQuota": cores}, {"name": "memory", "nominalQuota": memory}]
    return {"resourceGroups": [{"coveredResources": ["cpu", "memory"], "flavors": [{"name": QUEUE, "resources": resources}]}]}


def make_queue(cluster: Cluster) -> Callable[[Mapping[str, object]], None]:
    """Make a queue without room, and return what changes its settings.

    Raises:
        NotHereError: Kueue is not on the cluster.
    """
    group = cluster.call("GET", "/apis/kueue.x-k8s.io")
    if group is None:
        raise NotHereError("Kueue is not on this cluster")
    api = f"kueue.x-k8s.io/{group['preferredVersion']['version']}"
    root = f"/apis/{api}"

    def make(path: str, kind: str, spec: Mapping[str, object]) -> None:
        cluster.make(f"{root}/{path}", {"apiVersion": api, "kind": kind, "metadata": {"name": QUEUE}, "spec": spec})

    def change(spec: Mapping[str, object]) -> None:
        print(f"    the queue gets {json.dumps(spec)}", flush=True)
        cluster.call("PATCH", f"{root}/clusterqueues/{QUEUE}", {"spec": spec})

    make("resourceflavors", "ResourceFlavor", {})
    make("clusterqueues", "ClusterQueue", {"namespaceSelector": {}, **quota("1", "1Gi")})
    make(f"namespaces/{cluster.settings.namespace}/localqueues", "LocalQueue", {"clusterQueue": QUEUE})
    return change


def _waiting(cluster: Cluster, run_id: str) -> str:
    pod = cluster.try_of(run_id, "train")
    name = str(pod["metadata"]["name"]) if pod else ""
    return name if name and "queue: " in cluster.log(name) else ""


def judge(record: Record) -> list[Claim]:
    """Judge both runs."""
    return [
        Claim("a queue that does not exist fails the run", record.phase() == "Failed", record.message()),
        record.says("and the error names it", "submit", r"there is no LocalQueue 'iddpm-conformance-nowhere'"),
        record.says("the step says what it waits for", "log", r"queue: .*quota"),
        record.says("no pod of Ray is there meanwhile", "pods while it waits", r"\A0 pods\Z"),
        record.says("the RayJob is suspended at first", "log", r"RayJob \S+ waits in the queue"),
        record.succeeded(1),
    ]
