"""The loss of quality by fewer network evaluations, on a model of digits that is trained here.

Counts and distances do not depend on the machine, so two processes share the work.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass

import torch
from digits_model import NUM_STEPS, trained_model
from measuring import Measured, Run
from torch import Tensor

from evaluation.distances.frechet import (
    BlockedMoments,
    FeatureStatistics,
    frechet_distance,
    leave_one_out_distances,
)
from evaluation.distances.reference_statistics import compute_reference
from evaluation.features.extractors import load_extractor
from evaluation.likelihood.bits_per_dim import merge
from evaluation.likelihood.estimate import likelihood_parts
from evaluation.records.intervals import jackknife_error
from evaluation.sampling.generate import concatenated, generate
from evaluation.sampling.trained_model import load_model
from training.config.experiment import LikelihoodForm, SamplingConfig
from training.data.loading.loader import Loader

_MANY = SamplingConfig(spacing="250")
_FEW = {
    "distance": SamplingConfig(method="ddim", spacing="20", eta=0.5),
    "distance-ode": SamplingConfig(method="dpm_solver_pp", spacing="20"),
}


def measure(run: Run) -> Iterator[tuple[str, Measured]]:
    """The rows of this group."""
    torch.set_num_threads(1)
    model, data_uri = trained_model(run.scratch, num_steps=20 if run.quick else NUM_STEPS)
    yield "evaluations", Measured(value=250 / 20)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from distances(run, pool, model.checkpoint_uri, data_uri)
        yield "likelihood", likelihood(run, pool, model.checkpoint_uri, data_uri)


def distances(run: Run, pool: Executor, checkpoint_uri: str, data_uri: str) -> Iterator[tuple[str, Measured]]:
    """Ratios of two distances, and their standard errors from leaving out a tenth of both sets at a time."""
    extractor = load_extractor("digits-classifier")
    reference = compute_reference(f"{data_uri}/train", extractor, str(run.scratch / "references")).features
    num_images, size = (20, 10) if run.quick else (1000, 125)
    drawn = {
        name: [pool.submit(draw, checkpoint_uri, sampling, start, size) for start in range(0, num_images, size)]
        for name, sampling in {**_FEW, "many": _MANY}.items()
    }
    blocks = {name: BlockedMoments(extractor.dim, num_images) for name in drawn}
    for name, parts in drawn.items():
        for number, part in enumerate(parts):
            blocks[name].update(torch.arange(number * size, (number + 1) * size), extractor(part.result()))
    many = blocks["many"]
    for name in _FEW:
        few = blocks[name]
        ratio = frechet_distance(reference, few.total()) / frechet_distance(reference, many.total())
        without = zip(leave_one_out_distances(reference, few), leave_one_out_distances(reference, many), strict=True)
        error = jackknife_error([one / other for one, other in without])
        note = f"{_told(reference, few)} against {_told(reference, many)}, {num_images} images each; the range is +- a standard error"
        yield name, Measured(value=ratio, low=ratio - error, high=ratio + error, note=note)


def draw(checkpoint_uri: str, sampling: SamplingConfig, start: int, num_images: int) -> Tensor:
    """Some of the images of one set."""
    torch.set_num_threads(1)
    images, _ = concatenated(generate(load_model(checkpoint_uri), num_images=num_images, start=start, seed=0, sampling=sampling))
    return images


def _told(reference: FeatureStatistics, blocks: BlockedMoments) -> str:
    return f"{frechet_distance(reference, blocks.total()):.2f} +- {jackknife_error(leave_one_out_distances(reference, blocks)):.2f}"


@dataclass(frozen=True, slots=True)
class Bits:
    """The bits/dim to take: of the first images of the test split, in which form, with which noise."""

    form: LikelihoodForm
    num_images: int
    seed: int


def likelihood(run: Run, pool: Executor, checkpoint_uri: str, data_uri: str) -> Measured:
    """Evaluations of all terms over those of the stratified estimate, each times its variance.

    An image's bits/dim varies by V between images. The estimate adds W, which several seeds show; the sum of all terms
    adds next to nothing. So the evaluations that give one standard error stand as T V to K (V + W).
    """
    num_images, num_seeds, num_checked = (20, 2, 2) if run.quick else (300, 4, 32)
    asked = [Bits("full", num_checked, 0), *(Bits("stratified", num_images, seed) for seed in range(num_seeds))]
    full, *estimated = [part.result() for part in [pool.submit(bits_per_dim, checkpoint_uri, data_uri, bits) for bits in asked]]
    estimates = torch.stack(estimated)
    experiment = load_model(checkpoint_uri).experiment
    num_steps, num_timesteps = experiment.evaluation.likelihood_steps, experiment.diffusion.num_timesteps
    added = estimates.var(dim=0).mean()
    each = num_timesteps / num_steps * (1 - added / estimates.var(dim=1))
    difference = estimates[:, :num_checked].mean(dim=0) - full
    note = (
        f"{num_steps} of {num_timesteps} terms; {num_images} images, {num_seeds} seeds; on {num_checked} images "
        f"{float(difference.mean()):+.4f} +- {float(difference.std()) / num_checked**0.5:.4f} bits/dim from all terms"
    )
    return Measured(value=float(each.mean()), low=float(each.min()), high=float(each.max()), note=note)


def bits_per_dim(checkpoint_uri: str, data_uri: str, bits: Bits) -> Tensor:
    """Return the bits/dim of each image."""
    torch.set_num_threads(1)
    model, batch = load_model(checkpoint_uri), next(Loader(f"{data_uri}/test", seed=0, global_batch_size=300).batches(0, 1))
    assert batch.labels is not None
    rows = (torch.arange(bits.num_images), batch.images[: bits.num_images], batch.labels[: bits.num_images])
    steps = model.experiment.evaluation.likelihood_steps
    found = merge(likelihood_parts(model.experiment.diffusion, model.network, [rows], form=bits.form, num_steps=steps, seed=bits.seed))
    return found.per_image
