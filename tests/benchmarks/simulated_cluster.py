"""Place 64-GPU trainings on 200 simulated nodes: `python tests/benchmarks/simulated_cluster.py`; KUBECONFIG names the cluster.

It needs Kubernetes with its real scheduler, KubeRay's operator and kwok (https://kwok.sigs.k8s.io), which acts for nodes and pods that
don't exist. It makes the nodes and a namespace, creates the RayJobs that a step creates, waits until each pod has a node, prints what it
saw, and deletes all of it. The namespace enforces Pod Security's level `restricted`.

With `--waiting` Kueue is needed too: so many trainings more are in its queue, which has room for the others. They have no pods. Then one
of those that are placed is deleted, and one of those that wait has to get its nodes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from components.cluster.names import GROUP, PLURAL, RUN_LABEL, VERSION
from components.launch.rayjob.manifest import RayJob, render
from components.launch.resources import read_resources

NAMESPACE = "iddpm-simulated"
NUM_NODES, GPUS = 200, 8
QUEUE = "iddpm-simulated"
NODE_SELECTOR = {"iddpm/simulated": "true"}
_RAYJOBS = (GROUP, VERSION, NAMESPACE, PLURAL)


def main() -> int:
    """Run it; the exit status is 1 where a pod got no node, or two workers share one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", type=int, default=25, help="number of trainings; 25 take all 1,600 GPUs")
    parser.add_argument("--waiting", type=int, default=0, help="number of trainings more, which wait in a queue of Kueue")
    arguments = parser.parse_args()
    config.load_kube_config()
    with _nodes(), _namespace(), _queue(arguments.trainings) if arguments.waiting else nullcontext(""):
        for number in range(arguments.trainings + arguments.waiting):
            manifest = _manifest(number, QUEUE if arguments.waiting else "")
            client.CustomObjectsApi().create_namespaced_custom_object(*_RAYJOBS, manifest, field_validation="Strict")
        began = time.monotonic()
        placed = _wait(_pods, arguments.trainings * 9)  # 8 workers and a head
        print(f"{arguments.trainings} trainings, {len(placed)} pods: all have nodes after {time.monotonic() - began:.0f} s")
        nodes: dict[str, list[str]] = defaultdict(list)
        for pod in placed:
            if pod.metadata.labels["ray.io/node-type"] == "worker":
                nodes[pod.metadata.labels[RUN_LABEL]].append(pod.spec.node_name)
        used = [name for names in nodes.values() for name in names]
        fewest = min(len(set(names)) for names in nodes.values())
        print(f"each training is on {fewest} nodes; {len(set(used))} of {NUM_NODES} nodes are full")
        is_right = len(set(used)) == len(used)
        if arguments.waiting:
            is_right &= _is_followed_by_one_that_waits(next(iter(nodes)), arguments.waiting)
    return 0 if is_right else 1


def _is_followed_by_one_that_waits(run: str, num_waiting: int) -> bool:
    """Delete the training of a run; true if as many waited without a pod as should, and one of them gets nodes for all its pods."""
    with_pods = {
        pod.metadata.labels[RUN_LABEL] for pod in client.CoreV1Api().list_namespaced_pod(NAMESPACE, label_selector=RUN_LABEL).items
    }
    rayjobs = client.CustomObjectsApi().list_namespaced_custom_object(*_RAYJOBS)["items"]
    waiting = {job["metadata"]["labels"][RUN_LABEL] for job in rayjobs if job["spec"].get("suspend")}
    print(f"{len(waiting)} trainings wait in the queue; {len(waiting & with_pods)} of them have pods")
    is_right = len(waiting) == num_waiting and not waiting & with_pods
    began = time.monotonic()
    (name,) = [job["metadata"]["name"] for job in rayjobs if job["metadata"]["labels"][RUN_LABEL] == run]
    client.CustomObjectsApi().delete_namespaced_custom_object(*_RAYJOBS, name)
    _wait(lambda: [pod for pod in _pods() if pod.metadata.labels[RUN_LABEL] in waiting], 9)
    print(f"a training was deleted: one of them has 9 pods with nodes after {time.monotonic() - began:.0f} s")
    return is_right


# -- what is made ------------------------------------------------------------------------------------------------------


def _manifest(number: int, queue: str) -> dict[str, Any]:
    """The RayJob that a step makes of the profile `rayjob-8x8gpu`, in a queue of Kueue unless its name is empty."""
    given = {"profile": "rayjob-8x8gpu", "node_selector": NODE_SELECTOR, "queue": queue}
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
def _queue(num_trainings: int) -> Iterator[None]:
    """A queue of Kueue with the GPUs of so many trainings, and more processors and memory than they ask for."""
    api = next((each for each in client.ApisApi().get_api_versions().groups if each.name == "kueue.x-k8s.io"), None)
    if api is None:
        sys.exit("error: Kueue is not on this cluster; --waiting needs it")
    custom, version = client.CustomObjectsApi(), api.preferred_version.version
    amounts = {"cpu": 96 * NUM_NODES, "memory": f"{NUM_NODES}Ti", "nvidia.com/gpu": 64 * num_trainings}
    quotas = [{"name": name, "nominalQuota": str(amount)} for name, amount in amounts.items()]
    group = {"coveredResources": list(amounts), "flavors": [{"name": QUEUE, "resources": quotas}]}
    made = (
        ("resourceflavors", "ResourceFlavor", {"nodeLabels": NODE_SELECTOR}),
        ("clusterqueues", "ClusterQueue", {"namespaceSelector": {}, "resourceGroups": [group]}),
    )

    def body(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        return {"apiVersion": f"{api.name}/{version}", "kind": kind, "metadata": {"name": QUEUE}, "spec": spec}

    for plural, kind, spec in made:
        custom.create_cluster_custom_object(api.name, version, plural, body(kind, spec))
    try:
        local = body("LocalQueue", {"clusterQueue": QUEUE})
        custom.create_namespaced_custom_object(api.name, version, NAMESPACE, "localqueues", local)
        yield
    finally:  # Kueue lets them go when the trainings are gone
        for plural, _, _ in reversed(made):
            custom.delete_cluster_custom_object(api.name, version, plural, QUEUE)


@contextmanager
def _namespace() -> Iterator[None]:
    core = client.CoreV1Api()
    core.create_namespace({"metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
    core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": "iddpm-ray"}})
    try:
        yield
    finally:
        for rayjob in client.CustomObjectsApi().list_namespaced_custom_object(*_RAYJOBS)["items"]:
            client.CustomObjectsApi().delete_namespaced_custom_object(*_RAYJOBS, rayjob["metadata"]["name"])
        core.delete_namespace(NAMESPACE)
        _wait(_namespace_is_gone, 1)  # its pods need their nodes to end


# -- what is seen ------------------------------------------------------------------------------------------------------


def _pods() -> list[Any]:
    """The pods of Ray that have a node."""
    found = client.CoreV1Api().list_namespaced_pod(NAMESPACE, label_selector=f"{RUN_LABEL},ray.io/node-type in (head,worker)").items
    return [pod for pod in found if pod.spec.node_name and not pod.metadata.deletion_timestamp]


def _namespace_is_gone() -> list[bool]:
    return [] if NAMESPACE in [each.metadata.name for each in client.CoreV1Api().list_namespace().items] else [True]


def _wait(look: Callable[[], list[Any]], count: int, seconds: float = 900) -> list[Any]:
    """Look until there are so many."""
    deadline = time.monotonic() + seconds
    while len(found := look()) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:.0f} s only {len(found)} of {count} are there")
        time.sleep(2)
    return found


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ApiException, TimeoutError) as error:
        sys.exit(f"error: {' '.join(str(error).split())[:400]}")
