"""Where the stages of a run are to work, and on what: checked before anything is sent, by the code that the steps check it with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from components.cluster.rayjob_spec import GPU_RESOURCE, RayJobSpecError, require_node_selector, require_tolerations
from components.container.image import image_from
from components.launch.call import Call
from components.launch.modes import require_mode
from components.launch.rayjob_manifest import render
from components.launch.rayjob_options import RayJobOptions, rayjob_for
from components.launch.rayjob_rules import violations
from components.launch.step import Step
from training.config.errors import UserError
from training.config.experiment import Resources

IMAGE, QUEUE, GPU_TYPE = "cluster_image", "cluster_queue", "cluster_gpu_type"
SELECTOR, TOLERATIONS = "cluster_gpu_node_selector", "cluster_gpu_tolerations"
_MODE = "_ray_mode"
_ROOT = re.compile(r"s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/.*)?")


class PlacementError(ValueError):
    """A step of the run would refuse what it is told, or never find room; one line that names the parameter."""


def require_placement(chosen: Mapping[str, Any]) -> None:
    """Refuses what no cluster could do, whatever it has.

    Args:
        chosen: Every parameter of the pipeline, by name.

    Raises:
        PlacementError: An amount, an address or options that a step would refuse.
        ImageError: The image's reference is malformed, or can change.
    """
    image_from(chosen[IMAGE], variable=f"--param {IMAGE}")
    _require_nodes(chosen)
    for name in ("storage_root_uri", "data_uri"):
        if chosen.get(name) and not _ROOT.fullmatch(chosen[name]):
            raise PlacementError(f"--param {name}={chosen[name]}: the steps of a run share nothing but S3; it reads s3://BUCKET/PATH")
    if chosen.get("storage_root_uri") == "":
        raise PlacementError("--param storage_root_uri: a run needs a place for what it makes, like s3://iddpm")
    model = chosen.get("model")
    if model is not None and not model.startswith(("models:/", "runs:/", "s3://")):
        raise PlacementError(f"--param model={model}: it reads models:/NAME@ALIAS, runs:/ID, or s3://BUCKET/PATH of a run or a checkpoint")
    for stage, resources in resources_of(chosen).items():
        _require_stage(stage, resources, chosen)


def resources_of(chosen: Mapping[str, Any]) -> dict[str, Resources]:
    """What each stage works with, as its step will read it.

    Args:
        chosen: Every parameter of the pipeline, by name.

    Raises:
        PlacementError: A number is out of its range.
    """
    return {stage: _resources(stage, chosen) for stage in (name.removesuffix(_MODE) for name in chosen if name.endswith(_MODE))}


def _require_nodes(chosen: Mapping[str, Any]) -> None:
    if not GPU_RESOURCE.fullmatch(chosen[GPU_TYPE]):
        raise PlacementError(f"--param {GPU_TYPE}={chosen[GPU_TYPE]}: it reads like nvidia.com/gpu")
    try:
        require_node_selector(chosen[SELECTOR], option=f"--param {SELECTOR}")
        require_tolerations(chosen[TOLERATIONS], option=f"--param {TOLERATIONS}")
    except RayJobSpecError as error:
        raise PlacementError(str(error)) from None


def _require_stage(stage: str, resources: Resources, chosen: Mapping[str, Any]) -> None:
    mode, address = chosen[f"{stage}{_MODE}"], chosen[f"{stage}_ray_address"]
    options = chosen[f"{stage}_rayjob_options"]
    try:
        require_mode(mode, address, options, prefix=f"{stage}_")
    except UserError as error:
        raise PlacementError(f"--param: {error}") from None
    if mode == "address" and not address.startswith(("http://", "https://")):
        raise PlacementError(
            f"--param {stage}_ray_address={address}: a step's pod is on no node of that cluster; name its dashboard, like http://HEAD:8265"
        )
    if mode == "rayjob":
        _require_rayjob(stage, resources, options, chosen)
    if mode == "local" and resources.num_gpus_per_worker:
        gpus = int(chosen[f"{stage}_gpus"] or 0)
        # Training takes a GPU for each worker at once; other work waits for its turn, but needs one.
        wanted = resources.num_workers if stage == "train" else 1
        if gpus < wanted:
            raise PlacementError(
                f"--param {stage}_gpus={gpus}: {stage}_num_workers={resources.num_workers} on GPUs in the stage's own pod take {wanted}"
            )


def _resources(stage: str, chosen: Mapping[str, Any]) -> Resources:
    names = ("num_workers", "min_workers", "num_gpus_per_worker", "microbatch_size")
    given = {name: int(chosen[f"{stage}_{name}"]) for name in names if f"{stage}_{name}" in chosen}
    try:
        return Resources.from_dict(given)
    except UserError as error:
        raise PlacementError(f"--param {str(error).replace('resources.', f'{stage}_')}") from None


def _require_rayjob(stage: str, resources: Resources, options: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    """Makes the RayJob as the step will, of a pod like the step's."""
    pod = {
        "nodeSelector": chosen[SELECTOR],
        "tolerations": chosen[TOLERATIONS],
        "containers": [{"name": "main", "image": chosen[IMAGE]}],
    }
    call = Call(
        step=Step(name=stage, function="", files_argument=""), arguments={}, key=stage, directory_uri="s3://iddpm", result_uri="s3://iddpm"
    )
    try:
        parsed = RayJobOptions.from_dict({"queue_name": chosen[QUEUE], **options})
        broken = violations(render(rayjob_for(call, resources, parsed, launcher={"spec": pod}, namespace="kubeflow")))
    except RayJobSpecError as error:
        raise PlacementError(f"--param {stage}_rayjob_options: {error}") from None
    if broken:
        raise PlacementError(f"--param {stage}_rayjob_options: KubeRay would refuse them: {'; '.join(broken)}")
