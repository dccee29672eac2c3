"""What an ablation takes of one model beyond the reported numbers: by sampling steps, by likelihood steps, by timestep, by weights.

Every measure is kept in the run's directory under what it depends on, so that a trial that was killed, or another ablation
of the same run, takes it once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from evaluation.ablations.trials.record import TrialModel
from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.run import evaluate
from evaluation.likelihood.bits_per_dim import Likelihood
from evaluation.likelihood.estimate import evaluate_likelihood
from evaluation.monitoring.checkpoint_scorer import read_history
from evaluation.records import npz
from evaluation.records.devices import choose_device
from evaluation.records.protocol_card import as_plain, derived_seed, describe_sampling
from evaluation.records.result import EvaluationResult
from evaluation.records.run_directory import EVALUATIONS, SAMPLES, checkpoint_digest
from evaluation.sampling.generate import concatenated, generate
from evaluation.sampling.trained_model import ModelSpec, TrainedModel
from evaluation.selection.final_choice import stored_result
from training import storage
from training.checkpoints import averages, checkpoint
from training.config.experiment import Experiment, SamplingConfig, SamplingMethod
from training.config.spacing import likelihood_spacing, parse_spacing, uniform_spacing
from training.console import say
from training.data.format.shards import read_manifest
from training.data.loading.loader import iterate
from training.models.posthoc_ema import ReconstructionError
from training.models.upsampler import make_low_res

NUM_GRID_IMAGES = 10
NUM_PAIRED_IMAGES = 100
PURPOSE = "ablation"
"""The draw that every ablation's grids show: models of one seed are seen on the same noise."""

_BATCH = 100
_MAX_ERROR = 0.02  # of a rebuilt average in a curve: a fiftieth of the way from the weights to their average


def distances_by_steps(subject: TrialModel, counts: Sequence[int], methods: Sequence[SamplingMethod]) -> dict[str, Any]:
    """The distance by number of sampling steps, and a grid whose columns have the same noise at every number.

    Source: supplement figures 1 and 8-19.

    Args:
        subject: The model.
        counts: Numbers of steps; those above T are left out, DDIM's at T too, where it is as dear as the ancestral sampler.
        methods: Samplers.

    Returns:
        `points`: method, num_steps, sampler, distance, standard_error; `distance_name`; `grids`: by method, rows of images.
    """
    num_timesteps = subject.experiment.diffusion.num_timesteps
    points: list[dict[str, Any]] = []
    rows: dict[str, list[dict[str, Any]]] = {}
    name = ""
    for method in methods:
        for count in counts:
            if count > num_timesteps or (method == "ddim" and count == num_timesteps):
                continue
            sampling = sampling_of(method, count, num_timesteps)
            options = EvaluationOptions(sampling=sampling, likelihood=False, metrics=(), result_name=f"{method}-{count}")
            result = _evaluated(_spec(subject), subject, options)
            name = result.distance_name
            points.append(
                {
                    "method": method,
                    "num_steps": count,
                    "sampler": describe_sampling(sampling, num_timesteps),
                    "distance": result.distance,
                    "standard_error": result.distance_standard_error,
                    "num_samples": result.protocol["distance"]["num_samples"],
                }
            )
            uri = sample_images(subject, sampling, NUM_GRID_IMAGES)
            rows.setdefault(method, []).append({"num_steps": count, "images_uri": uri})
    return {"points": points, "distance_name": name, "grids": rows}


def sampling_of(method: SamplingMethod, count: int, num_timesteps: int) -> SamplingConfig:
    """A sampler of so many steps; DDIM at the released code's even stride where there is one."""
    if count == num_timesteps:
        return SamplingConfig(method=method)
    if method == "ddim":
        try:
            parse_spacing(f"ddim{count}", num_timesteps)
            return SamplingConfig(method=method, spacing=f"ddim{count}")
        except ValueError:
            pass  # no integer stride gives this many
    return SamplingConfig(method=method, spacing=str(count))


def likelihood_by_steps(subject: TrialModel, counts: Sequence[int], num_images: int) -> dict[str, Any]:
    """Bits/dim by number of evaluation steps, at an even stride and with every t from 1 to T/K too (supplement section 5).

    Returns:
        `points`: spacing ("strided" or "with-small-t"), num_steps (K), num_evaluations, bits_per_dim, standard_error;
        `num_images`.
    """
    num_timesteps = subject.experiment.diffusion.num_timesteps
    points = []
    for count in counts:
        if count > num_timesteps:
            continue
        spacings = {"strided": uniform_spacing(num_timesteps, count)}
        if count < num_timesteps:
            spacings["with-small-t"] = likelihood_spacing(num_timesteps, count)
        for name, timesteps in spacings.items():
            found = _likelihood(subject, num_images, timesteps)
            points.append({"spacing": name, "num_steps": count, **found})
        say(f"bits/dim at {count:,} of {num_timesteps:,} steps: {points[-1]['bits_per_dim']:.4g}")
    return {"points": points, "num_images": points[0]["num_images"]}


def bound_terms(subject: TrialModel, num_images: int) -> dict[str, Any]:
    """Every term of the whole bound, on noise that is the same for every model (supplement figure 3)."""
    return _likelihood(subject, num_images, tuple(range(subject.experiment.diffusion.num_timesteps)), terms=True)


def samples(subject: TrialModel) -> dict[str, Any]:
    """Images by the reported sampler, on noise that is the same for every model of the seed (figures 4, 20, 21)."""
    sampling = subject.experiment.evaluation.sampling
    return {
        "images_uri": sample_images(subject, sampling, NUM_PAIRED_IMAGES),
        "sampler": describe_sampling(sampling, subject.experiment.diffusion.num_timesteps),
        "num_images": NUM_PAIRED_IMAGES,
    }


def score_history(subject: TrialModel) -> dict[str, Any]:
    """The scores beside training, of every decay (supplement figures 6 and 7)."""
    scores = read_history(subject.run_uri)
    return {
        "points": [{name: score[name] for name in ("step", "scores", "standard_errors")} for score in scores],
        "distance_name": scores[0]["distance_name"] if scores else "",
        "protocol": scores[0]["protocol"] if scores else None,
    }


def likelihood_history(subject: TrialModel, num_images: int) -> dict[str, Any]:
    """Bits/dim over the course of training (supplement figure 6), from averages rebuilt at every snapshot.

    The first decay of the experiment at each step at which the run stored snapshots. A step at which they do not determine
    the average (the first ones) is left out.
    """
    decay = subject.experiment.optim.ema_decays[0]
    steps = sorted({snapshot.step for snapshot in averages.snapshots(subject.run_uri)})
    points = []
    for step in steps:
        rebuilt = _rebuilt(subject, decay, step)
        if rebuilt is not None:
            points.append({"step": step, **_likelihood(rebuilt, num_images, None)})
    return {"points": points, "decay": decay, "left_out": [step for step in steps if step not in {p["step"] for p in points}]}


def distances_by_weights(subject: TrialModel) -> dict[str, Any]:
    """The distance of the weights that are trained and of every average of them, at the last checkpoint."""
    uri = checkpoint.latest(subject.run_uri) or subject.checkpoint_uri
    points = []
    for weights in reversed(checkpoint.weights_names(uri)):
        options = EvaluationOptions(likelihood=False, metrics=(), result_name=f"last-{weights}")
        result = _evaluated(ModelSpec(checkpoint_uri=uri, weights=weights), subject, options)
        points.append({"weights": weights, "distance": result.distance, "standard_error": result.distance_standard_error})
    return {"points": points, "step": checkpoint.step_of(uri)}


def sample_images(subject: TrialModel, sampling: SamplingConfig, num_images: int, *, spec: ModelSpec | None = None, name: str = "") -> str:
    """Draws the first images of the ablations' draw, once, and returns where they are."""
    spec = spec or _spec(subject)
    identity = {
        "digest": _digest(spec),
        "weights": [spec.weights, spec.ends_weights, spec.ends_width],
        "sampling": as_plain_sampling(sampling),
    }
    seed = derived_seed(subject.experiment.seed, PURPOSE)
    uri = storage.join(subject.run_uri, SAMPLES, f"ablation-{name}{_key({**identity, 'seed': seed, 'num_images': num_images})}.npz")
    if not storage.exists(uri):
        model = spec.load(choose_device("auto"))
        images, labels = concatenated(generate(model, num_images=num_images, seed=seed, sampling=sampling))
        npz.write_images(uri, images, labels)
    return uri


def as_plain_sampling(sampling: SamplingConfig) -> dict[str, Any]:
    """A sampler as JSON carries it."""
    return {"method": sampling.method, "spacing": sampling.spacing, "eta": sampling.eta, "clip_denoised": sampling.clip_denoised}


def _evaluated(spec: ModelSpec, subject: TrialModel, options: EvaluationOptions) -> EvaluationResult:
    kept = stored_result(spec, subject.data_uri, subject.reference_uri, options)
    return kept or evaluate(spec, subject.data_uri, subject.reference_uri, options=options)


def _spec(subject: TrialModel) -> ModelSpec:
    return ModelSpec(checkpoint_uri=subject.checkpoint_uri, weights=subject.weights)


def _likelihood(subject: TrialModel, num_images: int, timesteps: tuple[int, ...] | None, *, terms: bool = False) -> dict[str, Any]:
    """Bits/dim of the first images of the split: over those timesteps, or (None) as the experiment's protocol estimates it."""
    evaluation = subject.experiment.evaluation
    dataset_uri = storage.join(subject.data_uri, evaluation.likelihood_split)
    manifest = read_manifest(dataset_uri)
    num_images = min(num_images, manifest.num_images)
    form = evaluation.likelihood_form if timesteps is None else "spaced"
    seed = derived_seed(subject.experiment.seed, PURPOSE)
    identity = {
        "digest": _digest(_spec(subject)),
        "weights": subject.weights,
        "data": manifest.content_digest,
        "num_images": num_images,
        "form": form,
        "num_steps": evaluation.likelihood_steps if timesteps is None else None,
        "timesteps": timesteps,
        "seed": seed,
        "terms": terms,
    }

    def compute() -> dict[str, Any]:
        model = _spec(subject).load(choose_device("auto"))
        found = evaluate_likelihood(
            subject.experiment.diffusion,
            model.network,
            iterate(dataset_uri, _BATCH, stop=num_images),
            form=form,
            num_steps=evaluation.likelihood_steps,
            timesteps=timesteps,
            seed=seed,
            make_conditioning=lambda x_0, labels: _network_inputs(model, x_0, labels),
            device=model.device,
        )
        return _summary(found, terms=terms)

    return kept(storage.join(subject.run_uri, EVALUATIONS, f"ablation-likelihood-{_key(identity)}.json"), compute)


def _summary(found: Likelihood, *, terms: bool) -> dict[str, Any]:
    summary = found.to_dict()
    wanted = (
        "bits_per_dim",
        "standard_error",
        "num_images",
        "num_evaluations_per_image",
        *(("timesteps", "per_t", "prior") if terms else ()),
    )
    return {name: summary[name] for name in wanted}


def _network_inputs(model: TrainedModel, x_0: Tensor, labels: Tensor | None) -> Mapping[str, Tensor]:
    inputs: dict[str, Tensor] = {}
    if model.num_classes and labels is not None:
        inputs["y"] = labels
    size = model.experiment.model.low_res_size
    if size is not None:
        inputs["low_res"] = make_low_res(x_0, size)
    return inputs


def _rebuilt(subject: TrialModel, decay: float, step: int) -> TrialModel | None:
    out_uri = storage.join(subject.run_uri, "rebuilt", f"ema_{decay}")
    uri = checkpoint.checkpoint_uri(out_uri, step)
    if step not in checkpoint.steps(out_uri):
        try:
            averages.rebuild_average(subject.run_uri, out_uri, decay=decay, step=step, max_error=_MAX_ERROR)
        except ReconstructionError as error:
            say(f"step {step:,} is left out: {error}")
            return None
    return TrialModel(
        run_uri=subject.run_uri,
        checkpoint_uri=uri,
        weights=f"ema_{decay}",
        step=step,
        experiment=checkpoint.load_experiment(uri),
        data_uri=subject.data_uri,
        reference_uri=subject.reference_uri,
    )


def kept(uri: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is stored there, else what is computed now and stored."""
    if storage.exists(uri):
        stored: dict[str, Any] = storage.read_json(uri)
        return stored
    found: dict[str, Any] = as_plain(compute())
    storage.write_json(uri, found)
    return found


def _digest(spec: ModelSpec) -> list[str]:
    return [checkpoint_digest(uri) for uri in (spec.checkpoint_uri, spec.ends_checkpoint_uri) if uri]


def _key(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(as_plain(dict(identity)), sort_keys=True).encode()).hexdigest()[:12]


def read_images(uri: str, count: int | None = None) -> Tensor:
    """Images that `sample_images` drew, uint8 NCHW."""
    images, _ = npz.read_images(uri)
    return images if count is None else images[:count]


def paired_correlation(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Mean correlation of the pixels of image i of both sets, and of image i of one with image i + 1 of the other.

    Images from the same noise share their composition where the two models do; the second number is what images that share
    nothing have.
    """
    a, b = (_standardised(images) for images in (first, second))
    return float((a * b).mean()), float((a * b.roll(1, 0)).mean())


def _standardised(images: Tensor) -> Tensor:
    flat = images.double().flatten(1)
    return (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True, correction=0).clamp(min=1e-9)


def num_likelihood_images(experiment: Experiment) -> int:
    """Images on which curves of the likelihood are taken: fewer than of a reported number, since every step count takes them all."""
    return 100 if experiment.data.name == "digits" else 1000
