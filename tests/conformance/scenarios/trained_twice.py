"""The same run submitted twice at once, each to train in its own step's pod, trains once: the second waits for the first one's end."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record
from conformance.scenarios.submitted_twice import submit_twice


def drive(cluster: Cluster) -> None:
    """Submit two runs, and note what their training steps print."""
    submit_twice(cluster, *cluster.lasting(120))
    logs = [cluster.log(pod) for pod in cluster.record.pods_of("executor")]
    cluster.record.texts["trained"] = f"{sum('scored step' in log for log in logs)} pods scored checkpoints"
    cluster.record.texts["waited"] = "\n".join(log for log in logs if "waiting for its end" in log)


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
