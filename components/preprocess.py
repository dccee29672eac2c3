"""The step that makes the data set: images in, shards and a manifest in S3 out."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def preprocess(
    manifest: dsl.Output[dsl.Dataset],
    experiment_preset: str,
    experiment_overrides: list[str],
    data_uri: str = "",
    storage_root_uri: str = "",
    source: str = "",
    labels: str = "auto",
    num_test: int = 0,
    num_workers: int = 1,
    on_error: str = "fail",
    max_errors: int = 100,
    allow_upscale: bool = False,
    reduced_decode: bool = False,
    max_pixels: int = 89478485,
    other_sizes: list[int] = [],  # noqa: B006 - KFP wants a literal
) -> str:
    """Prepares the training and test images of an experiment, or finds that they are there.

    Args:
        manifest: The manifests, as JSON by split.
        data_uri: Directory of the data set; the splits are train and test below it. Empty is one under
            storage_root_uri that is named by name, size and resize.
        storage_root_uri: Where everything is kept.
        experiment_preset: Preset of the experiment, whose data section says size, channels and resize.
        experiment_overrides: Its overrides, each section.field=value.
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

    Returns:
        The data set's directory.
    """
    from training.data.splits import prepare_experiment

    return prepare_experiment(
        experiment_preset,
        experiment_overrides,
        data_uri,
        storage_root_uri=storage_root_uri,
        source=source,
        source_options={"labels": labels, "num_test": num_test},
        options={
            "num_workers": num_workers,
            "on_error": on_error,
            "max_errors": max_errors,
            "allow_upscale": allow_upscale,
            "reduced_decode": reduced_decode,
            "max_pixels": max_pixels,
        },
        other_sizes=other_sizes,
        manifest_path=manifest.path,
    )
