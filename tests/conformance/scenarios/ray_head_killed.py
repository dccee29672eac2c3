"""After Ray's head is killed the same run goes on from its last checkpoint on a new Ray cluster, and its log says why."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Delete the head's pod of a training that has a checkpoint."""
    cluster.lose_ray_pod("head")


def judge(record: Record) -> list[Claim]:
    """Judge a run that lost Ray's head."""
    return [
        record.succeeded(),
        Claim("a head is new", record.replaced("ray-head"), ", ".join(record.pods_of("ray-head"))),
        record.says("the training goes on from a checkpoint", "log", "resuming from step [1-9]"),
        record.in_mlflow("MLflow has one finished run", "FINISHED"),
    ]
