"""The end of a pipeline's run, however it came: MLflow runs that nobody works on any more are closed, with what became of them.

A step closes its run itself where it can. One whose process was killed, or whose node went away, could not, and the run
would be shown as running for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.steps.train import PIPELINE_RUN_TAG, RESULT, identify
from training import storage
from training.config.presets import preset
from training.console import say

_CANCELLED = ("CANCELED", "CANCELLED")


def finish_training(
    state: str,
    pipeline_run_id: str,
    experiment_preset: str,
    experiment_overrides: Sequence[str],
    data_uri: str,
    storage_root_uri: str,
    tracking_experiment: str,
) -> str:
    """Closes the MLflow run of a training that this pipeline's run left open.

    Args:
        state: How KFP says that the pipeline's run ended.
        pipeline_run_id: Whose MLflow runs are closed; those that another run of a pipeline went on with are left alone.
        experiment_preset: Name of the experiment.
        experiment_overrides: Its overrides.
        data_uri: The data set; empty is its default place.
        storage_root_uri: Where everything is kept.
        tracking_experiment: MLflow's experiment.

    Returns:
        The run's directory; empty where there is no data set, so no run.
    """
    close_runs(state, pipeline_run_id, tracking_experiment)
    uri = find_data(experiment_preset, experiment_overrides, data_uri, storage_root_uri)
    return identify(experiment_preset, experiment_overrides, uri, storage_root_uri).uri if uri else ""


def close_runs(state: str, pipeline_run_id: str, tracking_experiment: str) -> None:
    """Closes what a pipeline's run left open in MLflow: finished where the result is there, else killed or failed."""
    from training.tracking.runs import close_left_open

    def status(tags: Mapping[str, str]) -> Any:
        run_uri = tags.get("iddpm.run_uri", "")
        if run_uri and storage.exists(storage.join(run_uri, RESULT)):
            return "FINISHED"
        return "KILLED" if state in _CANCELLED else "FAILED"

    for key, became in close_left_open(tracking_experiment, {PIPELINE_RUN_TAG: pipeline_run_id}, status):
        say(f"run {key} was left open in MLflow; it is closed as {became}")


def find_data(experiment_preset: str, experiment_overrides: Sequence[str], data_uri: str, storage_root_uri: str) -> str:
    """Where an experiment's data set is, named or in its default place; empty where there is none."""
    from training.data.splits import default_data_uri

    uri = data_uri or default_data_uri(preset(experiment_preset, experiment_overrides).data, storage_root_uri)
    return uri if storage.exists(storage.join(uri, "train", "manifest.json")) else ""
