"""demo, run, compile: the pipelines, on this machine or for a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    parameters: list[str] = typer.Option([], "--param", help="Parameter of the pipeline, like train_num_workers=1; repeat it."),
) -> None:
    """Run a pipeline on this machine, with the services that `iddpm up` starts."""
    from pipelines import services
    from pipelines.compile import load
    from pipelines.local import run_pipeline

    arguments = _parameters(load(pipeline), parameters)
    if preset:
        arguments["experiment_preset"] = preset
    if overrides:
        arguments["experiment_overrides"] = list(overrides)
    _check_experiment(pipeline, arguments)
    running = services.up()
    outputs = run_pipeline(load(pipeline), arguments, running)
    for name, value in outputs.items():
        print(f"{name}: {value}")
    print(f"MLflow: {running.mlflow_url}")


def demo(
    overrides: list[str] = typer.Option([], "--set", help="Override of the demo's experiment, like optim.num_steps=500; repeat it."),
) -> None:
    """Train, score and report a model of 1,797 real handwritten digits: the whole train pipeline, in a few minutes."""
    from pipelines.demo import run_demo

    run_demo(tuple(overrides))


def compile_pipelines(directory: Path = typer.Argument(Path("compiled"), help="Where the YAML goes.")) -> None:
    """Write the pipelines' YAML for upload in the KFP UI. IDDPM_IMAGE names the image that they run in."""
    from components.image import BASE_IMAGE
    from pipelines.compile import compile_all

    for path in compile_all(directory):
        print(path)
    print(f"image: {BASE_IMAGE}")


def _parameters(pipeline: Any, words: list[str]) -> dict[str, Any]:
    """`name=value` words as the pipeline's arguments, each of its parameter's type."""
    inputs = pipeline.component_spec.inputs or {}
    arguments: dict[str, Any] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator:
            raise ValueError(f"--param {word}: it reads name=value")
        if name not in inputs:
            raise ValueError(f"--param {word}: pipeline {pipeline.name!r} has no parameter {name!r}; it has {', '.join(inputs)}")
        kind = inputs[name].type
        if kind == "String":
            arguments[name] = value
            continue
        try:
            arguments[name] = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"--param {word}: {name} is of type {kind}, written as JSON") from error
    return arguments


def _check_experiment(pipeline: str, arguments: dict[str, Any]) -> None:
    """Refuses an invalid override in a second, before anything starts."""
    from pipelines.compile import load

    inputs = load(pipeline).component_spec.inputs or {}
    chosen = {**{name: parameter.default for name, parameter in inputs.items()}, **arguments}
    if "ablation_name" in inputs:
        from training.ablation_request import of_parameters

        of_parameters(chosen).trials()
    elif "experiment_preset" in arguments or "experiment_overrides" in arguments:
        from training.presets import preset

        if "experiment_preset" not in inputs:
            raise ValueError(f"pipeline {pipeline!r} takes no --preset and no --set; its parameters are {', '.join(inputs)}")
        preset(chosen["experiment_preset"], chosen["experiment_overrides"])
