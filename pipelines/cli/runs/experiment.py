"""An experiment that is named after a pipeline, as in `iddpm submit train my.toml`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from training.config.errors import UserError

if TYPE_CHECKING:
    from pipelines.client.arguments import CompiledPipeline


def add_experiment(pipeline: CompiledPipeline, name: str, *, preset: str, words: Sequence[str]) -> tuple[str, list[str]]:
    """Add a preset, an experiment file or an ablation by its name. Return the preset, and the pipeline's parameters as words.

    Args:
        name: The user's word for it; empty adds nothing.
        preset: The value of --preset.
        words: The values of --param.

    Raises:
        UserError: The pipeline takes no such name, or another option says the same.
    """
    from pipelines.client.arguments import ABLATION, PRESET

    if not name:
        return preset, list(words)
    parameter = _parameter(pipeline, name)
    if parameter in [word.partition("=")[0] for word in words]:
        raise UserError(f"{name} and --param {parameter} mean the same; give one")
    if preset and parameter != ABLATION:  # an ablation varies the preset
        raise UserError(f"{name} and --preset {preset} both name an experiment; give one")
    return (name, list(words)) if parameter == PRESET else (preset, [*words, f"{parameter}={name}"])


def _parameter(pipeline: CompiledPipeline, name: str) -> str:
    """Return the parameter of the pipeline that a name is a value of."""
    from pipelines.client.arguments import ABLATION, FILE, PRESET
    from training.config.validation import close_to

    parameters = pipeline.parameters
    if PRESET not in parameters:
        raise UserError(f"{name}: pipeline {pipeline.name} trains no experiment, so it takes no preset and no file")
    if ABLATION not in parameters:
        return FILE if name.endswith(".toml") else PRESET
    if name.endswith((".toml", ".yaml", ".yml")):
        raise UserError(
            f"{name}: pipeline {pipeline.name} takes no file; name an ablation (`iddpm ablations` lists them), or a preset to vary"
        )
    ablations, presets = parameters[ABLATION]["literals"], parameters[PRESET]["literals"]
    if name not in [*ablations, *presets]:
        near = close_to(name, [*ablations, *presets]) or "; `iddpm ablations` and `iddpm presets` list them"
        raise UserError(f"there is no ablation and no preset {name!r}{near}")
    return ABLATION if name in ablations else PRESET
