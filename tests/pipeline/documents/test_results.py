"""Numbers that a command found stand where MLflow does not."""

import json
from pathlib import Path

import numpy as np
import pytest
from rounding import U64
from typer.testing import CliRunner

from evaluation.reports.study import Study
from pipelines.cli.main import app
from pipelines.cli.models.scoring import save_study
from training import console as progress
from training.tracking import client as mlflow_client


@pytest.mark.parametrize(
    ("address", "words"), [("http://127.0.0.1:9", "does not answer"), ("garbage://x", "no MLflow's address"), (None, "")]
)
def test_a_study_is_written_and_printed_where_there_is_no_mlflow(
    address: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study(
        kind="comparison", title="a vs b", text="b is better", models={"a": "A", "b": "B"}, protocol={}, points={}, files={"a.txt": b"a"}
    )
    monkeypatch.setattr(mlflow_client, "RETRY_SECONDS", 0.0)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if address is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with progress.output_marks(False):
        save_study(study, tmp_path, ["f" * 32, ""], as_json=False)
    printed = capsys.readouterr()
    assert printed.out == f"b is better\n\n{tmp_path / 'a.txt'}\n"
    assert ("not logged to MLflow: " in printed.err) == bool(words)
    assert words in printed.err
    assert (tmp_path / "a.txt").read_bytes() == b"a"


def test_the_score_of_a_file_is_written_with_its_card_and_as_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri, out = str(tmp_path / "batch.npz"), tmp_path / "new" / "score"
    np.savez(uri, arr_0=np.random.default_rng(0).integers(0, 255, (70, 8, 8, 1), dtype=np.uint8))
    found = CliRunner().invoke(
        app, ["score-batch", uri, uri, "--extractor", "digits-classifier", "--out", str(out)], catch_exceptions=False
    )
    assert found.exit_code == 0
    written = json.loads((out / "score.json").read_text())
    assert written["distance"] == pytest.approx(0, abs=U64**0.5)  # the root of a rounded zero
    assert {"samples", "num_samples", "reference", "extractor_sha256", "device", "versions"} <= set(written["protocol"])
    assert "weights sha256" in (out / "score.html").read_text()
