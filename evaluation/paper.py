"""The paper's numbers as data, each with its source, to be shown beside ours.

"Supplement" is the paper's supplementary material; "main paper" rows are transcribed in public notes of its tables 1 and
2. FIDs of unconditional ImageNet 64x64 are on 10K samples, the others on 50K (supplement section 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperResult:
    """One published row.

    Attributes:
        experiment: In words.
        data: "imagenet64", "imagenet64-cond", "imagenet256-cond", "cifar10", "lsun-bedroom256".
        source: Table or section.
        settings: What distinguishes the row, by the experiment's own field names where there is one.
        bits_per_dim: Negative log-likelihood; None if not given.
        fid: None if not given.
        precision: None if not given.
        recall: None if not given.
    """

    experiment: str
    data: str
    source: str
    settings: Mapping[str, object]
    bits_per_dim: float | None = None
    fid: float | None = None
    precision: float | None = None
    recall: float | None = None


def _ablation(vlb_weight: float, stop_gradient: bool, bits_per_dim: float, fid: float) -> PaperResult:
    words = "with" if stop_gradient else "without"
    return PaperResult(
        experiment=f"L_hybrid, lambda {vlb_weight:g}, {words} stop-gradient",
        data="imagenet64",
        source="supplement, table 1 (200K iterations)",
        settings={"diffusion.vlb_weight": vlb_weight, "diffusion.stop_gradient": stop_gradient},
        bits_per_dim=bits_per_dim,
        fid=fid,
    )


TABLE_1 = (
    _ablation(0.001, True, 3.62, 28.04),
    _ablation(0.01, True, 3.62, 27.36),
    _ablation(0.001, False, 3.62, 30.89),
    _ablation(0.01, False, 3.63, 34.35),
)
"""Supplement table 1: the weight of L_vlb in L_hybrid, and the stop-gradient."""


def _table_2(model: str, fid: float) -> PaperResult:
    return PaperResult(experiment=model, data="imagenet256-cond", source="supplement, table 2", settings={}, fid=fid)


TABLE_2 = (
    _table_2("VQ-VAE-2 (two-stage)", 38.1),
    _table_2("Improved Diffusion (single-stage)", 31.5),
    _table_2("Improved Diffusion (two-stage)", 12.3),
    _table_2("BigGAN", 7.7),
    _table_2("BigGAN-deep", 7.0),
)
"""Supplement table 2: class-conditional ImageNet 256x256."""


def _objective(
    data: str, iterations: str, num_timesteps: int, schedule: str, objective: str, bits_per_dim: float, fid: float
) -> PaperResult:
    return PaperResult(
        experiment=f"L_{objective}, {schedule}, T = {num_timesteps:,}, {iterations} iterations",
        data=data,
        source="main paper, table 1 (ImageNet 64x64)" if data == "imagenet64" else "main paper, table 2 (CIFAR-10)",
        settings={
            "diffusion.num_timesteps": num_timesteps,
            "diffusion.schedule": schedule,
            "diffusion.objective": objective,
            "iterations": iterations,
        },
        bits_per_dim=bits_per_dim,
        fid=fid,
    )


OBJECTIVES = (
    _objective("imagenet64", "200K", 1000, "linear", "simple", 3.99, 32.5),
    _objective("imagenet64", "200K", 4000, "linear", "simple", 3.77, 31.3),
    _objective("imagenet64", "200K", 4000, "linear", "hybrid", 3.66, 32.2),
    _objective("imagenet64", "200K", 4000, "cosine", "simple", 3.68, 27.0),
    _objective("imagenet64", "200K", 4000, "cosine", "hybrid", 3.62, 28.0),
    _objective("imagenet64", "200K", 4000, "cosine", "vlb", 3.57, 56.7),
    _objective("imagenet64", "1.5M", 4000, "cosine", "hybrid", 3.57, 19.2),
    _objective("imagenet64", "1.5M", 4000, "cosine", "vlb", 3.53, 40.1),
    _objective("cifar10", "500K", 1000, "linear", "simple", 3.73, 3.29),
    _objective("cifar10", "500K", 4000, "linear", "simple", 3.37, 2.90),
    _objective("cifar10", "500K", 4000, "linear", "hybrid", 3.26, 3.07),
    _objective("cifar10", "500K", 4000, "cosine", "simple", 3.26, 3.05),
    _objective("cifar10", "500K", 4000, "cosine", "hybrid", 3.17, 3.19),
    _objective("cifar10", "500K", 4000, "cosine", "vlb", 2.94, 11.47),
)
"""The main paper's ablation of schedule and objective."""

ENSEMBLE = PaperResult(
    experiment="theta_vlb for the first and last 100 timesteps, theta_hybrid between",
    data="imagenet64",
    source="supplement, section 4 (1.5M iterations)",
    settings={"ends_width": 100},
    bits_per_dim=3.52,
    fid=19.9,
)

CLASS_CONDITIONAL = (
    PaperResult(
        experiment="class-conditional, 100M parameters, 1.7M iterations",
        data="imagenet64-cond",
        source="main paper (250 sampling steps)",
        settings={"model.model_channels": 128},
        fid=6.92,
        precision=0.77,
        recall=0.72,
    ),
    PaperResult(
        experiment="class-conditional, 270M parameters, 250K iterations",
        data="imagenet64-cond",
        source="main paper, and supplement figure 2 (250 sampling steps)",
        settings={"model.model_channels": 192},
        fid=2.92,
        precision=0.82,
        recall=0.71,
    ),
    PaperResult(
        experiment="BigGAN-deep",
        data="imagenet64-cond",
        source="main paper",
        settings={},
        fid=4.06,
        precision=0.86,
        recall=0.59,
    ),
)

ALL = (*TABLE_1, *TABLE_2, *OBJECTIVES, ENSEMBLE, *CLASS_CONDITIONAL)

_DATA_OF_NAME = {
    "imagenet64-official": "imagenet64",
    "imagenet64-uncond": "imagenet64",
    "imagenet64": "imagenet64",
    "cifar10": "cifar10",
    "imagenet256": "imagenet256-cond",
}


def rows_for(data_name: str, *, class_conditional: bool = False) -> tuple[PaperResult, ...]:
    """Every published row on a data set.

    Args:
        data_name: As an experiment or a manifest names it.
        class_conditional: Whether the model is given labels.
    """
    data = _DATA_OF_NAME.get(data_name, data_name)
    if class_conditional and data == "imagenet64":
        data = "imagenet64-cond"
    return tuple(row for row in ALL if row.data == data)


def ablation_row(vlb_weight: float, stop_gradient: bool) -> PaperResult | None:
    """The row of supplement table 1 with these settings."""
    wanted = {"diffusion.vlb_weight": vlb_weight, "diffusion.stop_gradient": stop_gradient}
    return next((row for row in TABLE_1 if row.settings == wanted), None)
