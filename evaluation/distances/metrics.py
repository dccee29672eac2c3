"""Other measures of the same samples: KID, Inception score, precision and recall, sFID, agreement with the labels.

Those with a library of record are computed by torch-fidelity's functions on our extractor's features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from evaluation.distances.frechet import FeatureStatistics, Moments, frechet_distance
from evaluation.features.extractors import FeatureExtractor
from training.config.errors import UserError
from training.shapes import Float, Float32, Int64

Metric = Literal["kid", "inception_score", "precision_recall", "sfid", "label_agreement"]

NEEDS: dict[Metric, str] = {"inception_score": "logits", "sfid": "spatial", "label_agreement": "logits"}
"""What a measure needs of its extractor beyond features."""

_FEWEST: dict[Metric, int] = {"kid": 2, "inception_score": 10, "precision_recall": 4, "sfid": 2}
"""Images that a measure needs at least: one for each of ten splits, or as many neighbours and itself."""

MAX_KEPT_FEATURES = 10_000
_KID_SUBSETS = 100
_KID_SUBSET_SIZE = 1000
_NUM_NEIGHBOURS = 3


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One number.

    Attributes:
        name: "kid", "precision" and so on.
        value: The number.
        standard_error: Its standard error, or spread over subsets where that is what is customary; None if unknown.
        note: How it was taken, in a few words.
    """

    name: str
    value: float
    standard_error: float | None
    note: str


@dataclass
class MetricInputs:
    """What of the samples the measures need beyond moments, collected while the samples pass by.

    Attributes:
        metrics: The measures that will be asked for.
        features: Of the first 10,000 samples, where a measure compares single images.
        logits: Of all samples, for the Inception score.
        spatial: Moments of the spatial features, for the sFID.
        num_agreeing: Samples that the extractor's classifier names as they were asked for.
        num_labelled: Samples with labels.
    """

    metrics: frozenset[Metric]
    features: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    spatial: Moments | None = None
    num_agreeing: int = 0
    num_labelled: int = 0

    def update(self, outputs: dict[str, Tensor], labels: Int64[Tensor, " batch"] | None) -> None:
        """Takes what is needed of one batch."""
        if self.metrics & {"kid", "precision_recall"}:
            room = MAX_KEPT_FEATURES - sum(len(part) for part in self.features)
            if room > 0:
                self.features.append(outputs["features"][:room].cpu())
        if "inception_score" in self.metrics:
            self.logits.append(outputs["logits"].cpu())
        if "sfid" in self.metrics and "spatial" in outputs:
            self.spatial = self.spatial or Moments(outputs["spatial"].shape[1])
            self.spatial.update(outputs["spatial"])
        if "label_agreement" in self.metrics and labels is not None:
            self.num_agreeing += int((outputs["logits"].argmax(1).cpu() == labels).sum())
            self.num_labelled += len(labels)


def parse_metrics(names: Iterable[str]) -> frozenset[Metric]:
    """The measures of those names.

    Raises:
        UserError: There is no such measure.
    """
    known: tuple[Metric, ...] = get_args(Metric)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"there is no measure {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    return frozenset(name for name in known if name in set(names))


def require_extractor(metrics: frozenset[Metric], extractor: FeatureExtractor) -> None:
    """Refuses measures that can't be taken in an extractor's features.

    Raises:
        UserError: The network lacks what a measure needs, or the measure is defined on Inception's alone.
    """
    lacking = [f"{name} needs {NEEDS[name]}" for name in sorted(metrics & NEEDS.keys()) if NEEDS[name] not in extractor.provides]
    if lacking:
        raise UserError(f"the extractor {extractor.name!r} gives {', '.join(extractor.provides)}; {'; '.join(lacking)}")
    if "inception_score" in metrics and extractor.name == "digits-classifier":
        raise UserError("the Inception score is defined on the Inception network's logits; of digits take label_agreement")
    if "label_agreement" in metrics and extractor.name != "digits-classifier":
        raise UserError(f"label_agreement needs a classifier of the data's own labels, which {extractor.name!r} is not")


def require_count(metrics: frozenset[Metric], num_images: int, images: str) -> None:
    """Refuses measures of too few images.

    Args:
        metrics: The measures that will be asked for, besides the distance.
        num_images: How many images there are.
        images: Which, in words.

    Raises:
        UserError: They are too few.
    """
    needs: list[tuple[str, int]] = [("a Frechet distance", 2), *((name, _FEWEST[name]) for name in sorted(metrics & _FEWEST.keys()))]
    lacking = [f"{name} takes {fewest} at least" for name, fewest in needs if num_images < fewest]
    if lacking:
        raise UserError(f"{num_images:,} {images}: {'; '.join(lacking)}")


def compute_metrics(
    kept: MetricInputs, *, reference_features: Float[Tensor, "images dim"] | None, spatial: FeatureStatistics | None, is_inception: bool
) -> list[MetricValue]:
    """Every measure that was asked for.

    Args:
        kept: Of the samples.
        reference_features: Of up to 10,000 real images, for KID and precision and recall.
        spatial: Reference statistics of the spatial features, for the sFID.
        is_inception: Whether the features are the standard Inception network's; in others a kernel distance is no KID.

    Raises:
        UserError: What a measure needs is not there.
    """
    results: list[MetricValue] = []
    if kept.metrics & {"kid", "precision_recall"}:
        if reference_features is None:
            raise UserError("KID and precision/recall compare single images: they need the real images' features")
        sample = torch.cat(kept.features).float()
        if "kid" in kept.metrics:
            found = kid(sample, reference_features.float())
            results.append(found if is_inception else dataclasses.replace(found, name="kernel_distance"))
        if "precision_recall" in kept.metrics:
            results += precision_recall(sample, reference_features.float())
    if "inception_score" in kept.metrics:
        results.append(inception_score(torch.cat(kept.logits)))
    if "sfid" in kept.metrics:
        if kept.spatial is None or spatial is None:
            raise UserError("the sFID needs an extractor and reference statistics with spatial features; use 'inception'")
        results.append(MetricValue("sfid", frechet_distance(spatial, kept.spatial), None, "Frechet distance of spatial features"))
    if "label_agreement" in kept.metrics:
        if not kept.num_labelled:
            raise UserError("agreement with the labels needs a class-conditional model")
        share = kept.num_agreeing / kept.num_labelled
        error = math.sqrt(share * (1 - share) / kept.num_labelled)
        results.append(MetricValue("label_agreement", share, error, "samples that the classifier names as they were asked for"))
    return results


def kid(sample: Float32[Tensor, "images dim"], reference: Float32[Tensor, "real dim"]) -> MetricValue:
    """Kernel distance: unbiased squared MMD under (x.y / d + 1)^3, mean over random subsets (Binkowski et al. 2018).

    Only in the Inception network's features is it the KID.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(_KID_SUBSET_SIZE, len(sample), len(reference))
    found = kid_features_to_metric(sample, reference, kid_subsets=_KID_SUBSETS, kid_subset_size=size, verbose=False)
    mean, spread = (float(found[f"kernel_inception_distance_{name}"]) for name in ("mean", "std"))
    if size == len(sample) == len(reference):  # every subset is the whole: they differ by rounding alone
        return MetricValue("kid", mean, None, f"of all {size:,}, too few for a spread over subsets")
    return MetricValue("kid", mean, spread, f"mean and spread over {_KID_SUBSETS} subsets of {size:,}")


def precision_recall(sample: Float32[Tensor, "images dim"], reference: Float32[Tensor, "real dim"]) -> list[MetricValue]:
    """Shares of samples near real images and of real images near samples (Kynkaanniemi et al. 2019, k = 3)."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    found = prc_features_to_metric(sample, reference, prc_neighborhood=_NUM_NEIGHBOURS, verbose=False)
    note = f"k = {_NUM_NEIGHBOURS}, {len(sample):,} samples, {len(reference):,} real images"
    return [MetricValue(name, float(found[name]), None, note) for name in ("precision", "recall")]


def inception_score(logits: Float[Tensor, "images classes"]) -> MetricValue:
    """Exponential of the mean KL(p(y|x) || p(y)), over ten splits (Salimans et al. 2016)."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    found = isc_features_to_metric(logits, splits=10)
    mean, spread = (float(found[f"inception_score_{name}"]) for name in ("mean", "std"))
    return MetricValue("inception_score", mean, spread, "mean and spread over 10 splits")


def extract_features(
    images: Iterable[Tensor], extractor: FeatureExtractor, limit: int = MAX_KEPT_FEATURES
) -> Float32[Tensor, "images dim"]:
    """Features of up to `limit` images, for the measures that compare single images."""
    parts: list[Tensor] = []
    for batch in images:
        parts.append(extractor(batch[: limit - sum(len(part) for part in parts)]).cpu())
        if sum(len(part) for part in parts) >= limit:
            break
    return torch.cat(parts)


def metrics_to_dict(measured: Sequence[MetricValue]) -> dict[str, dict[str, float | str | None]]:
    """The numbers as JSON carries them."""
    return {item.name: {"value": item.value, "standard_error": item.standard_error, "note": item.note} for item in measured}
