"""reproduce: a table of the paper, from its cost to our numbers beside the paper's."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipelines.cli import options
from pipelines.cli.paper.ablations import PARALLEL_TRIALS, pairs, resources_of_trials, run_requests
from training import storage
from training.config.errors import UserError

if TYPE_CHECKING:
    from evaluation.ablations.definitions.request import AblationRequest


def reproduce(
    name: str = typer.Argument("", help="A table, like cifar10-table2; none lists them."),
    sources: list[str] = typer.Option([], "--source", help="Source of a data set's images, like cifar10=cifar10:/data; may be repeated."),
    runs: list[str] = typer.Option([], "--run", help="An imported checkpoint in place of a row's training, like vlb-cosine=URI."),
    overrides: list[str] = typer.Option([], "--set", help="Override of every row, like evaluation.num_samples=50; may be repeated."),
    seeds: int = typer.Option(1, min=1, help="Train every row with so many seeds; the paper has one."),
    card: str = typer.Option("H100", help="Accelerator of the cost."),
    price_per_hour: float | None = typer.Option(None, min=0, help="Price of one card per hour, in any currency.", show_default=False),
    resources: list[str] = options.RESOURCES,
    num_workers: int | None = typer.Option(
        None, min=1, show_default=False, help="Training processes, one GPU each where there are GPUs. Default: 1."
    ),
    parallel_trials: int | None = PARALLEL_TRIALS,
    yes: bool = typer.Option(False, "--yes", help="Start without a question."),
) -> None:
    """Repeat a table of the paper here: say what it costs, train and evaluate its rows, and put ours beside the paper's."""
    from evaluation.ablations.definitions.ablation import did_you_mean
    from evaluation.ablations.definitions.reproductions import REPRODUCTIONS
    from evaluation.ablations.definitions.request import AblationRequest
    from training.cost.accelerators import card_named

    if not name:
        for table in REPRODUCTIONS.values():
            print(f"{table.name:<24} {table.title}. {table.source}; rows {', '.join(row.role for row in table.paper)}")
        return
    if name not in REPRODUCTIONS:
        raise UserError(f"there is no table {name!r} to reproduce; {did_you_mean(name, REPRODUCTIONS, 'tables')}")
    card = card_named(card)  # refuses an unknown one before the first row is printed
    request = AblationRequest(name=name, scale="paper", overrides=tuple(overrides), runs=pairs(runs, "--run"), seeds=seeds)
    import torch

    said = {word.partition("=")[0] for word in resources}
    unsaid = [stage for stage in ("train", "evaluate") if not said & {stage, f"{stage}.num_gpus_per_worker"}]
    if torch.cuda.is_available():
        resources = [*resources, *(f"{stage}.num_gpus_per_worker=1" for stage in unsaid)]
    stages = resources_of_trials(resources, num_workers=num_workers, gpu=False)
    _show(request, card, price_per_hour)
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("nothing was started; give --yes to start it")
        typer.confirm("Start it?", abort=True)
    (result,) = run_requests([request], sources, resources=stages, parallel_trials=parallel_trials)
    print("\n".join(beside_the_paper(result.folder)))
    if request.changes:
        print(f"These are not the paper's numbers of images or updates: {', '.join(request.changes)}.")


@dataclass(kw_only=True)
class _StoredRow:
    trial: str
    distance: float | None
    distance_paper: float | None
    bits_per_dim: float | None
    bits_per_dim_paper: float | None


@dataclass(kw_only=True)
class _StoredTable:
    rows: list[_StoredRow]


def beside_the_paper(folder: Path) -> list[str]:
    """Return the lines of a table of our numbers beside the paper's, from the folder of a finished ablation."""
    rows = storage.read_json(str(folder / "table.json"), _StoredTable)["rows"]
    lines = [f"{'row':<26}{'distance':>10}{'the paper':>11}{'bits/dim':>11}{'the paper':>11}"]
    for row in rows:
        numbers = (row["distance"], row["distance_paper"], row["bits_per_dim"], row["bits_per_dim_paper"])
        first, *others = ("-" if number is None else f"{number:.4g}" for number in numbers)
        lines.append(f"{row['trial']:<26}{first:>10}" + "".join(f"{other:>11}" for other in others))
    return lines


def _show(request: AblationRequest, card: str, price_per_hour: float | None) -> None:
    """Print the rows with the paper's numbers, the protocol, and the cost."""
    from evaluation.ablations.definitions.cost import TrialCost, trial_cost
    from evaluation.ablations.page.table import reported
    from evaluation.ablations.trials.record import AblationTrial

    trials = request.trials()  # refuses unknown runs, before anything is printed
    print(f"{request.ablation().title}. {request.ablation().source}")
    totals = {one: TrialCost(training=0.0, measuring=0.0) for one in (card, "CPU")}
    for index, trial in enumerate(trials):
        evaluation, optim = trial.experiment.evaluation, trial.experiment.optim
        paper = reported(
            request, index % len(request.ablation().paper), AblationTrial(label=trial.label, preset=trial.preset, own=trial.own)
        )
        numbers = [] if paper is None else [f"FID {paper.fid}", *([f"{paper.bits_per_dim} bits/dim"] if paper.bits_per_dim else [])]
        work = f"evaluates {trial.run_uri}" if trial.run_uri else f"{optim.num_steps:,} updates of {optim.global_batch_size}"
        steps = evaluation.sampling.spacing or f"all {trial.experiment.diffusion.num_timesteps:,}"
        print(f"  {trial.label:<28} {', '.join(numbers)} in the paper; {work}, {evaluation.num_samples:,} samples of {steps} steps")
        for one in totals:
            totals[one] += trial_cost(request, trial, one)
    print(f"in all {totals[card].describe(card, price_per_hour=price_per_hour)}")
    print(f"on a machine without GPUs {totals['CPU'].describe('CPU')}")
    print(f"on a cluster: {shlex.join(_submit_words(request))}")


def _submit_words(request: AblationRequest) -> list[str]:
    options: dict[str, Any] = {"seeds": request.seeds} if request.seeds > 1 else {}
    options |= {"runs": dict(request.runs)} if request.runs else {}
    parameters = {
        "ablation_name": request.name,
        "ablation_scale": "paper",
        **({"ablation_options": json.dumps(options)} if options else {}),
    }
    words = ["iddpm", "submit", "ablation"]
    words += [word for name, value in parameters.items() for word in ("--param", f"{name}={value}")]
    words += [word for override in request.overrides for word in ("--set", override)]
    return [*words, "--resources", "train=8xgpu", "--resources", "evaluate=8xgpu"]
