"""ablations, ablate, report: the paper's ablations, tables and figures, and a user's own grids."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipelines.cli import options
from training.config.errors import UserError
from training.config.validation import KnownFieldsOnly, unknown_field, validate

if TYPE_CHECKING:
    from evaluation.ablations.definitions.cost import TrialCost
    from evaluation.ablations.definitions.request import AblationRequest
    from pipelines.local.ablate import AblationResult
    from training.config.experiment import Resources

_NAME = typer.Argument(..., help="An ablation (`iddpm ablations` lists them), all of them (all), a YAML file, or a name for a --grid.")
_SCALE = typer.Option(
    "tiny",
    help="tiny: the paper's grid on digits, in minutes; small: for hours, with a registered plan; paper: the paper's own.",
)
_PRESET = typer.Option("", help="Another experiment to vary; a --grid needs one.")
_OBJECTIVE = typer.Option("", help="simple, vlb or hybrid for every trial; empty keeps each trial's own.")
_SET = typer.Option([], "--set", help="Override of every trial, like optim.num_steps=500; may be repeated.")
_GRID = typer.Option([], "--grid", help="An axis of your own grid, like diffusion.vlb_weight=0.001,0.01; may be repeated.")
_SEEDS = typer.Option(1, min=1, help="Repeat every trial with so many seeds; the report has means and 95% intervals.")
PARALLEL_TRIALS = typer.Option(
    None,
    min=1,
    show_default=False,
    help="Trials at once, each in its own process. Default: one with several workers, else one for each used GPU, or core, up to 8.",
)
_CHECKPOINT = typer.Option("", help="Checkpoint of your own grid's runs that is measured, last or best; empty takes the best by distance.")
_RUN = typer.Option([], "--run", help="A run or checkpoint to evaluate, like vlb=s3://bucket/runs/KEY; may be repeated.")


def list_ablations() -> None:
    """List the paper's ablations: what each compares, and where the paper reports it."""
    from evaluation.ablations.definitions.paper import ABLATIONS

    for name, ablation in ABLATIONS.items():
        kind = f"{len(ablation.paper)} runs" if ablation.trains else f"evaluates {len(ablation.paper)} runs"
        print(f"{name:<20} {kind:<17} {ablation.title}. {ablation.source}")
    print("\n`iddpm ablate NAME --plan` shows the trials and their cost; add --scale paper for the paper's own")


def ablate(
    name: str = _NAME,
    scale: str = _SCALE,
    preset: str = _PRESET,
    objective: str = _OBJECTIVE,
    overrides: list[str] = _SET,
    grid: list[str] = _GRID,
    runs: list[str] = _RUN,
    seeds: int = _SEEDS,
    checkpoint: str = _CHECKPOINT,
    sources: list[str] = typer.Option([], "--source", help="Source of a data set's images, like cifar10=cifar10:/data; may be repeated."),
    data_options: str = options.DATA_OPTIONS,
    resources: list[str] = options.RESOURCES,
    num_workers: int | None = typer.Option(
        None,
        min=1,
        show_default=False,
        help="Training processes of a trial, and processes that draw samples: num_workers of train and of evaluate. Default: 1.",
    ),
    gpu: bool = typer.Option(False, help="Train and evaluate on GPUs: num_gpus_per_worker=1 of train and of evaluate."),
    parallel_trials: int | None = PARALLEL_TRIALS,
    plan: bool = typer.Option(False, "--plan", help="Only show the trials and their cost."),
    card: str = typer.Option(
        "",
        help="With --plan, the accelerator of the cost. It is an H100 at the scale paper and with --gpu, else CPU (one core).",
    ),
    price_per_hour: float | None = typer.Option(
        None, min=0, help="With --plan, the price of one card per hour, in any currency; adds the total.", show_default=False
    ),
) -> None:
    """Run an ablation on this machine and write its report; finished trials are reused."""
    if (card or price_per_hour is not None) and not plan:
        raise UserError("--card and --price-per-hour are of --plan, which shows the cost and starts nothing")
    requests = _requests(name, scale, preset, objective, overrides, grid, runs, seeds, checkpoint)
    for request in requests:
        request.trials()  # refuses an invalid request before anything starts
    stages = resources_of_trials(resources, num_workers=num_workers, gpu=gpu)
    if plan:
        _check_sources(requests, sources, data_options)
        gpu = any(each.num_gpus_per_worker for each in stages.values())
        card = card or ("H100" if gpu or scale == "paper" else "CPU")
        costs = [_show_plan(request, card, price_per_hour) for request in requests]
        if len(costs) > 1:
            print(f"all of them: {sum(costs[1:], costs[0]).describe(card, price_per_hour=price_per_hour)}")
        return
    run_requests(requests, sources, data_options=data_options, resources=stages, parallel_trials=parallel_trials)


def resources_of_trials(words: list[str], *, num_workers: int | None, gpu: bool) -> dict[str, Resources]:
    """Return the resources of each stage of an ablation here; see `pipelines.client.arguments.local_resources`."""
    from pipelines.client.arguments import compiled_pipeline, local_resources

    return local_resources(compiled_pipeline("ablation"), words, stages=("train", "evaluate"), num_workers=num_workers, gpu=gpu)


def run_requests(
    requests: list[AblationRequest],
    sources: list[str],
    *,
    data_options: str = "",
    resources: Mapping[str, Resources],
    parallel_trials: int | None,
) -> list[AblationResult]:
    """Run the requests one after the other, print where their reports are, and return their results.

    The arguments are those of `pipelines.local.ablate.run_ablation`. Each ablation takes the sources of its own data sets. A failed trial
    raises PipelineError when the others have run.

    Raises:
        UserError: A source is of a data set that none of several ablations has.
    """
    from pipelines.local.ablate import choose_parallel_trials, estimate_time_left, gallery_folder, run_ablation
    from pipelines.local.images import require_sources
    from pipelines.local.run import PipelineError
    from pipelines.local.training import shorten_path
    from pipelines.services import services

    parallel_trials = choose_parallel_trials(parallel_trials, resources)
    sources_of = _check_sources(requests, sources, data_options)
    require_sources({source for own_sources in sources_of for source in own_sources.values()})
    running = services.up()
    results, failures = [], []
    log_path: Path | None = None
    time_left = estimate_time_left(requests, running)
    for request, own_sources in zip(requests, sources_of, strict=True):
        try:
            result = run_ablation(
                request,
                running,
                sources=own_sources,
                data_options=data_options,
                resources=resources,
                parallel_trials=parallel_trials,
                time_left=time_left,
            )
        except UserError as error:
            if len(requests) == 1:
                raise
            failures.append(f"{request.name} ({error})")  # such as one that evaluates the runs of an ablation that failed
            continue
        results.append(result)
        print(f"{request.name}: {shorten_path(result.folder / 'report.html')}", flush=True)
        if result.failed:
            failures.append(f"{request.name} ({'; '.join(f'{label}: {why}' for label, why in result.failed.items())})")
            log_path = result.log_path
    if len(requests) > 1:
        print(f"gallery: {shorten_path(gallery_folder(running) / 'index.html')}")
    if failures:
        raise PipelineError(f"failed in {'; '.join(failures)}. The same command runs only what failed", log_path)
    return results


def _check_sources(requests: list[AblationRequest], sources: list[str], data_options: str) -> list[dict[str, str]]:
    """Return the sources of each ablation's own data sets. Refuse a source of a data set that none has, and sources in `data_options`."""
    from components.steps.settings import refuse_sources

    refuse_sources(data_options, "give --source")
    given = pairs(sources, "--source")
    names = [{trial.experiment.data.name for trial in request.trials()} for request in requests]
    known = set().union(*names)
    if unknown := sorted(given.keys() - known):
        raise UserError(f"--source: no trial has a data set {unknown[0]!r}; they have {', '.join(sorted(known))}")
    return [{name: source for name, source in given.items() if name in own} for own in names]


def report(
    name: str = _NAME,
    scale: str = _SCALE,
    preset: str = _PRESET,
    objective: str = _OBJECTIVE,
    overrides: list[str] = _SET,
    grid: list[str] = _GRID,
    runs: list[str] = _RUN,
    seeds: int = _SEEDS,
    checkpoint: str = _CHECKPOINT,
    markdown: bool = typer.Option(False, "--markdown", help="Print the findings of all reports on this machine as a Markdown table."),
) -> None:
    """Write an ablation's report again from the records of its trials; nothing is trained or measured."""
    from evaluation.ablations.page.gallery import findings_as_markdown
    from pipelines.local.ablate import gallery_folder, is_planned, report_locally
    from pipelines.local.output import show_progress
    from pipelines.local.training import shorten_path
    from pipelines.services import home, services

    requests = _requests(name, scale, preset, objective, overrides, grid, runs, seeds, checkpoint)
    for request in requests:
        request.trials()  # refuses an invalid request before anything starts
    running = services.up()
    if len(requests) > 1:
        requests = [request for request in requests if is_planned(request, running)] or requests[:1]
    for request in requests:
        # With --markdown, standard output has the table alone, for a pipe.
        redirect = contextlib.redirect_stdout(sys.stderr) if markdown else contextlib.nullcontext()
        with redirect, show_progress(running.home / "logs" / "report.log", request.name):
            page = report_locally(request, running, at_work=home.has_other_users(running.home)) / "report.html"
        if not markdown:
            print(shorten_path(page))
    if markdown:
        print(findings_as_markdown(gallery_folder(running)))


def _requests(
    name: str,
    scale: str,
    preset: str,
    objective: str,
    overrides: list[str],
    grid: list[str],
    runs: list[str],
    seeds: int = 1,
    checkpoint: str = "",
) -> list[AblationRequest]:
    from evaluation.ablations.definitions.ablation import parse_scale
    from evaluation.ablations.definitions.paper import names
    from evaluation.ablations.definitions.request import DEFAULT_PRESET, OBJECTIVES, AblationRequest, parse_grid

    request = AblationRequest(
        name=name,
        scale=parse_scale(scale),
        preset=preset or DEFAULT_PRESET,
        objective=objective or OBJECTIVES[0],
        grid=parse_grid(grid),
        overrides=tuple(overrides),
        runs=pairs(runs, "--run"),
        seeds=seeds,
        checkpoint=checkpoint,
    )
    if name == "all":
        if grid or preset or objective or runs or checkpoint:
            raise UserError("all takes no --grid, --preset, --objective, --checkpoint or --run; name one ablation")
        every = [dataclasses.replace(request, name=one) for one in names()]
        return [one for one in every if _has_scale(one)]
    if Path(name).suffix not in (".yaml", ".yml"):
        return [request]
    if grid:
        raise UserError(f"{name} has a grid of its own; give no --grid with it")
    file = read_grid_file(Path(name))
    return [
        dataclasses.replace(
            request,
            name=file.name or Path(name).stem,
            title=file.title or "",
            preset=preset or file.preset or DEFAULT_PRESET,
            grid=file.grid,
            overrides=(*(file.set or ()), *overrides),
            checkpoint=checkpoint or file.checkpoint or "",
        )
    ]


def _has_scale(request: AblationRequest) -> bool:
    """Return False, and say why, where no experiment of the request's scale can decide the ablation's claims."""
    try:
        request.ablation().settings(request.scale)
    except UserError as error:
        print(f"left out: {error}", file=sys.stderr)
        return False
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class GridFile(KnownFieldsOnly):
    """A user's grid as a YAML file.

    Attributes:
        grid: Override path -> list of values.
        preset: The preset that it varies.
        name: Its name; that of the file if missing.
        checkpoint: The checkpoint that is measured, last or best; the best if missing.
    """

    grid: dict[str, Any]
    preset: str | None = None
    name: str | None = None
    title: str | None = None
    set: tuple[str, ...] | None = None
    checkpoint: str | None = None


def read_grid_file(path: Path) -> GridFile:
    """Read a user's grid from a YAML file.

    Raises:
        UserError: It is not YAML or not a grid, has a key twice, or has a value that JSON does not have.
    """
    import yaml

    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        text = path.read_text(encoding="utf-8")
        plain, tree = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}; save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML: {error}") from error
    for key in _repeated_keys(tree):
        raise UserError(f"{path}: has {key} twice; give all its values at once, {key}: [a, b, c]")
    try:
        json.dumps(plain)
        if not isinstance(plain, dict) or not plain.get("grid"):
            raise UserError("write 'preset: NAME', then 'grid:' with a list of values for each path")
        fields = {field.name: None for field in dataclasses.fields(GridFile)}
        for name in plain:
            if name not in fields:
                raise UserError(unknown_field(str(name), fields, ""))
        file: GridFile = validate(GridFile, plain)
    except TypeError as error:
        raise UserError(f"{path}: {error}; put such a value in quotes") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    grid = {axis: values if isinstance(values, list) else [values] for axis, values in file.grid.items()}
    return dataclasses.replace(file, grid=grid)


def _repeated_keys(node: Any) -> list[str]:
    """Return the keys that one mapping of a YAML tree has twice; YAML itself keeps only the last of them."""
    if not isinstance(getattr(node, "value", None), list):
        return []
    pairs = [child for child in node.value if isinstance(child, tuple)]
    keys = [str(key.value) for key, _ in pairs]
    below = [repeated for _, value in pairs for repeated in _repeated_keys(value)]
    return [key for key in dict.fromkeys(keys) if keys.count(key) > 1] + below


def pairs(words: list[str], option: str) -> dict[str, str]:
    """Parse words like NAME=ADDRESS; refuse another form, and a name that is given twice. Messages name the option."""
    found: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if not key or not value:
            raise UserError(f"{option} {word}: write NAME=ADDRESS")
        if key in found:
            raise UserError(f"{option} {key} is given twice; give one address")
        found[key] = value
    return found


def _show_plan(request: AblationRequest, card: str, price_per_hour: float | None) -> TrialCost:
    from evaluation.ablations.definitions.cost import TrialCost, joint_cost, trial_cost

    ablation = request.ablation()

    def describe(cost: TrialCost) -> str:
        return cost.describe(card, price_per_hour=price_per_hour)

    print(f"{request.name} at the scale {request.scale}: {ablation.title}. {ablation.source}")
    total = joint_cost(request, card)
    trials = request.trials()
    replaced = {item.partition("=")[0].strip() for item in request.overrides}
    for trial in trials[: len(trials) // request.seeds]:  # the first seed's; the others cost the same
        changes = (*(item for item in trial.own if item.partition("=")[0] not in replaced), *request.changes)
        cost = trial_cost(request, trial, card)
        total += TrialCost(training=cost.training * request.seeds, measuring=cost.measuring * request.seeds)
        print(f"  {trial.setting}\n      {trial.preset} {' '.join(changes)}\n      {describe(cost)}")
    seeds = f", every trial with {request.seeds} seeds," if request.seeds > 1 else ""
    print(f"in all{seeds} {describe(total)}")
    for words in request.registered():
        print(f"  {words}")
    return total
