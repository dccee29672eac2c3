"""presets, show, cost: what can be trained, and what it takes."""

from __future__ import annotations

import json

import typer

_JSON = typer.Option(False, "--json", help="As JSON.")
_SET = typer.Option([], "--set", help="Override, like model.dropout=0.1; repeat it.")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel="Experiments and models")(presets)
    app.command(rich_help_panel="Experiments and models")(show)


def presets(as_json: bool = _JSON) -> None:
    """List the experiments, by name."""
    from training import presets as table

    experiments = [table.preset(name) for name in table.names()]
    if as_json:
        print(json.dumps({experiment.name: experiment.to_dict() for experiment in experiments}, indent=2))
        return
    for experiment in experiments:
        data, diffusion = experiment.data, experiment.diffusion
        print(
            f"{experiment.name:<44} {data.image_size:>3} px  T {diffusion.num_timesteps:<5} {diffusion.schedule:<7} "
            f"{diffusion.objective:<7} {experiment.optim.num_steps:>9,} steps of {experiment.optim.global_batch_size}"
        )


def show(preset: str, overrides: list[str] = _SET) -> None:
    """Print an experiment as JSON, with overrides applied."""
    from training.presets import preset as named

    print(named(preset, overrides).to_json(), end="")
