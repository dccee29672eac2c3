"""The noise schedules against the released numbers and the paper's formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rounding import U64, schedule_error

from training.config.experiment import Schedule
from training.diffusion.schedules import beta_schedule, cosine_betas, linear_betas

TABLES = ["linear_1000", "linear_4000", "cosine_100", "cosine_4000"]


@pytest.mark.parametrize("table", TABLES)
def test_schedules_are_the_released_ones(table: str, golden: dict[str, Any]) -> None:
    values = golden["schedules"][table]
    name, num_timesteps = table.split("_")
    betas = beta_schedule("linear" if name == "linear" else "cosine", int(num_timesteps))
    expected = {key: torch.tensor(values[key], dtype=torch.float64) for key in ("betas", "alphas_cumprod")}
    rounding = schedule_error(int(num_timesteps))
    # The released table of betas is 1 - alpha_bar_t / alpha_bar_{t-1}, which is rounded to 1e-16 absolutely.
    torch.testing.assert_close(betas[values["t"]], expected["betas"], rtol=rounding, atol=2 * U64)
    torch.testing.assert_close((1 - betas).cumprod(0)[values["t"]], expected["alphas_cumprod"], rtol=rounding, atol=0)
    assert float(betas.sum()) == pytest.approx(values["sum_betas"], rel=rounding)


@pytest.mark.parametrize("num_timesteps", [2, 100, 1000, 4000])
def test_cosine_alpha_bar_is_the_squared_cosine_until_the_last_beta_is_clipped(num_timesteps: int) -> None:
    alpha_bar = (1 - cosine_betas(num_timesteps)).cumprod(0)
    rounding = 2 * schedule_error(num_timesteps) + 10 * U64  # of the product, of the cosine, and of what both begin with
    for t in range(1, num_timesteps):
        f, f_0 = (math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (t / num_timesteps, 0))
        assert float(alpha_bar[t - 1]) == pytest.approx(f / f_0, rel=rounding)
    assert int((cosine_betas(num_timesteps) == 0.999).sum()) == 1
    assert float(cosine_betas(num_timesteps)[-1]) == 0.999


def test_linear_schedule_of_4000_runs_from_a_quarter_of_ho_et_al_to_a_quarter() -> None:
    betas = linear_betas(4000)
    assert float(betas[0]) == pytest.approx(0.0001 / 4, rel=4 * U64)  # a product of three decimals
    assert float(betas[-1]) == pytest.approx(0.02 / 4, rel=4 * U64)
    # Four betas of up to 0.005 meet in two differences.
    torch.testing.assert_close(betas.diff(), betas.diff()[:1].expand(3999), rtol=0, atol=4 * 0.005 * U64)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_alpha_bar_has_the_same_shape_for_any_number_of_timesteps(name: Schedule) -> None:
    coarse, fine = ((1 - beta_schedule(name, n)).cumprod(0) for n in (1000, 4000))
    # The cosine's alpha_bar is a function of t / T. The linear one's is exp(-sum of beta - sum of beta^2 / 2). The second sum is 0.067, and
    # with four times the steps a quarter of it; 0.002 is how the ends of the first one differ, and 0.001 the sum of beta^3 / 3.
    rtol = 2 * schedule_error(4000) if name == "cosine" else math.expm1(0.75 * 0.067 + 0.003)
    torch.testing.assert_close(fine[3::4][:-1], coarse[:-1], rtol=rtol, atol=0)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_schedules_are_float64_and_increase_within_zero_and_one(name: Schedule) -> None:
    betas = beta_schedule(name, 1000)
    assert betas.dtype == torch.float64
    assert bool((betas.diff() > 0).all())
    assert 0 < float(betas[0]) < float(betas[-1]) < 1


def test_a_linear_schedule_that_would_reach_one_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 20 timesteps"):
        linear_betas(20)


def test_an_unknown_schedule_is_refused_by_name() -> None:
    # A TypeError where the test run checks types first.
    with pytest.raises((ValueError, TypeError), match="sigmoid"):
        beta_schedule("sigmoid", 100)  # type: ignore[arg-type]
