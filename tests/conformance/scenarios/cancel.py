"""A run cancelled while it trains is cancelled in `iddpm submit`, its exit code and MLflow, and its Ray pods are gone."""

import json

from conformance.cluster import RAYJOB, Cluster
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Cancel a training on a RayJob."""
    run = cluster.submit("--resources", f"train={RAYJOB}", *cluster.lasting(600))
    cluster.training(run)
    cluster.iddpm("cancel", run.run_id, note="cancel")
    cluster.wait("Ray's pods are gone", lambda: not cluster.ray_pods(), 180)
    cluster.finish(run, 600)
    listed = json.loads(cluster.iddpm("runs", "--json"))
    cluster.record.texts["runs"] = next(each["state"] for each in listed if each["run_id"] == run.run_id)
    cluster.wait(
        "MLflow has closed the run", lambda: all(each["info"]["status"] != "RUNNING" for each in cluster.mlflow_runs(run.run_id)), 600
    )


def judge(record: Record) -> list[Claim]:
    """Judge a run that was cancelled while it trained."""
    spec = record.workflows[0]["states"][-1]["spec"] if record.workflows else {}
    history = [each["state"] for each in record.runs[0]["state_history"]] if record.runs else None
    kept = [name for name in record.rayjobs if not record.deleted(name)]
    return [
        Claim("its Workflow is told to end", spec.get("activeDeadlineSeconds") == 0 or "shutdown" in spec, str(spec)),
        Claim("its RayJob is deleted", not kept, ", ".join(kept)),
        Claim("the training does not begin again", len(record.tries("train")) == 1, f"{len(record.tries('train'))} tries"),
        Claim("KFP knows that it was cancelled", None if history is None else "CANCELING" in history, str(history)),
        record.says("submit says cancelled and fails", "submit", r"(?s)cancelled.*exit code [1-9]"),
        record.says("so does `iddpm runs`", "runs", r"^cancelled$"),
        record.in_mlflow("MLflow has it as KILLED", "KILLED"),
    ]
