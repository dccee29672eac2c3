"""The steps of an ablation: its plan, and the table of what its trials found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.training_run import RESULT
from training import storage
from training.ablation_plan import trials
from training.ablations import named
from training.config import run_key
from training.presets import preset
from training.progress import say


def list_trials(
    ablation_name: str, experiment_preset: str, experiment_overrides: Sequence[str], data_uri: str, reference_uri: str
) -> list[dict[str, Any]]:
    """The trials of an ablation as the pipeline's loop takes them: each item is all that a trial needs."""
    planned = trials(named(ablation_name), "tiny", preset_name=experiment_preset, overrides=experiment_overrides)
    say(f"{ablation_name}: {len(planned)} trials")
    return [
        {"label": trial.label, "overrides": list(trial.overrides), "data_uri": data_uri, "reference_uri": reference_uri}
        for trial in planned
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialOutcome:
    """What one trial found.

    Attributes:
        label: What differs.
        values: Override path -> value.
        run_uri: Its run's directory.
        tracking_run_id: Its MLflow run; empty where it did not finish training.
        result: Its evaluation; None where it failed.
    """

    label: str
    values: dict[str, Any]
    run_uri: str
    tracking_run_id: str
    result: Any


def tabulate(
    ablation_name: str,
    experiment_preset: str,
    experiment_overrides: Sequence[str],
    data_uri: str,
    storage_root_uri: str,
    tracking_experiment: str,
    page_path: str,
) -> str:
    """One table of all trials, as HTML and JSON beside the runs and in a parent run in MLflow; failed trials are named.

    Args:
        ablation_name: Which ablation.
        experiment_preset: The experiment that it varied.
        experiment_overrides: Overrides that every trial shared.
        data_uri: The data set; empty where making it failed.
        storage_root_uri: Where the runs are.
        tracking_experiment: MLflow's experiment.
        page_path: Local file for the page.

    Returns:
        The ablation's directory.

    Raises:
        ValueError: There is no data set, or no trial finished.
    """
    from evaluation.table_page import table_page
    from training.data.shards import read_manifest
    from training.tracking import attach, open_run

    if not data_uri:
        raise ValueError(f"the ablation {ablation_name!r} has no data set, so no trial ran; see the preprocess step")
    base = preset(experiment_preset, experiment_overrides)
    digest = read_manifest(storage.join(data_uri, "train")).content_digest
    outcomes = _outcomes(ablation_name, experiment_preset, experiment_overrides, digest, storage_root_uri)
    grid = named(ablation_name)
    key = run_key(base, f"{ablation_name}/{digest}").replace(base.name, f"{ablation_name}-{base.name}")
    parent = open_run(
        run_key=key,
        experiment_name=tracking_experiment,
        run_name=key,
        tags={"iddpm.ablation": ablation_name, "iddpm.preset": base.name, "iddpm.role": "ablation"},
        params={"ablation": ablation_name, "source": grid.source, "num_trials": len(outcomes)},
    )
    finished = [outcome for outcome in outcomes if outcome.result is not None]
    for outcome in outcomes:
        if outcome.tracking_run_id:
            child = attach(outcome.tracking_run_id)
            child.set_tags({"mlflow.parentRunId": parent.run_id, "iddpm.ablation": ablation_name, "iddpm.trial": outcome.label})
            child.flush()
    failed = [outcome.label for outcome in outcomes if outcome.result is None]
    page = table_page(
        f"Ablation {ablation_name}",
        [*(path.rpartition(".")[2] for path in grid.varied), *_headers(finished)],
        [_row(outcome) for outcome in outcomes],
        lead=[f"{grid.source}.", f"Varied: {experiment_preset}, on {base.data.name} at {base.data.image_size} pixels."],
        failures=[f"Failed: {label}. Run the same ablation again; it alone runs." for label in failed],
        notes=[] if not finished else [_protocol(finished[0].result), "Numbers after +- are one standard error."],
        links={"Compare the trials in MLflow": parent.parts_url(order_by_metric="final/distance")},
    )
    uri = storage.join(storage_root_uri, "ablations", key)
    storage.write_bytes(storage.join(uri, "report.html"), page.encode())
    storage.write_json(storage.join(uri, "table.json"), [_as_json(outcome) for outcome in outcomes])
    Path(page_path).parent.mkdir(parents=True, exist_ok=True)
    Path(page_path).write_text(page)
    parent.log_text(page, "report.html")
    parent.log_metrics({"num_failed": len(failed), "num_finished": len(finished)}, 0)
    parent.finish("FAILED" if failed else "FINISHED")
    for outcome in finished:
        say(f"{outcome.label}: {outcome.result.distance_name} {outcome.result.distance:.4g}, {_bits(outcome.result)} bits/dim")
    for label in failed:
        say(f"{label}: failed")
    say(f"compare them at {parent.parts_url(order_by_metric='final/distance')}")
    return uri


def _outcomes(name: str, preset_name: str, overrides: Sequence[str], digest: str, root_uri: str) -> list[TrialOutcome]:
    found = []
    for trial in trials(named(name), "tiny", preset_name=preset_name, overrides=overrides):
        run_uri = storage.join(root_uri, "runs", run_key(preset(preset_name, trial.overrides), digest))
        trained = _stored(storage.join(run_uri, RESULT))
        evaluated = _stored(storage.join(run_uri, "evaluations", "final.json")) if trained else None
        found.append(
            TrialOutcome(
                label=trial.label,
                values=trial.values,
                run_uri=run_uri,
                tracking_run_id=(trained or {}).get("tracking_run_id", ""),
                result=_result(evaluated) if evaluated else None,
            )
        )
    return found


def _stored(uri: str) -> Any:
    """What a trial left, or None; what can't be read is said and does not take the table down."""
    try:
        return storage.read_json(uri) if storage.exists(uri) else None
    except storage.StorageError as error:
        say(str(error))
        return None


def _result(value: Any) -> Any:
    from evaluation.result import EvaluationResult

    return EvaluationResult.from_dict(value)


def _headers(finished: Sequence[TrialOutcome]) -> list[str]:
    return [finished[0].result.distance_name if finished else "distance", "bits/dim", "step", "weights"]


def _row(outcome: TrialOutcome) -> list[str]:
    values = [str(value).lower() if isinstance(value, bool) else f"{value}" for value in outcome.values.values()]
    result = outcome.result
    if result is None:
        return [*values, "failed", "", "", ""]
    error = "" if result.distance_standard_error is None else f" +- {result.distance_standard_error:.2g}"
    return [*values, f"{result.distance:.4g}{error}", _bits(result), f"{result.step:,}", result.weights]


def _bits(result: Any) -> str:
    if result.likelihood is None:
        return "not taken"
    return f"{result.likelihood['bits_per_dim']:.4f} +- {result.likelihood['standard_error']:.2g}"


def _protocol(result: Any) -> str:
    distance = result.protocol["distance"]
    return (
        f"{distance['num_samples']:,} samples, {distance['sampler']}; reference: {distance['reference']['num_images']:,} training images."
    )


def _as_json(outcome: TrialOutcome) -> dict[str, Any]:
    return {
        "label": outcome.label,
        "values": outcome.values,
        "run_uri": outcome.run_uri,
        "tracking_run_id": outcome.tracking_run_id,
        "result": None if outcome.result is None else outcome.result.to_dict(),
    }
