"""A training in its step's pod runs from raw images to a report; `iddpm submit` follows it and exits with 0."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record

STEPS = ("settings", "preprocess", "reference", "train", "evaluate", "report", "close-run")


def drive(cluster: Cluster) -> None:
    """Submit, and wait."""
    run = cluster.submit()
    cluster.finish(run)


def judge(record: Record) -> list[Claim]:
    """Judge a run of the train pipeline that nothing disturbed."""
    present = {step: record.tries(step) for step in STEPS if step != "settings" or record.tries(step)}
    failed = [step for step, tries in present.items() if not tries or tries[-1]["phase"] != "Succeeded"]
    again = [step for step, tries in present.items() if len(tries) > 1]
    return [
        record.succeeded(),
        Claim("every step succeeds", not failed, ", ".join(failed)),
        Claim("no step is tried twice", not again, ", ".join(again)),
        record.says("submit says so", "submit", r"(?s)succeeded.*exit code 0$"),
        record.in_mlflow("MLflow has one finished run", "FINISHED"),
    ]
