"""A request: made from a form, equal keys for equal experiments, and the command that repeats it."""

import dataclasses
import json
import shlex
from collections.abc import Iterable

import pytest
from rounding import rounded

from components.ablations.directory import Plan
from components.ablations.tracking import run_name
from evaluation.ablations.definitions.cost import joint_cost, trial_cost
from evaluation.ablations.definitions.paper import names
from evaluation.ablations.definitions.reproductions import REPRODUCTIONS
from evaluation.ablations.definitions.request import DEFAULT_PRESET, OWN_GRID, AblationRequest, from_form, parse_grid
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.config.spacing import likelihood_spacing
from training.cost.estimate import count_macs, estimate


def _guided_by(step: int) -> tuple[str, ...]:
    return ("evaluation.sampling.guidance_scale=2", f"evaluation.sampling.guidance_step={step}")


@pytest.mark.parametrize("name", names())
def test_a_request_and_its_key_survive_json(name: str) -> None:
    request = AblationRequest(name=name, scale="tiny", overrides=("seed=3",))
    again = AblationRequest.from_dict(json.loads(json.dumps(request.to_dict())))
    assert again == request
    assert again.key() == request.key()
    assert request.key().startswith(f"{name}-tiny-")


def test_other_experiments_scales_and_runs_have_other_keys() -> None:
    requests = [
        AblationRequest(name="vlb-ratio", scale="tiny"),
        AblationRequest(name="vlb-ratio", scale="paper"),
        AblationRequest(name="ensemble", scale="tiny"),
        AblationRequest(name="vlb-ratio", scale="tiny", overrides=("seed=1",)),
        AblationRequest(name="vlb-ratio", scale="tiny", runs={"vlb": "s3://b/x"}),
    ]
    assert len({request.key() for request in requests}) == len(requests)


def test_reports_of_a_variant_leave_those_of_the_named_ablation_alone() -> None:
    assert AblationRequest(name="width", scale="tiny").folder() == "width-tiny"
    assert AblationRequest(name="width", scale="tiny", seeds=5).folder() == "width-tiny-5-seeds"
    width = AblationRequest(name="width", scale="tiny")
    mine = AblationRequest(name="mine", scale="tiny", preset="digits-tiny-hybrid-cosine", grid={"seed": [1, 2]})
    changed = [
        dataclasses.replace(width, overrides=("seed=3",)),
        dataclasses.replace(width, overrides=("seed=4",)),
        dataclasses.replace(width, overrides=("seed=3",), seeds=5),
        dataclasses.replace(width, preset="digits-tiny-hybrid-cosine"),
        dataclasses.replace(width, objective="simple"),
        mine,
        dataclasses.replace(mine, preset="digits-hybrid-cosine"),
        dataclasses.replace(mine, grid={"seed": [1, 3]}),
    ]
    assert len({request.folder() for request in changed} - {"width-tiny", "width-tiny-5-seeds"}) == len(changed)


def test_an_unchanged_form_requests_the_ablation_without_changes() -> None:
    request = from_form("width", "tiny", {}, {}, DEFAULT_PRESET, "as named", [])
    assert request == AblationRequest(name="width", scale="tiny")
    assert len(request.trials()) == 3


def test_the_form_sets_the_objective_and_a_users_grid() -> None:
    grid = {"model.dropout": [0.0, 0.1]}
    request = from_form(OWN_GRID, "tiny", grid, {}, "digits-tiny-hybrid-cosine", "simple", ["optim.num_steps=5"])
    assert [trial.values for trial in request.trials()] == [{"dropout": 0.0}, {"dropout": 0.1}]
    assert {trial.experiment.diffusion.objective for trial in request.trials()} == {"simple"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("width", "smal", {}, {}, DEFAULT_PRESET, "as named", []), "there is no scale 'smal'"),
        ((OWN_GRID, "tiny", {}, {}, DEFAULT_PRESET, "as named", []), "needs its axes"),
        ((OWN_GRID, "tiny", {"seed": [1, 2]}, {}, DEFAULT_PRESET, "as named", []), "needs an experiment to vary"),
        ((OWN_GRID, "tiny", {"seed": 1}, {}, "digits-tiny-hybrid-cosine", "as named", []), "needs a list of values"),
        (("width", "tiny", {"seed": [1, 2]}, {}, "digits-tiny-hybrid-cosine", "as named", []), "give a grid of your own another name"),
        (("width", "tiny", {}, {}, DEFAULT_PRESET, "best", []), "there is no objective 'best'"),
        (
            ("width", "tiny", {}, {"seed": 5}, DEFAULT_PRESET, "as named", []),
            "ablation_options.seed: there is no 'seed'; did you mean 'seeds'",
        ),
        (("width", "tiny", {}, {"seeds": True}, DEFAULT_PRESET, "as named", []), "ablation_options.seeds: true is given"),
        (("width", "tiny", {}, {"seeds": "five"}, DEFAULT_PRESET, "as named", []), "ablation_options.seeds: .* got 'five'"),
        (("width", "tiny", {}, {"seeds": 0}, DEFAULT_PRESET, "as named", []), "must be 1 or more, got 0"),
        (("width", "tiny", {}, {"seeds": 334}, DEFAULT_PRESET, "as named", []), "has 1,002 trials; it may have 1,000"),
        (("vlb-ratio", "tiny", {}, {"seeds": 2, "runs": {"vlb": "s3://b/x"}}, DEFAULT_PRESET, "as named", []), "has one seed"),
        (("width", "tiny", {}, {"checkpoint": "best"}, DEFAULT_PRESET, "as named", []), "width measures the last checkpoint of a run"),
        (
            (OWN_GRID, "tiny", {"seed": [1, 2]}, {"checkpoint": "first"}, "digits-tiny-hybrid-cosine", "as named", []),
            "there is no checkpoint 'first'; it is one of last, best",
        ),
        ((OWN_GRID, "tiny", {"seed": [1, 2]}, {"seeds": 2}, "digits-tiny-hybrid-cosine", "as named", []), "varies the seed itself"),
    ],
)
def test_an_invalid_form_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_form(*arguments).trials()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            AblationRequest(name="mine", scale="tiny", preset="fashion-mnist-hybrid-cosine", grid={"optim.num_steps": [2400, 4800]}),
            "the learning rate is 0 from update 2400 on, and training goes to optim.num_steps",
        ),
        (
            AblationRequest(name="width", scale="tiny", overrides=("optim.lr_anneal_steps=100",)),
            "the learning rate is 0 from update 100 on",
        ),
        (
            AblationRequest(
                name="mine",
                scale="tiny",
                preset="digits-tiny-vlb-cosine",
                grid={"model.dropout": [0.0, 0.1]},
                overrides=("diffusion.vlb_weight=0.5",),
            ),
            "diffusion.vlb_weight: only objective 'hybrid' uses it, and diffusion.objective is 'vlb'",
        ),
        (
            AblationRequest(name="width", scale="tiny", overrides=_guided_by(30)),
            "training stores no checkpoint of step 30 before its last one",
        ),
    ],
)
def test_a_training_that_a_command_of_its_own_would_refuse_is_no_trial(request_: AblationRequest, message: str) -> None:
    with pytest.raises(UserError, match=message):
        request_.trials()


def test_a_run_that_was_trained_so_can_still_be_evaluated() -> None:
    overrides = ("optim.lr_anneal_steps=100",)
    AblationRequest(name="vlb-ratio", scale="tiny", overrides=overrides).trials()
    named = {row.role: f"s3://bucket/runs/{row.role}" for row in REPRODUCTIONS["imagenet64-table1-1500k"].paper}
    AblationRequest(name="imagenet64-table1-1500k", scale="paper", overrides=overrides, runs=named).trials()


def test_a_sweep_makes_each_experiment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of it asks for all trials, several times."""
    calls, override = [], Experiment.override

    def count(self: Experiment, overrides: Iterable[str]) -> Experiment:
        calls.append(tuple(overrides))
        return override(self, calls[-1])

    monkeypatch.setattr(Experiment, "override", count)
    grid = {"diffusion.vlb_weight": [number / 1e4 + 1e-7 for number in range(1, 21)]}  # which no other test has
    request = AblationRequest(name="mine", scale="tiny", preset="digits-tiny-hybrid-cosine", grid=grid)
    plan = Plan(request=request, items=[], parent_run_id="", parent_url="", tracking="", values={x.label: {} for x in request.trials()})
    for trial in request.trials():
        assert plan.trial(trial.label) is not None
        run_name(request, trial)
    assert request.key() == request.key()
    assert len(calls) == len(set(calls)) == 20


def test_the_form_sets_seeds_and_runs() -> None:
    assert from_form("width", "tiny", {}, {"seeds": 5.0}, DEFAULT_PRESET, "as named", []).seeds == 5  # KFP has no whole numbers in JSON
    request = from_form("vlb-ratio", "tiny", {}, {"runs": {"vlb": "s3://b/x"}}, DEFAULT_PRESET, "as named", [])
    assert request == AblationRequest(name="vlb-ratio", scale="tiny", runs={"vlb": "s3://b/x"})


def test_the_checkpoint_of_a_users_grid_can_be_chosen_and_the_best_is_the_default() -> None:
    form = (OWN_GRID, "tiny", {"model.dropout": [0.0, 0.1]})
    plain, best, last = (
        from_form(*form, options, "digits-tiny-hybrid-cosine", "as named", [])
        for options in ({}, {"checkpoint": "best"}, {"checkpoint": "last"})
    )
    assert [request.ablation().checkpoint for request in (plain, best, last)] == ["best", "best", "last"]
    assert (best.key(), best.trials()) == (plain.key(), last.trials())
    assert last.key() != plain.key()
    assert shlex.split(last.command())[-4:] == ["--checkpoint", "last", "--grid", "model.dropout=0.0,0.1"]


def test_the_trials_of_a_setting_differ_by_seed_alone_and_come_seed_by_seed() -> None:
    once = AblationRequest(name="hybrid-weight", scale="tiny", overrides=("seed=7",)).trials()
    repeated = AblationRequest(name="hybrid-weight", scale="tiny", overrides=("seed=7",), seeds=3).trials()
    assert [trial.seed for trial in repeated] == [7] * 4 + [8] * 4 + [9] * 4
    for number, trial in enumerate(repeated):
        plain = once[number % 4]
        assert trial.label == f"{plain.label} seed={trial.seed}"
        assert (trial.setting, trial.values, trial.own) == (plain.label, plain.values, plain.own)
        assert trial.experiment == dataclasses.replace(plain.experiment, seed=trial.seed)


@pytest.mark.parametrize("name", names())
def test_one_seed_is_the_ablation_as_it_was(name: str) -> None:
    plain = AblationRequest(name=name, scale="tiny")
    stored = {field: value for field, value in plain.to_dict().items() if field != "seeds"}  # a plan from before there were seeds
    assert AblationRequest.from_dict(stored) == plain
    assert all(trial.seed is None and trial.setting == trial.label and "seed" not in trial.label for trial in plain.trials())
    assert AblationRequest(name=name, scale="tiny", seeds=2).key() != plain.key()


def test_the_command_of_a_request_contains_all_its_options() -> None:
    request = AblationRequest(name="width", scale="paper", objective="vlb", overrides=("seed=1",))
    assert request.command() == "iddpm ablate width --scale paper --objective vlb --set seed=1"
    assert AblationRequest(name="width", scale="tiny", seeds=5).command() == "iddpm ablate width --scale tiny --seeds 5"
    request = AblationRequest(name="vlb-ratio", scale="tiny", runs={"vlb": "s3://b/x"})
    assert request.command() == "iddpm ablate vlb-ratio --scale tiny --run vlb=s3://b/x"


def test_an_evaluation_of_existing_runs_costs_its_measures_and_no_training() -> None:
    request = AblationRequest(name="vlb-ratio", scale="tiny")
    trial = request.trials()[0]
    cost = trial_cost(request, trial)
    assert cost.training == 0.0
    flops = 2 * sum(count_macs(trial.experiment).values()) * 400 * 100  # T terms of 100 images
    assert cost.measuring == rounded(flops / (989e12 * 0.3) / 3600, 4)  # operations, as below


@pytest.mark.parametrize(("form", "passes"), [("full", 400), ("spaced", len(likelihood_spacing(400, 25))), ("stratified", 25)])
def test_bits_per_dim_over_training_cost_what_their_form_takes(form: str, passes: int) -> None:
    overrides = (
        f"evaluation.likelihood_form={form}",
        "evaluation.likelihood_steps=25",
        "optim.num_steps=600",
        "optim.checkpoint_interval=200",
    )
    request = AblationRequest(name="width", scale="tiny", overrides=overrides)
    trial = dataclasses.replace(request.trials()[0], measures=("history-likelihood",))
    flops = 2 * sum(count_macs(trial.experiment).values()) * passes * 3 * 100  # of three checkpoints, on 100 images
    assert trial_cost(request, trial).measuring == rounded(flops / (989e12 * 0.3) / 3600, 4)


def test_candidates_cost_another_sampling_each_only_where_the_best_checkpoint_is_chosen() -> None:
    rescoring = ("evaluation.rescore_best=3",)
    last, best = (AblationRequest(name=name, scale="paper", overrides=rescoring) for name in ("width", "cifar10-dropout"))
    assert (last.ablation().checkpoint, best.ablation().checkpoint) == ("last", "best")
    costs = []
    for request in (last, best):
        trial = dataclasses.replace(request.trials()[0], measures=("final",))
        sampled = sum(estimate(trial.experiment, "H100", with_memory=False).phases[name].card_hours for name in ("sampling", "likelihood"))
        costs.append((trial_cost(request, trial).measuring, sampled, estimate(trial.experiment, "H100").phases["sampling"].card_hours))
    (measured, expected, _), (measured_best, expected_best, one_sampling) = costs
    assert measured == rounded(expected, 4)
    assert measured_best == rounded(expected_best + 3 * one_sampling, 4)


def test_a_likelihood_at_all_steps_costs_one_evaluation_as_there_are_no_small_timesteps_to_add() -> None:
    request = AblationRequest(name="likelihood-steps", scale="tiny")
    trial = request.trials()[0]
    evaluations = sum(count + (len(likelihood_spacing(400, count)) if count < 400 else 0) for count in request.counts())
    flops = 2 * sum(count_macs(trial.experiment).values()) * evaluations * 100
    assert trial_cost(request, trial).measuring == rounded(flops / (989e12 * 0.3) / 3600, 4)


def test_only_ablations_with_a_joint_measurement_have_a_joint_cost() -> None:
    assert joint_cost(AblationRequest(name="width", scale="tiny")).measuring == 0.0
    assert joint_cost(AblationRequest(name="ensemble", scale="tiny")).measuring > 0.0
    assert joint_cost(AblationRequest(name="two-stage", scale="tiny")).measuring > 0.0


def test_the_command_can_be_pasted_into_a_shell() -> None:
    grid = {"model.channel_mult": [[1, 1], [1, 2]], "diffusion.schedule": ["linear", "cosine"]}
    request = AblationRequest(name="mine", scale="tiny", preset="digits-tiny-hybrid-cosine", grid=grid, overrides=("data.name=two words",))
    words = shlex.split(request.command())
    assert words[-2:] == ["--set", "data.name=two words"]
    assert parse_grid(words[index + 1] for index, word in enumerate(words) if word == "--grid") == grid
    grid = {"evaluation.sampling.spacing": ["5,5", "10"], "data.name": ["1", "true"], "diffusion.vlb_weight": [0.001, 0.01]}
    words = shlex.split(AblationRequest(name="mine", scale="tiny", preset="digits-tiny-hybrid-cosine", grid=grid).command())
    assert parse_grid(words[index + 1] for index, word in enumerate(words) if word == "--grid") == grid
    assert words[-1] == "diffusion.vlb_weight=0.001,0.01"


def test_the_values_of_a_grid_that_are_no_json_are_words() -> None:
    for word in ("[" * 100_000, "9" * 5000):
        assert parse_grid([f"data.name={word},b"]) == {"data.name": [word, "b"]}
