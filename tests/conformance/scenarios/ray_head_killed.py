"""After Ray's head is killed the same run goes on from its last checkpoint on a new Ray cluster, and its log says why."""

from conformance.cluster import RAYJOB, Cluster
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Delete the head's pod of a training that has a checkpoint."""
    run = cluster.submit("--resources", f"train={RAYJOB}", *cluster.lasting(150))
    pod = cluster.training(run, step=100)
    cluster.wait("a checkpoint was scored", lambda: "scored step" in cluster.log(pod), 300)
    (lost,) = cluster.ray_pods("head")
    cluster.delete_pod(lost["metadata"]["name"])
    cluster.finish(run)
    cluster.record.texts["log"] = "\n".join(cluster.log(name) for name in cluster.record.pods_of("executor"))


def judge(record: Record) -> list[Claim]:
    """Judge a run that lost Ray's head."""
    return [
        record.succeeded(),
        Claim("a head is new", record.replaced("ray-head"), ", ".join(record.pods_of("ray-head"))),
        record.says("the training goes on from a checkpoint", "log", "resuming from step [1-9]"),
        record.in_mlflow("MLflow has one finished run", "FINISHED"),
    ]
