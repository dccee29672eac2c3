"""What an evaluation will do, settled and checked before the first image is drawn."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch

from evaluation.distances.metrics import Metric, parse_metrics, require_count, require_extractor
from evaluation.distances.reference_statistics import Provenance, ReferenceStatistics, load_reference
from evaluation.evaluate.options import RESULT_NAME, EvaluationOptions
from evaluation.features.extractors import FeatureExtractor, load_extractor
from evaluation.likelihood.estimate import require_form
from evaluation.likelihood.split_likelihood import LikelihoodPlan
from evaluation.records.devices import choose_device, default_batch_size, describe_arithmetic
from evaluation.records.protocol_card import as_plain, derived_seed, describe_sampling, versions
from evaluation.records.run_directory import EVALUATIONS, SAMPLES, run_uri_of
from evaluation.sampling.generate import QUANTIZATION, Labels, labels_for
from evaluation.sampling.sample_set import SamplePlan, chunk_size_for, input_digests
from evaluation.sampling.trained_model import ModelSpec
from training import storage
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.data.format.manifest import read_manifest

_LIKELIHOOD_BATCH_SIZE = 100


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """All that was checked before the first image is drawn."""

    experiment: Experiment
    weights: str
    step: int
    run_uri: str
    data_uri: str
    extractor: FeatureExtractor
    reference: ReferenceStatistics
    provenance: Provenance
    metrics: frozenset[Metric]
    class_names: tuple[str, ...]
    plan: SamplePlan
    likelihood_plan: LikelihoodPlan | None
    images_uri: str
    work_uri: str
    device: str
    card: dict[str, Any]


def preflight(spec: ModelSpec, data_uri: str, reference_uri: str, options: EvaluationOptions) -> EvaluationPlan:
    """Refuses what can't work, and settles the protocol."""
    if not RESULT_NAME.fullmatch(options.result_name):
        raise UserError(f"{options.result_name!r} can't name a result; take letters, digits, dots, dashes and underscores")
    loaded = spec.load("cpu")  # refuses missing and ill-matched weights now rather than in a worker
    experiment = loaded.experiment
    here = choose_device(options.device if options.num_workers <= 1 else "auto")
    extractor = load_extractor(options.extractor or experiment.evaluation.extractor, weights=options.extractor_weights, device=here)
    metrics = parse_metrics(_default_metrics(experiment, extractor) if options.metrics is None else options.metrics)
    require_extractor(metrics, extractor)
    if "label_agreement" in metrics and not loaded.num_classes:
        raise UserError(f"agreement with the labels needs a class-conditional model, which {loaded.description} is not")
    train = read_manifest(storage.join(data_uri, "train"))
    reference = load_reference(reference_uri)
    provenance = reference.require(extractor=extractor, experiment=experiment, manifest=train)
    expected = experiment.evaluation.num_reference_images or train.num_images
    if provenance.num_images != min(expected, train.num_images):
        raise UserError(f"the reference is of {provenance.num_images:,} images, the experiment's protocol takes {expected:,}")
    if "sfid" in metrics and reference.spatial is None:
        raise UserError(f"{reference_uri} holds no spatial statistics (mu_s, sigma_s), which the sFID needs; compute it again")

    upsampler = experiment.model.low_res_size is not None
    if options.low_res_uri and not upsampler:
        raise UserError(f"{loaded.description} is not an upsampler, it enlarges nothing")
    sampling = options.sampling or experiment.evaluation.sampling
    seed = options.seed if options.seed is not None else derived_seed(experiment.seed, options.purpose)
    num_samples = options.num_samples or experiment.evaluation.num_samples
    require_count(metrics, num_samples, "samples")
    labels_for(torch.arange(1), loaded.num_classes, options.labels, seed=seed, class_counts=provenance.class_counts)
    room = default_batch_size(experiment.data.image_size)
    batch_size = options.batch_size or room
    plan = SamplePlan(
        model=spec,
        num_images=num_samples,
        seed=seed,
        sampling=sampling,
        labels=options.labels,
        class_counts=provenance.class_counts,
        batch_size=batch_size,
        chunk_size=chunk_size_for(num_samples, room),
        precision=options.precision,
        low_res_uri=options.low_res_uri,
        low_res_data_uri=storage.join(data_uri, "train") if upsampler and not options.low_res_uri else "",
        inputs=input_digests(spec, options.low_res_uri),
    )
    likelihood_plan = _likelihood_plan(spec, experiment, data_uri, options, seed) if options.likelihood else None
    run_uri = run_uri_of(spec.checkpoint_uri)
    there = here if options.num_workers <= 1 or options.device == "auto" else options.device
    identity = json.dumps([plan.to_dict(), likelihood_plan.to_dict() if likelihood_plan else None])
    key = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return EvaluationPlan(
        experiment=experiment,
        weights=loaded.weights,
        step=loaded.step,
        run_uri=run_uri,
        data_uri=data_uri,
        extractor=extractor,
        reference=reference,
        provenance=provenance,
        metrics=metrics,
        class_names=tuple(train.class_names),
        plan=plan,
        likelihood_plan=likelihood_plan,
        images_uri=storage.join(run_uri, SAMPLES, f"images-{key}"),
        work_uri=storage.join(run_uri, EVALUATIONS, f"work-{key}"),
        device=there,
        card=_card(loaded.description, experiment, provenance, plan, likelihood_plan, options.purpose, there),
    )


def _labels_of(plan: SamplePlan) -> Labels | str:
    return "those of the small images" if plan.low_res_uri or plan.low_res_data_uri else plan.labels


def _default_metrics(experiment: Experiment, extractor: FeatureExtractor) -> tuple[str, ...]:
    knows_labels = extractor.name == "digits-classifier" and experiment.model.class_conditional
    return ("label_agreement",) if knows_labels else ()


def _likelihood_plan(spec: ModelSpec, experiment: Experiment, data_uri: str, options: EvaluationOptions, seed: int) -> LikelihoodPlan:
    evaluation = experiment.evaluation
    form, num_steps = options.likelihood_form or evaluation.likelihood_form, options.likelihood_steps or evaluation.likelihood_steps
    require_form(form, num_steps, experiment.diffusion.num_timesteps)
    if options.likelihood_split not in (None, "train", "test"):
        raise UserError(f"there is no split {options.likelihood_split!r}; take train or test")
    dataset_uri = storage.join(data_uri, options.likelihood_split or evaluation.likelihood_split)
    available = read_manifest(dataset_uri).num_images
    wanted = options.likelihood_num_images or evaluation.likelihood_num_images or available
    if wanted < 1:
        raise UserError(f"the likelihood of {wanted} images can't be taken; take 1 to {available:,}")
    room = min(default_batch_size(experiment.data.image_size), _LIKELIHOOD_BATCH_SIZE)
    return LikelihoodPlan(
        model=spec,
        dataset_uri=dataset_uri,
        num_images=min(wanted, available),
        form=form,
        num_steps=num_steps,
        seed=seed,
        batch_size=min(options.batch_size or room, _LIKELIHOOD_BATCH_SIZE),
        chunk_size=chunk_size_for(min(wanted, available), room),
    )


def _card(
    model: str,
    experiment: Experiment,
    provenance: Provenance,
    plan: SamplePlan,
    likelihood: LikelihoodPlan | None,
    purpose: str,
    device: str,
) -> dict[str, Any]:
    card: dict[str, Any] = {
        "model": model,
        "inputs_sha256": list(plan.inputs),
        "distance": {
            "name": provenance.distance_name,
            "num_samples": plan.num_images,
            "sampler": describe_sampling(plan.sampling, experiment.diffusion.num_timesteps),
            "sampling": dataclasses.asdict(plan.sampling),
            "labels": _labels_of(plan) if experiment.model.class_conditional else None,
            "low_res": plan.low_res_uri or ("real training images, downsampled by area" if plan.low_res_data_uri else None),
            "quantization": QUANTIZATION,
            "seed": plan.seed,
            "purpose": purpose,
            "precision": plan.precision,
            "arithmetic": describe_arithmetic(device, plan.precision),
            "batch_size": plan.batch_size,
            "reference": provenance.to_dict(),
        },
        "likelihood": None,
        "device": device,
        "versions": versions(),
    }
    if likelihood is not None:
        card["likelihood"] = {
            "split": likelihood.dataset_uri.rpartition("/")[2],
            "num_images": likelihood.num_images,
            "form": likelihood.form,
            "num_steps": likelihood.num_steps,
            "num_timesteps": experiment.diffusion.num_timesteps,
            "seed": likelihood.seed,
            "decoder": "discretized Gaussian, tanh approximation",
        }
    plain: dict[str, Any] = as_plain(card)
    return plain
