"""The comparison of models."""

from typing import List  # noqa: UP035 - kfp copies the annotation into a file that has these names only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def compare_models(
    page: dsl.Output[dsl.HTML],
    models: List[str],  # noqa: UP006
    num_samples: int,
    storage_root_uri: str,
    pipeline_run_id: str,
    resources: str,
) -> str:
    """Evaluate models by one protocol on the same noise, and make a page of their differences.

    Args:
        page: The page.
        models: Two or more models; the others are compared with the first.
        num_samples: Number of images sampled from each; 0 takes that of the first model's experiment.
        storage_root_uri: The storage root.
        pipeline_run_id: ID of this run of the pipeline.
        resources: Resources of the stage; see `components.launch.resources`.

    Returns:
        URI of the page.
    """
    from components.launch.logs import pipeline_log_stored
    from components.launch.run import run_step
    from components.steps.compare import tell_comparison
    from components.steps.registry import COMPARE
    from training import storage

    with pipeline_log_stored(storage_root_uri, pipeline_run_id, "compare-models"):
        uri: str = run_step(COMPARE, {"models": models, "num_samples": num_samples, "storage_root_uri": storage_root_uri}, resources)
        storage.retry(lambda: storage.download(uri, page.path))
        storage.retry(lambda: tell_comparison(uri, pipeline_run_id, storage_root_uri))
    return uri
