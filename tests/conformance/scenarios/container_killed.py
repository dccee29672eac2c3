"""A training whose container is killed as a whole (exit code 137) is tried again, goes on from its last checkpoint and succeeds."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record

_KILL_ALL = "import os, signal; print('killing all processes but the first', flush=True); os.kill(-1, signal.SIGKILL)"
"""Does what the kernel does with cgroup v2 to a container that runs out of memory. The first process, Argo's, can't be killed from inside:
it ends with the exit code of its child, KFP's launcher."""


def drive(cluster: Cluster) -> None:
    """Kill the processes of the container that trains."""
    run = cluster.submit(*cluster.lasting(180))
    pod = cluster.training(run, step=100)
    cluster.first_score(pod)
    cluster.record.texts["killed"] = cluster.execute(pod, _KILL_ALL)
    second = cluster.training(run, after=pod)
    cluster.record.texts["log"] = cluster.log(second)
    cluster.finish(run)


def judge(record: Record) -> list[Claim]:
    """Judge a training that lost its container."""
    messages = [str(each.get("message", "")) for each in record.tries("train")]
    return [
        record.succeeded(),
        Claim("its container ends with exit code 137", any("exit code 137" in each for each in messages[:1]), "; ".join(messages)),
        Claim("the step is tried again", len(messages) == 2, f"{len(messages)} tries"),
        record.says("iddpm submit says why", "submit", r"train +is tried again: main: \w+ \(exit code 137\)"),
        record.says("the training goes on from a checkpoint", "log", "resuming from step [1-9]"),
        record.in_mlflow("MLflow has one finished run", "FINISHED"),
    ]
