"""Averages of the weights: closed forms, and averages rebuilt from snapshots."""

from __future__ import annotations

import math

import pytest
import torch
from rounding import U32, U64
from torch import Tensor, nn

from training.config import presets
from training.models.ema import EMA, PowerEMA, power_exponent
from training.models.posthoc_ema import ReconstructionError, Snapshot, combine, reconstruct, sufficient


def model_with(value: float) -> nn.Linear:
    model = nn.Linear(2, 1)
    set_to(model, value)
    return model


def set_to(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_after_n_updates_to_a_constant_the_start_counts_decay_to_the_n(decay: float) -> None:
    model = model_with(1.0)
    ema = EMA(model, [decay])
    set_to(model, 0.0)
    for _ in range(100):
        ema.update(model)
    assert float(ema.state_dict(decay)["bias"]) == pytest.approx(decay**100, rel=100 * 3 * U32)  # three roundings an update


def test_the_average_is_the_weighted_sum_of_all_weights() -> None:
    model = model_with(0.3)
    ema = EMA(model, [0.9])
    values = [math.sin(n) for n in range(1, 41)]
    for value in values:
        set_to(model, value)
        ema.update(model)
    expected = 0.9**40 * 0.3 + sum(0.1 * 0.9 ** (40 - n) * value for n, value in enumerate(values, start=1))
    # An update rounds three times, numbers within 1, and keeps nine tenths of the error.
    assert float(ema.state_dict(0.9)["bias"]) == pytest.approx(expected, rel=0, abs=10 * 3 * U32)


def test_several_decays_at_once_equal_separate_runs() -> None:
    decays = [0.9, 0.99, 0.9999]
    model = nn.Linear(3, 3)
    together, apart = EMA(model, decays), [EMA(model, [decay]) for decay in decays]
    for _ in range(10):
        nn.init.normal_(model.weight)
        for ema in (together, *apart):
            ema.update(model)
    for decay, single in zip(decays, apart, strict=True):
        assert torch.equal(together.state_dict(decay)["weight"], single.state_dict(decay)["weight"])


def test_an_average_begins_as_a_copy_and_does_not_follow_by_itself() -> None:
    model = model_with(1.0)
    ema = EMA(model, [0.9])
    set_to(model, 5.0)
    assert float(ema.state_dict(0.9)["bias"]) == 1.0
    assert ema.distances(model)[0.9] == pytest.approx(0.8, rel=8 * U32)  # two norms of three equal numbers


def test_a_stored_average_continues_where_it_was() -> None:
    model = nn.Linear(3, 3)
    ema = EMA(model, [0.9])
    nn.init.normal_(model.weight)
    ema.update(model)
    stored = {name: tensor.clone() for name, tensor in ema.state_dict(0.9).items()}
    resumed = EMA(nn.Linear(3, 3), [0.9])
    resumed.load_state_dict(0.9, stored)
    nn.init.normal_(model.weight)
    for each in (ema, resumed):
        each.update(model)
    assert torch.equal(ema.state_dict(0.9)["weight"], resumed.state_dict(0.9)["weight"])


def test_an_average_of_another_model_is_refused_by_name() -> None:
    ema = EMA(nn.Linear(3, 3), [0.9])
    with pytest.raises(ValueError, match="of another model: 'weight' differs"):
        ema.load_state_dict(0.9, {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="'bias' differs"):
        ema.load_state_dict(0.9, {"weight": torch.zeros(3, 3)})


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2])
def test_a_power_averages_profile_has_the_relative_standard_deviation_it_is_named_by(std: float) -> None:
    steps = 4000
    tau = torch.arange(1, steps + 1, dtype=torch.float64)
    profile = (tau / steps) ** (power_exponent(std) + 1) - ((tau - 1) / steps) ** (power_exponent(std) + 1)
    mean = (profile * tau).sum()
    assert float(profile.sum()) == pytest.approx(1.0, rel=2 * steps * U64)
    # The continuous profile is put into bins of width 1, whose variance is a twelfth.
    assert float((profile * (tau - mean).square()).sum().sqrt()) / steps == pytest.approx(std, rel=1 / 12 / (steps * std) ** 2)


def test_the_power_averages_recursion_gives_its_profile_and_forgets_the_start() -> None:
    steps, std = 50, 0.1
    model = model_with(1e6)
    ema = PowerEMA(model, [std])
    values = [math.sin(n) for n in range(1, steps + 1)]
    for step, value in enumerate(values, start=1):
        set_to(model, value)
        ema.update(model, step)
    exponent = power_exponent(std) + 1
    expected = sum(((n / steps) ** exponent - ((n - 1) / steps) ** exponent) * value for n, value in enumerate(values, start=1))
    # An update rounds three times, numbers within 1.
    assert float(ema.state_dict(std)["bias"]) == pytest.approx(expected, rel=0, abs=steps * 3 * U32)


def train(
    num_steps: int, every: int, decays: list[float], drift: float
) -> tuple[dict[Snapshot, dict[str, Tensor]], EMA, nn.Module, dict[str, Tensor]]:
    """A random walk with drift, standing for training; its snapshots, its true averages, its ends."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8).double()
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stds = (0.05, 0.1)
    ema, power, stored = EMA(model, decays), PowerEMA(model, stds), {}
    with torch.no_grad():
        for step in range(1, num_steps + 1):
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter)).add_(drift)
            ema.update(model)
            power.update(model, step)
            if step % every == 0:
                for std in stds:
                    stored[Snapshot(step=step, std=std)] = {name: tensor.clone() for name, tensor in power.state_dict(std).items()}
    return stored, ema, model, initial


def error(rebuilt: dict[str, Tensor], wanted: dict[str, Tensor], current: dict[str, Tensor]) -> float:
    gap = math.sqrt(sum(float((rebuilt[name] - wanted[name]).square().sum()) for name in wanted))
    return gap / math.sqrt(sum(float((current[name] - wanted[name]).square().sum()) for name in wanted))


@pytest.mark.slow
@pytest.mark.parametrize("drift", [0.0, 0.05])
def test_any_decay_as_slow_as_a_snapshot_interval_is_rebuilt_to_half_a_percent(drift: float) -> None:
    """The interval is one horizon 1/(1 - decay) of the fastest decay: 10,000 updates for 0.9999, a tenth of it here."""
    decays = [0.999, 0.9995, 0.9999]
    stored, ema, model, initial = train(12_000, 1_000, decays, drift)
    for decay in decays:
        rebuilt, _ = reconstruct(list(stored), stored.__getitem__, step=12_000, decay=decay, initial=initial)
        assert error(rebuilt, ema.state_dict(decay), model.state_dict()) < 0.005, decay


@pytest.mark.parametrize("decay", [0.9999, 0.99995, 0.99999])
@pytest.mark.parametrize(("step", "stds"), [(50_000, (0.05, 0.1, 0.2)), (100_000, (0.05, 0.1)), (300_000, (0.05, 0.1))])
def test_the_papers_decays_are_within_half_a_percent_from_snapshots_every_10k(decay: float, step: int, stds: tuple[float, ...]) -> None:
    snapshots = [Snapshot(step=at, std=std) for at in range(10_000, step + 1, 10_000) for std in stds]
    combination = combine(snapshots, step=step, decay=decay)
    assert combination.error < 0.005
    assert sum(combination.coefficients) == pytest.approx(1.0)


STORING = [name for name in presets.names() if presets.preset(name).optim.ema_snapshot_stds]


@pytest.mark.parametrize("name", STORING)
def test_the_snapshots_of_a_preset_determine_every_decay_of_0_9999_or_slower(name: str) -> None:
    """Time is counted in units of 1,000 updates, a tenth of the fastest decay's horizon: the profiles are smooth on that scale."""
    optim, unit = presets.preset(name).optim, 1000
    for step in (optim.num_steps, optim.num_steps // 2):
        at = range(optim.checkpoint_interval, step + 1, optim.checkpoint_interval)
        snapshots = [Snapshot(step=each // unit, std=std) for each in at for std in optim.ema_snapshot_stds]
        for decay in (0.9999, 0.99993, 0.99995, 0.99999, 0.999999):
            assert combine(snapshots, step=step // unit, decay=decay**unit).error < 0.005, (step, decay)


@pytest.mark.parametrize("decay", [0.9999, 0.99995])
@pytest.mark.parametrize("step", [100_000, 250_000, 500_000])
def test_of_many_snapshots_those_near_the_step_are_enough_and_of_few_all_take_part(decay: float, step: int) -> None:
    stored = [Snapshot(step=at, std=std) for at in range(10_000, 500_001, 10_000) for std in (0.05, 0.1, 0.2)]
    near = sufficient(stored, step=step, decay=decay, max_error=0.02)
    assert combine(near, step=step, decay=decay).error <= 0.002
    assert len(near) <= 16 * 3
    assert all(abs(snapshot.step - step) <= 160_000 for snapshot in near)
    assert sufficient(stored[:30], step=step, decay=decay, max_error=0.02) == stored[:30]
    assert sufficient(stored, step=step, decay=0.9, max_error=0.02) == stored, "none determine this one, and the error is that of all"


def test_an_average_that_snapshots_do_not_determine_is_refused_with_what_would_help() -> None:
    snapshots = [Snapshot(step=at, std=std) for at in range(10_000, 300_001, 10_000) for std in (0.05, 0.1)]
    with pytest.raises(
        ReconstructionError,
        match=r"decay 0.999 at step 300,000 can't be .* a longer average, or more frequent or narrower snapshots would do",
    ):
        reconstruct(snapshots, lambda snapshot: {}, step=300_000, decay=0.999, initial={})
    with pytest.raises(ReconstructionError, match=r"a step that has a snapshot \(the nearest is 150,000\), or more frequent"):
        reconstruct(snapshots, lambda snapshot: {}, step=154_000, decay=0.999, initial={})
    with pytest.raises(ReconstructionError, match="ema_snapshot_stds"):
        reconstruct([], lambda snapshot: {}, step=300_000, decay=0.9999, initial={})
