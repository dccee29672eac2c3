"""A training whose pod is deleted twice, ten minutes apart, goes on each time from its last checkpoint and succeeds."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Delete the pod of a training in its step's pod, wait, and delete the next one."""
    gap = cluster.settings.gap_seconds
    run = cluster.submit(*cluster.lasting(2 * gap))  # it must not end before, if the pace was measured on a busy machine
    pod = cluster.training(run, step=100)
    cluster.first_score(pod)
    cluster.delete_pod(pod)
    second = cluster.training(run, after=pod)
    cluster.record.texts["first"] = cluster.log(second)
    cluster.last(gap, "the second try goes on")
    cluster.delete_pod(second)
    third = cluster.training(run, after=second)
    cluster.record.texts["second"] = cluster.log(third)
    cluster.finish(run)


def judge(record: Record) -> list[Claim]:
    """Judge a training whose pod was deleted."""
    tries = record.tries("train")
    killed = "Max duration" in record.message()
    return [
        record.succeeded(),
        Claim("the step is tried again after each deletion", [each["phase"] for each in tries][-1:] == ["Succeeded"], record.message()),
        Claim("no try is ended by the first try's clock", not killed, record.message()),
        record.says("the second try goes on from a checkpoint", "first", "resuming from step [1-9]"),
        record.says("so does the third", "second", "resuming from step [1-9]"),
        record.in_mlflow("MLflow has one finished run", "FINISHED"),
    ]
