"""Two finished trainings are compared by the compare pipeline: numbers with intervals in the log, one run in MLflow, a page in KFP."""

import json

from conformance.cluster import Cluster
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Train two models side by side, and compare them."""
    runs = [cluster.submit() for _ in range(2)]
    for run in runs:
        cluster.finish(run)
    models = [f"runs:/{each['info']['run_id']}" for run in runs for each in cluster.mlflow_runs(run.run_id)]
    compared = cluster.submit("--param", f"models={json.dumps(models)}", "--param", "num_samples=100", pipeline="compare")
    cluster.finish(compared)
    pods = [each["id"] for each in cluster.record.tries("compare", 2)]
    cluster.record.texts["log"] = "\n".join(cluster.log(pod) for pod in cluster.record.pods_of("executor")[-2:])
    cluster.record.texts["outputs"] = json.dumps([pods, cluster.kfp_run(compared.run_id).get("state")])


def judge(record: Record) -> list[Claim]:
    """Judge the comparison."""
    return [
        record.succeeded(),
        record.succeeded(1),
        record.succeeded(2),
        record.says("the log says how much the distance differs, and how sure that is", "log", r"(?i)distance.*\[?-?[\d.]+"),
        record.says("MLflow has the comparison", "log", r"in MLflow: http"),
    ]
