"""The train pipeline: images in, a trained, scored and reported model out.

    preprocess -> reference -> train (scored beside training, stops early) -> evaluate -> report, and in the end, however
    it came: close run

Steps hand each other URIs, since KFP would download every artifact that is a step's input. The UI sorts parameters by
name and shows nothing else of them, so their names begin with what they are about.
"""

from typing import Any

from kfp import dsl

from components.close_run import close_run
from components.container.image import BASE_IMAGE
from components.evaluate import evaluate
from components.launch.modes import RAY_MODES
from components.preprocess import preprocess
from components.reference import reference
from components.report import report
from components.train import train
from pipelines.pods import RUN_CONFIG, SHORT, Nodes, Pod
from training.config import presets


@dsl.pipeline(
    name="iddpm-train",
    display_name="iDDPM: train",
    description="Prepares the images, trains one experiment with early stopping, evaluates the best checkpoint and reports it.",
    pipeline_config=RUN_CONFIG,
)
def train_pipeline(
    cluster_gpu_node_selector: dict[str, Any] = {},  # noqa: B006 - KFP wants literals
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
    data_source: str = "",
    data_uri: str = "",
    evaluate_cpu: str = "2",
    evaluate_gpus: str = "0",
    evaluate_memory: str = "4Gi",
    evaluate_num_gpus_per_worker: int = 0,
    evaluate_num_workers: int = 1,
    evaluate_ray_address: str = "",
    evaluate_ray_mode: str = "local",
    evaluate_rayjob_options: dict[str, Any] = {},  # noqa: B006
    experiment_overrides: list[str] = [],  # noqa: B006
    experiment_preset: str = "digits-hybrid-cosine",
    storage_root_uri: str = "s3://iddpm",
    tracking_experiment: str = "iddpm",
    train_cache_dir: str = "",
    train_cpu: str = "4",
    train_gpus: str = "0",
    train_memory: str = "8Gi",
    train_microbatch_size: int = 0,
    train_min_workers: int = 0,
    train_num_gpus_per_worker: int = 0,
    train_num_workers: int = 2,
    train_precision: str = "fp32",
    train_ray_address: str = "",
    train_ray_mode: str = "local",
    train_rayjob_options: dict[str, Any] = {},  # noqa: B006
    train_resident_data: bool = False,
    train_use_compile: bool = False,
) -> str:
    """Trains one experiment and reports it.

    Args:
        cluster_gpu_node_selector: Labels of the nodes for training and evaluation, also on a Ray cluster made for them, a JSON object.
        cluster_gpu_tolerations: Taints that those steps and that cluster's workers bear, a JSON list like a pod's tolerations.
        cluster_gpu_type: The name under which the cluster counts GPUs.
        cluster_image: What all steps run; a digest, or a tag that is never written twice.
        cluster_queue: Kueue's local queue for Ray clusters that are made; empty asks none.
        data_allow_upscale: Whether to enlarge images that are too small.
        data_cpu: Cores of the preprocess step.
        data_labels: Where labels come from (auto, none, folders, filename, or the address of a CSV or JSON file).
        data_max_errors: With skip, how many images may be left out.
        data_max_pixels: Width times height above which an image is refused as a decompression bomb.
        data_memory: Memory of the preprocess step.
        data_num_test: Test images to hold out of a source that has no test split.
        data_num_workers: Ray tasks that prepare images at once.
        data_on_error: What an unreadable image does (fail or skip).
        data_other_sizes: Further image sizes to make from the same decoding, for the other models of a cascade, a JSON list.
        data_ray_address: With address, that cluster's dashboard, like http://HEAD:8265.
        data_ray_mode: Where Ray runs for the preprocess step (local is its own pod, rayjob a cluster that KubeRay makes, address one
            that stands).
        data_rayjob_options: With rayjob, what the cluster should be, as k8s/README.md says.
        data_reduced_decode: Whether to decode large JPEGs at reduced size, faster and less exact.
        data_source: Where the images come from; empty is the data set's own name.
        data_uri: The data set's directory; empty puts it under storage_root_uri, named by name, size and resize.
        evaluate_cpu: Cores of the reference, evaluate and report steps.
        evaluate_gpus: GPUs of the evaluate step and of the reference step.
        evaluate_memory: Memory of the reference, evaluate and report steps.
        evaluate_num_gpus_per_worker: 1 evaluates on GPUs, 0 on processors.
        evaluate_num_workers: Processes that draw samples at once.
        evaluate_ray_address: With address, that cluster's dashboard.
        evaluate_ray_mode: Where Ray runs for the reference and evaluate steps.
        evaluate_rayjob_options: With rayjob, what the cluster should be.
        experiment_overrides: What to change in it, a JSON list like ["optim.num_steps=4000", "model.dropout=0.1"].
        experiment_preset: Which experiment; `iddpm presets` lists them and `iddpm show` prints one.
        storage_root_uri: Where data sets, runs and reports are kept.
        tracking_experiment: MLflow's experiment.
        train_cache_dir: Where data is staged on a node's disk; empty is a temporary directory.
        train_cpu: Cores of the train step.
        train_gpus: GPUs of the train step.
        train_memory: Memory of the train step.
        train_microbatch_size: Images that a worker passes through the network at once; 0 takes its whole share.
        train_min_workers: With as few training processes as this a run goes on where machines are lost; 0 insists on train_num_workers.
        train_num_gpus_per_worker: 1 trains on GPUs, 0 on processors.
        train_num_workers: Data-parallel training processes.
        train_precision: Of the network in training (fp32, or bf16 for GPUs).
        train_ray_address: With address, that cluster's dashboard.
        train_ray_mode: Where Ray runs for the train step.
        train_rayjob_options: With rayjob, what the cluster should be.
        train_resident_data: Whether to keep the whole data set in each training device's memory.
        train_use_compile: Whether to pass the network through torch.compile.

    Returns:
        URI of the run's directory.
    """
    gpu_nodes = Nodes(gpu_type=cluster_gpu_type, selector=cluster_gpu_node_selector, tolerations=cluster_gpu_tolerations)
    data_pod = Pod(image=cluster_image, cpu=data_cpu, memory=data_memory)
    train_pod = Pod(image=cluster_image, cpu=train_cpu, memory=train_memory, gpus=train_gpus, nodes=gpu_nodes)
    evaluate_pod = Pod(image=cluster_image, cpu=evaluate_cpu, memory=evaluate_memory, gpus=evaluate_gpus, nodes=gpu_nodes)
    report_pod = Pod(image=cluster_image, cpu=evaluate_cpu, memory=evaluate_memory, timeout_seconds=SHORT)
    evaluate_ray = {
        "ray_mode": evaluate_ray_mode,
        "ray_address": evaluate_ray_address,
        "ray_queue": cluster_queue,
        "rayjob_options": evaluate_rayjob_options,
    }

    closed = Pod(image=cluster_image, cpu="500m", memory="2Gi", timeout_seconds=SHORT).hold(
        close_run(
            pipeline_run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            experiment_preset=experiment_preset,
            experiment_overrides=experiment_overrides,
            data_uri=data_uri,
            storage_root_uri=storage_root_uri,
        ),
        name="close run",
    )
    with dsl.ExitHandler(closed, name="run"):
        data = data_pod.hold(
            preprocess(
                experiment_preset=experiment_preset,
                experiment_overrides=experiment_overrides,
                data_uri=data_uri,
                storage_root_uri=storage_root_uri,
                source=data_source,
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
                experiment_preset=experiment_preset,
                experiment_overrides=experiment_overrides,
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
        trained = train_pod.hold(
            train(
                experiment_preset=experiment_preset,
                experiment_overrides=experiment_overrides,
                data_uri=data.outputs["data_uri"],
                reference_uri=statistics.output,
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
        scored = evaluate_pod.hold(
            evaluate(
                run_uri=trained.output,
                data_uri=data.outputs["data_uri"],
                reference_uri=statistics.output,
                num_workers=evaluate_num_workers,
                num_gpus_per_worker=evaluate_num_gpus_per_worker,
                **evaluate_ray,
            ),
            name="evaluate",
            uses_ray=True,
        )
        report_pod.hold(report(run_uri=trained.output, evaluation_uri=scored.outputs["Output"]), name="report")
    return closed.output  # type: ignore[no-any-return]


PIPELINE = train_pipeline
LITERALS = {
    "data_on_error": ("fail", "skip"),
    "data_ray_mode": RAY_MODES,
    "evaluate_ray_mode": RAY_MODES,
    "experiment_preset": presets.names(),
    "train_precision": ("fp32", "bf16"),
    "train_ray_mode": RAY_MODES,
}
