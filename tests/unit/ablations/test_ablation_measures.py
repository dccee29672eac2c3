"""Every measure of a trial uses the workers, the device and the extractor weights of its step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rounding import NETWORK

from components.ablations import measuring
from components.ablations.measuring import measure_one, trial_model
from evaluation.ablations.definitions.ablation import Measure, Trial
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.ablations.trials import measures
from evaluation.ablations.trials.measures import likelihood_by_steps, likelihood_history, score_history
from evaluation.ablations.trials.trial_model import find_trial_model
from evaluation.features.inception import WEIGHTS
from evaluation.likelihood.bits_per_dim import merge
from evaluation.likelihood.estimate import likelihood_parts
from evaluation.records.protocol_card import derived_seed
from evaluation.sampling.reverse_variance import least_bound_chain
from evaluation.sampling.trained_model import load_model
from training import storage
from training.checkpoints import averages, checkpoint
from training.config.errors import UserError
from training.config.presets import preset
from training.config.spacing import likelihood_spacing
from training.data.loading.row_groups import iterate
from training.data.splits import prepare_experiment
from training.models.unet import make_model

_SMALL = (
    "diffusion.num_timesteps=40",
    "evaluation.sampling.spacing=5",
    "evaluation.scoring_sampling.spacing=5",
    "evaluation.num_samples=60",
)
_PRESET = "digits-tiny-hybrid-cosine"


def _item(root: Path, *overrides: str) -> dict[str, Any]:
    """A run of a network with random last layers, its data set, and its item of a plan."""
    experiment = preset(_PRESET, [*_SMALL, *overrides])
    prepare_experiment(experiment, str(root / "data"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = {name: value + 0.02 * torch.randn(value.shape) for name, value in make_model(experiment).state_dict().items()}
    files = {"experiment.json": experiment.to_dict(), f"ema_{experiment.optim.ema_decays[0]}.pt": state}
    checkpoint.save(str(root / "runs" / "x"), 100, files)
    return {
        "label": "x",
        "ablation_uri": str(root / "ablations" / "key"),
        "data_uri": str(root / "data"),
        "reference_uri": str(root / "none.npz"),
        "run_uri": str(root / "runs" / "x"),
    }


@pytest.mark.parametrize("measure", ["final", "sampling-steps", "figure-1", "raw-weights"])
def test_distances_use_the_extractor_weights_below_the_storage_root(
    measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster without a network has them there alone; these are other bytes, which are refused by their place."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no download
    item = _item(tmp_path, "evaluation.extractor=inception")
    storage.write_bytes(str(tmp_path / "extractors" / WEIGHTS.name), b"other bytes")
    request = AblationRequest(name="sampling-steps", scale="tiny")
    trial = Trial(label="x", values={}, preset=_PRESET, overrides=(), measures=(measure,))
    with pytest.raises(UserError, match=rf"extractors/{WEIGHTS.name} has sha256"):
        measure_one(request, trial, item, item["run_uri"], {"num_workers": 1})


def test_a_training_is_evaluated_for_the_pipelines_run_that_measures_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reaper would close it with the end of the pipeline that trained it."""
    item = _item(tmp_path)
    request = AblationRequest(name="own-grid", scale="tiny", preset=_PRESET, grid={"diffusion.vlb_weight": [0.001, 0.01]})
    trial = request.trials()[0]
    storage.write_json(f"{item['run_uri']}/result.json", {"step": 100})
    arguments: list[Any] = []

    def evaluate_run(*given: Any) -> str:
        arguments.extend(given)
        raise UserError("enough is known")

    monkeypatch.setattr(measuring, "evaluate_run", evaluate_run)
    with pytest.raises(UserError, match="enough is known"):
        measure_one(request, trial, item, item["run_uri"], {}, "pipeline-2")
    assert arguments[-1] == "pipeline-2"


def test_measures_use_the_workers_and_the_device_of_their_step(tmp_path: Path) -> None:
    item = _item(tmp_path)
    model = trial_model(item["run_uri"], item, {"num_workers": 3})
    assert (model.options.num_workers, model.options.worker_device) == (3, "cuda" if torch.cuda.is_available() else "cpu")
    assert trial_model(item["run_uri"], item, {"num_workers": 2, "num_gpus_per_worker": 1}).options.worker_device == "cuda"


def test_bits_per_dim_by_steps_use_the_first_images_and_the_ablations_noise(tmp_path: Path) -> None:
    item = _item(tmp_path)
    model = trial_model(item["run_uri"], item, {"num_workers": 1})
    found = likelihood_by_steps(model, (10,))
    loaded = find_trial_model(item["run_uri"]).spec.load()
    expected = merge(
        list(
            likelihood_parts(
                model.experiment.diffusion,
                loaded.network,
                iterate(f"{item['data_uri']}/test", 50, stop=100),
                form="spaced",
                timesteps=likelihood_spacing(40, 10),
                seed=derived_seed(model.experiment.seed, "ablation"),
                make_conditioning=lambda x_0, labels: {},
            )
        )
    )
    by_spacing = {point["spacing"]: point for point in found["points"]}
    assert by_spacing["with-small-t"]["bits_per_dim"] == pytest.approx(expected.to_dict()["bits_per_dim"], rel=NETWORK)
    assert found["num_images"] == 100
    assert not [uri for uri in storage.list_uris(f"{item['run_uri']}/evaluations") if "/work-" in uri]
    assert likelihood_by_steps(model, (10,)) == found


def test_bits_per_dim_that_are_not_finite_are_a_curve_without_values_and_no_fitting_number_of_steps_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    item = _item(tmp_path)
    model = trial_model(item["run_uri"], item, {"num_workers": 1})
    lost = {"bits_per_dim": None, "standard_error": None, "num_images": 100, "num_evaluations_per_image": 10}
    monkeypatch.setattr(measures, "_likelihood", lambda *_, **__: lost)
    assert [point["bits_per_dim"] for point in likelihood_by_steps(model, (10,))["points"]] == [None, None]
    assert "bits/dim at 10 of 40 steps: -" in capsys.readouterr().out
    with pytest.raises(UserError, match="bits/dim of 40 timesteps have no curve over 50, 100 steps, which are more"):
        likelihood_by_steps(model, (50, 100))


def test_the_scores_beside_training_are_those_of_one_protocol(tmp_path: Path) -> None:
    item = _item(tmp_path)
    model = trial_model(item["run_uri"], item, {"num_workers": 1})
    now = model.experiment.evaluation.scoring_num_samples
    for step, num_samples in ((50, 10 * now), (100, now)):
        score = {"step": step, "scores": {"ema": 1.0}, "standard_errors": {}, "distance_name": "FD"}
        storage.write_json(
            f"{item['run_uri']}/evaluations/step={step:08d}.json", {**score, "protocol": {"num_samples": num_samples, "sampler": "x"}}
        )
    assert [point["step"] for point in score_history(model)["points"]] == [100]


def test_bits_per_dim_over_training_are_of_the_form_of_the_protocol_also_the_learned_one(tmp_path: Path) -> None:
    item = _item(tmp_path, "evaluation.likelihood_form=learned", "evaluation.likelihood_steps=5", "optim.ema_snapshot_stds=0.05")
    trained = trial_model(item["run_uri"], item, {"num_workers": 1})
    decay = trained.experiment.optim.ema_decays[0]
    state = checkpoint.load(trained.checkpoint_uri, f"ema_{decay}.pt")
    files = {"experiment.json": trained.experiment.to_dict(), "power_ema_0.05.pt": state}
    checkpoint.save(averages.snapshots_uri(item["run_uri"]), 50, files)
    before = trained.experiment.override(["evaluation.likelihood_form=full", "evaluation.likelihood_steps=10"])
    rebuilt = {
        "experiment.json": before.to_dict(),
        f"ema_{decay}.pt": state,
        "state.json": {"rebuilt": {"error": 0.0}},
    }  # of an earlier protocol
    rebuilt_uri = checkpoint.save(f"{item['run_uri']}/rebuilt/decay={decay}", 50, rebuilt)
    (point,) = likelihood_history(trained)["points"]
    assert (point["step"], point["num_evaluations_per_image"]) == (50, 5)
    model = load_model(rebuilt_uri)
    timesteps, errors = least_bound_chain(model, 5)
    parts = likelihood_parts(
        model.experiment.diffusion,
        model.network,
        iterate(f"{item['data_uri']}/test", 100, stop=100),
        form="learned",
        timesteps=timesteps,
        x_0_errors=errors,
        seed=derived_seed(model.experiment.seed, "ablation"),
        make_conditioning=model.conditioning,
    )
    assert point["bits_per_dim"] == pytest.approx(merge(parts).bits_per_dim, rel=NETWORK)
