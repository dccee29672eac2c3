"""A run that an earlier commit made is found by its key, read, and resumed to the same metrics."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from rounding import NETWORK

from components.steps.runs import Run, identify
from evaluation.monitoring.checkpoint_scorer import read_history
from training import storage
from training.checkpoints import checkpoint
from training.config.experiment import Resources
from training.config.presets import preset
from training.data.loading.loader import Loader
from training.data.splits import prepare_experiment
from training.loop.interfaces import Hooks
from training.loop.rollback import train_with_rollbacks
from training.loop.trainer import Trainer

RECORDED = Path(__file__).parents[2] / "golden" / "earlier_run"
EXPECTED = json.loads((RECORDED / "expected.json").read_text())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The recorded run as today's code finds it by preset, overrides and data."""
    monkeypatch.chdir(tmp_path)  # the recorded URIs are relative
    experiment = preset(EXPECTED["preset"], EXPECTED["overrides"])
    options = {"labels": "auto", "num_test": 0}
    data_uri = prepare_experiment(experiment, "", storage_root_uri="storage", source="", source_options=options, options={})
    with tarfile.open(RECORDED / "run.tar.xz") as recorded:
        recorded.extractall(tmp_path / "storage" / "runs", filter="data")
    found = identify(experiment, data_uri, "storage")
    assert (found.key, found.uri) == (EXPECTED["run_key"], f"storage/runs/{EXPECTED['run_key']}")
    return found


def test_its_experiment_checkpoint_and_scores_are_read(run: Run) -> None:
    assert storage.read_bytes(f"{run.uri}/experiment.json") == run.experiment.to_json().encode()
    uri = checkpoint.latest(run.uri)
    assert uri == f"{run.uri}/checkpoints/step=00000006"
    assert checkpoint.load_experiment(uri) == run.experiment
    assert checkpoint.weights_names(uri) == ("ema_0.5", "model")
    assert read_history(run.uri) == [EXPECTED["score"]]


def test_it_is_resumed_and_logs_the_metrics_that_the_earlier_commit_logged(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    logged: dict[str, dict[str, Any]] = {}
    loader = Loader("storage/data/digits-8x8x1-none/train", seed=run.experiment.seed, global_batch_size=8, cache_dir="cache")
    hooks = Hooks(log=lambda step, metrics: logged.update({str(step): dict(metrics)}))
    outcome = train_with_rollbacks(lambda: Trainer(run.experiment, Resources(), loader, hooks=hooks), run.uri)
    assert "resuming from step 6" in capsys.readouterr().out
    assert outcome.step == 12
    assert logged.keys() == EXPECTED["logged"].keys()
    for step, metrics in EXPECTED["logged"].items():
        for name, value in metrics.items():
            # Another processor adds in another order: six updates, forward and backward.
            assert logged[step][name] == pytest.approx(value, rel=6 * 2 * NETWORK), (step, name)
