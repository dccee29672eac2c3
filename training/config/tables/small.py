"""Small experiments: on 1,797 handwritten digits, which a laptop trains, and starting points for a user's own images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from training.config.experiment import (
    DataConfig,
    DiffusionConfig,
    EvaluationConfig,
    Experiment,
    ModelConfig,
    OptimConfig,
    SamplingConfig,
)
from training.config.tables.row import OBJECTIVES_AND_SCHEDULES, Preset, diffusion_of

_DIGITS = DataConfig(name="digits", image_size=8, image_channels=1, num_classes=10)


def _digits() -> Iterator[Preset]:
    model = ModelConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), class_conditional=True)
    demo = Experiment(
        name="digits-hybrid-cosine",
        data=_DIGITS,
        model=model,
        diffusion=DiffusionConfig(num_timesteps=1000),
        optim=OptimConfig(global_batch_size=64, learning_rate=1e-3, num_steps=1600, ema_decays=(0.99, 0.995), checkpoint_interval=200),
        evaluation=EvaluationConfig(
            extractor="digits-classifier",
            num_samples=1000,
            sampling=SamplingConfig(spacing="50"),
            scoring_num_samples=500,
            scoring_sampling=SamplingConfig(method="dpm_solver_pp", spacing="10"),
            patience=4,
            rescore_best=2,
            likelihood_steps=25,
        ),
    )
    yield Preset(experiment=demo, source="ours: the paper's method on 1,797 handwritten digits, minutes on two cores")
    yield Preset(
        experiment=replace(demo, name="digits-upsampler-hybrid-cosine", model=replace(model, low_res_size=4)),
        source="ours: supplement section 3's second stage on the same digits, from 4x4 to 8x8",
    )


def _tiny() -> Iterator[Preset]:
    """The rows of the main tables on the digits, so small that a whole ablation takes minutes on a laptop.

    Every count of timesteps is a tenth of the paper's: T is 400 or 100 rather than 4000 or 1000, 25 sampling steps stand
    for 250. The schedules keep their shapes, and full chains are affordable.
    """
    model = ModelConfig(model_channels=32, channel_mult=(1, 1), num_res_blocks=1, attention_resolutions=())
    for num_timesteps, schedule, objective, _, _ in OBJECTIVES_AND_SCHEDULES:
        sampling = SamplingConfig() if objective == "simple" else SamplingConfig(spacing="25")
        yield Preset(
            experiment=Experiment(
                name=f"digits-tiny-{objective}-{schedule}" + ("" if num_timesteps == 4000 else f"-t{num_timesteps // 10}"),
                data=_DIGITS,
                model=model,
                diffusion=diffusion_of(objective, schedule, num_timesteps // 10),
                optim=OptimConfig(
                    global_batch_size=32, learning_rate=2e-3, num_steps=400, ema_decays=(0.98, 0.995), checkpoint_interval=100
                ),
                evaluation=EvaluationConfig(
                    extractor="digits-classifier",
                    num_samples=500,
                    sampling=sampling,
                    scoring_num_samples=250,
                    scoring_sampling=SamplingConfig(method="dpm_solver_pp", spacing="10"),
                    patience=0,
                    rescore_best=1,
                    likelihood_steps=40,
                ),
            ),
            source="ours: a row of the main tables on 1,797 handwritten digits, every count of timesteps divided by ten",
        )


def digits_rows() -> Iterator[Preset]:
    """Yield the demo, its upsampler, and the main tables in small."""
    yield from _digits()
    yield from _tiny()


def fashion_mnist_rows() -> Iterator[Preset]:
    """Yield a network that two cores train in a quarter of an hour, and one for a GPU."""
    small = Experiment(
        name="fashion-mnist-hybrid-cosine",
        data=DataConfig(name="fashion-mnist", image_size=28, image_channels=1, num_classes=10),
        # Four channels in a group of the first stage, as in the paper's network: with one, samples are too bright.
        model=ModelConfig(
            model_channels=32, channel_mult=(1, 2, 2), num_res_blocks=1, attention_resolutions=(7,), class_conditional=True, norm_groups=8
        ),
        diffusion=DiffusionConfig(num_timesteps=1000),
        optim=OptimConfig(
            global_batch_size=32,
            learning_rate=1e-3,
            num_steps=2400,
            lr_anneal_steps=2400,
            ema_decays=(0.98, 0.995),
            checkpoint_interval=400,
        ),
        evaluation=EvaluationConfig(
            extractor="efficientnet-lite0",
            num_samples=1000,
            num_reference_images=2_000,
            sampling=SamplingConfig(spacing="50"),
            scoring_num_samples=200,
            scoring_sampling=SamplingConfig(method="dpm_solver_pp", spacing="10"),
            rescore_best=1,
            likelihood_num_images=100,
            likelihood_steps=25,
        ),
    )
    yield Preset(experiment=small, source="ours: the paper's method on Fashion-MNIST, a network and a length of training for two cores")
    yield Preset(
        experiment=replace(
            small,
            name="fashion-mnist-hybrid-cosine-width96",
            model=replace(small.model, model_channels=96, num_res_blocks=2, attention_resolutions=(14, 7), dropout=0.1, norm_groups=32),
            optim=OptimConfig(num_steps=50_000, ema_decays=(0.999, 0.9999), checkpoint_interval=2_500),
            evaluation=replace(
                small.evaluation,
                num_samples=10_000,
                num_reference_images=None,
                sampling=SamplingConfig(spacing="100"),
                scoring_num_samples=2_000,
                rescore_best=2,
                likelihood_num_images=2_000,
            ),
        ),
        source="ours: the paper's method on Fashion-MNIST, for one GPU",
    )


# image size, model_channels, channel_mult, attention_resolutions, batch size, updates: one GPU trains each in a day or so
_SIZES = (
    (32, 96, (1, 2, 2), (16, 8), 128, 100_000),
    (64, 96, (1, 2, 3, 4), (16, 8), 64, 150_000),
    (128, 96, (1, 1, 2, 3, 4), (16, 8), 32, 200_000),
)


def own_data_rows() -> Iterator[Preset]:
    """Yield one starting point per image size; an experiment file names one as its `base` and lists the differences."""
    for size, width, mult, attention, batch_size, num_steps in _SIZES:
        yield Preset(
            experiment=Experiment(
                name=f"images{size}-hybrid-cosine",
                data=DataConfig(name="images", image_size=size, resize="area", random_flip=True),
                model=ModelConfig(model_channels=width, channel_mult=mult, num_res_blocks=2, attention_resolutions=attention, dropout=0.1),
                diffusion=DiffusionConfig(num_timesteps=1000),
                optim=OptimConfig(global_batch_size=batch_size, num_steps=num_steps, ema_decays=(0.999, 0.9999), checkpoint_interval=5_000),
                evaluation=EvaluationConfig(
                    num_samples=10_000, sampling=SamplingConfig(spacing="100"), scoring_num_samples=2_000, likelihood_num_images=2_000
                ),
            ),
            source="ours: the paper's method with a network and a length of training that one GPU has time for",
        )
