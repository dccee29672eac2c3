"""Bits per dimension of images under a model: the variational bound, in full, over fewer steps, or estimated.

For an image x_0 the bound is prior + sum over t of L_t (Ho et al. 2020, equation 5): the prior KL(q(x_T | x_0) || N(0, I)),
the decoder's -log p(x_0 | x_1) (L_0 here) and a KL for each step between. All are means over an image's dimensions in
bits. There are four forms:

- "full": every L_t once. T network evaluations an image.
- "spaced": the bound of the shorter chain that keeps the strided timesteps and every t from 1 to T/K (supplement
  section 5). It is a looser bound, not an estimate of the full one.
- "stratified": an unbiased estimate of the full bound from K evaluations; see `stratum_bounds`.
- "learned": the bound of the chain of K timesteps, and of the variances, that suit the checkpoint best
  (`evaluation.sampling.reverse_variance`). It too is the bound of a shorter chain.

Noise is keyed by (seed, image, original timestep), so the result depends on neither batches nor workers.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from evaluation.likelihood.bits_per_dim import Likelihood
from evaluation.records.devices import Batches, full_precision
from training.config.errors import UserError
from training.config.experiment import DiffusionConfig, LikelihoodForm
from training.config.spacing import likelihood_spacing
from training.diffusion.losses import bound_terms
from training.diffusion.noise import Stream, keyed_uniform
from training.diffusion.pixels import to_model_range
from training.diffusion.process import Denoiser, GaussianProcess, Model, make_process
from training.shapes import Float64, Int64

ImageBatch = tuple[Tensor, Tensor, Tensor | None]
"""Indices within the split, uint8 NCHW images as stored, labels."""
MakeConditioning = Callable[[Tensor, Tensor | None], Mapping[str, Tensor]]
_LAST_TIMESTEPS_WEIGHT = 0.2
"""Weight of the last timesteps relative to the first ones in `stratum_bounds`."""


def likelihood_parts(
    diffusion: DiffusionConfig,
    model: Model,
    batches: Iterable[ImageBatch],
    *,
    form: LikelihoodForm = "full",
    num_steps: int = 100,
    timesteps: Sequence[int] | None = None,
    x_0_errors: Float64[Tensor, " timesteps"] | None = None,
    seed: int = 0,
    clip_denoised: bool = True,
    make_conditioning: MakeConditioning | None = None,
    device: torch.device | str | None = None,
) -> Iterator[Likelihood]:
    """Compute bits/dim batch by batch; `evaluation.likelihood.bits_per_dim.merge` joins the parts.

    Args:
        diffusion: The process that the model was trained for.
        model: The network, in evaluation mode. It runs in float32 even under autocast, because rounding its mean to
            bfloat16 alone costs some hundredths of a bit.
        batches: Indices (int64), images and labels (or None) of each batch. Images are neither flipped nor resized.
        form: "full", "spaced", "stratified" or "learned".
        num_steps: K of the spacing, or of the stratified estimate; not used by "full".
        timesteps: Another chain for "spaced", in place of the one that K gives; for "learned" the chain.
        x_0_errors: For "learned", the error of x_0 at each of them, which gives the variances (`GaussianProcess.optimal_variance`).
        seed: Keys the noise and the stratified timesteps.
        clip_denoised: Clamp the predicted x_0 to [-1, 1], as the paper's released code does.
        make_conditioning: Returns the network's further inputs for (x_0, labels). None passes the labels, if there are any,
            as `y`; a model that takes no labels needs `lambda x_0, labels: {}`.
        device: The device to compute on; None is the device of each batch's images.

    Yields:
        One part per batch, on the CPU; several of a batch for which the device has no memory.

    Raises:
        UserError: A batch is not uint8, K is not possible, or the device has no memory for one image.
        ValueError: `timesteps` are not increasing, or not of this process.
    """
    chosen = form in ("spaced", "learned")
    if timesteps is not None and not chosen:
        raise UserError(f"only the 'spaced' and 'learned' forms take timesteps; this one is {form!r}")
    if (form == "learned") != (x_0_errors is not None):
        raise ValueError("the 'learned' form, and it alone, takes the errors of x_0")
    if timesteps is None:
        require_num_steps(form, num_steps, diffusion.num_timesteps)
    if form == "spaced" and timesteps is None:
        timesteps = likelihood_spacing(diffusion.num_timesteps, num_steps)
    process = make_process(diffusion, timesteps if chosen else None, x_0_errors)
    bounds = stratum_bounds(process.num_timesteps, num_steps) if form == "stratified" else ()

    def part(batch: ImageBatch, rows: slice) -> Likelihood:
        target = torch.device(device) if device is not None else batch[1].device
        indices, x_0 = batch[0][rows].to(target), to_model_range(batch[1][rows].to(target))
        labels = batch[2][rows].to(target) if batch[2] is not None else None
        default = {} if labels is None else {"y": labels}
        conditioning = default if make_conditioning is None else make_conditioning(x_0, labels)
        denoiser = Denoiser(process, model, conditioning=conditioning, clip_denoised=clip_denoised)
        return _part(denoiser, x_0, indices, form=form, bounds=bounds, seed=seed)

    that_fit = Batches(sys.maxsize, device or "the device", "the likelihood of a single image")
    for batch in batches:
        if batch[1].dtype != torch.uint8:
            raise UserError(f"bits/dim is defined on stored uint8 images; the batch's are {batch[1].dtype}")
        yield from that_fit.map(functools.partial(part, batch), len(batch[0]))


def require_num_steps(form: LikelihoodForm, num_steps: int, num_timesteps: int) -> None:
    """Check that a form of the likelihood can be evaluated in that number of steps; raise UserError if it can't."""
    fewest = 2 if form in ("stratified", "learned") else 1
    if form != "full" and not fewest <= num_steps <= num_timesteps:
        raise UserError(f"a {form} likelihood takes {fewest} to {num_timesteps} steps, got {num_steps}")


def _part(
    denoiser: Denoiser, x_0: Tensor, indices: Int64[Tensor, " batch"], *, form: LikelihoodForm, bounds: Sequence[int], seed: int
) -> Likelihood:
    process = denoiser.process

    def term(t: Tensor) -> Tensor:
        return bound_terms(denoiser, x_0, t, indices=indices, seed=seed).double()

    with torch.no_grad(), full_precision(x_0.device.type):
        prior = process.prior_bits_per_dim(x_0).double()
        if form == "stratified":
            total, decoder = _stratified_sum(term, bounds, indices, seed)
            sums, evaluations = total.new_zeros(0), len(bounds) - 1
        else:
            total, decoder, sums = _whole_sum(term, process, indices)
            evaluations = process.num_timesteps
    return Likelihood(
        form=form,
        num_evaluations_per_image=evaluations,
        indices=indices.cpu(),
        per_image=(prior + total).cpu(),
        prior_per_image=prior.cpu(),
        decoder_per_image=decoder.cpu(),
        timesteps=() if form == "stratified" else process.timesteps,
        term_sums=sums.cpu(),
    )


def _stratified_sum(
    term: Callable[[Tensor], Tensor], bounds: Sequence[int], indices: Int64[Tensor, " batch"], seed: int
) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, " batch"]]:
    """Estimate the sum of L_t, and return it with L_0. Each image draws its own timestep from each stratum."""
    total = decoder = term(torch.zeros_like(indices))
    for stratum in range(1, len(bounds) - 1):
        start, stop = bounds[stratum], bounds[stratum + 1]
        t = torch.full_like(indices, start)
        if stop - start > 1:
            u = keyed_uniform(seed, Stream.LIKELIHOOD_TIMESTEP, indices, counter=stratum)
            t = t + (u * (stop - start)).long()
        total = total + (stop - start) * term(t)
    return total, decoder


def _whole_sum(
    term: Callable[[Tensor], Tensor], process: GaussianProcess, indices: Int64[Tensor, " batch"]
) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, " batch"], Float64[Tensor, " terms"]]:
    """Return the sum of L_t over the chain, L_0, and each L_t summed over the images."""
    total = decoder = term(torch.zeros_like(indices))
    sums = [total.sum()]
    for k in range(1, process.num_timesteps):
        drawn = term(torch.full_like(indices, k))
        total = total + drawn
        sums.append(drawn.sum())
    return total, decoder, torch.stack(sums)


def stratum_bounds(num_timesteps: int, num_steps: int) -> tuple[int, ...]:
    """Return the boundaries 0 = b_0 < ... < b_K = T of the strata from which the stratified estimate draws one timestep each.

    sum over t of L_t = sum over strata of (width * mean of L_t within), and one t drawn uniformly from a stratum gives an
    unbiased estimate of its summand. A stratum of one timestep is exact. The variance is least if strata are narrow where L_t
    is large and changes much. L_t falls about as 1/t: it is the change of the signal-to-noise ratio, near x_0 about 1/t^3, times the
    squared error of the predicted x_0, about t^2. So the strata have equal mass under 1 / (t + 1), and the low timesteps are exact.
    To that a smaller 1 / (T - t) is added for the last timesteps, where a model that does not know pure noise well can be far off
    (figure 3). Timestep 0, the decoder, is always exact.

    Args:
        num_timesteps: T.
        num_steps: K.

    Raises:
        ValueError: K is not in 2..T.
    """
    if not 2 <= num_steps <= num_timesteps:
        raise ValueError(f"strata of {num_timesteps} timesteps number 2 to {num_timesteps}, not {num_steps}")
    t = torch.arange(num_timesteps, dtype=torch.float64)
    mass = 1 / (t + 1) + _LAST_TIMESTEPS_WEIGHT / (num_timesteps - t)
    cumulative = torch.cat([mass.new_zeros(1), mass.cumsum(0)])
    bounds = [0, 1]
    for remaining in range(num_steps - 1, 0, -1):
        here = bounds[-1]
        target = cumulative[here] + (cumulative[-1] - cumulative[here]) / remaining
        following = int((cumulative - target).abs().argmin())
        bounds.append(min(max(following, here + 1), num_timesteps - (remaining - 1)))
    return tuple(bounds)
