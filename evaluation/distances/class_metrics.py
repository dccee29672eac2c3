"""Metrics of a classifier's logits: the Inception score, and the agreement of samples with their labels."""

from __future__ import annotations

import math

from torch import Tensor

from evaluation.distances.metric import Metric, MetricInputs, MetricReference, MetricValue
from evaluation.features.extractors import FeatureExtractor
from training.config.errors import UserError
from training.shapes import Float

_NUM_SPLITS = 10


def inception_score(logits: Float[Tensor, "images classes"]) -> MetricValue:
    """Return the exponential of the mean KL(p(y|x) || p(y)), over ten splits.

    Source: Salimans et al. 2016; computed by torch-fidelity.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    found = isc_features_to_metric(logits, splits=_NUM_SPLITS)
    mean, spread = (float(found[f"inception_score_{name}"]) for name in ("mean", "std"))
    return MetricValue("inception_score", mean, spread, f"mean and spread over {_NUM_SPLITS} splits")


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


INCEPTION_SCORE = Metric(
    name="inception_score",
    output="logits",
    min_images=_NUM_SPLITS,
    compute=lambda inputs, reference: [inception_score(inputs.logits)],
    refusal=_refuse_score,
)
LABEL_AGREEMENT = Metric(name="label_agreement", output="logits", min_images=1, compute=_label_agreement, refusal=_refuse_agreement)
