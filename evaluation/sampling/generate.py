"""Images drawn from a trained model: image i of a seed is the same for any batch size, worker or purpose.

Samples are truncated to 8 bits as the paper's released code does it, because the reported FIDs are of such images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from evaluation.sampling.low_res import LowRes
from evaluation.sampling.trained_model import TrainedModel, load_model
from training.config.errors import UserError
from training.config.experiment import Precision, SamplingConfig
from training.console import say
from training.diffusion.denoiser import Denoiser
from training.diffusion.noise import Stream, keyed_uniform
from training.diffusion.pixels import quantize, to_model_range
from training.diffusion.process import Model
from training.diffusion.samplers.loop import make_sampling_process, sample
from training.diffusion.samplers.sampler import make_sampler
from training.shapes import Int64, UInt8

Labels = Literal["balanced", "data"] | Sequence[int]
Generated = tuple[Tensor, Tensor, Tensor | None]
"""Indices, uint8 NCHW images, labels."""

QUANTIZATION = "truncated to 8 bits, as the released code does"


def generate(
    checkpoint_uri: str | TrainedModel,
    *,
    num_images: int,
    seed: int,
    sampling: SamplingConfig,
    weights: str | None = None,
    labels: Labels = "balanced",
    class_counts: Sequence[int] = (),
    batch_size: int = 250,
    start: int = 0,
    precision: Precision = "fp32",
    device: torch.device | str = "cpu",
    low_res: LowRes | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[Generated]:
    """Draws the images `start` up to `start + num_images`, batch by batch.

    Args:
        checkpoint_uri: A checkpoint's directory, or a model that is loaded already.
        num_images: How many.
        seed: Of all noise. Models that are drawn from under one seed are compared on the same noise.
        sampling: Sampler and spacing.
        weights: Which weights of the checkpoint; None is its first average.
        labels: For a class-conditional model, see `labels_for`.
        class_counts: Images of each label in the data, for `labels="data"`.
        batch_size: Images at a time; halved where the device has no room for so many. It changes an image by no more than
            the rounding of the network's arithmetic.
        start: Index of the first image.
        precision: "bf16" runs the network under autocast (for scores, not for reported numbers).
        device: Where; a loaded model stays where it is.
        low_res: For an upsampler: the small images and their labels, by index.
        on_step: Called with the number of images that a sampling step was done for, for progress.

    Yields:
        Indices, images (uint8 NCHW, on the CPU) and labels (None for an unconditional model).

    Raises:
        UserError: The labels don't suit the model, or it is an upsampler and `low_res` is missing.
        CheckpointError: There is no such checkpoint.
    """
    model = load_model(checkpoint_uri, weights, device=device) if isinstance(checkpoint_uri, str) else checkpoint_uri
    if (low_res is None) != (model.experiment.model.low_res_size is None):
        raise UserError(f"{model.description} is {'not ' if low_res else ''}an upsampler: low_res must be given to one, and only to one")
    process = make_sampling_process(model.experiment.diffusion, sampling)
    sampler = make_sampler(sampling)
    network = _with_precision(model.network, precision, model.device)

    def draw(indices: Tensor) -> Generated:
        conditioning: dict[str, Tensor] = {}
        if low_res is None:
            y = labels_for(indices, model.num_classes, labels, seed=seed, class_counts=class_counts)
        else:
            below, y = low_res(indices)
            conditioning["low_res"] = to_model_range(below) if below.dtype == torch.uint8 else below
        if y is not None and model.num_classes:
            conditioning["y"] = y
        conditioning = {name: value.to(model.device) for name, value in conditioning.items()}
        images = sample(
            Denoiser(process, network, conditioning=conditioning, clip_denoised=sampling.clip_denoised),
            sampler,
            indices=indices.to(model.device),
            shape=model.image_shape,
            seed=seed,
            on_step=(lambda done, x: on_step(len(x))) if on_step is not None else None,
        )
        return indices, quantize(images).cpu(), y

    first, size = start, batch_size
    while first < start + num_images:
        indices = torch.arange(first, min(first + size, start + num_images))
        drawn = _if_it_fits(draw, indices, model)
        if drawn is None:
            size = max(1, len(indices) // 2)
            say(f"no memory for {len(indices)} images at a time on {model.device}; going on with {size}, which gives the same images")
            continue
        yield drawn
        first += len(indices)


def _if_it_fits(draw: Callable[[Tensor], Generated], indices: Tensor, model: TrainedModel) -> Generated | None:
    """The images of those indices; None where the device has no room for so many at a time."""
    try:
        return draw(indices)
    except torch.OutOfMemoryError as error:
        if len(indices) == 1:
            raise UserError(f"{model.device} has no memory for a single image of {model.description}; use another device") from error
    torch.cuda.empty_cache()  # outside of the handler, whose traceback holds the tensors of the failed attempt
    return None


def labels_for(
    indices: Int64[Tensor, " batch"], num_classes: int, labels: Labels, *, seed: int, class_counts: Sequence[int] = ()
) -> Int64[Tensor, " batch"] | None:
    """The label of each image.

    Args:
        indices: Which images.
        num_classes: Of the model; 0 gives None.
        labels: "balanced" goes through the classes in turn, so that each has the same number of images; "data" draws
            them as often as the data has them; a sequence of labels is repeated in turn.
        seed: Of the draw for "data".
        class_counts: Images of each label in the data.

    Raises:
        UserError: There is no such label, or the data's counts are needed and missing.
    """
    if num_classes == 0:
        if labels not in ("balanced", "data"):
            raise UserError("the model is unconditional, it takes no labels")
        return None
    if labels == "balanced":
        return indices % num_classes
    if labels == "data":
        if len(class_counts) != num_classes or sum(class_counts) == 0:
            raise UserError(f"labels as the data's need the counts of {num_classes} classes, got {len(class_counts)}")
        shares = torch.tensor(class_counts, dtype=torch.float64).cumsum(0) / sum(class_counts)
        drawn = torch.searchsorted(shares, keyed_uniform(seed, Stream.LABELS, indices), right=True)
        return drawn.clamp(max=num_classes - 1)
    chosen = torch.tensor([int(label) for label in labels], dtype=torch.int64)
    if len(chosen) == 0 or int(chosen.min()) < 0 or int(chosen.max()) >= num_classes:
        raise UserError(f"labels {list(labels)} are not all in 0..{num_classes - 1}, which the model knows")
    return chosen[indices % len(chosen)]


def concatenated(batches: Iterator[Generated]) -> tuple[UInt8[Tensor, "images channels height width"], Int64[Tensor, " images"] | None]:
    """All images and labels of a generation at once, for as many as fit in memory."""
    parts = list(batches)
    labels = [y for _, _, y in parts if y is not None]
    return torch.cat([images for _, images, _ in parts]), torch.cat(labels) if labels else None


def _with_precision(network: Model, precision: Precision, device: torch.device) -> Model:
    if precision == "fp32":
        return network

    def autocast_network(x_t: Tensor, timesteps: Tensor, **conditioning: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return network(x_t, timesteps, **conditioning).float()

    return autocast_network
