"""The plan of an ablation: one list, over which the pipeline loops."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def plan_ablation(ablation_name: str, experiment_preset: str, experiment_overrides: list[str]) -> list[dict[str, str]]:
    """Lists the trials of an ablation, each checked.

    Args:
        ablation_name: Which ablation.
        experiment_preset: The experiment that it varies.
        experiment_overrides: Overrides that every trial shares.

    Returns:
        Of each trial its `label` and its `overrides`. (A field called `name` would be lost: a loop's item has its own.)
    """
    from components.ablation_run import list_trials

    return list_trials(ablation_name, experiment_preset, experiment_overrides)
