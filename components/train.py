"""Training on Ray, with each checkpoint scored beside it and early stopping."""

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def train(
    experiment: str,
    data_uri: str,
    reference_uri: str,
    storage_root_uri: str,
    tracking_experiment: str,
    pipeline_run_id: str,
    resources: str,
    force_from: str = "",
) -> str:
    """Train the experiment, or resume it from its latest checkpoint.

    Args:
        experiment: The experiment, as JSON.
        data_uri: The data set.
        reference_uri: Reference statistics for the scores beside training.
        storage_root_uri: The storage root.
        tracking_experiment: MLflow experiment.
        pipeline_run_id: ID of this run of the pipeline.
        resources: Resources of the stage; see `components.launch.resources`.
        force_from: "train" trains again what is trained.

    Returns:
        URI of the run's directory.
    """
    from components.launch.run import run_step
    from components.steps.registry import TRAIN

    uri: str = run_step(
        TRAIN,
        {
            "experiment": experiment,
            "data_uri": data_uri,
            "reference_uri": reference_uri,
            "storage_root_uri": storage_root_uri,
            "tracking_experiment": tracking_experiment,
            "pipeline_run_id": pipeline_run_id,
            "force_from": force_from,
        },
        resources,
    )
    return uri
