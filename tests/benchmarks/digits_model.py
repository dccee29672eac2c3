"""The model of digits that rows about quality are measured on: the demo's, trained for fewer updates from a fixed seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.sampling.trained_model import TrainedModel, load_model
from training.checkpoints import checkpoint
from training.config.experiment import Resources
from training.config.presets import preset
from training.data.loading.loader import Loader
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.published import digits
from training.loop.interfaces import Hooks
from training.loop.trainer import Trainer

PRESET = "digits-hybrid-cosine"
NUM_STEPS = 800


def trained_model(scratch: Path, *, num_steps: int = NUM_STEPS) -> tuple[TrainedModel, str]:
    """The model and the directory of its data (`train` and `test`); trained where `scratch` does not hold it yet."""
    data_uri, run_uri = str(scratch / "digits"), str(scratch / f"digits-{num_steps}-steps")
    experiment = preset(PRESET, [f"optim.num_steps={num_steps}", f"optim.checkpoint_interval={num_steps}"])
    for split in ("train", "test"):
        if not (scratch / "digits" / split / "manifest.json").exists():
            prepare(digits(split), f"{data_uri}/{split}", image_size=8, options=Options(resize="none"))
    uri = checkpoint.latest(run_uri)
    if uri is None:

        def save(step: int, files: Mapping[str, Any]) -> None:
            checkpoint.save(run_uri, step, files)

        loader = Loader(f"{data_uri}/train", seed=experiment.seed, global_batch_size=experiment.optim.global_batch_size)
        Trainer(experiment, Resources(), loader, hooks=Hooks(save=save)).train()
        uri = checkpoint.latest(run_uri)
        assert uri is not None
    return load_model(uri), data_uri
