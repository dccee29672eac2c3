"""Where the train step finds Ray: in its own pod or machine, on a cluster made for the run, or on one that stands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from training.config import ConfigError

RAY_MODES = ("local", "rayjob", "address")


def train_in_mode(arguments: Mapping[str, Any], *, ray_mode: str = "local", ray_address: str = "", rayjob_options: str = "{}") -> str:
    """Trains where the mode says.

    Args:
        arguments: Those of `components.training_run.train_run`, by name, without `ray_address`.
        ray_mode: "local" starts Ray in this pod or machine and ends it with the step; "rayjob" has KubeRay make a cluster
            for the run; "address" joins a cluster that stands, of which this process must be able to be a driver: one
            with the same image and storage, on a node of the cluster.
        ray_address: With "address", the cluster's address, or "auto" on one of its nodes.
        rayjob_options: With "rayjob", the fields of `components.rayjob_launcher.RayJobOptions` as JSON.

    Returns:
        The run's directory.

    Raises:
        ConfigError: The mode is unknown, or an argument of another mode is given.
    """
    if ray_mode not in RAY_MODES:
        raise ConfigError(f"ray_mode {ray_mode!r} is none of {', '.join(RAY_MODES)}")
    if bool(ray_address) != (ray_mode == "address"):
        raise ConfigError(
            f"ray_address goes with ray_mode=address and is needed there; ray_mode is {ray_mode}, ray_address {ray_address!r}"
        )
    options = _options(rayjob_options)
    if options and ray_mode != "rayjob":
        raise ConfigError(f"rayjob_options go with ray_mode=rayjob; ray_mode is {ray_mode}")
    if ray_mode == "rayjob":
        from components.rayjob_launcher import RayJobOptions, train_on_rayjob

        return train_on_rayjob(arguments, RayJobOptions.from_dict(options))
    from components.training_run import train_run

    return train_run(**arguments, ray_address=ray_address or "local")


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ConfigError(f"rayjob_options is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ConfigError(f"rayjob_options must be a JSON object, got {text!r}")
    return options
