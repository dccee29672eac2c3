"""The first step of every pipeline: it checks all settings, and sizes the pods of the later steps."""

from typing import Any, Dict, List, NamedTuple  # noqa: UP035 - kfp copies the annotation into a file that has these names only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def settings(
    storage_root_uri: str,
    pipeline_run_id: str,
    experiment_preset: str = "",
    experiment_overrides: List[str] = [],  # noqa: B006, UP006 - KFP wants literals
    experiment_file: str = "",
    seed: int = -1,
    data_options: str = "",
    data_resources: str = "laptop",
    train_resources: str = "laptop",
    evaluate_resources: str = "laptop",
    force_from: str = "",
    tracking_experiment: str = "iddpm",
    baseline_nights: int = 20,
    threshold_difference: float = 0.0,
) -> NamedTuple(  # type: ignore[valid-type]
    "Settings",
    experiment=str,
    data_cpu=str,
    data_memory=str,
    data_gpus=str,
    data_gpu_type=str,
    data_node_selector=Dict[str, Any],  # noqa: UP006
    data_tolerations=List[Dict[str, Any]],  # noqa: UP006
    train_cpu=str,
    train_memory=str,
    train_gpus=str,
    train_gpu_type=str,
    train_node_selector=Dict[str, Any],  # noqa: UP006
    train_tolerations=List[Dict[str, Any]],  # noqa: UP006
    evaluate_cpu=str,
    evaluate_memory=str,
    evaluate_gpus=str,
    evaluate_gpu_type=str,
    evaluate_node_selector=Dict[str, Any],  # noqa: UP006
    evaluate_tolerations=List[Dict[str, Any]],  # noqa: UP006
    reference_gpus=str,
):
    """Check every setting of the run, so that a wrong one fails here and not hours later.

    Args:
        storage_root_uri: The storage root.
        pipeline_run_id: ID of this run of the pipeline.
        experiment_preset: Name of the experiment; empty, and no file, for a pipeline that trains none.
        experiment_overrides: Its overrides.
        experiment_file: Text or s3:// address of an experiment file, which takes precedence over the preset.
        seed: The experiment's seed; -1 leaves it.
        data_options: How images are prepared.
        data_resources: Resources of the preprocess step.
        train_resources: Resources of the train step.
        evaluate_resources: Resources of the reference and evaluate steps.
        force_from: The step from which finished work is done again; empty for none.
        tracking_experiment: MLflow's experiment.
        baseline_nights: Of a nightly check: see `evaluation.monitoring.detector.Rule`.
        threshold_difference: Of a nightly check: its smallest change that matters.

    Returns:
        The experiment as JSON, and what the pods of each stage ask for. KFP takes numbers as text.
    """
    from components.launch.logs import pipeline_log_stored
    from components.steps.settings import check_settings, keep_experiment, require_rule, require_shared, require_tracking

    require_shared("storage_root_uri", storage_root_uri)
    with pipeline_log_stored(storage_root_uri, pipeline_run_id, "settings"):
        require_tracking(tracking_experiment)
        require_rule(baseline_nights, threshold_difference)
        checked = check_settings(
            experiment_preset,
            experiment_overrides,
            experiment_file,
            seed,
            data_options,
            data_resources,
            train_resources,
            evaluate_resources,
            force_from,
        )
        keep_experiment(checked[0], storage_root_uri, pipeline_run_id)
        return checked
