"""Where a step finds Ray: in its own pod or machine, on a cluster made for it, or on one that stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.launch.step import Step, run_on_cluster
from training.config.errors import UserError

RAY_MODES = ("local", "rayjob", "address")


def require_mode(ray_mode: str, ray_address: str, rayjob_options: Mapping[str, Any] | None, *, prefix: str = "") -> None:
    """Refuses a mode that is none, and arguments of another mode.

    Args:
        ray_mode: The mode.
        ray_address: As for `run_in_mode`, like the others.
        rayjob_options: The options.
        prefix: Of the arguments' names where they were given, for the message.

    Raises:
        UserError: They do not go together.
    """
    if ray_mode not in RAY_MODES:
        raise UserError(f"{prefix}ray_mode {ray_mode!r} is none of {', '.join(RAY_MODES)}")
    if bool(ray_address) != (ray_mode == "address"):
        raise UserError(
            f"{prefix}ray_address goes with {prefix}ray_mode=address and is needed there; "
            f"{prefix}ray_mode is {ray_mode}, {prefix}ray_address {ray_address!r}"
        )
    if rayjob_options and ray_mode != "rayjob":
        raise UserError(f"{prefix}rayjob_options go with {prefix}ray_mode=rayjob; {prefix}ray_mode is {ray_mode}")


def run_in_mode(
    step: Step,
    arguments: Mapping[str, Any],
    *,
    ray_mode: str = "local",
    ray_address: str = "",
    ray_queue: str = "",
    rayjob_options: Mapping[str, Any] | None = None,
) -> Any:
    """Runs a step where the mode says.

    Args:
        step: The step.
        arguments: Its arguments, by name.
        ray_mode: "local" starts Ray in this pod or machine, where it is needed, and ends it with the step; "rayjob" has
            KubeRay make a cluster for the step; "address" takes one that stands, which has the same image and storage.
        ray_address: With "address", the cluster's dashboard (http://head:8265), to which the step is handed as a job; or
            "auto" or the cluster's own address, for a process on one of its nodes.
        ray_queue: With "rayjob", Kueue's local queue, where the options name none.
        rayjob_options: With "rayjob", fields of `components.launch.rayjob_options.RayJobOptions`.

    Returns:
        What the step returns.

    Raises:
        UserError: The mode is unknown, or an argument of another mode is given.
    """
    require_mode(ray_mode, ray_address, rayjob_options)
    if ray_mode == "rayjob":
        from components.launch.rayjob_launcher import run_on_rayjob
        from components.launch.rayjob_options import RayJobOptions

        return run_on_rayjob(step, arguments, RayJobOptions.from_dict({"queue_name": ray_queue, **(rayjob_options or {})}))
    if ray_address.startswith(("http://", "https://")):
        from components.launch.dashboard import run_on_dashboard

        return run_on_dashboard(step, arguments, ray_address)
    if ray_mode == "address":
        return run_on_cluster(step, arguments, ray_address)
    return step(**arguments)
