"""The metrics by name: KID, precision and recall, Inception score, sFID, agreement with the labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from evaluation.distances.class_metrics import INCEPTION_SCORE, LABEL_AGREEMENT
from evaluation.distances.frechet import FeatureStatistics
from evaluation.distances.kernel_distance import KERNEL_DISTANCE
from evaluation.distances.metric import MAX_FEATURES, Metric, MetricInputs, MetricReference, MetricValue
from evaluation.distances.precision_recall import PRECISION_RECALL
from evaluation.distances.spatial_frechet import SPATIAL_FRECHET
from evaluation.features.extractors import FeatureExtractor
from training.config.errors import UserError
from training.shapes import Float, Float32

METRICS: dict[str, Metric] = {
    metric.name: metric for metric in (KERNEL_DISTANCE, PRECISION_RECALL, INCEPTION_SCORE, SPATIAL_FRECHET, LABEL_AGREEMENT)
}


def parse_metrics(names: Iterable[str]) -> frozenset[str]:
    """Check names of metrics.

    Raises:
        UserError: There is no such metric.
    """
    names = list(names)
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UserError(f"there is no metric {', '.join(map(repr, unknown))}; use some of {', '.join(METRICS)}")
    return frozenset(names)


def need_real_images(metrics: Iterable[str]) -> bool:
    """Return True if one of the metrics compares single samples with single real images."""
    return any(METRICS[name].needs_real_images for name in metrics)


def require_extractor(metrics: frozenset[str], extractor: FeatureExtractor) -> None:
    """Check that the metrics can be computed from an extractor's outputs.

    Raises:
        UserError: The network lacks an output that a metric needs, or the metric is not defined on this network.
    """
    chosen = [METRICS[name] for name in sorted(metrics)]
    lacking = [f"{metric.name} needs {metric.output}" for metric in chosen if metric.output not in extractor.provides]
    if lacking:
        raise UserError(f"the extractor {extractor.name!r} gives {', '.join(extractor.provides)}; {'; '.join(lacking)}")
    for metric in chosen:
        reason = metric.refusal(extractor)
        if reason is not None:
            raise UserError(reason)


def require_count(metrics: frozenset[str], num_images: int, images: str) -> None:
    """Check that there are enough images for the Frechet distance and the metrics.

    Args:
        metrics: Names of the metrics.
        num_images: Number of images.
        images: What they are, for the message: "samples".

    Raises:
        UserError: There are too few.
    """
    needs = [("a Frechet distance", 2), *((name, METRICS[name].min_images) for name in sorted(metrics))]
    lacking = [f"{name} takes {fewest} at least" for name, fewest in needs if num_images < fewest]
    if lacking:
        raise UserError(f"{num_images:,} {images}: {'; '.join(lacking)}")


def metric_inputs(metrics: frozenset[str]) -> MetricInputs:
    """Return the empty inputs of the metrics."""
    return MetricInputs(metrics=metrics, outputs=frozenset(METRICS[name].output for name in metrics))


def compute_metrics(
    inputs: MetricInputs, *, reference_features: Float[Tensor, "images dim"] | None, spatial: FeatureStatistics | None, is_inception: bool
) -> list[MetricValue]:
    """Compute the metrics.

    Args:
        inputs: The samples' side.
        reference_features: Features of up to 10,000 real images; needed if `need_real_images`.
        spatial: Reference statistics of the spatial features, for the sFID.
        is_inception: True for the standard Inception network's features; in others a kernel distance is no KID.

    Raises:
        UserError: An input of a metric is missing.
    """
    reference = MetricReference(features=reference_features, spatial=spatial, is_inception=is_inception)
    return [value for name, metric in METRICS.items() if name in inputs.metrics for value in metric.compute(inputs, reference)]


def extract_features(images: Iterable[Tensor], extractor: FeatureExtractor) -> Float32[Tensor, "images dim"]:
    """Return the features of the first `MAX_FEATURES` images of the batches, for metrics that compare single images."""
    parts: list[Tensor] = []
    for batch in images:
        parts.append(extractor(batch[: MAX_FEATURES - sum(len(part) for part in parts)]).cpu())
        if sum(len(part) for part in parts) >= MAX_FEATURES:
            break
    return torch.cat(parts)


def metrics_to_dict(values: Sequence[MetricValue]) -> dict[str, dict[str, float | str | None]]:
    """Return the numbers by name, for JSON."""
    return {item.name: {"value": item.value, "standard_error": item.standard_error, "note": item.note} for item in values}
