"""Reference statistics that were deleted, while KFP's cache still gives their URI to later steps."""

from pathlib import Path

import pytest

from components.steps.evaluate import evaluate_run
from components.steps.reference import make_reference
from components.steps.train import train_run
from evaluation.distances.reference_statistics import load_reference
from training import storage
from training.config.errors import UserError
from training.config.presets import preset
from training.data.format.manifest import read_manifest
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.published import digits
from training.tracking.runs import TrackingError

_PRESET = "digits-hybrid-cosine"


@pytest.fixture
def root(tmp_path: Path) -> str:
    prepare(digits("train"), f"{tmp_path}/data/train", image_size=8, options=Options(resize="none"))
    return str(tmp_path)


def _deleted(root: str) -> str:
    """URI of statistics that were deleted."""
    digest = read_manifest(f"{root}/data/train").content_digest
    uri = make_reference(preset(_PRESET).to_json(), f"{root}/data", digest, root, {})
    storage.delete(uri)
    return uri


def test_training_computes_them_again_where_they_were_and_says_why(root, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # the step ends right after
    uri = _deleted(root)
    with pytest.raises(TrackingError, match="no MLflow server is known"):
        train_run(preset(_PRESET).to_json(), f"{root}/data", uri, root, "iddpm", {})
    assert load_reference(uri).features.num_images == read_manifest(f"{root}/data/train").num_images
    assert f"{uri} was deleted, which KFP's cache does not see" in capsys.readouterr().out


def test_evaluation_computes_them_again_too(root, capsys):
    uri = _deleted(root)
    storage.write_bytes(f"{root}/runs/one/experiment.json", preset(_PRESET).to_json().encode())
    with pytest.raises(UserError):  # the run has no checkpoint: the step ends right after
        evaluate_run(f"{root}/runs/one", f"{root}/data", uri, {})
    assert storage.exists(uri)
    assert "the statistics are computed again" in capsys.readouterr().out


def test_statistics_that_this_project_did_not_make_are_not_computed_again(root):
    with pytest.raises(UserError, match=f"there are no reference statistics at {root}/inception.npz"):
        train_run(preset(_PRESET).to_json(), f"{root}/data", f"{root}/inception.npz", root, "iddpm", {})
