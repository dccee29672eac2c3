"""An average rebuilt from a run's checkpoints is the one that training would have kept."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from rounding import U32

from training.checkpoints import averages, checkpoint
from training.checkpoints.averages import find_or_rebuild, initial_weights, keep_snapshot, rebuild_average, snapshots
from training.config import presets
from training.config.errors import UserError
from training.models.ema import EMA, PowerEMA
from training.models.posthoc_ema import ReconstructionError
from training.models.unet import make_model

DECAY = 0.98
STDS = (0.05, 0.1, 0.2)
EXPERIMENT = presets.preset(
    "digits-hybrid-cosine",
    ["model.channel_mult=1", "model.attention_resolutions=", "optim.ema_snapshot_stds=0.05,0.1,0.2", "optim.ema_decays=0.9", "seed=3"],
)


def test_a_rebuilt_average_is_a_checkpoint_that_equals_the_average_kept_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(EXPERIMENT.seed)
    model = make_model(EXPERIMENT)
    for name, tensor in initial_weights(EXPERIMENT).items():
        assert torch.equal(model.state_dict()[name], tensor)
    ema, power = EMA(model, [DECAY]), PowerEMA(model, STDS)
    run = str(tmp_path / "run")
    for step in range(1, 501):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter) + 0.001)
        ema.update(model)
        power.update(model, step)
        if step % 50 == 0:
            files = {f"power_ema_{std}.pt": power.state_dict(std) for std in STDS}
            whole = {"experiment.json": EXPERIMENT.to_json().encode(), "model.pt": model.state_dict(), **files}
            keep_snapshot(run, step, whole)

    result = rebuild_average(run, str(tmp_path / "rebuilt"), decay=DECAY)
    assert (result["weights"], result["step"], result["num_snapshots"]) == (f"ema_{DECAY}", 500, 30)
    assert len(snapshots(run)) == 30
    assert checkpoint.weights_names(result["checkpoint_uri"]) == (f"ema_{DECAY}",)
    rebuilt, kept = checkpoint.load_model_state(result["checkpoint_uri"]), ema.state_dict(DECAY)
    gap = math.sqrt(sum(float((rebuilt[name] - kept[name]).square().sum()) for name in kept))
    assert gap / (ema.distances(model)[DECAY] * math.sqrt(sum(float(t.square().sum()) for t in model.state_dict().values()))) < 0.005

    found = find_or_rebuild(run, decay=DECAY, step=500)
    assert found.checkpoint_uri == f"{run}/rebuilt/decay={DECAY}/checkpoints/step=00000500"
    written = Path(found.checkpoint_uri, "complete.json").stat().st_mtime_ns
    assert find_or_rebuild(run, decay=DECAY, step=500) == found
    assert Path(found.checkpoint_uri, "complete.json").stat().st_mtime_ns == written, "a second study finds the first one's"
    # Two studies that began at once: the second one finds nothing, and then what the first one has made of other snapshots.
    all_steps, looks = checkpoint.steps, itertools.count()
    monkeypatch.setattr(checkpoint, "steps", lambda uri: [] if "/rebuilt/" in uri and next(looks) < 2 else all_steps(uri))
    monkeypatch.setattr(averages, "sufficient", lambda stored, **_: stored[3:])
    assert find_or_rebuild(run, decay=DECAY, step=500) == found
    monkeypatch.undo()
    with pytest.raises(ReconstructionError, match=r"is off by \S+% \(allowed:"):
        find_or_rebuild(run, decay=DECAY, step=500, max_error=found.error / 2)


def test_an_average_that_an_ablation_once_stored_is_found(tmp_path: Path) -> None:
    uri = checkpoint.save(str(tmp_path / "rebuilt" / "ema_0.5"), 3, {"state.json": {"rebuilt": {"error": 0.001}}})
    assert find_or_rebuild(str(tmp_path), decay=0.5, step=3).checkpoint_uri == uri


def test_a_run_without_snapshots_is_refused(tmp_path: Path) -> None:
    checkpoint.save(str(tmp_path), 1, {"experiment.json": EXPERIMENT.to_json().encode()})
    with pytest.raises(ReconstructionError, match=r"has no snapshots; name a run that was trained with optim\.ema_snapshot_stds"):
        rebuild_average(str(tmp_path), str(tmp_path / "rebuilt"), decay=DECAY)


def keep_constant_snapshots(run: str, steps: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots of a network of one weight that never changes."""
    monkeypatch.setattr("training.checkpoints.averages.initial_weights", lambda experiment: {"w": torch.ones(1)})
    for step in steps:
        files = {f"power_ema_{std}.pt": {"w": torch.ones(1)} for std in STDS}
        keep_snapshot(run, step, {"experiment.json": EXPERIMENT.to_json().encode(), **files})


def test_an_average_is_rebuilt_from_the_snapshots_near_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = str(tmp_path / "run")
    keep_constant_snapshots(run, range(100, 1601, 100), monkeypatch)
    for file in Path(checkpoint.checkpoint_uri(f"{run}/averages", 100)).glob("power_ema_*"):
        file.unlink()
    found = rebuild_average(run, str(tmp_path / "rebuilt"), decay=0.99, max_error=0.02)
    assert (found["step"], found["num_snapshots"]) == (1600, 4 * len(STDS))
    assert found["error"] <= 0.002
    weight = float(checkpoint.load_model_state(found["checkpoint_uri"])["w"])
    assert weight == pytest.approx(1.0, rel=0, abs=U32)  # a sum of shares, rounded to float32


def test_a_rebuilt_average_replaces_no_checkpoint_and_goes_into_a_directory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keep_constant_snapshots("run", range(100, 401, 100), monkeypatch)
    for out in ("run", "run/", "./run", str(tmp_path / "run"), f"file://{tmp_path}/run"):
        with pytest.raises(ReconstructionError, match="a directory of its own"):
            rebuild_average("run", out, decay=DECAY)
    made = rebuild_average("run", "rebuilt", decay=DECAY)
    assert rebuild_average("run", "rebuilt", decay=DECAY) == made
    with pytest.raises(UserError, match=r"step=00000400: there is another checkpoint already; name a new run's directory"):
        rebuild_average("run", "rebuilt", decay=0.99)
    assert checkpoint.weights_names(made["checkpoint_uri"]) == (f"ema_{DECAY}",)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, math.nan])
def test_a_decay_that_is_none_is_refused(tmp_path: Path, decay: float) -> None:
    with pytest.raises(UserError, match=r"a decay is a number between 0 and 1, such as 0\.9999; got"):
        rebuild_average(str(tmp_path), str(tmp_path / "rebuilt"), decay=decay)
