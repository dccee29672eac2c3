"""SDE-DPM-Solver++ of orders 1 and 2: a multistep solver of the reverse SDE, which adds noise in every step.

With lambda = log(alpha / sigma) and a step of length h in lambda,

    x' = sigma' / sigma e^{-h} x + alpha' (1 - e^{-2h}) D + sigma' sqrt(1 - e^{-2h}) z,

where D is x_0 (order 1) or its extrapolation to the middle of the step (order 2), and z is N(0, 1). The noise repairs errors of earlier
steps, as ancestral sampling's does. Source: Lu et al. 2022, "DPM-Solver++", section 4.3 and appendix.
"""

from __future__ import annotations

import math

from torch import Tensor

from training.config.experiment import MultistepOrder, SamplingConfig
from training.diffusion.process import GaussianProcess, ModelPrediction
from training.diffusion.samplers.dpm_solver_pp import extrapolated
from training.diffusion.samplers.multistep import half_log_snr
from training.diffusion.samplers.sampler import Sampler, Visits


class SDEDPMSolverPP(Sampler):
    """The solver's step, of one network evaluation; a variance that the model learned is not used.

    Deviation: the extrapolation is limited as in `dpm_solver_pp_sample`.
    """

    is_stochastic = True

    def __init__(self, order: MultistepOrder = 2) -> None:
        """Set the order, 1 or 2."""
        self.num_visits = order - 1
        self.description = f"SDE-DPM-Solver++ ({order}M)"

    def move(self, process: GaussianProcess, x_t: Tensor, k: int, prediction: ModelPrediction, noise: Tensor, visits: Visits) -> Tensor:
        """Return x', or the predicted x_0 in the last step."""
        if k == 0:
            return prediction.x_0
        alpha_bar_next, alpha_bar = process.alpha_bars[k - 1 : k + 1].tolist()
        target = prediction.x_0
        if visits:
            before = (visits[0].prediction.x_0, float(process.alpha_bars[k + 1]))
            target = extrapolated(target, before, alpha_bar, alpha_bar_next)
        h = half_log_snr(alpha_bar_next) - half_log_snr(alpha_bar)
        kept, fresh = math.exp(-h), -math.expm1(-2 * h)
        sigma = math.sqrt(1 - alpha_bar_next)
        return sigma / math.sqrt(1 - alpha_bar) * kept * x_t + math.sqrt(alpha_bar_next) * fresh * target + sigma * math.sqrt(fresh) * noise


def make_sampler(config: SamplingConfig) -> SDEDPMSolverPP:
    """Return the sampler of the config."""
    return SDEDPMSolverPP(config.order)
