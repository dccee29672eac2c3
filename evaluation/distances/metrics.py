"""Metrics of a set of samples besides its Frechet distance: what each sees, needs and costs, and how it is computed.

An extractor gives features, and a metric takes those of two sets: `MetricInputs` of the samples, `MetricReference` of the real
images. All metrics come from one pass over the samples. Memory does not grow with the number of samples, except for the Inception
score's logits (202 MB for 50,000). Stored are ten blocks of moments (33.6 MB each in 2,048 dimensions; as many again for the sFID), and
the features of at most 10,000 samples and 10,000 real images (82 MB each). Distances between images are computed in parts of at most 80 MB.

To add one, write a function of `MetricInputs` and `MetricReference`, give it a row in `METRICS` and each of its numbers one in
`evaluation.records.metric_numbers`, and add its name to `training.config.experiment.MetricName`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from evaluation.distances.frechet import (
    BlockedMoments,
    FeatureStatistics,
    distances_of_halves,
    frechet_distance,
    leave_one_out_distances,
)
from evaluation.distances.frechet_infinity import MIN_IMAGES_PER_FEATURE, frechet_infinity
from evaluation.distances.gaussian_mmd import gaussian_mmd
from evaluation.distances.metric_value import NUM_BLOCKS, MetricValue, by_jackknife, mean_without_blocks, share_of_images
from evaluation.distances.neighbours import NUM_NEIGHBOURS, density_coverage, near_real_images, recall_of_halves, share_near_others
from evaluation.distances.sliced_wasserstein import sliced_wasserstein
from evaluation.features.extractors import ExtractorId, ExtractorTraits, FeatureExtractor, is_published
from evaluation.records.intervals import PARTS, PartValues, jackknife_bias, part_values, student_interval
from evaluation.records.metric_numbers import metric_number
from training.config.errors import UserError
from training.shapes import Float, Float32, Float64, Int64

MAX_FEATURES = 10_000
"""Samples, and real images, whose features are stored for metrics that compare single images: those of the first indices."""
_NUM_SUBSETS, _SUBSET_SIZE = 100, 1000
_PRECISION_NEIGHBOURS = 3
_NUM_SPLITS = 10
_SPLIT_SEED = 2020
"""Seed of torch-fidelity's splits."""

_PUBLISHED_NAMES = {
    ("kernel_distance", "inception"): "kid",
    ("gaussian_mmd", "clip-vit-l-14-336px"): "cmmd",
    ("sliced_wasserstein", "inception"): "mind",
    ("fd_infinity", "inception"): "fid_infinity",
}
"""Names that belong to a distance in the published features of one network alone."""


@dataclass
class MetricInputs:
    """Outputs of the extractor for the samples, collected batch by batch. Only what the named `metrics` need is stored.

    `blocks` are the moments of all samples' features. The caller collects them.
    """

    metrics: frozenset[str]
    blocks: BlockedMoments | None = None
    spatial: BlockedMoments | None = None
    _indices: list[Tensor] = field(default_factory=list)
    _features: list[Tensor] = field(default_factory=list)
    _logits: list[Tensor] = field(default_factory=list)
    _labels: list[Tensor] = field(default_factory=list)

    def update(self, indices: Int64[Tensor, " batch"], outputs: dict[str, Tensor], labels: Int64[Tensor, " batch"] | None) -> None:
        """Add one batch: the samples' indices, the extractor's outputs and the labels that the samples were drawn with.

        Each index comes once. Images of neighbouring indices count as a random sample of all (`BlockedMoments`).
        """
        needed = {METRICS[name].output for name in self.metrics}
        is_kept = indices < MAX_FEATURES
        if "features" in needed and bool(is_kept.any()):
            self._indices.append(indices[is_kept].cpu())
            self._features.append(outputs["features"][is_kept.to(outputs["features"].device)].cpu())
        if "logits" in needed:
            self._logits.append(outputs["logits"].cpu())
            self._labels += [] if labels is None else [labels.cpu()]
        if "spatial" in needed and "spatial" in outputs and self.blocks is not None:
            self.spatial = self.spatial or BlockedMoments(outputs["spatial"].shape[1], self.blocks.num_images)
            self.spatial.update(indices, outputs["spatial"])

    @property
    def features(self) -> Float32[Tensor, "images dim"]:
        """Features of the samples of the first `MAX_FEATURES` indices, by index."""
        return _by_index(self._indices, self._features).float()

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
        extractor: The network, after which some metrics are named.
        features: Features of up to `MAX_FEATURES` real images; None if no metric needs them.
        statistics: Statistics of the features of all real images; None if no metric needs them.
        spatial: Statistics of the spatial features; None if the reference has none.
    """

    extractor: ExtractorId
    features: Float32[Tensor, "images dim"] | None = None
    statistics: FeatureStatistics | None = None
    spatial: FeatureStatistics | None = None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric besides the Frechet distance.

    Attributes:
        sees: What it notices and what it misses, in a few words.
        samples: Number of samples that it wants, and how it depends on their number.
        cost: Its time beside the extractor's on one core, scaled up from 1,250 images to the number that it wants.
        output: The output of the extractor that it needs; "moments" are those of the features.
        min_images: Smallest number of samples, and of real images if it needs them.
        min_images_per_feature: Smallest number of samples for each of the extractor's features.
        needs_real_images: True if it compares single samples with single real images.
        refusal: Returns why the metric can't be computed with an extractor, and the remedy; None if it can.
    """

    sees: str
    samples: str
    cost: str
    output: Literal["moments", "features", "logits", "spatial"]
    min_images: int
    compute: Callable[[MetricInputs, MetricReference], list[MetricValue]]
    min_images_per_feature: int = 0
    needs_real_images: bool = False
    refusal: Callable[[ExtractorTraits], str | None] = lambda extractor: None


def kernel_distance(sample: Float32[Tensor, "images dim"], reference: Float32[Tensor, "real dim"]) -> MetricValue:
    """Return the unbiased squared MMD under the kernel (x.y / d + 1)^3, as a mean over random subsets.

    Its interval is that of the logarithm of the biased squared MMD of such subsets, which is positive: each image of both sets is
    paired with itself there, too.

    Source: Binkowski et al. 2018; computed by torch-fidelity. In the features of the standard Inception network it is the KID.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(_SUBSET_SIZE, len(sample), len(reference))
    found = kid_features_to_metric(sample, reference, kid_subsets=_NUM_SUBSETS, kid_subset_size=size, verbose=False)
    mean, spread = (float(found[f"kernel_inception_distance_{statistic}"]) for statistic in ("mean", "std"))
    note, other_error = f"mean over {_NUM_SUBSETS} subsets of {size:,}, whose spread is {spread:.2g}", spread / math.sqrt(_NUM_SUBSETS)
    if size == len(sample) == len(reference):  # every subset is the whole set: the values differ only by rounding
        note, other_error = f"of all {size:,}", 0.0
    parts, own_pair = kernel_distance_of_parts(sample, reference)
    return by_jackknife(
        "kernel_distance",
        mean,
        parts.without_blocks,
        note,
        0.0,
        is_unbiased=True,
        other_error=other_error,
        of_halves=parts.of_halves,
        offset=own_pair * 2 / size,
    )


def kernel_distance_of_parts(sample: Float32[Tensor, "images dim"], reference: Float32[Tensor, "real dim"]) -> tuple[PartValues, float]:
    """Return the squared MMDs of the cubic kernel on parts of a sample, less the term of the real images alone, and the own pair.

    The own pair is the kernel of an image with itself, less that of two images; it adds 1/n of it to the biased squared MMD of n images.
    For fewer than 20 samples there are no parts, and it is 0.
    """
    blocks = sample.tensor_split(NUM_BLOCKS)
    if len(blocks[-1]) < 2:
        return part_values([]), 0.0
    within = torch.tensor([[float(_cubic_sum(x, y)) for y in blocks] for x in blocks], dtype=torch.float64)
    own = torch.stack([((x.double().square().sum(dim=1) / x.shape[1] + 1) ** 3).sum() for x in blocks])
    across = torch.stack([torch.stack([_cubic_sum(x, y) for y in torch.split(reference, 1000)]).sum() for x in blocks]) / len(reference)
    found = []
    for part in torch.tensor(PARTS):
        count = sum(len(block) for block, has in zip(blocks, part, strict=True) if has)
        pairs = within[part][:, part].sum() - own[part].sum()
        found.append(float(pairs / (count * (count - 1)) - 2 * across[part].sum() / count))
    count = len(sample)
    of_another = (within.sum() - own.sum()) / (count * (count - 1))
    own_pair = float(own.sum() / count - of_another)
    return part_values(found), own_pair


def _cubic_sum(x: Float32[Tensor, "images dim"], y: Float32[Tensor, "others dim"]) -> Float[Tensor, ""]:
    return ((x @ y.T / x.shape[1] + 1) ** 3).sum(dtype=torch.float64)


def precision_recall(sample: Float32[Tensor, "images dim"], reference: Float32[Tensor, "real dim"]) -> list[MetricValue]:
    """Return the fraction of samples near real images (precision) and of real images near samples (recall), with k = 3.

    Source: Kynkaanniemi et al. 2019. torch-fidelity computes the same with three matrices of 400 MB; this works in parts.
    """
    counts = f"k = {_PRECISION_NEIGHBOURS}, {len(sample):,} samples, {len(reference):,} real images"
    notes = [
        f"{counts}; samples of the {whose} distribution have {share_near_others(points, _PRECISION_NEIGHBOURS):.4f}"
        for whose, points in (("real", reference), ("model's own", sample))
    ]
    of_halves = recall_of_halves(sample, reference, _PRECISION_NEIGHBOURS)
    reached = near_real_images(reference, sample, _PRECISION_NEIGHBOURS)  # the two sets exchanged: a sample's ball, and a real image in it
    return [
        share_of_images("precision", near_real_images(sample, reference, _PRECISION_NEIGHBOURS), notes[0]),
        by_jackknife("recall", float(reached.float().mean()), of_halves, notes[1], limits=(0.0, 1.0), resampling="halves"),
    ]


def inception_score(logits: Float[Tensor, "images classes"]) -> MetricValue:
    """Return the exponential of the mean KL(p(y|x) || p(y)), over ten splits.

    The splits are independent samples, so that their spread gives the error of their mean. The bias of a split of n/10 images falls as
    1/n: it is 10/9 of the difference between ten splits and one.

    Source: Salimans et al. 2016; computed by torch-fidelity.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    splits = _scores_of_splits(logits)
    mean, spread = float(np.mean(splits.numpy())), float(np.std(splits.numpy()))
    without = mean_without_blocks(splits)
    whole = float(isc_features_to_metric(logits, splits=1)["inception_score_mean"])
    error = spread / math.sqrt(_NUM_SPLITS - 1)  # the spread of n values divides by n
    note = f"mean over {_NUM_SPLITS} splits, whose spread is {spread:.2g}"
    bias = (mean - whole) * _NUM_SPLITS / (_NUM_SPLITS - 1)
    interval = student_interval(mean, error, _NUM_SPLITS - 1)
    return MetricValue("inception_score", mean, error, note, bias, interval, "ten independent splits, Student's t", without)


def _scores_of_splits(logits: Float[Tensor, "images classes"]) -> Float64[Tensor, " splits"]:
    """Return the score of each of torch-fidelity's splits. They depend on the number of images alone, so that two models share them."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    shuffled = logits[np.random.RandomState(_SPLIT_SEED).permutation(len(logits))]
    edges = [split * len(logits) // _NUM_SPLITS for split in range(_NUM_SPLITS + 1)]
    parts = (shuffled[first:last] for first, last in itertools.pairwise(edges))
    scores = [isc_features_to_metric(part, splits=1, shuffle=False)["inception_score_mean"] for part in parts]
    return torch.tensor(scores, dtype=torch.float64)


def _of_features(
    compute: Callable[[Float32[Tensor, "images dim"], Float32[Tensor, "real dim"]], list[MetricValue]],
) -> Callable[[MetricInputs, MetricReference], list[MetricValue]]:
    """Wrap a function of both sets' features as a metric."""

    def of_features(inputs: MetricInputs, reference: MetricReference) -> list[MetricValue]:
        if reference.features is None:
            raise UserError("this metric compares single images: it needs the real images' features")
        return compute(inputs.features, reference.features.float())

    return of_features


def _frechet_infinity(inputs: MetricInputs, reference: MetricReference) -> list[MetricValue]:
    if inputs.blocks is None or reference.statistics is None:
        raise UserError("fd_infinity needs the samples' moments and the reference statistics")
    return [frechet_infinity(reference.statistics, inputs.blocks)]


def _spatial_frechet(inputs: MetricInputs, reference: MetricReference) -> list[MetricValue]:
    """Return the sFID: the Frechet distance of Inception's spatial features (Nash et al. 2021)."""
    if inputs.spatial is None or reference.spatial is None:
        raise UserError("the sFID needs an extractor and reference statistics with spatial features; use 'inception'")
    value = frechet_distance(reference.spatial, inputs.spatial.total())
    leave_one_out = leave_one_out_distances(reference.spatial, inputs.spatial)
    of_halves = distances_of_halves(reference.spatial, inputs.spatial)
    bias = jackknife_bias(value, leave_one_out)
    note = "Frechet distance of spatial features"
    return [by_jackknife("sfid", value, leave_one_out, note, bias, of_halves=of_halves)]


def _label_agreement(inputs: MetricInputs, reference: MetricReference) -> list[MetricValue]:
    """Return the fraction of samples that the classifier assigns to the label that they were drawn with."""
    if inputs.labels is None:
        raise UserError("label_agreement needs a class-conditional model; leave it out")
    note = "samples that the classifier assigns to their own label"
    return [share_of_images("label_agreement", inputs.logits.argmax(1) == inputs.labels, note)]


def _refuse_score(extractor: ExtractorTraits) -> str | None:
    if extractor.name != "digits-classifier":
        return None
    return "the Inception score is defined on the Inception network's logits; for digits use label_agreement"


def _refuse_agreement(extractor: ExtractorTraits) -> str | None:
    if extractor.name == "digits-classifier":
        return None
    return f"label_agreement needs a classifier of the data's own labels, and {extractor.name!r} is none; leave it out"


METRICS: dict[str, Metric] = {
    "kid": Metric(
        sees="fidelity and variety; cubic kernel, which weighs outliers",
        samples="1,000 or more; unbiased at any number",
        cost="10 s",
        output="features",
        min_images=2,
        compute=_of_features(lambda sample, real: [kernel_distance(sample, real)]),
        needs_real_images=True,
    ),
    "cmmd": Metric(
        sees="fidelity and variety; Gaussian kernel, no assumption about the features",
        samples="5,000; its bias is known and shown",
        cost="10 s",
        output="features",
        min_images=2,
        compute=_of_features(lambda sample, real: [gaussian_mmd(sample, real)]),
        needs_real_images=True,
    ),
    "mind": Metric(
        sees="fidelity and variety; sorted projections, so also what mean and covariance miss",
        samples="5,000; biased as 1/N, by the jackknife",
        cost="7 s",
        output="features",
        min_images=2,
        compute=_of_features(lambda sample, real: [sliced_wasserstein(sample, real)]),
        needs_real_images=True,
    ),
    "fd_infinity": Metric(
        sees="as the Frechet distance, with less of the bias of N samples",
        samples="5 for each feature; below 50 too small, so read the distance without its bias",
        cost="40 s",
        output="moments",
        min_images=2,
        min_images_per_feature=MIN_IMAGES_PER_FEATURE,
        compute=_frechet_infinity,
    ),
    "precision_recall": Metric(
        sees="fidelity and variety apart; one outlier counts much",
        samples="10,000 of each; compare at equal numbers only; a perfect model's value is shown",
        cost="150 s",
        output="features",
        min_images=_PRECISION_NEIGHBOURS + 1,
        compute=_of_features(precision_recall),
        needs_real_images=True,
    ),
    "density_coverage": Metric(
        sees="fidelity and variety apart; outliers count little; coverage falls with each lost mode",
        samples="10,000 of each; a perfect model's value is shown",
        cost="40 s",
        output="features",
        min_images=NUM_NEIGHBOURS + 1,
        compute=_of_features(density_coverage),
        needs_real_images=True,
    ),
    "inception_score": Metric(
        sees="whether classes are clear and all there; nothing of the real images",
        samples="50,000; the bias of so many is shown",
        cost="1 s",
        output="logits",
        min_images=_NUM_SPLITS,
        compute=lambda inputs, reference: [inception_score(inputs.logits)],
        refusal=_refuse_score,
    ),
    "sfid": Metric(
        sees="layout: where things are in the image",
        samples="50,000; biased as the FID, by the jackknife",
        cost="35 s, 22 more distances",
        output="spatial",
        min_images=2,
        compute=_spatial_frechet,
    ),
    "label_agreement": Metric(
        sees="whether samples show the class that was asked for",
        samples="1,000 or more; unbiased",
        cost="small, not measured",
        output="logits",
        min_images=1,
        compute=_label_agreement,
        refusal=_refuse_agreement,
    ),
}
"""The metrics by the name that `--metric` and `evaluation.metrics` take."""


def parse_metrics(names: Iterable[str]) -> frozenset[str]:
    """Check names of metrics; raise UserError if there is no such metric."""
    names = list(names)
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UserError(f"there is no metric {', '.join(map(repr, unknown))}; use some of {', '.join(METRICS)}")
    return frozenset(names)


def need_real_images(metrics: Iterable[str]) -> frozenset[str]:
    """Return those of the metrics that compare single samples with single real images."""
    return frozenset(name for name in metrics if METRICS[name].needs_real_images)


def require_extractor(metrics: frozenset[str], extractor: ExtractorTraits) -> None:
    """Refuse metrics that an extractor lacks an output for, or that are not defined on its network."""
    provided = {"moments", *extractor.provides}
    lacking = [f"{name} needs {METRICS[name].output}" for name in sorted(metrics) if METRICS[name].output not in provided]
    if lacking:
        raise UserError(f"the extractor {extractor.name!r} gives {', '.join(extractor.provides)}; {'; '.join(lacking)}")
    for name in sorted(metrics):
        reason = METRICS[name].refusal(extractor)
        if reason is not None:
            raise UserError(reason)


def require_count(metrics: frozenset[str], num_images: int, images: str, dim: int = 0) -> None:
    """Check that there are enough images for the Frechet distance and the metrics.

    Args:
        images: Words for them in the message.
        dim: Number of the extractor's features, for samples; 0 for real images.

    Raises:
        UserError: There are too few.
    """
    needs = {name: max(METRICS[name].min_images, METRICS[name].min_images_per_feature * dim) for name in sorted(metrics)}
    lacking = [f"{name} takes {fewest:,} at least" for name, fewest in {"a Frechet distance": 2, **needs}.items() if num_images < fewest]
    if lacking:
        raise UserError(f"{num_images:,} {images}: {'; '.join(lacking)}")


def compute_metrics(inputs: MetricInputs, reference: MetricReference) -> list[MetricValue]:
    """Compute the metrics of the inputs, with a known bias in their notes; refuse a missing input, and too few real images."""
    if reference.features is not None:
        require_count(need_real_images(inputs.metrics), len(reference.features), "real images")
    found = [value for name, metric in METRICS.items() if name in inputs.metrics for value in metric.compute(inputs, reference)]
    named = [dataclasses.replace(value, name=_name(value.name, reference.extractor), note=_with_bias(value)) for value in found]
    for value in named:
        metric_number(value.name)  # refused now, and not when the result is read
    return named


def _name(general: str, extractor: ExtractorId) -> str:
    published = is_published(extractor.name, extractor.sha256)
    return _PUBLISHED_NAMES.get((general, extractor.name), general) if published else general


def _with_bias(value: MetricValue) -> str:
    if value.is_unbiased:
        return f"{value.note}; unbiased"
    if value.bias is None:
        return value.note
    return f"{value.note}; bias of so many images about {value.bias:.2g}, without it {value.value - value.bias:.4g}"


def max_images(name: str) -> int | None:
    """Return the most samples that a value of `compute_metrics` uses; None for no limit."""
    return MAX_FEATURES if metric_number(name).of_single_images else None


def extract_features(images: Iterable[tuple[Tensor, Tensor]], extractor: FeatureExtractor) -> Float32[Tensor, "images dim"]:
    """Return the features of the images of the first `MAX_FEATURES` indices, by index, for metrics that compare single images.

    Args:
        images: Batches of indices and images. Each index comes once, in any order, and the first ones are a random sample of all images.
    """
    indices: list[Tensor] = []
    parts: list[Tensor] = []
    for some, batch in images:
        is_kept = some < MAX_FEATURES
        if bool(is_kept.any()):
            indices.append(some[is_kept])
            parts.append(extractor(batch[is_kept]).cpu())
        if sum(len(part) for part in parts) >= MAX_FEATURES:
            break
    return _by_index(indices, parts)


def _by_index(indices: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """Return the rows of all parts by increasing index."""
    return torch.cat(list(parts))[torch.cat(list(indices)).argsort()]
