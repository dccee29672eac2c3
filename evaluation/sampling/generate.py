"""Images drawn from a trained model. Image i of a seed is the same for any batch size, worker or purpose.

Samples are truncated to 8 bits as in the paper's released code, because the reported FIDs are computed from such images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from evaluation.records.not_finite import NotFiniteError as NotFiniteError
from evaluation.records.run_directory import run_uri_of
from evaluation.sampling.learned_steps import with_learned_steps
from evaluation.sampling.reverse_variance import x_0_errors_for
from evaluation.sampling.trained_model import TrainedModel, load_model
from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Experiment, Precision, SamplingConfig
from training.data.loading.row_groups import RowReader
from training.diffusion.noise import Stream, keyed_uniform
from training.diffusion.pixels import quantize, to_model_range
from training.diffusion.process import Denoiser, Guidance, Model
from training.diffusion.samplers.sampler import make_sampler, make_sampling_process, sample
from training.distributed.arithmetic import require_fast
from training.models.layers import make_low_res
from training.shapes import Int64, UInt8

Labels = Literal["balanced", "data"] | tuple[int, ...]
Generated = tuple[Tensor, Tensor, Tensor | None]
"""Indices, uint8 NCHW images, labels."""


QUANTIZATION = "truncated to 8 bits, as the released code does"
_GUIDES: WeakKeyDictionary[TrainedModel, tuple[int, Model]] = WeakKeyDictionary()
"""Step and network of the checkpoint that guided a model last, kept as long as the model, so that all chunks of a set share them."""


def generate(
    model: TrainedModel,
    *,
    num_images: int,
    seed: int,
    sampling: SamplingConfig,
    labels: Labels = "balanced",
    class_counts: Sequence[int] = (),
    batch_size: int = 0,
    start: int = 0,
    precision: Precision = "fp32",
    low_res: LowRes | None = None,
) -> Iterator[Generated]:
    """Draw the images `start` to `start + num_images - 1`, batch by batch, on the model's device.

    Samples of two models under one `seed` start from the same noise. `labels` and `class_counts` are as in `labels_for`. A batch
    (`batch_size` 0: of `sampling_batch_size`) is halved when the device runs out of memory; its size changes an image by no more
    than the rounding of the network's arithmetic. `precision` "bf16" runs the network under autocast (for scores, not for reported
    numbers). An upsampler takes the small images and their labels from `low_res`, by index.

    Yields:
        Indices, images (uint8 NCHW, on the CPU) and labels (None for an unconditional model).

    Raises:
        UserError: The labels don't suit the model, it has no such guide, `low_res` is missing for an upsampler or given to another model,
            this processor is slower in bf16, or the device has no memory for one image.
        NotFiniteError: The network's output is not finite.
    """
    if model.low_res_size is None and low_res is not None:
        raise UserError(f"{model.description} is not an upsampler: it takes no images to enlarge; leave low_res out")
    if model.low_res_size is not None and low_res is None:
        raise UserError(f"{model.description} is an upsampler: give it the images to enlarge as low_res, such as RealLowRes of a data set")
    require_guide(sampling, model.members)
    sampling = with_learned_steps(sampling, model, batch_size=batch_size)
    process = make_sampling_process(model.experiment.diffusion, sampling, x_0_errors_for(sampling, model, batch_size=batch_size))
    sampler = make_sampler(sampling)
    network = _with_precision(model.network, precision, model.device)
    guide = _with_precision(_guide(model, sampling), precision, model.device) if sampling.guidance_scale != 1.0 else None

    all_indices = torch.arange(start, start + num_images)

    def draw(rows: slice) -> Generated:
        indices = all_indices[rows]
        conditioning: dict[str, Tensor] = {}
        if low_res is None:
            y = labels_for(indices, model.num_classes, labels, seed=seed, class_counts=class_counts)
        else:
            small, y = low_res(indices)
            conditioning["low_res"] = to_model_range(small) if small.dtype == torch.uint8 else small
        if y is not None and model.num_classes:
            conditioning["y"] = y
        conditioning = {name: value.to(model.device) for name, value in conditioning.items()}
        images = sample(
            Denoiser(
                process,
                network,
                conditioning=conditioning,
                clip_denoised=sampling.clip_denoised,
                dynamic_threshold=sampling.dynamic_threshold,
                guidance=None if guide is None else Guidance(sampling.guidance_scale, guide, _unguided(model, sampling, conditioning)),
            ),
            sampler,
            indices=indices.to(model.device),
            shape=model.image_shape,
            seed=seed,
        )
        num_lost = int((~images.isfinite()).flatten(1).any(1).sum())
        if num_lost:  # in 8 bits NaN would be black, and the images would get a finite distance
            raise NotFiniteError(
                f"{model.description}: {num_lost} of {len(images)} images are not finite: its weights are damaged or the sampler diverged; "
                "take another checkpoint or another sampler"
            )
        return indices, quantize(images).cpu(), y

    yield from model.batches(batch_size).map(draw, num_images)


def with_evaluations(sampling: SamplingConfig, evaluations: int | None) -> SamplingConfig:
    """Return the sampler with another number of network evaluations for each image; None leaves it."""
    if evaluations is None:
        return sampling
    return dataclasses.replace(sampling, spacing=str(max(1, evaluations // sampling.evaluations_per_step)))


def require_guide(sampling: SamplingConfig, members: Mapping[str, Experiment]) -> None:
    """Refuse a guide that is not an earlier checkpoint of the run, and the model itself as its guide unless it has label dropout.

    `members` are as in `TrainedModel`. If an ensemble guides itself, each member needs label dropout, because each draws without a label at
    its own timesteps. An earlier checkpoint guides at all timesteps; it is one of the middle member's run.
    """
    if sampling.guidance_scale == 1.0:
        return
    if not sampling.guidance_step:
        for uri, experiment in members.items():
            if not experiment.model.class_conditional:
                raise UserError(f"{uri} has no labels and cannot guide itself; give the guidance_step of an earlier checkpoint")
            if not experiment.model.label_dropout:
                raise UserError(
                    f"{uri} was trained with every label and cannot guide itself; train one with model.label_dropout=0.1, or "
                    "give the guidance_step of an earlier checkpoint"
                )
        return
    checkpoint_uri = next(iter(members))
    run_uri, own = run_uri_of(checkpoint_uri), checkpoint.step_of(checkpoint_uri)
    earlier = [step for step in storage.retry(lambda: checkpoint.steps(run_uri)) if step < own]
    if sampling.guidance_step not in earlier:
        raise UserError(
            f"{run_uri} has no checkpoint of step {sampling.guidance_step:,} (guidance_step) that could guide the one of step {own:,}; "
            f"earlier ones: {', '.join(f'{step:,}' for step in earlier) or 'none'}"
        )


def _guide(model: TrainedModel, sampling: SamplingConfig) -> Model:
    """Return the network that predicts g of `Guidance`: another checkpoint's with the same weights' name, or the model's own."""
    step = sampling.guidance_step
    if not step:
        return model.network
    known = _GUIDES.get(model)
    if known is None or known[0] != step:
        earlier = checkpoint.checkpoint_uri(run_uri_of(model.checkpoint_uri), step)
        known = _GUIDES[model] = step, load_model(earlier, model.weights, device=model.device).network
    return known[1]


def _unguided(model: TrainedModel, sampling: SamplingConfig, conditioning: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the conditioning of g: the same for an earlier checkpoint, or without the label."""
    return conditioning if sampling.guidance_step else conditioning | {"y": torch.full_like(conditioning["y"], model.num_classes)}


def labels_for(
    indices: Int64[Tensor, " batch"], num_classes: int, labels: Labels, *, seed: int, class_counts: Sequence[int] = ()
) -> Int64[Tensor, " batch"] | None:
    """Return the label of each image; None for a model of 0 classes.

    "balanced" labels cycle through the classes, so that each has the same number of images; "data" draws them, by `seed`, with
    the frequencies of the data, `class_counts`; a tuple of labels is repeated.

    Raises:
        UserError: There is no such label, the model takes none, or `class_counts` is needed and missing.
    """
    if num_classes == 0:
        if labels not in ("balanced", "data"):
            raise UserError("the model is unconditional, it takes no labels; leave them out")
        return None
    if labels == "balanced":
        return indices % num_classes
    if labels == "data":
        if len(class_counts) != num_classes or sum(class_counts) == 0:
            raise UserError(f"labels as in the data need the counts of {num_classes} classes, got {len(class_counts)}; name the data set")
        shares = torch.tensor(class_counts, dtype=torch.float64).cumsum(0) / sum(class_counts)
        drawn = torch.searchsorted(shares, keyed_uniform(seed, Stream.LABELS, indices), right=True)
        return drawn.clamp(max=num_classes - 1)
    chosen = torch.tensor([int(label) for label in labels], dtype=torch.int64)
    if len(chosen) == 0 or int(chosen.min()) < 0 or int(chosen.max()) >= num_classes:
        raise UserError(f"labels {list(labels)} are not all in 0..{num_classes - 1}, the labels of the model")
    return chosen[indices % len(chosen)]


def concatenated(batches: Iterable[Generated]) -> tuple[UInt8[Tensor, "images channels height width"], Int64[Tensor, " images"] | None]:
    """Return all images and labels of a generation as two tensors."""
    parts = list(batches)
    labels = [y for _, _, y in parts if y is not None]
    return torch.cat([images for _, images, _ in parts]), torch.cat(labels) if labels else None


def _with_precision(network: Model, precision: Precision, device: torch.device) -> Model:
    if precision == "fp32":
        return network
    require_fast(precision, device.type)

    def autocast_network(x_t: Tensor, timesteps: Tensor, **conditioning: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return network(x_t, timesteps, **conditioning).float()

    return autocast_network


LowRes = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Maps indices to small images (uint8, or float32 in [-1, 1]) and their labels."""


class RealLowRes:
    """Image i of a data set, downsampled by area as in training. After the last image the data set starts again.

    A distance on these measures an upsampler alone; the paper's two-stage number (supplement section 3) takes the first stage's samples.
    """

    def __init__(self, dataset_uri: str, low_res_size: int) -> None:
        """Read the manifest of one split. Its images are read when they are needed, and not staged.

        Raises:
            UserError: There is no such data set.
        """
        self._reader = RowReader(dataset_uri)
        self._size = low_res_size

    def __call__(self, indices: Int64[Tensor, " batch"]) -> tuple[Tensor, Tensor | None]:
        """Return small images in [-1, 1], and the labels of the images that they were made from."""
        _, images, labels = self._reader.rows((indices % self._reader.manifest.num_images).numpy())
        return make_low_res(to_model_range(images), self._size), labels
