"""The ablation pipeline: train and measure the trials of a table or figure of the paper, or of a grid of your own, and report them.

    settings -> list data -> for each data set (preprocess -> reference) -> plan -> for each trial at once (train or reuse -> measure)
    -> joint measurement; at the end, also after a failure: table

A failed trial is named in the report and stops no other trial; KFP marks the run as failed. When the pipeline runs again,
only the failed trials run. The report is an exit task, because KFP runs a step that ignores failures as soon as one of the
steps before it has ended, and never runs it after a loop.
"""

import os
from collections.abc import Mapping
from typing import Any

from kfp import dsl

from components.container.image import BASE_IMAGE
from components.joint_measure import joint_measure
from components.launch.resources import PodSize
from components.list_data import list_data
from components.measure_trial import measure_trial
from components.plan_ablation import plan_ablation
from components.preprocess import preprocess
from components.reference import reference
from components.settings import settings
from components.tabulate_ablation import tabulate_ablation
from components.train_trial import train_trial
from evaluation.ablations.definitions import paper as ablations
from evaluation.ablations.definitions.ablation import SCALES
from evaluation.ablations.definitions.reproductions import REPRODUCTIONS
from evaluation.ablations.definitions.request import DEFAULT_PRESET, OBJECTIVES, OWN_GRID
from pipelines.compile_checks import CompileError
from pipelines.pods import RUN_CONFIG, SHORT, Pod, add_webhook, reference_pod, stage_pod
from training.config import presets


def parallel_trials(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many trials run at once. KFP takes a constant, not a parameter, so the environment sets it at compile time.

    Raises:
        CompileError: It is not a number.
    """
    word = environment.get("IDDPM_PARALLEL_TRIALS", "4")
    if not word.isdecimal() or int(word) < 1:
        raise CompileError(f"IDDPM_PARALLEL_TRIALS, the number of trials that run at once, must be a whole number from 1; got {word!r}")
    return int(word)


@dsl.pipeline(
    name="iddpm-ablation",
    display_name="iDDPM: ablation",
    description="Runs a table or figure of the paper, or a grid of your own: trains or reuses every trial, measures it, and reports.",
    pipeline_config=RUN_CONFIG,
)
def ablation_pipeline(
    ablation_grid: dict[str, Any] = {},  # noqa: B006 - KFP wants literals
    ablation_name: str = "hybrid-weight",
    ablation_options: dict[str, Any] = {"seeds": 1},  # noqa: B006
    ablation_scale: str = "tiny",
    data_options: str = "{}",
    data_resources: str = "laptop",
    data_uri: str = "",
    evaluate_resources: str = "laptop",
    experiment_objective: str = "as named",
    experiment_overrides: list[str] = [],  # noqa: B006
    experiment_preset: str = "as named",
    image: str = BASE_IMAGE,
    storage_root_uri: str = "s3://iddpm",
    tracking_experiment: str = "iddpm",
    train_resources: str = "laptop",
) -> str:
    """Run an ablation.

    Args:
        ablation_grid: With own-grid, a JSON object of its axes, like {"diffusion.vlb_weight": [0.001, 0.01]}.
        ablation_name: Which table or figure of the paper, or own-grid.
        ablation_options: A JSON object. With seeds, like {"seeds": 5}, every trial is repeated with so many seeds. With runs, like
            {"runs": {"vlb": "s3://..."}}, an ablation that trains nothing looks at those runs or checkpoints, by role. With checkpoint,
            like {"checkpoint": "last"}, an own-grid measures that checkpoint of each run, not the best.
        ablation_scale: The paper's own experiments (paper), or the same grid on handwritten digits for hours (small) or minutes (tiny).
        data_options: How images are prepared. Its sources say where the images of each data set come from.
        data_resources: Resources of the preprocess step.
        data_uri: Directory of the data set, for an ablation of a single one; empty puts each under storage_root_uri.
        evaluate_resources: Resources of the reference step, and of the steps that measure.
        experiment_objective: Objective by which every trial is trained.
        experiment_overrides: What to change in every trial, a JSON list like ["optim.num_steps=4000"].
        experiment_preset: Another experiment to vary; an own-grid needs one. `iddpm presets` lists them.
        image: Image of all steps; a digest, or a tag that is never written twice.
        storage_root_uri: Where data sets, runs and reports are kept.
        tracking_experiment: MLflow's experiment.
        train_resources: Resources of a trial's train step.

    Returns:
        URI of the report.
    """
    small = Pod(image=image, timeout_seconds=SHORT)
    table_pod = Pod(image=image, size=PodSize("1", "4Gi", "0", "", {}, []), timeout_seconds=SHORT)
    ablation = {
        "ablation_name": ablation_name,
        "ablation_scale": ablation_scale,
        "ablation_grid": ablation_grid,
        "ablation_options": ablation_options,
        "experiment_preset": experiment_preset,
        "experiment_objective": experiment_objective,
        "experiment_overrides": experiment_overrides,
    }

    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    table = table_pod.configure(tabulate_ablation(pipeline_run_id=run_id, storage_root_uri=storage_root_uri, **ablation), name="table")
    add_webhook(table)
    with dsl.ExitHandler(table, name="steps"):
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
        data_pod, train_pod, evaluate_pod = (stage_pod(checked, stage, image=image) for stage in ("data", "train", "evaluate"))
        listed = small.configure(
            list_data(
                data_uri=data_uri,
                data_options=data_options,
                storage_root_uri=storage_root_uri,
                pipeline_run_id=run_id,
                **ablation,
            ).after(checked),
            name="list data",
        )
        with dsl.ParallelFor(listed.output, name="data-sets") as data_set:
            data = data_pod.configure(
                preprocess(
                    experiment=data_set.experiment,
                    data_uri=data_set.data_uri,
                    storage_root_uri=storage_root_uri,
                    source=data_set.source,
                    options=data_options,
                    resources=data_resources,
                ),
                name="preprocess",
                uses_ray=True,
            )
            statistics = reference_pod(checked, image=image).configure(
                reference(
                    experiment=data_set.experiment,
                    takes_distances=data_set.takes_distances,
                    data_uri=data.outputs["data_uri"],
                    data_digest=data.outputs["digest"],
                    storage_root_uri=storage_root_uri,
                    resources=evaluate_resources,
                ),
                name="reference",
                cached=True,
                uses_ray=True,
            )
        plan = small.configure(
            plan_ablation(
                data_uri=data_uri,
                storage_root_uri=storage_root_uri,
                tracking_experiment=tracking_experiment,
                pipeline_run_id=run_id,
                **ablation,
            ),
            name="plan",
        )
        plan.after(statistics)
        with dsl.ParallelFor(plan.output, parallelism=parallel_trials(), name="trials") as trial:
            trained = train_pod.configure(
                train_trial(
                    item=trial,
                    storage_root_uri=storage_root_uri,
                    tracking_experiment=tracking_experiment,
                    pipeline_run_id=run_id,
                    resources=train_resources,
                ),
                name="train",
                uses_ray=True,
            )
            measured = evaluate_pod.configure(
                measure_trial(
                    item=trial,
                    run_uri=trained.output,
                    pipeline_run_id=run_id,
                    resources=evaluate_resources,
                ),
                name="measure",
                uses_ray=True,
            )
        joint = evaluate_pod.configure(joint_measure(items=plan.output, resources=evaluate_resources), name="joint", uses_ray=True)
        joint.after(measured)
    return table.outputs["Output"]  # type: ignore[no-any-return]


PIPELINE = ablation_pipeline
LITERALS = {
    "ablation_name": (*ablations.names(), *REPRODUCTIONS, OWN_GRID),
    "ablation_scale": SCALES,
    "experiment_objective": OBJECTIVES,
    "experiment_preset": (DEFAULT_PRESET, *presets.names()),
}
