"""Trained networks, read from checkpoints. A checkpoint contains everything that evaluation needs."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.records.devices import Batches, sampling_batch_size
from training import storage
from training.checkpoints import checkpoint
from training.checkpoints.network import load_network
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.diffusion.ensemble import ends_and_middle, require_same_process
from training.diffusion.process import Model
from training.models.layers import make_low_res
from training.shapes import Float32, Int64


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedModel:
    """A network that is ready to be evaluated. For an ensemble, all but `network`, `description` and `ends` are the middle member's.

    Attributes:
        weights: "ema_0.9999" and the like, or "model".
        description: One line that names it fully, for protocol cards.
        ends: The other member of an ensemble; None for a single model.
    """

    network: Model
    experiment: Experiment
    checkpoint_uri: str
    weights: str
    step: int
    description: str
    device: torch.device
    ends: TrainedModel | None = None

    @property
    def members(self) -> dict[str, Experiment]:
        """Checkpoint and experiment of each member of an ensemble, the middle one first; of a single model, its own."""
        return {model.checkpoint_uri: model.experiment for model in (self, self.ends) if model is not None}

    @property
    def num_classes(self) -> int:
        """Number of labels that the network is conditioned on; 0 for an unconditional one."""
        return self.experiment.data.num_classes if self.experiment.model.class_conditional else 0

    @property
    def low_res_size(self) -> int | None:
        """Height and width of the images that an upsampler enlarges; None for any other network."""
        return self.experiment.model.low_res_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its images."""
        data = self.experiment.data
        return data.image_channels, data.image_size, data.image_size

    def batches(self, batch_size: int = 0) -> Batches:
        """Return batches of images of this model, by default of `sampling_batch_size`."""
        size = batch_size or sampling_batch_size(self.experiment, self.device.type)
        return Batches(size, self.device, f"a single image of {self.description}")

    def conditioning(
        self, x_0: Float32[Tensor, "batch channels height width"], labels: Int64[Tensor, " batch"] | None
    ) -> dict[str, Tensor]:
        """Return the network's further inputs for real images: labels (refused if missing), and for an upsampler the area downsample."""
        inputs: dict[str, Tensor] = {}
        if self.num_classes:
            if labels is None:
                raise UserError(f"{self.description} is class-conditional, and the images have no labels; give a data set with labels")
            inputs["y"] = labels
        if self.low_res_size is not None:
            inputs["low_res"] = make_low_res(x_0, self.low_res_size)
        return inputs


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """The address of a network or of an ensemble, as plain data for other processes.

    Attributes:
        weights: "ema_0.9999" or "model"; None is the experiment's first average.
        ends_checkpoint_uri, ends_weights: For an ensemble, the checkpoint and weights of theta_vlb; empty for a single model.
        ends_width: Number of timesteps at each end that theta_vlb models.
    """

    checkpoint_uri: str
    weights: str | None = None
    ends_checkpoint_uri: str = ""
    ends_weights: str | None = None
    ends_width: int = 100

    def load(self, device: torch.device | str = "cpu") -> TrainedModel:
        """Load the network or the ensemble.

        Raises:
            CheckpointError: A checkpoint or its weights are missing.
            UserError: The two members can't be combined.
        """
        model = load_model(self.checkpoint_uri, self.weights, device=device)
        if not self.ends_checkpoint_uri:
            return model
        return ensemble(load_model(self.ends_checkpoint_uri, self.ends_weights, device=device), model, width=self.ends_width)

    def digests(self) -> tuple[str, ...]:
        """Return the digest of each checkpoint. A run that is trained again writes other weights to the same address."""
        return tuple(checkpoint_digest(uri) for uri in self.checkpoint_uris)

    @property
    def checkpoint_uris(self) -> tuple[str, ...]:
        """Address of the checkpoint; for an ensemble those of both members, the middle one first."""
        return tuple(uri for uri in (self.checkpoint_uri, self.ends_checkpoint_uri) if uri)


def checkpoint_digest(checkpoint_uri: str) -> str:
    """Return a digest of a checkpoint. It tells two checkpoints at one address apart: a run that is trained again overwrites the first."""
    return hashlib.sha256(storage.read_bytes(storage.join(checkpoint_uri, checkpoint.COMPLETE))).hexdigest()


@functools.lru_cache(maxsize=1)
def load_cached(spec: ModelSpec, device: str) -> TrainedModel:
    """Load a model once per process. Clear the cache where a checkpoint may have been written again."""
    return spec.load(device)


def load_model(checkpoint_uri: str, weights: str | None = None, *, device: torch.device | str = "cpu") -> TrainedModel:
    """Load the network of a checkpoint, in evaluation mode and without gradients.

    `weights` is "ema_0.9999" or "model"; None takes the experiment's first average.

    Raises:
        CheckpointError: There is no such checkpoint, no such weights in it, or they are another network's.
    """
    experiment = checkpoint.load_experiment(checkpoint_uri)
    chosen = checkpoint.choose_weights(checkpoint_uri, weights)
    return TrainedModel(
        network=load_network(checkpoint_uri, chosen, experiment).to(device),
        experiment=experiment,
        checkpoint_uri=checkpoint_uri,
        weights=chosen,
        step=checkpoint.step_of(checkpoint_uri),
        description=f"{checkpoint_uri} ({chosen})",
        device=torch.device(device),
    )


def require_readable(specs: Iterable[ModelSpec]) -> None:
    """Load each model once and keep none, to refuse a damaged checkpoint before work that would be lost. Raises as `ModelSpec.load`."""
    for spec in specs:
        spec.load("cpu")


def ensemble(ends: TrainedModel, middle: TrainedModel, *, width: int = 100) -> TrainedModel:
    """Combine `ends` (theta_vlb) for the first and last timesteps with `middle` (theta_hybrid) between.

    Source: supplement section 4.

    Raises:
        UserError: The two differ in their process, images, labels or the images that they enlarge, or the width does not fit into the
            process.
    """
    diffusion = require_same_process([middle.experiment.diffusion, ends.experiment.diffusion])
    images = [(model.image_shape, model.num_classes, model.low_res_size) for model in (middle, ends)]
    if images[0] != images[1]:
        words = " and ".join(
            f"{shape} with {classes} labels" + (f", enlarged from {size} x {size} pixels" if size else "")
            for shape, classes, size in images
        )
        raise UserError(f"models of one ensemble must make the same images; these make {words}: give two models of one data set")
    return TrainedModel(
        network=ends_and_middle(ends.network, middle.network, diffusion, width=width),
        experiment=middle.experiment,
        checkpoint_uri=middle.checkpoint_uri,
        weights=middle.weights,
        step=middle.step,
        description=f"{middle.description}, and for the first and last {width} of {diffusion.num_timesteps} timesteps {ends.description}",
        device=middle.device,
        ends=ends,
    )
