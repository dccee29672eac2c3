"""The Frechet distance of a sample, its standard error and the metrics, from one pass over the images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from evaluation.distances.frechet import BlockedMoments, distances_of_halves, frechet_distance, leave_one_out_distances
from evaluation.distances.metrics import MetricInputs, MetricReference, compute_metrics, extract_features
from evaluation.distances.reference_statistics import ReferenceStatistics
from evaluation.features.extractors import ExtractorId, FeatureExtractor
from evaluation.records.intervals import distance_error
from training.shapes import Int64, UInt8


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleScores:
    """The numbers of a sample.

    Attributes:
        standard_error: Standard error of `distance` over the draw of the sample; None if it is too small for one.
        leave_one_out: The distance without each block of samples (`frechet.leave_one_out_distances`).
        of_halves: The distances of halves of the samples (`frechet.distances_of_halves`); empty if they were not asked for.
        metrics: Name -> value, standard_error, interval, method, bias, note (`MetricValue`).
    """

    distance: float
    standard_error: float | None
    leave_one_out: list[float]
    of_halves: list[list[float]]
    metrics: dict[str, Any]


class SampleScorer:
    """Collects the features of the images `0..num_images - 1`, batch by batch, and computes the numbers at the end.

    Images of neighbouring indices have to be a random sample of all; those of a file get such indices from `npz.stream_with_positions`.
    """

    def __init__(self, extractor: FeatureExtractor, num_images: int, metrics: frozenset[str] = frozenset()) -> None:
        self._extractor = extractor
        self._blocks = BlockedMoments(extractor.dim, num_images)
        self._inputs = MetricInputs(metrics, blocks=self._blocks)

    def update(
        self,
        indices: Int64[Tensor, " batch"],
        images: UInt8[Tensor, "batch channels height width"],
        labels: Int64[Tensor, " batch"] | None = None,
    ) -> Tensor:
        """Add a batch, and return its features."""
        outputs = self._extractor.outputs(images)
        self._blocks.update(indices, outputs["features"])
        self._inputs.update(indices, outputs, labels)
        return outputs["features"]

    def scores(
        self, reference: ReferenceStatistics, real_images: Iterable[tuple[Tensor, Tensor]] | None = None, *, halves: bool = False
    ) -> SampleScores:
        """Compute the numbers.

        Args:
            reference: The real images' statistics.
            real_images: Batches of indices and images, as `extract_features` takes them, for the metrics that compare single images
                (`metrics.need_real_images`).
            halves: Compute `of_halves` too, twelve more distances: of 2,048 features 10 s on one core.

        Raises:
            UserError: An input of a metric is missing, or it has too few real images.
        """
        leave_one_out = leave_one_out_distances(reference.features, self._blocks)
        of_halves = distances_of_halves(reference.features, self._blocks) if halves else []
        error = distance_error(leave_one_out, of_halves)
        real = MetricReference(
            extractor=ExtractorId(self._extractor.name, self._extractor.sha256),
            features=None if real_images is None else extract_features(real_images, self._extractor),
            statistics=reference.features,
            spatial=reference.spatial,
        )
        return SampleScores(
            distance=frechet_distance(reference.features, self._blocks.total()),
            standard_error=error if math.isfinite(error) else None,
            leave_one_out=leave_one_out,
            of_halves=of_halves,
            metrics={item.name: item.to_dict() for item in compute_metrics(self._inputs, real)},
        )
