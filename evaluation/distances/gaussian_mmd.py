"""The squared maximum mean discrepancy under a Gaussian kernel, as Jayasumana et al. 2024 use it on CLIP's features.

    1000 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)),    k(x, y) = exp(-|x - y|^2 / (2 sigma^2)), sigma = 10

It is called CMMD only in the features of CLIP ViT-L/14 at 336 pixels, scaled to length 1. It does not assume Gaussian features, and a
few thousand images suffice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evaluation.distances.metric_value import NUM_BLOCKS, MetricValue
from evaluation.records.intervals import student_interval
from training.shapes import Float, Float64

SIGMA = 10.0
SCALE = 1000.0


def gaussian_mmd(sample: Float[Tensor, "images dim"], reference: Float[Tensor, "real dim"]) -> MetricValue:
    """Return the estimate that includes the pairs of an image with itself, as published, and its bias.

    With U the mean without those pairs, the mean over n images contains (1 - U) / n too much. The standard error is over the draw of
    the samples, to first order: 2 std_i(mean_j k(x_i, x_j) - mean_j k(x_i, y_j)) / sqrt(n).
    """
    x, y = sample.double(), reference.double()
    blocks = x.tensor_split(NUM_BLOCKS)
    across, real = _kernel_means(x, y), _kernel_means(y, y)
    to_blocks = torch.stack([len(block) * _kernel_means(x, block) for block in blocks if len(block)])  # [block, image]
    within = to_blocks.sum(dim=0) / len(x)
    value = SCALE * float(within.mean() + real.mean() - 2 * across.mean())
    bias = SCALE * sum((1 - float(means.mean())) / (len(means) - 1) for means in (within, real))
    error = SCALE * 2 * float((within - across).std()) / len(x) ** 0.5
    note = f"Gaussian kernel of width {SIGMA:g}, times {SCALE:g}, {len(x):,} samples, {len(y):,} real images"
    interval = student_interval(value, error, None)
    method = "closed form, first order in the draw of the samples"
    return MetricValue("gaussian_mmd", value, error, note, bias, interval, method, _without_blocks(to_blocks, across))


def _without_blocks(to_blocks: Float64[Tensor, "blocks n"], across: Float64[Tensor, " n"]) -> tuple[float, ...]:
    """Return the estimate without each block of samples, less the term of the real images alone; none for fewer samples than blocks.

    Args:
        to_blocks: Sum of the kernel of each sample with those of each block.
        across: Mean of the kernel of each sample with the real images.
    """
    if len(to_blocks) < NUM_BLOCKS:
        return ()
    sums = torch.stack([part.sum(dim=1) for part in to_blocks.tensor_split(NUM_BLOCKS, dim=1)])
    parts = across.tensor_split(NUM_BLOCKS)
    found = []
    for b, part in enumerate(parts):
        count = len(across) - len(part)
        pairs = sums.sum() - 2 * sums[b].sum() + sums[b, b]
        found.append(SCALE * float(pairs / count**2 - 2 * (across.sum() - part.sum()) / count))
    return tuple(found)


def _kernel_means(rows: Float64[Tensor, "n dim"], columns: Float64[Tensor, "m dim"]) -> Float64[Tensor, " n"]:
    """Return the mean of k(x_i, y_j) over j for each i, a thousand rows at a time."""
    parts = []
    for some in torch.split(rows, 1000):
        squared = some.square().sum(1)[:, None] + columns.square().sum(1) - 2 * some @ columns.T
        parts.append(torch.exp(squared.clamp(min=0) / (-2 * SIGMA**2)).mean(dim=1))
    return torch.cat(parts)
