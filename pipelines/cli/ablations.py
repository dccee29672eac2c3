"""ablate, report: the paper's ablations, tables and figures, and grids of one's own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from evaluation.ablations.definitions.request import AblationRequest

_PANEL = "The paper"
_NAME = typer.Argument(..., help="An ablation (`iddpm ablations` lists them), all of them (all), a YAML file, or a name for a --grid.")
_SCALE = typer.Option("tiny", help="tiny: the same grid on the digits, in minutes; paper: the paper's own experiments.")
_PRESET = typer.Option("", help="Another experiment to vary; a --grid needs one.")
_OBJECTIVE = typer.Option("", help="simple, vlb or hybrid for every trial; empty leaves each its own.")
_SET = typer.Option([], "--set", help="Override of every trial, like optim.num_steps=500; may be repeated.")
_GRID = typer.Option([], "--grid", help="An axis of your own grid, like diffusion.vlb_weight=0.001,0.01; may be repeated.")
_RUN = typer.Option([], "--run", help="A run or checkpoint to look at, like vlb=s3://bucket/runs/KEY; may be repeated.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("ablations", rich_help_panel=_PANEL)(list_ablations)
    app.command(rich_help_panel=_PANEL)(ablate)
    app.command(rich_help_panel=_PANEL)(report)


def list_ablations() -> None:
    """List the ablations: what each compares, and where the paper has it."""
    from evaluation.ablations.definitions.paper import ABLATIONS

    for name, ablation in ABLATIONS.items():
        kind = f"{len(ablation.paper)} runs" if ablation.trains else f"looks at {len(ablation.paper)} runs"
        print(f"{name:<20} {kind:<15} {ablation.title}. {ablation.source}")
    print("\n`iddpm ablate NAME --plan` shows the trials and what they cost; --scale paper those of the paper")


def ablate(
    name: str = _NAME,
    scale: str = _SCALE,
    preset: str = _PRESET,
    objective: str = _OBJECTIVE,
    overrides: list[str] = _SET,
    grid: list[str] = _GRID,
    runs: list[str] = _RUN,
    sources: list[str] = typer.Option(
        [], "--source", help="Where a data set's images come from, like imagenet=/data/train; may be repeated."
    ),
    num_workers: int = typer.Option(1, min=1, help="Training processes of a trial, and processes that draw samples."),
    gpu: bool = typer.Option(False, help="Train on GPUs."),
    plan: bool = typer.Option(False, "--plan", help="Only show the trials, and what they cost."),
    card: str = typer.Option("H100", help="With --plan, the accelerator that the cost is told for; CPU is one core."),
    price_per_hour: float = typer.Option(None, help="With --plan, of one card in any currency; adds the bill.", show_default=False),
) -> None:
    """Run an ablation on this machine, reusing what is trained, and leave its report."""
    requests = _requests(name, scale, preset, objective, overrides, grid, runs)
    for request in requests:
        request.trials()  # refuse what can't work before anything starts
    if plan:
        for request in requests:
            _show_plan(request, card, price_per_hour)
        return
    from pipelines.local.ablate import AblationError, gallery_folder, run_ablation
    from pipelines.services import services

    running = services.up()
    failed: dict[str, dict[str, str]] = {}
    log_path: Path | None = None
    resources: dict[str, Any] = {"num_workers": num_workers, "num_gpus_per_worker": int(gpu)}
    if num_workers > 1 or gpu:
        resources["num_threads"] = 0
    for request in requests:
        done = run_ablation(request, running, sources=_pairs(sources, "--source"), resources=resources)
        print(f"{request.name}: {_shown(done.folder / 'report.html')}", flush=True)
        if done.failed:
            failed[request.name] = done.failed
            log_path = done.log_path
    if len(requests) > 1:
        print(f"gallery: {_shown(gallery_folder(running) / 'index.html')}")
    if failed:
        told = "; ".join(f"{name} ({'; '.join(f'{label}: {why}' for label, why in each.items())})" for name, each in failed.items())
        raise AblationError(f"failed in {told}. The same command does only what is missing", log_path)


def report(
    name: str = _NAME,
    scale: str = _SCALE,
    preset: str = _PRESET,
    objective: str = _OBJECTIVE,
    overrides: list[str] = _SET,
    grid: list[str] = _GRID,
    runs: list[str] = _RUN,
    markdown: bool = typer.Option(False, "--markdown", help="Print what all reports here found, as a Markdown table."),
) -> None:
    """Make an ablation's report again from what its trials left, or all that there are; nothing is trained or measured."""
    from evaluation.ablations.page.gallery import findings_as_markdown
    from pipelines.local.ablate import gallery_folder, report_locally, was_planned
    from pipelines.local.output import show_progress
    from pipelines.services import services

    requests = _requests(name, scale, preset, objective, overrides, grid, runs)
    running = services.up()
    if len(requests) > 1:
        requests = [request for request in requests if was_planned(request, running)] or requests[:1]
    for request in requests:
        # What may be piped on is the table alone.
        aside = contextlib.redirect_stdout(sys.stderr) if markdown else contextlib.nullcontext()
        with aside, show_progress(running.home / "logs" / "report.log", lambda name=request.name: name):  # type: ignore[misc]
            page = report_locally(request, running) / "report.html"
        if not markdown:
            print(_shown(page))
    if markdown:
        print(findings_as_markdown(gallery_folder(running)))


def _requests(
    name: str, scale: str, preset: str, objective: str, overrides: list[str], grid: list[str], runs: list[str]
) -> list[AblationRequest]:
    from evaluation.ablations.definitions.ablation import SCALES
    from evaluation.ablations.definitions.grid import parse_grid
    from evaluation.ablations.definitions.paper import names
    from evaluation.ablations.definitions.request import DEFAULT_PRESET, OBJECTIVES, AblationRequest
    from training.config.errors import UserError

    if scale not in SCALES:
        raise UserError(f"--scale is {' or '.join(SCALES)}, got {scale!r}")
    asked = AblationRequest(
        name=name,
        scale=scale,
        preset=preset or DEFAULT_PRESET,
        objective=objective or OBJECTIVES[0],
        grid=parse_grid(grid),
        overrides=tuple(overrides),
        runs=_pairs(runs, "--run"),
    )
    if name == "all":
        if grid or preset or objective or runs:
            raise UserError("all takes no --grid, --preset, --objective or --run; name one ablation")
        return [dataclasses.replace(asked, name=one) for one in names()]
    if Path(name).suffix in (".yaml", ".yml"):
        if grid:
            raise UserError(f"{name} has a grid of its own; give no --grid with it")
        return [_from_file(Path(name), asked)]
    return [asked]


def _from_file(path: Path, asked: AblationRequest) -> AblationRequest:
    """A grid of one's own, as a file says it; what the command line says besides goes on top."""
    from evaluation.ablations.definitions.request import DEFAULT_PRESET
    from training.config.errors import UserError

    told = _read_grid_file(path)
    fields = ("name", "title", "preset", "grid", "set")
    if not isinstance(told, dict) or not isinstance(told.get("grid"), dict) or not told["grid"]:
        raise UserError(f"{path}: a grid reads 'preset: NAME', then 'grid:' with a list of values for each path")
    unknown = sorted(set(map(str, told)) - set(fields))
    if unknown:
        raise UserError(f"{path}: there is no field {unknown[0]!r}; the fields are {', '.join(fields)}")
    changed = told.get("set") or []
    if not isinstance(changed, list):
        raise UserError(f"{path}: set is a list of overrides, like [optim.num_steps=500, seed=1]; got {changed!r}")
    return dataclasses.replace(
        asked,
        name=str(told.get("name") or path.stem),
        title=str(told.get("title") or ""),
        preset=asked.preset if asked.preset != DEFAULT_PRESET else str(told.get("preset") or DEFAULT_PRESET),
        grid={str(axis): values if isinstance(values, list) else [values] for axis, values in told["grid"].items()},
        overrides=(*map(str, changed), *asked.overrides),
    )


def _read_grid_file(path: Path) -> Any:
    import yaml

    from training.config.errors import UserError

    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        text = path.read_text(encoding="utf-8")
        told = yaml.safe_load(text)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {error}") from error
    for key in _keys_given_twice(tree):
        raise UserError(f"{path}: has {key} twice; give all its values at once, {key}: [a, b, c]")
    try:
        json.dumps(told)
    except TypeError as error:
        raise UserError(f"{path}: {error}; put such a value in quotes") from error
    return told


def _keys_given_twice(node: Any) -> list[str]:
    """Keys of a YAML tree that stand twice in one mapping, of which YAML itself keeps the last."""
    if not isinstance(getattr(node, "value", None), list):
        return []
    pairs = [child for child in node.value if isinstance(child, tuple)]
    keys = [str(key.value) for key, _ in pairs]
    below = [twice for _, value in pairs for twice in _keys_given_twice(value)]
    return [key for key in dict.fromkeys(keys) if keys.count(key) > 1] + below


def _pairs(words: list[str], option: str) -> dict[str, str]:
    pairs = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key or not value:
            raise ValueError(f"{option} {word}: it reads NAME=PLACE")
        pairs[key] = value
    return pairs


def _show_plan(request: AblationRequest, card: str, price_per_hour: float | None) -> None:
    from evaluation.ablations.definitions.cost import TrialCost, joint_cost, trial_cost

    ablation = request.ablation()

    def words(cost: TrialCost) -> str:
        return cost.describe(card, trains=ablation.trains, price_per_hour=price_per_hour)

    print(f"{request.name} at the scale {request.scale}: {ablation.title}. {ablation.source}")
    total = joint_cost(request, card)
    for trial in request.trials():
        cost = trial_cost(request, trial, card)
        total = total + cost
        changed = " ".join(trial.own)
        print(f"  {trial.label}\n      {trial.preset} {changed}\n      {words(cost)}")
    print(f"in all {words(total)}")


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
