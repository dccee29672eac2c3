"""The train pipeline: images in, a trained, scored and reported model out.

    preprocess -> reference -> train (scored beside training, stops early) -> evaluate -> report

Steps hand each other URIs, since KFP would download every artifact that is a step's input. The UI sorts parameters by
name and shows nothing else of them, so their names begin with what they are about.
"""

from typing import Any

from kfp import dsl

from components.evaluate import evaluate
from components.preprocess import preprocess
from components.ray_modes import RAY_MODES
from components.reference import reference
from components.report import report
from components.train import train
from pipelines.resources import place
from training import presets


@dsl.pipeline(
    name="iddpm-train",
    display_name="iDDPM: train",
    description="Prepares the images, trains one experiment with early stopping, evaluates the best checkpoint and reports it.",
)
def train_pipeline(
    experiment_preset: str = "digits-hybrid-cosine",
    experiment_overrides: list[str] = [],  # noqa: B006 - KFP wants a literal
    data_uri: str = "",
    data_source: str = "",
    data_labels: str = "auto",
    data_num_test: int = 0,
    data_num_workers: int = 1,
    data_on_error: str = "fail",
    data_max_errors: int = 100,
    data_allow_upscale: bool = False,
    data_reduced_decode: bool = False,
    data_max_pixels: int = 89478485,
    data_other_sizes: list[int] = [],  # noqa: B006
    data_cpu: str = "2",
    data_memory: str = "4Gi",
    train_num_workers: int = 2,
    train_num_gpus_per_worker: int = 0,
    train_microbatch_size: int = 0,
    train_precision: str = "fp32",
    train_use_compile: bool = False,
    train_ray_mode: str = "local",
    train_ray_address: str = "",
    train_rayjob_options: dict[str, Any] = {},  # noqa: B006 - KFP wants a literal
    train_cpu: str = "4",
    train_memory: str = "8Gi",
    train_gpus: int = 0,
    evaluate_cpu: str = "2",
    evaluate_memory: str = "4Gi",
    storage_root_uri: str = "s3://iddpm",
    tracking_experiment: str = "iddpm",
) -> str:
    """Trains one experiment and reports it.

    Args:
        experiment_preset: Which experiment; `iddpm presets` lists them and `iddpm show` prints one.
        experiment_overrides: What to change in it, a JSON list like ["optim.num_steps=4000", "model.dropout=0.1"].
        data_uri: The data set's directory; empty puts it under storage_root_uri, named by name, size and resize.
        data_source: Where the images come from; empty is the data set's own name.
        data_labels: Where labels come from (auto, none, folders, filename, or the address of a CSV or JSON file).
        data_num_test: Test images to hold out of a source that has no test split.
        data_num_workers: Ray tasks that prepare images at once.
        data_on_error: What an unreadable image does (fail or skip).
        data_max_errors: With skip, how many images may be left out.
        data_allow_upscale: Whether to enlarge images that are too small.
        data_reduced_decode: Whether to decode large JPEGs at reduced size, faster and less exact.
        data_max_pixels: Width times height above which an image is refused as a decompression bomb.
        data_other_sizes: Further image sizes to make from the same decoding, for the other models of a cascade, a JSON list.
        data_cpu: Cores of the preprocess and reference steps.
        data_memory: Memory of the preprocess and reference steps.
        train_num_workers: Data-parallel training processes.
        train_num_gpus_per_worker: 1 trains on GPUs, 0 on processors.
        train_microbatch_size: Images that a worker passes through the network at once; 0 takes its whole share.
        train_precision: Of the network in training (fp32, or bf16 for GPUs).
        train_use_compile: Whether to pass the network through torch.compile.
        train_ray_mode: Where Ray runs (local is the train step's own pod, rayjob a cluster that KubeRay makes for the run, address one
            that stands).
        train_ray_address: With address, where that cluster is.
        train_rayjob_options: With rayjob, what the cluster should be, as k8s/README.md says.
        train_cpu: Cores of the train step.
        train_memory: Memory of the train step.
        train_gpus: GPUs of the train step.
        evaluate_cpu: Cores of the evaluate and report steps.
        evaluate_memory: Memory of the evaluate and report steps.
        storage_root_uri: Where data sets, runs and reports are kept.
        tracking_experiment: MLflow's experiment.

    Returns:
        URI of the run's directory.
    """
    data = place(
        preprocess(
            data_uri=data_uri,
            storage_root_uri=storage_root_uri,
            experiment_preset=experiment_preset,
            experiment_overrides=experiment_overrides,
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
        ),
        cpu=data_cpu,
        memory=data_memory,
    )
    statistics = place(
        reference(
            experiment_preset=experiment_preset,
            experiment_overrides=experiment_overrides,
            data_uri=data.outputs["Output"],
            storage_root_uri=storage_root_uri,
        ),
        cpu=data_cpu,
        memory=data_memory,
    )
    trained = place(
        train(
            experiment_preset=experiment_preset,
            experiment_overrides=experiment_overrides,
            data_uri=data.outputs["Output"],
            reference_uri=statistics.output,
            storage_root_uri=storage_root_uri,
            tracking_experiment=tracking_experiment,
            num_workers=train_num_workers,
            num_gpus_per_worker=train_num_gpus_per_worker,
            microbatch_size=train_microbatch_size,
            precision=train_precision,
            use_compile=train_use_compile,
            ray_mode=train_ray_mode,
            ray_address=train_ray_address,
            rayjob_options=train_rayjob_options,
        ),
        cpu=train_cpu,
        memory=train_memory,
        shared_memory="2Gi",
    )
    trained.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(train_gpus)
    scored = place(
        evaluate(run_uri=trained.output, data_uri=data.outputs["Output"], reference_uri=statistics.output),
        cpu=evaluate_cpu,
        memory=evaluate_memory,
    )
    place(
        report(run_uri=trained.output, evaluation_uri=scored.outputs["Output"]),
        cpu=evaluate_cpu,
        memory=evaluate_memory,
    )
    return trained.output  # type: ignore[no-any-return]


PIPELINE = train_pipeline
LITERALS = {
    "experiment_preset": presets.names(),
    "data_on_error": ("fail", "skip"),
    "train_precision": ("fp32", "bf16"),
    "train_ray_mode": RAY_MODES,
}
