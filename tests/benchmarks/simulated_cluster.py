"""Place 64-GPU trainings on 200 simulated nodes: `python tests/benchmarks/simulated_cluster.py`; KUBECONFIG names the cluster.

It needs Kubernetes with its real scheduler, KubeRay's operator and kwok (https://kwok.sigs.k8s.io), which acts for nodes and pods that
don't exist. It makes the nodes and a namespace, creates the RayJobs that a step creates, waits until each pod has a node, prints what it
saw, and deletes all of it. The namespace enforces Pod Security's level `restricted`. With `--queue` the trainings go through Kueue: the
quota is for all but one of them, which must get no pod until another one ends.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from components.cluster.names import GROUP, PLURAL, RUN_LABEL, VERSION
from components.launch.rayjob.manifest import RayJob, render
from components.launch.resources import read_resources

NAMESPACE = "iddpm-simulated"
NUM_NODES, GPUS = 200, 8
NODE_SELECTOR = {"iddpm/simulated": "true"}
_RAYJOBS = (GROUP, VERSION, NAMESPACE, PLURAL)
_KUEUE = ("kueue.x-k8s.io", "v1beta1")
_QUEUE = "simulated"


def main() -> int:
    """Run it; the exit status is 1 where a pod got no node, or two trainings share one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", type=int, default=25, help="number of trainings; 25 take all 1,600 GPUs")
    parser.add_argument("--queue", action="store_true", help="through Kueue, with one training more")
    arguments = parser.parse_args()
    config.load_kube_config()
    with _nodes(), _namespace(arguments.trainings, with_queue=arguments.queue):
        for number in range(arguments.trainings + arguments.queue):
            manifest = _manifest(number, with_queue=arguments.queue)
            client.CustomObjectsApi().create_namespaced_custom_object(*_RAYJOBS, manifest, field_validation="Strict")
        began = time.monotonic()
        placed = _wait(_pods, arguments.trainings * 9)  # 8 workers and a head
        print(f"{arguments.trainings} trainings, {len(placed)} pods: all have nodes after {time.monotonic() - began:.0f} s")
        nodes: dict[str, list[str]] = defaultdict(list)
        for pod in placed:
            if pod.metadata.labels["ray.io/node-type"] == "worker":
                nodes[pod.metadata.labels[RUN_LABEL]].append(pod.spec.node_name)
        used = [name for names in nodes.values() for name in names]
        print(
            f"each training is on {min(len(set(names)) for names in nodes.values())} nodes; {len(set(used))} of {NUM_NODES} nodes are full"
        )
        problems = ["two workers share a node"] if len(set(used)) != len(used) else []
        if arguments.queue:
            problems += _next_in_queue()
    print(f"problems: {', '.join(problems)}" if problems else "no problems")
    return 1 if problems else 0


def _next_in_queue() -> list[str]:
    """End one training, and wait until the one that waits has its pods; return what is wrong."""
    waiting = [each for each in _rayjobs() if each["spec"].get("suspend")]
    if len(waiting) != 1:
        return [f"{len(waiting)} trainings wait in the queue, not 1"]
    name = waiting[0]["metadata"]["name"]
    if _pods(name):
        return ["the training that waits has pods"]
    _delete_rayjob(next(each for each in _rayjobs() if not each["spec"].get("suspend")))
    began = time.monotonic()
    _wait(lambda: _pods(name), 9)
    print(f"the training that waited without a pod has all 9 of them {time.monotonic() - began:.0f} s after another one ended")
    return []


# -- what is made ------------------------------------------------------------------------------------------------------


def _manifest(number: int, *, with_queue: bool) -> dict[str, Any]:
    """The RayJob that a step makes of the profile `rayjob-8x8gpu`."""
    given = {"profile": "rayjob-8x8gpu", "node_selector": NODE_SELECTOR, **({"queue": _QUEUE} if with_queue else {})}
    manifest = render(
        RayJob(
            run_key=f"imagenet64-hybrid-cosine-{number:010d}",
            run_uri=f"s3://iddpm/runs/{number}",
            entrypoint=("python", "-m", "components.launch.driver", "s3://iddpm/call.json"),
            namespace=NAMESPACE,
            image="iddpm-pipelines:0.1.0",
            resources=read_resources(json.dumps(given), stage="train"),
        )
    )
    manifest["spec"]["submissionMode"] = "InteractiveMode"  # a submitter would find no Ray in these pods, and the training would end
    return manifest


def _rayjobs() -> list[dict[str, Any]]:
    return list(client.CustomObjectsApi().list_namespaced_custom_object(*_RAYJOBS)["items"])


def _delete_rayjob(rayjob: dict[str, Any]) -> None:
    client.CustomObjectsApi().delete_namespaced_custom_object(*_RAYJOBS, rayjob["metadata"]["name"])


@contextmanager
def _nodes() -> Iterator[None]:
    core = client.CoreV1Api()
    amounts = {"cpu": "96", "memory": "1Ti", "pods": "110", "nvidia.com/gpu": str(GPUS), "ephemeral-storage": "2Ti"}
    status = {"allocatable": amounts, "capacity": amounts, "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}
    names = [f"iddpm-simulated-{number:03d}" for number in range(NUM_NODES)]
    for name in names:
        labels = {**NODE_SELECTOR, "kubernetes.io/hostname": name}
        metadata = {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}}
        core.create_node({"metadata": metadata, "status": status})
    try:
        yield
    finally:
        core.delete_collection_node(label_selector="iddpm/simulated=true")


@contextmanager
def _namespace(trainings: int, *, with_queue: bool) -> Iterator[None]:
    core, custom = client.CoreV1Api(), client.CustomObjectsApi()
    core.create_namespace({"metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
    core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": "iddpm-ray"}})
    made: list[tuple[str, str]] = []
    try:
        if with_queue:
            quota = {"cpu": "20k", "memory": "1Pi", "nvidia.com/gpu": str(trainings * NUM_NODES * GPUS // 25)}
            flavor = {"name": _QUEUE, "resources": [{"name": name, "nominalQuota": amount} for name, amount in quota.items()]}
            spec = {"namespaceSelector": {}, "resourceGroups": [{"coveredResources": list(quota), "flavors": [flavor]}]}
            for plural, kind, body in (
                ("resourceflavors", "ResourceFlavor", {"spec": {"nodeLabels": NODE_SELECTOR}}),
                ("clusterqueues", "ClusterQueue", {"spec": spec}),
            ):
                header = {"apiVersion": "/".join(_KUEUE), "kind": kind, "metadata": {"name": _QUEUE}}
                custom.create_cluster_custom_object(*_KUEUE, plural, header | body)
                made.append((plural, _QUEUE))
            header = {"apiVersion": "/".join(_KUEUE), "kind": "LocalQueue", "metadata": {"name": _QUEUE}}
            custom.create_namespaced_custom_object(*_KUEUE, NAMESPACE, "localqueues", header | {"spec": {"clusterQueue": _QUEUE}})
        yield
    finally:
        for rayjob in _rayjobs():
            _delete_rayjob(rayjob)
        core.delete_namespace(NAMESPACE)
        for plural, name in reversed(made):
            custom.delete_cluster_custom_object(*_KUEUE, plural, name)


# -- what is seen ------------------------------------------------------------------------------------------------------


def _pods(run: str = "") -> list[Any]:
    """The pods of Ray that have a node: of all trainings, or of one."""
    selector = f"{RUN_LABEL}={run}" if run else RUN_LABEL
    found = client.CoreV1Api().list_namespaced_pod(NAMESPACE, label_selector=f"{selector},ray.io/node-type in (head,worker)").items
    return [pod for pod in found if pod.spec.node_name and not pod.metadata.deletion_timestamp]


def _wait(look: Callable[[], list[Any]], count: int, seconds: float = 900) -> list[Any]:
    """Look until there are so many."""
    deadline = time.monotonic() + seconds
    while len(found := look()) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:.0f} s only {len(found)} of {count} pods have nodes")
        time.sleep(2)
    return found


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ApiException, TimeoutError) as error:
        sys.exit(f"error: {' '.join(str(error).split())[:400]}")
