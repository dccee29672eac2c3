"""Named grids: the paper's settings, every trial valid, and misuse refused before a sweep starts."""

import pytest

from training import ablations
from training.config import ConfigError
from training.presets import cited, preset


def test_hybrid_weight_is_the_grid_of_the_supplements_table_1() -> None:
    name = "imagenet64-hybrid-cosine"
    ours = {preset(name, trial.overrides).to_json() for trial in ablations.trials("hybrid-weight", name)}
    reported = [result.overrides for result in cited(name).results if result.where == "supplement table 1"]
    assert len(reported) == 4
    assert ours == {preset(name, overrides).to_json() for overrides in reported}


@pytest.mark.parametrize("name", ablations.names())
def test_every_trial_is_another_experiment_and_keeps_the_shared_overrides(name: str) -> None:
    planned = ablations.trials(name, "digits-hybrid-cosine", ["optim.num_steps=10"])
    experiments = {preset("digits-hybrid-cosine", trial.overrides).to_json() for trial in planned}
    assert len(experiments) == len(planned) > 1
    assert all(preset("digits-hybrid-cosine", trial.overrides).optim.num_steps == 10 for trial in planned)


def test_a_trial_is_named_by_what_differs() -> None:
    assert ablations.trials("hybrid-weight", "digits-hybrid-cosine")[-1].name == "vlb_weight=0.01 stop_gradient=false"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("hybrid-wait", "digits-hybrid-cosine"), "did you mean 'hybrid-weight'"),
        (("hybrid-weight", "digits"), "there is no preset 'digits'"),
        (("hybrid-weight", "digits-hybrid-cosine", ["diffusion.vlb_weight=1"]), "varies diffusion.vlb_weight itself"),
        (("hybrid-weight", "digits-hybrid-cosine", ["optim.num_steps=0"]), "optim.num_steps"),
    ],
)
def test_an_ablation_that_can_not_work_is_refused(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ablations.trials(*arguments)


def test_a_number_stays_a_word_where_an_override_wants_one() -> None:
    assert preset("digits-hybrid-cosine", ["evaluation.sampling.spacing=250"]).evaluation.sampling.spacing == "250"
