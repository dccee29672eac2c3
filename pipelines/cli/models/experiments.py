"""presets, show, cost, import-checkpoint, export, rebuild-average: experiments and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from pipelines.cli import options
from pipelines.cli.services import connect
from training.config.errors import UserError

if TYPE_CHECKING:
    from training.cost.estimate import Cost


def presets(as_json: bool = options.JSON) -> None:
    """List the presets, with the results that the paper reports."""
    from training.config import presets as table

    rows = table.table()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        experiment = row["experiment"]
        data, diffusion, optim = experiment["data"], experiment["diffusion"], experiment["optim"]
        settings = f"{data['image_size']:>3} px  T {diffusion['num_timesteps']:<5} {diffusion['schedule']:<7} {diffusion['objective']:<7}"
        results = "; ".join(
            _format_result(result) for result in row["results"] if not result.get("overrides") and {"fid", "bits_per_dim"} & result.keys()
        )
        print(f"{row['name']:<46} {settings} {optim['num_steps']:>9,} x {optim['global_batch_size']:<5} {results}".rstrip())
    print("\nsteps x batch, then the paper's results; `iddpm show NAME --json` has the source, the assumptions and all results")


def _format_result(result: dict[str, Any]) -> str:
    """Return a reported result, like "FID 19.2, 3.57 bits/dim (main table 1)"."""
    numbers = [f"FID {result['fid']}"] if "fid" in result else []
    numbers += [f"{result['bits_per_dim']} bits/dim"] if "bits_per_dim" in result else []
    return f"{', '.join(numbers)} ({result['where']})"


def show(
    preset: str = typer.Argument(..., help="Name of a preset (`iddpm presets` lists them), or experiment file (TOML)."),
    overrides: list[str] = options.SET,
    as_json: bool = typer.Option(False, "--json", help="Add its source, its assumptions, and the paper's results."),
    as_toml: bool = typer.Option(False, "--toml", help="Print it as an experiment file, for `iddpm train`."),
) -> None:
    """Print an experiment as JSON, with overrides applied."""
    from training.config import presets as table
    from training.config.files import base_of, named_experiment, to_toml

    experiment, base = named_experiment(preset, overrides), base_of(preset)
    if as_json and as_toml:
        raise UserError("--json and --toml exclude each other; give one")
    if as_toml:
        print(to_toml(experiment, base), end="")
    elif as_json:
        print(json.dumps({**table.describe(base), "experiment": experiment.every_field()}, indent=2))
    else:
        print(json.dumps(experiment.every_field(), indent=2))


def cost(
    preset: str = typer.Argument("", help="Name of a preset, or experiment file (TOML); none prints a line for each preset."),
    overrides: list[str] = options.SET,
    card: str = typer.Option("H100", help="Accelerator, like H100, A100 or L4; CPU is one core."),
    utilisation: float | None = typer.Option(
        None, help="Utilisation of its peak, 0 to 1, instead of the measured one.", show_default=False
    ),
    price_per_hour: float | None = typer.Option(
        None, min=0, help="Price of one card per hour, in any currency; adds the total.", show_default=False
    ),
    as_json: bool = options.JSON,
) -> None:
    """Estimate the cost of an experiment: parameters, multiply-adds, card-hours and their price, memory."""
    from training.config.files import named_experiment
    from training.config.presets import names
    from training.cost.estimate import estimate

    chosen = [preset] if preset else list(names())
    found = [
        estimate(named_experiment(name, overrides), card, utilisation=utilisation, price_per_hour=price_per_hour, with_memory=bool(preset))
        for name in chosen
    ]
    if as_json:
        print(json.dumps(found[0].to_dict() if preset else [one.to_dict() for one in found], indent=2))
    elif preset:
        _print_cost(found[0])
    else:
        _print_costs(found)


def _print_cost(found: Cost) -> None:
    from training.console import format_bytes

    print(f"{found.parameters:,} parameters; {found.forward_macs / 1e9:,.2f} GMACs an image ({found.forward_flops / 1e9:,.2f} GFLOPs)")
    print(f"time on one {_card(found.card)}{', its price' if found.price is not None else ''}, and operations:")
    for name, phase in found.phases.items():
        print(f"  {name:<12} {_hours(phase.card_hours):>12}{_price(phase.price)}  {phase.flops:.3g} FLOPs")
    print(f"  {'total':<12} {_hours(found.card_hours):>12}{_price(found.price)}")
    for line in _bases(found):
        print(line)
    sizes = {
        name: f"{value:,} images" if "microbatch" in name else format_bytes(value) for name, value in found.to_dict()["memory"].items()
    }
    memory = [f"{name.replace('_', ' ')} {value}" for name, value in sizes.items()]
    print("memory in training: " + ", ".join(memory))
    if found.card == "CPU":
        print("a process takes this peak and the memory of its libraries; without tcmalloc (the image has it), up to twice the peak")
        print("(Debian, Ubuntu: apt-get install libtcmalloc-minimal4, and LD_PRELOAD=libtcmalloc_minimal.so.4 iddpm ...)")


def _print_costs(found: Sequence[Cost]) -> None:
    print(
        f"{'time on one ' + _card(found[0].card):<50} {'training':>11} {'evaluation':>11} {'total':>11}"
        + (f" {'price':>12}" if found[0].price is not None else "")
    )
    for one in found:
        training = one.phases["training"].card_hours
        hours = f"{_hours(training):>11} {_hours(one.card_hours - training):>11} {_hours(one.card_hours):>11}"
        print(f"{one.experiment:<50} {hours}{_price(one.price)}")
    print("\nevaluation: scores during training, the choice of the best checkpoint, and the reported distance and likelihood;")
    print("`iddpm cost NAME` lists them separately")
    for line in dict.fromkeys(line for one in found for line in _bases(one)):
        print(line)


def _bases(found: Cost) -> list[str]:
    """Return a line for each basis of the estimate."""
    phases_by_basis: dict[str, list[str]] = {}
    for name, phase in found.phases.items():
        phases_by_basis.setdefault(phase.basis, []).append("training" if name == "training" else "evaluation")
    return [f"{' and '.join(dict.fromkeys(phases))} estimated by: {basis}" for basis, phases in phases_by_basis.items()]


def _card(name: str) -> str:
    return "CPU core" if name == "CPU" else name


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.0f} h" if hours >= 100 else f"{hours:,.1f} h"
    if hours * 60 >= 1:
        return f"{hours * 60:.1f} min"
    return f"{hours * 3600:.0f} s" if hours * 3600 >= 1 else "< 1 s"


def _price(price: float | None) -> str:
    return "" if price is None else f" {price:>12,.2f}"


def import_checkpoint(
    file: str = typer.Argument(..., help="A file of the released code, a .pt or .safetensors of `iddpm export`, or a folder of diffusers."),
    run: str = typer.Argument(..., help="Directory of the run for the checkpoint."),
    preset: str = typer.Option(
        "",
        help="Preset or experiment file (TOML) of the network, if neither the file, its name nor the folder tells it, as with a .pt of a "
        "model of your own.",
    ),
    overrides: list[str] = options.SET,
) -> None:
    """Import a published checkpoint, or a folder of diffusers."""
    connect()
    from training.checkpoints.diffusers_folder import import_diffusers, is_diffusers_folder
    from training.checkpoints.import_export import import_checkpoint as make

    read = import_diffusers if is_diffusers_folder(file) else make
    print(json.dumps(read(file, run, preset=preset or None, overrides=overrides), indent=2))


def export(
    model: str = options.MODEL,
    target: str = typer.Argument(..., help="FILE.pt, FILE.safetensors, FILE.pt2, or a folder (s3:// or a path); its ending is the format."),
    weights: str = typer.Option("", help="Weights: an average like ema_0.9999, or model; empty takes the selected ones."),
) -> None:
    """Export a model: .pt for the released code, .safetensors, .pt2 of torch.export for torch alone, or a folder for diffusers."""
    connect()
    from pathlib import PurePath

    from evaluation.selection.resolve import resolve_model
    from training.checkpoints.diffusers_folder import export_diffusers
    from training.checkpoints.exported_program import export_program
    from training.checkpoints.import_export import export_checkpoint

    write = {"": export_diffusers, ".pt2": export_program}.get(PurePath(target).suffix, export_checkpoint)
    spec = resolve_model(model).spec(weights or None)
    print(json.dumps(write(spec.checkpoint_uri, target, weights=spec.weights), indent=2))


def rebuild_average(
    run: str = typer.Argument(
        ..., help="A run with snapshots (optim.ema_snapshot_stds): its directory or key, runs:/ID, or models:/NAME@ALIAS."
    ),
    out: str = typer.Argument(..., help="Directory of another run for the checkpoint; one for each decay."),
    decay: float = typer.Option(..., help="Decay of the exponential average, like 0.9999."),
    step: int = typer.Option(0, min=0, help="Training step; 0 takes that of the last snapshot."),
    max_error: float = options.MAX_ERROR,
) -> None:
    """Rebuild the average of any decay from a run's snapshots, as a checkpoint."""
    connect()
    from evaluation.records.run_directory import run_uri_of
    from evaluation.selection.resolve import is_tracked, resolve_model
    from training.checkpoints.averages import rebuild_average as rebuild

    run_uri = run_uri_of(resolve_model(run).checkpoint_uri) if is_tracked(run) else run
    print(json.dumps(rebuild(run_uri, out, decay=decay, step=step or None, max_error=max_error), indent=2))
