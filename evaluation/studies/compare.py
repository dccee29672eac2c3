"""Comparison of models: one protocol, the same noise and images, and the standard errors of the differences.

With one seed, the distances of two models differ because of the models and hardly because of the drawn noise. So the
difference is more precise than either distance. Bits/dim are compared image by image.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evaluation.distances.paired import distance_difference, metric_differences
from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.preflight import default_metrics, preflight
from evaluation.evaluate.run import evaluate_once
from evaluation.monitoring.checkpoint_scorer import read_comparable
from evaluation.records import grids, npz
from evaluation.records.paired import Difference
from evaluation.records.protocol_card import derived_seed
from evaluation.records.result import EvaluationResult
from evaluation.records.run_directory import run_uri_of
from evaluation.sampling.sample_set import SamplePlan, draw_rows
from evaluation.sampling.trained_model import ModelSpec, TrainedModel
from training import storage
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.config.plain import as_plain, as_plain_fields
from training.console import say
from training.data.format.manifest import read_manifest

_NUM_SHOWN = 10
_MOST_LISTED = 3
"""A note lists so many models; of more it gives the number."""
_PROTOCOL_FIELDS = (
    "num_samples",
    "num_reference_images",
    "sampling",
    "likelihood_split",
    "likelihood_num_images",
    "likelihood_form",
    "likelihood_steps",
)


@dataclass(frozen=True, slots=True)
class Described:
    """A `TrainedModel` without its network."""

    experiment: Experiment
    step: int
    weights: str
    num_classes: int
    description: str


@dataclass(frozen=True, slots=True)
class Compared:
    """A model in a comparison, with its differences to the first model.

    A difference is None for the first model, where a number is not finite, and where no bits/dim are computed.

    Attributes:
        metric_differences: Those of further metrics by name, as far as noise is shared (`evaluation.distances.paired`).
        history: Scores of the checkpoints of its run, by step, as `read_comparable` gives them; empty where training took none.
    """

    name: str
    result: EvaluationResult
    distance_difference: Difference | None
    likelihood_difference: Difference | None
    metric_differences: Mapping[str, Difference]
    history: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A comparison of models, in the given order.

    Attributes:
        grid: A PNG with a row of samples for each model and a column for each noise.
        notes: Warnings, for example about a model whose own protocol was not used.
    """

    models: tuple[Compared, ...]
    grid: bytes
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the picture."""
        rows = []
        for model in self.models:
            row: dict[str, Any] = {"name": model.name, "result": model.result.to_dict()}
            for name in ("distance_difference", "likelihood_difference"):
                difference: Difference | None = getattr(model, name)
                if difference is not None:
                    row[name] = difference.to_dict()
            row["metric_differences"] = {name: difference.to_dict() for name, difference in model.metric_differences.items()}
            rows.append(row)
        return as_plain({"models": rows, "differing_fields": self.differing_fields(), "notes": self.notes})

    def differing_fields(self) -> dict[str, list[Any]]:
        """Return the fields of the experiments that differ, each with the models' values in their order."""
        return _differing_fields([Experiment.from_dict(dict(model.result.experiment)) for model in self.models])


def compare(models: Sequence[ModelSpec], data_uri: str, reference_uri: str, *, options: EvaluationOptions | None = None) -> Comparison:
    """Evaluate models by one protocol on the same noise, and compute the standard errors of their differences.

    The protocol is that of the first model's experiment, except for what the options change. Results are stored in the
    runs' directories, so an interrupted comparison continues.

    All models are checked before the first is evaluated.

    Raises:
        UserError: There are fewer than two models, they make different images, or one can't be evaluated by the protocol.
    """
    if len(models) < 2:
        raise UserError("a comparison takes two models or more")
    described = [_describe(spec.load("cpu")) for spec in models]  # one network in memory at a time
    _require_same_images(described)
    shared = _shared_options(described, options or EvaluationOptions(), data_uri)
    names = short_names(described)
    own = [dataclasses.replace(shared, result_name=f"compare-{_key(spec, shared)}") for spec in models]
    plans = [preflight(spec, data_uri, reference_uri, each).samples for spec, each in zip(models, own, strict=True)]
    compared: list[Compared] = []
    for name, spec, model, each in zip(names, models, described, own, strict=True):
        say(f"{name}: {spec.checkpoint_uri}")
        result = evaluate_once(spec, data_uri, reference_uri, each)
        base = compared[0].result if compared else None
        compared.append(
            Compared(
                name=name,
                result=result,
                distance_difference=None if base is None else _if_finite(distance_difference(result, base)),
                likelihood_difference=None if base is None else _if_finite(_likelihood_difference(result, base)),
                metric_differences={} if base is None else metric_differences(result, base),
                history=read_comparable(run_uri_of(spec.checkpoint_uri), model.experiment.evaluation),
            )
        )
    return Comparison(
        models=tuple(compared),
        grid=_grid(plans, names, shared.own_device),
        notes=_protocol_notes(described, names, options or EvaluationOptions(), with_likelihood=compared[0].result.likelihood is not None),
    )


def _describe(model: TrainedModel) -> Described:
    return Described(model.experiment, model.step, model.weights, model.num_classes, model.description)


def short_names(models: Sequence[Described | TrainedModel]) -> list[str]:
    """Name each model by its preset, step and weights, as far as they differ; then by fields of the experiment until names are unique.

    The field that tells most models apart comes first. Models that no field tells apart get a number.
    """
    parts = [(model.experiment.name, f"step {model.step:,}", model.weights) for model in models]
    differing = [number for number in range(3) if len({part[number] for part in parts}) > 1]
    names = [" ".join(part[number] for number in differing) for part in parts]
    fields = {name: values for name, values in _differing_fields([model.experiment for model in models]).items() if name != "name"}
    while fields and len(set(names)) < len(names):
        longer = {
            field: [f"{name} {field.rpartition('.')[2]}={format_field(value)}".strip() for name, value in zip(names, values, strict=True)]
            for field, values in fields.items()
        }
        best = max(longer, key=lambda field: len(set(longer[field])))
        if len(set(longer[best])) == len(set(names)):
            break
        names = longer[best]
        del fields[best]
    names = [name or models[0].experiment.name for name in names]
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, start=1)]


def format_field(value: Any) -> str:
    """Format the value of an experiment's field for a person."""
    if isinstance(value, list):
        return ",".join(map(format_field, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _differing_fields(experiments: Sequence[Experiment]) -> dict[str, list[Any]]:
    def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return found

    fields = [flat(experiment.every_field()) for experiment in experiments]
    values = {name: [each.get(name) for each in fields] for name in dict.fromkeys(name for each in fields for name in each)}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def _require_same_images(models: Sequence[Described]) -> None:
    def kind(model: Described) -> dict[str, Any]:
        data = model.experiment.data
        return {
            "data.name": data.name,
            "data.image_size": data.image_size,
            "data.image_channels": data.image_channels,
            "data.resize": data.resize,
            "labels that the network is given": model.num_classes,
            "model.low_res_size": model.experiment.model.low_res_size,
        }

    first = kind(models[0])
    for model in models[1:]:
        differing = [f"{name} is {first[name]!r} and {value!r}" for name, value in kind(model).items() if value != first[name]]
        if differing:
            raise UserError(f"{models[0].description} and {model.description} make different images: {'; '.join(differing)}")


def _shared_options(models: Sequence[Described], options: EvaluationOptions, data_uri: str) -> EvaluationOptions:
    """Return the protocol of all models: that of the first model's experiment, with the given changes."""
    experiment = models[0].experiment
    fields = ("num_samples", "sampling", "extractor", "likelihood_form", "likelihood_steps", "likelihood_split", "likelihood_num_images")
    own: dict[str, Any] = {name: getattr(options, name) or getattr(experiment.evaluation, name) for name in fields}
    if own["likelihood_num_images"] is None and options.likelihood:  # None would mean each experiment's own
        own["likelihood_num_images"] = read_manifest(storage.join(data_uri, own["likelihood_split"])).num_images
    seed = options.seed if options.seed is not None else derived_seed(experiment.seed, "compare")
    metrics: tuple[str, ...] | None = options.metrics if options.metrics is not None else experiment.evaluation.metrics
    if metrics is None and any(model.experiment.evaluation.metrics is not None for model in models):  # None would mean each one's own
        metrics = default_metrics(own["extractor"], models[0].num_classes)
    counts = {model.experiment.evaluation.num_reference_images for model in models}
    if len(counts) > 1:  # as for metrics; equal ones are left out, so that results of before are found
        first = experiment.evaluation.num_reference_images or read_manifest(storage.join(data_uri, "train")).num_images
        own["num_reference_images"] = options.num_reference_images or first
    return dataclasses.replace(options, **own, metrics=metrics, purpose="compare", seed=seed)


def _key(spec: ModelSpec, options: EvaluationOptions) -> str:
    """Identify a result in a run's directory by weights and protocol."""
    left_out = ("num_workers", "device", "result_name", "held_out")
    protocol = {name: value for name, value in as_plain_fields(options).items() if name not in left_out}
    return hashlib.sha256(json.dumps([dataclasses.asdict(spec), protocol], default=str).encode()).hexdigest()[:12]


def _if_finite(difference: Difference | None) -> Difference | None:
    """Return a difference; None for that of an infinite likelihood, or of a distance of an earlier version that is NaN."""
    return difference if difference is not None and math.isfinite(difference.value) else None


def _likelihood_difference(result: EvaluationResult, other: EvaluationResult) -> Difference | None:
    """Return the bits/dim of `result` minus those of `other`, image by image; None without bits/dim, or where one's images are unknown."""
    if result.likelihood is None or other.likelihood is None:
        return None
    digests = [each.protocol["likelihood"].get("data_digest") for each in (result, other)]
    if None in digests and digests[0] != digests[1]:
        unknown = (result, other)[digests.index(None)]
        say(
            f"no difference of bits/dim: those of step {unknown.step:,} ({unknown.weights}) are of an earlier version, which did not "
            f"record its images; delete {run_uri_of(unknown.checkpoint_uri)}/evaluations/compare-*.json and compare again"
        )
        return None
    ours, theirs = (npz.read_arrays(likelihood["per_image_uri"]) for likelihood in (result.likelihood, other.likelihood))
    if digests[0] != digests[1] or ours["index"].tolist() != theirs["index"].tolist():
        raise UserError("the bits/dim are of different images; delete the comparison's results (compare-*.json) and compare again")
    difference = torch.from_numpy(ours["bits_per_dim"] - theirs["bits_per_dim"])
    error = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else None
    return Difference(
        value=float(difference.mean()), standard_error=error, degrees_of_freedom=max(len(difference) - 1, 1), num_images=len(difference)
    )


def _grid(plans: Sequence[SamplePlan], names: Sequence[str], device: str) -> bytes:
    """Draw the first images of each evaluation: a row has one model, a column one noise and label."""
    num_shown = min(_NUM_SHOWN, plans[0].num_images)
    rows, labels = [], None
    for plan in plans:
        images, labels = draw_rows(plan, plan.model.load(device), 0, num_shown)
        rows.append(images)
    columns = [] if labels is None else [str(int(label)) for label in labels]
    pixels = grids.sample_grid(torch.cat(rows), num_columns=num_shown, row_names=names, column_names=columns)
    return grids.to_png(pixels)


def _protocol_notes(
    models: Sequence[Described], names: Sequence[str], options: EvaluationOptions, *, with_likelihood: bool
) -> tuple[str, ...]:
    """Return a note for the models with each protocol or number of timesteps that is not the first model's.

    Fields that the options set are left out: no model's own value is used.
    """
    first = models[0].experiment
    fields = [field for field in _PROTOCOL_FIELDS if getattr(options, field) is None]
    protocols: dict[str, list[str]] = {}
    chains: dict[int, list[str]] = {}
    for name, model in zip(names[1:], models[1:], strict=True):
        own = model.experiment
        differing = [field for field in fields if getattr(own.evaluation, field) != getattr(first.evaluation, field)]
        if differing:
            protocols.setdefault(", ".join(differing), []).append(name)
        if with_likelihood and own.diffusion.num_timesteps != first.diffusion.num_timesteps:
            chains.setdefault(own.diffusion.num_timesteps, []).append(name)
    own_protocols = [
        f"all models are evaluated by the protocol of {names[0]}; the {fields} of {_listed(others)} is not used"
        for fields, others in protocols.items()
    ]
    own_chains = [
        f"the bits/dim are bounds of different chains: of {first.diffusion.num_timesteps:,} timesteps for {names[0]}, "
        f"of {timesteps:,} for {_listed(others)}"
        for timesteps, others in chains.items()
    ]
    return (*own_protocols, *own_chains)


def _listed(names: Sequence[str]) -> str:
    if len(names) > _MOST_LISTED + 1:
        names = [*names[:_MOST_LISTED], f"{len(names) - _MOST_LISTED} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
