"""The evaluation whose numbers are reported: one checkpoint, the experiment's protocol, a card beside every number.

Everything that can be refused is refused before the first image is drawn (`evaluation.evaluate.preflight`). Samples and pieces
of likelihood are kept while it runs, so that a run that was killed goes on where it was; the result goes to the run's
directory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from evaluation.distances.frechet import BlockedMoments, Moments, frechet_distance, jackknife_error, without_each_block
from evaluation.distances.metrics import MetricInputs, compute_metrics, extract_features, metrics_to_dict
from evaluation.distances.reference_statistics import moments_of
from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.preflight import EvaluationPlan, preflight
from evaluation.likelihood.bits_per_dim import Likelihood
from evaluation.likelihood.split_likelihood import split_likelihood
from evaluation.records import grids, npz
from evaluation.records.result import EvaluationResult
from evaluation.records.run_directory import EVALUATIONS, SAMPLES
from evaluation.sampling import sample_set
from evaluation.sampling.generate import Generated
from evaluation.sampling.trained_model import ModelSpec
from training import storage
from training.console import format_duration, say
from training.data.format.manifest import read_manifest
from training.data.loading.row_groups import iterate

FEATURE_BATCH_SIZE = 250
_MAX_SHOWN = 200


def evaluate(
    model: ModelSpec | str,
    data_uri: str,
    reference_uri: str,
    *,
    weights: str | None = None,
    options: EvaluationOptions | None = None,
) -> EvaluationResult:
    """Evaluates a checkpoint by its experiment's protocol and keeps the result in the run's directory.

    Args:
        model: A checkpoint's directory inside its run's, or a specification (an ensemble).
        data_uri: The data set, with its `train` and `test` splits.
        reference_uri: Reference statistics of its training images.
        weights: Which weights of the checkpoint; None is its first average.
        options: What differs from the experiment's protocol.

    Raises:
        CheckpointError: There is no such checkpoint, or no such weights.
        UserError: The reference can't be compared with it, or is not of this data.
        UserError: The extractor's weights can't be had.
        UserError: A measure can't be taken here.
        UserError: The data set is not there.
    """
    options = options or EvaluationOptions()
    started = time.monotonic()
    spec = ModelSpec(checkpoint_uri=model, weights=weights) if isinstance(model, str) else model
    job = preflight(spec, data_uri, reference_uri, options)
    say(f"evaluating step {job.step:,} ({job.weights}): {job.plan.num_images:,} samples, {job.card['distance']['sampler']}")
    sample_set.draw(job.plan, job.images_uri, num_workers=options.num_workers, device=job.device)
    seen = _look(job, options)
    likelihood = _likelihood(job, options)
    result = EvaluationResult(
        checkpoint_uri=spec.checkpoint_uri,
        weights=job.weights,
        step=job.step,
        distance_name=job.provenance.distance_name,
        distance=seen.distance,
        distance_standard_error=seen.standard_error if math.isfinite(seen.standard_error) else None,
        distance_without_blocks=seen.without_blocks,
        held_out=seen.held_out,
        likelihood=None if likelihood is None else {**likelihood.to_dict(), "per_image_uri": _keep_per_image(job, likelihood, options)},
        metrics=seen.measured,
        grid_uri=seen.grid_uri,
        images_uri=job.images_uri if options.keep_images else "",
        protocol=job.card,
        experiment=job.experiment.to_dict(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started, 1),
    )
    storage.write_json(storage.join(job.run_uri, EVALUATIONS, f"{options.result_name}.json"), result.to_dict())
    if not options.keep_images:
        storage.delete_prefix(job.images_uri)
    storage.delete_prefix(job.work_uri)
    say(
        f"{result.distance_name} {seen.distance:.4g}"
        + (f", {likelihood.bits_per_dim:.4g} bits/dim" if likelihood else "")
        + f" in {format_duration(result.seconds)}"
    )
    return result


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What the pass over the samples found."""

    distance: float
    standard_error: float
    without_blocks: list[float]
    held_out: dict[str, Any] | None
    measured: dict[str, Any]
    grid_uri: str


def _look(job: EvaluationPlan, options: EvaluationOptions) -> _Seen:
    """One pass over the samples: everything that is computed from images."""
    features = job.reference.features
    real_test = _held_out_moments(job)
    blocks = BlockedMoments(job.extractor.dim, job.plan.num_images)
    same_count = Moments(job.extractor.dim)
    kept = MetricInputs(metrics=job.metrics)
    shown: list[Generated] = []
    for indices, images, labels in sample_set.read(job.images_uri):
        if sum(len(part) for part, _, _ in shown) < _MAX_SHOWN:
            shown.append((indices, images, labels))
        for first in range(0, len(images), FEATURE_BATCH_SIZE):
            rows = slice(first, first + FEATURE_BATCH_SIZE)
            outputs = job.extractor.outputs(images[rows])
            blocks.update(indices[rows], outputs["features"])
            kept.update(outputs, None if labels is None else labels[rows])
            if real_test is not None and same_count.num_images < real_test.num_images:
                same_count.update(outputs["features"][: real_test.num_images - same_count.num_images])
    real = None
    if job.metrics & {"kid", "precision_recall"}:
        batch_uri = job.reference.images_uri
        real_images = npz.stream_images(batch_uri, FEATURE_BATCH_SIZE) if batch_uri else _images(storage.join(job.data_uri, "train"))
        real = extract_features(real_images, job.extractor)
    held_out = None
    if real_test is not None and same_count.num_images == real_test.num_images:
        held_out = {
            "num_images": real_test.num_images,
            "real": frechet_distance(features, real_test),
            "generated": frechet_distance(features, same_count),
        }
    without = without_each_block(features, blocks)
    is_inception = job.provenance.distance_name == "FID"
    return _Seen(
        distance=frechet_distance(features, blocks.total()),
        standard_error=jackknife_error(without),
        without_blocks=without,
        held_out=held_out,
        measured=metrics_to_dict(compute_metrics(kept, reference_features=real, spatial=job.reference.spatial, is_inception=is_inception)),
        grid_uri=_write_grid(job, shown, options.result_name),
    )


def _write_grid(job: EvaluationPlan, shown: Sequence[Generated], name: str) -> str:
    images = torch.cat([part for _, part, _ in shown])
    labels = [y for _, _, y in shown if y is not None]
    grid = grids.class_grid(images, torch.cat(labels) if labels else None, job.class_names)
    uri = storage.join(job.run_uri, SAMPLES, f"{name}.png")
    storage.write_bytes(uri, grids.to_png(grid))
    return uri


def _held_out_moments(job: EvaluationPlan) -> Moments | None:
    """Of up to as many real test images as there are samples; None where there are none."""
    dataset_uri = storage.join(job.data_uri, "test")
    if not storage.exists(storage.join(dataset_uri, "manifest.json")):
        return None
    count = min(read_manifest(dataset_uri).num_images, job.plan.num_images)
    if count < 2:
        return None
    moments, _ = moments_of(_images(dataset_uri, count), job.extractor)
    return moments


def _images(dataset_uri: str, count: int | None = None) -> Iterable[Tensor]:
    return (images for _, images, _ in iterate(dataset_uri, FEATURE_BATCH_SIZE, stop=count))


def _likelihood(job: EvaluationPlan, options: EvaluationOptions) -> Likelihood | None:
    if job.likelihood_plan is None:
        return None
    return split_likelihood(job.likelihood_plan, job.work_uri, num_workers=options.num_workers, device=job.device)


def _keep_per_image(job: EvaluationPlan, likelihood: Likelihood, options: EvaluationOptions) -> str:
    """The bits/dim of each image beside the result: what a comparison of two models on the same images needs."""
    uri = storage.join(job.run_uri, EVALUATIONS, f"{options.result_name}-bits-per-dim.npz")
    npz.write_arrays(uri, {"index": likelihood.indices.numpy(), "bits_per_dim": likelihood.per_image.numpy()})
    return uri
