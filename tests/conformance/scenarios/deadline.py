"""A training whose RayJob runs into its deadline goes on from its last checkpoint on a new RayJob and succeeds, and its log says why."""

import json

from conformance.cluster import RAYJOB, Cluster
from conformance.record import Claim, Record

SECONDS = 240
"""Long enough for a cluster to come up and train to a checkpoint, and too short for the training."""


def drive(cluster: Cluster) -> None:
    """Train for longer than the RayJob may run."""
    resources = json.loads(RAYJOB)
    resources["rayjob"] |= {"active_deadline_seconds": SECONDS}
    # A RayJob trains at up to 2.3 times the pace that is measured in a step's pod, and must not end before its deadline is noticed.
    run = cluster.submit("--resources", f"train={json.dumps(resources)}", *cluster.lasting(2.5 * SECONDS))
    cluster.finish(run, 5400)
    cluster.record.texts["log"] = "\n".join(cluster.log(name) for name in cluster.record.pods_of("executor"))


def judge(record: Record) -> list[Claim]:
    """Judge a run whose RayJob ran into its deadline."""
    return [
        record.succeeded(),
        Claim("a head is new", record.replaced("ray-head"), ", ".join(record.pods_of("ray-head"))),
        record.says("its log names the deadline", "log", r"failed \(DeadlineExceeded\).*going on from step [1-9]"),
        record.says("the training goes on from a checkpoint", "log", "resuming from step [1-9]"),
        record.in_mlflow("MLflow has one finished run", "FINISHED"),
    ]
