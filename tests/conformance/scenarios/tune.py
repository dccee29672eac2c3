"""A tuning of three trials trains each as an ordinary run inside one run of MLflow, stops or finishes it, and names the best."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record

_TRIALS = 3
_SMALL = ("optim.num_steps=300", "optim.checkpoint_interval=100", "evaluation.scoring_num_samples=100")


def drive(cluster: Cluster) -> None:
    """Tune the learning rate."""
    words = ["--param", "experiment_preset=digits-tiny-hybrid-cosine", "--param", f"tune_trials={_TRIALS}"]
    words += ["--param", 'tune_search=["optim.learning_rate=log:1e-5..1e-2"]']
    for override in (*_SMALL, f"seed={cluster.new_seed()}"):
        words += ["--set", override]
    run = cluster.submit(*words, pipeline="tune")
    cluster.finish(run)
    cluster.record.texts["log"] = "\n".join(cluster.log(pod) for pod in cluster.record.pods_of("executor"))


def judge(record: Record) -> list[Claim]:
    """Judge the tuning."""
    runs = record.mlflow
    states = None if runs is None else sorted(run["info"]["status"] for run in runs)
    nested = [run for run in runs or () if any(tag["key"] == "mlflow.parentRunId" for tag in run["data"].get("tags", ()))]
    best = [each for run in runs or () for each in run["data"].get("metrics", ()) if each["key"] == "best_score"]
    return [
        record.succeeded(),
        *(record.says(f"trial {number} ends", "log", rf"trial {number}: (complete|pruned), [\d.]+ at step") for number in range(_TRIALS)),
        Claim(
            "MLflow has the tuning and its trainings, none left running",
            None if states is None else len(states) == 1 + _TRIALS and "RUNNING" not in states and "FAILED" not in states,
            str(states),
        ),
        Claim("all but the tuning are inside it", None if runs is None else len(nested) == _TRIALS, f"{len(nested)} are nested"),
        Claim("the tuning has the best score", None if runs is None else len(best) == 1, f"{len(best)} have one"),
    ]
