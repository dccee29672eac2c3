"""The table of an ablation, whatever became of its trials."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def tabulate_ablation(
    page: dsl.Output[dsl.HTML],
    ablation_name: str,
    experiment_preset: str,
    experiment_overrides: list[str],
    storage_root_uri: str,
    tracking_experiment: str,
    data_uri: str = "",
) -> str:
    """Collects what the trials found into one table, in HTML and in MLflow, and names those that failed.

    Args:
        page: The table.
        ablation_name: Which ablation.
        experiment_preset: The experiment that it varied.
        experiment_overrides: Overrides that every trial shared.
        storage_root_uri: Where the runs are.
        tracking_experiment: MLflow's experiment.
        data_uri: The data set; has a default because the step runs also when what comes before it failed.

    Returns:
        The ablation's directory.
    """
    from components.ablation_run import tabulate

    return tabulate(
        ablation_name, experiment_preset, experiment_overrides, data_uri, storage_root_uri, tracking_experiment, page_path=page.path
    )
