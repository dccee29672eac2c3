"""presets, show, cost; import-, export-checkpoint, rebuild-average: experiments, and what was made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from pipelines.cli.services import connect

if TYPE_CHECKING:
    from training.cost.estimate import Cost

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
        "import-checkpoint": import_checkpoint,
        "export-checkpoint": export_checkpoint,
        "rebuild-average": rebuild_average,
    }
    for name, command in commands.items():
        app.command(name, rich_help_panel=_PANEL)(command)


def presets(as_json: bool = _JSON) -> None:
    """List the experiments, by name, with what the paper reports of them."""
    from training.config import presets as table

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


def show(
    preset: str = typer.Argument(..., help="Name of an experiment; `iddpm presets` lists them."),
    overrides: list[str] = _SET,
    as_json: bool = typer.Option(False, "--json", help="With its source, what was assumed, and the paper's results."),
) -> None:
    """Print an experiment as JSON, with overrides applied; --json adds its source and the paper's results."""
    from training.config import presets as table

    experiment = table.preset(preset, overrides)
    if as_json:
        print(json.dumps({**table.describe(preset), "experiment": experiment.to_dict()}, indent=2))
    else:
        print(experiment.to_json(), end="")


def cost(
    preset: str = typer.Argument("", help="Name of an experiment; none gives a line for each."),
    overrides: list[str] = _SET,
    card: str = typer.Option("H100", help="Accelerator, or CPU for one core."),
    utilisation: float = typer.Option(None, help="Share of its peak to reckon with, instead of what was measured.", show_default=False),
    price_per_hour: float = typer.Option(None, help="Of one card, in any currency; adds the bill.", show_default=False),
    as_json: bool = _JSON,
) -> None:
    """What an experiment takes: parameters, multiply-adds, card-hours and their price, memory."""
    from training.config.presets import names
    from training.config.presets import preset as named
    from training.cost.estimate import estimate

    chosen = [preset] if preset else list(names())
    found = [
        estimate(named(name, overrides), card, utilisation=utilisation, price_per_hour=price_per_hour, with_memory=bool(preset))
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
    print(f"hours of one {_card(found.card)}:")
    for name, phase in found.phases.items():
        print(f"  {name:<12} {_hours(phase.card_hours):>12}{_price(phase.price)}  {phase.flops:.3g} FLOPs")
    print(f"  {'in all':<12} {_hours(found.card_hours):>12}{_price(found.price)}")
    for line in _bases(found):
        print(line)
    memory = [f"{name.replace('_', ' ')} {_memory(value, format_bytes)}" for name, value in found.to_dict()["memory"].items()]
    print("memory in training: " + ", ".join(memory))


def _print_costs(found: Sequence[Cost]) -> None:
    print(
        f"{'hours of one ' + _card(found[0].card):<50} {'training':>11} {'evaluation':>11} {'in all':>11}"
        + (f" {'price':>12}" if found[0].price is not None else "")
    )
    for one in found:
        training = one.phases["training"].card_hours
        hours = f"{_hours(training):>11} {_hours(one.card_hours - training):>11} {_hours(one.card_hours):>11}"
        print(f"{one.experiment:<50} {hours}{_price(one.price)}")
    print("\nevaluation: scores beside training, and the reported distance and likelihood; `iddpm cost NAME` has them apart")
    for line in dict.fromkeys(line for one in found for line in _bases(one)):
        print(line)


def _bases(found: Cost) -> list[str]:
    """What the hours are reckoned by, a line for each basis."""
    of: dict[str, list[str]] = {}
    for name, phase in found.phases.items():
        of.setdefault(phase.basis, []).append("training" if name == "training" else "evaluation")
    return [f"{' and '.join(dict.fromkeys(phases))} reckoned by: {basis}" for basis, phases in of.items()]


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


def _memory(value: Any, format_bytes: Any) -> str:
    return format_bytes(value) if isinstance(value, (int, float)) and value > 1e5 else str(value)


def import_checkpoint(
    file: str = typer.Argument(..., help="A .pt file of the released code, or one that export-checkpoint wrote."),
    run: str = typer.Argument(..., help="Directory of the run that gets the checkpoint."),
    preset: str = typer.Option("", help="Which experiment it is, where neither the file nor its name says."),
    overrides: list[str] = _SET,
) -> None:
    """Make one of our checkpoints from a published file."""
    connect()
    from training.checkpoints.import_export import import_checkpoint as make

    print(json.dumps(make(file, run, preset=preset or None, overrides=overrides), indent=2))


def export_checkpoint(
    checkpoint: str = typer.Argument(..., help="Checkpoint's directory."),
    file: str = typer.Argument(..., help="A .pt (the released code reads it) or .safetensors file to write."),
    weights: str = _WEIGHTS,
) -> None:
    """Write a checkpoint's weights as one file."""
    connect()
    from training.checkpoints.import_export import export_checkpoint as write

    print(json.dumps(write(checkpoint, file, weights=weights or None), indent=2))


def rebuild_average(
    run: str = typer.Argument(..., help="Directory of a run that stored snapshots (optim.ema_snapshot_stds)."),
    out: str = typer.Argument(..., help="Directory of another run, which gets the checkpoint; one for each decay."),
    decay: float = typer.Option(..., help="Decay of the exponential average, 0.9999 or slower."),
    step: int = typer.Option(0, min=0, help="Updates; 0 takes the last snapshot's."),
) -> None:
    """Make the average of any decay from a finished run's snapshots, as a checkpoint to sample and score."""
    connect()
    from training.checkpoints.averages import rebuild_average as rebuild

    print(json.dumps(rebuild(run, out, decay=decay, step=step or None), indent=2))
