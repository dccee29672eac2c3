"""The variances that are estimated for a checkpoint: known errors are found, and every way to sample takes them."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import GaussianOracle
from rounding import U32, rounded
from torch import Tensor

from evaluation.ablations.trials.measures import sample_images
from evaluation.ablations.trials.trial_model import find_trial_model
from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.preflight import preflight
from evaluation.likelihood.bits_per_dim import merge
from evaluation.likelihood.estimate import likelihood_parts
from evaluation.sampling import reverse_variance
from evaluation.sampling.draw import DrawRequest, draw_images
from evaluation.sampling.generate import concatenated, generate
from evaluation.sampling.reverse_variance import (
    ReverseVariance,
    estimate,
    estimate_and_store,
    least_bound_chain,
    least_bound_timesteps,
    x_0_errors_for,
)
from evaluation.sampling.sample_set import SamplePlan, draw, plan_samples
from evaluation.sampling.trained_model import ModelSpec, TrainedModel, load_model
from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import DiffusionConfig, LikelihoodForm, SamplingConfig
from training.data.loading.row_groups import iterate
from training.diffusion.pixels import to_model_range
from training.diffusion.process import make_process

OPTIMAL = SamplingConfig(spacing="4", variance="optimal")


@pytest.fixture
def model(run_uri: str) -> TrainedModel:
    return load_model(str(checkpoint.latest(run_uri)))


def zeros(x_t: Tensor, timesteps: Tensor, **conditioning: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x_t)] * 2, 1)


def test_a_network_that_says_zero_is_wrong_by_the_image_itself(model: TrainedModel, digits_uri: str) -> None:
    experiment = model.experiment.override(["diffusion.prediction=x_0"])
    found = estimate(dataclasses.replace(model, network=zeros, experiment=experiment), digits_uri, num_images=100)
    _, images, _ = next(iterate(f"{digits_uri}/train", 100))
    assert found.num_images == 100
    rounding = 64 * U32  # a mean of 64 squares of an image in float32
    assert found.optimal == pytest.approx([float(to_model_range(images).square().mean())] * len(found.timesteps), rel=rounding)


def test_without_predicted_noise_the_analytic_error_is_the_noise_over_the_signal_up_to_one(model: TrainedModel, digits_uri: str) -> None:
    found = estimate(dataclasses.replace(model, network=zeros), digits_uri, num_images=2)
    alpha_bars = make_process(model.experiment.diffusion, found.timesteps).alpha_bars
    assert found.analytic == rounded(((1 - alpha_bars) / alpha_bars).clamp(max=1.0).tolist(), 4)  # operations
    assert found.analytic[0] < 1.0 == found.analytic[-1]


def test_a_network_of_too_much_noise_at_the_end_does_not_make_the_analytic_error_tiny(model: TrainedModel, digits_uri: str) -> None:
    process = make_process(model.experiment.diffusion)
    last = process.model_timesteps(torch.tensor([model.experiment.diffusion.num_timesteps - 1]))

    def too_much(x_t: Tensor, timesteps: Tensor, **conditioning: Tensor) -> Tensor:
        eps = torch.where(timesteps.view(-1, 1, 1, 1) == last, 2.0, 0.0).expand_as(x_t)
        return torch.cat([eps, torch.zeros_like(eps)], 1)

    found = estimate(dataclasses.replace(model, network=too_much), digits_uri, num_images=2)
    assert found.analytic[-1] == found.analytic[-2] == 1.0
    assert list(found.analytic) == sorted(found.analytic)


def test_between_the_estimated_timesteps_the_errors_of_gaussian_data_are_hit(model: TrainedModel) -> None:
    experiment = model.experiment.override(["diffusion.num_timesteps=1000"])
    alpha_bars = make_process(experiment.diffusion).alpha_bars
    exact = 0.04 * (1 - alpha_bars) / (0.04 * alpha_bars + 1 - alpha_bars)  # Var[x_0 | x_t] for a standard deviation of 0.2
    timesteps = (*range(20), *range(39, 1000, 20))
    stored = dataclasses.replace(model, experiment=experiment, description="gaussian")
    values = tuple(exact[list(timesteps)].tolist())
    names = ("data_uri", "data_digest", "model", "checkpoint_sha256")
    known = {"timesteps": timesteps, "optimal": values, "analytic": values, "num_images": 1, "seed": 0, "seconds": 0.0, "versions": {}}
    record = ReverseVariance(**{**known, **dict.fromkeys(names, "")})  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "exists", lambda uri: True)
        patch.setattr(storage, "read_record", lambda uri, shape: record)
        found = x_0_errors_for(SamplingConfig(variance="optimal"), stored)
    assert found is not None
    # A chord misses the logarithm by at most its curvature / 8 times the squared step: 1/4 / 8 * 1.1^2, from t = 19 to 39 in log SNR.
    torch.testing.assert_close(found, exact, rtol=0.04, atol=0.0)


def test_an_estimate_is_stored_with_its_origin_and_every_way_to_sample_takes_it(model: TrainedModel, digits_uri: str) -> None:
    with pytest.raises(UserError, match="run 'iddpm learn-variance' with --data first"):
        next(generate(model, num_images=4, seed=0, sampling=OPTIMAL))
    found, uri = estimate_and_store(model, digits_uri, num_images=20)
    stored = storage.read_json(uri)
    assert set(stored) == {field.name for field in dataclasses.fields(ReverseVariance)}
    assert stored["optimal"] == list(found.optimal)
    ways = [
        OPTIMAL,
        dataclasses.replace(OPTIMAL, variance="analytic"),
        dataclasses.replace(OPTIMAL, method="ddim"),
        SamplingConfig(spacing="4"),
    ]
    images = [concatenated(generate(model, num_images=4, seed=0, sampling=way))[0] for way in ways]
    assert all(not torch.equal(first, images[-1]) for first in images[:-1])


def test_an_estimate_that_is_missing_is_made_on_the_data_of_the_training(model: TrainedModel, run_uri: str, digits_uri: str) -> None:
    storage.write_json(f"{run_uri}/result.json", {"data_uri": digits_uri})
    first, second = (concatenated(generate(model, num_images=2, seed=0, sampling=OPTIMAL))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert len(storage.list_uris(f"{run_uri}/reverse_variance")) == 1


def test_an_estimate_that_is_missing_is_made_on_the_data_that_is_named(
    model: TrainedModel, run_uri: str, digits_uri: str, reference_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reverse_variance, "estimate", lambda model, data_uri, **_: estimate(model, data_uri, num_images=2))
    storage.write_json(f"{run_uri}/result.json", {"data_uri": "the/training/had/another"})
    spec = ModelSpec(checkpoint_uri=model.checkpoint_uri, weights=model.weights)
    request = DrawRequest(model=spec, num_images=2, seed=0, sampling=OPTIMAL, data_uri=digits_uri)
    ways = (
        lambda: draw_images(request, str(tmp_path / "set"), tmp_path / "grid.png"),
        lambda: preflight(spec, digits_uri, reference_uri, EvaluationOptions(sampling=OPTIMAL, likelihood=False)),
        lambda: preflight(spec, digits_uri, reference_uri, EvaluationOptions(likelihood_form="learned", likelihood_num_images=2)),
    )
    for way in ways:
        way()
        (uri,) = storage.list_uris(f"{run_uri}/reverse_variance")
        assert storage.read_json(uri)["data_uri"] == digits_uri
        storage.delete(uri)


def test_another_estimate_changes_the_identity_of_what_was_made_with_it_and_of_nothing_else(
    model: TrainedModel, run_uri: str, digits_uri: str, reference_uri: str, tmp_path: Path
) -> None:
    spec, trial = ModelSpec(checkpoint_uri=model.checkpoint_uri, weights=model.weights), find_trial_model(run_uri)

    def plan(sampling: SamplingConfig) -> SamplePlan:
        counts = {"class_counts": (), "data_uri": digits_uri}
        return plan_samples(spec, model, num_images=2, seed=0, sampling=sampling, labels="balanced", **counts)  # type: ignore[arg-type]

    def card(form: LikelihoodForm) -> dict[str, Any]:
        options = EvaluationOptions(likelihood_form=form, likelihood_num_images=2)
        return preflight(spec, digits_uri, reference_uri, options).card

    def made(sampling: SamplingConfig, form: LikelihoodForm) -> tuple[Any, ...]:
        return plan(sampling), card(form), sample_images(trial, sampling, 2)

    own = dataclasses.replace(OPTIMAL, variance="model")
    estimate_and_store(model, digits_uri, num_images=2)
    before, before_own = made(OPTIMAL, "learned"), made(own, "spaced")
    assert before_own[0].inputs == spec.digests(), "as in the plans of earlier versions"
    draw(before[0], str(tmp_path / "set"))
    estimate_and_store(model, digits_uri, num_images=2)
    assert made(OPTIMAL, "learned") == before, "the same estimate again"
    estimate_and_store(model, digits_uri, num_images=20)
    assert all(new != old for new, old in zip(made(OPTIMAL, "learned"), before, strict=True))
    assert made(own, "spaced") == before_own
    with pytest.raises(UserError, match="contains images of another plan"):
        draw(plan(OPTIMAL), str(tmp_path / "set"))


def test_the_learned_chain_of_a_likelihood_has_the_least_bound_of_all() -> None:
    process = make_process(DiffusionConfig(num_timesteps=24))
    errors = torch.rand(24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # Gaussian data would make all chains equal

    def bound(between: tuple[int, ...]) -> float:
        """The sum of the KL divergences, from the two Gaussians of each step."""
        chain = [0, *between, 23]
        spaced = make_process(process.config, chain, errors[chain])
        return float((0.5 * (spaced.optimal_variance / spaced.posterior_variance).log())[1:].sum())

    best = min(itertools.combinations(range(1, 23), 3), key=bound)
    assert least_bound_timesteps(process.alpha_bars, errors, 5) == (0, *best, 23)


def test_the_learned_likelihood_of_gaussian_pixels_is_near_that_of_all_steps_and_better_than_a_strided_one(
    model: TrainedModel, digits_uri: str
) -> None:
    """An oracle of N(0, 0.3^2) on the digits: a network whose mean is imperfect, as all are."""
    experiment = model.experiment.override(["diffusion.num_timesteps=1000"])
    oracle = GaussianOracle(make_process(experiment.diffusion), std=0.3)
    known = dataclasses.replace(model, experiment=experiment, network=lambda x, t, y: oracle(x, t), description="oracle")
    estimate_and_store(known, digits_uri, num_images=100)
    batch = next(iterate(f"{digits_uri}/test", 40))
    timesteps, errors = least_bound_chain(known, 12)
    forms = {
        "learned": {"form": "learned", "timesteps": timesteps, "x_0_errors": errors},
        "same variance": {"form": "spaced", "timesteps": timesteps},
        "spaced": {"form": "spaced", "num_steps": 10},
    }
    bits = {
        name: merge(likelihood_parts(experiment.diffusion, known.network, [batch], **form)).bits_per_dim for name, form in forms.items()
    }
    assert len(timesteps) == 12
    assert bits["learned"] < bits["same variance"]
    assert bits["learned"] < bits["spaced"]


def test_a_method_without_a_variance_and_scores_in_training_refuse_one(model: TrainedModel) -> None:
    with pytest.raises(UserError, match="is not used by 'unipc'"):
        SamplingConfig(method="unipc", variance="optimal")
    with pytest.raises(UserError, match="leave it out of the scores in training"):
        model.experiment.override(["evaluation.scoring_sampling.method=ddim", "evaluation.scoring_sampling.variance=optimal"])
