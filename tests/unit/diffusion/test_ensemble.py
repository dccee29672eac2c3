"""Several models as one: the model that is used at each original timestep, and the effect on the bound."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracles import DiscreteOracle, discrete_images
from torch import Tensor

from training.config.errors import UserError
from training.config.experiment import DiffusionConfig, SamplingConfig
from training.diffusion.ensemble import Ensemble, ends_and_middle, require_same_process
from training.diffusion.losses import bound_terms
from training.diffusion.process import Denoiser, Model, make_process
from training.diffusion.samplers.sampler import make_sampler, make_sampling_process, sample

LEVELS, PROBABILITIES = [64, 128, 192], [0.3, 0.5, 0.2]
SMALL = DiffusionConfig(num_timesteps=100)


def constant(value: float) -> Model:
    """Says who it is."""
    return lambda x_t, timesteps, **kwargs: torch.full((len(x_t), 2 * x_t.shape[1], *x_t.shape[2:]), value)


def wrong_where(model: Model, is_wrong: Callable[[Tensor], Tensor], unit: float) -> Model:
    """The model with an error in its eps at the original timesteps where `is_wrong`."""

    def damaged(x_t: Tensor, timesteps: Tensor, **kwargs: Tensor) -> Tensor:
        output = model(x_t, timesteps, **kwargs).clone()
        output[:, : x_t.shape[1]] += 0.3 * is_wrong((timesteps * unit).round()).float().view(-1, 1, 1, 1)
        return output

    return damaged


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("num_timesteps", [250, 1000, 4000])
def test_the_first_and_last_hundred_original_timesteps_go_to_one_model(num_timesteps: int, rescale: bool) -> None:
    config = DiffusionConfig(num_timesteps=num_timesteps, rescale_timesteps=rescale)
    ensemble = ends_and_middle(constant(1.0), constant(2.0), config)
    process = make_process(config)
    t = torch.arange(num_timesteps)
    answers = ensemble(torch.zeros(num_timesteps, 1, 1, 1), process.model_timesteps(t))[:, 0, 0, 0]
    expected = torch.where((t < 100) | (t >= num_timesteps - 100), 1.0, 2.0)
    assert torch.equal(answers, expected)


def test_routing_inside_a_spaced_chain_is_by_the_original_timestep() -> None:
    config = SamplingConfig(spacing="t:0,99,100,3899,3900,3999")
    process = make_sampling_process(DiffusionConfig(), config)
    asked: list[tuple[str, float]] = []

    def member(name: str) -> Model:
        def model(x_t: Tensor, timesteps: Tensor) -> Tensor:
            asked.append((name, float(timesteps[0]) * 4))
            return torch.cat([x_t, x_t], 1)

        return model

    ensemble = ends_and_middle(member("vlb"), member("hybrid"), DiffusionConfig())
    sample(Denoiser(process, ensemble), make_sampler(config), indices=torch.arange(2), shape=(1, 2, 2), seed=0)
    assert asked == [("vlb", 3999), ("vlb", 3900), ("hybrid", 3899), ("hybrid", 100), ("vlb", 99), ("vlb", 0)]


def test_a_mixed_batch_is_taken_apart_and_put_together_with_its_labels() -> None:
    def labelled(sign: float) -> Model:
        return lambda x_t, timesteps, y: sign * y.float().view(-1, 1, 1, 1).expand(-1, 2, 4, 4)

    ensemble = Ensemble([(labelled(1.0), range(50)), (labelled(-1.0), range(50, 100))], SMALL)
    t = torch.tensor([70, 3, 99, 49, 50])
    out = ensemble(torch.zeros(5, 1, 4, 4), make_process(SMALL).model_timesteps(t), y=torch.tensor([1, 2, 3, 4, 5]))
    assert out[:, 0, 0, 0].tolist() == [-1, 2, -3, 4, -5]


def test_the_bound_of_an_ensemble_is_the_sum_of_the_better_terms_exactly() -> None:
    images, _ = discrete_images(LEVELS, PROBABILITIES, 4)
    x_0, indices = images.float() / 127.5 - 1, torch.arange(4)
    process = make_process(SMALL)
    oracle = DiscreteOracle(process, LEVELS, PROBABILITIES)
    middle = lambda t: (t >= 20) & (t < 80)  # noqa: E731
    good_ends = wrong_where(oracle, middle, 0.1)
    good_middle = wrong_where(oracle, lambda t: ~middle(t), 0.1)
    ensemble = ends_and_middle(good_ends, good_middle, SMALL, width=20)

    def terms(model: Model) -> Tensor:
        drawn = [bound_terms(Denoiser(process, model), x_0, torch.full((4,), k), indices=indices, seed=0) for k in range(100)]
        return torch.stack(drawn)

    ends, mid, both = terms(good_ends), terms(good_middle), terms(ensemble)
    better = torch.where(ends.mean(1, keepdim=True) < mid.mean(1, keepdim=True), ends, mid)
    assert torch.equal(both, better)
    assert torch.equal(both.sum(0), better.sum(0))
    assert both.sum() < min(ends.sum(), mid.sum()) - 0.01


def test_ends_that_meet_are_refused() -> None:
    with pytest.raises(UserError, match="two ends of 60 timesteps do not fit into 100; use a width of 0 to 50"):
        ends_and_middle(constant(0.0), constant(0.0), SMALL, width=60)


def test_members_must_agree_on_the_meaning_of_their_output_but_not_on_the_objective() -> None:
    hybrid, vlb = DiffusionConfig(), DiffusionConfig(objective="vlb", timestep_sampler="loss_second_moment")
    assert require_same_process([hybrid, vlb]) == hybrid
    with pytest.raises(UserError, match=r"diffusion\.schedule; one has 'cosine', another 'linear'"):
        require_same_process([hybrid, DiffusionConfig(schedule="linear")])
