"""The step that makes the data set: images in, shards and a manifest in S3 out."""

from typing import Any, Dict, List, NamedTuple  # noqa: UP035 - kfp copies the annotation into a file that has this name only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def preprocess(
    manifest: dsl.Output[dsl.Dataset],
    experiment_preset: str,
    experiment_overrides: List[str],  # noqa: UP006
    data_uri: str,
    storage_root_uri: str,
    source: str,
    labels: str,
    num_test: int,
    num_workers: int,
    on_error: str,
    max_errors: int,
    allow_upscale: bool,
    reduced_decode: bool,
    max_pixels: int,
    other_sizes: List[int],  # noqa: UP006
    ray_mode: str,
    ray_address: str,
    ray_queue: str,
    rayjob_options: Dict[str, Any],  # noqa: UP006
) -> NamedTuple("Data", data_uri=str, digest=str):  # type: ignore[valid-type]
    """Prepares the training and test images of an experiment, or finds that they are there.

    Args:
        manifest: The manifests, as JSON by split.
        experiment_preset: Preset of the experiment, whose data section says size, channels and resize.
        experiment_overrides: Its overrides, each section.field=value.
        data_uri: Directory of the data set; the splits are train and test below it. Empty is one under
            storage_root_uri that is named by name, size and resize.
        storage_root_uri: Where everything is kept.
        source: Where images come from; empty is the data set's own name.
        labels: Where labels come from: auto, none, folders, filename, or the address of a CSV or JSON file.
        num_test: Test images to hold out of a source that has no test split.
        num_workers: Ray tasks at once; 1 works in this process.
        on_error: What an unreadable image does: fail, or skip.
        max_errors: With skip, how many images may be left out.
        allow_upscale: Enlarge images that are smaller than the experiment's size.
        reduced_decode: Decode large JPEGs at reduced size: faster, about two grey levels off the exact average.
        max_pixels: Width times height above which an image is refused as a decompression bomb.
        other_sizes: Further image sizes to make from the same decoding, for the other models of a cascade. Each goes
            to its own default place where the data set has one, otherwise below it, to 64x64 for size 64.
        ray_mode: "local" runs Ray in this step, "rayjob" on a cluster that KubeRay makes for it, "address" on one that stands.
        ray_address: With "address", where that cluster is.
        ray_queue: With "rayjob", Kueue's local queue.
        rayjob_options: With "rayjob", what the cluster should be.

    Returns:
        The data set's directory, and the digest of its training images.
    """
    from components.launch.modes import run_in_mode
    from components.steps.preprocess import write_manifests
    from components.steps.registry import PREPROCESS

    uri = run_in_mode(
        PREPROCESS,
        {
            "experiment_preset": experiment_preset,
            "experiment_overrides": experiment_overrides,
            "data_uri": data_uri,
            "storage_root_uri": storage_root_uri,
            "source": source,
            "source_options": {"labels": labels, "num_test": num_test},
            "options": {
                "on_error": on_error,
                "max_errors": max_errors,
                "allow_upscale": allow_upscale,
                "reduced_decode": reduced_decode,
                "max_pixels": max_pixels,
            },
            "other_sizes": other_sizes,
            "resources": {"num_workers": num_workers},
        },
        ray_mode=ray_mode,
        ray_address=ray_address,
        ray_queue=ray_queue,
        rayjob_options=rayjob_options,
    )
    return write_manifests(uri, manifest.path)
