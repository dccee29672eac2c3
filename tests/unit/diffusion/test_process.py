"""The process: tables against the released numbers, equations against independent derivations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rounding import NETWORK, U32, U64, schedule_error
from torch import Tensor

from training.config.experiment import DiffusionConfig, Schedule, Variance
from training.config.spacing import parse_spacing
from training.diffusion.process import Denoiser, GaussianProcess, make_process
from training.models.unet import UNet

RELEASED_NAMES = {
    "betas": "betas",
    "alpha_bars": "alphas_cumprod",
    "posterior_variance": "posterior_variance",
    "posterior_log_variance_clipped": "posterior_log_variance_clipped",
    "posterior_mean_coef_x_0": "posterior_mean_coef1",
    "posterior_mean_coef_x_t": "posterior_mean_coef2",
    "sqrt_recip_alpha_bars": "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alpha_bars": "sqrt_recipm1_alphas_cumprod",
}
SPACINGS = ["", "25", "ddim50", "nll:100", "10,10,5", "t:3,3000", "1"]


def fixed(variance: Variance = "fixed_large", **changes: Any) -> DiffusionConfig:
    return DiffusionConfig(**{"objective": "simple", "variance": variance, **changes})


def assert_summary(actual: Tensor, golden: dict[str, Any]) -> None:
    """Compares with a golden summary, to a network's error."""
    flat = actual.double().flatten()
    scale = float(flat.square().mean().sqrt())
    for values, expected in ((flat[:8], golden["first8"]), (flat[-4:], golden["last4"])):
        torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=NETWORK * scale)
    assert float(flat.mean()) == pytest.approx(golden["mean"], rel=0, abs=NETWORK * scale)
    assert float(flat.std()) == pytest.approx(golden["std"], rel=0, abs=NETWORK * scale)
    assert float(flat.abs().sum()) == pytest.approx(golden["abs_sum"], rel=0, abs=NETWORK * scale * len(flat))


def cancellation(process: GaussianProcess) -> float:
    """The relative error of 1 - alpha_bar, which is smallest at t = 0 (1e-5 in the whole chain), with some five roundings of it."""
    return 5 * U64 / (1 - float(process.alpha_bars[0]))


def inversion_errors(process: GaussianProcess, t: int) -> tuple[float, float]:
    """The errors of x_0 from eps and of eps from x_0 in float64: some five roundings of numbers within 4.

    x_0 = sqrt(1 / alpha_bar) x_t - sqrt(1 / alpha_bar - 1) eps, and the second root cancels at small t.
    """
    alpha_bar, unit = float(process.alpha_bars[t]), 5 * 4 * U64
    return unit * (alpha_bar**-0.5 + (1 - alpha_bar) ** -0.5), unit / (1 - alpha_bar)


@pytest.mark.parametrize("name", RELEASED_NAMES)
@pytest.mark.parametrize("table", ["linear_1000", "linear_4000", "cosine_100", "cosine_4000"])
def test_every_table_is_the_released_one(table: str, name: str, golden: dict[str, Any]) -> None:
    schedule, num_timesteps = table.split("_")
    process = make_process(fixed(schedule=schedule, num_timesteps=int(num_timesteps)))
    values = golden["schedules"][table]
    expected = torch.tensor(values[RELEASED_NAMES[name]], dtype=torch.float64)
    torch.testing.assert_close(getattr(process, name)[values["t"]], expected, rtol=schedule_error(int(num_timesteps)), atol=0)


@pytest.mark.parametrize("spacing", ["25", "100"])
def test_a_respaced_chain_has_the_released_constants(spacing: str, golden: dict[str, Any]) -> None:
    process = make_process(fixed(), parse_spacing(spacing, 4000))
    expected = golden["respaced_cosine_4000"][spacing]
    for actual, key in (
        (process.betas[0], "betas0"),
        (process.betas[1], "betas1"),
        (process.betas[-1], "beta_last"),
        (process.posterior_log_variance_clipped[0], "post0"),
        (process.betas.sum(), "sum"),
    ):
        assert float(actual) == pytest.approx(expected[key], rel=schedule_error(4000))
    # The released code multiplies its rounded betas back together, and is off by 1.5e-9 itself.
    assert float(process.alpha_bars[-1]) == pytest.approx(expected["abar_last"], rel=1e-8)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_respaced_chain_keeps_alpha_bar_at_each_kept_timestep(schedule: Schedule, spacing: str) -> None:
    whole, kept = make_process(fixed(schedule=schedule)), parse_spacing(spacing, 4000)
    process = make_process(fixed(schedule=schedule), kept)
    assert process.timesteps == kept
    assert process.num_timesteps == len(kept)
    # The last beta is next to one, and 1 - beta then has the rounding of beta.
    torch.testing.assert_close((1 - process.betas).cumprod(0), whole.alpha_bars[list(kept)], rtol=schedule_error(4000), atol=2 * U64)


def test_keeping_every_timestep_is_the_whole_chain() -> None:
    whole, respaced = make_process(fixed()), make_process(fixed(), parse_spacing("4000", 4000))
    assert torch.equal(whole.betas, respaced.betas)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_posterior_is_the_product_of_its_two_gaussians(spacing: str) -> None:
    """q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0): precisions add."""
    process = make_process(fixed(), parse_spacing(spacing, 4000))
    t = torch.arange(1, process.num_timesteps)
    x_0, x_t = torch.full((len(t), 1), 0.3, dtype=torch.float64), torch.full((len(t), 1), -0.8, dtype=torch.float64)
    a, b, before = 1 - process.betas[1:], process.betas[1:], process.alpha_bars[:-1]
    precision = a / b + 1 / (1 - before)
    mean = (a.sqrt() * -0.8 / b + before.sqrt() * 0.3 / (1 - before)) / precision
    q = process.q_posterior(x_0, x_t, t)
    rounding = cancellation(process)
    torch.testing.assert_close(q.mean[:, 0], mean, rtol=0, atol=rounding)
    torch.testing.assert_close(q.log_variance.exp()[:, 0], 1 / precision, rtol=rounding, atol=0)


def test_the_posterior_of_the_first_step_is_x_0_itself() -> None:
    process = make_process(fixed())
    q = process.q_posterior(torch.full((1, 2), 0.4), torch.full((1, 2), 9.0), torch.tensor([0]))
    assert torch.equal(q.mean, torch.full((1, 2), 0.4))
    assert float(process.posterior_variance[0]) == 0.0
    assert float(q.log_variance) == pytest.approx(float(process.posterior_variance[1].log()), rel=U32)  # rounded to float32


def test_q_sample_is_the_released_one(golden: dict[str, Any], golden_image: Tensor, golden_noise: Tensor) -> None:
    x_t = make_process(DiffusionConfig()).q_sample(golden_image, torch.tensor([0, 2500]), golden_noise)
    assert_summary(x_t, golden["q_sample"])


def test_noising_step_by_step_has_the_distribution_of_q_sample() -> None:
    """Composing x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) z gives mean sqrt(alpha_bar) x_0 and variance 1 - alpha_bar."""
    process = make_process(fixed(num_timesteps=50))
    mean, variance = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    for t, beta in enumerate(process.betas):
        mean, variance = (1 - beta).sqrt() * mean, (1 - beta) * variance + beta
        x_t = process.q_sample(torch.full((2, 1), 0.7, dtype=torch.float64), torch.tensor([t, t]), torch.tensor([[0.0], [1.0]]).double())
        # 50 factors with two roundings; of the variance also the difference of two numbers near 0.7 that is 0.04 or more.
        torch.testing.assert_close(x_t[0, 0], mean, rtol=schedule_error(50), atol=0)
        torch.testing.assert_close((x_t[1, 0] - x_t[0, 0]).square(), variance, rtol=schedule_error(50) + 4 / 0.04 * U64, atol=0)


@pytest.mark.parametrize("t", [0, 1, 2, 10, 100, 2000, 3998, 3999])
def test_x_0_and_eps_invert_each_other(t: int) -> None:
    process, generator = make_process(fixed()), torch.Generator().manual_seed(t)
    x_0, eps = (torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    at = torch.full((4,), t)
    x_t = process.q_sample(x_0, at, eps)
    x_0_error, eps_error = inversion_errors(process, t)
    torch.testing.assert_close(process.predict_x_0_from_eps(x_t, at, eps), x_0, rtol=0, atol=x_0_error)
    torch.testing.assert_close(process.predict_eps_from_x_0(x_t, at, x_0), eps, rtol=0, atol=eps_error)


def test_p_mean_variance_is_the_released_one(
    golden: dict[str, Any], golden_image: Tensor, golden_noise: Tensor, golden_model: UNet
) -> None:
    process, t = make_process(DiffusionConfig()), torch.tensor([0, 2500])
    x_t = process.q_sample(golden_image, t, golden_noise)
    p = Denoiser(process, golden_model, clip_denoised=False).p_mean_variance(x_t, t)
    expected = golden["p_mean_variance_clipFalse"]
    assert_summary(p.mean, expected["mean"])
    assert_summary(p.log_variance.exp(), expected["variance"])
    assert_summary(p.log_variance, expected["log_variance"])
    assert_summary(p.x_0, expected["pred_xstart"])


class Spy:
    """A network that records its inputs and returns the same number everywhere."""

    def __init__(self, value: float, num_outputs: int) -> None:
        self.value, self.num_outputs = value, num_outputs

    def __call__(self, x_t: Tensor, timesteps: Tensor, **conditioning: Tensor) -> Tensor:
        self.timesteps, self.conditioning = timesteps, conditioning
        return torch.full((len(x_t), self.num_outputs, *x_t.shape[2:]), self.value, dtype=x_t.dtype)


@pytest.mark.parametrize("spacing", ["", "25"])
@pytest.mark.parametrize("num_timesteps", [1000, 4000])
@pytest.mark.parametrize("rescale", [True, False])
def test_the_network_receives_the_original_timestep_in_units_of_t_over_1000(num_timesteps: int, rescale: bool, spacing: str) -> None:
    kept = parse_spacing(spacing, num_timesteps)
    process = make_process(fixed(num_timesteps=num_timesteps, rescale_timesteps=rescale), kept)
    spy, labels = Spy(0.0, 3), torch.tensor([4, 5, 6])
    t = torch.tensor([0, 1, len(kept) - 1])
    Denoiser(process, spy, conditioning={"y": labels}).p_mean_variance(torch.zeros(3, 3, 2, 2), t)
    expected = [kept[i] * (1000 / num_timesteps if rescale else 1) for i in t.tolist()]
    assert spy.timesteps.tolist() == expected  # quarters are exact
    assert spy.timesteps.dtype == torch.float32
    assert spy.conditioning == {"y": labels}


def log_variance_at(process: GaussianProcess, t: int, v: float = 0.0) -> float:
    outputs = 2 if process.config.variance == "learned_range" else 1
    output = torch.full((1, outputs, 1, 1), v, dtype=torch.float64)
    p = process.read_output(output, torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.tensor([t]), clip_denoised=False)
    return float(p.log_variance)


@pytest.mark.parametrize("spacing", ["", "25"])
@pytest.mark.parametrize("t", [0, 1, 2, 10, 24])
def test_the_learned_range_runs_from_beta_tilde_to_beta_in_log_space(t: int, spacing: str) -> None:
    process = make_process(DiffusionConfig(), parse_spacing(spacing, 4000))
    lower, upper = (math.log(x[max(t, i)]) for x, i in ((process.posterior_variance, 1), (process.betas, 0)))
    for v, expected in ((-1.0, lower), (1.0, upper), (0.0, (lower + upper) / 2), (2.0, upper + (upper - lower) / 2)):
        assert log_variance_at(process, t, v) == pytest.approx(expected, rel=8 * U64)  # some eight roundings


def test_fixed_variances_are_beta_and_beta_tilde_with_the_second_of_them_at_t_0() -> None:
    large, small = make_process(fixed("fixed_large")), make_process(fixed("fixed_small"))
    first = math.log(large.posterior_variance[1])
    assert log_variance_at(large, 0) == log_variance_at(small, 0) == pytest.approx(first, rel=4 * U64)  # two logarithms
    for t in (1, 2, 3999):
        assert log_variance_at(large, t) == pytest.approx(math.log(large.betas[t]), rel=4 * U64)
        assert log_variance_at(small, t) == pytest.approx(math.log(large.posterior_variance[t]), rel=4 * U64)


@pytest.mark.parametrize("t", [0, 1, 100, 3999])
def test_a_network_that_predicts_x_0_gives_the_same_p_as_one_that_predicts_its_eps(t: int) -> None:
    by_eps, by_x_0 = make_process(fixed()), make_process(fixed(prediction="x_0"))
    x_t, at = torch.full((1, 1, 2, 2), 0.9, dtype=torch.float64), torch.tensor([t])
    p = by_x_0.read_output(torch.full_like(x_t, 0.2), x_t, at, clip_denoised=False)
    same = by_eps.read_output(p.eps, x_t, at, clip_denoised=False)
    x_0_error, _ = inversion_errors(by_eps, t)
    torch.testing.assert_close(p.mean, same.mean, rtol=0, atol=float(by_eps.posterior_mean_coef_x_0[t]) * x_0_error + 4 * U64)
    torch.testing.assert_close(same.x_0, torch.full_like(x_t, 0.2), rtol=0, atol=x_0_error)


def test_clipping_clamps_x_0_and_takes_mean_and_eps_from_the_clamped_one() -> None:
    process, x_t, t = make_process(fixed()), torch.full((1, 1, 1, 1), 0.5), torch.tensor([2000])
    free = process.read_output(torch.full_like(x_t, -3.0), x_t, t, clip_denoised=False)
    clipped = process.read_output(torch.full_like(x_t, -3.0), x_t, t, clip_denoised=True)
    assert float(free.x_0) > 1.0
    assert float(clipped.x_0) == 1.0
    assert torch.equal(clipped.mean, process.q_posterior(clipped.x_0, x_t, t).mean)
    torch.testing.assert_close(process.predict_x_0_from_eps(x_t, t, clipped.eps), clipped.x_0)


def test_the_mean_is_the_papers_in_terms_of_eps() -> None:
    """Equation 13: (x_t - beta_t / sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_t)."""
    process, t = make_process(fixed()), torch.arange(3999)
    x_t = torch.full((3999, 1, 1, 1), 0.6, dtype=torch.float64)
    p = process.read_output(torch.full_like(x_t, -0.4), x_t, t, clip_denoised=False)
    beta, alpha_bar = process.betas[t], process.alpha_bars[t]
    expected = (0.6 + 0.4 * beta / (1 - alpha_bar).sqrt()) / (1 - beta).sqrt()
    torch.testing.assert_close(p.mean.flatten(), expected, rtol=cancellation(process), atol=0)


def test_a_network_whose_channels_do_not_fit_the_variance_is_refused() -> None:
    x_t, t = torch.zeros(1, 3, 2, 2), torch.tensor([0])
    with pytest.raises(ValueError, match=r"gives 3 channels.*'learned_range'.*needs 6"):
        make_process(DiffusionConfig()).read_output(torch.zeros(1, 3, 2, 2), x_t, t, clip_denoised=False)
    with pytest.raises(ValueError, match=r"gives 6 channels.*'fixed_large'.*needs 3"):
        make_process(fixed()).read_output(torch.zeros(1, 6, 2, 2), x_t, t, clip_denoised=False)


def test_a_chain_of_one_timestep_works() -> None:
    process = make_process(DiffusionConfig(), [3999])
    assert float(process.betas[0]) == pytest.approx(1 - 1.518e-10, rel=0, abs=0.5e-13)  # of the last digit
    assert log_variance_at(process, 0, v=-1.0) == log_variance_at(process, 0, v=1.0) == float(process.log_betas[0])


@pytest.mark.parametrize("timesteps", [[], [3, 2], [0, 0], [-1, 4], [0, 4000]])
def test_timesteps_that_are_no_chain_are_refused(timesteps: list[int]) -> None:
    with pytest.raises(ValueError, match=r"must increase within 0\.\.3999"):
        make_process(fixed(), timesteps)


# Reference-conventions 1.3, for |x| = 1.
@pytest.mark.parametrize(("schedule", "bits"), [("linear", 3.0634e-5), ("cosine", 1.0950e-10)])
def test_the_prior_term_is_the_kl_to_a_standard_normal(schedule: Schedule, bits: float) -> None:
    process = make_process(fixed(schedule=schedule))
    assert process.prior_bits_per_dim(torch.ones(2, 3, 4, 4)).tolist() == pytest.approx([bits, bits], rel=5e-5)  # five digits
    # Where nothing cancels, against torch's own.
    short, x_0 = make_process(fixed(schedule=schedule), [1000]), torch.linspace(-1, 1, 12, dtype=torch.float64).view(1, 3, 2, 2)
    alpha_bar = short.alpha_bars[0]
    q = torch.distributions.Normal(alpha_bar.sqrt() * x_0, (1 - alpha_bar).sqrt())
    standard = torch.distributions.Normal(torch.zeros_like(x_0), torch.ones_like(x_0))
    kl = torch.distributions.kl_divergence(q, standard).mean() / math.log(2)
    torch.testing.assert_close(short.prior_bits_per_dim(x_0)[0], kl, rtol=20 * U64, atol=0)  # some 20 roundings of terms of its size


@pytest.mark.parametrize("t", [0, 3999])
def test_half_precision_networks_are_read_in_float32_and_stay_finite(t: int) -> None:
    process, x_t = make_process(DiffusionConfig()), torch.full((1, 1, 2, 2), 1.5)
    p = process.read_output(torch.full((1, 2, 2, 2), 0.7, dtype=torch.float16), x_t, torch.tensor([t]), clip_denoised=False)
    for value in (p.mean, p.log_variance, p.x_0, p.eps):
        assert value.dtype == torch.float32
        assert bool(value.isfinite().all())
