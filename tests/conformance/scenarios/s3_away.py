"""With S3 away for three minutes in the middle of a training the run goes on afterwards and succeeds."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Take S3 away during a training."""
    run = cluster.submit(*cluster.lasting(cluster.settings.away_seconds))
    cluster.training(run, step=100)
    restore = cluster.scale_to_zero("statefulsets", "seaweedfs")
    cluster.last(cluster.settings.away_seconds, "S3 is away")
    restore()
    cluster.finish(run)


def judge(record: Record) -> list[Claim]:
    """Judge a run that S3 was away from."""
    return [record.succeeded(), record.in_mlflow("MLflow has one finished run", "FINISHED")]
