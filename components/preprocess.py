"""The step that makes the data set: images in, shards and a manifest in S3 out."""

from typing import NamedTuple

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def preprocess(
    manifest: dsl.Output[dsl.Dataset], experiment: str, data_uri: str, storage_root_uri: str, source: str, options: str, resources: str
) -> NamedTuple("Data", data_uri=str, digest=str):  # type: ignore[valid-type]
    """Prepare the training and test images of an experiment, or find that they are there.

    Args:
        manifest: The manifests, as JSON by split.
        experiment: The experiment as JSON, whose data section has size, channels and resize.
        data_uri: Directory of the data set, with the splits train and test below it; empty takes one below
            storage_root_uri, named by name, size and resize.
        storage_root_uri: The storage root.
        source: Where images come from; empty takes the data set's own name.
        options: How images are prepared; see `components.steps.settings.DataOptions`.
        resources: Resources of the stage; see `components.launch.resources`.

    Returns:
        The data set's directory, and the digest of its training images.
    """
    from components.launch.run import run_step
    from components.steps.preprocess import write_manifests
    from components.steps.registry import PREPROCESS
    from components.steps.settings import read_data_options, require_shared
    from training import storage

    if data_uri:
        require_shared("data_uri", data_uri)
    arguments = {"experiment": experiment, "data_uri": data_uri, "storage_root_uri": storage_root_uri, "source": source}
    uri = run_step(PREPROCESS, {**arguments, **read_data_options(options).arguments()}, resources)
    return storage.retry(lambda: write_manifests(uri, manifest.path))
