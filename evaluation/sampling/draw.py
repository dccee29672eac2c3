"""Images on request: a set in storage, a grid to look at, and one file for other evaluators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evaluation.records import grids, npz
from evaluation.records.devices import choose_device, default_batch_size
from evaluation.sampling import sample_set
from evaluation.sampling.generate import Labels, labels_for
from evaluation.sampling.sample_set import SamplePlan
from evaluation.sampling.trained_model import ModelSpec, TrainedModel
from training import storage
from training.config.errors import UserError
from training.config.experiment import Precision, SamplingConfig
from training.data.format.manifest import read_manifest

NUM_SHOWN = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawRequest:
    """Which images.

    Attributes:
        model: Which network.
        num_images: How many.
        seed: Of all noise.
        sampling: Sampler and spacing.
        labels: See `evaluation.sampling.generate.labels_for`.
        data_uri: The data set, where labels are to be as in it, or an upsampler enlarges its images; empty if unknown.
        low_res_uri: For an upsampler: the first stage's images; empty takes the data set's, downsampled.
        batch_size: Images at a time; 0 takes what a network of this image size has room for.
        precision: Of the network.
    """

    model: ModelSpec
    num_images: int
    seed: int
    sampling: SamplingConfig
    labels: Labels = "balanced"
    data_uri: str = ""
    low_res_uri: str = ""
    batch_size: int = 0
    precision: Precision = "fp32"


def draw_images(
    request: DrawRequest, images_uri: str, grid_path: Path, *, npz_uri: str = "", num_workers: int = 1, device: str = "auto"
) -> None:
    """Draws what is not there yet, and writes the first images as a PNG.

    Args:
        request: Which images.
        images_uri: The set's directory (`evaluation.sampling.sample_set`).
        grid_path: PNG of the first `NUM_SHOWN`; of a model of few classes, with a column for each.
        npz_uri: One file of all images and labels; empty writes none.
        num_workers: 1 draws in this process; more are Ray tasks.
        device: Where each of them samples.

    Raises:
        UserError: The request does not suit the model, the directory holds other images, or `grid_path` is not a PNG's name.
        CheckpointError: There is no such checkpoint.
        OSError: The PNG can't be written there.
    """
    if grid_path.is_dir():
        raise UserError(f"{grid_path}: is a directory; name the PNG to write")
    if grid_path.suffix.lower() != ".png":
        raise UserError(f"{grid_path}: the images are written as PNG; name a file like samples.png")
    if grid_path.parts[0] == "s3:":
        raise UserError(f"{grid_path}: the PNG is written on this machine; name a path (--images takes an address in S3)")
    grid_path.parent.mkdir(parents=True, exist_ok=True)  # what can't be written is refused before anything is drawn, too
    model = request.model.load("cpu")  # refuses what is missing before anything is drawn
    plan = _plan(request, model)
    there = choose_device(device) if num_workers <= 1 or device == "auto" else device
    sample_set.draw(plan, images_uri, num_workers=num_workers, device=there)
    shown: list[tuple[Tensor, Tensor | None]] = []
    for _, images, labels in sample_set.read(images_uri):
        shown.append((images, labels))
        if sum(len(part) for part, _ in shown) >= NUM_SHOWN:
            break
    grid_path.write_bytes(grids.to_png(_grid(shown, request, model)))
    if npz_uri:
        parts = list(sample_set.read(images_uri))
        found = [labels for _, _, labels in parts if labels is not None]
        npz.write_images(npz_uri, torch.cat([images for _, images, _ in parts]), torch.cat(found) if found else None)


def _plan(request: DrawRequest, model: TrainedModel) -> SamplePlan:
    if request.num_images < 1:
        raise UserError(f"the number of images must be at least 1, got {request.num_images}")
    upsampler = model.experiment.model.low_res_size is not None
    if request.low_res_uri and not upsampler:
        raise UserError(f"{model.description} is not an upsampler, it enlarges nothing")
    if not request.data_uri and (request.labels == "data" or (upsampler and not request.low_res_uri)):
        wants = "labels as in the data" if request.labels == "data" else "an upsampler without images to enlarge"
        raise UserError(f"{wants}: the data set is needed, and the model does not say which it was trained on; name its directory")
    train_uri = storage.join(request.data_uri, "train") if request.data_uri else ""
    counts = tuple(read_manifest(train_uri).class_counts) if request.labels == "data" else ()
    labels_for(torch.arange(1), model.num_classes, request.labels, seed=request.seed, class_counts=counts)  # refuses what does not suit
    room = default_batch_size(model.experiment.data.image_size)
    return SamplePlan(
        model=request.model,
        num_images=request.num_images,
        seed=request.seed,
        sampling=request.sampling,
        labels=request.labels,
        class_counts=counts,
        batch_size=request.batch_size or room,
        chunk_size=sample_set.chunk_size_for(request.num_images, room),
        precision=request.precision,
        low_res_uri=request.low_res_uri,
        low_res_data_uri=train_uri if upsampler and not request.low_res_uri else "",
        inputs=sample_set.input_digests(request.model, request.low_res_uri),
    )


def _grid(shown: list[tuple[Tensor, Tensor | None]], request: DrawRequest, model: TrainedModel) -> grids.Pixels:
    images = torch.cat([part for part, _ in shown])[:NUM_SHOWN]
    found = [labels for _, labels in shown if labels is not None]
    few_classes = 0 < model.num_classes <= 10 and len(images) >= model.num_classes
    if found and few_classes and request.labels == "balanced" and not model.experiment.model.low_res_size:
        return grids.class_grid(images, torch.cat(found)[:NUM_SHOWN])
    return grids.sample_grid(images)
