"""The same run submitted twice at once trains once: both succeed, with one RayJob and one run in MLflow."""

from conformance.cluster import RAYJOB, Cluster
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Submit two runs that train on a Ray cluster."""
    submit_twice(cluster, "--resources", f"train={RAYJOB}", *cluster.lasting(90))


def submit_twice(cluster: Cluster, *options: str) -> None:
    """Submit two runs with the same seed, wait for both, and note the runs of that seed in MLflow."""
    seed = cluster.new_seed()
    first = cluster.submit(*options, seed=seed)
    second = cluster.submit(*options, seed=seed)
    cluster.finish(first)
    cluster.finish(second)
    experiment = cluster.mlflow_runs()
    mine = [each for each in experiment if any(p["key"] == "seed" and p["value"] == str(seed) for p in each["data"].get("params", ()))]
    statuses = ", ".join(each["info"]["status"] for each in mine)
    cluster.record.texts["mlflow"] = f"{len(mine)} of {len(experiment)} runs have this seed, {statuses}"


def judge(record: Record) -> list[Claim]:
    """Judge two runs of one training."""
    return [
        record.succeeded(0),
        record.succeeded(1),
        Claim("there is one RayJob", len(record.rayjobs) == 1, ", ".join(record.rayjobs)),
        record.says("MLflow has one run of it", "mlflow", r"^1 of"),
    ]
