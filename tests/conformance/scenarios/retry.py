"""A training that failed for too little memory is retried with more, on another image: no data are prepared again, MLflow has one run."""

import json

from conformance.cluster import Cluster
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Train with too little memory for Ray, then retry with enough."""
    failed = cluster.submit("--resources", "train.memory=1536Mi")
    cluster.finish(failed)
    image = cluster.settings.other_image
    changes = ["--image", image, "--resources", "train.memory=4Gi"]
    again = cluster.iddpm("retry", failed.run_id, *changes, "--no-wait", "--json", note="retry")
    run_id = json.loads(again)["run_id"]
    cluster.follow(run_id)
    cluster.end_of(run_id)
    cluster.record.texts["image"] = f"{image} given, {' and '.join(sorted(cluster.record.images(1)))} used"
    cluster.record.texts["log"] = "\n".join(cluster.log(pod) for pod in cluster.record.pods_of("executor"))


def judge(record: Record) -> list[Claim]:
    """Judge both runs."""
    failed = record.tries("train")
    return [
        Claim("the first run fails while it trains", bool(failed) and failed[-1]["phase"] == "Failed", record.message()),
        record.says("iddpm retry starts another", "retry", r'(?s)"name": ".* \(retry 1\)".*exit code 0'),
        record.succeeded(1),
        record.says("its steps run on the image given", "image", r"\A(\S+) given, \1 used\Z"),
        record.says("it finds the images prepared", "log", "are there already"),
        record.in_mlflow("MLflow has one finished run", "FINISHED"),
    ]
