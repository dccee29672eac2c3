"""The model of digits that rows about quality are measured on: the demo's, trained for fewer updates from a fixed seed.

    python tests/benchmarks/digits_model.py FOLDER

trains the same network on 20 digits alone, which it then knows by heart, and prints the command that looks for copies among its samples.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.sampling.trained_model import TrainedModel, load_model
from training.checkpoints import checkpoint
from training.config.experiment import Experiment, Precision, Resources
from training.config.presets import preset
from training.data.loading.loader import Loader
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.published import Digits, digits
from training.data.sources.source import RandomSplit, Source
from training.loop.interfaces import Hooks
from training.loop.trainer import Trainer

PRESET = "digits-hybrid-cosine"
NUM_STEPS = 800
_NUM_ALL, _NUM_FEW = 1797, 20


def trained_model(scratch: Path, *, num_steps: int = NUM_STEPS, seed: int = 0, precision: Precision = "fp32") -> tuple[TrainedModel, str]:
    """The model and the directory of its data (`train` and `test`); trained where `scratch` does not hold it yet."""
    experiment = preset(PRESET, [f"optim.num_steps={num_steps}", f"optim.checkpoint_interval={num_steps}", f"seed={seed}"])
    sources = {split: digits(split) for split in ("train", "test")}
    name = f"digits-{num_steps}-steps" + (f"-{seed}-{precision}" if seed or precision != "fp32" else "")
    uri, data_uri = _train(experiment, sources, scratch / "digits", scratch / name, precision)
    return load_model(uri), data_uri


def memoriser(scratch: Path, *, num_steps: int = 400) -> tuple[str, str]:
    """Train on 20 digits, all of them in each update; return the checkpoint and the directory of the data."""
    fields = {"num_steps": num_steps, "checkpoint_interval": num_steps, "global_batch_size": _NUM_FEW}
    experiment = preset(PRESET, [f"optim.{name}={value}" for name, value in fields.items()])
    sources = {split: RandomSplit(Digits(), split=split, num_test=_NUM_ALL - _NUM_FEW, seed=0) for split in ("train", "test")}
    return _train(experiment, sources, scratch / "data", scratch / "run")


def _train(experiment: Experiment, sources: Mapping[str, Source], data: Path, run: Path, precision: Precision = "fp32") -> tuple[str, str]:
    """Prepare data and train, as far as that is not done; return the checkpoint and the directory of the data."""
    for split, source in sources.items():
        if not (data / split / "manifest.json").exists():
            prepare(source, str(data / split), image_size=8, options=Options(resize="none"))
    uri = checkpoint.latest(str(run))
    if uri is None:

        def save(step: int, files: Mapping[str, Any]) -> None:
            checkpoint.save(str(run), step, files)

        loader = Loader(str(data / "train"), seed=experiment.seed, global_batch_size=experiment.optim.global_batch_size)
        Trainer(experiment, Resources(precision=precision), loader, hooks=Hooks(save=save)).train()
        uri = checkpoint.latest(str(run))
        assert uri is not None
    return uri, str(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    found, images = memoriser(parser.parse_args().folder)
    print(f"iddpm memorisation {found} --data {images}")
    sys.exit()
