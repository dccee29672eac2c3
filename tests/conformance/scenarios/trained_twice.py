"""The same run submitted twice at once, each to train in its own step's pod, trains once: the second waits for the first one's end."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Submit two runs with the same seed, and note what their training steps print."""
    seed, options = cluster.new_seed(), cluster.lasting(120)
    first = cluster.submit(*options, seed=seed)
    second = cluster.submit(*options, seed=seed)
    cluster.finish(first)
    cluster.finish(second)
    logs = [cluster.log(pod) for pod in cluster.record.pods_of("executor")]
    cluster.record.texts["trained"] = f"{sum('scored step' in log for log in logs)} pods scored checkpoints"
    cluster.record.texts["waited"] = "\n".join(log for log in logs if "waiting for its end" in log)
    experiment = cluster.mlflow_runs()
    mine = [each for each in experiment if any(p["key"] == "seed" and p["value"] == str(seed) for p in each["data"].get("params", ()))]
    cluster.record.texts["mlflow"] = f"{len(mine)} of {len(experiment)} runs have this seed, {mine[0]['info']['status'] if mine else ''}"


def judge(record: Record) -> list[Claim]:
    """Judge two runs of one training."""
    return [
        record.succeeded(0),
        record.succeeded(1),
        record.says("one pod trains", "trained", "^1 pods"),
        record.says("the other one waits", "waited", "is trained by .*; waiting for its end"),
        record.says("and takes its result", "waited", "is already trained to step"),
        record.says("MLflow has one finished run of it", "mlflow", r"^1 of .* FINISHED$"),
    ]
