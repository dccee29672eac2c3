"""Draws of t: distribution, unbiasedness, warm-up, ranks, checkpoints."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rounding import U32, U64
from scipy import stats
from torch import Tensor

from training.config.experiment import DiffusionConfig
from training.diffusion.timesteps import LossSecondMoment, TimestepSampler, make_timestep_sampler

ROUNDING = 30 * U64
"""Rounding error of a probability: ten squares, their mean and root, and a sum over up to 20 timesteps."""


def fill(sampler: LossSecondMoment, histories: Tensor) -> None:
    """Gives every t a history, one loss of each t a step."""
    for losses in histories.t():
        sampler.update(torch.arange(len(histories)), losses)


def warmed_up(num_timesteps: int = 20) -> LossSecondMoment:
    sampler = LossSecondMoment(num_timesteps)
    scale = torch.linspace(0.1, 3.0, num_timesteps, dtype=torch.float64).unsqueeze(1)
    fill(sampler, scale * torch.linspace(0.5, 1.5, 10, dtype=torch.float64))
    return sampler


@pytest.mark.parametrize("sampler", [TimestepSampler(20), LossSecondMoment(20), warmed_up()], ids=["uniform", "warming", "warm"])
def test_t_has_the_stated_distribution_and_weights(sampler: TimestepSampler) -> None:
    p = sampler.probabilities() if isinstance(sampler, LossSecondMoment) else torch.full((20,), 1 / 20, dtype=torch.float64)
    t, weights = sampler.sample(3, 7, torch.arange(200_000))
    counts = torch.bincount(t, minlength=20)
    assert stats.chisquare(counts.numpy(), (p * len(t)).numpy()).pvalue > 1e-3
    torch.testing.assert_close(weights, (1 / (20 * p[t])).float(), rtol=2 * U32, atol=0)  # rounded to float32


@pytest.mark.parametrize("sampler", [TimestepSampler(20), warmed_up()], ids=["uniform", "warm"])
def test_the_weighted_loss_is_an_unbiased_estimate_of_its_mean_over_t(sampler: TimestepSampler) -> None:
    losses = torch.linspace(0.1, 3.0, 20).square()
    t, weights = sampler.sample(0, 1, torch.arange(200_000))
    weighted = (weights * losses[t]).double()
    assert abs(float(weighted.mean() - losses.mean())) < 5 * float(weighted.std()) / math.sqrt(len(t))


def test_importance_sampling_lowers_the_variance_where_losses_differ() -> None:
    losses = torch.linspace(0.1, 3.0, 20)
    spread = []
    for sampler in (TimestepSampler(20), warmed_up()):
        t, weights = sampler.sample(0, 1, torch.arange(50_000))
        spread.append(float((weights * losses[t]).std()))
    assert spread[1] < 0.05 * spread[0]


def test_the_weights_are_the_released_ones(golden: dict[str, Any]) -> None:
    expected = golden["second_moment"]
    sampler = LossSecondMoment(5)
    _, weights = sampler.sample(0, 0, torch.arange(5))
    assert weights.tolist() == expected["before"]
    fill(sampler, torch.tensor(expected["hist"], dtype=torch.float64))
    torch.testing.assert_close(sampler.probabilities(), torch.tensor(expected["after"], dtype=torch.float64), rtol=ROUNDING, atol=0)


def test_sampling_stays_uniform_until_every_t_has_ten_losses() -> None:
    sampler = LossSecondMoment(4)
    fill(sampler, torch.tensor([[1.0], [5.0], [2.0], [3.0]]).expand(4, 9))
    sampler.update(torch.tensor([0, 1, 3]), torch.tensor([1.0, 5.0, 3.0]))
    assert sampler.probabilities().tolist() == [0.25] * 4
    sampler.update(torch.tensor([2]), torch.tensor([2.0]))
    expected = 0.999 * torch.tensor([1.0, 5.0, 2.0, 3.0], dtype=torch.float64) / 11 + 0.001 / 4
    torch.testing.assert_close(sampler.probabilities(), expected, rtol=ROUNDING, atol=0)


def test_only_the_last_ten_losses_of_a_t_count() -> None:
    sampler = LossSecondMoment(2)
    fill(sampler, torch.full((2, 10), 1.0))
    # Fourteen times in one batch: the first four of them are forgotten again.
    sampler.update(torch.zeros(14, dtype=torch.int64), torch.tensor([9.0] * 4 + [3.0] * 10))
    expected = 0.999 * torch.tensor([3.0, 1.0], dtype=torch.float64) / 4 + 0.001 / 2
    torch.testing.assert_close(sampler.probabilities(), expected, rtol=ROUNDING, atol=0)


def test_a_t_without_loss_keeps_its_share_and_losses_of_zero_everywhere_are_uniform() -> None:
    sampler = LossSecondMoment(5)
    fill(sampler, torch.zeros(5, 10))
    assert sampler.probabilities().tolist() == [0.2] * 5
    _, weights = sampler.sample(0, 0, torch.arange(100))
    assert bool(weights.isfinite().all())
    fill(sampler, torch.tensor([[0.0], [1.0], [1.0], [1.0], [1.0]]).expand(5, 10))
    assert float(sampler.probabilities()[0]) == pytest.approx(0.001 / 5, rel=ROUNDING)
    assert float(sampler.probabilities().sum()) == pytest.approx(1.0, rel=ROUNDING)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_ranks_that_gather_their_losses_draw_what_one_process_draws(num_ranks: int) -> None:
    alone, ranks = LossSecondMoment(6), [LossSecondMoment(6) for _ in range(num_ranks)]
    for step in range(60):
        indices = torch.arange(step * 12, step * 12 + 12)
        t, weights = alone.sample(1, step, indices)
        parts = [rank.sample(1, step, part) for rank, part in zip(ranks, indices.chunk(num_ranks), strict=True)]
        assert torch.equal(torch.cat([part[0] for part in parts]), t)
        assert torch.equal(torch.cat([part[1] for part in parts]), weights)
        losses = (t + 1).float() * (1 + 0.1 * torch.sin(indices.float()))
        for sampler in (alone, *ranks):
            sampler.update(t, losses)
    assert len(set(alone.probabilities().tolist())) > 1, "the law must have adapted"
    for rank in ranks:
        assert torch.equal(rank.probabilities(), alone.probabilities())


def test_draws_depend_on_seed_step_and_index_alone() -> None:
    for sampler in (TimestepSampler(4000), warmed_up(100)):
        first = sampler.sample(1, 5, torch.arange(64))[0]
        assert torch.equal(first, sampler.sample(1, 5, torch.arange(64))[0])
        assert not torch.equal(first, sampler.sample(1, 6, torch.arange(64))[0])
        assert not torch.equal(first, sampler.sample(2, 5, torch.arange(64))[0])


def test_a_saved_sampler_continues_as_if_it_had_never_stopped() -> None:
    original, resumed = warmed_up(), LossSecondMoment(20)
    original.update(torch.tensor([3, 3, 7]), torch.tensor([8.0, 9.0, 10.0]))
    state = original.state_dict()
    resumed.load_state_dict(state)
    for step in range(20):
        t, weights = original.sample(0, step, torch.arange(32))
        for mine, theirs in zip(resumed.sample(0, step, torch.arange(32)), (t, weights), strict=True):
            assert torch.equal(mine, theirs)
        for sampler in (original, resumed):
            sampler.update(t, t.float())
    assert not torch.equal(state["history"], original.state_dict()["history"]), "the saved state must be a copy"
    later = original.state_dict()
    original.load_state_dict(state)
    assert not torch.equal(later["history"], state["history"]), "also where the sampler goes back to an earlier one"


def test_another_samplers_state_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"num_timesteps"):
        LossSecondMoment(20).load_state_dict(LossSecondMoment(10).state_dict())
    with pytest.raises(ValueError, match=r"timestep_sampler"):
        LossSecondMoment(20).load_state_dict(TimestepSampler(20).state_dict())
    with pytest.raises(ValueError, match=r"has history of shape|has counts of shape"):
        TimestepSampler(20).load_state_dict(LossSecondMoment(20).state_dict())
    TimestepSampler(20).load_state_dict(TimestepSampler(20).state_dict())


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_left_out(loss: float) -> None:
    sampler, without = warmed_up(), warmed_up()
    sampler.update(torch.tensor([0, 1, 1]), torch.tensor([100.0, loss, 3.0]))
    without.update(torch.tensor([0, 1]), torch.tensor([100.0, 3.0]))
    assert all(torch.equal(value, without.state_dict()[name]) for name, value in sampler.state_dict().items())


def test_a_batch_leaves_the_history_that_its_losses_leave_one_by_one() -> None:
    at_once, one_by_one = LossSecondMoment(3), LossSecondMoment(3)
    for batch in range(4):  # more than a history holds of one t, and fewer
        t = (torch.rand(29, generator=torch.Generator().manual_seed(batch)) * 2.6).long()
        losses = torch.arange(29.0) + 100 * batch
        at_once.update(t, losses)
        for place in range(29):
            one_by_one.update(t[place : place + 1], losses[place : place + 1])
        assert all(torch.equal(value, one_by_one.state_dict()[name]) for name, value in at_once.state_dict().items())


def test_the_config_names_the_sampler() -> None:
    uniform = make_timestep_sampler(DiffusionConfig(num_timesteps=50))
    importance = make_timestep_sampler(DiffusionConfig(num_timesteps=50, timestep_sampler="loss_second_moment"))
    assert type(uniform) is TimestepSampler
    assert isinstance(importance, LossSecondMoment)
    assert uniform.num_timesteps == importance.num_timesteps == 50
