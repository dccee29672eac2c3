"""Precision and recall of samples, from nearest neighbours."""

from __future__ import annotations

from torch import Tensor

from evaluation.distances.metric import Metric, MetricInputs, MetricReference, MetricValue
from training.config.errors import UserError
from training.shapes import Float32

_NUM_NEIGHBOURS = 3


def precision_recall(sample: Float32[Tensor, "images dim"], reference: Float32[Tensor, "real dim"]) -> list[MetricValue]:
    """Return the fraction of samples near real images (precision) and of real images near samples (recall), with k = 3.

    Source: Kynkaanniemi et al. 2019; computed by torch-fidelity.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    found = prc_features_to_metric(sample, reference, prc_neighborhood=_NUM_NEIGHBOURS, verbose=False)
    note = f"k = {_NUM_NEIGHBOURS}, {len(sample):,} samples, {len(reference):,} real images"
    return [MetricValue(name, float(found[name]), None, note) for name in ("precision", "recall")]


def _compute(inputs: MetricInputs, reference: MetricReference) -> list[MetricValue]:
    if reference.features is None:
        raise UserError("precision and recall compare single images: they need the real images' features")
    return precision_recall(inputs.features, reference.features.float())


PRECISION_RECALL = Metric(
    name="precision_recall", output="features", min_images=_NUM_NEIGHBOURS + 1, compute=_compute, needs_real_images=True
)
