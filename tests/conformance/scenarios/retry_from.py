"""A run that has succeeded is evaluated again in the same MLflow run by `iddpm retry --from evaluate`; `--from train` trains another."""

import json

from conformance.cluster import Cluster
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Train, evaluate again, then train again."""
    first = cluster.submit()
    cluster.finish(first)
    trained = cluster.mlflow_runs(first.run_id)
    evaluated = _again(cluster, first.run_id, "evaluate")
    cluster.record.texts["same run"] = f"{_ids(trained)} then {_ids(cluster.mlflow_runs(evaluated))}"
    trained_again = _again(cluster, evaluated, "train")
    cluster.record.texts["other run"] = f"{_ids(trained)} then {_ids(cluster.mlflow_runs(trained_again))}"


def _again(cluster: Cluster, run_id: str, step: str) -> str:
    answer = cluster.iddpm("retry", run_id, "--from", step, "--no-wait", "--json", note=f"retry from {step}")
    again = str(json.loads(answer)["run_id"])
    cluster.follow(again)
    cluster.end_of(again)
    cluster.wait("KFP has seen its end", lambda: cluster.kfp_run(again).get("state") in ("SUCCEEDED", "FAILED", "CANCELED"), 180)
    pods = cluster.record.pods_of("executor")
    cluster.record.texts[f"log from {step}"] = "\n".join(cluster.log(pod) for pod in pods if _is_of(cluster, pod, again))
    return again


def _is_of(cluster: Cluster, pod: str, run_id: str) -> bool:
    return bool(cluster.record.pods[pod][0]["object"]["metadata"]["labels"].get("pipeline/runid") == run_id)


def _ids(runs: list[dict[str, object]]) -> str:
    return " and ".join(str(run["info"]["run_id"]) for run in runs)  # type: ignore[index]


def judge(record: Record) -> list[Claim]:
    """Judge the three runs."""
    return [
        record.succeeded(),
        record.says("the retry finds the model trained", "log from evaluate", "is already trained to step"),
        record.says("and evaluates it again", "log from evaluate", "evaluating again; the earlier evaluation is"),
        record.succeeded(1),
        record.says("in the same MLflow run", "same run", r"\A(\w{32}) then \1\Z"),
        record.says("the next retry trains from the start", "log from train", r"(?s) step [\d,]+/[\d,]+ "),
        record.succeeded(2),
        record.says("in an MLflow run of its own", "other run", r"\A(\w{32}) then (?!\1)\w{32}\Z"),
    ]
