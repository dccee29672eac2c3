"""A step whose pod the cluster refuses is tried again for minutes, not hours; then the run fails and says why."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record

_NAME = "iddpm-conformance"
_LIMITS = {"type": "Container", "max": {"memory": "24Gi"}, "default": {"memory": "4Gi"}, "defaultRequest": {"memory": "32Mi"}}
"""More than any other step asks for; the defaults are for containers that ask for nothing."""


def drive(cluster: Cluster) -> None:
    """Let the namespace refuse large containers, and ask for one."""
    path = cluster.path_of("limitranges")
    cluster.undo.callback(cluster.call, "DELETE", f"{path}/{_NAME}")
    cluster.call("POST", path, {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": _NAME}, "spec": {"limits": [_LIMITS]}})
    cluster.finish(cluster.submit("--resources", "train.memory=30Gi"))


def judge(record: Record) -> list[Claim]:
    """Judge a run whose training gets no pod."""
    tries, open_runs = record.tries("train"), [run for run in record.mlflow or () if run["info"]["status"] == "RUNNING"]
    return [
        Claim("the run fails", record.phase() in ("Failed", "Error"), record.phase()),
        Claim("train is tried five times, as one step", 1 < len(tries) <= 5, f"{len(tries)} tries: {record.message()}"),
        record.says("submit shows the reason meanwhile", "submit", "maximum memory usage per Container is 24Gi"),
        record.says("submit names the step", "submit", "failed at train"),
        record.says("and fails", "submit", r"exit code [1-9]\d*$"),
        Claim("MLflow has no open run", None if record.mlflow is None else not open_runs, f"{len(open_runs)} are open"),
    ]
