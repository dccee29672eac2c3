"""Reference statistics: the features of the real images, computed once a data set and extractor."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def reference(experiment_preset: str, experiment_overrides: list[str], data_uri: str, storage_root_uri: str) -> str:
    """Computes the statistics that generated images are compared with, or finds them.

    Args:
        experiment_preset: Name of the experiment.
        experiment_overrides: Its overrides.
        data_uri: The data set.
        storage_root_uri: Where everything is kept.

    Returns:
        URI of the statistics.
    """
    from components.evaluation_run import make_reference

    return make_reference(experiment_preset, experiment_overrides, data_uri, storage_root_uri)
