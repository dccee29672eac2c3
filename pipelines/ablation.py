"""The ablation pipeline: experiments compared, as the paper compares them or as one's own grid says, and one report.

    list data -> for each data set (preprocess -> reference) -> plan -> for each trial at once (train or reuse -> measure)
    -> joint measurement, and in the end, however it came: table

A failed trial is named in the report, takes no other down, and is all that runs again when the pipeline does. (KFP marks
the run as failed then, which it is.) The report is the pipeline's exit task: KFP runs a step that only ignores failures as
soon as the first of the steps that it waits for has ended, and never after a loop.
"""

import os
from collections.abc import Mapping
from typing import Any

from kfp import dsl

from components.container.image import BASE_IMAGE
from components.joint_measure import joint_measure
from components.launch.modes import RAY_MODES
from components.list_data import list_data
from components.measure_trial import measure_trial
from components.plan_ablation import plan_ablation
from components.preprocess import preprocess
from components.reference import reference
from components.tabulate_ablation import tabulate_ablation
from components.train_trial import train_trial
from evaluation.ablations.definitions import paper as ablations
from evaluation.ablations.definitions.ablation import SCALES
from evaluation.ablations.definitions.request import DEFAULT_PRESET, OBJECTIVES, OWN_GRID
from pipelines.compile_checks import CompileError
from pipelines.pods import RUN_CONFIG, SHORT, Nodes, Pod
from training.config import presets


def parallel_trials(environment: Mapping[str, str] = os.environ) -> int:
    """Trials at once. KFP takes a number for it and no parameter, so it is the compiling environment's, as the image is.

    Raises:
        CompileError: It is not a number.
    """
    word = environment.get("IDDPM_PARALLEL_TRIALS", "4")
    if not word.isdecimal() or int(word) < 1:
        raise CompileError(f"IDDPM_PARALLEL_TRIALS says how many trials of an ablation run at once, a number from 1; got {word!r}")
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
    ablation_runs: dict[str, Any] = {},  # noqa: B006
    ablation_scale: str = "tiny",
    cluster_gpu_node_selector: dict[str, Any] = {},  # noqa: B006
    cluster_gpu_tolerations: list[dict[str, Any]] = [],  # noqa: B006
    cluster_gpu_type: str = "nvidia.com/gpu",
    cluster_image: str = BASE_IMAGE,
    cluster_queue: str = "",
    data_allow_upscale: bool = False,
    data_cpu: str = "2",
    data_labels: str = "auto",
    data_max_errors: int = 100,
    data_max_pixels: int = 89478485,
    data_memory: str = "4Gi",
    data_num_test: int = 0,
    data_num_workers: int = 1,
    data_on_error: str = "fail",
    data_other_sizes: list[int] = [],  # noqa: B006
    data_ray_address: str = "",
    data_ray_mode: str = "local",
    data_rayjob_options: dict[str, Any] = {},  # noqa: B006
    data_reduced_decode: bool = False,
    data_sources: dict[str, Any] = {},  # noqa: B006
    data_uri: str = "",
    evaluate_cpu: str = "2",
    evaluate_gpus: str = "0",
    evaluate_memory: str = "4Gi",
    evaluate_num_gpus_per_worker: int = 0,
    evaluate_num_workers: int = 1,
    evaluate_ray_address: str = "",
    evaluate_ray_mode: str = "local",
    evaluate_rayjob_options: dict[str, Any] = {},  # noqa: B006
    experiment_objective: str = "as named",
    experiment_overrides: list[str] = [],  # noqa: B006
    experiment_preset: str = "as named",
    storage_root_uri: str = "s3://iddpm",
    tracking_experiment: str = "iddpm",
    train_cache_dir: str = "",
    train_cpu: str = "4",
    train_gpus: str = "0",
    train_memory: str = "8Gi",
    train_microbatch_size: int = 0,
    train_min_workers: int = 0,
    train_num_gpus_per_worker: int = 0,
    train_num_workers: int = 1,
    train_precision: str = "fp32",
    train_ray_address: str = "",
    train_ray_mode: str = "local",
    train_rayjob_options: dict[str, Any] = {},  # noqa: B006
    train_resident_data: bool = False,
    train_use_compile: bool = False,
) -> str:
    """Runs an ablation.

    Args:
        ablation_grid: With own-grid, a JSON object of its axes, like {"diffusion.vlb_weight": [0.001, 0.01]}.
        ablation_name: Which table or figure of the paper, or own-grid.
        ablation_runs: For an ablation that trains nothing, a JSON object of the runs or checkpoints that it looks at, by role.
        ablation_scale: The paper's own experiments (paper), or the same grid on handwritten digits (tiny).
        cluster_gpu_node_selector: Labels of the nodes for training and evaluation, also on a Ray cluster made for them, a JSON object.
        cluster_gpu_tolerations: Taints that those steps and that cluster's workers bear, a JSON list like a pod's tolerations.
        cluster_gpu_type: The name under which the cluster counts GPUs.
        cluster_image: What all steps run; a digest, or a tag that is never written twice.
        cluster_queue: Kueue's local queue for Ray clusters that are made; empty asks none.
        data_allow_upscale: Whether to enlarge images that are too small.
        data_cpu: Cores of the preprocess step, and of those that only plan.
        data_labels: Where labels come from (auto, none, folders, filename, or the address of a CSV or JSON file).
        data_max_errors: With skip, how many images may be left out.
        data_max_pixels: Width times height above which an image is refused as a decompression bomb.
        data_memory: Memory of the preprocess step, and of those that only plan.
        data_num_test: Test images to hold out of a source that has no test split.
        data_num_workers: Ray tasks that prepare images at once.
        data_on_error: What an unreadable image does (fail or skip).
        data_other_sizes: Further image sizes to make from the same decoding, for the other models of a cascade, a JSON list.
        data_ray_address: With address, where that cluster is.
        data_ray_mode: Where Ray runs for the preprocess step (local is its own pod, rayjob a cluster that KubeRay makes, address one
            that stands).
        data_rayjob_options: With rayjob, what the cluster should be, as k8s/README.md says.
        data_reduced_decode: Whether to decode large JPEGs at reduced size, faster and less exact.
        data_sources: Where the images of a data set come from, a JSON object by its name; those left out, from their name.
        data_uri: Directory of the data set, for an ablation of a single one; empty puts each under storage_root_uri.
        evaluate_cpu: Cores of a trial's measure step, of the reference step and of the table.
        evaluate_gpus: GPUs of a trial's measure step and of the reference step.
        evaluate_memory: Memory of a trial's measure step, of the reference step and of the table.
        evaluate_num_gpus_per_worker: 1 evaluates on GPUs, 0 on processors.
        evaluate_num_workers: Processes that draw samples at once.
        evaluate_ray_address: With address, where that cluster is.
        evaluate_ray_mode: Where Ray runs for the reference and measure steps.
        evaluate_rayjob_options: With rayjob, what the cluster should be.
        experiment_objective: By which objective every trial is trained.
        experiment_overrides: What to change in every trial, a JSON list like ["optim.num_steps=4000"].
        experiment_preset: Another experiment to vary; an own-grid needs one. `iddpm presets` lists them.
        storage_root_uri: Where data sets, runs and reports are kept.
        tracking_experiment: MLflow's experiment.
        train_cache_dir: Where data is staged on a node's disk; empty is a temporary directory.
        train_cpu: Cores of a trial's train step.
        train_gpus: GPUs of a trial's train step.
        train_memory: Memory of a trial's train step.
        train_microbatch_size: Images that a worker passes through the network at once; 0 takes its whole share.
        train_min_workers: With as few training processes as this a run goes on where machines are lost; 0 insists on train_num_workers.
        train_num_gpus_per_worker: 1 trains on GPUs, 0 on processors.
        train_num_workers: Data-parallel training processes of a trial.
        train_precision: Of the network in training (fp32, or bf16 for GPUs).
        train_ray_address: With address, where that cluster is.
        train_ray_mode: Where Ray runs for the train step.
        train_rayjob_options: With rayjob, what a trial's cluster should be.
        train_resident_data: Whether to keep the whole data set in each training device's memory.
        train_use_compile: Whether to pass the network through torch.compile.

    Returns:
        URI of the report.
    """
    gpu_nodes = Nodes(gpu_type=cluster_gpu_type, selector=cluster_gpu_node_selector, tolerations=cluster_gpu_tolerations)
    data_pod = Pod(image=cluster_image, cpu=data_cpu, memory=data_memory)
    plan_pod = Pod(image=cluster_image, cpu=data_cpu, memory=data_memory, timeout_seconds=SHORT)
    train_pod = Pod(image=cluster_image, cpu=train_cpu, memory=train_memory, gpus=train_gpus, nodes=gpu_nodes)
    evaluate_pod = Pod(image=cluster_image, cpu=evaluate_cpu, memory=evaluate_memory, gpus=evaluate_gpus, nodes=gpu_nodes)
    table_pod = Pod(image=cluster_image, cpu=evaluate_cpu, memory=evaluate_memory, timeout_seconds=SHORT)
    evaluate_ray = {
        "ray_mode": evaluate_ray_mode,
        "ray_address": evaluate_ray_address,
        "ray_queue": cluster_queue,
        "rayjob_options": evaluate_rayjob_options,
    }

    asked = {
        "ablation_name": ablation_name,
        "ablation_scale": ablation_scale,
        "ablation_grid": ablation_grid,
        "ablation_runs": ablation_runs,
        "experiment_preset": experiment_preset,
        "experiment_objective": experiment_objective,
        "experiment_overrides": experiment_overrides,
    }

    table = table_pod.hold(
        tabulate_ablation(
            pipeline_run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            storage_root_uri=storage_root_uri,
            **asked,
        ),
        name="table",
    )
    with dsl.ExitHandler(table, name="ablation"):
        listed = plan_pod.hold(
            list_data(data_uri=data_uri, data_sources=data_sources, storage_root_uri=storage_root_uri, **asked), name="list data"
        )
        with dsl.ParallelFor(listed.output, name="data-sets") as data_set:
            data = data_pod.hold(
                preprocess(
                    experiment_preset=data_set.experiment_preset,
                    experiment_overrides=data_set.overrides,
                    data_uri=data_set.data_uri,
                    storage_root_uri=storage_root_uri,
                    source=data_set.source,
                    labels=data_labels,
                    num_test=data_num_test,
                    num_workers=data_num_workers,
                    on_error=data_on_error,
                    max_errors=data_max_errors,
                    allow_upscale=data_allow_upscale,
                    reduced_decode=data_reduced_decode,
                    max_pixels=data_max_pixels,
                    other_sizes=data_other_sizes,
                    ray_mode=data_ray_mode,
                    ray_address=data_ray_address,
                    ray_queue=cluster_queue,
                    rayjob_options=data_rayjob_options,
                ),
                name="preprocess",
                uses_ray=True,
            )
            statistics = evaluate_pod.hold(
                reference(
                    experiment_preset=data_set.experiment_preset,
                    experiment_overrides=data_set.overrides,
                    takes_distances=data_set.takes_distances,
                    data_uri=data.outputs["data_uri"],
                    data_digest=data.outputs["digest"],
                    storage_root_uri=storage_root_uri,
                    num_gpus_per_worker=evaluate_num_gpus_per_worker,
                    **evaluate_ray,
                ),
                name="reference",
                cached=True,
                uses_ray=True,
            )
        plan = plan_pod.hold(
            plan_ablation(
                data_uri=data_uri,
                storage_root_uri=storage_root_uri,
                tracking_experiment=tracking_experiment,
                pipeline_run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
                **asked,
            ),
            name="plan",
        )
        plan.after(statistics)
        with dsl.ParallelFor(plan.output, parallelism=parallel_trials(), name="trials") as trial:
            trained = train_pod.hold(
                train_trial(
                    item=trial,
                    storage_root_uri=storage_root_uri,
                    tracking_experiment=tracking_experiment,
                    pipeline_run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
                    num_workers=train_num_workers,
                    min_workers=train_min_workers,
                    num_gpus_per_worker=train_num_gpus_per_worker,
                    microbatch_size=train_microbatch_size,
                    precision=train_precision,
                    use_compile=train_use_compile,
                    cache_dir=train_cache_dir,
                    resident_data=train_resident_data,
                    ray_mode=train_ray_mode,
                    ray_address=train_ray_address,
                    ray_queue=cluster_queue,
                    rayjob_options=train_rayjob_options,
                ),
                name="train",
                uses_ray=True,
            )
            measured = evaluate_pod.hold(
                measure_trial(
                    item=trial,
                    run_uri=trained.output,
                    pipeline_run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
                    num_workers=evaluate_num_workers,
                    num_gpus_per_worker=evaluate_num_gpus_per_worker,
                    **evaluate_ray,
                ),
                name="measure",
                uses_ray=True,
            )
        joint = evaluate_pod.hold(
            joint_measure(
                storage_root_uri=storage_root_uri,
                num_workers=evaluate_num_workers,
                num_gpus_per_worker=evaluate_num_gpus_per_worker,
                **evaluate_ray,
                **asked,
            ),
            name="joint",
            uses_ray=True,
        )
        joint.after(measured)
    return table.outputs["Output"]  # type: ignore[no-any-return]


PIPELINE = ablation_pipeline
LITERALS = {
    "ablation_name": (*ablations.names(), OWN_GRID),
    "ablation_scale": SCALES,
    "data_on_error": ("fail", "skip"),
    "data_ray_mode": RAY_MODES,
    "evaluate_ray_mode": RAY_MODES,
    "experiment_objective": OBJECTIVES,
    "experiment_preset": (DEFAULT_PRESET, *presets.names()),
    "train_precision": ("fp32", "bf16"),
    "train_ray_mode": RAY_MODES,
}
