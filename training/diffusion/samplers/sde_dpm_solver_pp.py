"""SDE-DPM-Solver++ of orders 1 to 3: DPM-Solver++ with all the noise of the reverse SDE (eta = 1).

Source: Lu et al. 2022, "DPM-Solver++", section 4.3, for orders 1 and 2; order 3 is that of `training.diffusion.samplers.dpm_solver_pp`.
"""

from __future__ import annotations

from training.config.experiment import SamplingConfig
from training.diffusion.samplers.dpm_solver_pp import DPMSolverPP


def make_sampler(config: SamplingConfig) -> DPMSolverPP:
    """Return the sampler of the config."""
    sampler = DPMSolverPP(config.order, eta=1.0)
    sampler.description = f"SDE-DPM-Solver++ ({config.order}M)"
    return sampler
