"""Training on a Ray cluster of its own: what the small pod of the train step does when Ray's mode is "rayjob".

The launcher reads from its own pod what the cluster's pods must share with it: the image, and the Workflow that owns
them. What to train goes through a file in the run's directory, so that no shell stands between the two.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from typing import Any

from components.kubernetes_api import KubernetesApi, KubernetesError, current_namespace
from components.rayjob import DEFAULT_PACE, Pace, RayJobError, run_rayjob
from components.rayjob_spec import Owner, PodShape, RayJob, RayJobSpecError
from components.training_run import RESULT, require_data_fits
from training import storage
from training.config import Resources, run_key
from training.presets import preset
from training.progress import say

ARGUMENTS = "rayjob-arguments.json"
_HANDED_ON = ("MLFLOW_RUN_ID",)
"""Of the launcher's environment, for the driver: the MLflow run that KFP made for this step, which becomes the parent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RayJobOptions:
    """What a user may say about the Ray cluster of a run.

    Attributes:
        worker_cpu: Cores of each worker pod; one more than its training processes at least, for the scores beside them.
        worker_memory: Memory of each worker pod.
        workers_per_pod: Training processes in one pod; with GPUs, as many as a node has let them talk fastest.
        head_cpu: Cores of the head.
        head_memory: Memory of the head.
        gpu_resource: The name under which the cluster counts GPUs.
        node_selector: Labels of the nodes that workers run on.
        tolerations: Taints of nodes that workers bear.
        queue_name: Kueue's local queue; empty asks none.
        active_deadline_seconds: After this the job is ended; the same command resumes it.
        pre_running_deadline_seconds: How long its pods may take to come up.
        service_account: Of the cluster's pods.
        image: What they run; empty takes the launcher's own.
        image_pull_secrets: Names of Secrets for the image's registry.
        scratch_size: Limit of /tmp in each pod.
    """

    worker_cpu: str = "4"
    worker_memory: str = "16Gi"
    workers_per_pod: int = 1
    head_cpu: str = "2"
    head_memory: str = "8Gi"
    gpu_resource: str = "nvidia.com/gpu"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    queue_name: str = ""
    active_deadline_seconds: int = 48 * 3600
    pre_running_deadline_seconds: int = 3600
    service_account: str = "iddpm-ray"
    image: str = ""
    image_pull_secrets: Sequence[str] = ()
    scratch_size: str = "50Gi"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RayJobOptions:
        """The options of these names.

        Raises:
            RayJobSpecError: A name is unknown.
        """
        known = [item.name for item in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise RayJobSpecError(f"unknown RayJob option(s) {', '.join(unknown)}; there are {', '.join(known)}")
        return cls(**values)


def train_on_rayjob(arguments: Mapping[str, Any], options: RayJobOptions, *, pace: Pace = DEFAULT_PACE) -> str:
    """Trains an experiment on a Ray cluster of its own, goes on with it, or finds it done.

    Args:
        arguments: Those of `components.training_run.train_run`, by name, without `ray_address`.
        options: The cluster.
        pace: How often to look.

    Returns:
        The run's directory, as `train_run`.

    Raises:
        ConfigError: The preset, an override or the data set does not fit.
        RayJobSpecError: The cluster that was asked for cannot be.
        RayJobError: The run did not end well.
        KubernetesError: The API refuses, or is away for too long.
        SystemExit: SIGTERM; the RayJob is deleted.
    """
    from training.data.shards import read_manifest

    experiment = preset(arguments["experiment_preset"], arguments["experiment_overrides"])
    manifest = read_manifest(storage.join(arguments["data_uri"], "train"))
    require_data_fits(experiment, manifest)
    key = run_key(experiment, manifest.content_digest)
    run_uri = storage.join(arguments["storage_root_uri"], "runs", key)
    result_uri = storage.join(run_uri, RESULT)
    if storage.exists(result_uri):
        say(f"run {key} is already trained to step {storage.read_json(result_uri)['step']:,}; nothing to do")
        return run_uri
    api = KubernetesApi(current_namespace())
    job = rayjob_for(key, run_uri, Resources.from_dict(arguments["resources"]), options, launcher=_own_pod(api), namespace=api.namespace)
    storage.write_json(storage.join(run_uri, ARGUMENTS), dict(arguments))
    run_rayjob(job, api, is_done=lambda: storage.exists(result_uri), pace=pace)
    if not storage.exists(result_uri):
        raise RayJobError(f"RayJob {job.name} succeeded but {result_uri} is not there; do its pods write to the same S3 as this step?")
    say(f"run {key} is trained to step {storage.read_json(result_uri)['step']:,}")
    return run_uri


def rayjob_for(
    key: str, run_uri: str, resources: Resources, options: RayJobOptions, *, launcher: Mapping[str, Any] | None, namespace: str
) -> RayJob:
    """The RayJob of a run.

    Args:
        key: The run's key.
        run_uri: The run's directory.
        resources: Workers and their GPUs.
        options: The cluster.
        launcher: The launcher's own pod, where it runs in one.
        namespace: Where.

    Raises:
        RayJobSpecError: The options do not go together.
    """
    if options.workers_per_pod < 1 or resources.num_workers % options.workers_per_pod:
        raise RayJobSpecError(f"workers_per_pod ({options.workers_per_pod}) must divide the {resources.num_workers} training workers")
    worker = PodShape(
        cpu=options.worker_cpu,
        memory=options.worker_memory,
        num_gpus=options.workers_per_pod * resources.num_gpus_per_worker,
        gpu_resource=options.gpu_resource,
        node_selector=options.node_selector,
        tolerations=options.tolerations,
    )
    if math.floor(worker.num_cores) < options.workers_per_pod + 1:
        raise RayJobSpecError(
            f"worker_cpu is {options.worker_cpu!r}; a pod needs a whole core for each of its {options.workers_per_pod} training "
            "process(es) and one more, in which checkpoints are scored beside training"
        )
    image = options.image or _image_of(launcher)
    if not image:
        raise RayJobSpecError("no image is known for the Ray cluster; outside a pod, name one with the option image")
    return RayJob(
        run_key=key,
        run_uri=run_uri,
        entrypoint=("python", "-m", "components.rayjob_driver", storage.join(run_uri, ARGUMENTS)),
        namespace=namespace,
        image=image,
        ray_version=version("ray"),
        worker=worker,
        num_worker_pods=resources.num_workers // options.workers_per_pod,
        head=PodShape(cpu=options.head_cpu, memory=options.head_memory),
        queue_name=options.queue_name,
        active_deadline_seconds=options.active_deadline_seconds,
        pre_running_deadline_seconds=options.pre_running_deadline_seconds,
        service_account=options.service_account,
        image_pull_secrets=options.image_pull_secrets,
        scratch_size=options.scratch_size,
        head_env={name: os.environ[name] for name in _HANDED_ON if name in os.environ},
        owner=workflow_of(launcher),
    )


def workflow_of(pod: Mapping[str, Any] | None) -> Owner | None:
    """The Workflow that owns a pod: it outlives the pod's retries, and what it owns goes when the pipeline's run goes."""
    for reference in (pod or {}).get("metadata", {}).get("ownerReferences") or ():
        if reference["kind"] == "Workflow":
            return Owner(api_version=reference["apiVersion"], kind="Workflow", name=reference["name"], uid=reference["uid"])
    return None


def _image_of(pod: Mapping[str, Any] | None) -> str:
    containers = (pod or {}).get("spec", {}).get("containers") or ()
    return next((str(container["image"]) for container in containers if container["name"] == "main"), "")


def _own_pod(api: KubernetesApi) -> dict[str, Any] | None:
    """The pod that this process runs in, by the names that KFP gives it; None outside KFP."""
    name, uid = os.environ.get("KFP_POD_NAME", ""), os.environ.get("KFP_POD_UID", "")
    if not name:
        return None
    pod = api.pod(name)
    if pod is None or (uid and pod["metadata"]["uid"] != uid):
        raise KubernetesError(f"pod {name}, which KFP says is this one, is not in namespace {api.namespace}")
    return pod
