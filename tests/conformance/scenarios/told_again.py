"""A failed run that KFP's Retry starts again, and that fails again before the reaper has looked, is told of a second time, and no third."""

import json

from conformance.cluster import Cluster, messages_about
from conformance.record import Claim, Record

from components.reaper.messages import REPORTED_LABEL


def drive(cluster: Cluster) -> None:
    """Let a run fail, and fail again by the button Retry while no reaper runs: its exit task does not run a second time."""
    cluster.start_webhook("failed")
    run = cluster.submit("--param", f"data_source={cluster.settings.storage_root_uri}/nowhere.zip")
    cluster.finish(run)

    def label() -> str:
        labels = (cluster.workflow(run.run_id) or {})["metadata"]["labels"]
        return str(labels.get(REPORTED_LABEL, ""))

    before = cluster.wait("the reaper has noted the first end", label, 600)
    resume = cluster.suspend("iddpm-reaper")
    told = len(cluster.told(run.run_id))
    cluster.press_retry(run.run_id)
    cluster.wait("the Workflow runs again", lambda: (cluster.workflow(run.run_id) or {})["status"]["phase"] == "Running", 300)
    cluster.end_of(run.run_id)
    seen = {"label before": before, "label after": label(), "told before": told}
    cluster.record.texts["second end"] = json.dumps(seen | {"told while no reaper ran": len(cluster.told(run.run_id)) - told})
    resume()
    cluster.wait("the reaper has told of the second end", lambda: len(cluster.told(run.run_id)) > told, 900)
    cluster.wait("the reaper has noted the second end", label, 600)
    cluster.last(250, "two more reapers look")
    cluster.record.texts["webhook"] = cluster.webhook_log()


def judge(record: Record) -> list[Claim]:
    """Judge what the receiver got, and when."""
    log, seen = record.texts.get("webhook"), json.loads(record.texts.get("second end", "{}"))
    run_id = record.workflows[0]["states"][-1]["labels"]["pipeline/runid"] if record.workflows else "no run"
    found = None if log is None else messages_about(log, run_id)
    is_right = (
        found is not None and len(found) == 2 and all('"event": "failed"' in each and "failed at preprocess" in each for each in found)
    )
    unseen = None
    if seen:
        unseen = not seen["label after"] and seen["told before"] == 1 and seen["told while no reaper ran"] == 0
    return [
        record.says("no message is forged", "webhook", r"\A(?!(.|\n)* forged )"),
        Claim("the first end is told and noted, the second is not while no reaper runs", unseen, json.dumps(seen)),
        Claim("two messages say that the run failed at preprocess", None if found is None else is_right, str(found)[:600]),
    ]
