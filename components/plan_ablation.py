"""The plan of an ablation: one list, over which the pipeline loops."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def plan_ablation(
    ablation_name: str, experiment_preset: str, experiment_overrides: list[str], data_uri: str, reference_uri: str
) -> list[dict[str, str]]:
    """Lists the trials of an ablation, each checked.

    Args:
        ablation_name: Which ablation.
        experiment_preset: The experiment that it varies.
        experiment_overrides: Overrides that every trial shares.
        data_uri: The data set.
        reference_uri: Reference statistics.

    Returns:
        All that a trial needs: its `label`, `overrides`, `data_uri` and `reference_uri`. In a loop kfp.local takes any
        other step's output for the loop's item, so the item carries them; a field called `name` would be lost.
    """
    from components.ablation_run import list_trials

    return list_trials(ablation_name, experiment_preset, experiment_overrides, data_uri, reference_uri)
