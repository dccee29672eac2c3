"""Images that a user asks for: a set in storage, a PNG grid, and one file for other evaluators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evaluation.records import grids, npz
from evaluation.records.devices import choose_device
from evaluation.sampling import sample_set
from evaluation.sampling.generate import Generated, Labels, concatenated
from evaluation.sampling.sample_set import SamplePlan
from evaluation.sampling.trained_model import ModelSpec, TrainedModel
from training import storage
from training.config.errors import UserError
from training.config.experiment import Precision, SamplingConfig
from training.data.format.manifest import read_manifest

NUM_SHOWN = 100
_MOST_IMAGES = 10**8  # far more than can be drawn; a slip of the keyboard would fill the memory with its plan


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawRequest:
    """The images to draw.

    Attributes:
        labels: See `evaluation.sampling.generate.labels_for`.
        data_uri: The data set; needed for labels as in the data, and for an upsampler without `low_res_uri`. Variances are estimated on
            it. Empty if unknown.
        low_res_uri: For an upsampler: the first stage's images; empty takes the data set's, downsampled.
        batch_size: Images per batch; 0 takes what suits the device.
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
    """Draw the images that do not exist yet, and write the first ones as a PNG. Arguments are checked before the draw.

    Args:
        images_uri: The set's directory (`evaluation.sampling.sample_set`).
        grid_path: PNG of the first `NUM_SHOWN`; for a model of at most ten classes, with a column for each.
        npz_uri: One file of all images and labels; empty writes none.
        num_workers: 1 draws in this process; more are Ray tasks.
        device: The device of each worker.

    Raises:
        UserError: The request does not suit the model, the directory contains other images, or `grid_path` can't be a PNG, or
            `npz_uri` no npz.
        CheckpointError: There is no such checkpoint.
        StorageError: The images, the PNG or the npz can't be written there.
    """
    if grid_path.suffix.lower() != ".png" and not grid_path.is_dir():
        raise UserError(f"{grid_path}: the images are written as PNG; name a file like samples.png")
    for uri in filter(None, (storage.join(images_uri, sample_set.PLAN), str(grid_path), npz_uri)):
        storage.check_destination(uri)
    if npz_uri and not npz_uri.lower().endswith(".npz"):
        raise UserError(f"{npz_uri}: the file of all images is written as npz; name a file like samples.npz")
    own_device = choose_device(device if num_workers <= 1 else "auto")
    model = request.model.load(own_device if sample_set.may_be_estimated(request.sampling) else "cpu")
    plan = _plan(request, model)
    worker_device = own_device if num_workers <= 1 or device == "auto" else device
    sample_set.draw(plan, images_uri, num_workers=num_workers, device=worker_device)
    shown: list[Generated] = []
    for part in sample_set.read(images_uri):
        shown.append(part)
        if sum(len(images) for _, images, _ in shown) >= NUM_SHOWN:
            break
    storage.write_bytes(str(grid_path), grids.to_png(_grid(shown, request, model)))
    if npz_uri:
        batches = ((images, labels) for _, images, labels in sample_set.read(images_uri))
        npz.write_batches(npz_uri, batches, request.num_images)


def _plan(request: DrawRequest, model: TrainedModel) -> SamplePlan:
    if request.num_images < 1:
        raise UserError(f"the number of images must be at least 1, got {request.num_images}")
    if request.num_images > _MOST_IMAGES:
        raise UserError(f"the number of images must be at most {_MOST_IMAGES:,}, got {request.num_images:,}")
    if not request.data_uri and (request.labels == "data" or (model.low_res_size is not None and not request.low_res_uri)):
        reason = "labels as in the data" if request.labels == "data" else "an upsampler without images to enlarge"
        raise UserError(f"{reason}: the data set is needed, and the model does not record which it was trained on; name its directory")
    return sample_set.plan_samples(
        request.model,
        model,
        num_images=request.num_images,
        seed=request.seed,
        sampling=request.sampling,
        labels=request.labels,
        class_counts=tuple(read_manifest(storage.join(request.data_uri, "train")).class_counts) if request.labels == "data" else (),
        data_uri=request.data_uri,
        low_res_uri=request.low_res_uri,
        batch_size=request.batch_size,
        precision=request.precision,
    )


def _grid(shown: list[Generated], request: DrawRequest, model: TrainedModel) -> grids.Pixels:
    images, labels = concatenated(shown)
    images = images[:NUM_SHOWN]
    few_classes = 0 < model.num_classes <= 10 and len(images) >= model.num_classes
    if labels is not None and few_classes and request.labels == "balanced" and model.low_res_size is None:
        grid = grids.ClassGrid()
        grid.update(images, labels[:NUM_SHOWN])
        return grid.pixels()
    return grids.sample_grid(images)
