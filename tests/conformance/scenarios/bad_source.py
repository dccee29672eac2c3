"""A source of images that does not exist fails the run with the step's own error, and is not tried again."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Submit a run whose images are not there."""
    cluster.finish(cluster.submit("--param", f"data_source={cluster.settings.storage_root_uri}/nowhere.zip"))


def judge(record: Record) -> list[Claim]:
    """Judge a run that can't get its images."""
    tries = record.tries("preprocess")
    return [
        Claim("the run fails", record.phase() in ("Failed", "Error"), record.phase()),
        Claim("preprocess is tried once", [each["phase"] for each in tries] == ["Failed"], str([each["phase"] for each in tries])),
        record.says("submit shows the step's error", "submit", r"failed at preprocess: .*nowhere\.zip"),
        record.says("and fails", "submit", r"exit code [1-9]\d*$"),
    ]
