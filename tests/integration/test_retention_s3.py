"""`iddpm gc` on S3: what it deletes by age alone."""

from __future__ import annotations

import time

from components.retention import survey
from components.retention.collect import collect
from components.retention.survey import Policy
from training import storage
from training.tracking.references import RecordedRun, Records


def test_old_messages_and_answers_of_steps_are_deleted(bucket_uri, monkeypatch):
    run_uri = storage.join(bucket_uri, "runs/a")
    paths = (
        "runs-told/1234.json",
        "runs-told/5678.json",
        "rayjobs/tune-1/rayjob-answer.json",
        "data/shard.parquet",
        "runs/a/experiment.json",
    )
    for path in paths:
        storage.write_bytes(storage.join(bucket_uri, path), b"{}")
    run = RecordedRun(run_id="a", directory_uri=run_uri, is_running=True, is_deleted=False, texts=(run_uri, "5678"))
    records = Records((run,), ())

    def left() -> list[str]:
        return [uri.removeprefix(f"{bucket_uri}/") for uri in storage.list_uris(bucket_uri)]

    policy = Policy(days=0, grace_hours=0)
    collect(bucket_uri, policy, delete=True, records=lambda: records)
    assert set(left()) - {"gc/seen.json"} == set(paths)  # they are too young
    monkeypatch.setattr(survey, "_SMALL_FILES_DAYS", 0.0)
    found = collect(bucket_uri, policy, delete=True, records=lambda: records, clock=lambda: time.time() + 60)
    assert len(found.outdated) == 2
    assert set(left()) - {"gc/seen.json"} == {"runs-told/5678.json", "data/shard.parquet", "runs/a/experiment.json"}
