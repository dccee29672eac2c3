"""The plan of an evaluation, made and checked before the first image is drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from evaluation.distances.metrics import need_real_images, parse_metrics, require_count, require_extractor
from evaluation.distances.reference_statistics import Provenance, ReferenceStatistics, load_reference
from evaluation.evaluate.options import EvaluationOptions
from evaluation.features.extractors import ExtractorTraits, FeatureExtractor, load_extractor
from evaluation.likelihood.estimate import require_num_steps
from evaluation.likelihood.split_likelihood import LikelihoodPlan
from evaluation.memorisation.copied_share import FALSE_ALARM_RATE
from evaluation.memorisation.nearest import MAX_NEIGHBOURS
from evaluation.memorisation.search import MAX_IMAGES, obstacle
from evaluation.records.devices import default_batch_size, describe_arithmetic, sampling_batch_size
from evaluation.records.protocol_card import TEST_DIGEST, derived_seed, describe_sampling, versions
from evaluation.records.run_directory import EVALUATIONS, SAMPLES, run_uri_of
from evaluation.sampling.chunks import default_chunk_size
from evaluation.sampling.generate import QUANTIZATION
from evaluation.sampling.reverse_variance import OPTIMAL, estimate_digest, find_or_estimate, least_bound_chain
from evaluation.sampling.sample_set import SamplePlan, may_be_estimated, plan_samples, require_draw
from evaluation.sampling.trained_model import ModelSpec, TrainedModel, require_readable
from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Experiment, LikelihoodForm
from training.config.plain import as_plain, as_plain_fields
from training.console import say
from training.data.format.manifest import MANIFEST, read_manifest
from training.data.splits import read_train_manifest
from training.distributed.arithmetic import require_fast

_LIKELIHOOD_BATCH_SIZE = 100


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """Everything that an evaluation needs. `samples` and `likelihood` (None if not wanted) are the work, `card` the protocol."""

    options: EvaluationOptions
    experiment: Experiment
    weights: str
    step: int
    run_uri: str
    data_uri: str
    extractor: FeatureExtractor
    reference: ReferenceStatistics
    provenance: Provenance
    metrics: frozenset[str]
    class_names: tuple[str, ...]
    samples: SamplePlan
    memorisation: bool
    likelihood: LikelihoodPlan | None
    images_uri: str
    work_uri: str
    card: dict[str, Any]


def preflight(spec: ModelSpec, data_uri: str, reference_uri: str, options: EvaluationOptions) -> EvaluationPlan:
    """Plan an evaluation, and check everything that can be checked before the first image is drawn.

    Raises:
        CheckpointError: There is no such checkpoint, or no such weights.
        UserError: There is no such data set, or an option is not possible with this model, data set, extractor or reference.
    """
    options = options.validated()
    experiment = checkpoint.load_experiment(spec.checkpoint_uri)
    sampling = options.sampling or experiment.evaluation.sampling
    learned = options.likelihood and (options.likelihood_form or experiment.evaluation.likelihood_form) == "learned"
    model = spec.load(options.own_device if learned or may_be_estimated(sampling) else "cpu")
    extractor = load_extractor(
        options.extractor or experiment.evaluation.extractor, weights=options.extractor_weights, device=options.own_device
    )
    train = read_train_manifest(data_uri)
    reference = load_reference(reference_uri)
    metrics = _check_metrics(options, model, extractor, reference)
    if not reference.images_uri:
        _require_real_images(metrics, data_uri)
    provenance = reference.require(extractor=extractor, experiment=experiment, manifest=train)
    wanted = options.num_reference_images or experiment.evaluation.num_reference_images or train.num_images
    if provenance.num_images != min(wanted, train.num_images):
        raise UserError(
            f"the reference {reference_uri} is of {provenance.num_images:,} images, the protocol takes {min(wanted, train.num_images):,}; "
            "compute it again"
        )
    samples = plan_samples(
        spec,
        model,
        num_images=options.num_samples or experiment.evaluation.num_samples,
        seed=options.seed if options.seed is not None else derived_seed(experiment.seed, options.purpose),
        sampling=sampling,
        labels=options.labels,
        class_counts=provenance.class_counts,
        data_uri=data_uri,
        low_res_uri=options.low_res_uri,
        batch_size=options.batch_size,
        precision=options.precision,
    )
    require_count(metrics, samples.num_images, "samples", extractor.dim)
    likelihood = _plan_likelihood(spec, model, data_uri, options, samples.seed) if options.likelihood else None
    memorisation = options.memorisation and _can_find_copies(samples, data_uri)
    card = _card(model, provenance, samples, likelihood, options) | (_memorisation_card() if memorisation else {})
    if options.held_out or memorisation:
        card[TEST_DIGEST] = _test_digest(data_uri)
    run_uri = run_uri_of(spec.checkpoint_uri)
    identity = json.dumps([samples.to_dict(), likelihood.to_dict() if likelihood else None])
    key = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return EvaluationPlan(
        options=options,
        experiment=experiment,
        weights=model.weights,
        step=model.step,
        run_uri=run_uri,
        data_uri=data_uri,
        extractor=extractor,
        reference=reference,
        provenance=provenance,
        metrics=metrics,
        class_names=tuple(train.class_names),
        samples=samples,
        memorisation=memorisation,
        likelihood=likelihood,
        images_uri=storage.join(run_uri, SAMPLES, f"images-{key}"),
        work_uri=storage.join(run_uri, EVALUATIONS, f"work-{key}"),
        card=card,
    )


def require_possible(specs: Iterable[ModelSpec], data_uri: str, options: EvaluationOptions) -> None:
    """Check options against models and their data set, as far as neither reference statistics nor a network evaluation are needed.

    A command calls it before it computes reference statistics, which takes minutes for a large data set.

    Raises:
        CheckpointError: A checkpoint is missing or damaged, or has no such weights.
        UserError: There is no such data set, or an option is not possible with a model or the data set.
    """
    options, specs = options.validated(), list(specs)
    require_readable(specs)
    if options.num_workers <= 1:
        require_fast(options.precision, options.own_device)
    class_counts = tuple(read_train_manifest(data_uri).class_counts)
    for spec in specs:
        model = spec.load("cpu")
        evaluation = model.experiment.evaluation
        require_draw(
            model,
            num_images=options.num_samples or evaluation.num_samples,
            sampling=options.sampling or evaluation.sampling,
            labels=options.labels,
            class_counts=class_counts,
            low_res_uri=options.low_res_uri,
        )
        require_used_steps(model.experiment, options)
        if options.likelihood:
            _likelihood_settings(model, data_uri, options)


def require_used_steps(experiment: Experiment, options: EvaluationOptions) -> None:
    """Refuse a number of steps of the full likelihood, which a person gave in the options and which nothing would use.

    It is no check of `preflight`, as a comparison fills the options from an experiment, where a number always stands.

    Raises:
        UserError: The likelihood is the full one, and the options have a number of steps.
    """
    form = options.likelihood_form or experiment.evaluation.likelihood_form
    if options.likelihood and form == "full" and options.likelihood_steps is not None:
        raise UserError(
            f"likelihood_steps: a full likelihood takes every timestep, so {options.likelihood_steps} would change nothing; "
            "leave it out, or take the form stratified, spaced or learned"
        )


def _check_metrics(
    options: EvaluationOptions, model: TrainedModel, extractor: FeatureExtractor, reference: ReferenceStatistics
) -> frozenset[str]:
    chosen = _chosen_metrics(options, model.experiment)
    metrics = parse_metrics(default_metrics(extractor.name, model.num_classes) if chosen is None else chosen)
    _require_network(metrics, extractor, model.num_classes, model.description)
    if "sfid" in metrics and reference.spatial is None:
        raise UserError(f"{reference.uri} has no spatial statistics (mu_s, sigma_s), which the sFID needs; compute it again")
    comparing = sorted(need_real_images(metrics))
    if comparing and reference.images_uri and not storage.exists(reference.images_uri):
        raise UserError(
            f"{reference.images_uri}: the real images of {reference.uri} are not there, and {', '.join(comparing)} compare with them; "
            "bring them back, or adopt the reference again where they are"
        )
    return metrics


def default_metrics(extractor: str, num_classes: int) -> tuple[str, ...]:
    """Return the metrics of an evaluation where neither its options nor the experiment name any."""
    return ("label_agreement",) if extractor == "digits-classifier" and num_classes else ()


def require_metrics(experiment: Experiment, extractor: ExtractorTraits, data_uri: str, options: EvaluationOptions | None = None) -> None:
    """Refuse metrics that an evaluation could not compute. It needs no reference statistics and no trained model.

    Args:
        experiment: The model's experiment, for what the options leave open.
        data_uri: The data set. Some metrics compare its training images with the samples.
        options: The evaluation's options; None for the evaluation that a training plans itself.

    Raises:
        UserError: A metric needs what the extractor does not give, labels that the model does not have, or more images.
    """
    options = options or EvaluationOptions()
    metrics = parse_metrics(_chosen_metrics(options, experiment) or ())
    num_classes = experiment.data.num_classes if experiment.model.class_conditional else 0
    _require_network(metrics, extractor, num_classes, f"the model of {experiment.name}")
    images = "samples" if options.num_samples else "samples of evaluation.num_samples"
    require_count(metrics, options.num_samples or experiment.evaluation.num_samples, images, extractor.dim)
    _require_real_images(metrics, data_uri)


def _require_real_images(metrics: frozenset[str], data_uri: str) -> None:
    comparing = need_real_images(metrics)
    if comparing:
        train_uri = storage.join(data_uri, "train")
        require_count(comparing, read_manifest(train_uri).num_images, f"images in {train_uri}")


def _require_network(metrics: frozenset[str], extractor: ExtractorTraits, num_classes: int, model: str) -> None:
    require_extractor(metrics, extractor)
    if "label_agreement" in metrics and not num_classes:
        raise UserError(f"label_agreement needs a class-conditional model, which {model} is not; leave it out")


def _can_find_copies(samples: SamplePlan, data_uri: str) -> bool:
    """Return True if copies can be told from other samples; else say why not."""
    reason = "the samples enlarge training images" if samples.low_res_data_uri else obstacle(data_uri)
    if reason:
        say(f"no search for copies of training images: {reason}")
    return not reason


def _memorisation_card() -> dict[str, Any]:
    return {
        "memorisation": {"space": "pixels", "max_images": MAX_IMAGES, "neighbours": MAX_NEIGHBOURS, "false_alarm_rate": FALSE_ALARM_RATE}
    }


def _test_digest(data_uri: str) -> str | None:
    """Return the digest of the test images; None if there are none."""
    dataset_uri = storage.join(data_uri, "test")
    return read_manifest(dataset_uri).content_digest if storage.exists(storage.join(dataset_uri, MANIFEST)) else None


def _chosen_metrics(options: EvaluationOptions, experiment: Experiment) -> tuple[str, ...] | None:
    """Return the metrics that the options or the experiment name; None if neither does."""
    return experiment.evaluation.metrics if options.metrics is None else options.metrics


def _likelihood_settings(model: TrainedModel, data_uri: str, options: EvaluationOptions) -> tuple[LikelihoodForm, int, str, int]:
    """Return the form, its number of steps, the split's directory and the number of its images; refuse a chain that is too long."""
    evaluation, num_timesteps = model.experiment.evaluation, model.experiment.diffusion.num_timesteps
    form = options.likelihood_form or evaluation.likelihood_form
    num_steps = num_timesteps if form == "full" else options.likelihood_steps or evaluation.likelihood_steps
    require_num_steps(form, num_steps, num_timesteps)
    dataset_uri = storage.join(data_uri, options.likelihood_split or evaluation.likelihood_split)
    available = read_manifest(dataset_uri).num_images
    return form, num_steps, dataset_uri, min(options.likelihood_num_images or evaluation.likelihood_num_images or available, available)


def _plan_likelihood(spec: ModelSpec, model: TrainedModel, data_uri: str, options: EvaluationOptions, seed: int) -> LikelihoodPlan:
    form, num_steps, dataset_uri, num_images = _likelihood_settings(model, data_uri, options)
    default = min(default_batch_size(model.experiment.data.image_size), _LIKELIHOOD_BATCH_SIZE)
    timesteps, x_0_errors = None, None
    if form == "learned":
        find_or_estimate(model, data_uri, batch_size=options.batch_size)
        timesteps, x_0_errors = least_bound_chain(model, num_steps)
    return LikelihoodPlan(
        model=spec,
        dataset_uri=dataset_uri,
        num_images=num_images,
        form=form,
        num_steps=num_steps,
        seed=seed,
        batch_size=min(options.batch_size or default, _LIKELIHOOD_BATCH_SIZE),
        chunk_size=default_chunk_size(num_images, default),
        timesteps=timesteps,
        x_0_errors=None if x_0_errors is None else tuple(x_0_errors.tolist()),
        data_digest=read_manifest(dataset_uri).content_digest,
    )


def _card(
    model: TrainedModel, provenance: Provenance, samples: SamplePlan, likelihood: LikelihoodPlan | None, options: EvaluationOptions
) -> dict[str, Any]:
    experiment = model.experiment
    enlarges = bool(samples.low_res_uri or samples.low_res_data_uri)
    labels = "those of the small images" if enlarges else samples.labels
    card: dict[str, Any] = {
        "model": model.description,
        "inputs_sha256": list(samples.inputs),
        "distance": {
            "name": provenance.distance_name,
            "num_samples": samples.num_images,
            "sampler": describe_sampling(samples.sampling, experiment.diffusion.num_timesteps),
            "sampling": as_plain_fields(samples.sampling),
            "labels": labels if experiment.model.class_conditional else None,
            "low_res": samples.low_res_uri or ("real training images, downsampled by area" if samples.low_res_data_uri else None),
            "quantization": QUANTIZATION,
            "seed": samples.seed,
            "purpose": options.purpose,
            "precision": samples.precision,
            "arithmetic": describe_arithmetic(options.worker_device, samples.precision),
            "batch_size": samples.batch_size or sampling_batch_size(experiment, options.worker_device),
            "reference": provenance.to_dict(),
        },
        "likelihood": None,
        "device": options.worker_device,
        "versions": versions(),
    }
    if (metrics := _chosen_metrics(options, experiment)) is not None:
        card["metrics"] = sorted(metrics)
    if likelihood is not None:
        card["likelihood"] = {
            "split": likelihood.dataset_uri.rpartition("/")[2],
            "data_digest": likelihood.data_digest,
            "num_images": likelihood.num_images,
            "form": likelihood.form,
            "num_steps": likelihood.num_steps,
            "num_timesteps": experiment.diffusion.num_timesteps,
            "seed": likelihood.seed,
            "decoder": "discretized Gaussian, tanh approximation",
        }
        if likelihood.form == "learned":  # the estimate gives both the chain and its variances
            card["likelihood"]["estimate_sha256"] = estimate_digest(OPTIMAL, model)
    return as_plain(card)
