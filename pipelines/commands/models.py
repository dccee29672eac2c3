"""presets, show, cost; sample, evaluate; import-, export-checkpoint, rebuild-average: experiments, and what was made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from pipelines.commands.services import connect

_JSON = typer.Option(False, "--json", help="As JSON.")
_SET = typer.Option([], "--set", help="Override, like model.dropout=0.1; repeat it.")
_WEIGHTS = typer.Option("", help="ema_0.9999 and the like, or model; empty takes the first average.")
_PANEL = "Experiments and models"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    commands: dict[str, Callable[..., None]] = {
        "presets": presets,
        "show": show,
        "cost": cost,
        "sample": sample,
        "evaluate": evaluate,
        "import-checkpoint": import_checkpoint,
        "export-checkpoint": export_checkpoint,
        "rebuild-average": rebuild_average,
    }
    for name, command in commands.items():
        app.command(name, rich_help_panel=_PANEL)(command)


def presets(as_json: bool = _JSON) -> None:
    """List the experiments, by name, with what the paper reports of them."""
    from training import presets as table

    rows = table.table()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        experiment = row["experiment"]
        data, diffusion, optim = experiment["data"], experiment["diffusion"], experiment["optim"]
        settings = f"{data['image_size']:>3} px  T {diffusion['num_timesteps']:<5} {diffusion['schedule']:<7} {diffusion['objective']:<7}"
        told = "; ".join(
            _paper_words(result) for result in row["results"] if not result.get("overrides") and {"fid", "bits_per_dim"} & result.keys()
        )
        print(f"{row['name']:<46} {settings} {optim['num_steps']:>9,} x {optim['global_batch_size']:<5} {told}".rstrip())
    print("\nsteps x batch, then what the paper reports; `iddpm show NAME --json` has the source, the assumptions and all results")


def _paper_words(result: dict[str, Any]) -> str:
    """One reported result: "FID 19.2, 3.57 bits/dim (main table 1)"."""
    numbers = [f"FID {result['fid']}"] if "fid" in result else []
    numbers += [f"{result['bits_per_dim']} bits/dim"] if "bits_per_dim" in result else []
    return f"{', '.join(numbers)} ({result['where']})"


def show(preset: str, overrides: list[str] = _SET, as_json: bool = _JSON) -> None:
    """Print an experiment as JSON, with overrides applied; --json adds its source and the paper's results."""
    from training import presets as table

    experiment = table.preset(preset, overrides)
    if as_json:
        print(json.dumps({**table.describe(preset), "experiment": experiment.to_dict()}, indent=2))
    else:
        print(experiment.to_json(), end="")


def cost(
    preset: str,
    overrides: list[str] = _SET,
    card: str = typer.Option("H100", help="Accelerator."),
    utilisation: float = typer.Option(0.3, help="Share of its peak that is reached."),
    as_json: bool = _JSON,
) -> None:
    """What an experiment takes: parameters, multiply-adds, card-hours, memory."""
    from training.cost import estimate
    from training.presets import preset as named
    from training.progress import format_bytes

    found = estimate(named(preset, overrides), card, utilisation=utilisation)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    print(f"{found.parameters:,} parameters; {found.forward_macs / 1e9:,.2f} GMACs an image ({found.forward_flops / 1e9:,.2f} GFLOPs)")
    print(f"on {found.card} at {found.utilisation:.0%} of its peak:")
    for name, phase in found.phases.items():
        print(f"  {name:<12} {phase.flops:.3g} FLOPs  {phase.card_hours:,.2f} hours of one card")
    memory = [f"{name.replace('_', ' ')} {_memory(value, format_bytes)}" for name, value in found.to_dict()["memory"].items()]
    print("memory in training: " + ", ".join(memory))


def _memory(value: Any, format_bytes: Any) -> str:
    return format_bytes(value) if isinstance(value, (int, float)) and value > 1e5 else str(value)


def sample(
    checkpoint: str = typer.Argument(..., help="Checkpoint's directory, s3:// or a path."),
    out: Path = typer.Argument(Path("samples.png"), help="PNG to write."),
    num_images: int = typer.Option(100, help="How many."),
    seed: int = typer.Option(0, help="Of all noise; another seed, other images."),
    steps: str = typer.Option("", help="Spacing, like 250 or ddim50; empty takes the experiment's."),
    method: str = typer.Option("", help="ancestral, ddim or dpm_solver_pp; empty takes the experiment's."),
    labels: str = typer.Option("", help="Labels like 0,1,2, repeated in turn; empty takes every class alike."),
    weights: str = _WEIGHTS,
) -> None:
    """Draw images from a checkpoint as one PNG grid."""
    connect()
    from evaluation import grids
    from evaluation.generate import concatenated, generate
    from evaluation.models import load_model

    if num_images < 1:
        raise ValueError(f"--num-images must be at least 1, got {num_images}")
    model = load_model(checkpoint, weights or None)
    words = {"spacing": steps, "method": method}
    if method == "ddim" and not steps and model.experiment.evaluation.sampling.spacing.isdigit():
        words["spacing"] = f"ddim{model.experiment.evaluation.sampling.spacing}"
    changes = [f"evaluation.sampling.{key}={json.dumps(word)}" for key, word in words.items() if word]
    sampling = model.experiment.override(changes).evaluation.sampling
    chosen: Any = [int(label) for label in labels.split(",")] if labels else "balanced"
    drawn = concatenated(generate(model, num_images=num_images, seed=seed, sampling=sampling, labels=chosen))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(grids.to_png(grids.sample_grid(drawn[0])))
    print(f"{out}: {num_images:,} images of {model.description}")


def evaluate(
    checkpoint: str = typer.Argument(..., help="Checkpoint's directory inside its run's."),
    data: str = typer.Argument(..., help="The data set's directory."),
    reference: str = typer.Option("", help="Reference statistics; empty computes them beside the data set."),
    num_samples: int = typer.Option(0, help="Images drawn; 0 takes the experiment's."),
    likelihood: bool = typer.Option(True, help="Whether to take bits/dim."),
    name: str = typer.Option("manual", help="Name of the result in the run's directory."),
    num_workers: int = typer.Option(1, help="Processes."),
    weights: str = _WEIGHTS,
    as_json: bool = _JSON,
) -> None:
    """Score a checkpoint by its experiment's protocol."""
    connect()
    from components.evaluation_run import reference_for
    from evaluation.run import EvaluationOptions
    from evaluation.run import evaluate as run_evaluation
    from training.checkpoint import load_experiment

    reference_uri = reference or reference_for(load_experiment(checkpoint), data, data)
    options = EvaluationOptions(num_samples=num_samples or None, likelihood=likelihood, result_name=name, num_workers=num_workers)
    result = run_evaluation(checkpoint, data, reference_uri, weights=weights or None, options=options)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    for key, value in result.flat_metrics().items():
        print(f"{key.rpartition('/')[2]:<32} {value:.6g}")


def import_checkpoint(
    file: str = typer.Argument(..., help="A .pt file of the released code, or one that export-checkpoint wrote."),
    run: str = typer.Argument(..., help="Directory of the run that gets the checkpoint."),
    preset: str = typer.Option("", help="Which experiment it is, where neither the file nor its name says."),
    overrides: list[str] = _SET,
) -> None:
    """Make one of our checkpoints from a published file."""
    connect()
    from training.exchange import import_checkpoint as make

    print(json.dumps(make(file, run, preset=preset or None, overrides=overrides), indent=2))


def export_checkpoint(
    checkpoint: str = typer.Argument(..., help="Checkpoint's directory."),
    file: str = typer.Argument(..., help="A .pt (the released code reads it) or .safetensors file to write."),
    weights: str = _WEIGHTS,
) -> None:
    """Write a checkpoint's weights as one file."""
    connect()
    from training.exchange import export_checkpoint as write

    print(json.dumps(write(checkpoint, file, weights=weights or None), indent=2))


def rebuild_average(
    run: str = typer.Argument(..., help="Directory of a run that stored snapshots (optim.ema_snapshot_stds)."),
    out: str = typer.Argument(..., help="Directory of another run, which gets the checkpoint; one for each decay."),
    decay: float = typer.Option(..., help="Decay of the exponential average, 0.9999 or slower."),
    step: int = typer.Option(0, help="Updates; 0 takes the last snapshot's."),
) -> None:
    """Make the average of any decay from a finished run's snapshots, as a checkpoint to sample and score."""
    connect()
    from training.averages import rebuild_average as rebuild

    print(json.dumps(rebuild(run, out, decay=decay, step=step or None), indent=2))
