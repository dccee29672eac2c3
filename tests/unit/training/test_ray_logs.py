"""Ray's logs in the run's directory."""

from __future__ import annotations

import io
import tarfile

from training import storage
from training.distributed.ray_logs import store_logs


def test_the_end_of_each_log_is_kept_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-value")
    logs = tmp_path / "logs"
    (logs / "old").mkdir(parents=True)
    (logs / "raylet.out").write_text("x" * 300_000 + "the end, very-secret-value")
    (logs / "old" / "gcs_server.out").write_text("started")
    uri = store_logs(logs, str(tmp_path / "run"))
    with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(uri))) as archive:
        kept = {member.name: archive.extractfile(member).read() for member in archive}
    assert kept.keys() == {"raylet.out", "old/gcs_server.out"}
    assert kept["raylet.out"].endswith(b"the end, ***")
    assert len(kept["raylet.out"]) < 270_000


def test_storage_that_takes_no_logs_fails_no_run(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "run").write_text("a file, no directory")
    assert store_logs(tmp_path / "logs", str(tmp_path / "run")) == ""
