"""The last step of a training pipeline: it closes the run in MLflow."""

from typing import List  # noqa: UP035 - kfp copies the annotation into a file that has this name only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def close_run(
    status: dsl.PipelineTaskFinalStatus,
    pipeline_run_id: str,
    experiment_preset: str,
    experiment_overrides: List[str],  # noqa: UP006
    experiment_file: str,
    seed: int,
    data_uri: str,
    storage_root_uri: str,
) -> str:
    """Close the run in MLflow, if the training could not do it.

    Args:
        status: How the steps ended.
        pipeline_run_id: ID of this run of the pipeline.
        experiment_preset: Name of the experiment.
        experiment_overrides: Its overrides.
        experiment_file: Its file, which takes precedence over the preset.
        seed: Its seed; -1 leaves it.
        data_uri: The data set; empty is its default place.
        storage_root_uri: The storage root.

    Returns:
        URI of the run's directory; empty where there is none.
    """
    from components.launch.logs import pipeline_log_stored
    from components.steps.close import finish_training, finish_unread
    from components.steps.settings import kept_experiment
    from training import storage
    from training.config.errors import UserError

    with pipeline_log_stored(storage_root_uri, pipeline_run_id, "close-run"):
        try:
            experiment = kept_experiment(storage_root_uri, pipeline_run_id, experiment_preset, experiment_overrides, experiment_file, seed)
        except (UserError, storage.StorageError):
            name = experiment_preset or "experiment file"
            return storage.retry(lambda: finish_unread(status.state, pipeline_run_id, storage_root_uri, name=name))
        return storage.retry(lambda: finish_training(status.state, pipeline_run_id, experiment, data_uri, storage_root_uri))
