"""A training whose Kueue queue takes its room back goes on from its last checkpoint when there is room again, and succeeds."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record, status_of
from conformance.scenarios.kueue import QUEUE, in_queue, make_queue, quota


def drive(cluster: Cluster) -> None:
    """Train in a queue, and stop and release the queue under the training."""
    change_queue = make_queue(cluster)
    change_queue(quota("100", "400Gi"))
    run = cluster.submit("--resources", f"train={in_queue(QUEUE)}", *cluster.lasting(150))
    pod = cluster.training(run, step=100)
    cluster.first_score(pod)
    change_queue({"stopPolicy": "HoldAndDrain"})
    cluster.wait("its Ray cluster is gone", lambda: not cluster.ray_pods("head") and not cluster.ray_pods("worker"), 600)
    change_queue({"stopPolicy": "None"})
    cluster.finish(run)
    cluster.record.texts["log"] = cluster.log(pod)


def judge(record: Record) -> list[Claim]:
    """Judge the run."""
    states = [status_of(state).get("jobDeploymentStatus", "") for states in record.rayjobs.values() for state in states]
    return [
        Claim(
            "the RayJob is suspended after it ran",
            "Suspended" in states[states.index("Running") :] if "Running" in states else None,
            str(states),
        ),
        record.says("it goes on from its last checkpoint", "log", r"resuming from step [\d,]+"),
        record.succeeded(),
    ]
