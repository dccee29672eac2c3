"""Bits/dim of a split in pieces: any number of workers, each image exactly once, nothing redone after a kill."""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from evaluation.likelihood.bits_per_dim import Likelihood, merge
from evaluation.likelihood.estimate import likelihood_parts
from evaluation.records.protocol_card import as_plain
from evaluation.sampling.trained_model import ModelSpec, TrainedModel
from training import storage
from training.config.errors import UserError
from training.config.experiment import LikelihoodForm
from training.console import format_duration, format_rate, format_remaining, say
from training.data.format.manifest import read_manifest
from training.data.loading.row_groups import iterate
from training.distributed.parallel_map import parallel_map
from training.models.upsampler import make_low_res

_SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LikelihoodPlan:
    """Everything that the number is a function of.

    Attributes:
        model: Which network.
        dataset_uri: The split's directory.
        num_images: Its first so many images (its order is a seeded shuffle).
        form: See `evaluation.likelihood.estimate`.
        num_steps: The paper's K.
        seed: Of the noise and of stratified timesteps.
        batch_size: Images at a time, which changes no number but by rounding.
        chunk_size: Images of one piece; what an interruption costs at most.
        timesteps: Another chain for the spaced form, in place of the one that K gives; None takes K's.
    """

    model: ModelSpec
    dataset_uri: str
    num_images: int
    form: LikelihoodForm
    num_steps: int
    seed: int
    batch_size: int = 100
    chunk_size: int = 100
    timesteps: tuple[int, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """What tells the pieces from others, as plain values for JSON."""
        plain: dict[str, Any] = as_plain(asdict(self))
        del plain["batch_size"]
        if self.timesteps is None:
            del plain["timesteps"]  # keeps the identity of plans that never had any
        return plain


@dataclass(frozen=True, slots=True)
class _Piece:
    plan: LikelihoodPlan
    uri: str
    number: int
    device: str


def split_likelihood(plan: LikelihoodPlan, work_uri: str, *, num_workers: int = 1, device: str = "cpu") -> Likelihood:
    """Bits/dim of the plan's images; pieces that are in the working directory are read, not redone.

    Args:
        plan: What to evaluate.
        work_uri: Directory for this plan's pieces alone.
        num_workers: 1 evaluates in this process; more are Ray tasks.
        device: Where each of them evaluates.

    Raises:
        UserError: The split has no images, or K is not possible.
    """
    available = read_manifest(plan.dataset_uri).num_images
    if not 1 <= plan.num_images <= available:
        raise UserError(f"{plan.dataset_uri} has {available:,} images; the likelihood of {plan.num_images:,} can't be taken")
    _loaded.cache_clear()  # the checkpoint may have been written anew since
    num_pieces = -(-plan.num_images // plan.chunk_size)
    present = set(storage.list_uris(work_uri))
    missing = [number for number in range(num_pieces) if _piece_uri(work_uri, number) not in present]
    started = shown = time.monotonic()
    done, total = 0, sum(_size(plan, number) for number in missing)
    jobs = [_Piece(plan, work_uri, number, device) for number in missing]
    for count in parallel_map(_evaluate_piece, jobs, num_workers=num_workers, num_gpus_per_worker=int(device != "cpu")):
        done += count
        now = time.monotonic()
        if now - shown > _SECONDS_BETWEEN_LINES:
            shown = now
            rate, left = format_rate(done, now - started, "images"), format_remaining(done, total, now - started)
            say(f"bits/dim of {done:,}/{total:,} images  {rate}  {left}")
    if done:
        say(f"took bits/dim of {done:,} images in {format_duration(time.monotonic() - started)}")
    return merge([_read_piece(work_uri, number) for number in range(num_pieces)])


def _evaluate_piece(piece: _Piece) -> int:
    plan, first = piece.plan, piece.number * piece.plan.chunk_size
    model = _loaded(plan.model, piece.device)
    parts = likelihood_parts(
        model.experiment.diffusion,
        model.network,
        iterate(plan.dataset_uri, plan.batch_size, start=first, stop=first + _size(plan, piece.number)),
        form=plan.form,
        num_steps=plan.num_steps,
        timesteps=plan.timesteps,
        seed=plan.seed,
        make_conditioning=lambda x_0, labels: _network_inputs(model, x_0, labels),
        device=model.device,
    )
    whole = merge(list(parts))
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    storage.write_bytes(_piece_uri(piece.uri, piece.number), buffer.getvalue())
    return whole.num_images


def _network_inputs(model: TrainedModel, x_0: Tensor, labels: Tensor | None) -> Mapping[str, Tensor]:
    """Labels for a conditional network; for an upsampler the image's own area downsample, as in its training."""
    inputs: dict[str, Tensor] = {}
    if model.num_classes:
        if labels is None:
            raise UserError(f"{model.description} is class-conditional, and the images have no labels")
        inputs["y"] = labels
    if model.experiment.model.low_res_size is not None:
        inputs["low_res"] = make_low_res(x_0, model.experiment.model.low_res_size)
    return inputs


def _read_piece(uri: str, number: int) -> Likelihood:
    state = torch.load(io.BytesIO(storage.read_bytes(_piece_uri(uri, number))), weights_only=True)
    return Likelihood.from_state_dict(state)


def _piece_uri(uri: str, number: int) -> str:
    return storage.join(uri, f"likelihood-{number:05d}.pt")


def _size(plan: LikelihoodPlan, number: int) -> int:
    return min(plan.chunk_size, plan.num_images - number * plan.chunk_size)


@functools.lru_cache(maxsize=1)
def _loaded(spec: ModelSpec, device: str) -> TrainedModel:
    return spec.load(device)
