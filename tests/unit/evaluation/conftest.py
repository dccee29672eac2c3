"""A prepared data set of digits, its reference statistics, and a run with two checkpoints of a network that makes some images."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from evaluation.distances.reference_statistics import compute_reference
from evaluation.features.extractors import load_extractor
from training.checkpoints import checkpoint
from training.config.experiment import Experiment
from training.config.presets import preset
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.published import digits
from training.models.unet import make_model


@pytest.fixture(scope="session")
def experiment() -> Experiment:
    return preset(
        "digits-hybrid-cosine",
        [
            "diffusion.num_timesteps=40",
            "evaluation.scoring_num_samples=60",
            "evaluation.scoring_sampling.spacing=ddim5",
            "evaluation.num_samples=80",
            'evaluation.sampling.spacing="8"',
            "evaluation.likelihood_steps=10",
            "evaluation.rescore_best=2",
        ],
    )


@pytest.fixture(scope="session")
def digits_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IDDPM_CACHE_DIR", str(directory / "cache"))
        for split in ("train", "test"):
            prepare(digits(split), str(directory / split), image_size=8, options=Options(resize="none"))
        yield str(directory)


@pytest.fixture(scope="session")
def reference_uri(digits_uri: str) -> str:
    return compute_reference(f"{digits_uri}/train", load_extractor("digits-classifier"), f"{digits_uri}/reference").uri


def write_run(run_uri: str, experiment: Experiment, steps: tuple[int, ...] = (100, 200)) -> str:
    """Checkpoints of a network whose last layers, which are zero at first, are random; the later step, the more so."""
    for step in steps:
        torch.manual_seed(7)
        files: dict[str, object] = {"experiment.json": experiment.to_dict()}
        network = make_model(experiment)
        generator = torch.Generator().manual_seed(step)
        states = {"model": 0.05, **{f"ema_{decay}": 0.02 for decay in experiment.optim.ema_decays}}
        for name, size in states.items():
            state = {key: value + size * torch.randn(value.shape, generator=generator) for key, value in network.state_dict().items()}
            files[f"{name}.pt"] = state
        checkpoint.save(run_uri, step, files)  # type: ignore[arg-type]
    return run_uri


@pytest.fixture(scope="session")
def kept_run_uri(tmp_path_factory: pytest.TempPathFactory, experiment: Experiment) -> str:
    """A run that tests only read."""
    return write_run(str(tmp_path_factory.mktemp("run")), experiment)


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> Callable[[str, Experiment], str]:
    """A function that writes a run of that name in place of an earlier one, and returns its only checkpoint."""

    def write(name: str, experiment: Experiment) -> str:
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        return checkpoint.checkpoint_uri(write_run(str(tmp_path / name), experiment, (100,)), 100)

    return write


@pytest.fixture
def run_uri(tmp_path: Path, kept_run_uri: str) -> str:
    """A run that a test may write to."""
    return str(shutil.copytree(kept_run_uri, tmp_path / "run"))
