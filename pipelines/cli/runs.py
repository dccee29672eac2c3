"""demo, run, compile: the pipelines, on this machine or for a cluster."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel="Pipelines")(demo)
    app.command(rich_help_panel="Pipelines")(run)
    app.command("compile", rich_help_panel="Pipelines")(compile_pipelines)


def run(
    pipeline: str = typer.Argument("train", help="train, ablation or nightly-fid."),
    preset: str = typer.Option("", help="The experiment; `iddpm presets` lists them."),
    overrides: list[str] = typer.Option([], "--set", help="Override of the experiment, like optim.num_steps=500; repeat it."),
    parameters: list[str] = typer.Option([], "--param", help="Parameter of the pipeline, like tracking_experiment=mine; repeat it."),
    resources: list[str] = typer.Option([], "--resources", help="A stage's resources, like train=2xcpu or train.num_workers=4; repeat it."),
) -> None:
    """Run a pipeline on this machine, with the services that `iddpm up` starts."""
    from pipelines.client.arguments import arguments_of, compiled_pipeline
    from pipelines.compile import load
    from pipelines.local.run import run_pipeline
    from pipelines.services import services

    arguments = arguments_of(compiled_pipeline(pipeline), preset=preset, overrides=overrides, words=parameters, resources=resources)
    running = services.up()
    outputs = run_pipeline(load(pipeline), arguments, running)
    for name, value in outputs.items():
        print(f"{name}: {value}")
    print(f"MLflow: {running.mlflow_url}")


def demo(
    overrides: list[str] = typer.Option([], "--set", help="Override of the demo's experiment, like optim.num_steps=500; repeat it."),
) -> None:
    """Train, score and report a model of 1,797 real handwritten digits: the whole train pipeline, in a few minutes."""
    from pipelines.local.demo import run_demo

    run_demo(tuple(overrides))


def compile_pipelines(directory: Path = typer.Argument(Path("compiled"), help="Where the YAML goes.")) -> None:
    """Write the pipelines' YAML for upload in the KFP UI.

    IDDPM_IMAGE names the image that they run in, IDDPM_PARALLEL_TRIALS how many trials of an ablation run at once.
    """
    from components.container.image import BASE_IMAGE
    from pipelines.compile import compile_all

    for path in compile_all(directory):
        print(path)
    print(f"image: {BASE_IMAGE}")
