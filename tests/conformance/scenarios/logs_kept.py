"""After the pods are gone, `iddpm logs` shows the logs of a training on a Ray cluster, of the first step, and of a failed preparation."""

from conformance.cluster import RAYJOB, Cluster
from conformance.record import Claim, Record

_NAME = "iddpm-conformance-logs"
_PROGRAM = """
import subprocess, sys
for words in {commands!r}:
    subprocess.run([sys.executable, "-m", "pipelines.cli.main", "logs", *words], stderr=subprocess.STDOUT)
print("--- end", flush=True)
"""
"""For stored logs the pod has what this machine may lack: credentials for S3. Of two streams the order is lost in a pod's log."""


def drive(cluster: Cluster) -> None:
    """Train, and fail in the preparation, delete the pods that are left, and ask for one log here and for the stored ones in a pod."""
    root = cluster.settings.storage_root_uri
    data_uri = f"{root}/data/never-made"
    run = cluster.submit("--resources", f"train={RAYJOB}")
    cluster.finish(run)
    failed = cluster.submit("--param", f"data_source={root}/nowhere.zip", "--param", f"data_uri={data_uri}")
    cluster.finish(failed)
    cluster.wait("Ray's pods are gone", lambda: not cluster.ray_pods(), 600)
    for pod in cluster.record.pods_of("executor"):
        cluster.delete_pod(pod)
    cluster.iddpm("logs", run.run_id, "train", note="step")
    commands = [[run.run_id, "--rank", "0"], [f"{root}/pipelines/{run.run_id}"], [data_uri]]
    cluster.start_pod(_NAME, _PROGRAM.format(commands=commands))
    cluster.wait("the logs are shown", lambda: "--- end" in cluster.log(_NAME), 600)
    cluster.record.texts["logs"] = cluster.log(_NAME)


def judge(record: Record) -> list[Claim]:
    """Judge what the commands printed."""
    return [
        record.succeeded(),
        record.says("the step's log is shown", "step", r"(?s) step [\d,]+/.*exit code 0"),
        record.says("the worker's log is shown", "logs", r"(?s)--- train, rank-0\.out, began .* step [\d,]+/.*--- end"),
        record.says("that of the first step", "logs", r"(?s)--- settings, step, began .*iddpm\| train: .*--- end"),
        record.says("and that of a failed preparation", "logs", r"(?s)--- preprocess, step-.* began .*UserError: .*nowhere\.zip.*--- end"),
    ]
