"""Nearest training images of a set of images, in pixels or in a network's features.

With x_1, x_2, ... the training images by their distance d to an image s, the distance relative to the scale of its neighbourhood is

    r(s) = d(s, x_1) / mean(d(s, x_1), ..., d(s, x_k)),    k = 50        (Carlini et al. 2023, section 5.1)

It is 0 for an exact copy. Without the denominator, simple images would look like copies, as they are near to many others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from evaluation.features.extractors import FeatureExtractor
from evaluation.records.devices import full_precision
from training.shapes import Float, Int64, UInt8

MAX_NEIGHBOURS = 50
_BATCH_SIZE = 250
_MAX_SIZE = 32
"""Pixels are compared at this height and width at most: larger images are reduced by area."""
_MAX_DISTANCES = 2**23
"""Distances in memory at a time; 32 MiB."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """Vectors in which images are compared. The distance of two images is the smallest over their vectors.

    Attributes:
        name: In a few words.
        of_query: Maps uint8 images to [images, vectors, dim].
        of_training: The same for training images.
    """

    name: str
    of_query: Callable[[Tensor], Tensor]
    of_training: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest training image of each query: its row in the data set, and the relative distance r."""

    rows: Int64[Tensor, " queries"]
    ratios: Float[Tensor, " queries"]


def pixel_space(device: torch.device | str = "cpu") -> Space:
    """Compare pixels after subtracting an image's mean and dividing by its norm, which removes changes of brightness and contrast.

    The inner part of a query, without a border of one pixel, and its mirror image are compared with all nine parts of that size of a
    training image. So a reflection and a shift by one pixel do not count as a difference.
    """

    def of_query(images: Tensor) -> Tensor:
        inner = _reduced(images, device)[..., 1:-1, 1:-1]
        return _normalised(torch.stack([inner, inner.flip(-1)], dim=1))

    def of_training(images: Tensor) -> Tensor:
        pixels = _reduced(images, device)
        height, width = (size - 2 for size in pixels.shape[-2:])
        parts = [pixels[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
        return _normalised(torch.stack(parts, dim=1))

    return Space(name="pixels", of_query=of_query, of_training=of_training)


def feature_space(extractor: FeatureExtractor) -> Space:
    """Compare a network's features of a query and of its mirror image with those of the training images."""
    return Space(
        name=f"features of {extractor.name}",
        of_query=lambda images: torch.stack([extractor(images), extractor(images.flip(-1))], dim=1),
        of_training=lambda images: extractor(images)[:, None],
    )


def nearest_images(
    queries: UInt8[Tensor, "queries channels height width"],
    training: Iterable[tuple[Tensor, Tensor]],
    space: Space,
    *,
    num_training: int,
    own_rows: Int64[Tensor, " queries"] | None = None,
) -> Nearest:
    """Find the nearest training image of each query, in one pass over the training images.

    Args:
        training: Batches of rows and images of the training set.
        space: Where they are compared.
        num_training: Number of training images, 3 at least.
        own_rows: Row of each query that is a training image itself, which is not compared with itself; -1 for any other.
    """
    views = torch.cat([space.of_query(part) for part in torch.split(queries, _BATCH_SIZE)])
    own = torch.full((len(views),), -1) if own_rows is None else own_rows
    own = own.to(views.device)
    count = min(MAX_NEIGHBOURS, num_training - 1)
    best = torch.full((len(views), count), torch.inf, device=views.device)
    rows = torch.zeros((len(views), count), dtype=torch.int64, device=views.device)
    with full_precision(views.device.type):
        for new_rows, images in training:
            keys, new_rows = space.of_training(images), new_rows.to(views.device)
            size = max(1, _MAX_DISTANCES // (views.shape[1] * keys.shape[0] * keys.shape[1]))
            for first in range(0, len(views), size):
                part = slice(first, first + size)
                squared = _squared_distances(views[part], keys)
                squared[own[part, None] == new_rows] = torch.inf
                candidates = torch.cat([best[part], squared], dim=1)
                candidate_rows = torch.cat([rows[part], new_rows.expand(len(squared), -1)], dim=1)
                best[part], chosen = candidates.topk(count, largest=False)
                rows[part] = candidate_rows.gather(1, chosen)
    distances = best.sqrt()
    # An image with k exact duplicates has distances 0 alone, as a blank one has among k blank ones: it counts as a copy.
    ratios = (distances[:, 0] / distances.mean(dim=1)).nan_to_num(0.0)
    return Nearest(rows=rows[:, 0].cpu(), ratios=ratios.cpu())


def _squared_distances(
    views: Float[Tensor, "queries views dim"], keys: Float[Tensor, "training keys dim"]
) -> Float[Tensor, "queries training"]:
    """Return |v|^2 + |k|^2 - 2 v k, smallest over the vectors of a pair of images."""
    products = views.flatten(0, 1) @ keys.flatten(0, 1).T
    squared = views.square().sum(-1).view(-1, 1) + keys.square().sum(-1).view(1, -1) - 2 * products
    return squared.view(*views.shape[:2], *keys.shape[:2]).amin(dim=(1, 3)).clamp(min=0.0)


def _reduced(images: UInt8[Tensor, "batch channels height width"], device: torch.device | str) -> Tensor:
    pixels = images.to(device).float()
    return functional.interpolate(pixels, size=_MAX_SIZE, mode="area") if max(pixels.shape[-2:]) > _MAX_SIZE else pixels


def _normalised(parts: Float[Tensor, "batch parts channels height width"]) -> Float[Tensor, "batch parts dim"]:
    centred = parts.flatten(2) - parts.flatten(2).mean(dim=-1, keepdim=True)
    return functional.normalize(centred, dim=-1)
