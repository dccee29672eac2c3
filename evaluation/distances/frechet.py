"""The Frechet distance between two sets of images, from moments that can be merged.

For Gaussians N(m_1, S_1) and N(m_2, S_2) fitted to the features of two sets of images,

    d^2 = |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1^(1/2) S_2 S_1^(1/2))^(1/2)        (Heusel et al. 2017, equation 6)

With any S_1 = L L^T the eigenvalues under the root are those of L^T S_2 L, which is symmetric and non-negative by
construction. The reference's L is computed once. It is triangular, so its two products cost a quarter of those with a full
root. Everything here is float64: in float32 the distance of a thousand images is wrong by 0.1. The number is an FID only in
the features of the standard Inception network.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.records.intervals import HALVES
from evaluation.records.not_finite import NotFiniteError
from training.config.errors import UserError
from training.shapes import Float, Float64

_BLOCK = 256
_ROUNDING = 4 * torch.finfo(torch.float64).eps
"""Eigenvalues smaller than this fraction of the largest are indistinguishable from zero."""


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and covariance of a set of feature vectors.

    Attributes:
        covariance: The unbiased covariance (divided by n - 1).
        num_images: Number of images n; None if a file from elsewhere does not record it. It bounds the covariance's rank.
        stored_factor: The covariance's triangular factor, if a file contains it; `factor` computes it otherwise.
    """

    mean: Float64[Tensor, " dim"]
    covariance: Float64[Tensor, "dim dim"]
    num_images: int | None = None
    stored_factor: Float64[Tensor, "dim dim"] | None = None

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return int(self.mean.shape[0])

    @functools.cached_property
    def max_rank(self) -> int:
        """Largest possible rank of the covariance: n images span n - 1 directions around their mean.

        If n is unknown, the number of eigenvalues above the covariance's own rounding.
        """
        if self.num_images is not None:
            return min(self.dim, max(self.num_images - 1, 0))
        values = torch.linalg.eigvalsh(self.covariance)
        return int((values > _ROUNDING * values[-1]).sum())

    @functools.cached_property
    def factor(self) -> Float64[Tensor, "dim dim"]:
        """The lower triangular L with L L^T = S, computed once."""
        if self.stored_factor is not None:
            return self.stored_factor
        return triangular_factor(self.covariance, max_rank=self.max_rank)


class Moments:
    """Count, sum and sum of outer products of feature vectors in float64 on the CPU, which determine the mean and the covariance.

    Merging is addition: the merged moments of shards or workers are those of all images, and no feature matrix is stored.
    2,048 dimensions take 33.6 MB.
    """

    def __init__(self, dim: int) -> None:
        self.num_images = 0
        self.total = torch.zeros(dim, dtype=torch.float64)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64)

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return int(self.total.shape[0])

    def update(self, features: Float[Tensor, "batch dim"]) -> None:
        """Add the features of a batch of images.

        Raises:
            UserError: They have another dimension.
            NotFiniteError: A number is not finite.
        """
        if features.shape[1] != self.dim:
            raise UserError(f"features of {features.shape[1]} dimensions do not fit moments of {self.dim}")
        rows = features.to(device="cpu", dtype=torch.float64)
        num_lost = int((~rows.isfinite()).any(1).sum())
        if num_lost:
            raise NotFiniteError(
                f"the features of {num_lost} of {len(rows)} images are not finite: samples overflow them, so take another checkpoint; or "
                "the extractor's weights are damaged, so fetch them again"
            )
        self.num_images += rows.shape[0]
        self.total += rows.sum(dim=0)
        self.outer.addmm_(rows.T, rows)

    def mean(self) -> Float64[Tensor, " dim"]:
        """Return the mean feature; raise UserError if there are no images."""
        if self.num_images < 1:
            raise UserError("a mean needs at least 1 image, got none")
        return self.total / self.num_images

    def covariance(self) -> Float64[Tensor, "dim dim"]:
        """Return the unbiased covariance (sum x x^T - n m m^T) / (n - 1) of two images or more."""
        if self.num_images < 2:
            raise UserError(f"a covariance needs at least 2 images, got {self.num_images}")
        mean = self.mean()
        covariance = (self.outer - self.num_images * torch.outer(mean, mean)) / (self.num_images - 1)
        return (covariance + covariance.T) / 2

    def statistics(self) -> FeatureStatistics:
        """Return mean and covariance."""
        return FeatureStatistics(mean=self.mean(), covariance=self.covariance(), num_images=self.num_images)


class BlockedMoments:
    """Moments of a sample in equal blocks of image indices, which give the distance's standard error.

    Blocks are runs of neighbouring indices, so they are the same for any number of workers, and balanced labels are
    balanced in each block. A block has to be a random sample of all images: the indices of a file's images, which may be sorted by
    class, are random positions (`npz.stream_with_positions`).
    """

    def __init__(self, dim: int, num_images: int, num_blocks: int = 10) -> None:
        """Make empty blocks for the images 0..num_images - 1."""
        self.num_images = num_images
        self.blocks = tuple(Moments(dim) for _ in range(num_blocks))

    def update(self, indices: Tensor, features: Float[Tensor, "batch dim"]) -> None:
        """Add the features of the images of those indices."""
        block_of = indices.to(features.device) * len(self.blocks) // self.num_images
        for number in torch.unique(block_of).tolist():
            self.blocks[number].update(features[block_of == number])

    def total(self) -> Moments:
        """Return the moments of all images."""
        return merged(self.blocks)


def merged(parts: Sequence[Moments]) -> Moments:
    """Return the moments of all images of the parts, added in their order; refuse no part, or parts of other dimensions."""
    if not parts:
        raise UserError("there are no moments to merge")
    whole = Moments(parts[0].dim)
    for part in parts:
        if part.dim != whole.dim:
            raise UserError(f"moments of {whole.dim} and {part.dim} dimensions do not merge")
        whole.num_images += part.num_images
        whole.total += part.total
        whole.outer += part.outer
    return whole


def triangular_factor(matrix: Float64[Tensor, "dim dim"], max_rank: int | None = None) -> Float64[Tensor, "dim dim"]:
    """Return the lower triangular L with L L^T = S, for a symmetric positive semi-definite S, which may be singular.

    From S = B B^T with B = V diag(w)^(1/2) by eigenvalues, and B^T = Q U: then S = U^T U, and L = U^T.

    Args:
        matrix: S.
        max_rank: A known bound on its rank. Eigenvalues beyond it are rounding errors of size eps * |S|; their square
            root (1e-8) would otherwise enter the distance.
    """
    values, vectors = torch.linalg.eigh(matrix)
    half = vectors * _without_rounding(values, max_rank).sqrt()
    factor: Tensor = torch.linalg.qr(half.T, mode="r").R.T.contiguous()
    return factor


def frechet_distance(reference: FeatureStatistics | Moments, sample: FeatureStatistics | Moments) -> float:
    """Return the Frechet distance d^2 between the two fitted Gaussians (equation in the module's docstring).

    Args:
        reference: One set. Its factor is computed once, so scoring many samples against it costs one `eigvalsh` each.
        sample: The other set. The distance is symmetric; the cost is not.

    Raises:
        UserError: The dimensions differ, a set has fewer than two images, or a statistic is not finite.
    """
    first = reference.statistics() if isinstance(reference, Moments) else reference
    second = sample.statistics() if isinstance(sample, Moments) else sample
    if first.dim != second.dim:
        raise UserError(
            f"statistics of {first.dim} and {second.dim} dimensions are features of different extractors; compute both with one"
        )
    if not all(bool(torch.isfinite(t.sum())) for t in (first.mean, first.covariance, second.mean, second.covariance)):
        raise UserError("the statistics are not finite; compute them again")
    difference = first.mean - second.mean
    values = torch.linalg.eigvalsh(_congruence(first.factor, second.covariance))
    cross = _without_rounding(values, min(first.max_rank, second.max_rank)).sqrt().sum()
    distance = difference @ difference + first.covariance.trace() + second.covariance.trace() - 2 * cross
    return max(float(distance), 0.0)  # for equal sets only rounding is left, of either sign


def leave_one_out_distances(reference: FeatureStatistics, blocks: BlockedMoments) -> list[float]:
    """Return the distance without the first block, without the second, and so on, for `records.intervals.jackknife_error`.

    The list is empty if fewer than two blocks contain images, or a remainder has fewer than two images.

    For two models on the same noise, the differences of these give the standard error of the difference of the distances.
    """
    filled = [block for block in blocks.blocks if block.num_images]
    if len(filled) < 2 or sum(block.num_images for block in filled) - max(block.num_images for block in filled) < 2:
        return []
    return [frechet_distance(reference, merged(filled[:b] + filled[b + 1 :])) for b in range(len(filled))]


def distances_of_halves(reference: FeatureStatistics, blocks: BlockedMoments) -> list[list[float]]:
    """Return the distances of both halves of the samples, for each of the six splits of ten blocks (`intervals.HALVES`).

    The list is empty for another number of blocks, or if a block has no image.
    """
    if len(blocks.blocks) != len(HALVES[0][0]) or min(block.num_images for block in blocks.blocks) < 1:
        return []
    return [[frechet_distance(reference, merged(list(itertools.compress(blocks.blocks, half)))) for half in pair] for pair in HALVES]


def _congruence(factor: Float64[Tensor, "dim dim"], matrix: Float64[Tensor, "dim dim"]) -> Float64[Tensor, "dim dim"]:
    """Return the lower triangle of L^T S L for a lower triangular L; `eigvalsh` reads no more.

    The product is computed in blocks, without those that are zero or not read: about dim^3 operations rather than 4 dim^3.
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
    """Set eigenvalues (ascending) of a positive semi-definite matrix that can only be rounding errors to zero."""
    values = values.clamp(min=0.0)
    if max_rank is not None and max_rank < len(values):
        values[: len(values) - max_rank] = 0.0
    return values
