"""A training on a Ray cluster that KubeRay makes runs to its report, and the cluster goes away."""

from conformance.cluster import RAYJOB, Cluster
from conformance.record import Claim, Record, status_of
from conformance.scenarios import train_local


def drive(cluster: Cluster) -> None:
    """Submit, wait for the end and for Ray's pods to go."""
    run = cluster.submit("--resources", f"train={RAYJOB}")
    cluster.finish(run)
    cluster.wait("Ray's pods are gone", lambda: not cluster.ray_pods(), 600)


def judge(record: Record) -> list[Claim]:
    """Judge an undisturbed run with a RayJob."""
    return [*train_local.judge(record), *rayjob_claims(record, 1)]


def rayjob_claims(record: Record, number: int) -> list[Claim]:
    """Claim how many RayJobs there were, that the last succeeded, and that no pod of Ray is left."""
    jobs = sorted(record.rayjobs.values(), key=lambda states: states[0]["at"])
    ends = [status_of(state).get("jobStatus") for state in jobs[-1]] if jobs else []
    left = [
        name
        for name in record.pods_of("ray-head", "ray-worker")
        if record.pods[name][-1]["event"] != "DELETED" and status_of(record.pods[name][-1]).get("phase") == "Running"
    ]
    return [
        Claim(f"it makes {number} RayJob{'s' if number > 1 else ''}", len(jobs) == number, ", ".join(record.rayjobs)),
        Claim("the RayJob succeeds", "SUCCEEDED" in ends, str(ends[-1:])),
        Claim("no pod of Ray is left", not left, ", ".join(left)),
    ]
