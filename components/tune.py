"""The trials of a tuning, one after the other on one Ray cluster."""

from typing import Any, Dict  # noqa: UP035 - kfp copies the annotation into a file that has these names only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def tune(
    request: Dict[str, Any],  # noqa: UP006
    data_uri: str,
    reference_uri: str,
    storage_root_uri: str,
    tracking_experiment: str,
    pipeline_run_id: str,
    resources: str,
) -> str:
    """Suggest, train and prune the trials that are missing; each suggestion depends on the trials before it.

    Args:
        request: The tuning, as the plan gives it.
        data_uri: The data set.
        reference_uri: Reference statistics for the scores.
        storage_root_uri: The storage root.
        tracking_experiment: MLflow's experiment.
        pipeline_run_id: ID of this run of the pipeline.
        resources: Resources of the stage; see `components.launch.resources`.

    Returns:
        URI of the tuning's directory.
    """
    from components.launch.run import run_step
    from components.tuning.registry import TUNE

    uri: str = run_step(
        TUNE,
        {
            "request": request,
            "data_uri": data_uri,
            "reference_uri": reference_uri,
            "storage_root_uri": storage_root_uri,
            "tracking_experiment": tracking_experiment,
            "pipeline_run_id": pipeline_run_id,
        },
        resources,
    )
    return uri
