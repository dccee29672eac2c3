"""`iddpm doctor` finds nothing wrong with the cluster."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Ask doctor."""
    cluster.iddpm("doctor", "--bucket", cluster.settings.bucket, seconds=900, note="doctor")


def judge(record: Record) -> list[Claim]:
    """Judge its answer."""
    return [record.says("doctor finds no failure", "doctor", r"(?s)\b0 failures.*exit code 0$")]
