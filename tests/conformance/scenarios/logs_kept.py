"""After the pods of a training on a Ray cluster are gone, `iddpm logs` shows the log of its step and of its worker."""

from conformance.cluster import RAYJOB, Cluster
from conformance.record import Claim, Record

_NAME = "iddpm-conformance-logs"
_PROGRAM = """
import subprocess, sys
subprocess.run([sys.executable, "-m", "pipelines.cli.main", "logs", "{run_id}", "--rank", "0"])
print("--- end", flush=True)
"""
"""For the worker's log the pod has what this machine may lack: credentials for S3."""


def drive(cluster: Cluster) -> None:
    """Train, delete the pods that are left, and ask for the step's log here and for the worker's in a pod."""
    run = cluster.submit("--resources", f"train={RAYJOB}")
    cluster.finish(run)
    cluster.wait("Ray's pods are gone", lambda: not cluster.ray_pods(), 600)
    for pod in cluster.record.pods_of("executor"):
        cluster.delete_pod(pod)
    cluster.iddpm("logs", run.run_id, "train", note="step")
    cluster.start_pod(_NAME, _PROGRAM.format(run_id=run.run_id))
    cluster.wait("the logs are shown", lambda: "--- end" in cluster.log(_NAME), 600)
    cluster.record.texts["logs"] = cluster.log(_NAME)


def judge(record: Record) -> list[Claim]:
    """Judge what the command printed."""
    return [
        record.succeeded(),
        record.says("the step's log is shown", "step", r"(?s) step [\d,]+/.*exit code 0"),
        record.says("the worker's log is shown", "logs", r"(?s)--- train, rank-0\.out, began .* step [\d,]+/.*--- end"),
    ]
