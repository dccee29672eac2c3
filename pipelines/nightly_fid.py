"""The nightly pipeline: score a model again, and fail loudly if it has become worse.

    resolve -> score (never cached) -> compare with its history

For a schedule in the KFP UI: cron has six fields there, seconds first ("0 0 2 * * *" is every night at two).
"""

from kfp import dsl

from components.compare_with_history import compare_with_history
from components.resolve_model import resolve_model
from components.score_model import score_model
from pipelines.resources import place


@dsl.pipeline(
    name="iddpm-nightly-fid",
    display_name="iDDPM: nightly FID",
    description="Scores a registered model anew and compares the score with the model's history; a regression fails the run.",
)
def nightly_pipeline(
    model: str = "models:/digits-hybrid-cosine@champion",
    score_cpu: str = "2",
    score_memory: str = "4Gi",
    storage_root_uri: str = "s3://iddpm",
    threshold_standard_errors: float = 4.0,
    threshold_difference: float = 0.0,
) -> str:
    """Checks a model.

    Args:
        model: Which model (models:/NAME@ALIAS, a run's directory, or a checkpoint's directory inside a run's).
        score_cpu: Cores of the steps.
        score_memory: Memory of the steps.
        storage_root_uri: Where reference statistics are kept.
        threshold_standard_errors: How far above the median of its history a score may lie, in standard deviations.
        threshold_difference: What is too little to matter, in units of the distance.

    Returns:
        The verdict in one sentence.
    """
    found = place(resolve_model(model=model), cpu="500m", memory="1Gi")
    scored = place(
        score_model(
            checkpoint_uri=found.outputs["checkpoint_uri"],
            weights=found.outputs["weights"],
            data_uri=found.outputs["data_uri"],
            storage_root_uri=storage_root_uri,
            # Each run draws samples of its own; a step of it that is tried again draws the same.
            purpose=f"nightly-{dsl.PIPELINE_JOB_ID_PLACEHOLDER}",
        ),
        cpu=score_cpu,
        memory=score_memory,
    )
    verdict = place(
        compare_with_history(
            evaluation_uri=scored.outputs["Output"],
            tracking_run_id=found.outputs["tracking_run_id"],
            num_standard_errors=threshold_standard_errors,
            min_difference=threshold_difference,
        ),
        cpu="500m",
        memory="1Gi",
    )
    return verdict.outputs["Output"]  # type: ignore[no-any-return]


PIPELINE = nightly_pipeline
LITERALS: dict[str, tuple[str, ...]] = {}
