"""tune: a search over a preset's fields that learns from its trials."""

from __future__ import annotations

import typer

from pipelines.cli import options


def tune(
    preset: str = typer.Argument(..., help="Preset, or experiment file (TOML), whose fields are searched."),
    search: list[str] = typer.Option(
        ...,
        "--search",
        help="A searched field: FIELD=LOW..HIGH, FIELD=log:LOW..HIGH (by factor), or FIELD=[A,B,C]; like "
        "optim.learning_rate=log:1e-4..1e-2. Whole numbers where the field is one. May be repeated.",
    ),
    trials: int = typer.Option(20, min=1, help="Number of trials in all; more of them go on with the same tuning."),
    time_limit: str = typer.Option("", help="No trial starts after this time, like 8h; the same command goes on."),
    overrides: list[str] = typer.Option([], "--set", help="Override of every trial, like optim.num_steps=500; may be repeated."),
    seed: int = typer.Option(0, min=0, max=options.MAX_SEED, help="Seed of the suggestions; the experiment's own is --set seed=N."),
    reduction: int = typer.Option(3, help="At each rung one of so many trials goes on, the others are pruned; 0 prunes none."),
    images: str = options.IMAGES,
    data_options: str = options.DATA_OPTIONS,
    resources: list[str] = options.RESOURCES,
    num_workers: int | None = typer.Option(
        None, min=1, show_default=False, help="Training processes of a trial: train.num_workers. Default: 1."
    ),
    gpu: bool = typer.Option(False, help="Train on GPUs: train.num_gpus_per_worker=1."),
) -> None:
    """Search a preset's fields for the smallest distance at checkpoints: TPE suggests each trial from those before it, ASHA prunes.

    Every trial is an ordinary run. Stopped, the same command goes on; `iddpm train` goes on from a pruned one.
    """
    from components.steps.settings import refuse_sources
    from evaluation.tuning.request import TuneOptions, TuneRequest
    from pipelines.client.arguments import compiled_pipeline, local_resources, require_gpus
    from pipelines.client.timing import parse_duration
    from pipelines.local.images import absolute, require_sources
    from pipelines.local.training import shorten_path
    from pipelines.local.tune import run_tuning
    from pipelines.services import services
    from training.config.files import name_or_file

    hours = parse_duration(time_limit, "--time-limit") / 3600 if time_limit else 0.0
    name, text = name_or_file(preset)
    request = TuneRequest(
        preset=name,
        file=text,
        overrides=tuple(overrides),
        search=tuple(search),
        trials=trials,
        options=TuneOptions(seed=seed, reduction=reduction, hours=hours),
    )
    request.axes()  # refuses what does not fit before anything starts
    refuse_sources(data_options, "give --images")
    source = absolute(images)
    require_sources([source])
    stages = local_resources(compiled_pipeline("tune"), resources, stages=("train",), num_workers=num_workers, gpu=gpu)
    require_gpus(stages)
    result = run_tuning(request, services.up(), source=source, data_options=data_options, resources=stages)
    for line in result.lines:
        options.out(line)
    options.out(f"report  {shorten_path(result.folder / 'report.html')}")
    options.out(f"best    {shorten_path(result.folder / 'best.toml')}; `iddpm train` takes it")
