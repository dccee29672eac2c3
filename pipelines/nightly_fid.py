"""The nightly pipeline: score a model again, and fail loudly if it has become worse.

    settings -> resolve -> score (never cached) -> judge by the history

The history of a model is in its run's directory. `iddpm nightly accept` takes a new level as its baseline.

KFP's cron expressions have six fields, seconds first: "0 0 2 * * *" is every night at two. The steps write to the MLflow run that
trained the model, so no run has to be closed, and there is no exit task: the reaper tells the webhook of a step that was killed.
"""

from kfp import dsl

from components.compare_with_history import compare_with_history
from components.container.image import BASE_IMAGE
from components.resolve_model import resolve_model
from components.score_model import score_model
from components.settings import settings
from pipelines.pods import RUN_CONFIG, SHORT, Pod, add_webhook, stage_pod


@dsl.pipeline(
    name="iddpm-nightly-fid",
    display_name="iDDPM: nightly FID",
    description="Scores a registered model anew and judges the score by the model's history; a regression fails the run.",
    pipeline_config=RUN_CONFIG,
)
def nightly_pipeline(
    baseline_nights: int = 20,
    evaluate_resources: str = "laptop",
    image: str = BASE_IMAGE,
    model: str = "models:/digits-hybrid-cosine@champion",
    storage_root_uri: str = "s3://iddpm",
    threshold_difference: float = 0.0,
) -> str:
    """Check a model.

    Args:
        baseline_nights: Number of healthy scores that make the first baseline, 3 or more; meanwhile only jumps are found.
        evaluate_resources: Resources of the score step.
        image: Image of all steps; a digest, or a tag that is never written twice.
        model: Which model (models:/NAME@ALIAS, runs:/ID, a run's key or directory, or a checkpoint's).
        storage_root_uri: Where reference statistics are kept, and the record of what the webhook was told.
        threshold_difference: A change that is too small to matter, in units of the distance.

    Returns:
        The judgement in one sentence.
    """
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER  # it seeds the samples: each run draws others, a retried step draws the same
    small = Pod(image=image, timeout_seconds=SHORT)
    checked = small.configure(
        settings(
            storage_root_uri=storage_root_uri,
            pipeline_run_id=run_id,
            evaluate_resources=evaluate_resources,
            baseline_nights=baseline_nights,
            threshold_difference=threshold_difference,
        ),
        name="settings",
    )
    found = small.configure(resolve_model(model=model, storage_root_uri=storage_root_uri, pipeline_run_id=run_id), name="resolve")
    scored = stage_pod(checked, "evaluate", image=image).configure(
        score_model(
            checkpoint_uri=found.outputs["checkpoint_uri"],
            weights=found.outputs["weights"],
            data_uri=found.outputs["data_uri"],
            baseline_nights=baseline_nights,
            min_difference=threshold_difference,
            storage_root_uri=storage_root_uri,
            pipeline_run_id=run_id,
            resources=evaluate_resources,
        ),
        name="score",
        uses_ray=True,
    )
    verdict = small.configure(
        compare_with_history(
            evaluation_uri=scored.outputs["Output"],
            tracking_run_id=found.outputs["tracking_run_id"],
            baseline_nights=baseline_nights,
            min_difference=threshold_difference,
            storage_root_uri=storage_root_uri,
            pipeline_run_id=run_id,
        ),
        name="compare",
    )
    for task in (found, scored, verdict):
        add_webhook(task)
    return verdict.outputs["Output"]  # type: ignore[no-any-return]


PIPELINE = nightly_pipeline
LITERALS: dict[str, tuple[str, ...]] = {}
