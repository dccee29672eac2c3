"""The experiments of the paper, with the source of their numbers and the results that the paper reports.

Where the sources leave a number open, or disagree, the row says so. "Supplement" is the supplementary material, "main"
the paper, "release" the flags published with the released code and checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from training.config.experiment import (
    DataConfig,
    DiffusionConfig,
    EvaluationConfig,
    Experiment,
    ModelConfig,
    Objective,
    OptimConfig,
    SamplingConfig,
    Schedule,
)
from training.config.tables.row import OBJECTIVES_AND_SCHEDULES, PaperResult, Preset, diffusion_of

_CIFAR10 = DataConfig(name="cifar10", image_size=32, num_classes=10)
_IMAGENET64_OFFICIAL = DataConfig(name="imagenet64-official", image_size=64)
_IMAGENET64 = DataConfig(name="imagenet", image_size=64, num_classes=1000, resize="area")
_IMAGENET256 = DataConfig(name="imagenet", image_size=256, num_classes=1000, resize="area")
_LSUN_BEDROOM = DataConfig(name="lsun-bedroom", image_size=256, resize="area")

_WIDE_256 = ModelConfig(channel_mult=(1, 1, 2, 2, 4, 4), num_res_blocks=2)
_ALL_STEPS, _250_STEPS = SamplingConfig(), SamplingConfig(spacing="250")
_PAPER = EvaluationConfig(patience=0)  # the paper trains for a fixed number of updates, except in supplement section 7

# Supplement table 1: the first row is main table 1's.
_HYBRID_ABLATION = tuple(
    PaperResult(
        where="supplement table 1",
        bits_per_dim=bits_per_dim,
        fid=fid,
        overrides=(f"diffusion.vlb_weight={weight}", f"diffusion.stop_gradient={'true' if stop else 'false'}"),
    )
    for weight, stop, bits_per_dim, fid in (
        (0.001, True, 3.62, 28.04),
        (0.01, True, 3.62, 27.36),
        (0.001, False, 3.62, 30.89),
        (0.01, False, 3.63, 34.35),
    )
)
_NO_PROTOCOL = (
    "the tables do not say how many sampling steps; L_simple takes all T, since a fixed variance does not stride well, the others 250."
)


def _evaluation(objective: Objective, num_samples: int = 50_000) -> EvaluationConfig:
    return replace(_PAPER, num_samples=num_samples, sampling=_ALL_STEPS if objective == "simple" else _250_STEPS)


def _cifar10() -> Iterator[Preset]:
    source = "supplement section 1: [C, 2C, 2C, 2C], dropout 0.1 (linear) or 0.3 (cosine); main table 2 and release: 500K updates"
    for num_timesteps, schedule, objective, _, (bits_per_dim, fid) in OBJECTIVES_AND_SCHEDULES:
        yield Preset(
            experiment=_cifar10_experiment(objective, schedule, num_timesteps, dropout=0.1 if schedule == "linear" else 0.3),
            source=source,
            results=(PaperResult(where="main table 2", bits_per_dim=bits_per_dim, fid=fid),),
            assumed=_NO_PROTOCOL,
        )
    sweep: tuple[tuple[Schedule, float, str], ...] = (
        ("linear", 0.2, "-dropout02"),
        ("linear", 0.3, "-dropout03"),
        ("cosine", 0.1, "-dropout01"),
        ("cosine", 0.2, "-dropout02"),
    )
    for schedule, dropout, suffix in sweep:
        yield Preset(
            experiment=_cifar10_experiment("hybrid", schedule, 4000, dropout=dropout, suffix=suffix),
            source=source + ("; figure 6: dropout 0.1 under both schedules" if dropout == 0.1 else "; its sweep of dropout"),
            assumed="neither the sweep nor figure 6 names its objective; L_hybrid taken. No number is printed.",
        )


def _cifar10_experiment(objective: Objective, schedule: Schedule, num_timesteps: int, *, dropout: float, suffix: str = "") -> Experiment:
    return Experiment(
        name=f"cifar10-{objective}-{schedule}" + ("" if num_timesteps == 4000 else f"-t{num_timesteps}") + suffix,
        data=_CIFAR10,
        model=ModelConfig(channel_mult=(1, 2, 2, 2), dropout=dropout),
        diffusion=diffusion_of(objective, schedule, num_timesteps),
        optim=OptimConfig(num_steps=500_000),
        evaluation=_evaluation(objective),
    )


def _imagenet64() -> Iterator[Preset]:
    source = "supplement section 1: [C, 2C, 3C, 4C], C = 128, batch 128, learning rate 1e-4, FID of 10K samples; main table 1: "
    for num_timesteps, schedule, objective, (bits_per_dim, fid), _ in OBJECTIVES_AND_SCHEDULES:
        experiment = Experiment(
            name=f"imagenet64-{objective}-{schedule}" + ("" if num_timesteps == 4000 else f"-t{num_timesteps}"),
            data=_IMAGENET64_OFFICIAL,
            diffusion=diffusion_of(objective, schedule, num_timesteps),
            optim=OptimConfig(num_steps=200_000),
            evaluation=_evaluation(objective, num_samples=10_000),
        )
        results: tuple[PaperResult, ...] = (PaperResult(where="main table 1", bits_per_dim=bits_per_dim, fid=fid),)
        if (schedule, objective) == ("cosine", "hybrid"):
            results += _HYBRID_ABLATION
        yield Preset(experiment=experiment, source=source + "200K updates", results=results, assumed=_NO_PROTOCOL)
        if schedule == "cosine" and objective != "simple":
            longer = {"hybrid": (3.57, 19.2), "vlb": (3.53, 40.1)}[objective]
            results = (PaperResult(where="main table 1, 1.5M updates", bits_per_dim=longer[0], fid=longer[1]),)
            if objective == "hybrid":
                ensemble = "supplement section 4: ensemble, with imagenet64-vlb-cosine-1500k for the first and last 100 timesteps"
                results += (PaperResult(where=ensemble, bits_per_dim=3.52, fid=19.9),)
            optim = OptimConfig(num_steps=1_500_000, checkpoint_interval=25_000)
            yield Preset(
                experiment=replace(experiment, name=f"{experiment.name}-1500k", optim=optim),
                source=source + "1.5M updates; release",
                results=results,
                assumed=_NO_PROTOCOL,
            )


def _imagenet64_widths() -> Iterator[Preset]:
    for width in (64, 96, 128, 192):
        yield Preset(
            experiment=Experiment(
                name=f"imagenet64-hybrid-cosine-width{width}",
                data=_IMAGENET64_OFFICIAL,
                model=ModelConfig(model_channels=width),
                optim=OptimConfig(learning_rate=1e-4 / math.sqrt(width / 128), num_steps=1_500_000, checkpoint_interval=25_000),
                evaluation=_evaluation("hybrid", num_samples=10_000),
            ),
            source="main paper, scaling: C in {64, 96, 128, 192}, learning rate in proportion to 1/sqrt(C/128)",
            results=(
                PaperResult(
                    where="main paper, scaling fits: FID = 4.00 + (2.5e-25 F)^-0.22, NLL = 3.40 + (3.0e-15 F)^-0.17 at F training FLOPs"
                ),
            ),
            assumed="the length of training is not stated; 1.5M taken, as in main table 1. Scores along the run give the compute axis.",
        )


def _imagenet64_conditional() -> Iterator[Preset]:
    evaluation = replace(_evaluation("hybrid"), patience=5)
    optim = OptimConfig(ema_decays=(0.9999, 0.99995), ema_snapshot_stds=(0.01, 0.05, 0.1, 0.2))
    for dropout, suffix in ((0.0, ""), (0.1, "-dropout01"), (0.3, "-dropout03")):
        yield Preset(
            experiment=Experiment(
                name=f"imagenet64-cond-hybrid-cosine-small{suffix}",
                data=_IMAGENET64,
                model=ModelConfig(class_conditional=True, dropout=dropout),
                optim=replace(optim, num_steps=1_700_000, checkpoint_interval=25_000),
                evaluation=evaluation,
            ),
            source="main paper, class-conditional table (small: 100M, 1.7M updates); "
            "supplement section 7 and figure 7: dropout, EMA sweep, early stopping",
            results=()
            if dropout
            else (PaperResult(where="main paper, class-conditional table, 250 steps", fid=6.92, precision=0.77, recall=0.72),),
            assumed="batch size and learning rate of the small model are not stated; supplement section 1's 128 and 1e-4 taken"
            + (". Figure 7 is a plot: no number is printed." if dropout else ""),
        )
    yield Preset(
        experiment=Experiment(
            name="imagenet64-cond-hybrid-cosine-large",
            data=_IMAGENET64,
            model=ModelConfig(model_channels=192, class_conditional=True),
            diffusion=DiffusionConfig(vlb_weight=0.00025, rescale_timesteps=False),
            optim=replace(optim, global_batch_size=2048, learning_rate=3e-4, num_steps=250_000, checkpoint_interval=5_000),
            evaluation=evaluation,
        ),
        source="release (C = 192, batch 2048, learning rate 3e-4, timesteps not rescaled, lambda = 1/T); supplement section 1: batch 2048",
        results=(
            PaperResult(where="main paper, class-conditional table, 250 steps; supplement figure 2", fid=2.92, precision=0.82, recall=0.71),
        ),
        assumed="the supplement's lambda is 0.001; the released flags amount to 0.00025.",
    )


def _lsun() -> Iterator[Preset]:
    """Supplement section 1 says four heads, attention at 16 and 8 and scale-shift for all experiments; the release differs."""
    released = replace(_WIDE_256, num_heads=1, attention_resolutions=(16,), use_scale_shift_norm=False)
    objectives: tuple[Objective, ...] = ("hybrid", "simple")
    for flags, model in (("", _WIDE_256), ("-released", released)):
        for objective in objectives:
            sampling = _250_STEPS if objective == "hybrid" else SamplingConfig(method="ddim", spacing="ddim50")
            for batch_size, learning_rate, num_steps in ((64, 2e-5, 2_400_000), (128, 1e-4, 1_200_000)):
                yield Preset(
                    experiment=Experiment(
                        name=f"lsun-bedroom-{objective}-linear-bs{batch_size}{flags}",
                        data=_LSUN_BEDROOM,
                        model=model,
                        diffusion=replace(diffusion_of(objective, "linear", 1000), rescale_timesteps=not flags),
                        optim=OptimConfig(
                            global_batch_size=batch_size, learning_rate=learning_rate, num_steps=num_steps, checkpoint_interval=25_000
                        ),
                        evaluation=replace(_PAPER, num_reference_images=50_000, sampling=sampling),
                    ),
                    source="supplement section 2: both batch sizes, 153.6M examples; "
                    + (
                        "release: one head, attention at 16, no scale-shift"
                        if flags
                        else "section 1: four heads, attention at 16 and 8, scale-shift"
                    ),
                    assumed="figure 1 is a plot: no number is printed. T, schedule and blocks are the release's (1000, linear, 2). "
                    "At T = 1000 its lambda = 1/T is 0.001, and rescaling timesteps changes nothing."
                    + (
                        " Its flags for learning rate 2e-5 say batch 128; the checkpoint's name and the supplement say 64."
                        if flags and batch_size == 64
                        else ""
                    ),
                )


def _imagenet256() -> Iterator[Preset]:
    evaluation = replace(_PAPER, likelihood_num_images=5_000)
    yield Preset(
        experiment=Experiment(
            name="imagenet256-cond-hybrid-linear",
            data=_IMAGENET256,
            model=replace(_WIDE_256, class_conditional=True),
            diffusion=diffusion_of("hybrid", "linear"),
            optim=OptimConfig(num_steps=500_000),
            evaluation=evaluation,
        ),
        source="supplement section 3 and table 2: class-conditional, single stage, linear schedule, 250 sampling steps",
        results=(PaperResult(where="supplement table 2, single-stage", fid=31.5),),
        assumed="nothing else is published: width, blocks and stages are LSUN's, batch and learning rate supplement section 1's, "
        "500K updates the upsampler's.",
    )
    yield Preset(
        experiment=Experiment(
            name="imagenet256-upsampler-hybrid-linear",
            data=_IMAGENET256,
            model=replace(_WIDE_256, model_channels=192, class_conditional=True, low_res_size=64),
            diffusion=replace(diffusion_of("hybrid", "linear"), vlb_weight=0.00025, rescale_timesteps=False),
            optim=OptimConfig(global_batch_size=256, learning_rate=3e-4, num_steps=500_000),
            evaluation=evaluation,
        ),
        source="supplement section 3; release (C = 192, batch 256, learning rate 3e-4, timesteps not rescaled, lambda = 1/T, 500K updates)",
        results=(PaperResult(where="supplement table 2, two-stage: after imagenet64-cond-hybrid-cosine-large, 250 steps each", fid=12.3),),
    )


def rows() -> Iterator[Preset]:
    """Yield the rows, family by family."""
    for family in (_cifar10, _imagenet64, _imagenet64_widths, _imagenet64_conditional, _lsun, _imagenet256):
        yield from family()
