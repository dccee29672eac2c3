"""The cost of an experiment: parameters, operations, hours of a named card and their price, memory.

Nothing is run: only shapes go through the network. The hours follow from the speeds that were measured on the card, or
from an assumed part of its peak (`training.cost.accelerators`). A multiply-accumulate (MAC) is two floating point operations
(FLOPs); the paper's "39 billion FLOPs" (supplement section 1) are MACs.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from training.config.errors import UserError
from training.config.experiment import EvaluationConfig, Experiment, SamplingConfig
from training.config.spacing import count_timesteps, likelihood_spacing
from training.cost.accelerators import CARDS, Card, card_named, speed_on
from training.cost.peak import fake_network, scoring_bytes, training_bytes
from training.models.unet import example_inputs, make_model

_BYTES_PER_WEIGHT = 4
# Weights, gradients, and Adam's two moments, in float32 under bf16 autocast too.
_COPIES_IN_TRAINING = 4
# A backward pass computes a gradient for inputs and one for weights, each as expensive as the forward pass.
TRAINING_PASSES = 3
# Images of the split on which bits/dim is reported, of the data sets whose size is known beforehand.
_LIKELIHOOD_IMAGES = {
    "digits": 300,
    "digits-few": 1_597,
    "fashion-mnist": 10_000,
    "cifar10": 10_000,
    "imagenet64-official": 49_999,
    "imagenet": 50_000,
    "lsun-bedroom": 300,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """The cost of one phase of a run.

    Attributes:
        forward_passes: Network evaluations of one image; a training image counts three.
        price: Price of those hours; None without a price per hour.
        basis: The measured speed, or the assumed part of the peak, that the hours follow from.
    """

    forward_passes: int
    flops: float
    card_hours: float
    price: float | None
    basis: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on one card in training.

    Attributes:
        state: Weights, gradients, Adam's moments and every average, in float32.
        activations_per_image_fp32: Kept for the backward pass, without gradient checkpointing.
        activations_per_image_bf16: The same under bf16 autocast (normalisations keep float32 inputs).
        largest_microbatch_bf16: Images that fit beside the state, with a tenth of the card left free; 0 if none does.
        microbatch: Images at once in the peaks: the whole batch, or the largest microbatch that fits.
        training_peak_fp32, training_peak_bf16: Most bytes in an update; see `training.cost.peak`.
        scoring_peak: Most bytes in a network evaluation of as many images in float32, as sampling and bits/dim need.
    """

    state: int
    activations_per_image_fp32: int
    activations_per_image_bf16: int
    largest_microbatch_bf16: int
    microbatch: int
    training_peak_fp32: int
    training_peak_bf16: int
    scoring_peak: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The cost of an experiment.

    Attributes:
        parameters: Trainable numbers.
        forward_macs: Multiply-accumulates of one image through the network.
        macs_by_kind: The same by kind: convolution, attention (the products of queries, keys and values), linear.
        utilisation: Part of the card's peak that training reaches, as measured or assumed.
        price: Price of all phases; None without a price per hour.
        phases: training; scoring (of checkpoints beside training); choice (the best checkpoints again at full protocol), where there is
            one; sampling (for the reported distance); likelihood, where the number of images is known beforehand.
    """

    experiment: str
    parameters: int
    tensors: int
    forward_macs: int
    forward_flops: int
    macs_by_kind: dict[str, int]
    card: str
    utilisation: float
    card_hours: float
    price: float | None
    phases: dict[str, Phase]
    memory: Memory | None

    def to_dict(self) -> dict[str, Any]:
        """Return a plain nested dictionary, for JSON."""
        return dataclasses.asdict(self)


# Most experiments of the paper share their network with others, and counting one takes half a second.
_counts: dict[tuple[object, ...], tuple[dict[str, int], int, int]] = {}


def _count_network(experiment: Experiment) -> tuple[dict[str, int], int, int]:
    """Return the network's MACs by kind, its number of parameters and its number of tensors."""
    key = (experiment.model, experiment.data, experiment.diffusion.variance)
    if key not in _counts:
        with torch.device("meta"):
            model = make_model(experiment)
        _counts[key] = count_macs(experiment), sum(parameter.numel() for parameter in model.parameters()), len(model.state_dict())
    return _counts[key]


def estimate(
    experiment: Experiment,
    card: str = "H100",
    *,
    utilisation: float | None = None,
    price_per_hour: float | None = None,
    with_memory: bool = True,
) -> Cost:
    """Return the cost of training and evaluating an experiment.

    Args:
        card: A name of `CARDS`; "CPU" is one core.
        utilisation: Part of the card's peak that is reached, in (0, 1]; None takes what was measured, or else assumes one.
        price_per_hour: Price of one card, in any currency.
        with_memory: Also estimate the memory, which takes seconds.

    Raises:
        UserError: There is no such card, or the utilisation or the price is out of its range.
    """
    card = card_named(card)
    if price_per_hour is not None and not 0 <= price_per_hour < math.inf:
        raise UserError(f"the price of an hour must be a finite number of at least 0, got {price_per_hour}")
    macs, parameters, tensors = _count_network(experiment)
    forward_macs = sum(macs.values())
    training, sampling = (speed_on(card, work, forward_macs, utilisation=utilisation) for work in ("training", "sampling"))

    def phase(name: str, forward_passes: int) -> Phase:
        flops, speed = 2.0 * forward_passes * forward_macs, training if name == "training" else sampling
        hours = flops / speed.flops_per_second / 3600
        price = None if price_per_hour is None else hours * price_per_hour
        return Phase(forward_passes=forward_passes, flops=flops, card_hours=hours, price=price, basis=speed.basis)

    phases = {name: phase(name, count) for name, count in count_forward_passes(experiment).items()}
    hours = sum(each.card_hours for each in phases.values())
    return Cost(
        experiment=experiment.name,
        parameters=parameters,
        tensors=tensors,
        forward_macs=forward_macs,
        forward_flops=2 * forward_macs,
        macs_by_kind=macs,
        card=card,
        utilisation=training.flops_per_second / CARDS[card].peak_flops,
        card_hours=hours,
        price=None if price_per_hour is None else hours * price_per_hour,
        phases=phases,
        memory=_memory(experiment, parameters, CARDS[card]) if with_memory else None,
    )


def count_forward_passes(experiment: Experiment) -> dict[str, int]:
    """Return the network evaluations of one image by phase, see `Cost.phases`."""
    optim, evaluation, num_timesteps = experiment.optim, experiment.evaluation, experiment.diffusion.num_timesteps

    def steps(sampling: SamplingConfig) -> int:
        return sampling.evaluations_per_step * count_timesteps(sampling.spacing, num_timesteps)

    checkpoints = math.ceil(optim.num_steps / optim.checkpoint_interval)
    scored_images = checkpoints * max(1, len(optim.ema_decays)) * evaluation.scoring_num_samples
    sampling = evaluation.num_samples * steps(evaluation.sampling)
    # A checkpoint guides none but later ones. A single candidate is not scored again.
    candidates = min(evaluation.rescore_best, checkpoints - evaluation.sampling.guidance_step // optim.checkpoint_interval)
    counts = {
        "training": TRAINING_PASSES * optim.num_steps * optim.global_batch_size,
        "scoring": scored_images * steps(evaluation.scoring_sampling),
        **({"choice": candidates * sampling} if candidates > 1 else {}),
        "sampling": sampling,
    }
    images = _LIKELIHOOD_IMAGES.get(experiment.data.name) if evaluation.likelihood_split == "test" else None
    if evaluation.likelihood_num_images is not None:
        images = min(images or evaluation.likelihood_num_images, evaluation.likelihood_num_images)
    if images is not None:
        counts["likelihood"] = images * likelihood_passes(evaluation, num_timesteps)
    return counts


def likelihood_passes(evaluation: EvaluationConfig, num_timesteps: int) -> int:
    """Return the network evaluations of one image for its likelihood, by the form that the experiment reports."""
    if evaluation.likelihood_form == "full":
        return num_timesteps
    if evaluation.likelihood_form == "spaced":
        return len(likelihood_spacing(num_timesteps, evaluation.likelihood_steps))
    return evaluation.likelihood_steps


def count_macs(experiment: Experiment) -> dict[str, int]:
    """Return the multiply-accumulates of one image through an experiment's network, by kind of operation."""
    with torch.device("meta"):
        model, inputs = make_model(experiment), example_inputs(experiment, 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    macs = {"convolution": 0, "attention": 0, "linear": 0}
    for operation, flops in counter.get_flop_counts()["Global"].items():
        name = str(operation)
        kind = "convolution" if "conv" in name else "attention" if "bmm" in name or "attention" in name else "linear"
        macs[kind] += flops // 2
    return macs


def activation_bytes(experiment: Experiment, batch_size: int, *, bf16: bool) -> int:
    """Return the bytes that a forward pass keeps for its backward pass: bf16 copies of the weights count, the weights do not."""
    kept: dict[int, Any] = {}
    fake = fake_network(experiment)
    model = fake.model.train()
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with (
        fake.mode,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        # The output lives until the sum is taken, so that no storage is freed and its identity used again.
        output = model(**example_inputs(fake.experiment, batch_size))
    total = sum(int(storage.nbytes()) for storage in kept.values())
    del output
    return total


def _memory(experiment: Experiment, parameters: int, card: Card) -> Memory:
    averages = len(experiment.optim.ema_decays) + len(experiment.optim.ema_snapshot_stds)
    state = _BYTES_PER_WEIGHT * (_COPIES_IN_TRAINING + averages) * parameters
    # Under autocast the difference of two images and one is what an image keeps: the rest, copies of the weights, does not grow.
    one_bf16 = activation_bytes(experiment, 1, bf16=True)
    per_image_bf16 = activation_bytes(experiment, 2, bf16=True) - one_bf16
    fixed = state + one_bf16 - per_image_bf16
    largest = max(0, int((0.9 * card.memory_gib * 2**30 - fixed) // per_image_bf16))
    microbatch = max(1, min(largest, experiment.optim.global_batch_size))
    return Memory(
        state=state,
        activations_per_image_fp32=activation_bytes(experiment, 1, bf16=False),
        activations_per_image_bf16=per_image_bf16,
        largest_microbatch_bf16=largest,
        microbatch=microbatch,
        training_peak_fp32=training_bytes(experiment, microbatch, bf16=False),
        training_peak_bf16=training_bytes(experiment, microbatch, bf16=True),
        scoring_peak=scoring_bytes(experiment, microbatch),
    )
