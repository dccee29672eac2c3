"""Joint measurements are made again where one of their inputs is another: trained again, or drawn by another sampler or seed."""

import dataclasses
from pathlib import Path

from evaluation.ablations.trials.joint import cascade, input_digests
from evaluation.ablations.trials.record import AblationTrial
from evaluation.ablations.trials.trial_model import TrialModel, find_trial_model
from training.checkpoints import checkpoint
from training.config.experiment import Experiment
from training.models.unet import make_model


def test_training_a_trial_again_or_choosing_other_weights_changes_the_input_digests(run_uri: str) -> None:
    trials = [
        AblationTrial(label=label, checkpoint_uri=checkpoint.checkpoint_uri(run_uri, step), weights="ema_0.99")
        for label, step in (("hybrid", 100), ("vlb", 200))
    ]
    recorded = AblationTrial(label="ensemble", data={"inputs": input_digests(trials)})
    stored = AblationTrial.from_dict(recorded.to_dict())
    assert stored.data["inputs"] == input_digests(trials)
    assert stored.data["inputs"] != input_digests([trials[0], AblationTrial(**{**trials[1].to_dict(), "own": (), "weights": "model"})])
    files = {name: checkpoint.load_bytes(trials[0].checkpoint_uri, name) for name in checkpoint.file_names(trials[0].checkpoint_uri)}
    files["ema_0.99.pt"] = checkpoint.load_bytes(trials[0].checkpoint_uri, "model.pt")
    checkpoint.save(run_uri, 100, files)
    assert stored.data["inputs"] != input_digests(trials)


def test_a_cascade_is_repeated_with_another_sampler_and_with_a_second_stage_of_another_seed(
    experiment: Experiment, digits_uri: str, reference_uri: str, tmp_path: Path
) -> None:
    experiment = experiment.override(["evaluation.num_samples=20"])

    def stage(name: str, **changes: dict[str, object] | int) -> TrialModel:
        sections = {
            key: dataclasses.replace(getattr(experiment, key), **value) for key, value in changes.items() if isinstance(value, dict)
        }
        mine = dataclasses.replace(experiment, **{**changes, **sections})  # type: ignore[arg-type]
        files = {"experiment.json": mine.to_dict(), "ema_0.99.pt": make_model(mine).state_dict()}
        checkpoint.save(str(tmp_path / name), 1, files)
        return dataclasses.replace(find_trial_model(str(tmp_path / name)), data_uri=digits_uri, reference_uri=reference_uri)

    first = stage("first", data={"image_size": 4}, model={"channel_mult": (1, 2)})
    second, other_seed = (stage(f"second-{seed}", model={"low_res_size": 4}, seed=seed) for seed in (1, 2))
    other_sampler = dataclasses.replace(first, experiment=first.experiment.override(['evaluation.sampling.spacing="4"']))
    pairs = [(first, second), (first, other_seed), (other_sampler, second), (first, second)]
    stages = [cascade({"first-stage": small, "second-stage": large}).measures["stages"]["first_uri"] for small, large in pairs]
    assert len(set(stages)) == 3
    assert stages[3] == stages[0]
    assert all(Path(uri).exists() for uri in stages)
