"""The measures of a trial beyond its reported numbers: by sampling steps, by likelihood steps, by timestep, by weights.

Every result is stored in the run's directory under a digest of what it depends on. So it is computed once, also after
an interruption and for another ablation of the same run.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from evaluation.ablations.definitions.ablation import Measure
from evaluation.ablations.definitions.cost import NUM_PAIRED_IMAGES, num_curve_images
from evaluation.ablations.trials.trial_model import TrialModel
from evaluation.likelihood.split_likelihood import LikelihoodPlan, split_likelihood
from evaluation.monitoring.checkpoint_scorer import read_comparable
from evaluation.records import npz
from evaluation.records.numbers import plain_estimate
from evaluation.records.protocol_card import derived_seed, describe_sampling
from evaluation.records.run_directory import EVALUATIONS, SAMPLES
from evaluation.sampling.generate import concatenated, generate
from evaluation.sampling.learned_steps import with_learned_steps
from evaluation.sampling.reverse_variance import OPTIMAL, estimate_digest, find_or_estimate, least_bound_chain
from evaluation.sampling.trained_model import ModelSpec
from training import storage
from training.checkpoints import averages, checkpoint
from training.config.errors import UserError
from training.config.experiment import OptimConfig, SamplingConfig, SamplingMethod
from training.config.plain import as_plain, as_plain_fields
from training.config.spacing import learned_count, likelihood_spacing, parse_spacing, uniform_spacing
from training.console import say
from training.data.format.manifest import read_manifest
from training.models.posthoc_ema import ReconstructionError, Snapshot, combine, sufficient

NUM_GRID_IMAGES = 10
PURPOSE = "ablation"
"""Purpose in `derived_seed` for all grids and curves, so that all models of one seed have the same noise."""

_MAX_REBUILD_ERROR = 0.02
"""Largest error of a rebuilt average in a curve, in units of the distance from the weights to the average."""
_SUMMARY = ("bits_per_dim", "standard_error", "num_images", "num_evaluations_per_image")
_TERMS = ("timesteps", "per_t", "prior")


def measure(name: Measure, model: TrialModel, counts: Sequence[int]) -> dict[str, Any]:
    """Compute one measure, or read its stored result.

    `name` is any measure but "final", which is the reported evaluation; `counts` are the numbers of steps of the curves.
    """
    methods: dict[Measure, Callable[[], dict[str, Any]]] = {
        "sampling-steps": lambda: distances_by_steps(model, counts, ("ancestral", "ddim")),
        "figure-1": lambda: distances_by_steps(model, counts, (figure_1_sampler(model),)),
        "likelihood-steps": lambda: likelihood_by_steps(model, counts),
        "bound": lambda: _likelihood(model, tuple(range(model.experiment.diffusion.num_timesteps)), terms=True),
        "samples": lambda: draw_samples(model),
        "history": lambda: score_history(model),
        "history-likelihood": lambda: likelihood_history(model),
        "raw-weights": lambda: measure_distances_by_weights(model),
    }
    return methods[name]()


def distances_by_steps(model: TrialModel, counts: Sequence[int], methods: Sequence[SamplingMethod]) -> dict[str, Any]:
    """Measure the distance by number of sampling steps, and draw grids with the same noise at every number.

    Source: supplement figures 1 and 8-19.

    Numbers of steps above T are left out; for DDIM T too, where it costs as much as the ancestral sampler.

    Returns:
        `points`: method, num_steps, sampler, distance, standard_error, num_samples; `distance_name`; `grids`: method -> rows
        of num_steps and images_uri.
    """
    num_timesteps = model.experiment.diffusion.num_timesteps
    points: list[dict[str, Any]] = []
    rows: dict[str, list[dict[str, Any]]] = {}
    name = ""
    for method in methods:
        for count in counts:
            if count > num_timesteps or (method == "ddim" and count == num_timesteps):
                continue
            sampling = sampling_of(method, count, num_timesteps)
            result = model.evaluate(sampling=sampling, likelihood=False, held_out=False, metrics=(), result_name=f"{method}-{count}")
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
            uri = sample_images(model, sampling, NUM_GRID_IMAGES)
            rows.setdefault(method, []).append({"num_steps": count, "images_uri": uri})
    return {"points": points, "distance_name": name, "grids": rows}


def figure_1_sampler(model: TrialModel) -> SamplingMethod:
    """Return the sampler of supplement figure 1: DDIM for models of L_simple, ancestral for those with a learned variance."""
    return "ancestral" if model.experiment.diffusion.variance == "learned_range" else "ddim"


def sampling_of(method: SamplingMethod, count: int, num_timesteps: int) -> SamplingConfig:
    """Return a sampler with this number of steps; DDIM has the released code's even stride where one gives this number."""
    if count == num_timesteps:
        return SamplingConfig(method=method)
    if method == "ddim":
        try:
            parse_spacing(f"ddim{count}", num_timesteps)
            return SamplingConfig(method=method, spacing=f"ddim{count}")
        except ValueError:
            pass  # no integer stride gives this number
    return SamplingConfig(method=method, spacing=str(count))


def likelihood_by_steps(model: TrialModel, counts: Sequence[int]) -> dict[str, Any]:
    """Measure bits/dim by number of evaluation steps K: with an even stride, and with every t from 1 to T/K added (supplement section 5).

    Returns:
        `points`: spacing ("strided" or "with-small-t"), num_steps, num_evaluations_per_image, bits_per_dim, standard_error;
        `num_images`.

    Raises:
        UserError: Every number of steps is above T.
    """
    num_timesteps = model.experiment.diffusion.num_timesteps
    points = []
    for count in counts:
        if count > num_timesteps:
            continue
        spacings = {"strided": uniform_spacing(num_timesteps, count)}
        if count < num_timesteps:
            spacings["with-small-t"] = likelihood_spacing(num_timesteps, count)
        for name, timesteps in spacings.items():
            points.append({"spacing": name, "num_steps": count, **_likelihood(model, timesteps)})
        say(f"bits/dim at {count:,} of {num_timesteps:,} steps: {plain_estimate(points[-1]['bits_per_dim'], None)}")
    if not points:
        raise UserError(f"bits/dim of {num_timesteps} timesteps have no curve over {', '.join(map(str, counts))} steps, which are more")
    return {"points": points, "num_images": points[0]["num_images"]}


def draw_samples(model: TrialModel, *, spec: ModelSpec | None = None, name: str = "") -> dict[str, Any]:
    """Draw images by the reported sampler, on noise that is the same for every model of the seed (figures 4, 20, 21).

    The arguments are those of `sample_images`.
    """
    sampling = model.experiment.evaluation.sampling
    return {
        "images_uri": sample_images(model, sampling, NUM_PAIRED_IMAGES, spec=spec, name=name),
        "sampler": describe_sampling(sampling, model.experiment.diffusion.num_timesteps),
        "num_images": NUM_PAIRED_IMAGES,
    }


def score_history(model: TrialModel) -> dict[str, Any]:
    """Return the scores beside training, for every decay (supplement figures 6 and 7)."""
    scores = read_comparable(model.run_uri, model.experiment.evaluation)
    return {
        "points": [{name: score[name] for name in ("step", "scores", "standard_errors")} for score in scores],
        "distance_name": scores[0]["distance_name"] if scores else "",
        "protocol": scores[0]["protocol"] if scores else None,
    }


@functools.cache
def require_history(optim: OptimConfig) -> None:
    """Refuse a training from whose snapshots `likelihood_history` could not rebuild the average to its end.

    A power-function average widens as the training goes on, and an exponential one does not. So the last checkpoint is the hardest.

    Raises:
        UserError: There is no average or no snapshot, or the snapshots do not determine the average; the message says what helps.
    """
    if not optim.ema_decays or not optim.ema_snapshot_stds:
        raise UserError(
            "bits/dim over training are those of an average of the weights, rebuilt from snapshots; "
            "set optim.ema_decays, like 0.99, and optim.ema_snapshot_stds, like 0.05,0.1,0.2"
        )
    decay, last, interval = optim.ema_decays[0], optim.num_steps, optim.checkpoint_interval
    stored = [Snapshot(step=step, std=std) for step in (*range(interval, last, interval), last) for std in optim.ema_snapshot_stds]
    error = combine(sufficient(stored, step=last, decay=decay, max_error=_MAX_REBUILD_ERROR), step=last, decay=decay).error
    if error > _MAX_REBUILD_ERROR:
        raise UserError(
            f"bits/dim over training are those of the average of decay {decay:g}, and snapshots of every {interval:,} updates would not "
            f"determine it: at step {last:,} it would be off by {error:.1%}, and {_MAX_REBUILD_ERROR:.0%} is allowed; set a smaller "
            "optim.checkpoint_interval, narrower snapshots too (optim.ema_snapshot_stds=0.01,0.02,0.05,0.1,0.2), or a longer average "
            "(optim.ema_decays)"
        )


def likelihood_history(model: TrialModel) -> dict[str, Any]:
    """Measure bits/dim over the course of training (supplement figure 6), from averages rebuilt at every snapshot.

    The average has the experiment's first decay. Steps whose snapshots do not determine it are left out: of a training that
    `require_history` allows, at most the first ones.

    Raises:
        UserError: The experiment has no average.
    """
    if not model.experiment.optim.ema_decays:
        raise UserError("optim.ema_decays: bits/dim over training are those of an average of the weights; give one, like 0.99")
    decay = model.experiment.optim.ema_decays[0]
    steps = sorted({snapshot.step for snapshot in averages.snapshots(model.run_uri)})
    points = []
    for step in steps:
        rebuilt = _rebuild(model, decay, step)
        if rebuilt is not None:
            points.append({"step": step, **_likelihood(rebuilt, None)})
    present = {point["step"] for point in points}
    return {"points": points, "decay": decay, "left_out": [step for step in steps if step not in present]}


def measure_distances_by_weights(model: TrialModel) -> dict[str, Any]:
    """Measure the distance of the trained weights and of every average of them, at the last checkpoint."""
    uri = checkpoint.latest(model.run_uri) or model.checkpoint_uri
    points = []
    for weights in reversed(checkpoint.weights_names(uri)):
        spec = ModelSpec(checkpoint_uri=uri, weights=weights)
        result = model.evaluate(spec, likelihood=False, held_out=False, metrics=(), result_name=f"last-{weights}")
        points.append({"weights": weights, "distance": result.distance, "standard_error": result.distance_standard_error})
    return {"points": points, "step": checkpoint.step_of(uri)}


def sample_images(model: TrialModel, sampling: SamplingConfig, num_images: int, *, spec: ModelSpec | None = None, name: str = "") -> str:
    """Draw images on the ablations' common noise, unless they are stored, and return their URI.

    `spec` are other weights or an ensemble, in place of the model's own; `name` is a prefix of the file's name.
    """
    spec, seed, device = spec or model.spec, derived_seed(model.experiment.seed, PURPOSE), model.options.own_device
    if learned_count(sampling.spacing) is not None:
        sampling = with_learned_steps(sampling, spec.load(device))
    identity = {
        "digest": list(spec.digests()),
        "weights": [spec.weights, spec.ends_weights, spec.ends_width],
        "sampling": as_plain_fields(sampling),
        "seed": seed,
        "num_images": num_images,
    }
    if sampling.variance != "model":
        identity["estimate"] = estimate_digest(sampling, spec.load(device))
    uri = storage.join(model.run_uri, SAMPLES, f"ablation-{name}{_key(identity)}.npz")
    if not storage.exists(uri):
        images, labels = concatenated(generate(spec.load(device), num_images=num_images, seed=seed, sampling=sampling))
        npz.write_images(uri, images, labels)
    return uri


def read_images(uri: str, count: int | None = None) -> Tensor:
    """Read the first images of a file, or all of them, as uint8 NCHW."""
    images, _ = npz.read_images(uri)
    return images if count is None else images[:count]


def paired_correlation(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixel correlation of image i of one set with image i of the other, and with image i - 1, for each i.

    Image i of both sets is drawn from the same noise. The second correlation is that of unrelated images; image 0 has the last one. Both
    are float64 of shape [images].
    """
    a, b = (_standardise(images) for images in (first, second))
    return (a * b).mean(1), (a * b.roll(1, 0)).mean(1)


def _likelihood(model: TrialModel, timesteps: tuple[int, ...] | None, *, terms: bool = False) -> dict[str, Any]:
    """Return bits/dim of the first images of the split, or the stored result. The noise is the same for every model.

    `timesteps` are the chain of the bound; None takes the form of the experiment's protocol. `terms` adds the terms by timestep.
    """
    evaluation = model.experiment.evaluation
    dataset_uri = storage.join(model.data_uri, evaluation.likelihood_split)
    manifest = read_manifest(dataset_uri)
    form = evaluation.likelihood_form if timesteps is None else "spaced"
    chain, x_0_errors, of_estimate = timesteps, None, {}
    if form == "learned":
        loaded = model.spec.load(model.options.own_device)
        find_or_estimate(loaded, model.data_uri)  # the directory of a rebuilt average names no data
        chain, errors = least_bound_chain(loaded, evaluation.likelihood_steps)
        x_0_errors, of_estimate = tuple(errors.tolist()), {"estimate": estimate_digest(OPTIMAL, loaded)}
    plan = LikelihoodPlan(
        model=model.spec,
        dataset_uri=dataset_uri,
        num_images=min(num_curve_images(model.experiment), manifest.num_images),
        form=form,
        num_steps=evaluation.likelihood_steps,
        seed=derived_seed(model.experiment.seed, PURPOSE),
        timesteps=chain,
        x_0_errors=x_0_errors,
    )
    identity = {
        "digest": list(model.spec.digests()),
        "weights": model.weights,
        "data": manifest.content_digest,
        "num_images": plan.num_images,
        "form": plan.form,
        "num_steps": plan.num_steps if timesteps is None else None,
        "timesteps": timesteps,
        "seed": plan.seed,
        "terms": terms,
        **of_estimate,
    }
    key = _key(identity)
    uri = storage.join(model.run_uri, EVALUATIONS, f"ablation-likelihood-{key}.json")
    if not storage.exists(uri):
        work_uri = storage.join(model.run_uri, EVALUATIONS, f"work-ablation-{key}")
        found = split_likelihood(plan, work_uri, num_workers=model.options.num_workers, device=model.options.worker_device).to_dict()
        storage.write_json(uri, as_plain({name: found[name] for name in (*_SUMMARY, *(_TERMS if terms else ()))}))
        storage.delete_prefix(work_uri)
    stored: dict[str, Any] = storage.read_json(uri)
    return stored


def _rebuild(model: TrialModel, decay: float, step: int) -> TrialModel | None:
    """Return the model with its average of that decay at that step, or None where the snapshots do not determine it."""
    try:
        rebuilt = averages.find_or_rebuild(model.run_uri, decay=decay, step=step, max_error=_MAX_REBUILD_ERROR)
    except ReconstructionError as error:
        say(f"step {step:,} is left out: {error}")
        return None
    uri = rebuilt.checkpoint_uri
    # Its own protocol is that of the time when its snapshots were stored.
    experiment = replace(checkpoint.load_experiment(uri), evaluation=model.experiment.evaluation)
    return replace(model, checkpoint_uri=uri, weights=rebuilt.weights, step=step, experiment=experiment)


def _key(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(as_plain(identity), sort_keys=True).encode()).hexdigest()[:12]


def _standardise(images: Tensor) -> Tensor:
    flat = images.double().flatten(1)
    return (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True, correction=0).clamp(min=1e-9)
