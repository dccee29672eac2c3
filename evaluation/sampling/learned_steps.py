"""The K timesteps that suit one checkpoint best, chosen on its own samples and stored in its run's directory.

A fine DDIM path is recorded once. From each of its points one long step to any later point costs nothing more, and its distance from the
recorded point is the step's truncation error. Dynamic programming finds the K steps with the least sum of errors.

Source: Chen et al. 2024, "On the trajectory regularity of ODE-based diffusion sampling", section 4 (GITS).
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.records.devices import Batches
from evaluation.records.protocol_card import versions
from evaluation.records.run_directory import run_uri_of
from evaluation.sampling.trained_model import TrainedModel, checkpoint_digest
from training import storage
from training.config.errors import UserError
from training.config.experiment import SamplingConfig
from training.config.plain import as_plain_fields
from training.config.spacing import count_timesteps, learned_count, uniform_spacing
from training.console import say
from training.diffusion.noise import Stream, keyed_normal
from training.diffusion.process import Denoiser, make_process
from training.diffusion.samplers.ddim import DDIM, ddim_sample
from training.diffusion.samplers.sampler import sample_loop
from training.shapes import Float64

DIRECTORY = "learned_steps"
FINE_STEPS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedSteps:
    """Timesteps that were chosen for a checkpoint, and how.

    Attributes:
        timesteps: Increasing; the last one is T - 1.
        error: Root mean square difference of the images that DDIM draws with these steps from those of the fine path, in [0, 2],
            on noise that the choice did not see.
        even_error: The same for as many even steps.
        num_images: Images of the fine path, and as many for the errors.
        seed: Keys their noise.
    """

    timesteps: tuple[int, ...]
    error: float
    even_error: float
    num_images: int
    seed: int
    model: str
    checkpoint_sha256: str
    seconds: float
    versions: dict[str, str]

    @property
    def spacing(self) -> str:
        """The steps as a spacing that any model understands."""
        return "t:" + ",".join(map(str, self.timesteps))


def with_learned_steps(sampling: SamplingConfig, model: TrainedModel, *, batch_size: int = 0) -> SamplingConfig:
    """Return the sampling with the model's own timesteps in place of `learned:K`; missing ones are chosen now, and stored.

    `batch_size` is that of the choice, as in `learn_steps`.
    """
    count = learned_count(sampling.spacing)
    if count is None:
        return sampling
    uri = file_of_model(model, DIRECTORY, f"-{count}")
    if storage.exists(uri):
        return dataclasses.replace(sampling, spacing=storage.read_record(uri, LearnedSteps).spacing)
    say(f"{model.description}: no {count} timesteps are stored for it; choosing them now")
    return dataclasses.replace(sampling, spacing=learn_and_store(model, count, batch_size=batch_size)[0].spacing)


def learn_and_store(
    model: TrainedModel, count: int, *, num_images: int = 64, seed: int = 0, batch_size: int = 0
) -> tuple[LearnedSteps, str]:
    """Choose timesteps and write them beside the checkpoints of the model's run; return them and their address."""
    uri = file_of_model(model, DIRECTORY, f"-{count}")
    storage.check_destination(uri)
    found = learn_steps(model, count, num_images=num_images, seed=seed, batch_size=batch_size)
    storage.write_json(uri, {"spacing": found.spacing, **as_plain_fields(found)})
    return found, uri


def learn_steps(model: TrainedModel, count: int, *, num_images: int = 64, seed: int = 0, batch_size: int = 0) -> LearnedSteps:
    """Choose `count` timesteps on the images that a model draws itself, by some 200 evaluations an image; refuse an upsampler.

    A `batch_size` of 0 takes what suits the device. It changes the errors only by rounding, and the choice only where two are that close.
    """
    count_timesteps(f"learned:{count}", model.experiment.diffusion.num_timesteps)
    if model.low_res_size is not None:
        raise UserError(f"{model.description} is an upsampler, for which no timesteps can be learned; give them, like t:0,200,999")
    started = time.monotonic()
    num_timesteps = model.experiment.diffusion.num_timesteps
    fine = uniform_spacing(num_timesteps, min(num_timesteps, max(FINE_STEPS, 4 * count)))
    batches = model.batches(batch_size)
    errors = step_errors(model, fine, torch.arange(num_images), seed, batches)
    timesteps = tuple(sorted(fine[-1 - i] for i in cheapest_path(errors, count)))
    others = torch.arange(num_images, 2 * num_images)
    path_end, learned, even = (
        _draw(model, steps, others, seed, batches) for steps in (fine, timesteps, uniform_spacing(num_timesteps, count))
    )
    return LearnedSteps(
        timesteps=timesteps,
        error=float((learned - path_end).square().mean().sqrt()),
        even_error=float((even - path_end).square().mean().sqrt()),
        num_images=num_images,
        seed=seed,
        model=model.description,
        checkpoint_sha256=checkpoint_digest(model.checkpoint_uri),
        seconds=round(time.monotonic() - started, 1),
        versions=versions(),
    )


def step_errors(model: TrainedModel, fine: Sequence[int], indices: Tensor, seed: int, batches: Batches) -> Float64[Tensor, "points points"]:
    """Return the error of one DDIM step between any two points of the fine path.

    Entry [i, j] is the root mean square distance from point j > i to the end of the step that starts at point i; it is infinite for
    j <= i. Points count from the noise. The last one is the image, so there is one more than `fine` has timesteps.
    """
    squares = torch.full((len(fine) + 1, len(fine) + 1), float("inf")).tril()

    def of_part(rows: slice) -> Tensor:
        part = indices[rows]
        return _squares(model, fine, part, seed, len(part) / len(indices))

    for part in batches.map(of_part, len(indices)):
        squares += part
    return squares.sqrt().double()


def _squares(model: TrainedModel, fine: Sequence[int], indices: Tensor, seed: int, share: float) -> Tensor:
    """Return the mean squared distances of these images' steps, weighted by their share of all images, above a diagonal of zeros."""
    squares = torch.zeros(len(fine) + 1, len(fine) + 1)
    denoiser, x = _denoiser(model, fine, indices), keyed_normal(seed, Stream.SAMPLE_START, indices.to(model.device), model.image_shape)
    process = denoiser.process
    points, predictions = [x], []
    with torch.no_grad():
        for k in reversed(range(len(fine))):
            prediction = denoiser.p_mean_variance(x, torch.full((len(x),), k, device=x.device))
            predictions.append((prediction.x_0, prediction.eps))  # the rest of it would take as much memory again
            x = ddim_sample(process, prediction, k, torch.zeros_like(x))
            points.append(x)
    alpha_bars = [*process.alpha_bars.flip(0).tolist(), 1.0]
    for i, (x_0, eps) in enumerate(predictions):
        for j in range(i + 1, len(points)):
            step = alpha_bars[j] ** 0.5 * x_0 + (1 - alpha_bars[j]) ** 0.5 * eps
            squares[i, j] = float((step - points[j]).square().mean()) * share
    return squares


def cheapest_path(errors: Float64[Tensor, "points points"], count: int) -> tuple[int, ...]:
    """Return the points of the path from the first to the last point with exactly `count` steps and the least sum of errors.

    The last point, at which no step begins, is left out.
    """
    cost, came_from = errors[0].clone(), []
    for _ in range(count - 1):
        total = cost.unsqueeze(1) + errors
        cost, best = total.min(dim=0)
        came_from.append(best)
    path = [len(errors) - 1]
    for best in reversed(came_from):
        path.append(int(best[path[-1]]))
    return (0, *reversed(path[1:]))


def _denoiser(model: TrainedModel, timesteps: Sequence[int], indices: Tensor) -> Denoiser:
    conditioning = {"y": (indices % model.num_classes).to(model.device)} if model.num_classes else {}
    return Denoiser(make_process(model.experiment.diffusion, timesteps), model.network, conditioning=conditioning)


def _draw(model: TrainedModel, timesteps: Sequence[int], indices: Tensor, seed: int, batches: Batches) -> Tensor:
    def draw(rows: slice) -> Tensor:
        start = keyed_normal(seed, Stream.SAMPLE_START, indices[rows].to(model.device), model.image_shape)
        return sample_loop(_denoiser(model, timesteps, indices[rows]), DDIM(), start)

    return torch.cat(list(batches.map(draw, len(indices))))


def file_of_model(model: TrainedModel, directory: str, ending: str) -> str:
    """Return a file beside the checkpoints of a model. A model that is trained again or moved has another, and so has its ensemble."""
    digests = " ".join(checkpoint_digest(uri) for uri in model.members)
    key = hashlib.sha256(f"{digests} {model.description}".encode()).hexdigest()[:12]
    return storage.join(run_uri_of(model.checkpoint_uri), directory, f"step={model.step:08d}-{key}{ending}.json")
