"""A plan takes the runs that a user names: each in the right role, with its own data set."""

import re
from pathlib import Path

import pytest
import torch

from components.ablations.planning import list_data_sets, plan
from components.ablations.steps import finished_record, reason
from components.ablations.tracking import run_name
from components.steps.reference import planned_reference, reference_for
from evaluation.ablations.definitions.ablation import Scale, trials, values_of
from evaluation.ablations.definitions.paper import find_ablation
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.ablations.trials.measures import require_history
from evaluation.ablations.trials.record import AblationTrial, record_uri
from evaluation.features.extractors import extractor_traits, load_extractor
from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Extractor
from training.config.presets import preset
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.published import digits

_SCORED_WITH_FEW_STEPS = ("evaluation.scoring_sampling.spacing=2",)


def _run(folder: Path, name: str, *overrides: str) -> str:
    checkpoint.save(str(folder), 100, {"experiment.json": preset(name, overrides).to_dict(), "model.pt": {"x": torch.zeros(1)}})
    return str(folder)


def test_a_run_of_another_objective_is_refused_for_a_role(tmp_path: Path) -> None:
    runs = {"vlb": _run(tmp_path / "a", "digits-tiny-hybrid-cosine")}
    with pytest.raises(UserError, match=r"--run vlb=.*: was trained by L_hybrid, and vlb is a model of L_vlb"):
        list_data_sets(AblationRequest(name="vlb-ratio", scale="tiny", runs=runs), str(tmp_path))


def test_a_users_run_adds_its_data_set_and_its_varied_values(tmp_path: Path) -> None:
    run_uri = _run(tmp_path / "a", "digits-tiny-hybrid-linear", "data.name=mine")
    found = list_data_sets(AblationRequest(name="vlb-ratio", scale="tiny", runs={"hybrid": run_uri}), str(tmp_path))
    assert sorted(Path(one["data_uri"]).name.partition("-")[0] for one in found) == ["digits", "mine"]
    ablation = find_ablation("sampling-steps")
    planned = trials(ablation, "tiny", runs={"hybrid": run_uri})[0]
    assert values_of(ablation, planned.experiment)["schedule"] == "cosine"
    assert values_of(ablation, checkpoint.load_experiment(checkpoint.checkpoint_uri(run_uri, 100))) == {
        "data": "mine",
        "schedule": "linear",
        "objective": "hybrid",
    }


def test_a_trials_mlflow_name_contains_only_what_differs() -> None:
    request = AblationRequest(name="objective-schedule", scale="tiny")
    names = [run_name(request, trial) for trial in request.trials()]
    assert names[0] == "linear simple num_timesteps=100"
    assert len(set(names)) == len(names)


def test_the_reason_of_a_failure_is_one_short_line() -> None:
    assert reason(UserError("no\n such  thing")) == "no such thing"
    assert reason(RuntimeError("")) == "RuntimeError:"
    text = reason(MemoryError("a word " * 1000))
    assert text.startswith("MemoryError: a word")
    assert text.endswith(" ...")
    assert len(text) < 410


def test_a_trial_whose_training_or_images_were_replaced_is_not_finished(tmp_path: Path) -> None:
    manifest = prepare(digits("test"), f"{tmp_path}/data/train", image_size=8, options=Options(resize="none"))
    item = {"label": "x", "ablation_uri": str(tmp_path), "data_uri": f"{tmp_path}/data", "run_uri": ""}
    record = AblationTrial(label="x", run_uri=f"{tmp_path}/run", data={"digest": manifest.content_digest})
    storage.write_json(record_uri(str(tmp_path), "x"), record.to_dict())
    storage.write_json(f"{tmp_path}/run/result.json", {})
    assert finished_record(item) == record
    storage.delete_prefix(f"{tmp_path}/run")
    assert finished_record(item) is None, "the same command trains it again"
    assert finished_record({**item, "run_uri": record.run_uri}) == record, "a run that the user named may be a checkpoint alone"
    prepare(digits("train"), f"{tmp_path}/other/train", image_size=8, options=Options(resize="none"))
    assert finished_record({**item, "run_uri": record.run_uri, "data_uri": f"{tmp_path}/other"}) is None


def test_metrics_that_could_not_be_computed_are_refused_before_any_trial(tmp_path: Path) -> None:
    prepare(digits("train"), f"{tmp_path}/data/train", image_size=8, options=Options(resize="none"))
    prepare(digits("test"), f"{tmp_path}/data/test", image_size=8, options=Options(resize="none"))
    request = AblationRequest(name="width", scale="tiny", overrides=("evaluation.metrics=sfid",))
    with pytest.raises(UserError, match="sfid needs spatial"):
        plan(request, str(tmp_path), "an experiment", data_uri=f"{tmp_path}/data")
    assert [each.name for each in tmp_path.iterdir()] == ["data"], "nothing was written"


def test_a_data_set_without_the_test_images_that_a_trial_measures_is_refused_before_any_trial(tmp_path: Path) -> None:
    prepare(digits("train"), f"{tmp_path}/data/train", image_size=8, options=Options(resize="none"))
    with pytest.raises(UserError, match=f"{tmp_path}/data has no test images"):
        plan(AblationRequest(name="width", scale="tiny"), str(tmp_path), "an experiment", data_uri=f"{tmp_path}/data")
    assert [each.name for each in tmp_path.iterdir()] == ["data"], "nothing was written"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optim.num_steps=4000", "optim.checkpoint_interval=400"), "at step 4,000 it would be off by 14.5%, and 2% is allowed"),
        (("optim.ema_decays=",), "set optim.ema_decays, like 0.99, and optim.ema_snapshot_stds"),
        (("optim.ema_snapshot_stds=",), "set optim.ema_decays, like 0.99, and optim.ema_snapshot_stds"),
    ],
)
def test_snapshots_that_would_not_give_the_curve_over_training_are_refused_before_any_trial(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    request = AblationRequest(name="cifar10-dropout", scale="small", overrides=overrides)
    with pytest.raises(UserError, match=re.escape(message)):
        plan(request, str(tmp_path), "an experiment")
    assert not list(tmp_path.iterdir()), "nothing was written"


@pytest.mark.parametrize("scale", ["tiny", "small"])
def test_the_snapshots_of_every_scale_and_those_that_a_refusal_names_give_the_curve(scale: Scale) -> None:
    for overrides in ((), ("optim.num_steps=4000", "optim.checkpoint_interval=400", "optim.ema_snapshot_stds=0.01,0.02,0.05,0.1,0.2")):
        for trial in AblationRequest(name="cifar10-dropout", scale=scale, overrides=overrides).trials():
            require_history(trial.experiment.optim)


def test_a_plan_takes_statistics_that_are_there_without_loading_the_extractor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan's pod is small, and the largest extractors are not."""
    for split in ("train", "test"):
        prepare(digits(split), f"{tmp_path}/data/{split}", image_size=8, options=Options(resize="none"))
    request = AblationRequest(name="width", scale="tiny", overrides=("evaluation.metrics=sfid",))
    experiment = request.trials()[0].experiment
    uri = reference_for(experiment, f"{tmp_path}/data", str(tmp_path))

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the extractor's weights were loaded")

    monkeypatch.setattr("evaluation.features.extractors.load_extractor", load)
    assert planned_reference(experiment, f"{tmp_path}/data", str(tmp_path)) == uri
    with pytest.raises(UserError, match="sfid needs spatial"):  # metrics are refused all the same
        plan(request, str(tmp_path), "an experiment", data_uri=f"{tmp_path}/data")


@pytest.mark.parametrize("name", ["digits-classifier", "efficientnet-lite0"])
def test_the_traits_of_an_extractor_are_those_of_the_loaded_one(name: Extractor) -> None:
    loaded = load_extractor(name)
    traits = extractor_traits(name)
    assert [getattr(traits, each) for each in ("name", "dim", "sha256", "provides")] == [
        *(loaded.name, loaded.dim),
        *(loaded.sha256, loaded.provides),
    ]


_SHORT = ("diffusion.num_timesteps=40", "evaluation.sampling.spacing=5", "evaluation.likelihood_steps=5", *_SCORED_WITH_FEW_STEPS)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("vlb-ratio", _SHORT, "vlb-ratio compares hybrid, which has 400 timesteps, with vlb, which has 40 timesteps; take equal ones"),
        ("ensemble", _SHORT, "ensemble compares hybrid, which has 400 timesteps, with vlb, which has 40 timesteps"),
        ("same-noise", ("data.image_size=16",), "which has images of 8x8 with 1 channels, with vlb, which has images of 16x16 with 1"),
        (
            "likelihood-steps",
            ("diffusion.num_timesteps=4", "evaluation.sampling.spacing=2", "evaluation.likelihood_steps=2", *_SCORED_WITH_FEW_STEPS),
            "vlb has 4 timesteps, and likelihood-steps takes 5, 10, 20, 40, 100, 400 steps; take a model of more timesteps",
        ),
    ],
)
def test_runs_whose_measures_could_not_be_taken_or_compared_are_refused_before_any(
    name: str, overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    runs = {
        "hybrid": _run(tmp_path / "a", "digits-tiny-hybrid-cosine"),
        "vlb": _run(tmp_path / "b", "digits-tiny-vlb-cosine", *overrides),
    }
    with pytest.raises(UserError, match=re.escape(message)):
        plan(AblationRequest(name=name, scale="tiny", runs=runs), str(tmp_path), "an experiment")
    assert {each.name for each in tmp_path.iterdir()} == {"a", "b"}, "nothing was written"
