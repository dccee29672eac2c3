"""What fewer network evaluations cost in quality, on a model of digits that is trained here."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from digits_model import NUM_STEPS, trained_model
from measuring import Measured, Run

from evaluation.features import load_extractor
from evaluation.fid import BlockedMoments, FeatureStatistics, frechet_distance, jackknife_error, standard_error, without_each_block
from evaluation.generate import generate
from evaluation.likelihood import Likelihood, evaluate_likelihood
from evaluation.models import TrainedModel
from evaluation.reference import compute_reference
from training.config import LikelihoodForm, SamplingConfig
from training.data.loader import Loader

_FEW, _MANY = SamplingConfig(method="dpm_solver_pp", spacing="20"), SamplingConfig(spacing="250")


def measure(run: Run) -> Iterator[tuple[str, Measured]]:
    """The rows of this group. What is counted does not depend on the machine, so both cores may share the work."""
    torch.set_num_threads(2)
    model, data_uri = trained_model(run.scratch, num_steps=20 if run.quick else NUM_STEPS)
    yield "evaluations", Measured(value=250 / 20)
    yield "distance", distance(run, model, data_uri)
    yield "likelihood", likelihood(run, model, data_uri)


def distance(run: Run, model: TrainedModel, data_uri: str) -> Measured:
    """The ratio of two distances, and its standard error from leaving out a tenth of both at a time."""
    extractor = load_extractor("digits-classifier")
    reference = compute_reference(f"{data_uri}/train", extractor, str(run.scratch / "references")).features
    num_images = 40 if run.quick else 1000
    few, many = (_blocks(model, extractor, sampling, num_images) for sampling in (_FEW, _MANY))
    ratio = frechet_distance(reference, few.total()) / frechet_distance(reference, many.total())
    without = zip(without_each_block(reference, few), without_each_block(reference, many), strict=True)
    error = jackknife_error([one / other for one, other in without])
    note = f"{_told(reference, few)} against {_told(reference, many)}, {num_images} images each; the range is +- a standard error"
    return Measured(value=ratio, low=ratio - error, high=ratio + error, note=note)


def _blocks(model: TrainedModel, extractor: object, sampling: SamplingConfig, num_images: int) -> BlockedMoments:
    blocks = BlockedMoments(extractor.dim, num_images)  # type: ignore[attr-defined]
    for indices, images, _ in generate(model, num_images=num_images, seed=0, sampling=sampling):
        blocks.update(indices, extractor(images))  # type: ignore[operator]
    return blocks


def _told(reference: FeatureStatistics, blocks: BlockedMoments) -> str:
    return f"{frechet_distance(reference, blocks.total()):.2f} +- {standard_error(reference, blocks):.2f}"


def likelihood(run: Run, model: TrainedModel, data_uri: str) -> Measured:
    """Evaluations of all terms over those of the stratified estimate, each times its variance.

    An image's bits/dim varies by V between images. The estimate adds W, which several seeds show; the sum of all terms
    adds next to nothing. So the evaluations that give one standard error stand as T V to K (V + W).
    """
    num_images, num_seeds, num_checked = (20, 2, 2) if run.quick else (300, 6, 32)
    num_steps, num_timesteps = model.experiment.evaluation.likelihood_steps, model.experiment.diffusion.num_timesteps
    batch = next(Loader(f"{data_uri}/test", seed=0, global_batch_size=num_images).batches(0, 1))

    def bits(count: int, form: LikelihoodForm, seed: int) -> Likelihood:
        rows = (torch.arange(count), batch.images[:count], batch.labels[:count] if batch.labels is not None else None)
        return evaluate_likelihood(model.experiment.diffusion, model.network, [rows], form=form, num_steps=num_steps, seed=seed)

    estimates = torch.stack([bits(num_images, "stratified", seed).per_image for seed in range(num_seeds)])
    total = estimates.var(dim=1)  # V + W, a seed after another
    added = estimates.var(dim=0).mean()
    each = num_timesteps / num_steps * (total - added) / total
    full = bits(num_checked, "full", 0).per_image
    difference = estimates[:, :num_checked].mean(dim=0) - full
    error = float(difference.std()) / num_checked**0.5
    note = (
        f"K = {num_steps} of {num_timesteps} terms; {num_images} images, {num_seeds} seeds; "
        f"on {num_checked} images {float(difference.mean()):+.4f} +- {error:.4f} bits/dim from all terms"
    )
    return Measured(value=float(each.mean()), low=float(each.min()), high=float(each.max()), note=note)
