"""A training that is killed because its pod is out of memory is started again, goes on from its last checkpoint and succeeds."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record

_FILL_MEMORY = """
import pathlib, time
def size(pid):
    try:
        return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
pids = [int(path.name) for path in pathlib.Path("/proc").glob("[0-9]*")]
victim = max((pid for pid in pids if pid not in (1, __import__("os").getpid())), key=size)
print("victim", victim, pathlib.Path(f"/proc/{victim}/comm").read_text().strip(), flush=True)
pathlib.Path(f"/proc/{victim}/oom_score_adj").write_text("1000")
held = []
while size(victim):
    held.append(bytearray(b"x" * (32 << 20)))
    time.sleep(0.02)
print("it was killed", flush=True)
"""
"""Fills the container's memory. The largest process is marked as the first to be killed, by the kernel or, mostly sooner, by Ray."""


def drive(cluster: Cluster) -> None:
    """Fill the memory of the pod that trains."""
    run = cluster.submit(*cluster.lasting(180))
    pod = cluster.training(run, step=100)
    cluster.first_score(pod)
    cluster.record.texts["killed"] = cluster.execute(pod, _FILL_MEMORY)
    cluster.finish(run)
    logs = [cluster.log(name) for name in cluster.record.pods_of("executor")]
    cluster.record.texts["log"] = "\n".join(log for log in logs if "resuming from step" in log)


def judge(record: Record) -> list[Claim]:
    """Judge a training that lost a process for its memory."""
    return [
        record.says("the largest process is killed", "killed", "it was killed|the container ended"),
        record.succeeded(),
        record.says("the training goes on from a checkpoint", "log", "resuming from step [1-9]"),
        record.in_mlflow("MLflow has one finished run", "FINISHED"),
    ]
