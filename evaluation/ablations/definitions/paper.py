"""The paper's ablations: its tables and figures by name.

"Supplement" is the supplementary material, "main" the paper. The tiny scale runs the same grid on the digits: every count of
timesteps is divided by ten, and training lengths and learning rates suit a laptop. The small scale is in `small.py`.
"""

from __future__ import annotations

from dataclasses import replace

from evaluation.ablations.definitions.ablation import Ablation, Setting, did_you_mean, grid
from evaluation.ablations.definitions.reproductions import REPRODUCTIONS
from evaluation.ablations.definitions.small import SMALL
from training.config.errors import UserError

_TINY = "digits-tiny-hybrid-cosine"
_EVERY_STEP_COUNT = (50, 100, 200, 400, 1000, 4000)  # figures 8-19
_FEWER_THAN_50 = 25  # figure 1: with fewer than 50 steps DDIM is better, with more L_hybrid is


def _presets(*names: str) -> tuple[Setting, ...]:
    return tuple(Setting(preset=name, overrides={}) for name in names)


def _roles(**presets: str) -> tuple[Setting, ...]:
    return tuple(Setting(preset=name, overrides={}, role=role.replace("_", "-")) for role, name in presets.items())


_LAMBDA_AND_STOP = {"diffusion.stop_gradient": (True, False), "diffusion.vlb_weight": (0.001, 0.01)}

# Main tables 1 and 2: T, schedule and objective; a name without T has T = 4000.
_OBJECTIVES_AND_SCHEDULES = ("simple-linear-t{}", "simple-linear", "hybrid-linear", "simple-cosine", "hybrid-cosine", "vlb-cosine")

# Supplement section 2: batch 64 at 2e-5, batch 128 at 1e-4, each 153.6M examples. Tiny: half the batch, a fifth of the rate.
_TINY_LSUN = {"diffusion.num_timesteps": 100, "evaluation.sampling.spacing": "25"}
_TINY_BATCHES = (
    {"optim.global_batch_size": 16, "optim.learning_rate": 0.0004, "optim.num_steps": 800, "optim.checkpoint_interval": 200},
    {"optim.global_batch_size": 32, "optim.learning_rate": 0.002, "optim.num_steps": 400, "optim.checkpoint_interval": 100},
)

_TINY_LONG = {"optim.num_steps": 600, "optim.checkpoint_interval": 100}
_TINY_CONDITIONAL = {"model.class_conditional": True}
_TINY_SHORT = {"optim.num_steps": 200, "optim.checkpoint_interval": 50}

_HYBRID_AND_VLB = _roles(hybrid="imagenet64-hybrid-cosine-1500k", vlb="imagenet64-vlb-cosine-1500k")
_HYBRID_AND_VLB_OF_BOTH = _roles(
    imagenet64_hybrid="imagenet64-hybrid-cosine-1500k",
    imagenet64_vlb="imagenet64-vlb-cosine-1500k",
    cifar10_hybrid="cifar10-hybrid-cosine",
    cifar10_vlb="cifar10-vlb-cosine",
)
_TINY_HYBRID_AND_VLB = _roles(hybrid="digits-tiny-hybrid-cosine", vlb="digits-tiny-vlb-cosine")

_ABLATIONS: tuple[Ablation, ...] = (
    Ablation(
        name="hybrid-weight",
        title="Lambda and the stop-gradient of L_hybrid",
        source="Supplement, section 1 and table 1",
        varied=("diffusion.stop_gradient", "diffusion.vlb_weight"),
        paper=grid("imagenet64-hybrid-cosine", _LAMBDA_AND_STOP),
        tiny=grid(_TINY, _LAMBDA_AND_STOP),
    ),
    Ablation(
        name="objective-schedule",
        title="Timesteps, schedule and objective",
        source="Main paper, tables 1 (ImageNet 64x64) and 2 (CIFAR-10)",
        varied=("data.name", "diffusion.num_timesteps", "diffusion.schedule", "diffusion.objective"),
        paper=_presets(*(f"{data}-{row.format(1000)}" for data in ("imagenet64", "cifar10") for row in _OBJECTIVES_AND_SCHEDULES)),
        tiny=_presets(*(f"digits-tiny-{row.format(100)}" for row in _OBJECTIVES_AND_SCHEDULES)),
    ),
    Ablation(
        name="lsun-batch-size",
        title="Batch size and learning rate, by sampling steps",
        source="Supplement, section 2 and figure 1",
        varied=("diffusion.objective", "optim.global_batch_size", "optim.learning_rate"),
        paper=_presets(*(f"lsun-bedroom-{objective}-linear-bs{batch}" for objective in ("hybrid", "simple") for batch in (64, 128))),
        tiny=tuple(
            Setting(preset=f"digits-tiny-{objective}-linear", overrides={**_TINY_LSUN, **batch})
            for objective in ("hybrid", "simple")
            for batch in _TINY_BATCHES
        ),
        measures=("final", "figure-1"),
        counts=(_FEWER_THAN_50, 50, 100, 200, 400, 1000),
    ),
    Ablation(
        name="cifar10-dropout",
        title="Dropout and schedule: learning and overfitting",
        source="Supplement, sections 1 and 6, figure 6",
        varied=("diffusion.schedule", "model.dropout"),
        paper=(
            *_presets("cifar10-hybrid-linear", "cifar10-hybrid-linear-dropout02", "cifar10-hybrid-linear-dropout03"),
            *_presets("cifar10-hybrid-cosine-dropout01", "cifar10-hybrid-cosine-dropout02", "cifar10-hybrid-cosine"),
        ),
        tiny=(
            *grid("digits-tiny-hybrid-linear", {"model.dropout": (0.1, 0.2, 0.3)}, **_TINY_LONG),
            *grid("digits-tiny-hybrid-cosine", {"model.dropout": (0.1, 0.2, 0.3)}, **_TINY_LONG),
        ),
        measures=("final", "history", "history-likelihood"),
        checkpoint="best",
        shared=("optim.ema_snapshot_stds=0.05,0.1,0.2",),  # averages at every checkpoint are rebuilt from them
    ),
    Ablation(
        name="cond64-overfitting",
        title="Dropout and averaging, class-conditional: when to stop",
        source="Supplement, section 7 and figure 7",
        varied=("model.dropout",),
        paper=_presets(*(f"imagenet64-cond-hybrid-cosine-small{suffix}" for suffix in ("", "-dropout01", "-dropout03"))),
        tiny=grid(
            _TINY,
            {"model.dropout": (0.0, 0.1, 0.3)},
            **{**_TINY_LONG, **_TINY_CONDITIONAL, "optim.ema_decays": [0.9, 0.98, 0.995]},
        ),
        measures=("final", "history", "raw-weights"),
        checkpoint="best",
    ),
    Ablation(
        name="width",
        title="Width, the learning rate with it, by training compute",
        source="Main paper, scaling; supplement, section 1",
        varied=("model.model_channels", "optim.learning_rate"),
        paper=_presets(*(f"imagenet64-hybrid-cosine-width{width}" for width in (64, 96, 128, 192))),
        tiny=tuple(
            Setting(preset=_TINY, overrides={**_TINY_SHORT, "model.model_channels": width, "optim.learning_rate": rate})
            for width, rate in ((32, 0.002), (64, 0.001414), (96, 0.001155))  # in proportion to 1 / sqrt(C)
        ),
        measures=("final", "history"),
    ),
    Ablation(
        name="sampling-steps",
        title="Distance and samples by number of sampling steps",
        source="Supplement, sections 2 and 8, figures 1 and 8-19",
        varied=("data.name", "diffusion.schedule", "diffusion.objective"),
        paper=_roles(
            imagenet64_hybrid="imagenet64-hybrid-cosine-1500k",
            cifar10_hybrid="cifar10-hybrid-cosine",
            cifar10_hybrid_linear="cifar10-hybrid-linear",
            cifar10_simple="cifar10-simple-cosine",
        ),
        tiny=_roles(hybrid="digits-tiny-hybrid-cosine", hybrid_linear="digits-tiny-hybrid-linear", simple="digits-tiny-simple-cosine"),
        measures=("sampling-steps",),
        runs_of="objective-schedule",
        counts=(_FEWER_THAN_50, *_EVERY_STEP_COUNT),
    ),
    Ablation(
        name="likelihood-steps",
        title="Bits/dim by number of evaluation steps",
        source="Supplement, section 5 and figure 5",
        varied=("data.name", "diffusion.schedule", "diffusion.objective"),
        paper=_HYBRID_AND_VLB_OF_BOTH,
        tiny=_TINY_HYBRID_AND_VLB,
        measures=("likelihood-steps",),
        runs_of="objective-schedule",
        counts=_EVERY_STEP_COUNT,
    ),
    Ablation(
        name="vlb-ratio",
        title="Terms of the bound, theta_hybrid over theta_vlb",
        source="Supplement, section 4 and figure 3",
        varied=("diffusion.objective",),
        paper=_HYBRID_AND_VLB,
        tiny=_TINY_HYBRID_AND_VLB,
        measures=("bound",),
        runs_of="objective-schedule",
    ),
    Ablation(
        name="ensemble",
        title="theta_vlb for the first and last timesteps, theta_hybrid between",
        source="Supplement, section 4 and figure 4",
        varied=("diffusion.objective",),
        paper=_HYBRID_AND_VLB,
        tiny=_TINY_HYBRID_AND_VLB,
        measures=("final", "samples"),
        joint="ensemble",
        runs_of="objective-schedule",
    ),
    Ablation(
        name="same-noise",
        title="L_hybrid and L_vlb from the same noise",
        source="Supplement, section 8, figures 20 and 21",
        varied=("data.name", "diffusion.objective"),
        paper=_HYBRID_AND_VLB_OF_BOTH,
        tiny=_TINY_HYBRID_AND_VLB,
        measures=("samples",),
        runs_of="objective-schedule",
    ),
    Ablation(
        name="two-stage",
        title="A single model of large images, or two stages",
        source="Supplement, section 3, table 2 and figure 2",
        varied=("data.image_size", "model.low_res_size"),
        paper=(
            Setting(preset="imagenet256-cond-hybrid-linear", overrides={}, role="single-stage"),
            Setting(preset="imagenet64-cond-hybrid-cosine-large", overrides={}, role="first-stage"),
            Setting(preset="imagenet256-upsampler-hybrid-linear", overrides={}, role="second-stage"),
        ),
        tiny=(
            Setting(preset="digits-tiny-hybrid-linear", overrides=_TINY_CONDITIONAL, role="single-stage"),
            Setting(
                preset=_TINY,
                overrides={
                    **_TINY_CONDITIONAL,
                    "data.image_size": 4,
                    "data.resize": "area",
                    "model.channel_mult": [1],
                },
                role="first-stage",
                measures=("samples",),  # the digits' classifier sees 8x8 images alone
            ),
            Setting(preset="digits-tiny-hybrid-linear", overrides={**_TINY_CONDITIONAL, "model.low_res_size": 4}, role="second-stage"),
        ),
        joint="cascade",
    ),
)

ABLATIONS: dict[str, Ablation] = {ablation.name: replace(ablation, small=SMALL[ablation.name]) for ablation in _ABLATIONS}


def names() -> tuple[str, ...]:
    """Return the names of all ablations; evaluations of runs come after the ablations that train those runs."""
    return tuple(ABLATIONS)


def find_ablation(name: str) -> Ablation:
    """Return the ablation or the reproduction of this name; raise UserError if there is none."""
    known = {**ABLATIONS, **REPRODUCTIONS}
    if name not in known:
        raise UserError(f"there is no ablation {name!r}; {did_you_mean(name, known)}")
    return known[name]
