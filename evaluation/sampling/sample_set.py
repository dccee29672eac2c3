"""A set of generated images in storage, drawn in chunks by any number of workers.

    <uri>/plan.json  images-00000.npz  images-00001.npz  ...

A chunk depends on the plan alone, so neither the worker nor an interruption changes it. Chunks are the field's sample
batches (uint8 `arr_0`, labels `arr_1`), so that other evaluators can read them too.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evaluation.records import npz
from evaluation.records.devices import default_batch_size
from evaluation.sampling.chunks import Chunk, ChunkedPlan, default_chunk_size, process_chunks
from evaluation.sampling.generate import Generated, Labels, LowRes, RealLowRes, concatenated, generate, labels_for, require_guide
from evaluation.sampling.learned_steps import with_learned_steps
from evaluation.sampling.reverse_variance import estimate_digest, find_or_estimate
from evaluation.sampling.trained_model import ModelSpec, TrainedModel, load_cached
from training import storage
from training.config.errors import UserError
from training.config.experiment import Precision, SamplingConfig
from training.config.plain import LATER
from training.config.spacing import learned_count
from training.data.format.manifest import read_manifest
from training.shapes import Int64, UInt8

PLAN = "plan.json"


class MissingImagesError(UserError):
    """A set, or a part of it, that is not there.

    Attributes:
        uri: The set's directory.
    """

    def __init__(self, message: str, *, uri: str = "") -> None:
        super().__init__(message)
        self.uri = uri


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplePlan(ChunkedPlan):
    """Everything that the images depend on.

    Attributes:
        labels: "balanced", "data", or a list; see `evaluation.sampling.generate.labels_for`.
        class_counts: Images of each label in the data, for "data".
        batch_size: Images per batch, 0 for what suits the device. It changes no image, so an interrupted set may be continued
            with another.
        chunk_size: Images per file; an interruption loses at most the work on one file per worker.
        low_res_uri: For an upsampler: the set of images to enlarge, at least as many.
        low_res_data_uri: Alternatively a data set (one split) whose images are downsampled and enlarged again.
        low_res_data_digest: Digest of that data set's content; empty in plans of earlier versions.
        inputs: Digests of the checkpoints and of the first stage's set (`input_digests`), and of the estimate of the variances if they
            are not the model's, because something else may be written to the same addresses.
    """

    model: ModelSpec
    num_images: int
    seed: int
    sampling: SamplingConfig
    labels: Labels = "balanced"
    class_counts: tuple[int, ...] = ()
    batch_size: int = 0
    chunk_size: int = 1000
    precision: Precision = "fp32"
    low_res_uri: str = ""
    low_res_data_uri: str = ""
    inputs: tuple[str, ...]
    low_res_data_digest: str = field(default="", metadata=LATER)

    def __post_init__(self) -> None:
        if self.num_images < 1 or self.chunk_size < 1:
            raise UserError(f"{self.num_images} images in chunks of {self.chunk_size}: each must be at least 1")
        if self.batch_size < 0:
            raise UserError(f"batches of {self.batch_size} images: must be at least 1, or 0 for what suits the device")


def may_be_estimated(sampling: SamplingConfig) -> bool:
    """Return True if a plan with this sampler may choose timesteps or estimate variances first, by many network evaluations."""
    return learned_count(sampling.spacing) is not None or sampling.variance != "model"


def require_draw(
    model: TrainedModel,
    *,
    num_images: int,
    sampling: SamplingConfig,
    labels: Labels,
    class_counts: tuple[int, ...],
    low_res_uri: str = "",
) -> None:
    """Check a draw of images against the model, without a network evaluation. The arguments are those of `plan_samples`.

    Raises:
        UserError: The labels or the small images don't suit the model, or it has no such guide.
    """
    upsampler = model.low_res_size is not None
    if low_res_uri and not upsampler:
        raise UserError(f"{model.description} is not an upsampler: it takes no images to enlarge")
    if upsampler and labels != "balanced":
        raise UserError(f"{model.description} is an upsampler: its labels are those of the small images; leave the labels out")
    labels_for(torch.arange(1), model.num_classes, labels, seed=0, class_counts=class_counts)
    require_guide(sampling, model.members)
    if low_res_uri:
        _FirstStage(low_res_uri, num_images, model)


def plan_samples(
    spec: ModelSpec,
    model: TrainedModel,
    *,
    num_images: int,
    seed: int,
    sampling: SamplingConfig,
    labels: Labels,
    class_counts: tuple[int, ...],
    data_uri: str,
    low_res_uri: str = "",
    batch_size: int = 0,
    precision: Precision = "fp32",
) -> SamplePlan:
    """Check a draw of images against the model, and plan it.

    `spec` is the address of `model`. If `may_be_estimated`, load the model on a fast device. `data_uri` is the data set, empty if unknown:
    variances are estimated on its training images, and an upsampler without `low_res_uri` enlarges them, downsampled. A `batch_size` of
    0 takes the default for this image size. The rest is as in `SamplePlan`.

    Raises:
        UserError: As `require_draw`.
    """
    require_draw(model, num_images=num_images, sampling=sampling, labels=labels, class_counts=class_counts, low_res_uri=low_res_uri)
    upsampler = model.low_res_size is not None
    sampling = with_learned_steps(sampling, model, batch_size=batch_size)
    if sampling.variance != "model":
        find_or_estimate(model, data_uri, batch_size=batch_size)  # here, not in each worker
    estimate = estimate_digest(sampling, model)
    low_res_data_uri = storage.join(data_uri, "train") if data_uri and upsampler and not low_res_uri else ""
    return SamplePlan(
        model=spec,
        num_images=num_images,
        seed=seed,
        sampling=sampling,
        labels=labels,
        class_counts=class_counts,
        batch_size=batch_size,
        chunk_size=default_chunk_size(num_images, default_batch_size(model.experiment.data.image_size)),
        precision=precision,
        low_res_uri=low_res_uri,
        low_res_data_uri=low_res_data_uri,
        inputs=(*input_digests(spec, low_res_uri), *([estimate] if estimate else [])),
        low_res_data_digest=read_manifest(low_res_data_uri).content_digest if low_res_data_uri else "",
    )


def draw(plan: SamplePlan, uri: str, *, num_workers: int = 1, device: str = "cpu") -> None:
    """Draw the images of the set that do not exist yet.

    `num_workers` of 1 draws in this process; more are Ray tasks. `device` is that of each worker.

    Raises:
        UserError: The directory contains a set of another plan.
    """
    plan_uri = storage.join(uri, PLAN)
    if not storage.write_json(plan_uri, plan.to_dict(), if_absent=True) and not _is_of(storage.read_json(plan_uri), plan):
        raise UserError(f"{uri} contains images of another plan; give another directory, or delete it")
    _cached_chunk.cache_clear()  # the first stage may have been drawn again since the last call
    uris = [chunk_uri(uri, number) for number in range(plan.num_chunks)]
    process_chunks(_draw_chunk, plan, uris, directory=uri, activity="drew", num_workers=num_workers, device=device)


def _is_of(stored: dict[str, Any], plan: SamplePlan) -> bool:
    """Return True if a stored plan is this one. One of an earlier version does not know the content of the data set: any fits."""
    wanted = plan.to_dict()
    if "low_res_data_digest" not in stored:
        wanted.pop("low_res_data_digest", None)
    return stored == wanted


def read(uri: str) -> Iterator[Generated]:
    """Read a set, chunk by chunk: indices, uint8 NCHW images, labels.

    Raises:
        MissingImagesError: The set, or a chunk of it, is not there.
        UserError: A chunk is damaged or has another number of images.
    """
    plan = _read_plan(uri)
    num_images, chunk_size = int(plan["num_images"]), int(plan["chunk_size"])
    for number, first in enumerate(range(0, num_images, chunk_size)):
        images, labels = _read_chunk(uri, number)
        if len(images) != min(chunk_size, num_images - first):
            raise UserError(f"{chunk_uri(uri, number)} contains {len(images)} images; delete it and draw again")
        yield torch.arange(first, first + len(images)), images, labels


def input_digests(spec: ModelSpec, low_res_uri: str = "") -> tuple[str, ...]:
    """Return the digests of the checkpoints and, for an upsampler, of the first stage's plan; refuse a set that is not there."""
    if not low_res_uri:
        return spec.digests()
    return (*spec.digests(), hashlib.sha256(json.dumps(_read_plan(low_res_uri)).encode()).hexdigest())


def chunk_uri(uri: str, number: int) -> str:
    """Return the file of a chunk of the set."""
    return storage.join(uri, f"images-{number:05d}.npz")


def _read_chunk(uri: str, number: int) -> tuple[Tensor, Tensor | None]:
    try:
        return npz.read_images(chunk_uri(uri, number))
    except storage.ObjectNotFoundError as error:
        raise _missing_chunk(uri, number) from error
    except UserError as error:
        raise UserError(f"{error}. Delete this file, and the command that draws the set draws its images again") from error


def _missing_chunk(uri: str, number: int) -> MissingImagesError:
    return MissingImagesError(f"{uri}: chunk {number} is missing; the set is not complete, draw it again", uri=uri)


def draw_rows(
    plan: SamplePlan, model: TrainedModel, start: int, size: int
) -> tuple[UInt8[Tensor, "images channels height width"], Int64[Tensor, " images"] | None]:
    """Draw the images `start` to `start + size - 1` of a plan by its model; return images and labels as `concatenated`."""
    return concatenated(
        generate(
            model,
            num_images=size,
            start=start,
            seed=plan.seed,
            sampling=plan.sampling,
            labels=plan.labels,
            class_counts=plan.class_counts,
            batch_size=plan.batch_size,
            precision=plan.precision,
            low_res=_low_res(plan, model),
        )
    )


def _draw_chunk(chunk: Chunk[SamplePlan]) -> int:
    images, labels = draw_rows(chunk.plan, load_cached(chunk.plan.model, chunk.device), chunk.start, chunk.size)
    npz.write_images(chunk.uri, images, labels)
    return len(images)


def _low_res(plan: SamplePlan, model: TrainedModel) -> LowRes | None:
    if plan.low_res_data_uri and model.low_res_size is not None:
        return RealLowRes(plan.low_res_data_uri, model.low_res_size)
    return _FirstStage(plan.low_res_uri, plan.num_images, model) if plan.low_res_uri else None


def _read_plan(uri: str) -> dict[str, Any]:
    try:
        plan = storage.read_json(storage.join(uri, PLAN), SamplePlan)
    except storage.ObjectNotFoundError as error:
        raise MissingImagesError(f"{uri} has no set of images ({PLAN} is missing); draw the images into it first", uri=uri) from error
    return plan


class _FirstStage:
    """Image i of the first stage's set and its label. The two stages may have chunks of different sizes."""

    def __init__(self, uri: str, num_images: int, model: TrainedModel) -> None:
        self._uri = uri
        small = _read_plan(uri)
        self._chunk_size = int(small["chunk_size"])
        if int(small["num_images"]) < num_images:
            raise UserError(f"{uri} contains {small['num_images']:,} images; {num_images:,} are to be enlarged: draw more")
        present = set(storage.list_uris(uri))
        for number in range(-(-num_images // self._chunk_size)):
            if chunk_uri(uri, number) not in present:
                raise _missing_chunk(uri, number)
        images, labels = _cached_chunk(self._uri, 0)
        size = images.shape[-1]
        if size != model.low_res_size:
            raise UserError(f"{self._uri} contains images of {size} pixels; {model.description} enlarges {model.low_res_size}")
        if model.num_classes and labels is None:
            raise UserError(f"{self._uri} contains images without labels; {model.description} is class-conditional: give a set with labels")

    def __call__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        images, labels = [], []
        for number in torch.unique(indices // self._chunk_size).tolist():
            chunk_images, chunk_labels = _cached_chunk(self._uri, number)
            rows = indices[indices // self._chunk_size == number] - number * self._chunk_size
            images.append(chunk_images[rows])
            labels += [] if chunk_labels is None else [chunk_labels[rows]]
        return torch.cat(images), torch.cat(labels) if labels else None


@functools.lru_cache(maxsize=2)
def _cached_chunk(uri: str, number: int) -> tuple[Tensor, Tensor | None]:
    return _read_chunk(uri, number)
