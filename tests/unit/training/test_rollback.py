"""A run that diverges goes back to its last good checkpoint with other draws, a few times, and then fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from training.checkpoints import checkpoint
from training.config.experiment import Experiment, Resources
from training.config.presets import preset
from training.launch.ray_train import _fit
from training.launch.torchrun import RandomImages
from training.loop.interfaces import Hooks, Job, TrainingError
from training.loop.rollback import MAX_ROLLBACKS, train_with_rollbacks
from training.loop.trainer import Trainer


def experiment() -> Experiment:
    small = ["optim.num_steps=40", "optim.checkpoint_interval=4", "optim.global_batch_size=4", "diffusion.num_timesteps=10"]
    protocol = ["evaluation.sampling.spacing=", "evaluation.scoring_sampling.spacing=", "evaluation.likelihood_steps=5"]
    return preset("digits-hybrid-cosine", [*small, *protocol])


def poisoned(run_uri: str, made: list[Trainer], poisons: Callable[[Trainer], bool]) -> Callable[[], Trainer]:
    """Make trainers whose network returns NaN while `poisons` is true; they save to the run's directory."""

    def make() -> Trainer:
        torch.set_num_threads(1)
        config = experiment()
        hooks = Hooks(save=lambda step, files: checkpoint.save(run_uri, step, files) and None)
        trainer = Trainer(config, Resources(), RandomImages(config, torch.device("cpu")), hooks=hooks)

        def spoil(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
            return output * float("nan") if poisons(trainer) else output

        trainer.state.model.register_forward_hook(spoil)
        made.append(trainer)
        return trainer

    return make


def test_a_run_that_diverges_goes_back_and_ends_well_with_other_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[Trainer] = []
    make = poisoned(str(tmp_path), made, lambda trainer: trainer.rollbacks == 0 and trainer.step >= 8)
    went_back: list[int] = []
    outcome = train_with_rollbacks(make, str(tmp_path), on_rollback=went_back.append)
    assert outcome.step == 40
    assert [trainer.rollbacks for trainer in made] == [0, 1]
    assert went_back == [8]
    assert "resuming from step 8\n" in capsys.readouterr().out, "a checkpoint whose last updates were skipped is none to go back to"
    state = checkpoint.load(checkpoint.checkpoint_uri(str(tmp_path), 40), "state.json")
    assert state["rollbacks"] == 1, "a resumed run must continue with the same draws"
    weights = checkpoint.load_model_state(checkpoint.checkpoint_uri(str(tmp_path), 40), "model")
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_a_run_that_diverges_again_and_again_at_one_place_stops_and_names_what_was_tried(tmp_path: Path) -> None:
    made: list[Trainer] = []
    make = poisoned(str(tmp_path), made, lambda trainer: trainer.step >= 8)
    outcome = train_with_rollbacks(make, str(tmp_path))
    assert outcome.failure is not None
    assert "the gradient was not finite for 10 updates in a row" in outcome.failure
    assert f"going back to the last good checkpoint {MAX_ROLLBACKS} times did not help" in outcome.failure
    assert len(made) == MAX_ROLLBACKS + 1


def test_rollbacks_count_anew_after_a_good_stretch(tmp_path: Path) -> None:
    made: list[Trainer] = []
    make = poisoned(str(tmp_path), made, lambda trainer: trainer.step >= 8 * (trainer.rollbacks + 1) and trainer.rollbacks < 3)
    outcome = train_with_rollbacks(make, str(tmp_path))
    assert (outcome.step, outcome.failure) == (40, None)
    assert [trainer.rollbacks for trainer in made] == [0, 1, 2, 3], "more than to one checkpoint, as each led to a later one"


def test_a_run_that_was_stopped_while_it_diverged_goes_back_behind_the_state_that_it_saved_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights themselves are bad: other draws from that state do not help."""
    made: list[Trainer] = []
    make = poisoned(str(tmp_path), made, lambda trainer: False)
    stopped = make()
    stopped.train(9)
    with torch.no_grad():
        for parameter in stopped.state.model.parameters():
            parameter.fill_(float("inf"))
    stopped.train(10)
    assert checkpoint.steps(str(tmp_path)) == [4, 8, 9, 10]
    went_back: list[int] = []
    outcome = train_with_rollbacks(make, str(tmp_path), on_rollback=went_back.append)
    assert (outcome.step, outcome.failure) == (40, None)
    assert went_back == [9]
    assert 10 not in checkpoint.steps(str(tmp_path))
    assert "resuming from step 10\n" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_failures_of_workers_count_anew_once_training_got_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[str] = []

    class Failing:
        """A Ray whose workers fail for good, the first two times after another checkpoint."""

        def __init__(self, worker: Any, *, run_config: Any, **kwargs: Any) -> None:
            self.name = run_config.name

        def fit(self) -> Any:
            fits.append(self.name)
            if len(fits) < 3:
                checkpoint.save(str(tmp_path), 10 * len(fits), {"state.json": {}})
            raise ray.train.TrainingFailedError("a machine was lost")

    monkeypatch.setattr("training.launch.ray_train.TorchTrainer", Failing)
    job = Job(experiment=experiment(), resources=Resources(), data_uri="", run_uri=str(tmp_path))
    with pytest.raises(TrainingError, match=r"training stopped: a machine was lost\. The same command resumes from step 20 of"):
        _fit(job, str(tmp_path))
    assert fits == ["train-1", "train-2", "train-3"]
    with pytest.raises(TrainingError, match=r"training stopped: a machine was lost\. The same command begins anew in"):
        _fit(dataclasses.replace(job, run_uri=str(tmp_path / "new")), str(tmp_path))
