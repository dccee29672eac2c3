"""DPM-Solver++ beside DDIM, and its first and last steps. Its order and diffusers' steps are in test_multistep.py."""

from __future__ import annotations

import pytest
import torch
from oracles import GaussianOracle, Oracle, Recorder
from rounding import U32
from torch import Tensor

from training.config.experiment import DiffusionConfig, Schedule
from training.config.spacing import uniform_spacing
from training.diffusion.process import Denoiser, GaussianProcess, make_process
from training.diffusion.samplers.ddim import DDIM
from training.diffusion.samplers.dpm_solver_pp import DPMSolverPP
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
    # x_0 = (x - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar), with a rounding of eps, of the product, and of the difference's first term.
    rounding = 3 * U32 * float(start().abs().max()) / float(process.alpha_bars[0].sqrt())
    torch.testing.assert_close(solve(process, oracle, start()), torch.full((16, 1, 8, 8), 0.2), rtol=0, atol=rounding)
