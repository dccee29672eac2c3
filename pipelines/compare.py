"""The compare pipeline: any number of models side by side, on one page.

    settings -> compare

The step logs the comparison to MLflow only when it is done. So no run has to be closed, and there is no exit task. The step tells the
webhook of its numbers; the reaper tells the webhook if the step failed.
"""

from kfp import dsl

from components.compare_models import compare_models
from components.container.image import BASE_IMAGE
from components.settings import settings
from pipelines.pods import RUN_CONFIG, SHORT, Pod, add_webhook, stage_pod


@dsl.pipeline(
    name="iddpm-compare",
    display_name="iDDPM: compare",
    description="Compares any number of models: experiments, numbers with intervals and verdicts, samples from the same noise, curves.",
    pipeline_config=RUN_CONFIG,
)
def compare_pipeline(
    evaluate_resources: str = "laptop",
    image: str = BASE_IMAGE,
    models: list[str] = ["models:/digits-hybrid-cosine/1", "models:/digits-hybrid-cosine@champion"],  # noqa: B006 - KFP wants literals
    num_samples: int = 0,
    storage_root_uri: str = "s3://iddpm",
) -> str:
    """Compare models.

    Args:
        evaluate_resources: Resources of the step that evaluates the models.
        image: Image of all steps; a digest, or a tag that is never written twice.
        models: A JSON list of two or more (models:/NAME@ALIAS, runs:/ID, a run's key or directory, or a checkpoint's). The others are
            compared with the first, by its protocol.
        num_samples: Number of images sampled from each; 0 takes that of the first model's experiment.
        storage_root_uri: Where reference statistics are kept, and the comparison.

    Returns:
        URI of the page.
    """
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    checked = Pod(image=image, timeout_seconds=SHORT).configure(
        settings(storage_root_uri=storage_root_uri, pipeline_run_id=run_id, evaluate_resources=evaluate_resources), name="settings"
    )
    compared = stage_pod(checked, "evaluate", image=image).configure(
        compare_models(
            models=models,
            num_samples=num_samples,
            storage_root_uri=storage_root_uri,
            pipeline_run_id=run_id,
            resources=evaluate_resources,
        ),
        name="compare",
        uses_ray=True,
    )
    add_webhook(compared)
    return compared.outputs["Output"]  # type: ignore[no-any-return]


PIPELINE = compare_pipeline
LITERALS: dict[str, tuple[str, ...]] = {}
