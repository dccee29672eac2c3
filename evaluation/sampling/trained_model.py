"""Trained networks, read from checkpoints: everything that evaluation needs is inside one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.diffusion.ensemble import Ensemble, ends_and_middle, require_same_process
from training.diffusion.process import Model
from training.models.unet import make_model


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedModel:
    """A network, ready to be evaluated, and what is known of it.

    Attributes:
        network: The network, or an ensemble of several.
        experiment: What it was trained as; of an ensemble, its middle member's.
        checkpoint_uri: Where it was read from; of an ensemble, its middle member's.
        weights: "ema_0.9999" and the like, or "model".
        step: Updates that it has seen.
        description: One line that names it fully, for protocol cards.
        device: Where it runs.
    """

    network: Model
    experiment: Experiment
    checkpoint_uri: str
    weights: str
    step: int
    description: str
    device: torch.device

    @property
    def num_classes(self) -> int:
        """Number of labels that the network is given; 0 for an unconditional one."""
        return self.experiment.data.num_classes if self.experiment.model.class_conditional else 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its images."""
        data = self.experiment.data
        return data.image_channels, data.image_size, data.image_size


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """Which network, as plain data that travels to another process.

    Attributes:
        checkpoint_uri: A checkpoint's directory.
        weights: "ema_0.9999" or "model"; None is the experiment's first average.
        ends_checkpoint_uri: For an ensemble, the checkpoint of theta_vlb; empty for a single model.
        ends_weights: Its weights.
        ends_width: How many timesteps at each end are its.
    """

    checkpoint_uri: str
    weights: str | None = None
    ends_checkpoint_uri: str = ""
    ends_weights: str | None = None
    ends_width: int = 100

    def load(self, device: torch.device | str = "cpu") -> TrainedModel:
        """The network.

        Raises:
            CheckpointError: A checkpoint or its weights are missing.
            UserError: The two don't go together.
        """
        model = load_model(self.checkpoint_uri, self.weights, device=device)
        if not self.ends_checkpoint_uri:
            return model
        return ensemble(load_model(self.ends_checkpoint_uri, self.ends_weights, device=device), model, width=self.ends_width)


def load_model(checkpoint_uri: str, weights: str | None = None, *, device: torch.device | str = "cpu") -> TrainedModel:
    """The network of a checkpoint.

    Args:
        checkpoint_uri: The checkpoint's directory.
        weights: "ema_0.9999" or "model"; None takes the experiment's first average.
        device: Where it will run.

    Raises:
        CheckpointError: There is no such checkpoint, or no such weights in it.
    """
    experiment = checkpoint.load_experiment(checkpoint_uri)
    chosen = weights or checkpoint.weights_names(checkpoint_uri)[0]
    state = checkpoint.load_model_state(checkpoint_uri, chosen)
    with torch.random.fork_rng(devices=[]):
        network = make_model(experiment)
    network.load_state_dict(state)
    network = network.to(device).eval().requires_grad_(False)
    return TrainedModel(
        network=network,
        experiment=experiment,
        checkpoint_uri=checkpoint_uri,
        weights=chosen,
        step=checkpoint.step_of(checkpoint_uri),
        description=f"{checkpoint_uri} ({chosen})",
        device=torch.device(device),
    )


def ensemble(ends: TrainedModel, middle: TrainedModel, *, width: int = 100) -> TrainedModel:
    """Supplement section 4: `ends` (theta_vlb) for the first and last timesteps, `middle` (theta_hybrid) between.

    Raises:
        UserError: The two differ in the process, the images or the labels, so that their outputs mean different
            things, or the width does not fit.
    """
    diffusion = require_same_process([middle.experiment.diffusion, ends.experiment.diffusion])
    _require_same_images([middle, ends])
    return TrainedModel(
        network=_joined(ends, middle, width),
        experiment=middle.experiment,
        checkpoint_uri=middle.checkpoint_uri,
        weights=middle.weights,
        step=middle.step,
        description=f"{middle.description}, and for the first and last {width} of {diffusion.num_timesteps} timesteps {ends.description}",
        device=middle.device,
    )


def _joined(ends: TrainedModel, middle: TrainedModel, width: int) -> Ensemble:
    return ends_and_middle(ends.network, middle.network, middle.experiment.diffusion, width=width)


def _require_same_images(members: Sequence[TrainedModel]) -> None:
    kinds = {(member.image_shape, member.num_classes) for member in members}
    if len(kinds) > 1:
        words = " and ".join(f"{shape} with {classes} labels" for shape, classes in sorted(kinds))
        raise UserError(f"models of one ensemble must make the same images; these make {words}")
