"""DPM-Solver++ against the exact solution of the probability-flow ODE, against DDIM, and against diffusers' solver."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
from oracles import GaussianOracle, Oracle, Recorder
from torch import Tensor

from training.config.experiment import DiffusionConfig, Schedule
from training.config.spacing import uniform_spacing
from training.diffusion.process import Denoiser, GaussianProcess, make_process
from training.diffusion.samplers.ddim import DDIM
from training.diffusion.samplers.dpm_solver_pp import DPMSolverPP, half_log_snr
from training.diffusion.samplers.sampler import sample_loop


class Mixture(Oracle):
    """Pixels independent, each from one of three Gaussians: E[x_0 | x_t] is not linear."""

    means = torch.tensor([-0.7, 0.1, 0.5], dtype=torch.float64)
    stds = torch.tensor([0.05, 0.1, 0.03], dtype=torch.float64)
    weights = torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64)

    def posterior(self, x_t: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = alpha_bar.unsqueeze(-1)
        total = alpha_bar * self.stds**2 + 1 - alpha_bar
        away = x_t.unsqueeze(-1) - alpha_bar.sqrt() * self.means
        share = (self.weights.log() - 0.5 * total.log() - away**2 / (2 * total)).softmax(-1)
        each = self.means + alpha_bar.sqrt() * self.stds**2 / total * away
        mean = (share * each).sum(-1)
        spread = self.stds**2 * (1 - alpha_bar) / total + (each - mean.unsqueeze(-1)) ** 2
        return mean, (share * spread).sum(-1)


def start(num_images: int = 16) -> Tensor:
    return torch.randn(num_images, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def ddim(process: GaussianProcess, model: Oracle, x: Tensor) -> Tensor:
    return sample_loop(Denoiser(process, model), DDIM(), x)


def solve(process: GaussianProcess, model: Oracle, x: Tensor, *, clip_denoised: bool = True) -> Tensor:
    return sample_loop(Denoiser(process, model, clip_denoised=clip_denoised), DPMSolverPP(), x)


def error_before_the_last_step(num_steps: int, variance: str) -> float:
    """Of the flow of Gaussian data over a smooth grid of timesteps, against its exact solution."""
    learned = variance == "learned_range"
    config = DiffusionConfig() if learned else DiffusionConfig(objective="simple", variance="fixed_large")
    timesteps = [round(400 + 3100 * i / num_steps) for i in range(num_steps + 1)]
    process = make_process(config, timesteps)
    oracle = GaussianOracle(process, std=0.25, mean=0.3)
    x, sampler = start(), Recorder(DPMSolverPP())
    sample_loop(Denoiser(process, oracle, clip_denoised=False), sampler, x)
    exact = oracle.flow(x.double(), float(process.alpha_bars[-1]), float(process.alpha_bars[0]))
    return float((sampler.states[-2] - exact).abs().max())


@pytest.mark.parametrize("variance", ["learned_range", "fixed_large"])
def test_the_error_falls_with_the_square_of_the_step(variance: str) -> None:
    errors = [error_before_the_last_step(num_steps, variance) for num_steps in (20, 40, 80)]
    orders = [torch.log2(torch.tensor(a / b)).item() for a, b in itertools.pairwise(errors)]
    assert all(1.7 < order < 2.4 for order in orders), (errors, orders)
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_it_comes_closer_than_ddim_at_the_same_steps(schedule: Schedule) -> None:
    config = DiffusionConfig(num_timesteps=1000, schedule=schedule)
    fine = make_process(config)
    exact = ddim(fine, Mixture(fine), start())
    for num_steps in (10, 20, 50):
        process = make_process(config, uniform_spacing(1000, num_steps))
        ours = (solve(process, Mixture(process), start()) - exact).square().mean()
        theirs = (ddim(process, Mixture(process), start()) - exact).square().mean()
        assert ours < 0.6 * theirs, num_steps


def test_the_last_step_gives_the_predicted_x_0_without_noise() -> None:
    process = make_process(DiffusionConfig(), (0, 1000, 3000))
    oracle = GaussianOracle(process, std=0.3)
    denoiser, sampler = Denoiser(process, oracle), Recorder(DPMSolverPP())
    result = sample_loop(denoiser, sampler, start())
    x_0 = denoiser.p_mean_variance(sampler.states[-2], torch.zeros(16, dtype=torch.int64)).x_0
    assert torch.equal(result, x_0)
    assert result.isfinite().all()


def test_one_step_predicts_x_0_from_noise() -> None:
    process = make_process(DiffusionConfig(), (3999,))
    oracle = GaussianOracle(process, std=0.3, mean=0.2)
    torch.testing.assert_close(solve(process, oracle, start()), torch.full((16, 1, 8, 8), 0.2), rtol=0, atol=0.02)


def test_it_takes_the_steps_of_diffusers_solver() -> None:
    """On timesteps whose steps shrink in lambda, where the published solver and this one are the same."""
    schedulers = importlib.import_module("diffusers").DPMSolverMultistepScheduler
    config = DiffusionConfig(num_timesteps=1000)
    lambdas = torch.tensor([half_log_snr(a) for a in make_process(config).alpha_bars.tolist()])
    grid, position = [990], lambdas[990]
    for i in range(12):
        position = position + 0.8 * 0.95**i
        grid.append(int((lambdas - position).abs().argmin()))
    grid = sorted(set(grid))
    steps = lambdas[grid].diff().abs().flip(0)
    assert (steps[1:] <= steps[:-1]).all()
    process = make_process(config, grid)
    oracle = GaussianOracle(process, std=0.25, mean=0.3)
    theirs = schedulers(
        trained_betas=make_process(config).betas.numpy().copy(),
        algorithm_type="dpmsolver++",
        solver_order=2,
        variance_type="learned_range",
        final_sigmas_type="zero",
    )
    theirs.set_timesteps(timesteps=grid[::-1])
    x = start(18).view(6, 3, 8, 8)  # diffusers takes the first three channels for eps
    ours = solve(process, oracle, x, clip_denoised=False)
    for timestep in theirs.timesteps:
        output = oracle(x, torch.full((6,), float(timestep)))
        x = theirs.step(output, timestep, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=0, atol=2e-4)
