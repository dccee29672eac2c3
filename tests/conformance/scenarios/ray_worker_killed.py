"""A Ray worker that is killed is replaced, and the training goes on from its last checkpoint on the same RayJob."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Delete the worker's pod of a training that has a checkpoint."""
    cluster.lose_ray_pod("worker")


def judge(record: Record) -> list[Claim]:
    """Judge a run that lost a worker's pod."""
    return [
        record.succeeded(),
        Claim("a worker's pod is new", record.replaced("ray-worker"), ", ".join(record.pods_of("ray-worker"))),
        Claim("the RayJob is the same", len(record.rayjobs) == 1, ", ".join(record.rayjobs)),
        record.says("the training goes on from a checkpoint", "log", "resuming from step [1-9]"),
        record.in_mlflow("MLflow has one finished run", "FINISHED"),
    ]
