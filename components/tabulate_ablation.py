"""The table of an ablation, whatever became of its trials."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def tabulate_ablation(
    status: dsl.PipelineTaskFinalStatus,
    page: dsl.Output[dsl.HTML],
    pipeline_run_id: str,
    ablation_name: str,
    experiment_preset: str,
    experiment_overrides: list[str],
    data_uri: str,
    storage_root_uri: str,
    tracking_experiment: str,
) -> str:
    """Collects what the trials found into one table, in HTML and in MLflow, and names those that failed.

    Args:
        status: How the trials ended.
        page: The table.
        pipeline_run_id: Of this run of the pipeline.
        ablation_name: Which ablation.
        experiment_preset: The experiment that it varied.
        experiment_overrides: Overrides that every trial shared.
        data_uri: The data set; empty is its default place.
        storage_root_uri: Where the runs are.
        tracking_experiment: MLflow's experiment.

    Returns:
        The ablation's directory.
    """
    from components.closing import finish_ablation

    return finish_ablation(
        status.state,
        pipeline_run_id,
        ablation_name,
        experiment_preset,
        experiment_overrides,
        data_uri,
        storage_root_uri,
        tracking_experiment,
        page_path=page.path,
    )
