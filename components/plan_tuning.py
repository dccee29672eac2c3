"""The plan of a tuning: everything that its form says, checked before any step works."""

from typing import Any, Dict, List, NamedTuple  # noqa: UP035 - kfp copies the annotation into a file that has these names only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def plan_tuning(
    experiment_preset: str,
    experiment_overrides: List[str],  # noqa: UP006
    experiment_file: str,
    tune_search: List[str],  # noqa: UP006
    tune_trials: int,
    tune_options: Dict[str, Any],  # noqa: UP006
    storage_root_uri: str,
    pipeline_run_id: str,
) -> NamedTuple("Plan", experiment=str, request=Dict[str, Any]):  # type: ignore[valid-type] # noqa: UP006
    """Check a tuning.

    Args:
        experiment_preset: Name of the experiment whose fields are searched.
        experiment_overrides: Overrides of every trial.
        experiment_file: Text or s3:// address of an experiment file, which takes precedence over the preset.
        tune_search: The searched fields.
        tune_trials: Number of trials.
        tune_options: Fields of `evaluation.tuning.request.TuneOptions`.
        storage_root_uri: The storage root.
        pipeline_run_id: ID of this run of the pipeline.

    Returns:
        The experiment without any suggestion, as JSON, and the request.
    """
    from components.launch.logs import pipeline_log_stored
    from components.tuning.directory import from_form, keep_request

    with pipeline_log_stored(storage_root_uri, pipeline_run_id, "plan-tuning"):
        request = from_form(experiment_preset, experiment_overrides, experiment_file, tune_search, tune_trials, tune_options)
        keep_request(request, storage_root_uri, pipeline_run_id)
        return request.experiment().to_json(), request.to_dict()
