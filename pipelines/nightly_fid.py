"""The nightly pipeline: score a model again, and fail loudly if it has become worse.

    resolve -> score (never cached) -> compare with its history

For a schedule in the KFP UI: cron has six fields there, seconds first ("0 0 2 * * *" is every night at two). Its steps write
to the model's finished MLflow run and open none, so there is none to close in the end. A webhook is told of a regression, and
of a model that can't be evaluated, where the secret WEBHOOK_SECRET holds its address; see k8s/README.md.
"""

from typing import Any

from kfp import dsl, kubernetes

from components.compare_with_history import compare_with_history
from components.container.image import BASE_IMAGE
from components.launch.modes import RAY_MODES
from components.resolve_model import resolve_model
from components.score_model import score_model
from components.steps.webhook import URL_VARIABLE
from pipelines.pods import RUN_CONFIG, SHORT, Nodes, Pod

WEBHOOK_SECRET = "iddpm-webhook"
"""Optional secret whose key `url` is the webhook's address."""


@dsl.pipeline(
    name="iddpm-nightly-fid",
    display_name="iDDPM: nightly FID",
    description="Scores a registered model anew and compares the score with the model's history; a regression fails the run.",
    pipeline_config=RUN_CONFIG,
)
def nightly_pipeline(
    cluster_gpu_node_selector: dict[str, Any] = {},  # noqa: B006 - KFP wants literals
    cluster_gpu_tolerations: list[dict[str, Any]] = [],  # noqa: B006
    cluster_gpu_type: str = "nvidia.com/gpu",
    cluster_image: str = BASE_IMAGE,
    cluster_queue: str = "",
    model: str = "models:/digits-hybrid-cosine@champion",
    score_cpu: str = "2",
    score_gpus: str = "0",
    score_memory: str = "4Gi",
    score_num_gpus_per_worker: int = 0,
    score_num_workers: int = 1,
    score_ray_address: str = "",
    score_ray_mode: str = "local",
    score_rayjob_options: dict[str, Any] = {},  # noqa: B006
    storage_root_uri: str = "s3://iddpm",
    threshold_difference: float = 0.0,
    threshold_standard_errors: float = 4.0,
) -> str:
    """Checks a model.

    Args:
        cluster_gpu_node_selector: Labels of the nodes for the score step, also on a Ray cluster made for it, a JSON object.
        cluster_gpu_tolerations: Taints that the step and that cluster's workers bear, a JSON list like a pod's tolerations.
        cluster_gpu_type: The name under which the cluster counts GPUs.
        cluster_image: What all steps run; a digest, or a tag that is never written twice.
        cluster_queue: Kueue's local queue for a Ray cluster that is made; empty asks none.
        model: Which model (models:/NAME@ALIAS, a run's directory, or a checkpoint's directory inside a run's).
        score_cpu: Cores of the score step.
        score_gpus: GPUs of the score step.
        score_memory: Memory of the score step.
        score_num_gpus_per_worker: 1 evaluates on GPUs, 0 on processors.
        score_num_workers: Processes that draw samples at once.
        score_ray_address: With address, that cluster's dashboard, like http://HEAD:8265.
        score_ray_mode: Where Ray runs for the score step (local is its own pod, rayjob a cluster that KubeRay makes, address one that
            stands).
        score_rayjob_options: With rayjob, what the cluster should be, as k8s/README.md says.
        storage_root_uri: Where reference statistics are kept, and what was told of a failure.
        threshold_difference: What is too little to matter, in units of the distance.
        threshold_standard_errors: How far above the median of its history a score may lie, in standard deviations.

    Returns:
        The verdict in one sentence.
    """
    gpu_nodes = Nodes(gpu_type=cluster_gpu_type, selector=cluster_gpu_node_selector, tolerations=cluster_gpu_tolerations)
    small_pod = Pod(image=cluster_image, cpu="500m", memory="2Gi", timeout_seconds=SHORT)
    score_pod = Pod(image=cluster_image, cpu=score_cpu, memory=score_memory, gpus=score_gpus, nodes=gpu_nodes)

    # Each run draws samples of its own; a step of it that is tried again draws the same.
    found = small_pod.hold(
        resolve_model(model=model, storage_root_uri=storage_root_uri, pipeline_run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER), name="resolve"
    )
    scored = score_pod.hold(
        score_model(
            checkpoint_uri=found.outputs["checkpoint_uri"],
            weights=found.outputs["weights"],
            data_uri=found.outputs["data_uri"],
            storage_root_uri=storage_root_uri,
            pipeline_run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            num_workers=score_num_workers,
            num_gpus_per_worker=score_num_gpus_per_worker,
            ray_mode=score_ray_mode,
            ray_address=score_ray_address,
            ray_queue=cluster_queue,
            rayjob_options=score_rayjob_options,
        ),
        name="score",
        uses_ray=True,
    )
    verdict = small_pod.hold(
        compare_with_history(
            evaluation_uri=scored.outputs["Output"],
            tracking_run_id=found.outputs["tracking_run_id"],
            num_standard_errors=threshold_standard_errors,
            min_difference=threshold_difference,
        ),
        name="compare",
    )
    for task in (found, scored, verdict):
        kubernetes.use_secret_as_env(task, WEBHOOK_SECRET, {"url": URL_VARIABLE}, optional=True)
    return verdict.outputs["Output"]  # type: ignore[no-any-return]


PIPELINE = nightly_pipeline
LITERALS = {"score_ray_mode": RAY_MODES}
