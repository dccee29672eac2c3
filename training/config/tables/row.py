"""A row of a table of presets, and the definitions that several tables share."""

from __future__ import annotations

from dataclasses import dataclass

from training.config.experiment import DiffusionConfig, Experiment, Objective, Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperResult:
    """A number that the paper reports.

    Attributes:
        where: Table, figure or section, with further conditions of the number.
        bits_per_dim: Negative log-likelihood; None where none is reported.
        overrides: Changes to the preset that this number needs; empty in most rows.
    """

    where: str
    bits_per_dim: float | None = None
    fid: float | None = None
    precision: float | None = None
    recall: float | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A named experiment and its citation.

    Attributes:
        source: The source of the experiment's numbers.
        results: The results that the paper reports for it.
        assumed: The numbers that the sources leave open, and our choice; empty where there are none.
    """

    experiment: Experiment
    source: str
    results: tuple[PaperResult, ...] = ()
    assumed: str = ""


# Main tables 1 (ImageNet 64x64, 200K updates, FID of 10K samples) and 2 (CIFAR-10, 500K updates, FID of 50K samples).
OBJECTIVES_AND_SCHEDULES: tuple[tuple[int, Schedule, Objective, tuple[float, float], tuple[float, float]], ...] = (
    # T     schedule  objective  ImageNet-64 NLL, FID  CIFAR-10 NLL, FID
    (1000, "linear", "simple", (3.99, 32.5), (3.73, 3.29)),
    (4000, "linear", "simple", (3.77, 31.3), (3.37, 2.90)),
    (4000, "linear", "hybrid", (3.66, 32.2), (3.26, 3.07)),
    (4000, "cosine", "simple", (3.68, 27.0), (3.26, 3.05)),
    (4000, "cosine", "hybrid", (3.62, 28.0), (3.17, 3.19)),
    (4000, "cosine", "vlb", (3.57, 56.7), (2.94, 11.47)),
)


def diffusion_of(objective: Objective, schedule: Schedule, num_timesteps: int = 4000) -> DiffusionConfig:
    """Return the process and objective of a row of the main tables; L_vlb takes the importance sampler (section 4)."""
    return DiffusionConfig(
        num_timesteps=num_timesteps,
        schedule=schedule,
        objective=objective,
        variance="fixed_large" if objective == "simple" else "learned_range",
        timestep_sampler="loss_second_moment" if objective == "vlb" else "uniform",
    )
