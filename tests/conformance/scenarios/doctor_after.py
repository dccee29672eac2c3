"""After all scenarios `iddpm doctor` finds nothing wrong, and no RayJob of them is left."""

import json

from conformance.cluster import Cluster
from conformance.record import Claim, Record
from conformance.scenarios import doctor_before


def drive(cluster: Cluster) -> None:
    """Ask doctor, and look for RayJobs of the session."""
    doctor_before.drive(cluster)
    root = cluster.settings.storage_root_uri
    found = cluster.items(f"/apis/ray.io/v1/namespaces/{cluster.settings.namespace}/rayjobs")
    left = [each["metadata"]["name"] for each in found if root in json.dumps(each["metadata"].get("annotations") or {})]
    cluster.record.texts["left"] = f"{len(left)} left {' '.join(left)}"


def judge(record: Record) -> list[Claim]:
    """Judge doctor's answer, and what is left."""
    return [*doctor_before.judge(record), record.says("no RayJob is left", "left", "^0 left")]
