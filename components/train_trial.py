"""The training of one trial of an ablation."""

from typing import Any, Dict  # noqa: UP035 - kfp copies the annotation into a file that has this name only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def train_trial(
    item: Dict[str, Any],  # noqa: UP006
    storage_root_uri: str,
    tracking_experiment: str,
    pipeline_run_id: str,
    resources: str,
) -> str:
    """Train a trial as the train step trains an experiment, unless it is done, or find the run that it evaluates.

    Args:
        item: The trial; see `components.ablations.directory.loop_item`.
        storage_root_uri: The storage root.
        tracking_experiment: MLflow experiment.
        pipeline_run_id: ID of this run of the pipeline.
        resources: Resources of the stage; see `components.launch.resources`.

    Returns:
        URI of the run's directory.
    """
    from components.ablations.directory import experiment_of
    from components.ablations.steps import train_trial
    from components.launch.run import run_step
    from components.steps.registry import TRAIN

    def train(trial_run_id: str) -> str:
        uri: str = run_step(
            TRAIN,
            {
                "experiment": experiment_of(item).to_json(),
                "data_uri": item["data_uri"],
                "reference_uri": item["reference_uri"],
                "storage_root_uri": storage_root_uri,
                "tracking_experiment": tracking_experiment,
                "pipeline_run_id": pipeline_run_id,
                "parent_run_id": trial_run_id,
            },
            resources,
        )
        return uri

    return train_trial(item, train, pipeline_run_id=pipeline_run_id)
