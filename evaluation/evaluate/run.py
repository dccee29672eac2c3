"""The evaluation whose numbers are reported: one checkpoint, the experiment's protocol, a protocol card with the numbers.

All checks come before the first image is drawn (`evaluation.evaluate.preflight`). Images and chunks of the likelihood are
stored while it runs, so an evaluation that was killed continues; the result is stored in the run's directory.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from evaluation.distances.frechet import Moments, frechet_distance
from evaluation.distances.metrics import need_real_images
from evaluation.distances.reference_statistics import ReferenceStatistics, moments_of
from evaluation.distances.sample_scorer import SampleScorer, SampleScores
from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.preflight import EvaluationPlan, preflight, require_used_steps
from evaluation.likelihood.bits_per_dim import Likelihood
from evaluation.likelihood.split_likelihood import split_likelihood
from evaluation.memorisation.nearest import pixel_space
from evaluation.memorisation.search import MAX_IMAGES, find_copies
from evaluation.records import grids, npz
from evaluation.records.protocol_card import same_protocol
from evaluation.records.result import EvaluationResult
from evaluation.records.run_directory import EVALUATIONS, SAMPLES, kept_images, result_uri
from evaluation.sampling import sample_set
from evaluation.sampling.trained_model import ModelSpec
from training import storage
from training.console import format_duration, say, with_progress
from training.data.format.manifest import MANIFEST, read_manifest
from training.data.loading.row_groups import iterate

_FEATURE_BATCH_SIZE = 250


def evaluate(model: ModelSpec | str, data_uri: str, reference_uri: str, *, options: EvaluationOptions | None = None) -> EvaluationResult:
    """Evaluate a checkpoint by its experiment's protocol, and store the result in the run's directory.

    Args:
        model: Weights or an ensemble; or a checkpoint's directory inside its run's, which means the checkpoint's first average.
        data_uri: The data set, with its `train` and `test` splits.
        options: Deviations from the experiment's protocol, and resources.

    Raises:
        CheckpointError: There is no such checkpoint, or no such weights.
        UserError: The reference is not of this data or can't be compared with the model, the extractor's weights can't be
            read, a metric can't be computed, there is no such data set, or a full likelihood is given a number of steps.
        NotFiniteError: The samples or their features are not finite.
    """
    spec = ModelSpec(checkpoint_uri=model) if isinstance(model, str) else model
    plan = preflight(spec, data_uri, reference_uri, options or EvaluationOptions())
    require_used_steps(plan.experiment, plan.options)
    before = _before(plan)
    _tell_replaced(plan, before)
    return _evaluate(plan, before)


def evaluate_once(spec: ModelSpec, data_uri: str, reference_uri: str, options: EvaluationOptions) -> EvaluationResult:
    """Return the stored result of the same evaluation of the same weights; evaluate if there is none. Arguments as for `evaluate`."""
    plan = preflight(spec, data_uri, reference_uri, options)
    return _stored(plan) or _evaluate(plan, None)


def _stored(plan: EvaluationPlan, before: EvaluationResult | None = None) -> EvaluationResult | None:
    """Return the stored result of this plan, if there is one, and it is another than the one before."""
    uri = result_uri(plan.run_uri, plan.options.result_name)
    if not storage.exists(uri):
        return None
    stored = EvaluationResult.read(uri)
    is_same = before is not None and stored.to_dict() == before.to_dict()  # as plain values, in which NaN equals NaN
    if is_same or not same_protocol(stored.protocol, plan.card):
        return None
    say(f"step {plan.step:,} ({plan.weights}) was evaluated by this protocol before: {stored.distance_name} {stored.distance:.4g}")
    return stored


def _before(plan: EvaluationPlan) -> EvaluationResult | None:
    """Return the result that the plan's own will replace, of any protocol; None if there is none, or it is damaged."""
    try:
        return EvaluationResult.read(result_uri(plan.run_uri, plan.options.result_name))
    except storage.StorageError:
        return None


def _tell_replaced(plan: EvaluationPlan, stored: EvaluationResult | None) -> None:
    """Say that an evaluation of the same name, of another model or by another protocol, is about to be replaced."""
    if stored is not None and not same_protocol(stored.protocol, plan.card):
        uri = result_uri(plan.run_uri, plan.options.result_name)
        found = f"{stored.distance_name} {stored.distance:.4g} of {stored.protocol['distance']['num_samples']:,} samples"
        say(f"{uri}: replaces {found}, which is of another model or protocol; --name NAME with another name keeps both")


def _evaluate(plan: EvaluationPlan, before: EvaluationResult | None) -> EvaluationResult:
    """Do the work, or return the result of another process that did it meanwhile; `before` is the one that was there at the beginning."""
    try:
        return _work(plan)
    except (sample_set.MissingImagesError, storage.ObjectNotFoundError) as error:
        if not any(f"{error.uri}/".startswith(f"{own}/") for own in (plan.images_uri, plan.work_uri)):
            raise  # an input is missing, like a chunk of the images to enlarge
        # Another process with this plan was quicker, and has deleted the files that both worked on.
        say(f"{error}; looking for the result of another process, or drawing again what is missing")
        return _stored(plan, before) or _work(plan)


def _work(plan: EvaluationPlan) -> EvaluationResult:
    started, options = time.monotonic(), plan.options
    say(f"evaluating step {plan.step:,} ({plan.weights}): {plan.samples.num_images:,} samples, {plan.card['distance']['sampler']}")
    sample_set.draw(plan.samples, plan.images_uri, num_workers=options.num_workers, device=options.worker_device)
    grid_uri = storage.join(plan.run_uri, SAMPLES, f"{options.result_name}.png")
    scores, held_out = _score_samples(plan, grid_uri)
    likelihood = None
    if plan.likelihood is not None:
        likelihood = split_likelihood(plan.likelihood, plan.work_uri, num_workers=options.num_workers, device=options.worker_device)
        num_lost = int((~likelihood.per_image.isfinite()).sum())
        if num_lost:
            say(
                f"step {plan.step:,} ({plan.weights}): there is no mean of bits/dim, as those of {num_lost} of {likelihood.num_images} "
                "images are not finite: its weights are damaged or its variances overflow; take another checkpoint"
            )
    result = EvaluationResult(
        checkpoint_uri=plan.samples.model.checkpoint_uri,
        weights=plan.weights,
        step=plan.step,
        distance_name=plan.provenance.distance_name,
        distance=scores.distance,
        distance_standard_error=scores.standard_error,
        distance_without_blocks=scores.leave_one_out,
        distance_of_halves=scores.of_halves,
        held_out=held_out,
        likelihood=None if likelihood is None else {**likelihood.to_dict(), "per_image_uri": _store_per_image(plan, likelihood)},
        metrics=scores.metrics,
        grid_uri=grid_uri,
        images_uri=plan.images_uri if options.keep_images else "",
        protocol=plan.card,
        experiment=plan.experiment.to_dict(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started, 1),
    )
    storage.write_json(result_uri(plan.run_uri, options.result_name), result.to_dict())
    if not options.keep_images and f"{plan.images_uri}/" not in kept_images(plan.run_uri):
        storage.delete_prefix(plan.images_uri)
    storage.delete_prefix(plan.work_uri)
    bits = f", {likelihood.bits_per_dim:.4g} bits/dim" if likelihood else ""
    say(f"{result.distance_name} {scores.distance:.4g}{bits} in {format_duration(result.seconds)}")
    return result


def _score_samples(plan: EvaluationPlan, grid_uri: str) -> tuple[SampleScores, dict[str, Any] | None]:
    """Compute everything that depends on the samples in one pass, draw their grid, and return the scores and `held_out`."""
    real_test = _test_moments(plan) if plan.options.held_out else None
    scorer = SampleScorer(plan.extractor, plan.samples.num_images, plan.metrics)
    same_count = Moments(plan.extractor.dim)
    grid = grids.ClassGrid(plan.class_names)
    searched: list[Tensor] = []
    samples = sample_set.read(plan.images_uri)
    for indices, images, labels in with_progress(samples, "scored", plan.samples.num_images, lambda part: len(part[1])):
        grid.update(images, labels)
        if plan.memorisation:
            keep_first(searched, images, MAX_IMAGES)
        for first in range(0, len(images), _FEATURE_BATCH_SIZE):
            rows = slice(first, first + _FEATURE_BATCH_SIZE)
            features = scorer.update(indices[rows], images[rows], None if labels is None else labels[rows])
            if real_test is not None and same_count.num_images < real_test.num_images:
                same_count.update(features[: real_test.num_images - same_count.num_images])
    storage.write_bytes(grid_uri, grids.to_png(grid.pixels()))
    scores = scorer.scores(plan.reference, _real_images(plan), halves=True)
    metrics = {**scores.metrics, **(_copied_share(plan, searched) if plan.memorisation else {})}
    return dataclasses.replace(scores, metrics=metrics), _held_out(plan.reference, real_test, same_count)


def _real_images(plan: EvaluationPlan) -> Iterable[tuple[Tensor, Tensor]] | None:
    """Return batches of indices and images, for the metrics that compare samples with real images; None if there are no such metrics."""
    if not need_real_images(plan.metrics):
        return None
    if plan.reference.images_uri:
        return npz.stream_with_positions(plan.reference.images_uri, _FEATURE_BATCH_SIZE)
    return _images(storage.join(plan.data_uri, "train"))  # its rows are in a random order already


def _held_out(reference: ReferenceStatistics, real_test: Moments | None, samples: Moments) -> dict[str, Any] | None:
    """Return `EvaluationResult.held_out` from the moments of test images and of samples; None if there are not as many of both."""
    if real_test is None or samples.num_images != real_test.num_images:
        return None
    return {
        "num_images": real_test.num_images,
        "real": frechet_distance(reference.features, real_test),
        "generated": frechet_distance(reference.features, samples),
    }


def _copied_share(plan: EvaluationPlan, samples: Sequence[Tensor]) -> dict[str, Any]:
    """Return the metric of copies of training images among the samples, which come in parts."""
    found = find_copies(torch.cat(list(samples)), plan.data_uri, pixel_space(plan.options.own_device))
    return {"copied_share": found.as_metric()}


def keep_first(kept: list[Tensor], images: Tensor, count: int) -> None:
    """Add images to `kept`, up to `count` in all."""
    room = count - sum(len(part) for part in kept)
    if room > 0:
        kept.append(images[:room].clone())  # a view, even of no image, would hold the memory of them all


def _test_moments(plan: EvaluationPlan) -> Moments | None:
    """Return moments of real test images, at most as many as there are samples; None if there are not two of them."""
    dataset_uri = storage.join(plan.data_uri, "test")
    if not storage.exists(storage.join(dataset_uri, MANIFEST)):
        return None
    count = min(read_manifest(dataset_uri).num_images, plan.samples.num_images)
    images = with_progress((images for _, images in _images(dataset_uri, count)), "computed the features of", count, len)
    return moments_of(images, plan.extractor)[0] if count >= 2 else None


def _images(dataset_uri: str, count: int | None = None) -> Iterable[tuple[Tensor, Tensor]]:
    """Return batches of a data set's rows and their images."""
    return ((rows, images) for rows, images, _ in iterate(dataset_uri, _FEATURE_BATCH_SIZE, stop=count))


def _store_per_image(plan: EvaluationPlan, likelihood: Likelihood) -> str:
    """Write the bits/dim of each image, with which two models can be compared image by image."""
    uri = storage.join(plan.run_uri, EVALUATIONS, f"{plan.options.result_name}-bits-per-dim.npz")
    npz.write_arrays(uri, {"index": likelihood.indices.numpy(), "bits_per_dim": likelihood.per_image.numpy()})
    return uri
