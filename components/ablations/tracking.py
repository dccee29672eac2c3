"""An ablation in MLflow: one run for the whole, made when it is planned, and one for each trial below it.

A trial's run is not its training's run: two ablations may share a training, and MLflow's comparison of runs is of use at once
only where few parameters differ and are well named. It carries what the trial varies, the numbers, the curves by steps and
the samples, and the tags by which every filter finds it; a tag leads to the training's run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from evaluation.ablations.definitions.ablation import Trial, plain_word
from evaluation.ablations.definitions.request import AblationRequest
from training import storage
from training.console import say

if TYPE_CHECKING:
    from evaluation.ablations.trials.record import TrialRecord
    from training.tracking.tracked_run import TrackedRun

ORDER_METRIC = "distance"
"""What the comparison of trials is sorted by."""


def open_parent(request: AblationRequest, tracking_experiment: str, uri: str, pipeline_run_id: str = "") -> TrackedRun:
    """The ablation's run, found or made."""
    from training.tracking.runs import open_run

    ablation = request.ablation()
    return open_run(
        run_key=request.key(),
        experiment_name=tracking_experiment,
        run_name=f"{request.name} ({request.scale})",
        tags={**_tags(request, pipeline_run_id), "iddpm.role": "ablation", "iddpm.ablation_uri": uri},
        params={"ablation": request.name, "scale": request.scale, "source": ablation.source, "num_trials": len(request.trials())},
    )


class TrialTracking:
    """One trial's run in MLflow, open while the trial is worked on."""

    def __init__(self, request: AblationRequest, label: str, trial: Trial | None, plan: Mapping[str, Any], pipeline_run_id: str) -> None:
        """Finds or makes the run, below the ablation's.

        Args:
            request: The ablation.
            label: The trial's.
            trial: The trial; None for what is taken of several.
            plan: As it is stored, with the parent's run and MLflow's experiment.
            pipeline_run_id: The pipeline's run that works on it.
        """
        from evaluation.ablations.trials.record import slug
        from training.tracking.runs import open_run

        columns = dict.fromkeys(request.trials()[0].values, "")
        values = trial.values if trial else dict.fromkeys(columns, label)
        self._run = open_run(
            run_key=f"{request.key()}/{slug(label)}",
            experiment_name=plan["tracking"],
            run_name=_run_name(request, trial) if trial and not trial.role else label,
            tags={
                **_tags(request, pipeline_run_id),
                "iddpm.role": "trial",
                "iddpm.trial": label,
                **({"iddpm.preset": trial.preset} if trial else {}),
            },
            params=dict(values) | ({"model": label} if not trial or trial.role else {}),
            parent_run_id=plan["parent_run_id"],
        )

    def finish(self, record: TrialRecord) -> None:
        """Logs what was found, and ends the run well."""
        run = self._run
        run.set_tags({"iddpm.run_uri": record.run_uri, "iddpm.checkpoint_uri": record.checkpoint_uri, **self._training(record)})
        for (name, step), value in points(record).items():
            run.log_metrics({name: value}, step)
        for (name, step), pixels in pictures(record).items():
            run.log_image(name, pixels, step)
        self.close("FINISHED")

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Ends the run."""
        self._run.finish(status)

    @property
    def run_id(self) -> str:
        """MLflow's name of the run."""
        return self._run.run_id

    def _training(self, record: TrialRecord) -> dict[str, str]:
        uri = storage.join(record.run_uri, "result.json")
        if not record.run_uri or not storage.exists(uri):
            return {}
        return {"iddpm.training_run_id": str(storage.read_json(uri).get("tracking_run_id", ""))}


def pictures(record: TrialRecord) -> dict[tuple[str, int], Any]:
    """(name, step) -> pixels of every grid of samples: of a curve by steps the step is their number, which MLflow's slider goes through."""
    from evaluation.records import grids, npz

    def drawn(uri: str) -> Any:
        return grids.sample_grid(npz.read_images(uri)[0])

    found: dict[tuple[str, int], tuple[str, Callable[[str], Any]]] = {}
    for name in ("sampling-steps", "figure-1"):
        for method, rows in (record.measures.get(name, {}).get("grids") or {}).items():
            found |= {(f"samples_{method}", int(row["num_steps"])): (row["images_uri"], drawn) for row in rows}
    if "samples" in record.measures:
        found[("samples", 0)] = (record.measures["samples"]["images_uri"], drawn)
    grid_uri = (record.final or {}).get("grid_uri", "")
    if grid_uri:
        found[("samples", 0)] = (grid_uri, lambda uri: grids.from_png(storage.read_bytes(uri)))
    return {key: read(uri) for key, (uri, read) in found.items() if storage.exists(uri)}


def points(record: TrialRecord) -> dict[tuple[str, int], float]:
    """(metric, step) -> value of everything in a record that MLflow can draw.

    A number alone is at step 0, which MLflow draws as bars; of a curve the step is training's, or a number of steps.
    """
    found: dict[tuple[str, int], float | None] = {}
    final = record.final
    if final is not None:
        found[(ORDER_METRIC, 0)] = final["distance"]
        found[("standard_error/distance", 0)] = final["distance_standard_error"]
        if final["likelihood"] is not None:
            found[("bits_per_dim", 0)] = final["likelihood"]["bits_per_dim"]
            found[("standard_error/bits_per_dim", 0)] = final["likelihood"]["standard_error"]
    for name in ("sampling-steps", "figure-1"):
        for point in record.measures.get(name, {}).get("points", ()):
            found[(f"distance_by_steps/{point['method']}", point["num_steps"])] = point["distance"]
    for point in record.measures.get("likelihood-steps", {}).get("points", ()):
        found[(f"bits_per_dim_by_steps/{point['spacing']}", point["num_steps"])] = point["bits_per_dim"]
    for point in record.measures.get("history", {}).get("points", ()):
        for weights, value in point["scores"].items():
            found[(f"score/{weights}", point["step"])] = value
    for point in record.measures.get("history-likelihood", {}).get("points", ()):
        found[("bits_per_dim_by_training", point["step"])] = point["bits_per_dim"]
    bound = record.measures.get("bound")
    if bound is not None:
        found |= {("term_of_bound", t): value for t, value in zip(bound["timesteps"], bound["per_t"], strict=True)}
    if final is None:  # something to sort the comparison by all the same
        best = [value for (name, _), value in found.items() if name.startswith("distance_by_steps/") and value is not None]
        if best:
            found[(ORDER_METRIC, 0)] = min(best)
        elif record.measures.get("likelihood-steps"):
            found[("bits_per_dim", 0)] = record.measures["likelihood-steps"]["points"][-1]["bits_per_dim"]
        elif bound is not None:
            found[("bits_per_dim", 0)] = bound["bits_per_dim"]
    return {key: value for key, value in found.items() if value is not None}


def comparison_url(request: AblationRequest, parent: TrackedRun, records: list[Any]) -> str:
    """The page that compares the trials: flat, as charts, the best first."""
    metrics = {name for record in records for name, _ in points(record)}
    metric = next((name for name in (ORDER_METRIC, "bits_per_dim") if name in metrics), ORDER_METRIC)
    url = parent.parts_url(order_by_metric=metric)
    say(f"compare the trials of {request.name} at {url}")
    return url


def side_by_side(parent: TrackedRun, records: Sequence[TrialRecord]) -> dict[str, str]:
    """A link to MLflow's parallel coordinates of the trials; empty where there are fewer than two to compare."""
    run_ids = [record.tracking_run_id for record in records if record.tracking_run_id]
    return {"Parallel coordinates of the trials in MLflow": parent.side_by_side_url(run_ids)} if len(run_ids) > 1 else {}


def _run_name(request: AblationRequest, trial: Trial) -> str:
    """What differs, words before numbers: MLflow's list of runs shows some twenty letters of a name."""
    told: dict[str, set[str]] = {}
    for one in request.trials():
        for name, value in one.values.items():
            told.setdefault(name, set()).add(plain_word(value))
    differing = {name: value for name, value in trial.values.items() if len(told[name]) > 1}
    words = [value for value in differing.values() if isinstance(value, str)]
    return " ".join([*words, *(f"{name}={plain_word(v)}" for name, v in differing.items() if not isinstance(v, str))]) or trial.label


def _tags(request: AblationRequest, pipeline_run_id: str) -> dict[str, str]:
    """What every filter needs, on the whole and on each part alike: MLflow's filters don't inherit."""
    data = sorted({trial.experiment.data.name for trial in request.trials()})
    return {
        "iddpm.ablation": request.name,
        "iddpm.ablation_key": request.key(),
        "iddpm.scale": request.scale,
        "iddpm.data": ", ".join(data),
        "kfp.pipeline_run_id": pipeline_run_id,  # also where it is empty: who goes on with a run takes it over
    }
