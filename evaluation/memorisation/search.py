"""The search for copies of training images: near-duplicates in the training set itself, and copies among samples."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from evaluation.memorisation.copied_share import FALSE_ALARM_RATE, CopiedShare, copied_share
from evaluation.memorisation.nearest import Space, nearest_images
from training import storage
from training.config.errors import UserError
from training.config.plain import PlainRecord
from training.console import with_progress
from training.data.format.manifest import MANIFEST, read_manifest
from training.data.loading.row_groups import iterate
from training.shapes import UInt8

MAX_IMAGES = 2_000
"""Samples, held-out images and training images that are searched for copies. All training images are searched in."""
_MAX_COPIES = 500
_MIN_TRAINING = 3
_NUM_PAIRS = 10
_BATCH_SIZE = 500
_JPEG_QUALITY = 75
_BRIGHTER = 1.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """An image and its nearest training image: its number among the samples (or row of the training set), row and relative distance."""

    image: int
    training_row: int
    ratio: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Memorisation(PlainRecord):
    """The findings of one search.

    Attributes:
        space: Where images were compared.
        samples: Copies of training images among the samples.
        duplicates: Near-duplicates of other training images in the training set.
        recall: Share of the artificial copies that are flagged, by kind.
        sample_pairs, duplicate_pairs: Those of the smallest relative distance, nearest first.
    """

    space: str
    num_training: int
    samples: CopiedShare
    duplicates: CopiedShare
    recall: dict[str, float]
    sample_pairs: tuple[Pair, ...]
    duplicate_pairs: tuple[Pair, ...]

    def as_metric(self) -> dict[str, Any]:
        """Return the share of copies among the samples as a metric of an evaluation."""
        found = self.samples
        low, high = found.interval
        note = f"near copies of training images among {found.num_images:,} samples, in {self.space}"
        method = "draws of the rates of flagged images, false alarms and recall"
        return {"value": found.share, "standard_error": found.standard_error, "interval": [low, high], "method": method, "note": note}


def obstacle(data_uri: str) -> str:
    """Return why no search is possible in a data set; empty if one is. Raises UserError where there is no data set."""
    count = read_manifest(storage.join(data_uri, "train")).num_images
    if not storage.exists(storage.join(data_uri, "test", MANIFEST)):
        return f"{data_uri} has no test images, without which the rate of false alarms is unknown"
    return f"{count} training images are too few, {_MIN_TRAINING} are needed" if count < _MIN_TRAINING else ""


def find_copies(
    samples: UInt8[Tensor, "images channels height width"], data_uri: str, space: Space, *, false_alarm_rate: float = FALSE_ALARM_RATE
) -> Memorisation:
    """Search the training set for the nearest image of each sample, of held-out images, of artificial copies, and of its own images.

    Args:
        samples: At most the first `MAX_IMAGES` are used.
        data_uri: A data set with `train` and `test` splits.
        space: See `evaluation.memorisation.nearest`.
        false_alarm_rate: Share of images without copies that may be flagged, in (0, 1).

    Raises:
        UserError: The data set has no test images, or too few training images; or the images have another shape.
    """
    if reason := obstacle(data_uri):
        raise UserError(f"memorisation can't be judged: {reason}")
    train_uri = storage.join(data_uri, "train")
    manifest = read_manifest(train_uri)
    height, width, channels = manifest.image_shape
    if tuple(samples.shape[1:]) != (channels, height, width):
        raise UserError(
            f"the samples are images of {tuple(samples.shape[1:])}, the data set {data_uri} has ({channels}, {height}, {width})"
        )
    samples = samples[:MAX_IMAGES]
    held_out = _images(storage.join(data_uri, "test"), MAX_IMAGES)
    training = _images(train_uri, MAX_IMAGES)
    copies = make_copies(training[:_MAX_COPIES])
    groups = [samples, held_out, copies, training]
    own_rows = torch.full((sum(len(group) for group in groups),), -1)
    own_rows[-len(training) :] = torch.arange(len(training))
    batches = with_progress(_batches(train_uri), "searched for copies among", manifest.num_images, lambda batch: len(batch[0]))
    found = nearest_images(torch.cat(groups), batches, space, num_training=manifest.num_images, own_rows=own_rows)
    sizes = [len(group) for group in groups]
    of_samples, of_held_out, of_copies, of_training = torch.split(found.ratios, sizes)
    rows = torch.split(found.rows, sizes)

    def share_of(ratios: Tensor) -> CopiedShare:
        return copied_share(ratios, of_held_out, of_copies, false_alarm_rate)

    in_samples = share_of(of_samples)
    flagged = (of_copies < in_samples.threshold).double()
    return Memorisation(
        space=space.name,
        num_training=manifest.num_images,
        samples=in_samples,
        duplicates=share_of(of_training),
        recall={kind: float(flagged[number :: len(KINDS)].mean()) for number, kind in enumerate(KINDS) if number < len(copies)},
        sample_pairs=_nearest_pairs(of_samples, rows[0]),
        duplicate_pairs=_nearest_pairs(of_training, rows[3], once=True),
    )


def _nearest_pairs(ratios: Tensor, rows: Tensor, *, once: bool = False) -> tuple[Pair, ...]:
    """Return the nearest pairs; with `once`, of two training images that are each other's nearest, the pair of the first alone."""
    pairs: list[Pair] = []
    for image in ratios.argsort(stable=True).tolist():
        pair = Pair(image=image, training_row=int(rows[image]), ratio=float(ratios[image]))
        if not (once and any((other.image, other.training_row) == (pair.training_row, pair.image) for other in pairs)):
            pairs.append(pair)
        if len(pairs) == _NUM_PAIRS:
            break
    return tuple(pairs)


def _images(dataset_uri: str, count: int) -> Tensor:
    return torch.cat([images for _, images, _ in iterate(dataset_uri, _BATCH_SIZE, stop=count)])


def _batches(train_uri: str) -> Iterator[tuple[Tensor, Tensor]]:
    return ((rows, images) for rows, images, _ in iterate(train_uri, _BATCH_SIZE))


def _shifted(image: Tensor) -> Tensor:
    return functional.pad(image[..., :-1, :-1].float(), (1, 0, 1, 0), mode="replicate").to(torch.uint8)


def _through_jpeg(image: Tensor) -> Tensor:
    channels = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(channels.squeeze(-1) if channels.shape[-1] == 1 else channels).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    with Image.open(buffer) as picture:
        return torch.from_numpy(np.array(picture)).view(*channels.shape).permute(2, 0, 1)


def _brighter(image: Tensor) -> Tensor:
    return (image.float() * _BRIGHTER).clamp(max=255).to(torch.uint8)


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "exact": lambda image: image,
    "mirrored": lambda image: image.flip(-1),
    "shifted by a pixel": _shifted,
    f"JPEG of quality {_JPEG_QUALITY}": _through_jpeg,
    f"{_BRIGHTER} times brighter": _brighter,
}
"""Changes of one uint8 image [channels, height, width], by name."""


def make_copies(images: UInt8[Tensor, "batch channels height width"]) -> UInt8[Tensor, "batch channels height width"]:
    """Return a copy of each image; the kinds take turns."""
    changes = list(KINDS.values())
    return torch.stack([changes[number % len(changes)](image) for number, image in enumerate(images)])
