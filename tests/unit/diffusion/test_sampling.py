"""Samplers: identities between them, the released numbers, and the independence of a sample from its batch."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest
import torch
from oracles import GaussianOracle, PointOracle, Recorder
from rounding import NETWORK, U32, U64, assert_same_output
from torch import Tensor

from training.config.experiment import DiffusionConfig, ModelConfig, SamplingConfig, SamplingMethod
from training.config.spacing import parse_spacing
from training.diffusion.noise import Stream, keyed_normal
from training.diffusion.pixels import quantize, to_model_range
from training.diffusion.process import Denoiser, GaussianProcess, make_process
from training.diffusion.samplers.ancestral import Ancestral
from training.diffusion.samplers.ddim import DDIM
from training.diffusion.samplers.sampler import make_sampler, make_sampling_process, sample, sample_loop
from training.models.unet import UNet

SHAPE = (3, 4, 4)
METHODS = [
    SamplingConfig(spacing="12"),
    SamplingConfig(method="ddim", spacing="ddim10"),
    SamplingConfig(method="ddim", spacing="ddim10", eta=0.7),
    SamplingConfig(method="dpm_solver_pp", spacing="12"),
    SamplingConfig(method="dpm_solver_pp", spacing="12", order=3, dynamic_threshold=0.9),
    SamplingConfig(method="sde_dpm_solver_pp", spacing="12"),
    SamplingConfig(method="unipc", spacing="12", order=3),
    SamplingConfig(method="deis", spacing="12", order=3),
]


def fixed_small() -> DiffusionConfig:
    return DiffusionConfig(objective="simple", variance="fixed_small")


def gaussian_errors(process: GaussianProcess, std: float) -> GaussianProcess:
    """The chain that knows the error of x_0 for pixels of N(0, std^2): Var[x_0 | x_t]."""
    rest = 1 - process.alpha_bars
    return dataclasses.replace(process, x_0_errors=std**2 * rest / (std**2 * process.alpha_bars + rest))


def draw(config: SamplingConfig, indices: list[int], *, seed: int = 5) -> Tensor:
    process = make_sampling_process(DiffusionConfig(), config)
    denoiser = Denoiser(process, GaussianOracle(process, std=0.3, mean=0.1), dynamic_threshold=config.dynamic_threshold)
    return sample(denoiser, make_sampler(config), indices=torch.tensor(indices), shape=SHAPE, seed=seed)


def test_every_method_of_the_config_is_tested_here() -> None:
    assert {config.method for config in METHODS} == set(get_args(SamplingMethod))


def test_ten_ddim_steps_are_the_released_ones(golden: dict[str, Any], golden_model: UNet, golden_noise: Tensor) -> None:
    process = make_process(DiffusionConfig(), parse_spacing("ddim10", 4000))
    x = sample_loop(Denoiser(process, golden_model), DDIM(), golden_noise)
    expected = golden["ddim10_eta0_cosine_clip"]
    flat = x.double().flatten()
    # Pixels are within 1, and the weights of the ten predictions of x_0 in them add up to one.
    pixels = torch.tensor([*expected["first8"], *expected["last4"]], dtype=torch.float64)
    torch.testing.assert_close(torch.cat([flat[:8], flat[-4:]]), pixels, rtol=0, atol=NETWORK)
    assert float(flat.mean()) == pytest.approx(expected["mean"], rel=0, abs=NETWORK)
    assert float(flat.std()) == pytest.approx(expected["std"], rel=0, abs=NETWORK)
    assert float(flat.abs().sum()) == pytest.approx(expected["abs_sum"], rel=0, abs=NETWORK * len(flat))


@pytest.mark.parametrize("config", METHODS)
def test_a_sample_is_bitwise_the_same_in_any_batch_and_order(config: SamplingConfig) -> None:
    together = draw(config, [3, 0, 7, 2**40])
    apart = torch.cat([draw(config, [2**40, 3]).flip(0), draw(config, [7]), draw(config, [0])])
    assert torch.equal(together, apart[[0, 3, 2, 1]])


@pytest.mark.parametrize("config", METHODS)
def test_another_seed_or_index_gives_another_sample(config: SamplingConfig) -> None:
    first = draw(config, [0, 1])
    # That 48 independent pixels of standard deviation 0.3 agree to 0.1 each has a chance of 0.19^48.
    assert not torch.allclose(first[0], first[1], atol=0.1)
    assert not torch.allclose(first, draw(config, [0, 1], seed=6), atol=0.1)


def test_step_noise_is_keyed_by_the_original_timestep() -> None:
    config = SamplingConfig(spacing="t:0,10,500")
    process = make_sampling_process(DiffusionConfig(), config)
    denoiser = Denoiser(process, GaussianOracle(process, std=0.3))
    indices = torch.tensor([4, 9])
    x = keyed_normal(1, Stream.SAMPLE_START, indices, SHAPE)
    for k, original in ((2, 500), (1, 10), (0, 0)):
        noise = keyed_normal(1, Stream.SAMPLE_STEP, indices, SHAPE, counter=original)
        x, _ = Ancestral().step(denoiser, x, k, noise)
    assert torch.equal(x, sample(denoiser, Ancestral(), indices=indices, shape=SHAPE, seed=1))


@pytest.mark.parametrize("config", METHODS)
@pytest.mark.parametrize(("num_timesteps", "rescale", "unit"), [(4000, True, 0.25), (4000, False, 1.0), (1000, True, 1.0)])
def test_the_network_sees_original_timesteps(config: SamplingConfig, num_timesteps: int, rescale: bool, unit: float) -> None:
    process = make_sampling_process(DiffusionConfig(num_timesteps=num_timesteps, rescale_timesteps=rescale), config)
    seen: list[Tensor] = []

    def spy(x_t: Tensor, timesteps: Tensor) -> Tensor:
        seen.append(timesteps)
        return torch.cat([x_t, x_t], 1)

    sample(Denoiser(process, spy), make_sampler(config), indices=torch.arange(2), shape=SHAPE, seed=0)
    expected = [t * unit for t in reversed(parse_spacing(config.spacing, num_timesteps))]
    assert torch.equal(torch.stack(seen), torch.tensor([[t, t] for t in expected]))


def test_ddim_with_eta_one_is_ancestral_sampling_with_the_fixed_small_variance() -> None:
    process = make_process(fixed_small(), parse_spacing("50", 4000))
    denoiser = Denoiser(process, GaussianOracle(process, std=0.3), clip_denoised=False)
    x = keyed_normal(0, Stream.SAMPLE_START, torch.arange(4), SHAPE)
    for k in reversed(range(50)):
        noise = keyed_normal(0, Stream.SAMPLE_STEP, torch.arange(4), SHAPE, counter=k)
        ancestral, _ = Ancestral().step(denoiser, x, k, noise)
        # Some ten roundings of terms within 4.
        torch.testing.assert_close(DDIM(eta=1.0).step(denoiser, x, k, noise)[0], ancestral, rtol=0, atol=10 * 4 * U32)
        x = ancestral


@pytest.mark.parametrize("k", [9, 4, 0])
def test_ddim_with_eta_zero_uses_no_noise(k: int) -> None:
    process = make_process(DiffusionConfig(), parse_spacing("ddim10", 4000))
    denoiser = Denoiser(process, GaussianOracle(process, std=0.3))
    x = torch.randn(3, *SHAPE)
    still, _ = DDIM().step(denoiser, x, k, torch.zeros_like(x))
    assert torch.equal(DDIM().step(denoiser, x, k, torch.randn_like(x))[0], still)
    assert torch.equal(DDIM(eta=0.5).step(denoiser, x, k, torch.randn_like(x))[0], still) == (k == 0)


def test_a_ddim_step_between_the_extremes_is_equation_12() -> None:
    process = make_process(DiffusionConfig(), (100, 900, 2000))
    x_0, x_t, noise = torch.rand(1, *SHAPE) * 2 - 1, torch.randn(1, *SHAPE), torch.randn(1, *SHAPE)
    before, now, eta = float(process.alpha_bars[0]), float(process.alpha_bars[1]), 0.3
    sigma = eta * ((1 - before) / (1 - now)) ** 0.5 * (1 - now / before) ** 0.5
    eps = (x_t - now**0.5 * x_0) / (1 - now) ** 0.5
    expected = before**0.5 * x_0 + (1 - before - sigma**2) ** 0.5 * eps + sigma * noise
    actual, _ = DDIM(eta).step(Denoiser(process, PointOracle(process, x_0)), x_t, 1, noise)
    # eps errs by 3 u 5 / 0.35 and counts 0.05; x_0, noise and three products have a rounding of up to 4 u each.
    torch.testing.assert_close(actual, expected, rtol=0, atol=25 * U32)


@pytest.mark.parametrize("variance", ["learned_range", "fixed_small"])
def test_no_noise_is_added_in_the_last_step(variance: str) -> None:
    config = DiffusionConfig() if variance == "learned_range" else fixed_small()
    process = make_process(config, parse_spacing("10", 4000))
    denoiser = Denoiser(process, GaussianOracle(process, std=0.3))
    x = torch.randn(2, *SHAPE)
    for k in (0, 1):
        first, second = (Ancestral().step(denoiser, x, k, torch.randn_like(x))[0] for _ in range(2))
        assert torch.equal(first, second) == (k == 0)


def test_ddim_follows_the_exact_flow_of_gaussian_data_ever_closer() -> None:
    errors = []
    for num_steps in (100, 1000):
        process = make_process(DiffusionConfig(), parse_spacing(f"ddim{num_steps}", 4000))
        model = GaussianOracle(process, std=0.3, mean=0.2)
        x = torch.linspace(-1.8, 1.9, 48).view(1, *SHAPE)
        sampler = Recorder(DDIM())
        sample_loop(Denoiser(process, model, clip_denoised=False), sampler, x)
        exact = model.flow(x.double(), float(process.alpha_bars[-1]), float(process.alpha_bars[0]))
        errors.append(float((sampler.states[-2] - exact).abs().max()))
    assert errors[1] < errors[0] / 5
    assert errors[1] < 0.02


def test_the_optimal_variance_is_the_exact_one_of_gaussian_data() -> None:
    process = gaussian_errors(make_process(DiffusionConfig(), parse_spacing("10", 4000)), std=0.3)
    before, now = process.alpha_bars_prev, process.alpha_bars
    variance_before, variance_now = 0.09 * before + 1 - before, 0.09 * now + 1 - now
    covariance = (now / before).sqrt() * variance_before
    # The difference of two numbers within 1, which have some four roundings each.
    torch.testing.assert_close(process.optimal_variance, variance_before - covariance**2 / variance_now, rtol=0, atol=8 * U64)


@pytest.mark.parametrize("config", [SamplingConfig(variance="optimal"), SamplingConfig(method="ddim", variance="optimal")])
def test_few_steps_with_the_optimal_variance_keep_the_distribution_of_gaussian_data(config: SamplingConfig) -> None:
    process = gaussian_errors(make_process(fixed_small(), (0, 300, 1500, 3999)), std=0.25)
    denoiser = Denoiser(process, GaussianOracle(process, std=0.25), clip_denoised=False)
    sampler = Recorder(make_sampler(config))
    sample(denoiser, sampler, indices=torch.arange(500), shape=(1, 8, 8), seed=0)
    expected = (0.0625 * float(process.alpha_bars[0]) + 1 - float(process.alpha_bars[0])) ** 0.5
    # 32,000 pixels: the standard error of the standard deviation is 0.25 / sqrt(64,000) = 1e-3; four are allowed. DDIM without it: 0.236.
    assert float(sampler.states[-2].std()) == pytest.approx(expected, abs=4e-3)


@pytest.mark.slow
def test_ancestral_samples_have_the_distribution_of_the_data() -> None:
    """With the optimal variance every step is exact for Gaussian data, for any number of steps."""
    config = SamplingConfig(spacing="30", clip_denoised=False)
    process = make_sampling_process(DiffusionConfig(), config)
    denoiser = Denoiser(process, GaussianOracle(process, std=0.25, mean=0.1), clip_denoised=False)
    x = sample(denoiser, Ancestral(), indices=torch.arange(2000), shape=(1, 8, 8), seed=0).flatten()
    # 128,000 pixels: the standard errors are 7e-4 of the mean, 5e-4 of the standard deviation, and sqrt(96 / 128,000) = 0.027 of the fourth
    # moment; four of each are allowed.
    assert float(x.mean()) == pytest.approx(0.1, abs=0.0028)
    assert float(x.std()) == pytest.approx(0.25, abs=0.002)
    assert float(((x - 0.1) / 0.25).pow(4).mean()) == pytest.approx(3.0, abs=0.11)


def test_labels_reach_the_network_in_each_step() -> None:
    config = SamplingConfig(spacing="5")
    process = make_sampling_process(DiffusionConfig(), config)
    oracle = GaussianOracle(process, std=0.3)
    labels = []

    def model(x_t: Tensor, timesteps: Tensor, *, y: Tensor) -> Tensor:
        labels.append(y.tolist())
        return oracle(x_t, timesteps)

    sample(
        Denoiser(process, model, conditioning={"y": torch.tensor([3, 7])}),
        Ancestral(),
        indices=torch.arange(2),
        shape=SHAPE,
        seed=0,
    )
    assert labels == [[3, 7]] * 5


def test_a_network_samples_the_same_alone_or_in_a_batch() -> None:
    network = UNet(
        ModelConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,)),
        image_size=8,
        image_channels=1,
        out_channels=2,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    network.eval()
    config = SamplingConfig(spacing="8")
    process = make_sampling_process(DiffusionConfig(), config)

    def run(indices: list[int]) -> Tensor:
        return sample(Denoiser(process, network), Ancestral(), indices=torch.tensor(indices), shape=(1, 8, 8), seed=0)

    assert_same_output(run([5, 2, 9]), torch.cat([run([5]), run([2]), run([9])]), calls=8)


def test_quantising_truncates_like_the_released_code() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    truncated = quantize(to_model_range(levels)).long()
    assert int((truncated != levels).sum()) == 63
    assert set((levels - truncated).unique().tolist()) == {0, 1}
    assert quantize(torch.tensor([[[[-1.5, 1.5]]]])).flatten().tolist() == [0, 255]


def test_an_impossible_spacing_is_refused_with_what_is_possible() -> None:
    with pytest.raises(ValueError, match="the nearest that do are ddim"):
        make_sampling_process(DiffusionConfig(num_timesteps=1000), SamplingConfig(method="ddim", spacing="ddim60"))
