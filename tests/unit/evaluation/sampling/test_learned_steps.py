"""Timesteps chosen for one checkpoint: the choice is the best one, it helps, and every way to sample finds it again."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracles import GaussianOracle
from rounding import U32
from torch import Tensor

from evaluation.ablations.trials.measures import sample_images
from evaluation.ablations.trials.trial_model import find_trial_model
from evaluation.sampling import learned_steps
from evaluation.sampling.draw import DrawRequest, draw_images
from evaluation.sampling.generate import concatenated, generate
from evaluation.sampling.learned_steps import cheapest_path, file_of_model, learn_steps, step_errors, with_learned_steps
from evaluation.sampling.trained_model import ModelSpec, TrainedModel, checkpoint_digest, load_model
from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Experiment, SamplingConfig
from training.diffusion.process import make_process


@pytest.fixture
def model(run_uri: str) -> TrainedModel:
    return load_model(str(checkpoint.latest(run_uri)))


def test_the_path_is_the_cheapest_of_all() -> None:
    errors = torch.rand(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors[torch.ones(9, 9).tril().bool()] = float("inf")

    def cost(path: tuple[int, ...]) -> float:
        return sum(float(errors[a, b]) for a, b in itertools.pairwise((*path, 8)))

    for count in range(1, 9):
        paths = [(0, *between) for between in itertools.combinations(range(1, 8), count - 1)]
        assert cheapest_path(errors, count) == min(paths, key=cost)


def test_the_chosen_steps_come_closer_to_the_fine_path_than_even_ones(model: TrainedModel) -> None:
    experiment = model.experiment.override(["diffusion.num_timesteps=1000"])
    oracle = GaussianOracle(make_process(experiment.diffusion), std=0.1, mean=0.2)
    known = dataclasses.replace(model, experiment=experiment, network=lambda x, t, y: oracle(x, t))
    found = learn_steps(known, 6, num_images=8)
    assert len(found.timesteps) == 6
    assert found.timesteps[-1] == 999
    assert found.error < 0.8 * found.even_error


def test_large_images_are_drawn_in_parts_that_give_the_same_errors(model: TrainedModel) -> None:
    """The errors of all are the root of the mean of the squares."""
    experiment = model.experiment.override(["data.image_size=256", "model.attention_resolutions=128", "diffusion.num_timesteps=10"])
    oracle = GaussianOracle(make_process(experiment.diffusion), std=0.1, mean=0.2)
    sizes = set()

    def network(x_t: Tensor, timesteps: Tensor, y: Tensor) -> Tensor:
        sizes.add(len(x_t))
        return oracle(x_t, timesteps)

    large = dataclasses.replace(model, experiment=experiment, network=network)
    batches = large.batches(16)
    whole, first, last = (step_errors(large, (1, 5, 9), torch.arange(*part), 0, batches) for part in ((20,), (16,), (16, 20)))
    # Float32 means of 20 x 256 x 256 squares, added in pairs: 21 roundings, and three of the formula here.
    torch.testing.assert_close(whole, (0.8 * first**2 + 0.2 * last**2).sqrt(), rtol=24 * U32, atol=0)
    learn_steps(large, 2, num_images=17, batch_size=16)
    assert sizes == {16, 4, 1}


def test_they_are_chosen_once_and_every_way_to_sample_takes_them(
    model: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = SamplingConfig(method="ddim", spacing="learned:4")
    first, _ = concatenated(generate(model, num_images=4, seed=3, sampling=learned))
    monkeypatch.setattr(learned_steps, "learn_steps", None)  # a second choice would fail
    explicit = with_learned_steps(learned, model)
    assert explicit.spacing.startswith("t:")
    assert explicit.spacing.count(",") == 3
    assert torch.equal(first, concatenated(generate(model, num_images=4, seed=3, sampling=explicit))[0])
    request = DrawRequest(
        model=ModelSpec(checkpoint_uri=model.checkpoint_uri, weights=model.weights), num_images=4, seed=3, sampling=learned
    )
    draw_images(request, str(tmp_path / "images"), tmp_path / "grid.png")
    assert explicit.spacing in (tmp_path / "images" / "plan.json").read_text()


def test_other_steps_give_other_images_of_an_ablation_under_another_address(model: TrainedModel, run_uri: str) -> None:
    trial, sampling = find_trial_model(run_uri), SamplingConfig(method="ddim", spacing="learned:3")
    first = sample_images(trial, sampling, 2)
    assert sample_images(trial, sampling, 2) == first
    uri = file_of_model(model, learned_steps.DIRECTORY, "-3")
    storage.write_json(uri, {**storage.read_json(uri), "timesteps": [1, 2, model.experiment.diffusion.num_timesteps - 1]})
    assert sample_images(trial, sampling, 2) != first


def test_the_file_of_a_single_model_has_the_name_of_earlier_versions(model: TrainedModel, run_uri: str) -> None:
    """Files that are stored already are found."""
    named = dataclasses.replace(model, description="a model")
    digest = checkpoint_digest(model.checkpoint_uri)
    key = hashlib.sha256(f"{digest} a model".encode()).hexdigest()[:12]
    assert file_of_model(named, "learned_steps", "-4") == f"{run_uri}/learned_steps/step=00000200-{key}-4.json"


@pytest.mark.parametrize("again", ["middle", "ends"])
def test_an_ensemble_with_a_member_that_is_trained_again_has_another_file(
    experiment: Experiment, write_checkpoint: Callable[[str, Experiment], str], again: str
) -> None:
    """The other weights have the address and the description of the first ones."""
    uris = {name: write_checkpoint(name, experiment) for name in ("middle", "ends")}
    spec = ModelSpec(checkpoint_uri=uris["middle"], ends_checkpoint_uri=uris["ends"], ends_width=10)
    before = file_of_model(spec.load(), "learned_steps", "-4")
    assert file_of_model(spec.load(), "learned_steps", "-4") == before
    write_checkpoint(again, experiment.override(["seed=5"]))
    assert file_of_model(spec.load(), "learned_steps", "-4") != before
    assert file_of_model(spec.load(), "reverse_variance", "") != before


def test_an_upsampler_has_no_learned_steps(model: TrainedModel) -> None:
    upsampler = dataclasses.replace(
        model, experiment=dataclasses.replace(model.experiment, model=dataclasses.replace(model.experiment.model, low_res_size=4))
    )
    with pytest.raises(UserError, match="is an upsampler"):
        with_learned_steps(SamplingConfig(spacing="learned:3"), upsampler)
