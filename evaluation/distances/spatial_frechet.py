"""The sFID: the Frechet distance of Inception's spatial features (Nash et al. 2021)."""

from __future__ import annotations

from evaluation.distances.frechet import frechet_distance
from evaluation.distances.metric import Metric, MetricInputs, MetricReference, MetricValue
from training.config.errors import UserError


def _compute(inputs: MetricInputs, reference: MetricReference) -> list[MetricValue]:
    if inputs.spatial is None or reference.spatial is None:
        raise UserError("the sFID needs an extractor and reference statistics with spatial features; use 'inception'")
    return [MetricValue("sfid", frechet_distance(reference.spatial, inputs.spatial), None, "Frechet distance of spatial features")]


SPATIAL_FRECHET = Metric(name="sfid", output="spatial", min_images=2, compute=_compute)
