"""The paper's experiments by name, and small ones that run on a laptop."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from training.config import (
    ConfigError,
    DataConfig,
    DiffusionConfig,
    EvaluationConfig,
    Experiment,
    ModelConfig,
    OptimConfig,
    SamplingConfig,
)

_DIGITS = DataConfig(name="digits", image_size=8, image_channels=1, num_classes=10)

_PRESETS: dict[str, Experiment] = {
    preset.name: preset
    for preset in (
        Experiment(
            name="digits-hybrid-cosine",
            data=_DIGITS,
            model=ModelConfig(
                model_channels=32,
                channel_mult=(1, 2),
                num_res_blocks=1,
                attention_resolutions=(4,),
                class_conditional=True,
            ),
            diffusion=DiffusionConfig(num_timesteps=1000),
            optim=OptimConfig(
                global_batch_size=64,
                learning_rate=1e-3,
                num_steps=2000,
                ema_decays=(0.99, 0.995),
                checkpoint_interval=200,
            ),
            evaluation=EvaluationConfig(
                extractor="digits-classifier",
                num_samples=2000,
                sampling=SamplingConfig(spacing="100"),
                scoring_num_samples=500,
                scoring_sampling=SamplingConfig(method="ddim", spacing="ddim20"),
                patience=4,
                likelihood_steps=50,
            ),
        ),
    )
}


def names() -> tuple[str, ...]:
    """Every preset's name, in the table's order."""
    return tuple(_PRESETS)


def preset(name: str, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment of that name, with overrides applied.

    Args:
        name: A name from `names()`.
        overrides: Each `section.field=value`; see `Experiment.override`.

    Raises:
        ConfigError: No preset has that name, or an override is invalid.
    """
    if name not in _PRESETS:
        close = difflib.get_close_matches(name, _PRESETS, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"the presets are {', '.join(_PRESETS)}"
        raise ConfigError(f"there is no preset {name!r}; {hint}")
    return _PRESETS[name].override(overrides)
