"""Two finished trainings are compared: numbers with intervals in the log, one run in MLflow, a page in KFP, and the webhook is told."""

import json

from conformance.cluster import Cluster
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Train two models side by side, and compare them."""
    runs = [cluster.submit() for _ in range(2)]
    for run in runs:
        cluster.finish(run)
    models = [f"runs:/{each['info']['run_id']}" for run in runs for each in cluster.mlflow_runs(run.run_id)]
    cluster.start_webhook("finished")
    compared = cluster.submit("--param", f"models={json.dumps(models)}", "--param", "num_samples=100", pipeline="compare")
    cluster.finish(compared)
    cluster.last(250, "two reapers look")
    cluster.record.texts["webhook"] = cluster.webhook_log()
    cluster.record.texts["log"] = cluster.log(cluster.record.pods_of("executor")[-1])


def judge(record: Record) -> list[Claim]:
    """Judge the comparison."""
    return [
        record.succeeded(),
        record.succeeded(1),
        record.succeeded(2),
        record.says(
            "the log says how much they differ, and how sure that is", "log", r"\(-?[\d.]+ to [-+]?[\d.]+\), better with probability"
        ),
        record.says("MLflow has the comparison", "log", r"in MLflow: http"),
        record.says(
            "the webhook is told of both distances",
            "webhook",
            r'\A.* signed \{.*"event": "finished".*"distance": [\d.]+.*"distance": [\d.]+',
        ),
        record.says("and only once", "webhook", r"\A[^\n]*\n?\Z"),
    ]
