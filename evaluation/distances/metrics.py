"""Metrics besides the Frechet distance: KID, precision and recall, Inception score, sFID, agreement with the labels.

To add one, write a function of `MetricInputs` and `MetricReference`, and give it a row in `METRICS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from evaluation.distances.frechet import FeatureStatistics, Moments, frechet_distance
from evaluation.features.extractors import FeatureExtractor
from training.config.errors import UserError
from training.shapes import Float, Float32, Int64

MAX_FEATURES = 10_000
"""Samples, and real images, whose features are stored for metrics that compare single images."""
_NUM_SUBSETS, _SUBSET_SIZE = 100, 1000
_NUM_NEIGHBOURS = 3
_NUM_SPLITS = 10


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One number.

    Attributes:
        name: "kid", "precision" and so on.
        standard_error: Its standard error, or its spread over subsets if that is the custom; None if unknown.
        note: The method, in a few words.
    """

    name: str
    value: float
    standard_error: float | None
    note: str


@dataclass
class MetricInputs:
    """Outputs of the extractor for the samples, collected batch by batch as far as the `metrics` of these names need them."""

    metrics: frozenset[str]
    spatial: Moments | None = None
    _features: list[Tensor] = field(default_factory=list)
    _logits: list[Tensor] = field(default_factory=list)
    _labels: list[Tensor] = field(default_factory=list)

    def update(self, outputs: dict[str, Tensor], labels: Int64[Tensor, " batch"] | None) -> None:
        """Add one batch: the extractor's outputs and the labels that the samples were drawn with."""
        needed = {METRICS[name].output for name in self.metrics}
        room = MAX_FEATURES - sum(len(part) for part in self._features)
        if "features" in needed and room > 0:
            self._features.append(outputs["features"][:room].cpu())
        if "logits" in needed:
            self._logits.append(outputs["logits"].cpu())
            self._labels += [] if labels is None else [labels.cpu()]
        if "spatial" in needed and "spatial" in outputs:
            self.spatial = self.spatial or Moments(outputs["spatial"].shape[1])
            self.spatial.update(outputs["spatial"])

    @property
    def features(self) -> Float32[Tensor, "images dim"]:
        """Features of the first `MAX_FEATURES` samples."""
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
        features: Features of up to `MAX_FEATURES` real images; None if no metric needs them.
        spatial: Statistics of the spatial features; None if the reference has none.
        is_inception: True for the standard Inception network's features; in others a kernel distance is no KID.
    """

    features: Float32[Tensor, "images dim"] | None
    spatial: FeatureStatistics | None
    is_inception: bool


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric besides the Frechet distance.

    Attributes:
        output: The output of the extractor that it needs.
        min_images: Smallest number of samples, and of real images if it needs them.
        needs_real_images: True if it compares single samples with single real images.
        refusal: Returns why the metric can't be computed with an extractor, and the remedy; None if it can.
    """

    output: Literal["features", "logits", "spatial"]
    min_images: int
    compute: Callable[[MetricInputs, MetricReference], list[MetricValue]]
    needs_real_images: bool = False
    refusal: Callable[[FeatureExtractor], str | None] = lambda extractor: None


def kernel_distance(sample: Float32[Tensor, "images dim"], reference: Float32[Tensor, "real dim"], name: str = "kid") -> MetricValue:
    """Return the unbiased squared MMD under the kernel (x.y / d + 1)^3, as a mean over random subsets.

    Source: Binkowski et al. 2018; computed by torch-fidelity. In the features of the standard Inception network it is the KID.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(_SUBSET_SIZE, len(sample), len(reference))
    found = kid_features_to_metric(sample, reference, kid_subsets=_NUM_SUBSETS, kid_subset_size=size, verbose=False)
    mean, spread = (float(found[f"kernel_inception_distance_{statistic}"]) for statistic in ("mean", "std"))
    if size == len(sample) == len(reference):  # every subset is the whole set: the values differ only by rounding
        return MetricValue(name, mean, None, f"of all {size:,}, too few for a spread over subsets")
    return MetricValue(name, mean, spread, f"mean and spread over {_NUM_SUBSETS} subsets of {size:,}")


def precision_recall(sample: Float32[Tensor, "images dim"], reference: Float32[Tensor, "real dim"]) -> list[MetricValue]:
    """Return the fraction of samples near real images (precision) and of real images near samples (recall), with k = 3.

    Source: Kynkaanniemi et al. 2019; computed by torch-fidelity.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    found = prc_features_to_metric(sample, reference, prc_neighborhood=_NUM_NEIGHBOURS, verbose=False)
    note = f"k = {_NUM_NEIGHBOURS}, {len(sample):,} samples, {len(reference):,} real images"
    return [MetricValue(name, float(found[name]), None, note) for name in ("precision", "recall")]


def inception_score(logits: Float[Tensor, "images classes"]) -> MetricValue:
    """Return the exponential of the mean KL(p(y|x) || p(y)), over ten splits.

    Source: Salimans et al. 2016; computed by torch-fidelity.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    found = isc_features_to_metric(logits, splits=_NUM_SPLITS)
    mean, spread = (float(found[f"inception_score_{name}"]) for name in ("mean", "std"))
    return MetricValue("inception_score", mean, spread, f"mean and spread over {_NUM_SPLITS} splits")


def _kernel_distance(inputs: MetricInputs, reference: MetricReference) -> list[MetricValue]:
    if reference.features is None:
        raise UserError("the kernel distance compares single images: it needs the real images' features")
    return [kernel_distance(inputs.features, reference.features.float(), "kid" if reference.is_inception else "kernel_distance")]


def _precision_recall(inputs: MetricInputs, reference: MetricReference) -> list[MetricValue]:
    if reference.features is None:
        raise UserError("precision and recall compare single images: they need the real images' features")
    return precision_recall(inputs.features, reference.features.float())


def _spatial_frechet(inputs: MetricInputs, reference: MetricReference) -> list[MetricValue]:
    """Return the sFID: the Frechet distance of Inception's spatial features (Nash et al. 2021)."""
    if inputs.spatial is None or reference.spatial is None:
        raise UserError("the sFID needs an extractor and reference statistics with spatial features; use 'inception'")
    return [MetricValue("sfid", frechet_distance(reference.spatial, inputs.spatial), None, "Frechet distance of spatial features")]


def _label_agreement(inputs: MetricInputs, reference: MetricReference) -> list[MetricValue]:
    """Return the fraction of samples that the classifier assigns to the label that they were drawn with."""
    if inputs.labels is None:
        raise UserError("label_agreement needs a class-conditional model; leave it out")
    agreeing = float((inputs.logits.argmax(1) == inputs.labels).double().mean())
    error = math.sqrt(agreeing * (1 - agreeing) / len(inputs.labels))
    return [MetricValue("label_agreement", agreeing, error, "samples that the classifier assigns to their own label")]


def _refuse_score(extractor: FeatureExtractor) -> str | None:
    if extractor.name != "digits-classifier":
        return None
    return "the Inception score is defined on the Inception network's logits; for digits use label_agreement"


def _refuse_agreement(extractor: FeatureExtractor) -> str | None:
    if extractor.name == "digits-classifier":
        return None
    return f"label_agreement needs a classifier of the data's own labels, and {extractor.name!r} is none; leave it out"


METRICS: dict[str, Metric] = {
    "kid": Metric(output="features", min_images=2, compute=_kernel_distance, needs_real_images=True),
    "precision_recall": Metric(output="features", min_images=_NUM_NEIGHBOURS + 1, compute=_precision_recall, needs_real_images=True),
    "inception_score": Metric(
        output="logits",
        min_images=_NUM_SPLITS,
        compute=lambda inputs, reference: [inception_score(inputs.logits)],
        refusal=_refuse_score,
    ),
    "sfid": Metric(output="spatial", min_images=2, compute=_spatial_frechet),
    "label_agreement": Metric(output="logits", min_images=1, compute=_label_agreement, refusal=_refuse_agreement),
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
    lacking = [f"{name} needs {METRICS[name].output}" for name in sorted(metrics) if METRICS[name].output not in extractor.provides]
    if lacking:
        raise UserError(f"the extractor {extractor.name!r} gives {', '.join(extractor.provides)}; {'; '.join(lacking)}")
    for name in sorted(metrics):
        reason = METRICS[name].refusal(extractor)
        if reason is not None:
            raise UserError(reason)


def require_count(metrics: frozenset[str], num_images: int, images: str) -> None:
    """Check that there are enough images for the Frechet distance and the metrics; the message calls them `images`.

    Raises:
        UserError: There are too few.
    """
    needs = [("a Frechet distance", 2), *((name, METRICS[name].min_images) for name in sorted(metrics))]
    lacking = [f"{name} takes {fewest} at least" for name, fewest in needs if num_images < fewest]
    if lacking:
        raise UserError(f"{num_images:,} {images}: {'; '.join(lacking)}")


def compute_metrics(inputs: MetricInputs, reference: MetricReference) -> list[MetricValue]:
    """Compute the metrics of the inputs.

    Raises:
        UserError: An input of a metric is missing.
    """
    return [value for name, metric in METRICS.items() if name in inputs.metrics for value in metric.compute(inputs, reference)]


def extract_features(images: Iterable[Tensor], extractor: FeatureExtractor) -> Float32[Tensor, "images dim"]:
    """Return the features of the first `MAX_FEATURES` images of the batches, for metrics that compare single images."""
    parts: list[Tensor] = []
    for batch in images:
        parts.append(extractor(batch[: MAX_FEATURES - sum(len(part) for part in parts)]).cpu())
        if sum(len(part) for part in parts) >= MAX_FEATURES:
            break
    return torch.cat(parts)
