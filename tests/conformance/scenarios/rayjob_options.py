"""The pods of a Ray cluster have the labels, annotations, environment, volume, affinity and classes that were asked for, and it trains."""

import json
from collections.abc import Iterator
from typing import Any

from conformance.cluster import RAYJOB, Cluster
from conformance.record import Claim, Record

NAME = "iddpm-conformance"
LABELS, ANNOTATIONS = {"example.com/team": "vision"}, {"example.com/cost-center": "42"}
AFFINITY = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]}]
        }
    }
}
OPTIONS = {
    "labels": LABELS,
    "annotations": ANNOTATIONS,
    "env": {"CONFORMANCE": "asked for"},
    "volumes": [{"name": "extra", "emptyDir": {"sizeLimit": "16Mi"}}],
    "volume_mounts": [{"name": "extra", "mountPath": "/extra"}],
    "affinity": AFFINITY,
    "runtime_class": NAME,
    "priority_class": NAME,
}
PRIORITY = 1000
_LOOK = (
    "import os; open('/extra/file', 'w').write('kept'); print(os.environ['CONFORMANCE'], open('/extra/file').read(), os.listdir('/extra'))"
)


def drive(cluster: Cluster) -> None:
    """Train with every option of the pods, and look into the head and the worker."""
    classes = {"scheduling.k8s.io": ("PriorityClass", {"value": PRIORITY}), "node.k8s.io": ("RuntimeClass", {"handler": "runc"})}
    for group, (kind, fields) in classes.items():
        path = f"/apis/{group}/v1/{kind.lower()}es"
        cluster.make(path, {"apiVersion": f"{group}/v1", "kind": kind, "metadata": {"name": NAME}, **fields})
    resources = json.loads(RAYJOB)
    resources["rayjob"] |= OPTIONS
    run = cluster.submit("--resources", f"train={json.dumps(resources)}", *cluster.lasting(60))
    cluster.training(run)
    for kind in ("head", "worker"):
        (pod,) = cluster.ray_pods(kind)
        cluster.record.texts[kind] = cluster.execute(pod["metadata"]["name"], _LOOK, f"ray-{kind}")
    cluster.finish(run)


def judge(record: Record) -> list[Claim]:
    """Judge the first state of each pod, as the API server has it."""
    specs = {kind: [pod["spec"] for pod in _pods(record, kind)] for kind in ("ray-head", "ray-worker", "submitter")}
    every = [spec for group in specs.values() for spec in group]
    named = [states[0]["object"]["metadata"] for states in record.rayjobs.values()]
    named += [pod["metadata"] for pod in _pods(record, *specs)]
    lacking = [
        each["name"]
        for each in named
        if not LABELS.items() <= (each.get("labels") or {}).items() or not ANNOTATIONS.items() <= (each.get("annotations") or {}).items()
    ]
    classes = [(spec.get("priorityClassName"), spec.get("priority")) for spec in every]
    workers = [(spec.get("affinity"), spec.get("runtimeClassName")) for spec in specs["ray-worker"]]
    return [
        Claim("there are a head, a worker and a submitter", all(specs.values()), str({kind: len(group) for kind, group in specs.items()})),
        Claim("the RayJob and all its pods have the labels and annotations", bool(named) and not lacking, ", ".join(lacking)),
        Claim("all its pods have the priority", bool(every) and set(classes) == {(NAME, PRIORITY)}, str(classes)),
        Claim(
            "workers have the affinity and the runtime class",
            bool(workers) and all(each == (AFFINITY, NAME) for each in workers),
            str(workers),
        ),
        *(
            record.says(f"the {kind} has the environment and can write to the volume", kind, r"asked for kept \['file'\]")
            for kind in ("head", "worker")
        ),
        record.succeeded(),
    ]


def _pods(record: Record, *kinds: str) -> Iterator[dict[str, Any]]:
    for name in record.pods_of(*kinds):
        yield record.pods[name][0]["object"]
