"""The variances of the reverse steps that suit one checkpoint best, estimated on real images and stored in its run's directory.

`GaussianProcess.optimal_variance` needs one number for each timestep, the mean squared error of x_0. It depends on no chain, so one
estimate serves every spacing. There are two of them:

- "optimal": the error itself, |x_0 - x_0_theta(x_t)|^2 / d, which counts the network's own error too (Bao et al. 2022, "Estimating the
  optimal covariance with imperfect mean in diffusion probabilistic models").
- "analytic": (1 - alpha_bar) / alpha_bar (1 - E|eps_theta(x_t)|^2 / d), which is the same for a perfect network, clamped to the bounds
  for data in [-1, 1] (Bao et al. 2022, "Analytic-DPM", theorems 1 and 2). Where alpha_bar is tiny, a small error of the network decides
  the sign. So the estimate is made monotonic: the error of a perfect network does not fall as the noise grows.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evaluation.records.protocol_card import versions
from evaluation.records.run_directory import RESULT, TrainingFields, run_uri_of
from evaluation.sampling.learned_steps import cheapest_path, file_of_model
from evaluation.sampling.trained_model import TrainedModel, checkpoint_digest
from training import storage
from training.config.errors import UserError
from training.config.experiment import SamplingConfig
from training.config.plain import as_plain_fields
from training.config.spacing import likelihood_spacing, parse_spacing
from training.console import say
from training.data.format.manifest import read_manifest
from training.data.loading.row_groups import RowTensors, iterate
from training.diffusion.noise import Stream, keyed_normal
from training.diffusion.pixels import to_model_range
from training.diffusion.process import Denoiser, make_process
from training.shapes import Float64

DIRECTORY = "reverse_variance"
NUM_IMAGES = 256
_STRIDED = 50
_IMAGES_AT_A_TIME = 64
_SMALLEST_ERROR = 1e-8
OPTIMAL = SamplingConfig(variance="optimal")
"""A sampler of every timestep, with the variances that the learned likelihood takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReverseVariance:
    """Mean squared errors of x_0 by timestep, and how they were estimated.

    Attributes:
        timesteps: Increasing, from 0 to T - 1; every small one and an even stride.
        optimal, analytic: The error at each of them, in (0, 4]; see the module.
        num_images: Real images of the training data; each has its own noise at each timestep.
        seed: Keys the noise.
    """

    timesteps: tuple[int, ...]
    optimal: tuple[float, ...]
    analytic: tuple[float, ...]
    num_images: int
    seed: int
    data_uri: str
    data_digest: str
    model: str
    checkpoint_sha256: str
    seconds: float
    versions: dict[str, str]

    def errors_of(self, variance: str) -> tuple[float, ...]:
        """Return the estimate of that name, "optimal" or "analytic"."""
        return {"optimal": self.optimal, "analytic": self.analytic}[variance]


def x_0_errors_for(sampling: SamplingConfig, model: TrainedModel, *, batch_size: int = 0) -> Float64[Tensor, " timesteps"] | None:
    """Return the error of x_0 at each timestep that `sampling` visits, or None if its variance is the model's.

    Where no estimate is stored for the checkpoint, `find_or_estimate` makes it on the data of its training. Between the timesteps of the
    estimate, the logarithm of the error is a straight line in the log signal-to-noise ratio.

    Raises:
        UserError: There is no estimate, and the data of the training is not known.
    """
    if sampling.variance == "model":
        return None
    diffusion, stored = model.experiment.diffusion, find_or_estimate(model, batch_size=batch_size)
    alpha_bars = make_process(diffusion).alpha_bars
    log_snr = (alpha_bars.log() - (-alpha_bars).log1p()).numpy()
    known, wanted = list(stored.timesteps), list(parse_spacing(sampling.spacing, diffusion.num_timesteps))
    errors = np.interp(-log_snr[wanted], -log_snr[known], np.log(stored.errors_of(sampling.variance)))
    return torch.from_numpy(np.exp(errors))


def estimate_digest(sampling: SamplingConfig, model: TrainedModel) -> str | None:
    """Return a digest of the estimate that `x_0_errors_for` reads, None if it reads none. A later estimate would have the same address."""
    if sampling.variance == "model":
        return None
    stored = find_or_estimate(model)
    return hashlib.sha256(json.dumps([list(stored.timesteps), list(stored.errors_of(sampling.variance))]).encode()).hexdigest()


def find_or_estimate(model: TrainedModel, data_uri: str = "", *, batch_size: int = 0) -> ReverseVariance:
    """Return the stored errors of a model, or those that are estimated and stored now.

    Args:
        data_uri: The data set of an estimate that is made; empty takes that of the model's training.
        batch_size: Images at a time; 0 takes what suits the device. It changes the estimate by rounding.

    Raises:
        UserError: There is no estimate, and the data of the training is not known.
    """
    uri = file_of_model(model, DIRECTORY, "")
    if storage.exists(uri):
        return storage.read_record(uri, ReverseVariance)
    say(f"{model.description}: no variances are stored for it; estimating them now")
    return estimate_and_store(model, data_uri or _training_data(model), batch_size=batch_size)[0]


def least_bound_chain(model: TrainedModel, count: int) -> tuple[tuple[int, ...], Float64[Tensor, " timesteps"]]:
    """Return the `count` timesteps whose chain has the least variational bound with the optimal variances, and the error of x_0 at each."""
    process, errors = make_process(model.experiment.diffusion), x_0_errors_for(OPTIMAL, model)
    assert errors is not None
    timesteps = least_bound_timesteps(process.alpha_bars, errors, count)
    return timesteps, errors[list(timesteps)]


def least_bound_timesteps(alpha_bars: Float64[Tensor, " all"], x_0_errors: Float64[Tensor, " all"], count: int) -> tuple[int, ...]:
    """Return the `count` timesteps, 0 and T - 1 among them, whose chain has the least bound.

    With the optimal variance, the term of a step from t to s is log(1 + (SNR_s - SNR_t) E|x_0 - x_0_theta(x_t)|^2 / d) / 2 for each
    dimension, where SNR = alpha_bar / (1 - alpha_bar), and L_0 does not depend on the chain. Dynamic programming finds the least sum.

    Source: Watson et al. 2021, "Learning to efficiently sample from diffusion probabilistic models", section 3, with the terms of Bao et
    al. 2022, "Analytic-DPM", theorem 3.
    """
    noisiest_first = (alpha_bars / (1 - alpha_bars)).flip(0)
    growth = (noisiest_first - noisiest_first.unsqueeze(1)).clamp(min=0.0)
    terms = 0.5 * (growth * x_0_errors.flip(0).unsqueeze(1)).log1p()
    terms[torch.ones_like(terms).tril().bool()] = float("inf")
    return (0, *sorted(len(terms) - 1 - point for point in cheapest_path(terms, count - 1)))


def estimate_and_store(
    model: TrainedModel, data_uri: str, *, num_images: int = NUM_IMAGES, seed: int = 0, batch_size: int = 0
) -> tuple[ReverseVariance, str]:
    """Estimate the errors and write them beside the checkpoints of the model's run; return them and their address."""
    uri = file_of_model(model, DIRECTORY, "")
    storage.check_destination(uri)
    found = estimate(model, data_uri, num_images=num_images, seed=seed, batch_size=batch_size)
    storage.write_json(uri, as_plain_fields(found))
    return found, uri


def estimate(model: TrainedModel, data_uri: str, *, num_images: int = NUM_IMAGES, seed: int = 0, batch_size: int = 0) -> ReverseVariance:
    """Estimate the errors of x_0 on the first training images, by some 70 network evaluations each; refuse images of another model."""
    started, split_uri = time.monotonic(), storage.join(data_uri, "train")
    manifest, num_timesteps = read_manifest(split_uri), model.experiment.diffusion.num_timesteps
    num_images = min(num_images, manifest.num_images)
    timesteps = likelihood_spacing(num_timesteps, min(_STRIDED, num_timesteps))
    process = make_process(model.experiment.diffusion, timesteps)

    def sums(real: RowTensors, rows: slice) -> Tensor:
        """Return the sums of `_squares` over these rows at each timestep, [2, timesteps]."""
        indices, images, labels = real[0][rows].to(model.device), real[1][rows].to(model.device), real[2]
        x_0 = to_model_range(images)
        conditioning = model.conditioning(x_0, None if labels is None else labels[rows].to(model.device))
        denoiser, found = Denoiser(process, model.network, conditioning=conditioning), []
        for k, timestep in enumerate(timesteps):
            noise = keyed_normal(seed, Stream.REVERSE_VARIANCE, indices, model.image_shape, counter=timestep)
            found.append(_squares(denoiser, x_0, torch.full((len(x_0),), k, device=x_0.device), noise))
        return torch.tensor(found, dtype=torch.float64).T

    batches, total = model.batches(batch_size), torch.zeros(2, len(timesteps), dtype=torch.float64)
    for real in iterate(split_uri, _IMAGES_AT_A_TIME, stop=num_images):
        if tuple(real[1].shape[1:]) != model.image_shape:
            raise UserError(f"{split_uri} has images of {tuple(real[1].shape[1:])}, {model.description} makes {model.image_shape}")
        for part in batches.map(functools.partial(sums, real), len(real[0])):
            total += part
    errors, eps_norms = total
    rest = 1 - eps_norms / num_images
    analytic = ((1 - process.alpha_bars) / process.alpha_bars * rest).clamp(_SMALLEST_ERROR, 1.0)
    return ReverseVariance(
        timesteps=timesteps,
        optimal=tuple((errors / num_images).clamp(min=_SMALLEST_ERROR).tolist()),
        analytic=tuple(analytic.cummax(0).values.tolist()),
        num_images=num_images,
        seed=seed,
        data_uri=data_uri,
        data_digest=manifest.content_digest,
        model=model.description,
        checkpoint_sha256=checkpoint_digest(model.checkpoint_uri),
        seconds=round(time.monotonic() - started, 1),
        versions=versions(),
    )


def _squares(denoiser: Denoiser, x_0: Tensor, t: Tensor, noise: Tensor) -> tuple[float, float]:
    """Return the sums over the images of |x_0 - x_0_theta|^2 / d, with the x_0 that sampling clips, and of |eps_theta|^2 / d."""
    process = denoiser.process
    with torch.no_grad():
        x_t = process.q_sample(x_0, t, noise)
        output = denoiser.network(x_t, process.model_timesteps(t), **denoiser.conditioning)
        clipped, free = (process.read_output(output, x_t, t, clip_denoised=clip) for clip in (True, False))
    error, eps_norm = ((value.double().square().flatten(1).mean(1)).sum() for value in (x_0 - clipped.x_0, free.eps))
    return float(error), float(eps_norm)


def _training_data(model: TrainedModel) -> str:
    """Return the data set that the model's run was trained on."""
    result = storage.join(run_uri_of(model.checkpoint_uri), RESULT)
    data_uri = storage.read_json(result, TrainingFields).get("data_uri", "") if storage.exists(result) else ""
    if not data_uri:
        raise UserError(f"the data of {model.description} is not known; run 'iddpm learn-variance' with --data first")
    return str(data_uri)
