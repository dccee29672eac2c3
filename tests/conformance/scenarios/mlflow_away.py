"""With MLflow away for three minutes the run succeeds, and MLflow has every point and the result afterwards."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Take MLflow away during a training that ends while it is away."""
    away = cluster.settings.away_seconds
    run = cluster.submit(*cluster.lasting(away / 2))
    cluster.training(run)
    restore = cluster.scale_to_zero("deployments", "mlflow")
    cluster.last(away, "MLflow is away")
    restore()
    cluster.finish(run)
    cluster.wait("MLflow has the result", lambda: [each["info"]["status"] for each in cluster.mlflow_runs(run.run_id)] == ["FINISHED"], 900)
    (found,) = cluster.mlflow_runs(run.run_id)
    metrics = {metric["key"]: metric for metric in found["data"]["metrics"]}
    cluster.record.texts["metrics"] = f"final/distance {metrics.get('final/distance', {}).get('value', 'is missing')}"


def judge(record: Record) -> list[Claim]:
    """Judge a run that MLflow was away from."""
    failed = [node["name"] for node in record.nodes() if node["type"] == "Pod" and node["phase"] == "Failed"]
    return [
        record.succeeded(),
        Claim("no step fails for it", not failed, ", ".join(failed)),
        record.in_mlflow("MLflow has one finished run", "FINISHED"),
        record.says("with its result", "metrics", r"^final/distance \d"),
    ]
