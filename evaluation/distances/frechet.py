"""The Frechet distance between two sets of images, from moments that merge.

For Gaussians N(m_1, S_1) and N(m_2, S_2) fitted to the features of two sets of images,

    d^2 = |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1^(1/2) S_2 S_1^(1/2))^(1/2)        (Heusel et al. 2017, equation 6)

With any S_1 = L L^T the eigenvalues under the root are those of L^T S_2 L, which is symmetric and non-negative by
construction. The reference's L is computed once and kept, and it is triangular, so that its two products cost a quarter
of those with a full root. Everything here is float64: in float32 the distance of a thousand images is wrong by 0.1.
Only with the features of the standard Inception network is this number an FID.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from training.config.errors import UserError
from training.shapes import Float, Float64

_BLOCK = 256
_ROUNDING = 4 * torch.finfo(torch.float64).eps
"""Eigenvalues below so much of the largest can't be told from zero."""


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and covariance of a set of feature vectors, as the distance needs them.

    Attributes:
        mean: The mean feature.
        covariance: The unbiased covariance (divided by n - 1).
        num_images: How many images were seen; None where a foreign file does not say. It bounds the covariance's rank.
        stored_factor: The covariance's triangular factor, where a file keeps it; `factor` computes it otherwise.
    """

    mean: Float64[Tensor, " dim"]
    covariance: Float64[Tensor, "dim dim"]
    num_images: int | None = None
    stored_factor: Float64[Tensor, "dim dim"] | None = None
    _cache: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return int(self.mean.shape[0])

    @property
    def max_rank(self) -> int:
        """Largest possible rank of the covariance: n images span n - 1 directions around their mean.

        Where n is unknown, the directions that rise above the covariance's own rounding.
        """
        if self.num_images is not None:
            return min(self.dim, max(self.num_images - 1, 0))
        if "values" not in self._cache:
            self._cache["values"] = torch.linalg.eigvalsh(self.covariance)
        values = self._cache["values"]
        return int((values > _ROUNDING * values[-1]).sum())

    @property
    def factor(self) -> Float64[Tensor, "dim dim"]:
        """The lower triangular L with L L^T = S, computed once."""
        if self.stored_factor is not None:
            return self.stored_factor
        if "factor" not in self._cache:
            self._cache["factor"] = triangular_factor(self.covariance, max_rank=self.max_rank)
        return self._cache["factor"]


class Moments:
    """Count, sum and sum of outer products of feature vectors in float64: the whole state behind a mean and covariance.

    Merging is addition, so that the moments of shards, of workers and of resumed runs are those of all images at once,
    and no feature matrix is kept. 2,048 dimensions take 33.6 MB.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.num_images = 0
        self.total = torch.zeros(dim, dtype=torch.float64, device=device)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return int(self.total.shape[0])

    def update(self, features: Float[Tensor, "batch dim"]) -> None:
        """Adds the features of a batch of images.

        Raises:
            UserError: The features have another dimension, or are not finite.
        """
        if features.shape[1] != self.dim:
            raise UserError(f"features of {features.shape[1]} dimensions do not fit moments of {self.dim}")
        rows = features.to(device=self.total.device, dtype=torch.float64)
        if not bool(torch.isfinite(rows).all()):
            raise UserError("features are not finite: the images, or the extractor's weights, are damaged")
        self.num_images += rows.shape[0]
        self.total += rows.sum(dim=0)
        self.outer.addmm_(rows.T, rows)

    def merge(self, other: Moments) -> None:
        """Adds the images that another accumulator has seen.

        Raises:
            UserError: The other's features have another dimension.
        """
        if other.dim != self.dim:
            raise UserError(f"moments of {other.dim} and {self.dim} dimensions do not merge")
        self.num_images += other.num_images
        self.total += other.total.to(self.total.device)
        self.outer += other.outer.to(self.outer.device)

    def mean(self) -> Float64[Tensor, " dim"]:
        """The mean feature.

        Raises:
            UserError: No image was seen.
        """
        if self.num_images < 1:
            raise UserError("no image was seen, so there is no mean")
        return self.total / self.num_images

    def covariance(self) -> Float64[Tensor, "dim dim"]:
        """The unbiased covariance (sum x x^T - n m m^T) / (n - 1).

        Raises:
            UserError: Fewer than two images were seen.
        """
        if self.num_images < 2:
            raise UserError(f"a covariance needs at least 2 images, got {self.num_images}")
        mean = self.mean()
        covariance = (self.outer - self.num_images * torch.outer(mean, mean)) / (self.num_images - 1)
        return (covariance + covariance.T) / 2

    def statistics(self) -> FeatureStatistics:
        """Mean and covariance, on the CPU."""
        return FeatureStatistics(mean=self.mean().cpu(), covariance=self.covariance().cpu(), num_images=self.num_images)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, to be stored and merged later."""
        return {"num_images": self.num_images, "total": self.total.cpu(), "outer": self.outer.cpu()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Moments:
        """Moments as `state_dict` gave them."""
        moments = cls(len(state["total"]))
        moments.num_images = int(state["num_images"])
        moments.total = state["total"].to(torch.float64).clone()
        moments.outer = state["outer"].to(torch.float64).clone()
        return moments


class BlockedMoments:
    """Moments of a sample in equal blocks, by image index, from which the distance's standard error follows.

    Blocks are runs of neighbouring indices, so that they are the same for any number of workers, and each holds all
    classes where labels go in turn.
    """

    def __init__(self, dim: int, num_images: int, num_blocks: int = 10, device: torch.device | str = "cpu") -> None:
        """Empty blocks for the images 0..num_images - 1."""
        self.num_images = num_images
        self.blocks = tuple(Moments(dim, device) for _ in range(num_blocks))

    def update(self, indices: Tensor, features: Float[Tensor, "batch dim"]) -> None:
        """Adds the features of the images of those indices."""
        block_of = indices.to(features.device) * len(self.blocks) // self.num_images
        for number in torch.unique(block_of).tolist():
            self.blocks[number].update(features[block_of == number])

    def merge(self, other: BlockedMoments) -> None:
        """Adds the images that another accumulator for the same images has seen."""
        if (other.num_images, len(other.blocks)) != (self.num_images, len(self.blocks)):
            raise UserError(f"{len(other.blocks)} blocks of {other.num_images} images do not merge into other blocks")
        for mine, theirs in zip(self.blocks, other.blocks, strict=True):
            mine.merge(theirs)

    def total(self) -> Moments:
        """The moments of all images."""
        return merged(self.blocks)


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of all images of the parts, added in their order.

    Raises:
        UserError: There is no part, or the parts' dimensions differ.
    """
    if not parts:
        raise UserError("there are no moments to merge")
    whole = Moments(parts[0].dim, parts[0].total.device)
    for part in parts:
        whole.merge(part)
    return whole


def triangular_factor(matrix: Float64[Tensor, "dim dim"], max_rank: int | None = None) -> Float64[Tensor, "dim dim"]:
    """The lower triangular L with L L^T = S, for a symmetric positive semi-definite S, singular or not.

    From S = B B^T with B = V diag(w)^(1/2) by eigenvalues, and B^T = Q U: then S = U^T U, and L = U^T.

    Args:
        matrix: S.
        max_rank: A bound on its rank that is known from elsewhere. Directions beyond it carry rounding of the size
            eps * |S|, whose root (1e-8) would otherwise enter the distance.
    """
    values, vectors = torch.linalg.eigh(matrix)
    half = vectors * _without_rounding(values, max_rank).sqrt()
    factor: Tensor = torch.linalg.qr(half.T, mode="r").R.T.contiguous()
    return factor


def frechet_distance(reference: FeatureStatistics | Moments, sample: FeatureStatistics | Moments) -> float:
    """The Frechet distance d^2 between the two fitted Gaussians (see the module's first lines).

    Args:
        reference: Its factor is computed once and kept, so that scoring many samples against it costs one
            `eigvalsh` each.
        sample: The other set. The distance is symmetric; only the cost is not.

    Raises:
        UserError: The dimensions differ, a set has fewer than two images, or a statistic is not finite.
    """
    first = reference.statistics() if isinstance(reference, Moments) else reference
    second = sample.statistics() if isinstance(sample, Moments) else sample
    if first.dim != second.dim:
        raise UserError(f"statistics of {first.dim} and {second.dim} dimensions are features of different extractors")
    if not all(bool(torch.isfinite(t.sum())) for t in (first.mean, first.covariance, second.mean, second.covariance)):
        raise UserError("the statistics are not finite")
    difference = first.mean - second.mean
    values = torch.linalg.eigvalsh(_congruence(first.factor, second.covariance))
    cross = _without_rounding(values, min(first.max_rank, second.max_rank)).sqrt().sum()
    distance = difference @ difference + first.covariance.trace() + second.covariance.trace() - 2 * cross
    return max(float(distance), 0.0)  # of equal sets, rounding alone is left, of either sign


def standard_error(reference: FeatureStatistics, blocks: BlockedMoments) -> float:
    """Standard error of the distance over the draw of the sample, by the delete-a-group jackknife.

    It says how far another draw of as many samples would fall, not how far the distance of infinitely many samples is.

    Returns:
        The standard error, or NaN where fewer than two blocks hold images or a rest has fewer than two images.
    """
    return jackknife_error(without_each_block(reference, blocks))


def without_each_block(reference: FeatureStatistics, blocks: BlockedMoments) -> list[float]:
    """The distance without the first block, without the second, and so on: what the jackknife needs.

    Of two models on the same noise, the differences of these say how sure the difference of the distances is.

    Returns:
        The distances, or nothing where fewer than two blocks hold images or a rest has fewer than two images.
    """
    filled = [block for block in blocks.blocks if block.num_images]
    if len(filled) < 2 or sum(block.num_images for block in filled) - max(block.num_images for block in filled) < 2:
        return []
    return [frechet_distance(reference, merged(filled[:b] + filled[b + 1 :])) for b in range(len(filled))]


def jackknife_error(without: Sequence[float]) -> float:
    """With d_(b) the statistic without block b, of B blocks: SE^2 = (B - 1)/B * sum_b (d_(b) - mean d)^2.

    Returns:
        The standard error, or NaN for fewer than two values.
    """
    if len(without) < 2:
        return math.nan
    values = torch.tensor(without, dtype=torch.float64)
    spread = (values - values.mean()).square().sum()
    return float(((len(values) - 1) / len(values) * spread).sqrt())


def _congruence(factor: Float64[Tensor, "dim dim"], matrix: Float64[Tensor, "dim dim"]) -> Float64[Tensor, "dim dim"]:
    """The lower triangle of L^T S L, which is all that `eigvalsh` reads, for a lower triangular L.

    Block by block, leaving out what is zero or not read: about dim^3 operations rather than 4 dim^3.
    """
    dim = len(factor)
    right = torch.zeros_like(matrix)
    for start in range(0, dim, _BLOCK):
        columns = slice(start, start + _BLOCK)
        right[start:, columns] = matrix[start:, start:] @ factor[start:, columns]
    product = torch.zeros_like(matrix)
    for start in range(0, dim, _BLOCK):
        rows = slice(start, start + _BLOCK)
        product[rows, : start + _BLOCK] = factor[start:, rows].T @ right[start:, : start + _BLOCK]
    return product


def _without_rounding(values: Float64[Tensor, " dim"], max_rank: int | None) -> Float64[Tensor, " dim"]:
    """Ascending eigenvalues of a positive semi-definite matrix with what can only be rounding set to zero."""
    values = values.clamp(min=0.0)
    if max_rank is not None and max_rank < len(values):
        values[: len(values) - max_rank] = 0.0
    return values
