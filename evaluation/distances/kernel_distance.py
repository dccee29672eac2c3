"""The kernel distance; in the features of the standard Inception network, the KID."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from evaluation.distances.metric import Metric, MetricInputs, MetricReference, MetricValue
from training.config.errors import UserError
from training.shapes import Float32

_NUM_SUBSETS = 100
_SUBSET_SIZE = 1000


def kernel_distance(sample: Float32[Tensor, "images dim"], reference: Float32[Tensor, "real dim"]) -> MetricValue:
    """Return the unbiased squared MMD under the kernel (x.y / d + 1)^3, as a mean over random subsets.

    Source: Binkowski et al. 2018; computed by torch-fidelity.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(_SUBSET_SIZE, len(sample), len(reference))
    found = kid_features_to_metric(sample, reference, kid_subsets=_NUM_SUBSETS, kid_subset_size=size, verbose=False)
    mean, spread = (float(found[f"kernel_inception_distance_{name}"]) for name in ("mean", "std"))
    if size == len(sample) == len(reference):  # every subset is the whole set: the values differ only by rounding
        return MetricValue("kid", mean, None, f"of all {size:,}, too few for a spread over subsets")
    return MetricValue("kid", mean, spread, f"mean and spread over {_NUM_SUBSETS} subsets of {size:,}")


def _compute(inputs: MetricInputs, reference: MetricReference) -> list[MetricValue]:
    if reference.features is None:
        raise UserError("the kernel distance compares single images: it needs the real images' features")
    value = kernel_distance(inputs.features, reference.features.float())
    return [value if reference.is_inception else dataclasses.replace(value, name="kernel_distance")]


KERNEL_DISTANCE = Metric(name="kid", output="features", min_images=2, compute=_compute, needs_real_images=True)
