"""`iddpm runs` and `iddpm logs` show how far a training is while it runs, and `iddpm runs` its score and cost when it has ended."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Train, and list the runs in the middle and at the end."""
    run = cluster.submit(*cluster.lasting(300))
    cluster.training(run, step=50)
    cluster.wait("MLflow has its first score", lambda: _scored(cluster, run.run_id), 600)
    cluster.iddpm("runs", "--json", note="running", tracked=True)
    cluster.iddpm("runs", note="table", tracked=True)
    cluster.iddpm("logs", run.run_id, "train", note="log")
    cluster.finish(run)
    cluster.iddpm("runs", "--json", note="ended", tracked=True)


def _scored(cluster: Cluster, run_id: str) -> bool:
    return any(metric["key"] == "score/best" for run in cluster.mlflow_runs(run_id) for metric in run["data"].get("metrics", []))


def judge(record: Record) -> list[Claim]:
    """Judge what the command printed."""
    return [
        record.succeeded(),
        record.says("a running training has its updates", "running", r'"state": "running",\s+"error": "",\s+"step": [1-9]\d*,'),
        record.says("its rate and the time left", "running", r'"images_per_second": [\d.]+,\s+"seconds_left": [\d.]+'),
        record.says("and its best score", "running", r'"best_score": [\d.]+,\s+"best_step": \d+'),
        record.says("the table shows it below its run", "table", r"(?s) left +[\d,]+/[\d,]+ .*exit code 0"),
        record.says("the log of the running step is shown", "log", r"(?s) step [\d,]+/.*exit code 0"),
        record.says("an ended one its score", "ended", r'(?s)"state": "finished",\s+"error": "",.*"best_score": [\d.]+'),
        record.says("and its cost", "ended", r'"card_hours": [\d.e-]+'),
    ]
