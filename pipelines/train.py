"""The train pipeline: images in, a trained, scored and reported model out.

    settings -> preprocess -> reference -> train (scored beside training, stops early) -> evaluate -> report;
    at the end, also after a failure: close run

Steps pass URIs, because KFP would download every artifact that is a step's input. The UI sorts parameters by name, so a
parameter's name begins with its subject.
"""

from kfp import dsl

from components.close_run import close_run
from components.container.image import BASE_IMAGE
from components.evaluate import evaluate
from components.preprocess import preprocess
from components.reference import reference
from components.report import report
from components.settings import settings
from components.train import train
from pipelines.pods import RUN_CONFIG, SHORT, Pod, add_webhook, reference_pod, stage_pod
from training.config import presets


@dsl.pipeline(
    name="iddpm-train",
    display_name="iDDPM: train",
    description="Prepares the images, trains one experiment with early stopping, evaluates the best checkpoint and reports it.",
    pipeline_config=RUN_CONFIG,
)
def train_pipeline(
    data_options: str = "{}",
    data_resources: str = "laptop",
    data_source: str = "",
    data_uri: str = "",
    evaluate_resources: str = "laptop",
    experiment_file: str = "",
    experiment_overrides: list[str] = [],  # noqa: B006 - KFP wants literals
    experiment_preset: str = "digits-hybrid-cosine",
    force_from: str = "",
    image: str = BASE_IMAGE,
    seed: int = -1,
    storage_root_uri: str = "s3://iddpm",
    tracking_experiment: str = "iddpm",
    train_resources: str = "laptop",
) -> str:
    """Train one experiment and report it.

    Args:
        data_options: How images are prepared.
        data_resources: Resources of the preprocess step.
        data_source: Where the images come from; empty is the data set's own name.
        data_uri: The data set's directory; empty puts it under storage_root_uri, named by name, size and resize.
        evaluate_resources: Resources of the reference and evaluate steps.
        experiment_file: An experiment of your own, as TOML or as the s3:// address of such a file; it goes before experiment_preset.
        experiment_overrides: What to change in it, a JSON list like ["optim.num_steps=4000", "model.dropout=0.1"].
        experiment_preset: Which experiment; `iddpm presets` lists them and `iddpm show` prints one.
        force_from: Step from which finished work is done again: train, evaluate or report. Empty does again only what is not finished.
        image: Image of all steps; a digest, or a tag that is never written twice.
        seed: Seed of the experiment; -1 leaves its own.
        storage_root_uri: Where data sets, runs and reports are kept.
        tracking_experiment: MLflow's experiment.
        train_resources: Resources of the train step.

    Returns:
        URI of the run's directory.
    """
    form = {
        "experiment_preset": experiment_preset,
        "experiment_overrides": experiment_overrides,
        "experiment_file": experiment_file,
        "seed": seed,
    }
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    small = Pod(image=image, timeout_seconds=SHORT)
    closed = small.configure(
        close_run(
            pipeline_run_id=run_id,
            data_uri=data_uri,
            storage_root_uri=storage_root_uri,
            **form,
        ),
        name="close run",
    )
    add_webhook(closed)
    with dsl.ExitHandler(closed, name="steps"):
        checked = small.configure(
            settings(
                storage_root_uri=storage_root_uri,
                pipeline_run_id=run_id,
                data_options=data_options,
                data_resources=data_resources,
                train_resources=train_resources,
                evaluate_resources=evaluate_resources,
                force_from=force_from,
                tracking_experiment=tracking_experiment,
                **form,
            ),
            name="settings",
        )
        experiment = checked.outputs["experiment"]
        data_pod, train_pod, evaluate_pod = (stage_pod(checked, stage, image=image) for stage in ("data", "train", "evaluate"))
        data = data_pod.configure(
            preprocess(
                data_uri=data_uri,
                storage_root_uri=storage_root_uri,
                source=data_source,
                options=data_options,
                resources=data_resources,
                experiment=experiment,
            ),
            name="preprocess",
            uses_ray=True,
        )
        statistics = reference_pod(checked, image=image).configure(
            reference(
                data_uri=data.outputs["data_uri"],
                data_digest=data.outputs["digest"],
                storage_root_uri=storage_root_uri,
                resources=evaluate_resources,
                experiment=experiment,
            ),
            name="reference",
            cached=True,
            uses_ray=True,
        )
        trained = train_pod.configure(
            train(
                data_uri=data.outputs["data_uri"],
                reference_uri=statistics.output,
                storage_root_uri=storage_root_uri,
                tracking_experiment=tracking_experiment,
                pipeline_run_id=run_id,
                resources=train_resources,
                experiment=experiment,
                force_from=force_from,
            ),
            name="train",
            uses_ray=True,
        )
        scored = evaluate_pod.configure(
            evaluate(
                run_uri=trained.output,
                data_uri=data.outputs["data_uri"],
                reference_uri=statistics.output,
                pipeline_run_id=run_id,
                resources=evaluate_resources,
                force_from=force_from,
            ),
            name="evaluate",
            uses_ray=True,
        )
        page = report(run_uri=trained.output, evaluation_uri=scored.outputs["Output"], pipeline_run_id=run_id)
        small.configure(page, name="report")
    return closed.output  # type: ignore[no-any-return]


PIPELINE = train_pipeline
LITERALS = {"experiment_preset": presets.names()}
