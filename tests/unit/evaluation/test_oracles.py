"""The paper's likelihood claims without training: networks that know the data exactly (`oracles`).

The expected numbers were computed with the released implementation on 64 random images of 3x8x8 pixels, so each has an error
of its own; ours are integrals over the noise, which have none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from oracles import DiscreteOracle, GaussianOracle, discrete_images, expected_bits

from evaluation.likelihood.bits_per_dim import Likelihood, merge
from evaluation.likelihood.estimate import likelihood_parts
from training.config.experiment import DiffusionConfig, Schedule, Variance
from training.config.spacing import likelihood_spacing, uniform_spacing
from training.diffusion.process import make_process

THREE = ([64, 128, 192], [0.3, 0.5, 0.2])
SIXTEEN = ([88 + 5 * i for i in range(16)], [1 / 16] * 16)

Row = tuple[float | None, float | None, float | None, float | None]

# (schedule, K): learned range on an even stride and on the likelihood spacing, then fixed large on both.
TABLE_THREE: dict[tuple[Schedule, int], Row] = {
    ("cosine", 200): (1.4954, 1.4938, 4.095, 2.508),
    ("cosine", 100): (1.6180, 1.5197, 4.817, 2.615),
    ("cosine", 50): (1.8221, 1.5827, 5.595, 2.656),
    ("cosine", 25): (2.1430, 1.7348, 6.355, 2.571),
    ("linear", 200): (1.6222, 1.5114, None, None),
    ("linear", 50): (2.5027, 1.7074, None, None),
}
TABLE_SIXTEEN: dict[tuple[Schedule, int], Row] = {
    ("cosine", 400): (4.9131, 4.0828, 5.758, 4.558),
    ("cosine", 100): (5.6866, 4.0253, 6.080, 4.565),
    ("cosine", 25): (6.0070, 4.0376, 6.387, 4.739),
}


def config_for(schedule: Schedule, variance: Variance) -> DiffusionConfig:
    return DiffusionConfig(schedule=schedule, variance=variance, objective="hybrid" if variance == "learned_range" else "simple")


def bits(config: DiffusionConfig, data: tuple[list[int], list[float]], timesteps: Sequence[int], num_images: int = 64) -> Likelihood:
    images, _ = discrete_images(*data, num_images)
    model = DiscreteOracle(make_process(config, timesteps), *data)
    batch = (torch.arange(num_images), images, None)
    return merge(likelihood_parts(config, model, [batch], form="spaced", timesteps=timesteps, clip_denoised=False))


def check_row(row: tuple[Schedule, int], data: tuple[list[int], list[float]], expected: Row) -> None:
    """Within 0.02 bits/dim, or within three standard errors of the table's own 12,288 pixels where those are more, but never 0.05."""
    schedule, num_steps = row
    spacings = (uniform_spacing(4000, num_steps), likelihood_spacing(4000, num_steps))
    variances: tuple[Variance, Variance] = ("learned_range", "fixed_large")
    for (variance, spacing), value in zip(itertools.product(variances, spacings), expected, strict=True):
        if value is None:
            continue
        exact, standard_deviation = expected_bits(make_process(config_for(schedule, variance), spacing), *data)
        standard_error = standard_deviation / math.sqrt(64 * 3 * 8 * 8)
        print(f"{schedule} {num_steps} {variance} {len(spacing)}: {exact:.4f}, table {value} +- {standard_error:.4f}")
        assert exact == pytest.approx(value, abs=max(0.02, min(3 * standard_error, 0.05)))


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE_THREE, ids=str)
def test_bits_per_dim_of_three_levels_equal_the_released_implementations(row: tuple[Schedule, int]) -> None:
    check_row(row, THREE, TABLE_THREE[row])


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE_SIXTEEN, ids=str)
def test_bits_per_dim_of_sixteen_levels_equal_the_released_implementations(row: tuple[Schedule, int]) -> None:
    check_row(row, SIXTEEN, TABLE_SIXTEEN[row])


@pytest.mark.parametrize("variance", ["learned_range", "fixed_large"])
def test_a_likelihood_from_drawn_noise_is_the_integral_over_it(variance: Variance) -> None:
    spacing = likelihood_spacing(4000, 25)
    drawn = bits(config_for("cosine", variance), SIXTEEN, spacing, 64)
    exact, _ = expected_bits(make_process(config_for("cosine", variance), spacing), *SIXTEEN)
    assert drawn.standard_error < 0.02
    assert abs(drawn.bits_per_dim - exact) < 3 * drawn.standard_error


@pytest.mark.slow
@pytest.mark.parametrize(("variance", "expected"), [("learned_range", 1.4852), ("fixed_large", 1.956)])
def test_the_whole_bound_of_the_optimal_network_is_the_datas_entropy(variance: Variance, expected: float) -> None:
    """The integral over the noise; `test_a_likelihood_from_drawn_noise_is_the_integral_over_it` says that draws find the same."""
    exact, _ = expected_bits(make_process(config_for("cosine", variance)), *THREE)
    assert exact == pytest.approx(expected, abs=0.02)  # as in `check_row`
    if variance == "learned_range":
        assert exact == pytest.approx(-sum(p * math.log2(p) for p in THREE[1]), abs=0.02)


@pytest.mark.slow
def test_the_stratified_estimate_finds_the_entropy_from_a_fortieth_of_the_evaluations() -> None:
    images, entropy = discrete_images(*THREE, 64)
    config = DiffusionConfig()
    model = DiscreteOracle(make_process(config), *THREE)
    batch = (torch.arange(64), images, None)
    result = merge(likelihood_parts(config, model, [batch], form="stratified", num_steps=100, clip_denoised=False))
    assert result.num_evaluations_per_image == 100
    assert result.standard_error < 0.05
    assert abs(result.bits_per_dim - entropy) < 3 * result.standard_error


def test_bits_per_dim_of_the_section_5_spacing_equal_the_released_implementations() -> None:
    """One cell of each column, small enough for every run."""
    for variance, expected in (("learned_range", 1.4938), ("fixed_large", 2.508)):
        result = bits(config_for("cosine", variance), THREE, likelihood_spacing(4000, 200), 32)  # type: ignore[arg-type]
        assert result.bits_per_dim == pytest.approx(expected, abs=0.02)  # as in `check_row`


def test_an_even_stride_worsens_the_likelihood_and_low_timesteps_repair_it() -> None:
    """Supplement section 5."""
    config = DiffusionConfig()
    strided = bits(config, SIXTEEN, uniform_spacing(4000, 50), 16).bits_per_dim
    repaired = bits(config, SIXTEEN, likelihood_spacing(4000, 50), 16).bits_per_dim
    assert strided > 4.0 + 1.5
    assert repaired < 4.0 + 0.1


@pytest.mark.parametrize("num_steps", [25, 100, 400])
def test_gaussian_data_need_no_small_steps_with_a_learned_variance(num_steps: int) -> None:
    assert 7.03 < gaussian_bits("learned_range", num_steps) < 7.11


@pytest.mark.parametrize(("num_steps", "expected"), [(25, 399.0), pytest.param(1000, 9.4, marks=pytest.mark.slow)])
def test_the_fixed_small_variance_is_unusable_on_a_stride(num_steps: int, expected: float) -> None:
    # Their draws and ours have an error of 1.2% each, at 25 steps: three of the difference's.
    assert gaussian_bits("fixed_small", num_steps) == pytest.approx(expected, rel=0.05)


def gaussian_bits(variance: Variance, num_steps: int) -> float:
    """Return bits/dim of N(0, 0.25^2) pixels on the 8-bit grid; their entropy is 7.0412 bits."""
    config = config_for("cosine", variance)
    timesteps = uniform_spacing(4000, num_steps)
    x_0 = 0.25 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = ((x_0 + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    model = GaussianOracle(make_process(config, timesteps), std=0.25)
    batch = (torch.arange(64), images, None)
    result = merge(likelihood_parts(config, model, [batch], form="spaced", timesteps=timesteps, clip_denoised=False))
    print(f"gaussian {variance} {num_steps}: {result.bits_per_dim:.4f} +- {result.standard_error:.4f}")
    return result.bits_per_dim
