"""sample, evaluate, compare: what a trained model makes, and how good it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipelines.cli.recording import keep, noted
from pipelines.cli.services import connect

if TYPE_CHECKING:
    from evaluation.sampling.trained_model import ModelSpec
    from training.config.experiment import SamplingConfig

PANEL = "Samples and scores"
MODEL = typer.Argument(..., help="A checkpoint's or a run's directory (s3:// or a path), runs:/ID, or models:/NAME@ALIAS.")
DATA = typer.Option("", "--data", help="The data set's directory; empty takes the one that the model was trained on.")
REFERENCE = typer.Option("", help="Reference statistics; empty computes them beside the data set, or finds them there.")
WEIGHTS = typer.Option("", help="ema_0.9999 and the like, or model; empty takes the chosen ones, or the first average.")
STEPS = typer.Option("", help="Spacing, like 250 or ddim50; empty takes the experiment's.")
METHOD = typer.Option("", help="ancestral, ddim or dpm_solver_pp; empty takes the experiment's.")
LABELS = typer.Option("balanced", help="balanced, data (as often as in the data), or labels like 0,1,2, repeated in turn.")
EXTRACTOR = typer.Option("", help="inception, digits-classifier, vgg16 or clip-vit-b-32; empty takes the experiment's.")
EXTRACTOR_WEIGHTS = typer.Option("", help="Its weights' file, s3:// or a path; empty takes torch's cache, or downloads.")
METRICS = typer.Option(
    [], "--metric", help="Also kid, inception_score, precision_recall, sfid or label_agreement; repeat it. 'none' takes none."
)
WORKERS = typer.Option(1, "--num-workers", min=1, help="Ray tasks at once; 1 works in this process.")
BATCH = typer.Option(0, "--batch-size", min=0, help="Images at a time; 0 takes what fits. It changes no image.")
DEVICE = typer.Option("auto", help="auto, cpu or cuda.")
PRECISION = typer.Option("fp32", help="Of the network while sampling: fp32, or bf16.")
ENDS = typer.Option("", help="For an ensemble: the model of the first and last timesteps (theta_vlb), named like the other.")
ENDS_WEIGHTS = typer.Option("", help="Its weights.")
ENDS_WIDTH = typer.Option(100, min=0, help="How many timesteps at each end are its.")
LOW_RES = typer.Option("", help="For an upsampler: images of the first stage (`sample --images`); empty takes real ones, downsampled.")
JSON = typer.Option(False, "--json", help="As JSON.")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (sample, evaluate, compare):
        app.command(rich_help_panel=PANEL)(command)


def sample(
    model: str = MODEL,
    out: Path = typer.Argument(Path("samples.png"), help="PNG to write, of the first 100."),
    num_images: int = typer.Option(100, help="How many."),
    seed: int = typer.Option(0, help="Of all noise; another seed, other images."),
    steps: str = STEPS,
    method: str = METHOD,
    labels: str = LABELS,
    images: str = typer.Option("", help="Directory (s3:// or a path) that gets the images as npz shards; goes on where it was."),
    npz: str = typer.Option("", help="One npz file of all images too, as the ADM evaluator reads it."),
    data: str = DATA,
    weights: str = WEIGHTS,
    ends: str = ENDS,
    ends_weights: str = ENDS_WEIGHTS,
    ends_width: int = ENDS_WIDTH,
    low_res: str = LOW_RES,
    num_workers: int = WORKERS,
    batch_size: int = BATCH,
    device: str = DEVICE,
    precision: str = PRECISION,
) -> None:
    """Draw images from a model: one PNG grid, and all of them as npz where asked."""
    import tempfile

    connect()
    from evaluation.sampling.draw import DrawRequest, draw_images
    from evaluation.selection.resolve import resolve_model

    if num_workers > 1 and not images:
        raise ValueError("--num-workers needs --images: workers hand their images over in storage that all of them reach")
    named = resolve_model(model)
    spec = _spec(named.spec(weights or None), ends, ends_weights, ends_width)
    request = DrawRequest(
        model=spec,
        num_images=num_images,
        seed=seed,
        sampling=sampling_of(spec, steps, method),
        labels=_labels(labels),
        data_uri=data or named.data_uri,
        low_res_uri=low_res,
        batch_size=batch_size,
        precision=_precision(precision),
    )
    with tempfile.TemporaryDirectory(prefix="iddpm-samples-") as folder:
        draw_images(request, images or folder, out, npz_uri=npz, num_workers=num_workers, device=device)
    for written in (str(out), images, npz):
        if written:
            print(written)


def evaluate(
    model: str = MODEL,
    data_set: str = typer.Argument("", metavar="[DATA]", help="The data set's directory; empty takes the one of its training."),
    reference: str = REFERENCE,
    num_samples: int = typer.Option(0, min=0, help="Images drawn; 0 takes the experiment's."),
    steps: str = STEPS,
    method: str = METHOD,
    labels: str = LABELS,
    extractor: str = EXTRACTOR,
    extractor_weights: str = EXTRACTOR_WEIGHTS,
    metrics: list[str] = METRICS,
    likelihood: bool = typer.Option(True, help="Whether to take bits/dim."),
    likelihood_form: str = typer.Option("", help="full, spaced or stratified; empty takes the experiment's."),
    likelihood_steps: int = typer.Option(0, min=0, help="Network evaluations an image for the latter two; 0 takes the experiment's."),
    likelihood_split: str = typer.Option("", help="train or test; empty takes the experiment's."),
    likelihood_images: int = typer.Option(0, min=0, help="Images of the split; 0 takes the experiment's."),
    name: str = typer.Option("manual", help="Name of the result in the run's directory, of its page and of its noise."),
    keep_images: bool = typer.Option(False, "--keep-images", help="Leave the drawn images in the run's directory, as npz shards."),
    weights: str = WEIGHTS,
    ends: str = ENDS,
    ends_weights: str = ENDS_WEIGHTS,
    ends_width: int = ENDS_WIDTH,
    low_res: str = LOW_RES,
    num_workers: int = WORKERS,
    batch_size: int = BATCH,
    device: str = DEVICE,
    precision: str = PRECISION,
    as_json: bool = JSON,
) -> None:
    """Score a model by its experiment's protocol, and write a page about it."""
    connect()
    from components.steps.studies import log_evaluation
    from evaluation.evaluate.options import EvaluationOptions, require_own_name
    from evaluation.evaluate.run import evaluate as run_evaluation
    from evaluation.records.run_directory import run_uri_of
    from evaluation.reports.report import write_report
    from evaluation.selection.resolve import resolve_model

    require_own_name(name)
    measures = _metrics(metrics)
    named = resolve_model(model)
    spec = _spec(named.spec(weights or None), ends, ends_weights, ends_width)
    data_uri = data_of(data_set, named.data_uri, model)
    options = EvaluationOptions(
        num_samples=num_samples or None,
        sampling=sampling_of(spec, steps, method) if steps or method else None,
        labels=_labels(labels),
        low_res_uri=low_res,
        metrics=measures,
        likelihood=likelihood,
        likelihood_form=likelihood_form or None,  # type: ignore[arg-type]  # what is no form is refused there
        likelihood_steps=likelihood_steps or None,
        likelihood_split=likelihood_split or None,  # type: ignore[arg-type]
        likelihood_num_images=likelihood_images or None,
        purpose=name,
        result_name=name,
        keep_images=keep_images,
        extractor=extractor or None,  # type: ignore[arg-type]
        extractor_weights=extractor_weights or None,
        num_workers=num_workers,
        batch_size=batch_size,
        device=device,
        precision=_precision(precision),
    )
    reference_uri = reference or reference_beside(spec.checkpoint_uri, data_uri, extractor, extractor_weights)
    result = run_evaluation(spec, data_uri, reference_uri, options=options)
    run_uri = run_uri_of(spec.checkpoint_uri)
    page = write_report(run_uri, result_name=name)
    tracked = noted(lambda: log_evaluation(run_uri, name, named.tracking_run_id))
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    for key, value in result.flat_metrics().items():
        print(f"{key.rpartition('/')[2]:<32} {value:.6g}")
    print(f"{'page':<32} {page}")
    print(f"{'samples':<32} {result.images_uri or result.grid_uri}")
    if tracked:
        print(f"{'MLflow':<32} {tracked}")


def compare(
    models: list[str] = typer.Argument(..., help="Two models or more, each named as for evaluate; the others are set against the first."),
    data: str = DATA,
    reference: str = REFERENCE,
    num_samples: int = typer.Option(0, min=0, help="Images drawn from each; 0 takes the first one's experiment's."),
    steps: str = STEPS,
    method: str = METHOD,
    weights: list[str] = typer.Option([], "--weights", help="Weights of each model, in their order; repeat it."),
    extractor: str = EXTRACTOR,
    extractor_weights: str = EXTRACTOR_WEIGHTS,
    metrics: list[str] = METRICS,
    likelihood: bool = typer.Option(True, help="Whether to take bits/dim."),
    seed: int = typer.Option(-1, help="Of the common noise; -1 derives it from the first one's experiment."),
    out: Path = typer.Option(Path("comparison"), help="Folder for samples.png, comparison.json and comparison.html."),
    num_workers: int = WORKERS,
    batch_size: int = BATCH,
    device: str = DEVICE,
    as_json: bool = JSON,
) -> None:
    """Set models beside each other: one protocol, the same noise, and how sure the differences are."""
    connect()
    from evaluation.evaluate.options import EvaluationOptions
    from evaluation.selection.resolve import resolve_model
    from evaluation.studies import compare as study

    if weights and len(weights) != len(models):
        raise ValueError(f"--weights is given {len(weights)} times for {len(models)} models; give it for each, or for none")
    found = [resolve_model(word) for word in models]
    specs = [named.spec(chosen or None) for named, chosen in zip(found, weights or [""] * len(found), strict=True)]
    data_uri = data_of(data, found[0].data_uri, models[0])
    options = EvaluationOptions(
        num_samples=num_samples or None,
        sampling=sampling_of(specs[0], steps, method) if steps or method else None,
        metrics=_metrics(metrics),
        likelihood=likelihood,
        seed=seed if seed >= 0 else None,
        extractor=extractor or None,  # type: ignore[arg-type]
        extractor_weights=extractor_weights or None,
        num_workers=num_workers,
        batch_size=batch_size,
        device=device,
    )
    reference_uri = reference or reference_beside(specs[0].checkpoint_uri, data_uri, extractor, extractor_weights)
    out.mkdir(parents=True, exist_ok=True)  # refused before anything is drawn
    comparison = study.compare(specs, data_uri, reference_uri, options=options)
    ids = [named.tracking_run_id for named in found]
    keep(study.as_study(comparison), out, ids, comparison.to_dict() if as_json else None)


def data_of(word: str, known: str, model: str) -> str:
    """The data set: the one that was named, else the one that the model was trained on.

    Raises:
        ValueError: Neither is known.
    """
    if not (word or known):
        raise ValueError(f"{model} does not say which data set it was trained on; name its directory")
    return word or known


def reference_beside(checkpoint_uri: str, data_uri: str, extractor: str, extractor_weights: str) -> str:
    """Reference statistics for a model, kept beside the data set."""
    from evaluation.distances.reference_statistics import compute_reference
    from evaluation.features.extractors import load_extractor
    from evaluation.records.devices import choose_device
    from training import storage
    from training.checkpoints.checkpoint import load_experiment

    evaluation = load_experiment(checkpoint_uri).evaluation
    name: Any = extractor or evaluation.extractor
    network = load_extractor(name, weights=extractor_weights or None, device=choose_device("auto"))
    beside = storage.join(data_uri, "references")
    return compute_reference(storage.join(data_uri, "train"), network, beside, evaluation.num_reference_images).uri


def _spec(spec: ModelSpec, ends: str, ends_weights: str, ends_width: int) -> ModelSpec:
    """The model, as the middle of an ensemble where its ends are named."""
    import dataclasses

    from evaluation.selection.resolve import resolve_model

    if not ends:
        return spec
    other = resolve_model(ends).spec(ends_weights or None)
    return dataclasses.replace(spec, ends_checkpoint_uri=other.checkpoint_uri, ends_weights=other.weights, ends_width=ends_width)


def sampling_of(spec: ModelSpec, steps: str, method: str) -> SamplingConfig:
    """The experiment's sampler with the words' changes."""
    from training.checkpoints.checkpoint import load_experiment

    experiment = load_experiment(spec.checkpoint_uri)
    words = {"spacing": steps, "method": method}
    if method == "ddim" and not steps and experiment.evaluation.sampling.spacing.isdigit():
        words["spacing"] = f"ddim{experiment.evaluation.sampling.spacing}"
    changes = [f"evaluation.sampling.{key}={json.dumps(word)}" for key, word in words.items() if word]
    return experiment.override(changes).evaluation.sampling


def _metrics(words: list[str]) -> tuple[str, ...] | None:
    """The measures, refused before reference statistics are computed; None where nothing was said."""
    from evaluation.distances.metrics import parse_metrics

    return tuple(sorted(parse_metrics([word for word in words if word != "none"]))) if words else None


def _labels(word: str) -> Any:
    if word in ("", "balanced", "data"):
        return word or "balanced"
    try:
        return tuple(int(label) for label in word.split(","))
    except ValueError as error:
        raise ValueError(f"--labels must be balanced, data, or numbers like 0,1,2; got {word!r}") from error


def _precision(word: str) -> Any:
    if word not in ("fp32", "bf16"):
        raise ValueError(f"--precision must be fp32 or bf16, got {word!r}")
    return word
