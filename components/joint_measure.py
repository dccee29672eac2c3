"""The measurement of several trials together: an ensemble or a cascade."""

from typing import Any, Dict, List  # noqa: UP035 - kfp copies the annotation into a file that has these names only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def joint_measure(items: List[Dict[str, Any]], resources: str) -> str:  # noqa: UP006
    """Measure an ensemble or a cascade of the trials, if the ablation has one; otherwise do nothing.

    Args:
        items: The trials; see `components.ablations.directory.loop_item`.
        resources: Resources of the stage; see `components.launch.resources`.

    Returns:
        URI of the record; empty where the ablation has no joint measurement.
    """
    from components.ablations.directory import read_plan
    from components.ablations.registry import JOINT
    from components.launch.run import run_step

    ablation_uri = items[0]["ablation_uri"]
    if not read_plan(ablation_uri).request.ablation().joint_role:
        return ""
    uri: str = run_step(JOINT, {"ablation_uri": ablation_uri}, resources)
    return uri
