"""The interface of a metric besides the Frechet distance, and the inputs that the metrics share.

To add a metric, write a module in this folder that ends in a `Metric`, and put it into `evaluation.distances.metrics.METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from evaluation.distances.frechet import FeatureStatistics, Moments
from evaluation.features.extractors import FeatureExtractor
from training.shapes import Float, Float32, Int64

MAX_FEATURES = 10_000
"""Samples, and real images, whose features are stored for metrics that compare single images."""


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One number.

    Attributes:
        name: "kid", "precision" and so on.
        value: The number.
        standard_error: Its standard error, or its spread over subsets if that is the custom; None if unknown.
        note: The method, in a few words.
    """

    name: str
    value: float
    standard_error: float | None
    note: str


@dataclass
class MetricInputs:
    """Outputs of the extractor for the samples, collected batch by batch as far as the metrics need them.

    Attributes:
        metrics: Names of the metrics.
        outputs: Outputs of the extractor that the metrics need.
    """

    metrics: frozenset[str]
    outputs: frozenset[str]
    _features: list[Tensor] = field(default_factory=list)
    _logits: list[Tensor] = field(default_factory=list)
    _labels: list[Tensor] = field(default_factory=list)
    spatial: Moments | None = None

    def update(self, outputs: dict[str, Tensor], labels: Int64[Tensor, " batch"] | None) -> None:
        """Add one batch: the extractor's outputs and the labels that the samples were drawn with."""
        if "features" in self.outputs:
            room = MAX_FEATURES - sum(len(part) for part in self._features)
            if room > 0:
                self._features.append(outputs["features"][:room].cpu())
        if "logits" in self.outputs:
            self._logits.append(outputs["logits"].cpu())
            self._labels += [] if labels is None else [labels.cpu()]
        if "spatial" in self.outputs and "spatial" in outputs:
            self.spatial = self.spatial or Moments(outputs["spatial"].shape[1])
            self.spatial.update(outputs["spatial"])

    @property
    def features(self) -> Float32[Tensor, "images dim"]:
        """Features of the first 10,000 samples."""
        return torch.cat(self._features).float()

    @property
    def logits(self) -> Float[Tensor, "images classes"]:
        """Logits of all samples."""
        return torch.cat(self._logits)

    @property
    def labels(self) -> Int64[Tensor, " images"] | None:
        """Labels of all samples; None if they have none."""
        return torch.cat(self._labels) if self._labels else None


@dataclass(frozen=True, kw_only=True)
class MetricReference:
    """The real images' side of a comparison.

    Attributes:
        features: Features of up to 10,000 real images; None if no metric needs them.
        spatial: Statistics of the spatial features; None if the reference has none.
        is_inception: True for the standard Inception network's features, in which a kernel distance is a KID.
    """

    features: Float32[Tensor, "images dim"] | None
    spatial: FeatureStatistics | None
    is_inception: bool


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric besides the Frechet distance.

    Attributes:
        name: As a user writes it.
        output: The output of the extractor that it needs.
        min_images: Smallest number of samples, and of real images if it needs them.
        compute: Computes its numbers.
        needs_real_images: True if it compares single samples with single real images.
        refusal: Returns why the metric can't be computed with an extractor, and the remedy; None if it can.
    """

    name: str
    output: Literal["features", "logits", "spatial"]
    min_images: int
    compute: Callable[[MetricInputs, MetricReference], Sequence[MetricValue]]
    needs_real_images: bool = False
    refusal: Callable[[FeatureExtractor], str | None] = lambda extractor: None
