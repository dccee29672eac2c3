"""Draining the node under the small step pod leaves its RayJob alone: the next try follows it, and no pod of Ray is new."""

from conformance.cluster import RAYJOB, Cluster
from conformance.record import Claim, Record
from conformance.scenarios.train_rayjob import rayjob_claims


def drive(cluster: Cluster) -> None:
    """Evict the pod of the step while its training runs on a RayJob."""
    run = cluster.submit("--resources", f"train={RAYJOB}", *cluster.lasting(180))
    pod = cluster.training(run)
    before = cluster.step_of(pod)
    cluster.evict_pod(pod)
    cluster.training(run, step=before + 1, after=pod)
    cluster.finish(run)
    cluster.wait("Ray's pods are gone", lambda: not cluster.ray_pods(), 600)


def judge(record: Record) -> list[Claim]:
    """Judge a run whose step's pod got SIGTERM while its RayJob trained."""
    pods = record.pods_of("ray-head", "ray-worker", "submitter")
    return [
        record.succeeded(),
        Claim("the step is tried again", len(record.tries("train")) == 2, f"{len(record.tries('train'))} tries"),
        *rayjob_claims(record, 1),
        Claim("no pod of Ray is new: a head, a worker, a submitter", len(pods) == 3, ", ".join(pods)),
        record.in_mlflow("MLflow has one finished run", "FINISHED"),
    ]
