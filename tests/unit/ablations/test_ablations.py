"""The named ablations: the paper's settings, valid trials at both scales, and refusals before anything starts."""

import math

import pytest
from rounding import rounded

from evaluation.ablations.definitions import paper as ablations
from evaluation.ablations.definitions.ablation import MAX_TRIALS, SCALES, Scale, Trial, counts, trials
from evaluation.ablations.definitions.paper import find_ablation
from evaluation.ablations.definitions.reproductions import REPRODUCTIONS
from evaluation.ablations.definitions.request import own_grid, parse_grid
from training.config import presets
from training.config.errors import UserError
from training.config.experiment import Objective
from training.config.presets import find_preset, preset

_BOTH = pytest.mark.parametrize("scale", SCALES)
_OURS = pytest.mark.parametrize("scale", ["small", "tiny"])
_NO_SMALL_SCALE = {"two-stage"}
_EACH = pytest.mark.parametrize("name", ablations.names())
_EVERY_SCALE = pytest.mark.parametrize(
    ("name", "scale"), [(name, scale) for name in ablations.names() for scale in SCALES if scale != "small" or name not in _NO_SMALL_SCALE]
)
_OUR_SCALES = pytest.mark.parametrize(
    ("name", "scale"),
    [(name, scale) for name in ablations.names() for scale in ("small", "tiny") if scale != "small" or name not in _NO_SMALL_SCALE],
)


def _experiments(planned: tuple[Trial, ...]) -> list[str]:
    return [trial.experiment.to_json() for trial in planned]


def test_all_ablations_of_the_paper_are_named() -> None:
    assert set(ablations.names()) == {
        "hybrid-weight",
        "objective-schedule",
        "lsun-batch-size",
        "cifar10-dropout",
        "cond64-overfitting",
        "width",
        "sampling-steps",
        "likelihood-steps",
        "vlb-ratio",
        "ensemble",
        "same-noise",
        "two-stage",
    }


@_EVERY_SCALE
def test_every_trial_is_a_valid_and_different_experiment(name: str, scale: Scale) -> None:
    planned = trials(find_ablation(name), scale)
    assert len(set(_experiments(planned))) == len(planned) > 1
    assert len({trial.label for trial in planned}) == len(planned)
    assert all(trial.measures for trial in planned)


@_EVERY_SCALE
def test_role_and_values_identify_each_trial(name: str, scale: Scale) -> None:
    planned = trials(find_ablation(name), scale)
    identities = {tuple(map(str, (trial.role, *trial.values.values()))) for trial in planned}
    assert len(identities) == len(planned)


@_EACH
def test_each_varied_field_has_more_than_one_value(name: str) -> None:
    planned = trials(find_ablation(name), "paper")
    for column in planned[0].values:
        values = {str(trial.values[column]) for trial in planned}
        assert len(values) > 1 or find_ablation(name).joint != "none" or not find_ablation(name).trains, column


@_OUR_SCALES
def test_our_scales_vary_the_same_fields_as_the_papers_scale(name: str, scale: Scale) -> None:
    ablation = find_ablation(name)
    paper, ours = trials(ablation, "paper"), trials(ablation, scale)
    assert list(paper[0].values) == list(ours[0].values)
    assert all(trial.experiment.data.name.startswith("digits") for trial in ours)
    assert all(trial.experiment.optim.num_steps <= {"small": 4000, "tiny": 2000}[scale] for trial in ours)
    assert counts(ablation, scale) == tuple(count // 10 for count in ablation.counts if count >= 50)


@pytest.mark.parametrize("name", sorted(_NO_SMALL_SCALE))
def test_an_ablation_without_a_small_scale_says_what_would_decide_it(name: str) -> None:
    with pytest.raises(UserError, match=f"the ablation '{name}' has no scale small: .*decides it on GPUs"):
        trials(find_ablation(name), "small")


def test_hybrid_weight_is_the_grid_of_the_supplements_table_1() -> None:
    name = "imagenet64-hybrid-cosine"
    reported = [result.overrides for result in find_preset(name).results if result.where == "supplement table 1"]
    assert len(reported) == 4
    assert set(_experiments(trials(find_ablation("hybrid-weight"), "paper"))) == {
        preset(name, overrides).to_json() for overrides in reported
    }


def test_every_trial_of_the_main_tables_has_the_papers_numbers() -> None:
    planned = trials(find_ablation("objective-schedule"), "paper")
    results = [find_preset(trial.preset).results[0] for trial in planned]
    rows = [(trial.values["data"], result.bits_per_dim, result.fid) for trial, result in zip(planned, results, strict=True)]
    assert [row for row in rows if row[0] == "imagenet64-official"] == [
        ("imagenet64-official", *numbers)
        for numbers in ((3.99, 32.5), (3.77, 31.3), (3.66, 32.2), (3.68, 27.0), (3.62, 28.0), (3.57, 56.7))
    ]
    assert [row for row in rows if row[0] == "cifar10"] == [
        ("cifar10", *numbers) for numbers in ((3.73, 3.29), (3.37, 2.90), (3.26, 3.07), (3.26, 3.05), (3.17, 3.19), (2.94, 11.47))
    ]


def test_every_row_of_a_reproduction_has_the_papers_numbers() -> None:
    for table in REPRODUCTIONS.values():
        for trial in trials(table, "paper"):
            assert any(result.fid is not None for result in find_preset(trial.preset).results), trial.preset
    assert [trial.experiment for trial in trials(REPRODUCTIONS["cifar10-table2"], "paper")] == [
        trial.experiment for trial in trials(find_ablation("objective-schedule"), "paper") if trial.values["data"] == "cifar10"
    ]


@_BOTH
def test_batch_sizes_of_figure_1_train_on_equally_many_examples_and_the_larger_has_five_times_the_rate(scale: Scale) -> None:
    optims = [trial.experiment.optim for trial in trials(find_ablation("lsun-batch-size"), scale)]
    assert len({optim.num_steps * optim.global_batch_size for optim in optims}) == 1
    rates = {optim.global_batch_size: optim.learning_rate for optim in optims}
    small, large = sorted(rates)
    assert large == 2 * small
    assert rates[large] == rounded(5 * rates[small], 2)  # a product, and each literal


@_BOTH
def test_the_learning_rate_falls_with_the_root_of_the_width(scale: Scale) -> None:
    planned = trials(find_ablation("width"), scale)
    first = planned[0].values
    for trial in planned:
        expected = first["learning_rate"] * math.sqrt(first["width"] / trial.values["width"])
        assert trial.values["learning_rate"] == pytest.approx(expected, rel=5e-4)  # of four digits


@_BOTH
def test_the_dropout_sweep_has_every_dropout_with_both_schedules(scale: Scale) -> None:
    met = {(trial.values["schedule"], trial.values["dropout"]) for trial in trials(find_ablation("cifar10-dropout"), scale)}
    assert met == {(schedule, dropout) for schedule in ("linear", "cosine") for dropout in (0.1, 0.2, 0.3)}


@_OURS
def test_evaluations_at_our_scales_use_runs_that_an_ablation_trains(scale: Scale) -> None:
    for name in ablations.names():
        ablation = find_ablation(name)
        if not ablation.trains:
            trained = _experiments(trials(find_ablation(ablation.runs_of), scale))
            assert set(_experiments(trials(ablation, scale))) <= set(trained)


def test_hybrid_weight_and_the_main_tables_share_one_run() -> None:
    shared = set(_experiments(trials(find_ablation("hybrid-weight"), "tiny"))) & set(
        _experiments(trials(find_ablation("objective-schedule"), "tiny"))
    )
    assert len(shared) == 1


@_EVERY_SCALE
def test_overrides_reach_every_trial(name: str, scale: Scale) -> None:
    assert all(trial.experiment.seed == 7 for trial in trials(find_ablation(name), scale, overrides=["seed=7"]))


def test_a_users_override_wins_over_a_trials_own() -> None:
    planned = trials(find_ablation("width"), "tiny", overrides=["optim.num_steps=10"])
    assert {trial.experiment.optim.num_steps for trial in planned} == {10}


@pytest.mark.parametrize("objective", ["simple", "vlb", "hybrid"])
def test_another_objective_also_sets_its_variance_and_timestep_sampler(objective: Objective) -> None:
    for trial in trials(find_ablation("width"), "paper", objective=objective):
        diffusion = trial.experiment.diffusion
        assert diffusion.objective == objective
        assert (diffusion.variance == "learned_range") == (objective != "simple")
        assert (diffusion.timestep_sampler == "loss_second_moment") == (objective == "vlb")


def test_another_preset_can_be_varied_by_a_grid() -> None:
    planned = trials(find_ablation("hybrid-weight"), "paper", preset_name="cifar10-hybrid-cosine")
    assert {trial.preset for trial in planned} == {"cifar10-hybrid-cosine"}


def test_a_users_run_fills_a_role() -> None:
    planned = trials(find_ablation("vlb-ratio"), "paper", runs={"vlb": "s3://bucket/runs/mine"})
    assert {trial.role: trial.run_uri for trial in planned} == {"hybrid": "", "vlb": "s3://bucket/runs/mine"}


def test_a_trial_is_named_by_what_differs() -> None:
    assert trials(find_ablation("hybrid-weight"), "tiny")[-1].label == "stop_gradient=false vlb_weight=0.01"


def test_a_users_grid_has_every_combination() -> None:
    axes = parse_grid(["diffusion.vlb_weight=0.1,0.2", "diffusion.schedule=linear,cosine"])
    planned = trials(own_grid("mine", axes, "digits-tiny-hybrid-cosine"), "tiny", overrides=["seed=3"])
    assert [trial.values for trial in planned] == [
        {"vlb_weight": weight, "schedule": schedule} for weight in (0.1, 0.2) for schedule in ("linear", "cosine")
    ]
    assert {trial.experiment.seed for trial in planned} == {3}


def _own(*words: str, preset_name: str = "digits-tiny-hybrid-cosine") -> tuple[Trial, ...]:
    return trials(own_grid("mine", parse_grid(words), preset_name), "tiny")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "varies nothing"),
        (("diffusion.vlb_weight",), "section.field=a,b,c"),
        (("diffusion.vlb_weight=0.1", "diffusion.vlb_weight=0.2"), "twice"),
        (("diffusion.vlb_weight=0.1,0.1",), "a value twice"),
        (("diffusion.vlb_wait=0.1,0.2",), "did you mean 'vlb_weight'"),
        (("optim.num_steps=0,1",), "optim.num_steps"),
        ((f"seed={','.join(map(str, range(MAX_TRIALS + 1)))}",), f"it may have {MAX_TRIALS:,}"),
    ],
)
def test_an_invalid_grid_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _own(*words)


def test_an_ablation_with_too_many_trials_is_refused_before_they_are_made() -> None:
    with pytest.raises(UserError, match=r"'mine' has 1,000,000 trials; it may have 1,000"):
        _own(f"seed={','.join(map(str, range(1000)))}", f"diffusion.num_timesteps={','.join(map(str, range(1000)))}")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("hybrid-weight", {"overrides": ["diffusion.vlb_weight=1"]}, "varies diffusion.vlb_weight itself"),
        ("hybrid-weight", {"overrides": ["optim.num_steps=0"]}, "optim.num_steps"),
        ("hybrid-weight", {"preset_name": "digits"}, "there is no preset 'digits'"),
        ("hybrid-weight", {"runs": {"vlb": "s3://x"}}, "takes no run 'vlb'; it trains its own runs"),
        ("objective-schedule", {"objective": "vlb"}, "varies diffusion.objective itself"),
        ("objective-schedule", {"preset_name": "cifar10-hybrid-cosine"}, "compares presets of its own"),
        ("vlb-ratio", {"runs": {"vbl": "s3://x"}}, "takes no run 'vbl'; its runs are hybrid, vlb"),
    ],
)
def test_invalid_arguments_of_an_ablation_are_refused(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trials(find_ablation(name), "tiny", **arguments)  # type: ignore[arg-type]


def test_the_error_about_an_unknown_ablation_suggests_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean 'hybrid-weight'"):
        find_ablation("hybrid-wait")


def test_a_number_becomes_text_in_an_override_of_a_text_field() -> None:
    assert preset("digits-hybrid-cosine", ["evaluation.sampling.spacing=250"]).evaluation.sampling.spacing == "250"


def test_tiny_presets_are_the_main_tables_rows_with_every_count_of_timesteps_divided_by_ten() -> None:
    for name in presets.names():
        if name.startswith("digits-tiny-"):
            experiment = preset(name)
            original = preset(name.replace("digits-tiny", "imagenet64").replace("t100", "t1000")).diffusion
            assert experiment.diffusion.num_timesteps * 10 == original.num_timesteps
            assert (experiment.diffusion.schedule, experiment.diffusion.objective) == (original.schedule, original.objective)


@pytest.mark.parametrize("name", ["lsun-batch-size", "sampling-steps"])
def test_figure_1_has_step_counts_on_both_sides_of_the_papers_crossing(name: str) -> None:
    taken = counts(find_ablation(name), "paper")
    assert min(taken) < 50 < max(taken)


def test_a_value_of_a_grid_can_be_a_list() -> None:
    assert [trial.values["channel_mult"] for trial in _own("model.channel_mult=[1,1],[1,2]")] == [[1, 1], [1, 2]]


@pytest.mark.parametrize("name", ["../../home", "a/b", "", "two words", ".hidden", "é"])
def test_a_grid_name_that_can_not_be_a_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="a name that can be a folder's"):
        own_grid(name, {"seed": [1, 2]}, "digits-tiny-hybrid-cosine")


@pytest.mark.parametrize("objective", ["simple", "vlb"])
def test_fields_of_l_hybrid_can_not_be_varied_with_another_objective(objective: Objective) -> None:
    with pytest.raises(UserError, match=f"which L_{objective} does not have"):
        trials(find_ablation("hybrid-weight"), "tiny", objective=objective)


def test_a_grid_over_fields_that_training_does_not_read_is_refused() -> None:
    with pytest.raises(UserError, match="train the same model"):
        trials(own_grid("samplers", {"evaluation.sampling.spacing": ["10", "20"]}, "digits-hybrid-cosine"), "tiny")
