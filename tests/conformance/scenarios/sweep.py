"""A sweep of two trials trains and measures both, tabulates them, and stands in MLflow as one run with all others inside."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record

_SMALL = ("optim.num_steps=200", "evaluation.num_samples=200", "evaluation.likelihood_num_images=20", "evaluation.likelihood_steps=10")


def drive(cluster: Cluster) -> None:
    """Submit a grid of two values."""
    words = ["--param", "ablation_name=own-grid", "--param", 'ablation_grid={"diffusion.vlb_weight": [0.001, 0.01]}']
    words += ["--param", "experiment_preset=digits-tiny-hybrid-cosine", "--param", 'ablation_options={"checkpoint": "last"}']
    for override in (*_SMALL, f"seed={cluster.new_seed()}"):
        words += ["--set", override]
    run = cluster.submit(*words, pipeline="ablation")
    cluster.finish(run)
    cluster.iddpm("logs", run.run_id, "train-trial (1)", note="trial")


def judge(record: Record) -> list[Claim]:
    """Judge the sweep."""
    known = record.has_final_nodes()
    trials = [node for node in record.tries("train-trial") if node["phase"] == "Succeeded"]
    measured = [node for node in record.tries("measure-trial") if node["phase"] == "Succeeded"]
    nested = [run for run in record.mlflow or () if any(tag["key"] == "mlflow.parentRunId" for tag in run["data"].get("tags", ()))]
    return [
        record.succeeded(),
        Claim("two trials are trained", len(trials) == 2 if known else None, f"{len(trials)}"),
        Claim("and measured", len(measured) == 2 if known else None, f"{len(measured)}"),
        record.in_mlflow("MLflow has the sweep, its two trials and their trainings, finished", *("FINISHED",) * 5),
        record.says("the log of a trial is shown, though the Workflow is compressed", "trial", r"(?s) step [\d,]+/.*exit code 0"),
        Claim("all but the sweep are inside it", None if record.mlflow is None else len(nested) == 4, f"{len(nested)} are nested"),
    ]
