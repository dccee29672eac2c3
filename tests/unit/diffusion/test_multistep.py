"""The multistep samplers: their orders on a flow whose solution is known, and their steps beside diffusers' on the same noise."""

from __future__ import annotations

import importlib
import itertools
import math
from typing import Any

import pytest
import torch
from oracles import GaussianOracle, Recorder
from rounding import U32, U64
from torch import Tensor

from training.config.experiment import DiffusionConfig, MultistepOrder, SamplingConfig, UniPCVariant
from training.diffusion.process import Denoiser, GaussianProcess, ModelPrediction, make_process
from training.diffusion.samplers.deis import DEIS
from training.diffusion.samplers.dpm_solver_pp import DPMSolverPP
from training.diffusion.samplers.multistep import half_log_snr, polynomial_weights
from training.diffusion.samplers.sampler import Sampler, Visit, Visits, make_sampler, sample_loop
from training.diffusion.samplers.unipc import UniPC

ORDERS: tuple[MultistepOrder, ...] = (1, 2, 3)
FIXED = DiffusionConfig(objective="simple", variance="fixed_small", num_timesteps=1000)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shrinking_grid() -> list[int]:
    """Timesteps whose steps shrink in lambda, where the limits on extrapolation have no effect."""
    lambdas = torch.tensor([half_log_snr(a) for a in make_process(FIXED).alpha_bars.tolist()])
    grid, position = [990], lambdas[990]
    for i in range(12):
        position = position + 0.8 * 0.95**i
        grid.append(int((lambdas - position).abs().argmin()))
    return sorted(set(grid))


GRID = shrinking_grid()


def theirs(name: str, **options: Any) -> Any:
    """A scheduler of diffusers that visits GRID; its noise levels in float64."""
    process = make_process(FIXED, GRID)
    scheduler = getattr(importlib.import_module("diffusers"), name)(trained_betas=make_process(FIXED).betas.numpy().copy(), **options)
    scheduler.set_timesteps(len(GRID))
    scheduler.timesteps = torch.tensor(GRID[::-1])
    rho = (1 / process.alpha_bars - 1).sqrt().flip(0)
    scheduler.sigmas = torch.cat([rho, torch.zeros(1, dtype=torch.float64)])
    return scheduler


def their_path(scheduler: Any, oracle: GaussianOracle, x: Tensor, num_steps: int, noises: list[Tensor] | None = None) -> Tensor:
    for i, timestep in enumerate(scheduler.timesteps[:num_steps]):
        extra = {} if noises is None else {"variance_noise": noises[i]}
        x = scheduler.step(oracle(x, torch.full((len(x),), float(timestep))), timestep, x, **extra).prev_sample
    return x.float()


def our_path(
    sampler: Sampler, process: GaussianProcess, oracle: GaussianOracle, x: Tensor, noises: list[Tensor] | None = None, **clipping: Any
) -> list[Tensor]:
    recorder = Recorder(sampler)
    denoiser = Denoiser(process, oracle, **({"clip_denoised": False} | clipping))
    sample_loop(denoiser, recorder, x, noise=None if noises is None else lambda k: noises[len(noises) - 1 - k])
    return recorder.states


class LogRhoDEIS(DEIS):
    """With polynomials in log rho, as diffusers has it."""

    def variable(self, timesteps: Tensor, rho: Tensor) -> Tensor:
        return rho.log()


UNIPC = list(itertools.product(ORDERS, ("B1", "B2")))


@pytest.mark.parametrize(("order", "variant"), UNIPC)
def test_unipc_takes_the_steps_of_diffusers(order: MultistepOrder, variant: UniPCVariant) -> None:
    scheduler = theirs("UniPCMultistepScheduler", solver_order=order, solver_type=f"bh{variant[1]}")
    _compare(UniPC(order, variant), scheduler, before_the_last=variant == "B1")  # theirs gives no number where h is infinite


@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver_pp_takes_the_steps_of_diffusers(order: MultistepOrder) -> None:
    _compare(DPMSolverPP(order), theirs("DPMSolverMultistepScheduler", solver_order=order))


def test_dpm_solver_pp_of_order_3_is_the_predictor_of_diffusers_unipc() -> None:
    """Both are exact for parabolas. diffusers' own DPM-Solver++ of order 3 is not; see below."""
    never = list(range(len(GRID)))
    scheduler = theirs("UniPCMultistepScheduler", solver_order=3, disable_corrector=never, lower_order_final=False)
    _compare(DPMSolverPP(3), scheduler, before_the_last=True)


@pytest.mark.parametrize("order", ORDERS)
def test_deis_in_log_rho_takes_the_steps_of_diffusers(order: MultistepOrder) -> None:
    """The two steps that have fewer predictions than the order agree too; the trapezoidal rule over T is good to 1e-5."""
    scheduler = theirs("DEISMultistepScheduler", solver_order=order, lower_order_final=False)
    _compare(LogRhoDEIS(order), scheduler, before_the_last=True)


@pytest.mark.parametrize("order", [1, 2])
def test_sde_dpm_solver_pp_takes_the_steps_of_diffusers(order: MultistepOrder) -> None:
    scheduler = theirs("DPMSolverMultistepScheduler", solver_order=order, algorithm_type="sde-dpmsolver++")
    _compare(DPMSolverPP(order, eta=1.0), scheduler, stochastic=True)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("order", [1, 3])
def test_a_step_with_noise_is_the_predictor_of_diffusers_sa_solver(order: MultistepOrder, eta: float) -> None:
    """Its order 2 has another straight line than DPM-Solver++, for which the tests above stand."""
    scheduler = theirs("SASolverScheduler", predictor_order=order)
    process = make_process(FIXED, GRID)
    for k in range(1, len(GRID) - order + 1):
        x, z, *x_0s = (noise(6, 3, 8, 8, seed=10 * k + i) for i in range(order + 2))
        visits = tuple(Visit(x, predicted(x_0)) for x_0 in x_0s[1:])
        actual = DPMSolverPP(order, eta).move(process, x, k, predicted(x_0s[0]), z, visits)
        scheduler.model_outputs, scheduler._step_index = x_0s[::-1], len(GRID) - 1 - k
        expected = scheduler.stochastic_adams_bashforth_update(
            x_0s[0], sample=x, noise=z, order=order, tau=torch.tensor(eta, dtype=torch.float64)
        )
        # Both round a weight, a product and four sums, of numbers up to 5 whose weights add up to at most 3.2.
        torch.testing.assert_close(actual, expected, rtol=0, atol=2 * 6 * 5 * 3.2 * U32)


def predicted(x_0: Tensor) -> ModelPrediction:
    """A prediction of which a multistep method reads x_0 alone."""
    return ModelPrediction(x_0=x_0, eps=x_0, mean=x_0, log_variance=x_0)


def test_dynamic_thresholding_is_that_of_diffusers() -> None:
    options = {"solver_order": 2, "thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 100.0}
    scheduler = theirs("DPMSolverMultistepScheduler", **options)
    _compare(DPMSolverPP(), scheduler, std=1.5, clip_denoised=True, dynamic_threshold=0.9)


def _compare(
    sampler: Sampler, scheduler: Any, *, std: float = 0.25, stochastic: bool = False, before_the_last: bool = False, **clipping: Any
) -> None:
    process = make_process(FIXED, GRID)
    oracle, x = GaussianOracle(process, std=std, mean=0.3), noise(6, 3, 8, 8)
    noises = [noise(6, 3, 8, 8, seed=10 + i) for i in range(len(GRID))] if stochastic else None
    num_steps = len(GRID) - before_the_last
    ours = our_path(sampler, process, oracle, x, noises, **clipping)[num_steps - 1]
    # x_0 errs by 12 u / sqrt(alpha_bar), counts with about that root, and is extrapolated by up to 5: 60 u a step. 1e-5 is the trapezoids'.
    rounding = len(GRID) * 60 * U32 + 1e-5
    torch.testing.assert_close(ours, their_path(scheduler, oracle, x, num_steps, noises), rtol=0, atol=rounding)


def smooth_grid(num_steps: int) -> GaussianProcess:
    timesteps = [round(400 + 3100 * i / num_steps) for i in range(num_steps + 1)]
    return make_process(DiffusionConfig(objective="simple", variance="fixed_small"), timesteps)


def flow_error(sampler: Sampler, num_steps: int) -> float:
    """Largest error of the flow of Gaussian data over a smooth grid of timesteps, against its exact solution."""
    process = smooth_grid(num_steps)
    oracle, x = GaussianOracle(process, std=0.25, mean=0.3), noise(8, 1, 4, 4)
    exact = oracle.flow(x.double(), float(process.alpha_bars[-1]), float(process.alpha_bars[0]))
    return float((our_path(sampler, process, oracle, x)[-2] - exact).abs().max())


def variance_error(order: MultistepOrder, eta: float, num_steps: int) -> float:
    """Relative error of the variance of the images that the reverse SDE draws of Gaussian data.

    All steps are linear there, so the variance is the sum of the squared answers to one unit of noise: in the start, and in each step.
    The mean says nothing: the prediction of x_0 is a martingale, and order 1 is exact.
    """
    std, process = 0.25, smooth_grid(num_steps)
    clean, noisy = (float(alpha_bar * std**2 + 1 - alpha_bar) for alpha_bar in process.alpha_bars[[0, -1]])
    units = torch.eye(num_steps + 1)
    start, *noises = units.reshape(num_steps + 1, num_steps + 1, 1, 1, 1)
    drawn = our_path(DPMSolverPP(order, eta), process, GaussianOracle(process, std=std), noisy**0.5 * start, [*noises, start])[-2]
    return abs(float(drawn.double().square().sum()) / clean - 1)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("order", ORDERS)
def test_the_variance_that_the_sde_draws_is_as_exact_as_the_order_of_the_method(order: MultistepOrder, eta: float) -> None:
    coarse, fine = (variance_error(order, eta, num_steps) for num_steps in (40, 80))
    assert order - 0.55 < math.log2(coarse / fine) < order + 0.45


# A corrector raises the order by one; the first steps, which have no history, limit it to 3.
EXPECTED_ORDERS = [
    *((DPMSolverPP(order), order) for order in ORDERS),
    *((DEIS(order), order) for order in ORDERS),
    *((UniPC(order, variant), min(order + 1, 3)) for order, variant in UNIPC),
]


@pytest.mark.parametrize(("sampler", "order"), EXPECTED_ORDERS, ids=lambda value: getattr(value, "description", str(value)))
def test_the_error_falls_with_the_order_of_the_method(sampler: Sampler, order: int) -> None:
    """Measured orders approach the limit from below, and are 0.2 to 0.5 short of it at 40 to 80 steps where correctors are."""
    coarse, fine = (flow_error(sampler, num_steps) for num_steps in (40, 80))
    assert order - 0.55 < math.log2(coarse / fine) < order + 0.45


@pytest.mark.parametrize("h", [1e-3, 0.4, 0.6, 8.0])
def test_polynomial_weights_integrate_polynomials_exactly(h: float) -> None:
    """The polynomial is tau + tau^2; times e^tau its antiderivative is e^tau (tau^2 - tau + 1)."""
    nodes = [-0.7, -2.0]
    exact = h * h - h + 1 - math.exp(-h)
    weights = polynomial_weights(h, nodes)
    found = sum(weight * (node * h + (node * h) ** 2) for weight, node in zip(weights, nodes, strict=True))
    # Where h is short, `exact` is the one that cancels: its terms are 1. At h = 0.6 the moments' recursion cancels to a seventieth, and the
    # matrix of the nodes' powers has a condition of 11.
    assert found == pytest.approx(exact, rel=70 * 11 * U64, abs=4 * U64)


def test_a_long_step_of_order_3_falls_back_to_order_2() -> None:
    """An even stride ends with a step into t = 0 that is several times longer in lambda than the one before."""
    process = make_process(FIXED, [0, 200, 400, 600, 800])
    oracle, x = GaussianOracle(process, std=0.25, mean=0.3), noise(2, 1, 4, 4)
    second = DPMSolverPP(2)
    path = Recorder(DPMSolverPP(3))
    denoiser = Denoiser(process, oracle)
    visits: Visits = ()
    for k in (4, 3, 2):
        x, visits = path.step(denoiser, x, k, x, visits)
    assert torch.equal(path.step(denoiser, x, 1, x, visits)[0], second.step(denoiser, x, 1, x, visits[:1])[0])
    assert not torch.equal(path.step(denoiser, x, 2, x, visits)[0], second.step(denoiser, x, 2, x, visits[:1])[0])


def test_a_sampler_is_made_with_the_settings_of_its_config() -> None:
    for config, description in [
        (SamplingConfig(method="unipc", order=3, unipc_variant="B1"), "UniPC-3, B1"),
        (SamplingConfig(method="deis", order=3), "tAB2-DEIS"),
        (SamplingConfig(method="dpm_solver_pp", order=3), "DPM-Solver++ (3M)"),
        (SamplingConfig(method="dpm_solver_pp", eta=0.5), "DPM-Solver++ (2M), eta 0.5"),
        (SamplingConfig(method="sde_dpm_solver_pp", order=1), "SDE-DPM-Solver++ (1M)"),
    ]:
        assert make_sampler(config).description == description
