"""A schedule starts the nightly check; a planted regression fails it with both numbers and calls the webhook once."""

import json
import time

from conformance.cluster import Cluster
from conformance.record import Claim, Record

_RECEIVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        print("got " + self.rfile.read(int(self.headers["Content-Length"])).decode(), flush=True)
        self.send_response(200)
        self.end_headers()
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


def drive(cluster: Cluster) -> None:
    """Train a model, write a history of far better scores, and let a schedule check it."""
    receiver = cluster.start_pod("iddpm-conformance-webhook", _RECEIVER)  # first: there can be only one
    trained = cluster.submit()
    cluster.finish(trained)
    (model,) = cluster.mlflow_runs(trained.run_id)
    now = int(time.time())
    for age, value in ((300, 0.001), (200, 0.0011), (100, 0.0009)):
        point = {"run_id": model["info"]["run_id"], "key": "nightly/distance", "value": value}
        cluster.mlflow("runs/log-metric", {**point, "timestamp": (now - age) * 1000, "step": now - age})
    tags = {tag["key"]: tag["value"] for tag in model["data"]["tags"]}
    cluster.set_secret("iddpm-webhook", {"url": f"http://{receiver['status']['podIP']}:8000/hook"})

    name = f"conformance-{cluster.settings.session}"
    options = ["--param", f"model={tags['iddpm.run_uri']}", "--param", f"storage_root_uri={cluster.settings.storage_root_uri}"]
    created = cluster.iddpm("schedule", "create", "nightly-fid", "--name", name, "--every", "1m", *options, "--json", seconds=600)
    schedule_id = json.loads(created)["schedule_id"]
    # It is refused while a run of the schedule goes on, and a second one may have begun.
    cluster.undo.callback(cluster.wait, "the schedule is deleted", lambda: "deleted" in cluster.iddpm("schedule", "delete", name), 600)

    def fired() -> str:
        runs = json.loads(cluster.iddpm("runs", "--json"))
        return next((run["run_id"] for run in reversed(runs) if run["schedule_id"] == schedule_id), "")

    nightly = cluster.wait("the schedule starts a run", fired, 600)
    cluster.follow(nightly)
    cluster.iddpm("schedule", "pause", name)
    cluster.end_of(nightly, 1800)
    cluster.record.texts["webhook"] = cluster.log("iddpm-conformance-webhook")
    for pod in [each for each in cluster.record.pods_of("executor") if nightly_pod(cluster.record, each)]:
        cluster.record.texts["compare"] = cluster.record.texts.get("compare", "") + cluster.log(pod)


def nightly_pod(record: Record, pod: str) -> bool:
    """Return True for a pod of the second Workflow."""
    return len(record.workflows) > 1 and record.pods[pod][0]["owner"] == record.workflows[1]["workflow"]


def judge(record: Record) -> list[Claim]:
    """Judge the training, and the check that must fail."""
    tries = record.tries("compare-with-history", 1)
    messages = record.texts["webhook"].count('"event": "regression"') if "webhook" in record.texts else None
    return [
        record.succeeded(),
        Claim("the check fails", record.phase(1) in ("Failed", "Error"), f"{record.phase(1)}: {record.message(1)}"),
        Claim("at its last step, once", len(tries) == 1 and tries[0]["phase"] == "Failed", str([each["phase"] for each in tries])),
        record.says("with both numbers", "compare", r"has regressed: \S+ against \S+"),
        record.says("the webhook is told of the regression", "webhook", r'"event": ?"regression"'),
        Claim("once", None if messages is None else messages == 1, f"{messages} messages"),
    ]
