"""A webhook that is away at first is told once of a failed run with its error, and of a cancelled nightly check, which has no exit task."""

import json

from conformance.cluster import Cluster, messages_about
from conformance.record import Claim, Record


def drive(cluster: Cluster) -> None:
    """Let a training fail, cancel a nightly check at its first step, and wait for the reaper."""
    # As often as a step sends a message it is refused, so the reaper has to deliver it.
    cluster.start_webhook("failed", "cancelled", refusals=3)
    failed = cluster.submit("--param", f"data_source={cluster.settings.storage_root_uri}/nowhere.zip")
    root = ["--param", f"storage_root_uri={cluster.settings.storage_root_uri}"]
    started = cluster.iddpm("submit", "nightly-fid", "--no-wait", "--json", *root)
    nightly = json.loads(started)["run_id"]
    cluster.follow(nightly)
    cluster.wait("the check has begun", lambda: cluster.workflow(nightly), 300)
    cluster.iddpm("cancel", nightly)
    cluster.end_of(nightly, 900)
    cluster.finish(failed)

    cluster.wait("the reaper has told of both", lambda: all(map(cluster.told, (failed.run_id, nightly))), 900)
    cluster.last(250, "two more reapers look")
    cluster.record.texts["webhook"] = cluster.webhook_log()


def judge(record: Record) -> list[Claim]:
    """Judge what the receiver got."""
    log = record.texts.get("webhook")
    claims = [record.says("no message is forged", "webhook", r"\A(?!(.|\n)* forged )")]
    for number, (event, words) in enumerate((("failed", "failed at preprocess"), ("cancelled", "was cancelled"))):
        run_id = record.workflows[number]["states"][-1]["labels"]["pipeline/runid"] if number < len(record.workflows) else "no run"
        found = None if log is None else messages_about(log, run_id)
        ok = found is not None and len(found) == 1 and f'"event": "{event}"' in found[0] and words in found[0]
        claims.append(Claim(f"it is told once that a run {words}", None if found is None else ok, str(found)[:400]))
    return claims
