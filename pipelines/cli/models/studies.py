"""ema-sweep, guidance-sweep, replay-stopping, memorisation, score-batch, adopt-reference: studies of a run, and published files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from pipelines.cli.models import scoring
from pipelines.cli.options import JSON, MAX_ERROR, MAX_SEED, MODEL
from pipelines.cli.services import connect
from training import storage
from training.config.errors import UserError

_RUN = typer.Argument(..., help="A run's directory or key, runs:/ID, or models:/NAME@ALIAS.")


def ema_sweep(
    run: str = _RUN,
    decays: str = typer.Option(..., help="Decays like 0.99,0.999,0.9999; missing averages are rebuilt from the run's snapshots."),
    at: str = typer.Option("", help="Training steps like 100000,200000; empty takes the latest."),
    full: bool = typer.Option(False, "--full", help="Use the protocol of the reported number, not of the scores in training."),
    max_error: float = MAX_ERROR,
    data: str = scoring.DATA,
    reference: str = scoring.REFERENCE,
    extractor_weights: str = scoring.EXTRACTOR_WEIGHTS,
    out: Path = typer.Option(Path("ema-sweep"), help="Directory for sweep.html, sweep.csv, sweep.json and sweep.svg."),
    num_workers: int = scoring.WORKERS,
    device: str = scoring.DEVICE,
    as_json: bool = JSON,
) -> None:
    """Score averages of many decays from one run, on common noise (figure 7)."""
    connect()
    from evaluation.records.run_directory import run_uri_of
    from evaluation.studies import ema_sweep as study

    wanted = _numbers(decays, float, "--decays")
    steps = _numbers(at, int, "--at")
    named, data_uri = scoring.model_and_data(run, data)
    options = scoring.evaluation_options(
        named.checkpoint_uri, metrics=(), num_workers=num_workers, device=device, extractor_weights=extractor_weights
    )
    run_uri = run_uri_of(named.checkpoint_uri)
    reference_uri = reference or scoring.reference_of(named, data_uri, options, study.stored_averages(run_uri, wanted, steps))
    storage.make_directory(out)  # refused before anything is sampled
    found = study.sweep(
        run_uri,
        wanted,
        data_uri,
        reference_uri,
        steps=steps,
        at_full_protocol=full,
        max_error=max_error,
        options=options,
    )
    scoring.save_study(study.as_study(found), out, [named.tracking_run_id], as_json)


def guidance_sweep(
    model: str = MODEL,
    scales: str = typer.Option("1,1.5,2,3,4", help="Guidance scales; 1 is the model without guidance."),
    guidance_step: int = typer.Option(
        0, min=0, help="Training step of an earlier checkpoint that guides; 0 takes the model without its label."
    ),
    num_samples: int = typer.Option(0, min=0, help="Number of images a scale; 0 takes the experiment's."),
    steps: str = scoring.STEPS,
    method: str = scoring.METHOD,
    sampling: list[str] = scoring.SAMPLING,
    weights: str = scoring.WEIGHTS,
    data: str = scoring.DATA,
    reference: str = scoring.REFERENCE,
    extractor_weights: str = scoring.EXTRACTOR_WEIGHTS,
    out: Path = typer.Option(Path("guidance-sweep"), help="Directory for guidance.html, guidance.json and two figures."),
    num_workers: int = scoring.WORKERS,
    batch_size: int = scoring.BATCH,
    device: str = scoring.DEVICE,
    as_json: bool = JSON,
) -> None:
    """Evaluate a model at several guidance scales: distance, precision and recall, on common noise."""
    for field, option in (("guidance_scale", "--scales"), ("guidance_step", "--guidance-step")):
        if any(word.partition("=")[0].strip() == field for word in sampling):
            raise UserError(f"--sampling {field}: give it by {option}")
    connect()
    from evaluation.studies import guidance as study

    wanted = _numbers(scales, float, "--scales")
    named, data_uri = scoring.model_and_data(model, data)
    options = scoring.evaluation_options(
        named.checkpoint_uri,
        steps,
        method,
        sampling,
        num_samples=num_samples,
        metrics=(study.METRIC,),
        extractor_weights=extractor_weights,
        num_workers=num_workers,
        batch_size=batch_size,
        device=device,
    )
    spec = named.spec(weights or None)
    samplers = study.guided_samplers(spec, wanted, guidance_step=guidance_step, sampling=options.sampling)
    storage.make_directory(out)  # refused before anything is sampled
    reference_uri = reference or scoring.reference_of(named, data_uri, options, [spec])
    found = study.sweep(spec, samplers, data_uri, reference_uri, options)
    scoring.save_study(study.as_study(found), out, [named.tracking_run_id], as_json)


def replay_stopping(
    run: str = _RUN,
    num_samples: int = typer.Option(0, min=0, help="Number of images of a full score; 0 takes the experiment's."),
    steps: str = scoring.STEPS,
    method: str = scoring.METHOD,
    rescored: int = typer.Option(0, min=0, help="Number of the best that are scored again; 0 takes the experiment's."),
    data: str = scoring.DATA,
    reference: str = scoring.REFERENCE,
    extractor_weights: str = scoring.EXTRACTOR_WEIGHTS,
    out: Path = typer.Option(Path("replay-stopping"), help="Directory for replay.html, replay.json and replay.txt."),
    num_workers: int = scoring.WORKERS,
    device: str = scoring.DEVICE,
    as_json: bool = JSON,
) -> None:
    """Score every checkpoint by the full protocol, and compare early stopping's choice with the best one."""
    connect()
    from evaluation.records.run_directory import run_uri_of
    from evaluation.studies import stopping_replay as study

    named, data_uri = scoring.model_and_data(run, data)
    options = scoring.evaluation_options(
        named.checkpoint_uri,
        steps,
        method,
        num_samples=num_samples,
        metrics=(),
        extractor_weights=extractor_weights,
        num_workers=num_workers,
        device=device,
    )
    run_uri = run_uri_of(named.checkpoint_uri)
    reference_uri = reference or scoring.reference_of(named, data_uri, options, study.scored_weights(run_uri, options))
    storage.make_directory(out)  # refused before anything is sampled
    found = study.replay(run_uri, data_uri, reference_uri, num_rescored=rescored or None, options=options)
    scoring.save_study(study.as_study(found), out, [named.tracking_run_id], as_json)


def memorisation(
    model: str = MODEL,
    samples: str = typer.Option("", help="npz of its images (arr_0), as `sample --npz` writes it; empty draws them."),
    num_samples: int = typer.Option(1000, min=1, max=2000, help="Number of images to draw, or to use of the file."),
    seed: int = typer.Option(0, min=0, max=MAX_SEED, help="Seed of the noise."),
    steps: str = scoring.STEPS,
    method: str = scoring.METHOD,
    weights: str = scoring.WEIGHTS,
    false_alarms: float = typer.Option(0.01, help="Share of images without copies that may be flagged, between 0 and 0.5."),
    data: str = scoring.DATA,
    extractor: str = scoring.EXTRACTOR,
    extractor_weights: str = scoring.EXTRACTOR_WEIGHTS,
    out: Path = typer.Option(Path("memorisation"), help="Directory for memorisation.html and memorisation.json."),
    batch_size: int = scoring.BATCH,
    device: str = scoring.DEVICE,
    as_json: bool = JSON,
) -> None:
    """Find copies of training images among a model's samples, and near-duplicates in its training set."""
    connect()
    from evaluation.studies import memorisation as study

    if not 0 < false_alarms < 0.5:
        raise UserError(f"--false-alarms must be between 0 and 0.5, got {false_alarms}")
    for option, given in (("--seed", seed), ("--steps", steps), ("--method", method), ("--batch-size", batch_size)):
        if samples and given:
            raise UserError(f"{option} says how to draw samples, and --samples gives them; give one of the two")
    named, data_uri = scoring.model_and_data(model, data)
    request = study.Request(
        model=named.spec(weights or None),
        data_uri=data_uri,
        samples_uri=samples,
        num_samples=num_samples,
        seed=seed,
        sampling=scoring.sampling_of(named.checkpoint_uri, steps, method),
        extractor=extractor,
        extractor_weights=extractor_weights,
        false_alarm_rate=false_alarms,
        batch_size=batch_size,
        device=device,
    )
    storage.make_directory(out)  # refused before anything is sampled
    scoring.save_study(study.as_study(study.study_memorisation(request)), out, [named.tracking_run_id], as_json)


def score_batch(
    samples: str = typer.Argument(..., help="npz of images (arr_0), or of statistics (mu, sigma)."),
    reference: str = typer.Argument(..., help="npz of reference statistics, an ADM reference batch, or images alone."),
    extractor: str = typer.Option("inception", help="Feature extractor; `iddpm metrics` lists them."),
    extractor_weights: str = scoring.EXTRACTOR_WEIGHTS,
    metrics: list[str] = typer.Option([], "--metric", help="Further metric; `iddpm metrics` lists them. May be repeated."),
    out: Path = typer.Option(Path("score-batch"), help="Directory for score.html and score.json."),
    device: str = scoring.DEVICE,
    as_json: bool = JSON,
) -> None:
    """Score a file of images against a file of reference statistics, to check published numbers."""
    connect()
    from evaluation.studies import batch_score as study

    storage.make_directory(out)  # refused before anything is scored
    found = study.score_batch(
        samples,
        reference,
        extractor=extractor,  # type: ignore[arg-type]  # score_batch refuses other words
        extractor_weights=extractor_weights or None,
        metrics=metrics,
        device=device,
    )
    scoring.save_study(study.as_study(found), out, [""], as_json)


def adopt_reference(
    file: str = typer.Argument(..., help="npz of mu and sigma, as EDM, pytorch-fid and ADM write them."),
    data: str = typer.Argument(..., help="Directory of the data set whose training images they describe."),
    out: str = typer.Argument(..., help="npz to write; give it as --reference."),
    extractor: str = typer.Option("inception", help="Extractor of their features."),
    num_images: int = typer.Option(0, min=0, help="Number of images that they are of; 0 is all training images."),
) -> None:
    """Import external FID statistics, declaring their dataset and extractor."""
    connect()
    import dataclasses

    from evaluation.distances.reference_statistics import import_statistics, provenance_of
    from evaluation.features.extractors import extractor_id
    from training.data.format.manifest import read_manifest

    network = extractor_id(extractor)
    manifest = read_manifest(storage.join(data, "train"))
    count = num_images or manifest.num_images
    if count > manifest.num_images:
        raise UserError(f"--num-images {count:,}: {data} has {manifest.num_images:,} training images; name the data set that they are of")
    made = import_statistics(file, out, dataclasses.replace(provenance_of(manifest, network), num_images=count))
    print(f"{made.uri}: {made.features.dim}-dimensional features of {extractor}, vouched for as {count:,} images of {data}")


def _numbers(words: str, kind: Callable[[str], Any], option: str) -> list[Any]:
    try:
        return [kind(word) for word in words.split(",") if word]
    except ValueError as error:
        raise UserError(f"{option}: {words!r} is not a list of numbers with commas") from error
