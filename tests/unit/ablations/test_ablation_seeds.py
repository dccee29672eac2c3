"""Repeated seeds: the interval's coverage, one finding of many seeds, and the time left."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rounding import rounded

from components.ablations.directory import ablation_uri
from components.ablations.report import collect
from evaluation.ablations.claims.claim import Deciding, Finding, claim, combine_seeds
from evaluation.ablations.claims.findings import findings
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.ablations.trials.record import AblationTrial, record_uri
from evaluation.records.intervals import mean_interval, seeds_to_decide
from pipelines.local.ablate import TimeLeft, choose_parallel_trials
from training import storage
from training.config.errors import UserError
from training.config.experiment import Resources


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_the_interval_of_normal_values_covers_their_mean_in_95_percent(count: int) -> None:
    draws = 20_000
    mean, half_width = mean_interval(np.random.default_rng(count).normal(0.3, 1.7, (draws, count)))
    covered = np.mean(np.abs(mean - 0.3) <= half_width)
    assert covered == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / draws))  # four standard errors of the share


def test_one_value_has_an_infinite_interval() -> None:
    assert mean_interval([3.0]) == (3.0, np.inf)


def test_the_seeds_that_it_would_take_are_the_fewest_whose_interval_excludes_0() -> None:
    values = [-1.0, -2.0, -3.0]  # sd 1; t / sqrt(n) is 2.48 for 3, 1.59 for 4 and 1.24 for 5
    assert seeds_to_decide(-2.0, values) == 4
    assert seeds_to_decide(-1.3, values) == 5
    assert seeds_to_decide(-0.01, values) is None


def _combined(*differences: float) -> Finding:
    found = [claim("c", "s", ("ours", (5.0 + difference, 0.1)), ("theirs", (5.0, 0.1)), "FD") for difference in differences]
    return combine_seeds([finding for finding in found if finding is not None])


def test_seeds_decide_where_their_interval_excludes_no_difference() -> None:
    assert _combined(-2.0, -2.1, -1.9).verdict == "as the paper says"
    assert _combined(2.0, 2.1, 1.9).verdict == "otherwise than the paper says"
    finding = _combined(-1.0, -2.0, -3.0)
    assert finding.verdict == "not decided here"
    assert finding.evidence == (
        "Means of 3 seeds: ours: 3; theirs: 5 FD. The mean difference is -2, 95% interval -4.48 to +0.484. "
        "At this mean and spread it would take about 4 seeds."
    )
    assert _combined(-1.0, 1.0).evidence.endswith("it would take more than 100 seeds.")
    only = _combined(-9.0)
    assert only.evidence.startswith("Only one seed has these numbers, and an interval needs two. ours: -4 ± 0.1")
    assert json.loads(json.dumps(only.to_dict(), allow_nan=False))["number"]["error"] is None, "JSON has no infinity"


def test_a_side_that_is_another_trial_with_each_seed_has_all_its_names() -> None:
    found = [claim("c", "s", (f"the best, {name}", (1.0, 0.0)), ("rest", (2.0, 0.0)), "FD") for name in ("a", "b", "a")]
    assert "the best, a or b: 1; rest: 2 FD" in combine_seeds([one for one in found if one]).evidence


def test_a_curve_that_has_not_become_worse_contradicts_nothing() -> None:
    def rise(*values: float) -> Finding:
        numbers = [Deciding(name="The end over the least", value=value, level=1.05, above=True, one_sided=True) for value in values]
        return combine_seeds([Finding("c", "s", "not decided here", "e", number) for number in numbers])

    assert rise(1.2, 1.21, 1.19).verdict == "as the paper says"
    low = rise(1.0, 1.01, 1.0)
    assert low.verdict == "not decided here"
    assert low.evidence.endswith("the paper's side is above 1.05. A longer training may still show it.")


def test_a_claim_that_one_seed_leaves_open_is_open() -> None:
    decided = Finding("c", "s", "as the paper says", "e", Deciding(value=-1.0))
    finding = combine_seeds([decided, Finding("c", "s", "not decided here", "Best at the end."), decided])
    assert (finding.verdict, finding.evidence) == (
        "not decided here",
        "Not decided in 1 of 3 seeds. In the first of them: Best at the end.",
    )


def _record(seed: int, width: int, distance: float, **fields: Any) -> AblationTrial:
    final = {"distance_name": "FD", "distance": distance, "distance_standard_error": 0.1, "likelihood": None, "grid_uri": ""}
    label = f"width={width} seed={seed}"
    return AblationTrial(label=label, values={"width": width}, seed=seed, **{"measures": {"final": final}, **fields})


def test_differences_are_taken_within_a_seed_and_a_failed_trial_takes_out_its_seed_alone() -> None:
    # The seeds' levels differ by far more than the widths do: only paired differences show the effect.
    records = [
        _record(seed, width, 50.0 * seed - effect) for seed in range(4) for width, effect in ((32, 0.0), (64, 5.0), (96, 1.0 + seed / 9))
    ]
    (finding,) = findings("width", records)
    assert finding.verdict == "as the paper says"
    assert finding.number is not None
    assert finding.number.seeds == rounded([-1.0, -10 / 9, -11 / 9, -12 / 9], 3, scale=150)  # of distances up to 150
    records[2] = _record(0, 96, 0.0, measures={}, error="killed")  # the widest of the first seed: 64 does not stand in for it
    (finding,) = findings("width", records)
    assert finding.number is not None
    assert finding.number.seeds == rounded([-10 / 9, -11 / 9, -12 / 9], 3, scale=150)


def test_every_number_in_the_evidence_of_several_seeds_is_a_mean() -> None:
    def record(seed: int) -> AblationTrial:
        values = (("strided", 5, 6.0 + seed), ("with-small-t", 5, 4.5), ("strided", 400, 4.0 + seed))
        points = [{"spacing": spacing, "num_steps": count, "bits_per_dim": bits} for spacing, count, bits in values]
        return AblationTrial(label=f"hybrid seed={seed}", role="hybrid", seed=seed, measures={"likelihood-steps": {"points": points}})

    (finding,) = findings("likelihood-steps", [record(seed) for seed in range(3)])
    assert "with them: 4.5; strided alone: 7; all 400 steps: 5 bits/dim." in finding.evidence


def test_every_seed_has_its_joint_measurement(tmp_path: Path) -> None:
    request = AblationRequest(name="ensemble", scale="tiny", seeds=2)
    uri = ablation_uri(request, str(tmp_path))
    for trial in request.trials():
        if trial.label != "vlb seed=1":
            record = AblationTrial(label=trial.label, role=trial.role, values=trial.values, seed=trial.seed)
            storage.write_json(record_uri(uri, trial.label), record.to_dict())
    joint = {record.label: record.error for record in collect(uri, request) if record.role == "ensemble"}
    assert joint == {"ensemble seed=0": "it was not measured yet", "ensemble seed=1": "it needs every trial, and one is missing"}


def test_the_time_left_follows_from_the_trials_so_far(tmp_path: Path) -> None:
    request, now = AblationRequest(name="hybrid-weight", scale="tiny", seeds=5), [0.0]
    uri, (first, *others) = ablation_uri(request, str(tmp_path)), request.trials()
    storage.write_json(record_uri(uri, first.label), AblationTrial(label=first.label, seed=first.seed).to_dict())
    left = TimeLeft([request], str(tmp_path), lambda: now[0])
    assert left.describe() == ""
    left.finish({"ablation_uri": uri, "label": first.label})  # was there before
    assert left.describe() == ""
    for trial in others[:3]:
        left.finish({"ablation_uri": uri, "label": trial.label})
    now[0] = 30.0  # for three of the nineteen equal trials
    assert left.describe() == ", about 2 min 40 s left"


@pytest.mark.parametrize(
    ("cores", "gpus", "given", "num_workers", "expected"),
    [
        (4, 0, None, 1, 4),
        (64, 0, None, 1, 8),
        (64, 0, 20, 1, 20),
        (4, 0, None, 3, 1),
        (16, 2, None, 1, 2),
        (16, 2, None, 2, 1),
        (2, 1, 3, 1, 3),
    ],
)
def test_trials_run_at_once_on_every_core_or_gpu(
    monkeypatch: pytest.MonkeyPatch, cores: int, gpus: int, given: int | None, num_workers: int, expected: int
) -> None:
    monkeypatch.setattr("pipelines.local.ablate.available_cores", lambda: cores)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    resources = Resources(num_workers=num_workers, num_gpus_per_worker=min(gpus, 1))
    assert choose_parallel_trials(given, {"train": resources, "evaluate": Resources()}) == expected
    assert choose_parallel_trials(given, {"train": Resources(), "evaluate": resources}) == expected


def test_trials_that_can_not_run_like_this_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="4 trials at once have one process each, not 2; give --parallel-trials, or workers"):
        choose_parallel_trials(4, {"train": Resources(), "evaluate": Resources(num_workers=2)})
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match=r"train_resources asks for a GPU .*, and this machine shows none"):
        choose_parallel_trials(None, {"train": Resources(num_gpus_per_worker=1), "evaluate": Resources()})
