"""The data sets of an ablation, as the list that the pipeline loops over."""

from typing import Any, Dict, List  # noqa: UP035 - kfp copies the annotation into a file that has these names only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def list_data(
    ablation_name: str,
    ablation_scale: str,
    ablation_grid: Dict[str, Any],  # noqa: UP006
    ablation_options: Dict[str, Any],  # noqa: UP006
    experiment_preset: str,
    experiment_objective: str,
    experiment_overrides: List[str],  # noqa: UP006
    data_uri: str,
    data_options: str,
    storage_root_uri: str,
    pipeline_run_id: str,
) -> list[dict[str, str]]:
    """Check the ablation, and list the data sets of its trials.

    Args:
        ablation_name: Name of the ablation, or own-grid.
        ablation_scale: "paper", "small" or "tiny".
        ablation_grid: Axes of an own grid, path -> values.
        ablation_options: See `evaluation.ablations.definitions.request.AblationOptions`.
        experiment_preset: Another experiment to vary.
        experiment_objective: Another objective for every trial.
        experiment_overrides: Overrides of every trial.
        data_uri: Directory of the data set, for an ablation with a single one.
        data_options: How images are prepared; see `components.steps.settings.DataOptions`, of which only the sources are read here.
        storage_root_uri: The storage root.
        pipeline_run_id: ID of this run of the pipeline.

    Returns:
        One item for each data set, with the arguments of its preprocess and reference steps.
    """
    from components.ablations.planning import list_data_sets
    from components.launch.logs import pipeline_log_stored
    from components.steps.settings import read_data_options
    from evaluation.ablations.definitions.request import from_form
    from training import storage

    with pipeline_log_stored(storage_root_uri, pipeline_run_id, "list-data"):
        request = from_form(
            ablation_name, ablation_scale, ablation_grid, ablation_options, experiment_preset, experiment_objective, experiment_overrides
        )
        sources = read_data_options(data_options).sources
        found: list[Any] = storage.retry(lambda: list_data_sets(request, storage_root_uri, data_uri=data_uri, sources=sources))
        return found
