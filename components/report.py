"""The page about a run."""

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def report(page: dsl.Output[dsl.HTML], run_uri: str, evaluation_uri: str, pipeline_run_id: str) -> str:
    """Make one self-contained page of a run's evaluation: numbers, samples, curves, protocol.

    Args:
        page: The page.
        run_uri: The run's directory.
        evaluation_uri: URI of the evaluation.
        pipeline_run_id: ID of this run of the pipeline.

    Returns:
        URI of the page.
    """
    from components.steps.evaluate import report_run
    from training import storage

    return storage.retry(lambda: report_run(run_uri, evaluation_uri, page_path=page.path, pipeline_run_id=pipeline_run_id))
