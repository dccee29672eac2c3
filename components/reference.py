"""Reference statistics: the features of the real images, computed once a data set and extractor."""

from typing import Any, Dict, List  # noqa: UP035 - kfp copies the annotation into a file that has this name only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def reference(
    experiment_preset: str,
    experiment_overrides: List[str],  # noqa: UP006
    data_uri: str,
    data_digest: str,
    storage_root_uri: str,
    num_gpus_per_worker: int,
    ray_mode: str,
    ray_address: str,
    ray_queue: str,
    rayjob_options: Dict[str, Any],  # noqa: UP006
    takes_distances: str = "yes",
) -> str:
    """Computes the statistics that generated images are compared with, or finds them.

    Args:
        experiment_preset: Name of the experiment.
        experiment_overrides: Its overrides.
        data_uri: The data set.
        data_digest: Of its training images. KFP's cache knows the step by it: other images are another step.
        storage_root_uri: Where everything is kept.
        num_gpus_per_worker: 1 computes on a GPU, 0 on the CPU.
        ray_mode: "local" computes in this step, "rayjob" on a cluster that KubeRay makes for it, "address" on one that stands.
        ray_address: With "address", where that cluster is.
        ray_queue: With "rayjob", Kueue's local queue.
        rayjob_options: With "rayjob", what the cluster should be.
        takes_distances: "yes" computes the statistics; "no", for an ablation that takes no distances, computes nothing.

    Returns:
        URI of the statistics; empty where none are needed.
    """
    if takes_distances != "yes":
        return ""
    from components.launch.modes import run_in_mode
    from components.steps.registry import REFERENCE

    uri: str = run_in_mode(
        REFERENCE,
        {
            "experiment_preset": experiment_preset,
            "experiment_overrides": experiment_overrides,
            "data_uri": data_uri,
            "data_digest": data_digest,
            "storage_root_uri": storage_root_uri,
            "resources": {"num_workers": 1, "num_gpus_per_worker": num_gpus_per_worker},
        },
        ray_mode=ray_mode,
        ray_address=ray_address,
        ray_queue=ray_queue,
        rayjob_options=rayjob_options,
    )
    return uri
