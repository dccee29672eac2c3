"""Reference statistics: the features of the real images, computed once for each data set and extractor."""

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def reference(experiment: str, data_uri: str, data_digest: str, storage_root_uri: str, resources: str, takes_distances: str = "yes") -> str:
    """Compute the statistics that generated images are compared with, or find them.

    Args:
        experiment: The experiment, as JSON.
        data_uri: The data set.
        data_digest: Digest of its training images. It is part of KFP's cache key: other images are computed anew.
        storage_root_uri: The storage root.
        resources: Resources of the stage; see `components.launch.resources`.
        takes_distances: "yes" computes the statistics; "no", for an ablation that takes no distances, computes nothing.

    Returns:
        URI of the statistics; empty where none are needed.
    """
    if takes_distances != "yes":
        return ""
    from components.launch.run import run_step
    from components.steps.registry import REFERENCE

    arguments = {"experiment": experiment, "data_uri": data_uri, "data_digest": data_digest, "storage_root_uri": storage_root_uri}
    uri: str = run_step(REFERENCE, arguments, resources)
    return uri
