"""Averages of many decays of one run, stored or rebuilt, on common noise."""

import csv
import io
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from evaluation.records.result import EvaluationResult
from evaluation.studies.ema_sweep import Sweep, as_study, sweep
from training import storage
from training.checkpoints import averages, checkpoint
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.models.ema import EMA, PowerEMA
from training.models.unet import make_model

_DECAYS = (0.9, 0.95)
_STDS = (0.05, 0.1, 0.2)


@pytest.fixture(scope="module")
def swept_run_uri(tmp_path_factory: pytest.TempPathFactory, experiment: Experiment) -> str:
    """A run of random updates that kept one decay, and snapshots of the others."""
    run_uri = str(tmp_path_factory.mktemp("swept"))
    mine = experiment.override(["optim.ema_decays=0.9", "optim.ema_snapshot_stds=0.05,0.1,0.2"])
    torch.manual_seed(mine.seed)
    model = make_model(mine)
    ema, power = EMA(model, _DECAYS), PowerEMA(model, _STDS)
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 201):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.003 * torch.randn(parameter.shape, generator=generator))
        ema.update(model)
        power.update(model, step)
        if step % 20 == 0:
            snapshots = {f"power_ema_{std}.pt": power.state_dict(std) for std in _STDS}
            experiment_json = mine.to_json().encode()
            checkpoint.save(averages.snapshots_uri(run_uri), step, {"experiment.json": experiment_json, **snapshots})
    files = {"experiment.json": experiment_json, "ema_0.9.pt": ema.state_dict(0.9), "model.pt": model.state_dict()}
    checkpoint.save(run_uri, 200, files)
    checkpoint.save(f"{run_uri}-kept", 200, {"experiment.json": experiment_json, "ema_0.95.pt": ema.state_dict(0.95)})
    return run_uri


def _sweep(run_uri: str, decays: Sequence[float], digits_uri: str, reference_uri: str) -> Sweep:
    return sweep(run_uri, decays, digits_uri, reference_uri)


def test_stored_and_rebuilt_averages_are_in_one_table(swept_run_uri: str, digits_uri: str, reference_uri: str, tmp_path: Path) -> None:
    found = _sweep(swept_run_uri, (0.95, 0.9, 0.5), digits_uri, reference_uri)
    short, kept, rebuilt = found.points
    assert [point.decay for point in found.points] == [0.5, 0.9, 0.95]
    assert kept.source == "stored"
    assert rebuilt.source == "rebuilt"
    assert rebuilt.rebuild_error is not None
    assert rebuilt.rebuild_error < 0.005
    assert short.distance is None
    assert "would be off by" in short.source
    assert min(point.behind for point in (kept, rebuilt) if point.behind is not None) == 0
    study = as_study(found)
    assert "not available" in study.text
    assert "would be off by" in study.text.splitlines()[-1]
    parsed = list(csv.DictReader(io.StringIO(study.files["sweep.csv"].decode())))
    assert float(parsed[1]["distance"]) == kept.distance
    assert parsed[0]["distance"] == ""
    assert "data:image/svg+xml;base64," in study.files["sweep.html"].decode()


def test_all_averages_are_scored_by_the_runs_protocol_also_when_it_changed_after_the_snapshots(
    swept_run_uri: str, digits_uri: str, reference_uri: str, tmp_path: Path
) -> None:
    run_uri = str(shutil.copytree(swept_run_uri, tmp_path / "run"))
    before = checkpoint.load_experiment(checkpoint.checkpoint_uri(run_uri, 200))
    now = before.override(["evaluation.num_samples=70", 'evaluation.sampling.spacing="5"'])
    storage.write_json(f"{run_uri}/experiment.json", now.to_dict())
    found = sweep(run_uri, _DECAYS, digits_uri, reference_uri, at_full_protocol=True)
    assert [point.source for point in found.points] == ["stored", "rebuilt"]
    results = [EvaluationResult.read(str(path)) for path in tmp_path.rglob("ema-sweep-*.json")]
    protocols = [(card["distance"]["num_samples"], card["distance"]["sampler"]) for card in (result.protocol for result in results)]
    assert protocols == [(70, "ancestral, 5 of 40 steps")] * 2


def test_a_rebuilt_average_equals_the_one_that_training_would_have_stored(swept_run_uri: str, digits_uri: str, reference_uri: str) -> None:
    state = checkpoint.load(checkpoint.checkpoint_uri(f"{swept_run_uri}-kept", 200), "ema_0.95.pt")
    rebuilt = _sweep(swept_run_uri, (0.95,), digits_uri, reference_uri).points[0]
    mine = checkpoint.load(rebuilt.checkpoint_uri, "ema_0.95.pt")
    gap = math.sqrt(sum(float((mine[name] - state[name]).square().sum()) for name in state))
    size = math.sqrt(sum(float(value.square().sum()) for value in state.values()))
    assert gap / size < 1e-3


def test_a_sweep_without_available_averages_is_refused(kept_run_uri: str, digits_uri: str, reference_uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="decays are numbers between 0 and 1"):
        _sweep(kept_run_uri, (1.0,), digits_uri, reference_uri)
    with pytest.raises(UserError, match=r"none of these averages is available: .*has no snapshots"):
        _sweep(kept_run_uri, (0.5,), digits_uri, reference_uri)
    with pytest.raises(UserError, match="neither checkpoints nor snapshots"):
        _sweep(str(tmp_path), (0.5,), digits_uri, reference_uri)
