"""Models beside each other: one protocol, the same noise, the same images, and how sure the differences are.

Drawn from under one seed, two models' distances differ by the models and hardly by the draw, so the difference is known
much better than either number. With d_(b) the distance without block b of the samples, the jackknife over the
differences d^B_(b) - d^A_(b) gives its standard error; bits/dim are compared image by image.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evaluation.distances.frechet import jackknife_error
from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.run import evaluate
from evaluation.records import grids, npz
from evaluation.records.devices import choose_device
from evaluation.records.protocol_card import as_plain, derived_seed
from evaluation.records.result import EvaluationResult
from evaluation.sampling.generate import concatenated, generate
from evaluation.sampling.low_res import RealLowRes
from evaluation.sampling.trained_model import ModelSpec, TrainedModel
from evaluation.selection.final_choice import stored_result
from training import storage
from training.config.experiment import EvaluationConfig, Experiment
from training.console import say
from training.data.format.manifest import read_manifest

_NUM_SHOWN = 10
_PROTOCOL_FIELDS = ("num_samples", "sampling", "likelihood_split", "likelihood_num_images", "likelihood_form", "likelihood_steps")


class ComparisonError(ValueError):
    """Models that can't stand beside each other; the message says what differs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One measure of a model against the first one's.

    Attributes:
        value: Its number minus the first one's; negative is better, for distances and bits/dim.
        standard_error: Of the difference, on common noise and images; None if unknown.
    """

    value: float
    standard_error: float | None

    @property
    def num_standard_errors(self) -> float | None:
        """The difference in its standard errors; None where there is no error, 0 where there is no difference."""
        if self.value == 0:
            return 0.0
        return self.value / self.standard_error if self.standard_error else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A model and what was found.

    Attributes:
        name: What the user calls it, made short.
        result: Its numbers with their protocol card.
        distance_difference: Against the first model; None for the first.
        likelihood_difference: Likewise, of bits/dim; None where it was not taken.
    """

    name: str
    result: EvaluationResult
    distance_difference: Difference | None
    likelihood_difference: Difference | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Models beside each other.

    Attributes:
        models: In the order that they were given in.
        grid: A row of samples for each model, a column for each noise, as PNG.
        notes: What the reader has to know, such as protocols that were set aside.
    """

    models: tuple[Compared, ...]
    grid: bytes
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the picture."""
        rows = []
        for model in self.models:
            row: dict[str, Any] = {"name": model.name, "result": model.result.to_dict()}
            for name in ("distance_difference", "likelihood_difference"):
                difference: Difference | None = getattr(model, name)
                if difference is not None:
                    row[name] = {**dataclasses.asdict(difference), "num_standard_errors": difference.num_standard_errors}
            rows.append(row)
        plain: dict[str, Any] = as_plain({"models": rows, "notes": self.notes})
        return plain


def compare(
    models: Sequence[ModelSpec], data_uri: str, reference_uri: str, *, options: EvaluationOptions | None = None, names: Sequence[str] = ()
) -> Comparison:
    """Evaluates models by one protocol on the same noise and says how sure their differences are.

    The protocol is the first model's, but for what the options say. Results are kept in the runs' directories: what was
    evaluated by this protocol before is read, and a comparison that was killed goes on where it was.

    Args:
        models: Two or more.
        data_uri: The data set that all were trained on.
        reference_uri: Reference statistics.
        options: As for an evaluation; the purpose is "compare".
        names: What the models are called; their runs and steps if empty.

    Raises:
        ComparisonError: There are fewer than two models, or they make different images.
        UserError: The reference can't be compared with them.
    """
    if len(models) < 2:
        raise ComparisonError("a comparison takes two models or more")
    loaded = [spec.load("cpu") for spec in models]
    _require_same_images(loaded)
    first = loaded[0].experiment
    shared = _shared_options(first, options or EvaluationOptions(), data_uri)
    names = names or short_names(loaded)
    results = []
    for name, spec in zip(names, models, strict=True):
        mine = dataclasses.replace(shared, result_name=f"compare-{_key(spec, shared)}")
        say(f"{name}: {spec.checkpoint_uri}")
        kept = stored_result(spec, data_uri, reference_uri, mine)
        if kept is not None:
            say(f"{name}: evaluated by this protocol before")
        results.append(kept or evaluate(spec, data_uri, reference_uri, options=mine))
    return Comparison(
        models=tuple(
            Compared(
                name=name,
                result=result,
                distance_difference=_distance_difference(results[0], result) if number else None,
                likelihood_difference=_likelihood_difference(results[0], result) if number else None,
            )
            for number, (name, result) in enumerate(zip(names, results, strict=True))
        ),
        grid=_grid(models, names, shared, data_uri),
        notes=_notes(loaded, names),
    )


def short_names(models: Sequence[TrainedModel]) -> list[str]:
    """Names that tell the models apart: what differs of preset, step and weights, numbered where nothing does."""
    parts = [(model.experiment.name, f"step {model.step:,}", model.weights) for model in models]
    differing = [number for number in range(3) if len({part[number] for part in parts}) > 1] or [0]
    names = [" ".join(part[number] for number in differing) for part in parts]
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, start=1)]


def _require_same_images(models: Sequence[TrainedModel]) -> None:
    def kind(model: TrainedModel) -> dict[str, Any]:
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
            raise ComparisonError(f"{models[0].description} and {model.description} make different images: {'; '.join(differing)}")


def _shared_options(experiment: Experiment, options: EvaluationOptions, data_uri: str) -> EvaluationOptions:
    """The protocol that all models are held to: the first one's experiment's, but for what was asked."""
    evaluation = experiment.evaluation
    split = options.likelihood_split or evaluation.likelihood_split
    wanted = options.likelihood_num_images or evaluation.likelihood_num_images
    return dataclasses.replace(
        options,
        num_samples=options.num_samples or evaluation.num_samples,
        sampling=options.sampling or evaluation.sampling,
        extractor=options.extractor or evaluation.extractor,
        likelihood_form=options.likelihood_form or evaluation.likelihood_form,
        likelihood_steps=options.likelihood_steps or evaluation.likelihood_steps,
        likelihood_split=split,
        # Said in a number, since None would mean each experiment's own.
        likelihood_num_images=wanted or (read_manifest(storage.join(data_uri, split)).num_images if options.likelihood else None),
        purpose="compare",
        seed=options.seed if options.seed is not None else derived_seed(experiment.seed, "compare"),
    )


def _key(spec: ModelSpec, options: EvaluationOptions) -> str:
    """Tells results of one run's directory apart: which weights, by which protocol."""
    protocol = {name: value for name, value in dataclasses.asdict(options).items() if name not in ("num_workers", "device", "result_name")}
    return hashlib.sha256(json.dumps([dataclasses.asdict(spec), protocol], default=str).encode()).hexdigest()[:12]


def _distance_difference(first: EvaluationResult, second: EvaluationResult) -> Difference:
    pairs = list(zip(first.distance_without_blocks, second.distance_without_blocks, strict=True))
    error = jackknife_error([theirs - ours for ours, theirs in pairs])
    return Difference(value=second.distance - first.distance, standard_error=error if math.isfinite(error) else None)


def _likelihood_difference(first: EvaluationResult, second: EvaluationResult) -> Difference | None:
    if first.likelihood is None or second.likelihood is None:
        return None
    ours, theirs = (npz.read_arrays(result.likelihood["per_image_uri"]) for result in (first, second) if result.likelihood)
    if ours["index"].tolist() != theirs["index"].tolist():
        raise ComparisonError("the bits/dim are of different images; delete the results of the comparison and compare again")
    difference = torch.from_numpy(theirs["bits_per_dim"] - ours["bits_per_dim"])
    error = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else None
    return Difference(value=float(difference.mean()), standard_error=error)


def _grid(models: Sequence[ModelSpec], names: Sequence[str], options: EvaluationOptions, data_uri: str) -> bytes:
    """The first images of each evaluation's draw: a row a model, one noise and label a column."""
    sampling, seed = options.sampling, options.seed
    assert sampling is not None, "the shared protocol names its sampler"
    assert seed is not None, "and its seed"
    rows, labels = [], None
    for spec in models:
        model = spec.load(choose_device(options.device if options.num_workers <= 1 else "auto"))
        size = model.experiment.model.low_res_size
        low_res = None if size is None else RealLowRes(storage.join(data_uri, "train"), size)
        images, labels = concatenated(
            generate(model, num_images=_NUM_SHOWN, seed=seed, sampling=sampling, labels=options.labels, low_res=low_res)
        )
        rows.append(images)
    columns = [] if labels is None else [str(int(label)) for label in labels]
    pixels = grids.sample_grid(torch.cat(rows), num_columns=_NUM_SHOWN, row_names=names, column_names=columns)
    return grids.to_png(pixels)


def _notes(models: Sequence[TrainedModel], names: Sequence[str]) -> tuple[str, ...]:
    """What of the other experiments' own protocols was set aside."""
    first = models[0].experiment.evaluation
    notes = []
    for name, model in zip(names[1:], models[1:], strict=True):
        differing = [field for field in _PROTOCOL_FIELDS if _field(model.experiment.evaluation, field) != _field(first, field)]
        if differing:
            notes.append(f"{name} has an evaluation protocol of its own ({', '.join(differing)}); here all are held to {names[0]}'s")
        if model.experiment.diffusion.num_timesteps != models[0].experiment.diffusion.num_timesteps:
            notes.append(
                f"{name} has {model.experiment.diffusion.num_timesteps:,} timesteps, {names[0]} "
                f"{models[0].experiment.diffusion.num_timesteps:,}: their bounds on bits/dim are different bounds"
            )
    return tuple(notes)


def _field(evaluation: EvaluationConfig, name: str) -> Any:
    return getattr(evaluation, name)
