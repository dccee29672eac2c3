"""The report of a tuning, also of one that failed or was cancelled."""

from typing import Any, Dict, List  # noqa: UP035 - kfp copies the annotation into a file that has these names only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def report_tuning(
    status: dsl.PipelineTaskFinalStatus,
    page: dsl.Output[dsl.HTML],
    pipeline_run_id: str,
    experiment_preset: str,
    experiment_overrides: List[str],  # noqa: UP006
    experiment_file: str,
    tune_search: List[str],  # noqa: UP006
    tune_trials: int,
    tune_options: Dict[str, Any],  # noqa: UP006
    data_uri: str,
    storage_root_uri: str,
) -> str:
    """Collect the trials so far into one page, in S3 and KFP, and close what was left open in MLflow.

    Args:
        status: How the steps ended.
        page: The report.
        pipeline_run_id: ID of this run of the pipeline.
        experiment_preset: Name of the experiment whose fields are searched.
        experiment_overrides: Overrides of every trial.
        experiment_file: Its file, which takes precedence over the preset.
        tune_search: The searched fields.
        tune_trials: Number of trials.
        tune_options: Fields of `evaluation.tuning.request.TuneOptions`.
        data_uri: The data set; empty is its default place.
        storage_root_uri: The storage root.

    Returns:
        URI of the report; empty where no trial could begin.
    """
    from components.launch.logs import pipeline_log_stored
    from components.steps.close import finish_unread
    from components.tuning.directory import kept_request
    from components.tuning.report import finish_tuning
    from training import storage
    from training.config.errors import UserError

    with pipeline_log_stored(storage_root_uri, pipeline_run_id, "report-tuning"):
        try:
            request = kept_request(
                storage_root_uri,
                pipeline_run_id,
                experiment_preset,
                experiment_overrides,
                experiment_file,
                tune_search,
                tune_trials,
                tune_options,
            )
        except (UserError, storage.StorageError):
            name = f"tuning of {experiment_preset or 'an experiment file'}"
            return storage.retry(lambda: finish_unread(status.state, pipeline_run_id, storage_root_uri, name=name))
        return storage.retry(lambda: finish_tuning(status.state, pipeline_run_id, request, data_uri, storage_root_uri, page_path=page.path))
