"""The resources of a pipeline's stage, in one text: its pods, the place where Ray runs, and how the work is spread.

The form's parameter (`train_resources`), the step, `iddpm submit` and `iddpm run` read the same text by `read_resources`. It is the
name of a profile, or a JSON object of what differs from one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple

from components.cluster.names import (
    CORES,
    GPU_RESOURCE,
    amount,
    require_annotations,
    require_env,
    require_labels,
    require_node_selector,
    require_object_name,
    require_quantity,
    require_tolerations,
    require_volumes,
)
from components.container.image import image_from
from training.config.errors import UserError
from training.config.experiment import Resources
from training.config.validation import read_json, validate

RayMode = Literal["local", "rayjob", "address"]
_TEXT_FROM_NUMBERS = {"extra": "forbid", "coerce_numbers_to_str": True}
_MAX_SECONDS = 2**31 - 1
"""KubeRay keeps a deadline in 32 bits."""
STAGES = ("data", "train", "evaluate")
MAP_ENTRY = re.compile(r"(node_selector|rayjob\.(?:labels|annotations|env))\.(.+)")
"""Path of a map's entry, whose value is text: the map, and the key."""
_GIB = 2**30
_MIN_BASE_BYTES, _MIN_WORKER_BYTES = _GIB, _GIB // 2
"""Least memory of a pod: for Python, torch and Ray's object store (at least 80 MB, and 30% of the memory), and for each worker."""


class PodSize(NamedTuple):
    """Size and nodes of a step's pod, as KFP takes them: numbers as text."""

    cpu: str
    memory: str
    gpus: str
    gpu_type: str
    node_selector: dict[str, str]
    tolerations: list[dict[str, Any]]


_LAUNCHER = PodSize("500m", "2Gi", "0", "nvidia.com/gpu", {}, [])
"""Pod of a step that hands its work to a Ray cluster and follows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RayJobOptions:
    """The Ray cluster that KubeRay makes for a step, beside the size of its workers.

    Attributes:
        workers_per_pod: Working processes in one pod. One for each GPU of a node is fastest: GPUs in one pod communicate directly.
        active_deadline_seconds: KubeRay ends the job after this time; the run goes on on a new one if it has a new checkpoint.
        pre_running_deadline_seconds: How long its pods may take to come up.
        service_account: Service account of the cluster's pods.
        image: Image of the cluster's pods; empty takes the step's.
        image_pull_policy: Pull policy of all containers; empty takes the step's.
        image_pull_secrets: Names of Secrets for the image's registry; empty takes the step's.
        scratch_size: Limit of /tmp in each pod, which has Ray's files and the staged data set.
        labels: More labels of the job and all its pods.
        annotations: More annotations of the job and all its pods.
        env: More environment of the head and the workers; no secrets, as everybody sees them in the job.
        volumes: More volumes of the head and the workers, as in a pod's specification.
        volume_mounts: Where these are mounted, as in a container's specification.
        affinity: Affinity of the workers, as in a pod's specification.
        runtime_class: Runtime class of the workers, like "nvidia".
        queue_priority_class: Kueue's priority class of the job; needs `queue`.
    """

    __pydantic_config__: ClassVar[Any] = _TEXT_FROM_NUMBERS

    workers_per_pod: int = 1
    head_cpu: str = "2"
    head_memory: str = "8Gi"
    active_deadline_seconds: int = 48 * 3600
    pre_running_deadline_seconds: int = 3600
    service_account: str = "iddpm-ray"
    image: str = ""
    image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""
    image_pull_secrets: tuple[str, ...] = ()
    scratch_size: str = "50Gi"
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    volumes: tuple[dict[str, Any], ...] = ()
    volume_mounts: tuple[dict[str, Any], ...] = ()
    affinity: dict[str, Any] = field(default_factory=dict)
    runtime_class: str = ""
    priority_class: str = ""
    queue_priority_class: str = ""

    def __post_init__(self) -> None:
        if self.workers_per_pod < 1:
            raise UserError(f"rayjob.workers_per_pod must be at least 1, got {self.workers_per_pod}")
        require_quantity("rayjob.head_cpu", self.head_cpu, form=CORES)
        for name in ("head_memory", "scratch_size"):
            require_quantity(f"rayjob.{name}", getattr(self, name))
        # 1.6 GiB are used at rest. In 2 GiB, Ray's memory monitor ended the controllers of trainings on a real cluster.
        if amount(self.head_memory) < 3 * _GIB:
            raise UserError(f"rayjob.head_memory {self.head_memory!r} is too little: Ray's head needs at least 3Gi")
        for name in ("active_deadline_seconds", "pre_running_deadline_seconds"):
            if not 1 <= getattr(self, name) <= _MAX_SECONDS:
                raise UserError(f"rayjob.{name} must be 1 to {_MAX_SECONDS}, got {getattr(self, name)}")
        for name in self.image_pull_secrets:
            require_object_name("rayjob.image_pull_secrets", name)
        require_object_name("rayjob.service_account", self.service_account)
        if self.image:
            image_from(self.image, variable="rayjob.image")
        for name in ("runtime_class", "priority_class", "queue_priority_class"):
            if getattr(self, name):
                require_object_name(f"rayjob.{name}", getattr(self, name))
        require_labels("rayjob.labels", self.labels)
        require_annotations("rayjob.annotations", self.annotations)
        require_env("rayjob.env", self.env)
        require_volumes(self.volumes, self.volume_mounts)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResources(Resources):
    """Resources of a stage. The fields of `Resources` describe the workers; these describe the pods and the place.

    Attributes:
        cpu: Cores of each pod that works, as Kubernetes reads them ("4", "1500m"). Requests are equal to limits.
        memory: Memory of each pod that works ("16Gi").
        gpus: GPUs of the step's own pod. None takes one for each worker with `ray_mode` local, and none otherwise.
        gpu_type: The name under which the cluster counts GPUs.
        node_selector: Labels of the nodes for the pods that work.
        tolerations: Tolerations of the pods that work, as in a pod's specification.
        ray_mode: Where Ray runs: "local" in the step's own pod, "rayjob" on a cluster that KubeRay makes, "address" on a standing one.
        ray_address: With "address", that cluster's dashboard, like http://HEAD:8265; on a node of the cluster also "auto".
        queue: With "rayjob", Kueue's local queue; empty uses none.
        rayjob: With "rayjob", the cluster; see `RayJobOptions`.
    """

    __pydantic_config__: ClassVar[Any] = _TEXT_FROM_NUMBERS

    cpu: str = "1"
    memory: str = "4Gi"
    gpus: int | None = None
    gpu_type: str = "nvidia.com/gpu"
    node_selector: dict[str, Any] = field(default_factory=dict)
    tolerations: tuple[Any, ...] = ()
    ray_mode: RayMode = "local"
    ray_address: str = ""
    queue: str = ""
    rayjob: RayJobOptions = field(default_factory=RayJobOptions)

    def __post_init__(self) -> None:
        Resources.__post_init__(self)  # super() does not work in a dataclass with slots
        require_quantity("cpu", self.cpu, form=CORES)
        require_quantity("memory", self.memory)
        if not GPU_RESOURCE.fullmatch(self.gpu_type):
            raise UserError(f"gpu_type {self.gpu_type!r} is not a resource name of GPUs; it reads like nvidia.com/gpu")
        require_node_selector(self.node_selector)
        require_tolerations(self.tolerations)
        if bool(self.ray_address) != (self.ray_mode == "address"):
            raise UserError(f"ray_address goes with ray_mode address and is needed there; got {self.ray_address!r} and {self.ray_mode}")
        if self.ray_mode != "rayjob" and (self.queue or self.rayjob != RayJobOptions()):
            raise UserError(f"queue and rayjob go with ray_mode rayjob; ray_mode is {self.ray_mode}")
        if self.queue:
            require_object_name("queue", self.queue)
        elif self.rayjob.queue_priority_class:
            raise UserError("rayjob.queue_priority_class is Kueue's and needs a queue; for pods without a queue, set rayjob.priority_class")
        self._require_gpus()
        self._require_room()

    def _require_gpus(self) -> None:
        if self.gpus is None:
            return
        if self.gpus < 0:
            raise UserError(f"gpus must be 0 or more, got {self.gpus}")
        if self.gpus and self.ray_mode != "local":
            raise UserError(
                f"gpus {self.gpus} would be taken twice: with ray_mode {self.ray_mode} the workers have their own; leave gpus out"
            )
        if self.num_gpus_per_worker > self.gpus:
            raise UserError(f"gpus {self.gpus} is too few: num_gpus_per_worker {self.num_gpus_per_worker} takes one at least")

    def _require_room(self) -> None:
        """Refuse pods that Ray could not start in, which its own message does not explain."""
        if self.ray_mode == "address":
            return
        workers = self.num_workers
        if self.ray_mode == "rayjob":
            workers = self.workers_per_pod
            if self.num_workers % workers:
                raise UserError(f"rayjob.workers_per_pod {workers} must divide num_workers {self.num_workers}")
            if int(amount(self.cpu)) < workers + 1:
                raise UserError(
                    f"cpu {self.cpu!r} is too little: a Ray pod needs a whole core for each of its {workers} worker(s) and one more for "
                    f"scores of checkpoints and the step itself; write at least {workers + 1}"
                )
        least = _MIN_BASE_BYTES + workers * _MIN_WORKER_BYTES
        if amount(self.memory) < least:
            where = " in each pod" if self.ray_mode == "rayjob" else ""
            raise UserError(
                f"memory {self.memory!r} is too little for Ray and {workers} worker(s){where}: write at least {least / _GIB:.3g}Gi"
            )

    @property
    def workers_per_pod(self) -> int:
        """Workers in one pod of a RayJob; a step that has fewer workers than a pod takes puts all of them into one."""
        return min(self.rayjob.workers_per_pod, self.num_workers)

    @property
    def work(self) -> Resources:
        """Resources of the work itself."""
        return Resources(**{each.name: getattr(self, each.name) for each in fields(Resources)})

    @property
    def pod(self) -> PodSize:
        """Size of the step's own pod."""
        if self.ray_mode != "local":
            return _LAUNCHER
        gpus = self.num_workers * self.num_gpus_per_worker if self.gpus is None else self.gpus
        return PodSize(self.cpu, self.memory, str(gpus), self.gpu_type, dict(self.node_selector), [dict(each) for each in self.tolerations])


_GPU = {"num_gpus_per_worker": 1, "precision": "bf16"}
PROFILES: dict[str, dict[str, Any]] = {
    "laptop": {},
    "2xcpu": {"cpu": "4", "memory": "8Gi", "num_workers": 2},
    "1xgpu": {**_GPU, "cpu": "8", "memory": "64Gi"},
    "8xgpu": {**_GPU, "cpu": "64", "memory": "512Gi", "num_workers": 8},
    "rayjob-2xcpu": {"ray_mode": "rayjob", "cpu": "2", "num_workers": 2, "rayjob": {"head_cpu": "1", "head_memory": "4Gi"}},
    "rayjob-1xgpu": {**_GPU, "ray_mode": "rayjob", "cpu": "8", "memory": "64Gi"},
    "rayjob-8xgpu": {**_GPU, "ray_mode": "rayjob", "cpu": "64", "memory": "512Gi", "num_workers": 8, "rayjob": {"workers_per_pod": 8}},
    "rayjob-8x8gpu": {**_GPU, "ray_mode": "rayjob", "cpu": "64", "memory": "512Gi", "num_workers": 64, "rayjob": {"workers_per_pod": 8}},
}
"""Named resources: their fields that differ from the defaults. `rayjob-8x8gpu` is eight nodes with eight GPUs each."""


def read_resources(text: str, *, stage: str) -> StageResources:
    """Read the resources of a stage.

    Args:
        text: A profile's name, or a JSON object of fields of `StageResources`. Its "profile" names where it starts (`laptop` if it
            is left out); "rayjob" is merged field by field.
        stage: One of `STAGES`; its parameter is `<stage>_resources`.

    Raises:
        UserError: There is no such profile, or a field is unknown, is there twice or does not fit; the message has its path.
    """
    parameter = f"{stage}_resources"
    given = _given(text, parameter)
    profile = given.pop("profile", "laptop")
    if not isinstance(profile, str) or profile not in PROFILES:
        raise UserError(f"{parameter}: there is no profile {profile!r}; write {', '.join(PROFILES)}, or a JSON object")
    base = PROFILES[profile]
    merged = {**base, **given}
    if isinstance(given.get("rayjob"), dict):
        merged["rayjob"] = {**base.get("rayjob", {}), **given["rayjob"]}
    try:
        read: StageResources = validate(StageResources, merged)
    except UserError as error:
        raise UserError(f"{parameter}.{str(error).replace('resources.', '')}") from None
    _require_stage(read, stage, given)
    return read


def _given(text: str, parameter: str) -> dict[str, Any]:
    if not text.lstrip().startswith("{"):
        return {"profile": text.strip()}
    given: dict[str, Any] = read_json(text, parameter)
    return given


def _require_stage(resources: StageResources, stage: str, given: Mapping[str, Any]) -> None:
    """Refuse what the stage would not use."""
    parameter = f"{stage}_resources"
    of_pods = [name for name in given if name in ("cpu", "memory", "gpu_type", "node_selector", "tolerations")]
    if resources.ray_mode == "address" and of_pods:
        raise UserError(f"{parameter}.{of_pods[0]} sizes or places pods, and ray_mode address makes none; leave it out")
    if stage == "train":
        if resources.pod.gpus != "0" and int(resources.pod.gpus) < resources.num_workers * resources.num_gpus_per_worker:
            raise UserError(
                f"{parameter}.gpus {resources.gpus} is too few: {resources.num_workers} workers take one each, at the same time"
            )
        return
    for each in fields(Resources):
        if each.name in given and each.name not in ("num_workers", "num_gpus_per_worker"):
            raise UserError(f"{parameter}.{each.name} is read by training alone; set it in train_resources")
    if stage == "data" and (resources.num_gpus_per_worker or resources.gpus):
        raise UserError(f"{parameter}: images are prepared on processors; leave GPUs out")


def describe_resources() -> str:
    """Return the description of such a parameter in a form: profiles, an example, all fields with their defaults."""
    example = '{"profile": "8xgpu", "microbatch_size": 32, "node_selector": {"pool": "a100"}}'
    return (
        f"A profile ({', '.join(PROFILES)}), or a JSON object of what differs from one, like {example}. "
        f"Fields: {_fields_of(StageResources())}; rayjob has {_fields_of(RayJobOptions())}."
    )


def merge_resources(text: str, changes: Mapping[str, Any], *, stage: str) -> str:
    """Return the resources of `text` with fields changed, as JSON text.

    Args:
        text: As for `read_resources`.
        changes: Path -> value, like {"num_workers": 4, "rayjob.head_cpu": "1"}. What follows the name of a map is one key, also with dots.
        stage: As for `read_resources`.

    Raises:
        UserError: The text is not JSON or has a key twice, or a path leads through a value.
    """
    merged = _given(text, f"{stage}_resources")
    for path, value in changes.items():
        entry = MAP_ENTRY.fullmatch(path)
        *parents, leaf = [*entry[1].split("."), entry[2]] if entry else path.split(".")
        node = merged
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"{stage}_resources.{parent} is a value and has no fields")
        node[leaf] = value
    return json.dumps(merged)


def _fields_of(defaults: Any) -> str:
    values = asdict(defaults)
    return ", ".join(name if name == "rayjob" else f"{name} ({json.dumps(value)})" for name, value in values.items())
