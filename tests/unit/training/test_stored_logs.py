"""Logs in a run's directory: stored while they grow, bounded, without secrets, and read back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from components.launch.logs import log_directory
from components.steps.registry import EVALUATE, PREPROCESS, REFERENCE
from components.steps.runs import run_directory
from pipelines.client.stored_logs import show_stored_logs
from training import storage
from training.config.errors import UserError
from training.config.presets import preset
from training.config.redaction import without_secrets
from training.storage import logs
from training.storage.logs import LogUpload, list_logs, read_part


def _upload(path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> LogUpload:
    monkeypatch.setattr(logs, "SECONDS_BETWEEN_UPLOADS", 3600.0)
    return LogUpload(path, logs.log_uri(str(run), "train", "rank-1.out"))


def _lines(run: Path) -> list[str]:
    (log,) = list_logs(str(run), "train")
    assert (log.step, log.source) == ("train", "rank-1.out")
    return [line for part in log.parts for line in read_part(part.uri)]


def test_what_was_stored_before_a_process_was_killed_is_there_up_to_the_last_whole_line(tmp_path, monkeypatch):
    path = tmp_path / "log"
    path.write_text("first\nsecond\nAWS_SECRET_ACC")
    upload = _upload(path, tmp_path, monkeypatch)
    upload.store()
    assert _lines(tmp_path) == ["first", "second"]
    with path.open("a") as file:
        file.write("ESS_KEY=abcdef\nlast")
    upload.finish()
    assert _lines(tmp_path) == ["first", "second", "AWS_SECRET_ACCESS_KEY=***", "last"]


def test_a_long_log_keeps_its_first_part_and_the_last_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_PART_BYTES", 1000)
    path = tmp_path / "log"
    text = [f"line {number:04d}" for number in range(5000)]  # 10 bytes each
    path.write_text("".join(f"{line}\n" for line in text[:1234]))
    upload = _upload(path, tmp_path, monkeypatch)
    upload.store()
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in text[1234:])
    upload.finish()
    stored = _lines(tmp_path)
    (log,) = list_logs(str(tmp_path))
    assert len(log.parts) <= 1 + logs._NUM_LAST_PARTS
    assert stored[:100] == text[:100]
    assert stored[100:] == text[-len(stored[100:]) :]
    assert len(stored) >= 600


def test_storage_that_is_away_for_a_while_loses_nothing_and_fails_nobody(tmp_path, monkeypatch):
    path, run = tmp_path / "log", tmp_path / "run"
    path.write_text("first\n")
    run.write_text("a file where the directory should be")
    upload = _upload(path, run, monkeypatch)
    with pytest.raises(storage.StorageError):
        upload.store()
    run.unlink()
    upload.finish()
    assert _lines(run) == ["first"]


_SIGNED = "https://s3.eu.example.com/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=ID%2Fs3&X-Amz-Date=2&X-Amz-Signature=0123abc"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (_SIGNED, _SIGNED.replace("ID%2Fs3", "***").replace("0123abc", "***")),
        ("AWS_SECRET_ACCESS_KEY=abc/def+g= HOME=/root", "AWS_SECRET_ACCESS_KEY=*** HOME=/root"),
        ("environ({'MLFLOW_TRACKING_PASSWORD': 'hunter2', 'A': 'b'})", "environ({'MLFLOW_TRACKING_PASSWORD': '***', 'A': 'b'})"),
        ('{"aws_secret_access_key": "abc", "region": "x"}', '{"aws_secret_access_key": "***", "region": "x"}'),
        ("IDDPM_WEBHOOK_URL=https://chat/x/y", "IDDPM_WEBHOOK_URL=***"),
        ("POST https://hooks.slack.com/services/T0/B0/xyz failed", "POST https://hooks.slack.com/*** failed"),
        ("https://chat.example.com/hooks/abc123 answered 404", "https://chat.example.com/hooks/*** answered 404"),
        ("https://prod-1.westeurope.logic.azure.com:443/workflows/1/x?sig=ab", "https://prod-1.westeurope.logic.azure.com:443/***"),
        ("{'Authorization': 'Bearer ey.ab.cd', 'Host': 'x'}", "{'Authorization': 'Bearer ***', 'Host': 'x'}"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=A/b, Signature=c", "Authorization: AWS4-HMAC-SHA256 ***"),
        ("key id AKIAIOSFODNN7EXAMPLE is refused", "key id AKIA*** is refused"),
        ("https://user:word@host/path", "https://***@host/path"),
        ("the value is very-secret-value here", "the value is *** here"),
        ("step 1,200/1,600  loss 0.0312  215 images/s", None),
        ("score: FID 3.2 at step=00001200, tokens 5, s3://iddpm/runs/a-0123456789/checkpoints?x=1", None),
    ],
)
def test_secrets_are_replaced_and_nothing_else(text, expected, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "very-secret-value")
    monkeypatch.setenv("SOME_TOKEN", "loss")  # too short to be a secret
    assert without_secrets(text) == (text if expected is None else expected)


_PROGRAM = """
import os, subprocess, sys
from components.launch.logs import step_log_stored
with step_log_stored(sys.argv[1], "evaluate"):
    print("printed")
    sys.stderr.write("complained\\n")
    subprocess.run([sys.executable, "-c", "import os; os.write(1, b'last words\\\\n'); os.kill(os.getpid(), 9)"])
print("after")
"""


def test_a_steps_log_has_what_it_and_a_killed_child_printed_and_its_output_stays_as_it_is(tmp_path):
    done = subprocess.run([sys.executable, "-c", _PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("printed\nlast words\nafter\n", "complained\n")
    (log,) = list_logs(str(tmp_path))
    assert (log.step, log.source) == ("evaluate", "step")
    assert sorted(read_part(log.parts[0].uri)) == ["complained", "last words", "printed"]


def test_the_log_of_a_step_lies_in_the_directory_of_its_run_also_before_the_training_has_begun(tmp_path):
    experiment = preset("digits-hybrid-cosine")
    run_uri = run_directory(experiment, "0123", str(tmp_path))[1]
    arguments = {"experiment": experiment.to_json(), "data_uri": "s3://data", "data_digest": "0123", "storage_root_uri": str(tmp_path)}
    assert log_directory(REFERENCE, arguments) == run_uri
    assert log_directory(EVALUATE, {"run_uri": run_uri}) == run_uri
    assert log_directory(PREPROCESS, arguments) == ""


def test_a_trial_that_another_step_trained_names_the_workers_whose_logs_it_has(tmp_path):
    for rank in (0, 1):
        (tmp_path / "log").write_text("words\n")
        LogUpload(tmp_path / "log", logs.log_uri(str(tmp_path / "run"), "train", f"rank-{rank}.out")).finish()
    with pytest.raises(UserError, match=r"has no log of a step, as a trial that another step trained; --rank shows those of workers 0, 1$"):
        show_stored_logs([str(tmp_path / "run")], "", None, follow=False, out=print, err=print)
