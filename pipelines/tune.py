"""The tune pipeline: a search over an experiment's fields that learns from its trials.

    settings -> plan -> preprocess -> reference -> tune (suggest, train, prune, again and again);
    at the end, also after a failure: report

A loop of KFP can't read the results of its own iterations, and each suggestion needs those of the trials before it. So the trials run one
after the other within one step, on one Ray cluster. A step that is started again goes on with the records of the trials in S3.
"""

from typing import Any

from kfp import dsl

from components.container.image import BASE_IMAGE
from components.plan_tuning import plan_tuning
from components.preprocess import preprocess
from components.reference import reference
from components.report_tuning import report_tuning
from components.settings import settings
from components.tune import tune
from pipelines.pods import RUN_CONFIG, SHORT, Pod, add_webhook, reference_pod, stage_pod
from training.config import presets


@dsl.pipeline(
    name="iddpm-tune",
    display_name="iDDPM: tune",
    description="Searches fields of an experiment: suggests trials by TPE, trains each as an ordinary run, prunes by ASHA, and reports.",
    pipeline_config=RUN_CONFIG,
)
def tune_pipeline(
    data_options: str = "{}",
    data_resources: str = "laptop",
    data_source: str = "",
    data_uri: str = "",
    evaluate_resources: str = "laptop",
    experiment_file: str = "",
    experiment_overrides: list[str] = [],  # noqa: B006 - KFP wants literals
    experiment_preset: str = "digits-hybrid-cosine",
    image: str = BASE_IMAGE,
    storage_root_uri: str = "s3://iddpm",
    tracking_experiment: str = "iddpm",
    train_resources: str = "laptop",
    tune_options: dict[str, Any] = {"seed": 0, "reduction": 3, "hours": 0},  # noqa: B006
    tune_search: list[str] = ["optim.learning_rate=log:1e-4..1e-2"],  # noqa: B006
    tune_trials: int = 20,
) -> str:
    """Tune an experiment.

    Args:
        data_options: How images are prepared.
        data_resources: Resources of the preprocess step.
        data_source: Where the images come from; empty is the data set's own name.
        data_uri: The data set's directory; empty puts it under storage_root_uri, named by name, size and resize.
        evaluate_resources: Resources of the reference step.
        experiment_file: An experiment of your own, as TOML or as the s3:// address of such a file; it goes before experiment_preset.
        experiment_overrides: What to change in every trial, a JSON list like ["optim.num_steps=4000"].
        experiment_preset: The experiment whose fields are searched; `iddpm presets` lists them and `iddpm show` prints one.
        image: Image of all steps; a digest, or a tag that is never written twice.
        storage_root_uri: Where data sets, runs and reports are kept.
        tracking_experiment: MLflow's experiment.
        train_resources: Resources of the tune step, in which trials are trained one after the other.
        tune_options: A JSON object of seed (of the suggestions), reduction (one of so many trials goes on at each rung; 0 prunes none) and
            hours (no trial starts after so many; 0 is no limit).
        tune_search: The searched fields, a JSON list of FIELD=LOW..HIGH, FIELD=log:LOW..HIGH (by factor) and FIELD=[A,B,C].
        tune_trials: Number of trials in all; more of them go on with the same tuning.

    Returns:
        URI of the report.
    """
    form = {
        "experiment_preset": experiment_preset,
        "experiment_overrides": experiment_overrides,
        "experiment_file": experiment_file,
        "tune_search": tune_search,
        "tune_trials": tune_trials,
        "tune_options": tune_options,
    }
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    small = Pod(image=image, timeout_seconds=SHORT)
    reported = small.configure(
        report_tuning(pipeline_run_id=run_id, data_uri=data_uri, storage_root_uri=storage_root_uri, **form), name="report"
    )
    add_webhook(reported)
    with dsl.ExitHandler(reported, name="steps"):
        checked = small.configure(
            settings(
                storage_root_uri=storage_root_uri,
                pipeline_run_id=run_id,
                data_options=data_options,
                data_resources=data_resources,
                train_resources=train_resources,
                evaluate_resources=evaluate_resources,
                tracking_experiment=tracking_experiment,
            ),
            name="settings",
        )
        data_pod, train_pod = (stage_pod(checked, stage, image=image) for stage in ("data", "train"))
        plan = small.configure(plan_tuning(storage_root_uri=storage_root_uri, pipeline_run_id=run_id, **form).after(checked), name="plan")
        data = data_pod.configure(
            preprocess(
                experiment=plan.outputs["experiment"],
                data_uri=data_uri,
                storage_root_uri=storage_root_uri,
                source=data_source,
                options=data_options,
                resources=data_resources,
            ),
            name="preprocess",
            uses_ray=True,
        )
        statistics = reference_pod(checked, image=image).configure(
            reference(
                experiment=plan.outputs["experiment"],
                data_uri=data.outputs["data_uri"],
                data_digest=data.outputs["digest"],
                storage_root_uri=storage_root_uri,
                resources=evaluate_resources,
            ),
            name="reference",
            cached=True,
            uses_ray=True,
        )
        train_pod.configure(
            tune(
                request=plan.outputs["request"],
                data_uri=data.outputs["data_uri"],
                reference_uri=statistics.output,
                storage_root_uri=storage_root_uri,
                tracking_experiment=tracking_experiment,
                pipeline_run_id=run_id,
                resources=train_resources,
            ),
            name="tune",
            uses_ray=True,
        )
    return reported.outputs["Output"]  # type: ignore[no-any-return]


PIPELINE = tune_pipeline
LITERALS = {"experiment_preset": presets.names()}
