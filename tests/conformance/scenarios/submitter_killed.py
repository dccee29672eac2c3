"""After the submitter's pod is deleted the training goes on, and the run succeeds."""

from conformance.cluster import RAYJOB, Cluster
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Delete the submitter's pod of a training."""
    run = cluster.submit("--resources", f"train={RAYJOB}", *cluster.lasting(120))
    cluster.training(run, step=100)
    (lost,) = cluster.ray_pods("submitter")
    cluster.delete_pod(lost["metadata"]["name"])
    cluster.finish(run)


def judge(record: Record) -> list[Claim]:
    """Judge a run that lost the submitter's pod."""
    return [
        record.succeeded(),
        Claim("the submitter's pod was lost", any(map(record.deleted, record.pods_of("submitter"))), "it was not deleted"),
        record.in_mlflow("MLflow has one finished run", "FINISHED"),
    ]
