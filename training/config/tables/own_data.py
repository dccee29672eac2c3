"""Starting points for a user's own images: an experiment file names one as its `base` and lists the differences."""

from __future__ import annotations

from collections.abc import Iterator

from training.config.experiment import DataConfig, DiffusionConfig, EvaluationConfig, Experiment, ModelConfig, OptimConfig, SamplingConfig
from training.config.tables.row import Preset

# image size, model_channels, channel_mult, attention_resolutions, batch size, updates: one GPU trains each in a day or so
_SIZES = (
    (32, 96, (1, 2, 2), (16, 8), 128, 100_000),
    (64, 96, (1, 2, 3, 4), (16, 8), 64, 150_000),
    (128, 96, (1, 1, 2, 3, 4), (16, 8), 32, 200_000),
)


def rows() -> Iterator[Preset]:
    """Yield one row per image size."""
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
