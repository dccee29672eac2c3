"""An ablation in MLflow: a parent run for the whole, and a run for each trial.

A trial's run is not the run of its training, which two ablations may share. MLflow's comparison needs runs with few and
well-named parameters: a trial's run has what the ablation varies, the numbers, the curves, the samples and the tags for
filters. The training's run lies below the trial that it was started for, and a tag names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from components.ablations.directory import Plan
from evaluation.ablations.definitions.ablation import Trial, format_value, label_of, setting_of
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.records.run_directory import RESULT, TrainingFields
from training import storage
from training.console import say
from training.tracking.references import ABLATION_URI_TAG
from training.tracking.runs import PIPELINE_RUN_TAG, RUN_URI_TAG, TRIAL_TAG, open_run

if TYPE_CHECKING:
    from evaluation.ablations.trials.record import AblationTrial
    from training.tracking.tracked_run import TrackedRun

ORDER_METRIC = "distance"
"""The metric by which the comparison of trials is sorted."""
_DISTANCE_CURVES = ("sampling-steps", "figure-1")


def open_parent(request: AblationRequest, tracking_experiment: str, uri: str, pipeline_run_id: str = "") -> TrackedRun:
    """Find or create the ablation's run."""
    ablation = request.ablation()
    return open_run(
        run_key=request.key(),
        experiment_name=tracking_experiment,
        run_name=f"{request.name} ({request.scale})",
        tags={**_tags(request, pipeline_run_id), "iddpm.role": "ablation", ABLATION_URI_TAG: uri},
        params={
            "ablation": request.name,
            "scale": request.scale,
            "source": ablation.source,
            "num_trials": len(request.trials()),
            **({"seeds": request.seeds} if request.seeds > 1 else {}),
        },
    )


def open_trial(plan: Plan, label: str, trial: Trial | None, pipeline_run_id: str, *, seed: int | None = None) -> TrackedRun:
    """Find or create the run of a trial, as a child of the ablation's; it is open while a step works on the trial.

    Args:
        trial: The trial; None for a joint measurement.
        seed: Its seed, if seeds are repeated. The seeds of a setting share the tag `iddpm.setting`, by which MLflow's list groups runs.
    """
    from evaluation.ablations.trials.record import slug

    request = plan.request
    setting = setting_of(label, seed)
    values = trial.values if trial else dict.fromkeys(request.trials()[0].values, setting)
    return open_run(
        run_key=f"{request.key()}/{slug(label)}",
        experiment_name=plan.tracking,
        run_name=run_name(request, trial) if trial and not trial.role else label,
        tags={
            **_tags(request, pipeline_run_id),
            "iddpm.role": "trial",
            TRIAL_TAG: label,
            **({"iddpm.preset": trial.preset} if trial else {}),
            **({"iddpm.setting": setting} if seed is not None else {}),
        },
        params={
            **values,
            **({"model": setting} if not trial or trial.role else {}),
            **({"seed": seed} if seed is not None else {}),
        },
        parent_run_id=plan.parent_run_id,
    )


def finish_trial(tracked: TrackedRun, record: AblationTrial) -> bool:
    """Log a trial's record to its run, and end the run as finished; return False if MLflow does not answer."""
    result_uri = storage.join(record.run_uri, RESULT)
    tags = {RUN_URI_TAG: record.run_uri, "iddpm.checkpoint_uri": record.checkpoint_uri}
    if record.run_uri and storage.exists(result_uri):
        tags["iddpm.training_run_id"] = str(storage.read_json(result_uri, TrainingFields).get("tracking_run_id", ""))
    tracked.set_tags(tags)
    tracked.correct_metrics(metric_points(record))
    for (name, step), pixels in sample_pictures(record).items():
        tracked.log_image(name, pixels, step)
    return tracked.finish("FINISHED")


def sample_pictures(record: AblationTrial) -> dict[tuple[str, int], Any]:
    """Return (name, step) -> pixels of every sample grid; the step is the number of sampling steps, for MLflow's slider."""
    from evaluation.records import grids, npz

    def draw(uri: str) -> Any:
        return grids.sample_grid(npz.read_images(uri)[0])

    found: dict[tuple[str, int], tuple[str, Callable[[str], Any]]] = {}
    for name in _DISTANCE_CURVES:
        for method, rows in (record.measures.get(name, {}).get("grids") or {}).items():
            found |= {(f"samples_{method}", int(row["num_steps"])): (row["images_uri"], draw) for row in rows}
    if "samples" in record.measures:
        found[("samples", 0)] = (record.measures["samples"]["images_uri"], draw)
    grid_uri = (record.final or {}).get("grid_uri", "")
    if grid_uri:
        found[("samples", 0)] = (grid_uri, lambda uri: grids.from_png(storage.read_bytes(uri)))
    return {key: read(uri) for key, (uri, read) in found.items() if storage.exists(uri)}


def metric_points(record: AblationTrial) -> dict[tuple[str, int], float]:
    """Return (metric, step) -> value of everything in a record that MLflow can draw.

    A single number is at step 0, and MLflow draws it as a bar. The step of a curve is a training step or a number of steps.
    """
    found: dict[tuple[str, int], float | None] = {}
    measures, final = record.measures, record.final
    if final is not None:
        found |= {(ORDER_METRIC, 0): final["distance"], ("standard_error/distance", 0): final["distance_standard_error"]}
        if final["likelihood"] is not None:
            found[("bits_per_dim", 0)] = final["likelihood"]["bits_per_dim"]
            found[("standard_error/bits_per_dim", 0)] = final["likelihood"]["standard_error"]
    for name in _DISTANCE_CURVES:
        for point in measures.get(name, {}).get("points", ()):
            found[(f"distance_by_steps/{point['method']}", point["num_steps"])] = point["distance"]
    for point in measures.get("likelihood-steps", {}).get("points", ()):
        found[(f"bits_per_dim_by_steps/{point['spacing']}", point["num_steps"])] = point["bits_per_dim"]
    for point in measures.get("history", {}).get("points", ()):
        found |= {(f"score/{weights}", point["step"]): value for weights, value in point["scores"].items()}
    for point in measures.get("history-likelihood", {}).get("points", ()):
        found[("bits_per_dim_by_training", point["step"])] = point["bits_per_dim"]
    bound = measures.get("bound")
    if bound is not None:
        found |= {("term_of_bound", t): value for t, value in zip(bound["timesteps"], bound["per_t"], strict=True)}
    if final is None:  # the comparison needs a metric to sort by
        best = [value for (name, _), value in found.items() if name.startswith("distance_by_steps/") and value is not None]
        if best:
            found[(ORDER_METRIC, 0)] = min(best)
        elif measures.get("likelihood-steps"):
            found[("bits_per_dim", 0)] = measures["likelihood-steps"]["points"][-1]["bits_per_dim"]
        elif bound is not None:
            found[("bits_per_dim", 0)] = bound["bits_per_dim"]
    return {key: value for key, value in found.items() if value is not None}


def comparison_url(request: AblationRequest, parent: TrackedRun, records: Sequence[AblationTrial]) -> str:
    """Return MLflow's page that compares the trials: as charts, sorted by the distance or bits/dim."""
    metrics = {name for record in records for name, _ in metric_points(record)}
    metric = next((name for name in (ORDER_METRIC, "bits_per_dim") if name in metrics), ORDER_METRIC)
    url = parent.children_url(order_by_metric=metric)
    say(f"compare the trials of {request.name} at {url}")
    return url


def parallel_coordinates(parent: TrackedRun, records: Sequence[AblationTrial]) -> dict[str, str]:
    """Return a link to MLflow's parallel coordinates of the trials; none for fewer than two trials."""
    run_ids = [record.tracking_run_id for record in records if record.tracking_run_id]
    return {"Parallel coordinates of the trials in MLflow": parent.compare_url(run_ids)} if len(run_ids) > 1 else {}


def run_name(request: AblationRequest, trial: Trial) -> str:
    """Name a trial by its differing values, words before numbers: MLflow's list shows only about twenty letters of a name."""
    values: dict[str, set[str]] = {}
    for one in request.trials():
        for name, value in one.values.items():
            values.setdefault(name, set()).add(format_value(value))
    differing = {name: value for name, value in trial.values.items() if len(values[name]) > 1}
    words = [value for value in differing.values() if isinstance(value, str)]
    numbers = [f"{name}={format_value(value)}" for name, value in differing.items() if not isinstance(value, str)]
    return label_of(" ".join([*words, *numbers]) or trial.setting, trial.seed)


def _tags(request: AblationRequest, pipeline_run_id: str) -> dict[str, str]:
    """Return the tags for filters. The ablation's run and its trials have the same tags, as MLflow can't filter by a parent's."""
    data = sorted({trial.experiment.data.name for trial in request.trials()})
    return {
        "iddpm.ablation": request.name,
        "iddpm.ablation_key": request.key(),
        "iddpm.scale": request.scale,
        "iddpm.data": ", ".join(data),
        PIPELINE_RUN_TAG: pipeline_run_id,  # set even if empty: the run now belongs to whoever continues it
    }
