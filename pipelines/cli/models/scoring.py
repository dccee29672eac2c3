"""sample, evaluate, compare, learn-steps, learn-variance: images and scores of trained models, and what suits one in few steps."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from pipelines.cli.options import JSON, MAX_SEED, MODEL
from pipelines.cli.services import connect
from training import storage
from training.config.errors import UserError

if TYPE_CHECKING:
    from evaluation.evaluate.options import EvaluationOptions
    from evaluation.reports.study import Study
    from evaluation.sampling.trained_model import ModelSpec
    from evaluation.selection.resolve import ResolvedModel
    from training.config.experiment import SamplingConfig

DATA = typer.Option("", "--data", help="Directory of the data set; empty takes the one of the model's training.")
REFERENCE = typer.Option("", help="Reference statistics (npz); empty takes the data set's, and computes missing ones.")
WEIGHTS = typer.Option("", help="Weights: an average like ema_0.9999, or model; empty takes the selected ones, or else the first average.")
STEPS = typer.Option("", help="Sampling steps, like 250, ddim50 or learned:10; empty takes the experiment's.")
METHOD = typer.Option("", help="Sampler: ancestral, ddim, dpm_solver_pp, sde_dpm_solver_pp, unipc or deis; empty takes the experiment's.")
SAMPLING = typer.Option(
    [],
    "--sampling",
    help="Further setting of the sampler, like order=3, eta=0.5 or guidance_scale=2; evaluation.sampling of `iddpm show PRESET` has all. "
    "May be repeated.",
)
LABELS = typer.Option("balanced", help="Classes: balanced, data (frequencies of the data set), or labels like 0,1,2 in turn.")
EXTRACTOR = typer.Option("", help="Feature extractor; `iddpm metrics` lists them. Empty takes the experiment's.")
EXTRACTOR_WEIGHTS = typer.Option("", help="File of the extractor's weights, s3:// or a path; empty takes what is here, or downloads them.")
METRICS = typer.Option(
    [],
    "--metric",
    help="Further metric; `iddpm metrics` lists them. May be repeated; 'none' takes none. Without it, the experiment's evaluation.metrics.",
)
WORKERS = typer.Option(1, "--num-workers", min=1, help="Parallel Ray tasks; 1 works in this process.")
BATCH = typer.Option(0, "--batch-size", min=0, help="Images in a batch; 0 takes what fits. It does not change the images.")
DEVICE = typer.Option("auto", help="Device: auto, cpu or cuda.")
PRECISION = typer.Option("fp32", help="Precision of the network while sampling.")
ENDS = typer.Option("", help="Model of the first and last timesteps of an ensemble (theta_vlb), named like MODEL.")
ENDS_WEIGHTS = typer.Option("", help="Weights of that model.")
_ENDS_WIDTH = 100
ENDS_WIDTH = typer.Option(_ENDS_WIDTH, min=0, help="Number of its timesteps at each end.")
LOW_RES = typer.Option("", help="Images of the first stage for an upsampler (`sample --images`); empty takes real images, downsampled.")
_OF_EXPERIMENT = {"num_samples", "extractor", "extractor_weights"}
_OF_EXPERIMENT |= {f"likelihood_{word}" for word in ("form", "steps", "split", "num_images")}


def sample(
    model: str = MODEL,
    out: Path = typer.Argument(Path("samples.png"), help="PNG with the first 100 images."),
    num_images: int = typer.Option(100, help="Number of images."),
    seed: int = typer.Option(0, min=0, max=MAX_SEED, help="Seed of all noise."),
    steps: str = STEPS,
    method: str = METHOD,
    sampling: list[str] = SAMPLING,
    labels: str = LABELS,
    images: str = typer.Option(
        "", help="Directory (s3:// or a path) for the images as npz shards; an interrupted command continues there."
    ),
    npz: str = typer.Option("", help="npz file of all images, as the ADM evaluator reads it."),
    data: str = DATA,
    weights: str = WEIGHTS,
    ends: str = ENDS,
    ends_weights: str = ENDS_WEIGHTS,
    ends_width: int = ENDS_WIDTH,
    low_res: str = LOW_RES,
    num_workers: int = WORKERS,
    batch_size: int = BATCH,
    device: str = DEVICE,
    precision: Literal["fp32", "bf16"] = PRECISION,
) -> None:
    """Sample images from a model: a PNG grid, and npz files on request."""
    import tempfile

    connect()
    from evaluation.sampling.draw import DrawRequest, draw_images
    from evaluation.selection.resolve import resolve_model

    if num_workers > 1 and not images:
        raise UserError("--num-workers needs --images: the workers need storage that all of them reach")
    named = resolve_model(model)
    spec = _spec(named.spec(weights or None), ends, ends_weights, ends_width)
    request = DrawRequest(
        model=spec,
        num_images=num_images,
        seed=seed,
        sampling=sampling_of(spec.checkpoint_uri, steps, method, sampling),
        labels=_labels(labels),
        data_uri=data or named.data_uri,
        low_res_uri=low_res,
        batch_size=batch_size,
        precision=precision,
    )
    with tempfile.TemporaryDirectory(prefix="iddpm-samples-") as folder:
        draw_images(request, images or folder, out, npz_uri=npz, num_workers=num_workers, device=device)
    for written in (str(out), images, npz):
        if written:
            print(written)


def evaluate(
    model: str = MODEL,
    data: str = DATA,
    reference: str = REFERENCE,
    num_samples: int = typer.Option(0, min=0, help="Number of sampled images; 0 takes the experiment's."),
    steps: str = STEPS,
    method: str = METHOD,
    sampling: list[str] = SAMPLING,
    labels: str = LABELS,
    extractor: str = EXTRACTOR,
    extractor_weights: str = EXTRACTOR_WEIGHTS,
    metrics: list[str] = METRICS,
    likelihood: bool = typer.Option(True, help="Compute bits/dim."),
    likelihood_form: str = typer.Option(
        "", help="Estimator of bits/dim: full, spaced, stratified or learned; empty takes the experiment's."
    ),
    likelihood_steps: int = typer.Option(0, min=0, help="Network evaluations per image of all but full; 0 takes the experiment's."),
    likelihood_split: str = typer.Option("", help="Split for bits/dim: train or test; empty takes the experiment's."),
    likelihood_images: int = typer.Option(0, min=0, help="Number of images of the split; 0 takes the experiment's."),
    memorisation: bool | None = typer.Option(
        None,
        "--memorisation/--no-memorisation",
        help="Search the training set for copies among the samples; the experiment's if not given.",
    ),
    name: str = typer.Option("manual", help="Name of the result in the run's directory; it also seeds the noise."),
    keep_images: bool = typer.Option(False, "--keep-images", help="Store the sampled images in the run's directory, as npz shards."),
    weights: str = WEIGHTS,
    ends: str = ENDS,
    ends_weights: str = ENDS_WEIGHTS,
    ends_width: int = ENDS_WIDTH,
    low_res: str = LOW_RES,
    num_workers: int = WORKERS,
    batch_size: int = BATCH,
    device: str = DEVICE,
    precision: Literal["fp32", "bf16"] = PRECISION,
    as_json: bool = JSON,
) -> None:
    """Evaluate a model by its experiment's protocol, and write a report."""
    connect()
    from components.steps.studies import log_evaluation
    from evaluation.evaluate.options import require_own_name
    from evaluation.evaluate.run import evaluate as run_evaluation
    from evaluation.records.run_directory import run_uri_of
    from evaluation.records.score_card import in_words, interval_in_words
    from evaluation.reports.report import write_report
    from training.checkpoints.checkpoint import load_experiment

    require_own_name(name)
    if not likelihood:
        for option, given in (
            ("--likelihood-form", likelihood_form),
            ("--likelihood-steps", likelihood_steps),
            ("--likelihood-split", likelihood_split),
            ("--likelihood-images", likelihood_images),
        ):
            if given:
                raise UserError(f"{option} says how to compute bits/dim, and --no-likelihood leaves them out; give one of the two")
    measures = _metrics(metrics)
    named, data_uri = model_and_data(model, data)
    spec = _spec(named.spec(weights or None), ends, ends_weights, ends_width)
    if memorisation is None:
        memorisation = load_experiment(spec.checkpoint_uri).evaluation.memorisation
    options = evaluation_options(
        spec.checkpoint_uri,
        steps,
        method,
        sampling,
        num_samples=num_samples,
        labels=_labels(labels),
        low_res_uri=low_res,
        metrics=measures,
        memorisation=memorisation,
        likelihood=likelihood,
        likelihood_form=likelihood_form,
        likelihood_steps=likelihood_steps,
        likelihood_split=likelihood_split,
        likelihood_num_images=likelihood_images,
        purpose=name,
        result_name=name,
        keep_images=keep_images,
        extractor=extractor,
        extractor_weights=extractor_weights,
        num_workers=num_workers,
        batch_size=batch_size,
        device=device,
        precision=precision,
    )
    reference_uri = reference or reference_of(named, data_uri, options, [spec])
    result = run_evaluation(spec, data_uri, reference_uri, options=options)
    run_uri = run_uri_of(spec.checkpoint_uri)
    page = write_report(run_uri, result_name=name)
    tracked = log_if_reachable(lambda: log_evaluation(run_uri, name, named.tracking_run_id))
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    for score in result.score_card():
        interval = f"  95% {interval_in_words(score)} ({score.method})" if score.interval else ""
        print(f"{score.title:<32} {in_words(score.value, score)}{interval}")
    print(f"{'page':<32} {page}")
    print(f"{'samples':<32} {result.images_uri or result.grid_uri}")
    if tracked:
        print(f"{'MLflow':<32} {tracked}")


def compare(
    models: list[str] = typer.Argument(..., help="Two or more models, each named as for evaluate."),
    baseline: str = typer.Option("", help="The one of them that the others are compared with; empty takes the first."),
    data: str = DATA,
    reference: str = REFERENCE,
    num_samples: int = typer.Option(0, min=0, help="Number of images sampled from each; 0 takes that of the first model's experiment."),
    steps: str = STEPS,
    method: str = METHOD,
    sampling: list[str] = SAMPLING,
    weights: list[str] = typer.Option([], "--weights", help="Weights of each model, in the order of the models; may be repeated."),
    extractor: str = EXTRACTOR,
    extractor_weights: str = EXTRACTOR_WEIGHTS,
    metrics: list[str] = METRICS,
    likelihood: bool = typer.Option(True, help="Compute bits/dim."),
    seed: int = typer.Option(-1, min=-1, max=MAX_SEED, help="Seed of the common noise; -1 derives it from the first model's experiment."),
    out: Path = typer.Option(Path("comparison"), help="Directory for samples.png, comparison.json and comparison.html."),
    num_workers: int = WORKERS,
    batch_size: int = BATCH,
    device: str = DEVICE,
    as_json: bool = JSON,
) -> None:
    """Compare any number of models: experiments, numbers with the uncertainty of their differences, samples from the same noise, curves."""
    connect()
    from evaluation.selection.resolve import resolve_model
    from evaluation.studies.compare import compare as compare_models
    from evaluation.studies.comparison_page import as_study

    if weights and len(weights) != len(models):
        raise UserError(f"--weights is given {len(weights)} times for {len(models)} models; give it for each model, or not at all")
    if len(models) < 2:
        raise UserError("one model has nothing to be compared with; name two or more")
    if baseline and baseline not in models:
        raise UserError(f"--baseline {baseline} is none of the models; name one of {', '.join(models)}")
    pairs = list(zip(models, weights or [""] * len(models), strict=True))
    pairs.insert(0, pairs.pop(models.index(baseline) if baseline else 0))
    first, data_uri = model_and_data(pairs[0][0], data)
    found = [first, *(resolve_model(model) for model, _ in pairs[1:])]
    specs = [named.spec(chosen or None) for named, (_, chosen) in zip(found, pairs, strict=True)]
    options = evaluation_options(
        first.checkpoint_uri,
        steps,
        method,
        sampling,
        num_samples=num_samples,
        metrics=_metrics(metrics),
        likelihood=likelihood,
        seed=seed if seed >= 0 else None,
        extractor=extractor,
        extractor_weights=extractor_weights,
        num_workers=num_workers,
        batch_size=batch_size,
        device=device,
    )
    reference_uri = reference or reference_of(first, data_uri, options, specs)
    storage.make_directory(out)  # refused before anything is sampled
    comparison = compare_models(specs, data_uri, reference_uri, options=options)
    ids = [named.tracking_run_id for named in found]
    save_study(as_study(comparison), out, ids, as_json)


def learn_steps(
    model: str = MODEL,
    evaluations: int = typer.Option(10, min=1, help="Number of timesteps to choose: network evaluations of an image."),
    num_images: int = typer.Option(64, min=2, help="Images of the model on which they are chosen; as many others check them."),
    seed: int = typer.Option(0, min=0, max=MAX_SEED, help="Seed of their noise."),
    weights: str = WEIGHTS,
    device: str = DEVICE,
    as_json: bool = JSON,
) -> None:
    """Choose the timesteps with which a model samples best in few evaluations, and store them in its run's directory."""
    import dataclasses

    connect()
    from evaluation.records.devices import choose_device
    from evaluation.sampling.learned_steps import learn_and_store
    from evaluation.selection.resolve import resolve_model

    trained = resolve_model(model).spec(weights or None).load(choose_device(device))
    found, uri = learn_and_store(trained, evaluations, num_images=num_images, seed=seed)
    if as_json:
        print(json.dumps({"uri": uri, **dataclasses.asdict(found)}, indent=2))
        return
    for key, value in (
        ("timesteps", ", ".join(map(str, found.timesteps))),
        ("difference from the fine path", f"{found.error:.4f} RMS with them, {found.even_error:.4f} with even steps"),
        ("stored", uri),
        ("to use them", f"--steps learned:{evaluations}"),
    ):
        print(f"{key:<32} {value}")


def learn_variance(
    model: str = MODEL,
    data: str = DATA,
    num_images: int = typer.Option(256, min=2, help="Real images of the training split on which it is estimated."),
    seed: int = typer.Option(0, min=0, max=MAX_SEED, help="Seed of their noise."),
    weights: str = WEIGHTS,
    device: str = DEVICE,
    as_json: bool = JSON,
) -> None:
    """Estimate the variances of the reverse steps that suit a model best, and store them in its run's directory."""
    import dataclasses

    connect()
    from evaluation.records.devices import choose_device
    from evaluation.sampling.reverse_variance import estimate_and_store

    found, data_uri = model_and_data(model, data)
    trained = found.spec(weights or None).load(choose_device(device))
    variance, uri = estimate_and_store(trained, data_uri, num_images=num_images, seed=seed)
    if as_json:
        print(json.dumps({"uri": uri, **dataclasses.asdict(variance)}, indent=2))
        return
    count = len(variance.timesteps)
    if variance.num_images < num_images:
        print(f"estimated on {variance.num_images:,} images: the training split has no more")
    print("mean squared error of x_0    timestep    on real images    from the norm of eps")
    for k in sorted({0, count // 4, count // 2, 3 * count // 4, count - 1}):
        print(f"{'':<29}{variance.timesteps[k]:<12}{variance.optimal[k]:<18.3g}{variance.analytic[k]:.3g}")
    print(f"{'stored':<29}{uri}\n{'to use it':<29}--sampling variance=optimal, or variance=analytic")


def metrics(as_json: bool = JSON) -> None:
    """List the metrics and the feature extractors: what each sees, how many samples it wants, its cost, where weights come from."""
    from evaluation.distances.metrics import METRICS
    from evaluation.features.extractors import describe_extractors

    extractors = describe_extractors()
    rows = {name: {"sees": metric.sees, "samples": metric.samples, "cost": metric.cost} for name, metric in METRICS.items()}
    if as_json:
        print(json.dumps({"metrics": rows, "extractors": extractors}, indent=2))
        return
    print("Metrics (--metric NAME, or evaluation.metrics in an experiment), beside the Frechet distance, which is always there:\n")
    for name, row in rows.items():
        print(f"{name:<18} sees     {row['sees']}\n{'':<18} samples  {row['samples']}\n{'':<18} cost     {row['cost']}")
    print("\nCosts are scaled up from 1,250 images on one core to the samples wanted, in 2,048 features; the extractor's time comes first.")
    print("kid, mind and fid_infinity are so named in Inception's features alone, cmmd in those of clip-vit-l-14-336px.\n")
    print("Extractors (--extractor NAME, or evaluation.extractor):\n")
    for name, row in extractors.items():
        print(f"{name:<20} gives    {row['distance']}; {row['sees']}\n{'':<20} weights  {row['weights']}")


def model_and_data(model: str, data: str) -> tuple[ResolvedModel, str]:
    """Return the model of that name, and its data set: the given one, or else that of its training. Refuse an unknown data set."""
    from evaluation.selection.resolve import resolve_model

    found = resolve_model(model)
    if not (data or found.data_uri):
        raise UserError(f"the data set of {model} is not known; give its directory by --data")
    return found, data or found.data_uri


def evaluation_options(
    checkpoint_uri: str, steps: str = "", method: str = "", sampling: Sequence[str] = (), **given: Any
) -> EvaluationOptions:
    """Return the options of an evaluation. Those of `_OF_EXPERIMENT` take the experiment's own value if they are empty or 0."""
    from evaluation.evaluate.options import EvaluationOptions

    chosen = {name: value for name, value in given.items() if value or name not in _OF_EXPERIMENT}
    changed = sampling_of(checkpoint_uri, steps, method, sampling) if steps or method or sampling else None
    return EvaluationOptions(sampling=changed, **chosen).validated()


def reference_of(model: ResolvedModel, data_uri: str, options: EvaluationOptions, specs: Iterable[ModelSpec]) -> str:
    """Return the URI of the data set's reference statistics: those of the pipeline that trained the model, or those in the data set.

    Missing ones are computed. Before that, it refuses metrics and options that are not possible, and models (`specs`) that can't be read.
    """
    from components.steps.reference import REFERENCES
    from evaluation.distances.reference_statistics import compute_reference, find_reference
    from evaluation.evaluate.preflight import require_metrics, require_possible
    from evaluation.features.extractors import load_extractor
    from evaluation.records.run_directory import run_uri_of
    from training.checkpoints.checkpoint import load_experiment

    experiment = load_experiment(model.checkpoint_uri)
    evaluation = experiment.evaluation
    network = load_extractor(options.extractor or evaluation.extractor, weights=options.extractor_weights, device=options.own_device)
    require_metrics(experiment, network, data_uri, options)
    train_uri, count = storage.join(data_uri, "train"), evaluation.num_reference_images
    root = re.fullmatch("(.*[^/])/runs/[^/]+", run_uri_of(model.checkpoint_uri))
    if root and (found := find_reference(train_uri, network, storage.join(root[1], REFERENCES), count)):
        return found.uri
    check = functools.partial(require_possible, specs, data_uri, options)
    return compute_reference(train_uri, network, storage.join(data_uri, REFERENCES), count, before=check).uri


def _spec(spec: ModelSpec, ends: str, ends_weights: str, ends_width: int) -> ModelSpec:
    """Return the model, or with `ends` the ensemble: `ends` takes the first and last timesteps, and the model those between."""
    import dataclasses

    from evaluation.selection.resolve import resolve_model

    if not ends:
        if ends_weights or ends_width != _ENDS_WIDTH:
            raise UserError("--ends-weights and --ends-width go with --ends, the model of the first and last timesteps")
        return spec
    other = resolve_model(ends).spec(ends_weights or None)
    return dataclasses.replace(spec, ends_checkpoint_uri=other.checkpoint_uri, ends_weights=other.weights, ends_width=ends_width)


def sampling_of(checkpoint_uri: str, steps: str, method: str, settings: Sequence[str] = ()) -> SamplingConfig:
    """Return the sampling settings of a checkpoint's experiment, changed by --steps, --method and --sampling."""
    import dataclasses
    from typing import cast

    from training.checkpoints.checkpoint import load_experiment
    from training.config.experiment import SamplingMethod

    experiment = load_experiment(checkpoint_uri)
    if method:
        # An unknown method passes here. `override` refuses it.
        sampling = experiment.evaluation.sampling.with_method(cast(SamplingMethod, method))
        experiment = dataclasses.replace(experiment, evaluation=dataclasses.replace(experiment.evaluation, sampling=sampling))
    changed = {setting.partition("=")[0].strip() for setting in settings}
    for field, option, given in (("spacing", "--steps", steps), ("method", "--method", method)):
        if given and field in changed:
            raise UserError(f"{option} {given} and --sampling {field} mean the same; give one")
    changes = [f"evaluation.sampling.spacing={json.dumps(steps)}"] if steps else []
    changes += [f"evaluation.sampling.{setting}" for setting in settings]
    return experiment.override(changes).evaluation.sampling


def _metrics(words: list[str]) -> tuple[str, ...] | None:
    """Check the metrics before reference statistics are computed; None if the option was not given."""
    from evaluation.distances.metrics import parse_metrics

    return tuple(sorted(parse_metrics([word for word in words if word != "none"]))) if words else None


def _labels(word: str) -> Any:
    if word in ("", "balanced", "data"):
        return word or "balanced"
    try:
        return tuple(int(label) for label in word.split(","))
    except ValueError as error:
        raise UserError(f"--labels must be balanced, data, or numbers like 0,1,2; got {word!r}") from error


def save_study(study: Study, out: Path, tracking_run_ids: list[str], as_json: bool) -> None:
    """Write a study's files, log it to MLflow, and print its text or its JSON file."""
    from components.steps.studies import log_study

    written = study.write(out)
    page = log_if_reachable(lambda: log_study(study, tracking_run_ids))
    if as_json:
        print(next(content for name, content in study.files.items() if name.endswith(".json")).decode(), end="")
        return
    print(f"{study.text}\n\n{written}")
    if page:
        print(f"MLflow  {page}")


def log_if_reachable(log: Callable[[], str]) -> str:
    """Log to MLflow and return the page; empty if MLflow cannot be reached, since the files have the results too."""
    from training.console import say
    from training.tracking.runs import TrackingError

    if "MLFLOW_TRACKING_URI" not in os.environ:
        return ""
    try:
        return log()
    except TrackingError as error:
        say(f"not logged to MLflow: {error}")
        return ""
