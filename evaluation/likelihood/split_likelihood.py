"""Bits/dim of a split in chunks: any number of workers, each image exactly once, nothing redone after an interruption."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, field

import torch

from evaluation.likelihood.bits_per_dim import Likelihood, merge
from evaluation.likelihood.estimate import likelihood_parts
from evaluation.sampling.chunks import Chunk, ChunkedPlan, process_chunks
from evaluation.sampling.trained_model import ModelSpec, load_cached
from training import storage
from training.config.errors import UserError
from training.config.experiment import LikelihoodForm
from training.config.plain import LATER
from training.data.format.manifest import read_manifest
from training.data.loading.row_groups import iterate


@dataclass(frozen=True, kw_only=True, slots=True)
class LikelihoodPlan(ChunkedPlan):
    """Everything that the number depends on.

    Attributes:
        dataset_uri: The split's directory.
        data_digest: Digest of the split's content; empty if it is not known.
        num_images: Number of images, from the split's beginning (its order is a seeded shuffle).
        form, num_steps, timesteps, x_0_errors: See `evaluation.likelihood.estimate.likelihood_parts`.
        seed: Seed of the noise and of stratified timesteps.
        batch_size: Images per batch. It changes the numbers only by rounding.
        chunk_size: Images per file; an interruption loses at most the work on one file per worker.
    """

    model: ModelSpec
    dataset_uri: str
    num_images: int
    form: LikelihoodForm
    num_steps: int
    seed: int
    batch_size: int = 100
    chunk_size: int = 100
    timesteps: tuple[int, ...] | None = field(default=None, metadata=LATER)
    x_0_errors: tuple[float, ...] | None = field(default=None, metadata=LATER)
    data_digest: str = field(default="", metadata=LATER)


def split_likelihood(plan: LikelihoodPlan, work_uri: str, *, num_workers: int = 1, device: str = "cpu") -> Likelihood:
    """Compute bits/dim of the plan's images. Chunks that exist in the working directory are read, not redone.

    `work_uri` is for this plan's chunks alone. `num_workers` of 1 evaluates in this process; more are Ray tasks.

    Raises:
        UserError: The split has fewer images, or K is not possible.
    """
    available = read_manifest(plan.dataset_uri).num_images
    if not 1 <= plan.num_images <= available:
        raise UserError(f"{plan.dataset_uri} has {available:,} images; a likelihood of {plan.num_images:,} is not possible")
    uris = [storage.join(work_uri, f"likelihood-{number:05d}.pt") for number in range(plan.num_chunks)]
    process_chunks(_evaluate_chunk, plan, uris, directory=work_uri, activity="computed bits/dim of", num_workers=num_workers, device=device)
    return merge(map(_read_chunk, uris))


def _read_chunk(uri: str) -> Likelihood:
    data = storage.read_bytes(uri)
    try:
        return Likelihood.from_state_dict(torch.load(io.BytesIO(data), weights_only=True))
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
        raise UserError(f"{uri} is damaged. Delete this file, and the same command computes it again") from error


def _evaluate_chunk(chunk: Chunk[LikelihoodPlan]) -> int:
    plan = chunk.plan
    model = load_cached(plan.model, chunk.device)
    whole = merge(
        likelihood_parts(
            model.experiment.diffusion,
            model.network,
            iterate(plan.dataset_uri, plan.batch_size, start=chunk.start, stop=chunk.start + chunk.size),
            form=plan.form,
            num_steps=plan.num_steps,
            timesteps=plan.timesteps,
            x_0_errors=None if plan.x_0_errors is None else torch.tensor(plan.x_0_errors, dtype=torch.float64),
            seed=plan.seed,
            make_conditioning=model.conditioning,
            device=model.device,
        )
    )
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    storage.write_bytes(chunk.uri, buffer.getvalue())
    return whole.num_images
