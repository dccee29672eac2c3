"""A set of generated images in storage: drawn in chunks by any number of workers, and never the same chunk twice.

    <uri>/plan.json  images-00000.npz  images-00001.npz  ...

A chunk is a function of the plan alone, so that who draws it, and after which interruption, makes no difference. Chunks
are the field's sample batches (uint8 `arr_0`, labels `arr_1`), so that other evaluators can read them too.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from evaluation.records import npz
from evaluation.records.protocol_card import as_plain
from evaluation.records.run_directory import checkpoint_digest
from evaluation.sampling.generate import Generated, Labels, concatenated, generate
from evaluation.sampling.low_res import LowRes, RealLowRes
from evaluation.sampling.trained_model import ModelSpec, TrainedModel
from training import storage
from training.config.errors import UserError
from training.config.experiment import Precision, SamplingConfig
from training.console import format_duration, format_rate, format_remaining, say
from training.distributed.parallel_map import parallel_map

PLAN = "plan.json"
_SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplePlan:
    """Everything that the images are a function of.

    Attributes:
        model: Which network.
        num_images: How many.
        seed: Of all noise and of drawn labels.
        sampling: Sampler and spacing.
        labels: "balanced", "data", or a list; see `evaluation.sampling.generate.labels_for`.
        class_counts: Images of each label in the data, for "data".
        batch_size: Images at a time, which changes none of them: a set may be gone on with by another.
        chunk_size: Images of one file; what an interruption costs at most.
        precision: Of the network.
        low_res_uri: For an upsampler: the set of images to enlarge, at least as many.
        low_res_data_uri: Or a data set (one split) whose images, downsampled, it is to enlarge again.
        inputs: Digests of what stands at these addresses, where something else may come to stand (`input_digests`).
    """

    model: ModelSpec
    num_images: int
    seed: int
    sampling: SamplingConfig
    labels: Labels = "balanced"
    class_counts: tuple[int, ...] = ()
    batch_size: int = 250
    chunk_size: int = 1000
    precision: Precision = "fp32"
    low_res_uri: str = ""
    low_res_data_uri: str = ""
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_images < 1 or self.batch_size < 1 or self.chunk_size < 1:
            raise UserError(
                f"{self.num_images} images in chunks of {self.chunk_size} and batches of {self.batch_size}: each must be at least 1"
            )

    @property
    def num_chunks(self) -> int:
        """Files of the set."""
        return -(-self.num_images // self.chunk_size)

    def to_dict(self) -> dict[str, Any]:
        """What tells the images from others, as plain values for JSON."""
        plain: dict[str, Any] = as_plain(asdict(self))
        del plain["batch_size"]
        return plain


@dataclass(frozen=True, slots=True)
class _Chunk:
    plan: SamplePlan
    uri: str
    number: int
    device: str


def draw(plan: SamplePlan, uri: str, *, num_workers: int = 1, device: str = "cpu") -> None:
    """Draws what of the set is not there yet.

    Args:
        plan: The images.
        uri: The set's directory.
        num_workers: 1 draws in this process; more are Ray tasks.
        device: Where each of them samples.

    Raises:
        UserError: The directory holds a set of another plan.
    """
    plan_uri = storage.join(uri, PLAN)
    if not storage.write_json(plan_uri, plan.to_dict(), if_absent=True) and storage.read_json(plan_uri) != plan.to_dict():
        raise UserError(f"{uri} holds images of another plan; give another directory, or delete it")
    present = set(storage.list_uris(uri))
    missing = [number for number in range(plan.num_chunks) if chunk_uri(uri, number) not in present]
    if len(missing) < plan.num_chunks:
        say(f"{plan.num_chunks - len(missing)} of {plan.num_chunks} chunks of images are there already")
    _loaded.cache_clear()  # the checkpoint may have been written anew since
    _kept_chunk.cache_clear()
    started = shown = time.monotonic()
    done = 0
    jobs = [_Chunk(plan, uri, number, device) for number in missing]
    for count in parallel_map(_draw_chunk, jobs, num_workers=num_workers, num_gpus_per_worker=int(device != "cpu")):
        done += count
        now = time.monotonic()
        if now - shown > _SECONDS_BETWEEN_LINES:
            shown = now
            total = sum(_size(plan, number) for number in missing)
            rate, left = format_rate(done, now - started, "images"), format_remaining(done, total, now - started)
            say(f"drew {done:,}/{total:,} images  {rate}  {left}")
    if done:
        say(f"drew {done:,} images in {format_duration(time.monotonic() - started)}")


def read(uri: str) -> Iterator[Generated]:
    """The images of a set, chunk by chunk: indices, uint8 NCHW images, labels.

    Raises:
        UserError: The set is not complete.
    """
    plan = storage.read_json(storage.join(uri, PLAN))
    num_images, chunk_size = int(plan["num_images"]), int(plan["chunk_size"])
    for number, first in enumerate(range(0, num_images, chunk_size)):
        images, labels = _read_chunk(uri, number)
        if len(images) != min(chunk_size, num_images - first):
            raise UserError(f"{chunk_uri(uri, number)} holds {len(images)} images; delete it and draw again")
        yield torch.arange(first, first + len(images)), images, labels


def chunk_size_for(num_images: int, batch_size: int) -> int:
    """About twenty chunks of whole batches: enough to spread and to show progress, few enough files.

    Args:
        num_images: Of the set.
        batch_size: What images of this size have room for, whatever is asked for: other chunks would be begun anew.
    """
    return batch_size * max(1, -(-num_images // (20 * batch_size)))


def input_digests(model: ModelSpec, low_res_uri: str = "") -> tuple[str, ...]:
    """Of the checkpoints and of the first stage's plan: a run that was trained anew has other weights at the same address.

    Raises:
        UserError: There is no set of small images.
    """
    uris = [uri for uri in (model.checkpoint_uri, model.ends_checkpoint_uri) if uri]
    small = (hashlib.sha256(json.dumps(_plan_at(low_res_uri)).encode()).hexdigest(),) if low_res_uri else ()
    return (*map(checkpoint_digest, uris), *small)


def chunk_uri(uri: str, number: int) -> str:
    """Where a chunk of the set is."""
    return storage.join(uri, f"images-{number:05d}.npz")


def _read_chunk(uri: str, number: int) -> tuple[Tensor, Tensor | None]:
    try:
        return npz.read_images(chunk_uri(uri, number))
    except storage.ObjectNotFoundError as error:
        raise UserError(f"{uri}: chunk {number} is missing; the set is not complete, draw it again") from error


def _size(plan: SamplePlan, number: int) -> int:
    return min(plan.chunk_size, plan.num_images - number * plan.chunk_size)


def _draw_chunk(chunk: _Chunk) -> int:
    plan, first = chunk.plan, chunk.number * chunk.plan.chunk_size

    model = _loaded(plan.model, chunk.device)
    images, labels = concatenated(
        generate(
            model,
            num_images=_size(plan, chunk.number),
            start=first,
            seed=plan.seed,
            sampling=plan.sampling,
            labels=plan.labels,
            class_counts=plan.class_counts,
            batch_size=plan.batch_size,
            precision=plan.precision,
            low_res=_low_res(plan, model),
        )
    )
    npz.write_images(chunk_uri(chunk.uri, chunk.number), images, labels)
    return len(images)


def _low_res(plan: SamplePlan, model: TrainedModel) -> LowRes | None:
    size = model.experiment.model.low_res_size
    if plan.low_res_data_uri and size is not None:
        return RealLowRes(plan.low_res_data_uri, size)
    if not plan.low_res_uri:
        return None
    return _FirstStage(plan, size, model.description)


def _plan_at(uri: str) -> dict[str, Any]:
    """The plan of the first stage's set."""
    try:
        plan: dict[str, Any] = storage.read_json(storage.join(uri, PLAN))
    except storage.ObjectNotFoundError as error:
        raise UserError(f"{uri} holds no set of images ({PLAN} is missing); draw the first stage's into it") from error
    return plan


class _FirstStage:
    """Image i of the first stage's set and its label, whatever chunks either stage has."""

    def __init__(self, plan: SamplePlan, size: int | None, description: str) -> None:
        self._uri = plan.low_res_uri
        small = _plan_at(self._uri)
        self._chunk_size = int(small["chunk_size"])
        if int(small["num_images"]) < plan.num_images:
            raise UserError(f"{self._uri} holds {small['num_images']:,} images; {plan.num_images:,} are to be enlarged")
        found = self._chunk(0)[0].shape[-1]
        if found != size:
            raise UserError(f"{self._uri} holds images of {found} pixels; {description} enlarges {size}")

    def __call__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        images, labels = [], []
        for number in torch.unique(indices // self._chunk_size).tolist():
            chunk_images, chunk_labels = self._chunk(number)
            rows = indices[indices // self._chunk_size == number] - number * self._chunk_size
            images.append(chunk_images[rows])
            labels += [] if chunk_labels is None else [chunk_labels[rows]]
        return torch.cat(images), torch.cat(labels) if labels else None

    def _chunk(self, number: int) -> tuple[Tensor, Tensor | None]:
        return _kept_chunk(self._uri, number)


@functools.lru_cache(maxsize=2)
def _kept_chunk(uri: str, number: int) -> tuple[Tensor, Tensor | None]:
    return _read_chunk(uri, number)


@functools.lru_cache(maxsize=1)
def _loaded(spec: ModelSpec, device: str) -> TrainedModel:
    return spec.load(device)
