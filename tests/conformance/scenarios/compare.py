"""Two finished trainings are compared: numbers with intervals in the log, one run in MLflow, a page in KFP, and the webhook is told."""

import json
import re

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
        Claim("the webhook is told once, of both distances", *_told(record)),
    ]


def _told(record: Record) -> tuple[bool | None, str]:
    if "webhook" not in record.texts or len(record.workflows) < 3:
        return None, "the webhook's log was not recorded"
    run_id = record.workflows[2]["states"][-1]["labels"]["pipeline/runid"]
    lines = [line for line in record.texts["webhook"].splitlines() if " signed {" in line and f'"run_id": "{run_id}"' in line]
    said = r'"event": "finished".*"distance": [\d.]+.*"distance": [\d.]+'
    return len(lines) == 1 and re.search(said, lines[0]) is not None, f"{len(lines)} messages: {lines}"[:400]
