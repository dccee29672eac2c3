"""Findings follow from the numbers: records confirm each claim, contradict it, or leave it undecided."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rounding import U32, rounded

from evaluation.ablations.claims.claim import claim, judge
from evaluation.ablations.claims.estimates import distances_by_weights
from evaluation.ablations.claims.findings import findings
from evaluation.ablations.definitions.paper import names
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.ablations.trials.measures import paired_correlation, sampling_of
from evaluation.ablations.trials.record import AblationTrial
from evaluation.records import npz
from training import storage


def _final(distance: float, bits: float, error: float = 0.1) -> dict[str, Any]:
    return {
        "distance_name": "FD(digits-classifier)",
        "distance": distance,
        "distance_standard_error": error,
        "likelihood": {"bits_per_dim": bits, "standard_error": error / 10},
        "grid_uri": "",
    }


def _record(
    distance: float = 1.0, bits: float = 4.0, *, role: str = "", measures: dict[str, Any] | None = None, **values: Any
) -> AblationTrial:
    return AblationTrial(
        label=role or str(values), role=role, values=values, measures={"final": _final(distance, bits), **(measures or {})}
    )


def _verdicts(name: str, records: list[AblationTrial]) -> dict[str, str]:
    return {finding.claim: finding.verdict for finding in findings(name, records)}


def _hybrid_weight(stop: tuple[float, float], free: tuple[float, float]) -> dict[str, str]:
    return _verdicts(
        "hybrid-weight",
        [
            _record(distance, stop_gradient=stopped, vlb_weight=weight)
            for stopped, pair in ((True, stop), (False, free))
            for weight, distance in zip((0.001, 0.01), pair, strict=True)
        ],
    )


def test_the_numbers_of_the_papers_table_1_confirm_its_claims() -> None:
    assert set(_hybrid_weight((28.04, 27.36), (30.89, 34.35)).values()) == {"as the paper says"}


def test_numbers_in_the_opposite_order_contradict_the_claims() -> None:
    assert set(_hybrid_weight((30.89, 34.35), (28.04, 27.36)).values()) == {"otherwise than the paper says"}


def test_differences_within_their_errors_leave_the_claims_undecided() -> None:
    assert set(_hybrid_weight((1.0, 1.05), (1.05, 1.0)).values()) == {"not decided here"}


def test_a_claim_is_left_out_if_one_of_its_trials_failed() -> None:
    records = [_record(stop_gradient=True, vlb_weight=weight) for weight in (0.001, 0.01)]
    failed = AblationTrial(label="x", values={"stop_gradient": False, "vlb_weight": 0.01}, error="out of memory")
    assert findings("hybrid-weight", [*records, failed]) == []


def test_the_best_dropout_is_left_open_if_one_of_them_failed() -> None:
    records = [_record(float(number), schedule="linear", dropout=rate) for number, rate in enumerate((0.1, 0.3), start=1)]
    claim_ = "Of 0.1, 0.2 and 0.3, dropout 0.1 works best for the linear schedule."
    third = {"schedule": "linear", "dropout": 0.2}
    assert _verdicts("cifar10-dropout", [*records, _record(1.5, **third)]) == {claim_: "as the paper says"}
    failed = AblationTrial(label="x", values=third, error="out of memory")
    assert findings("cifar10-dropout", [*records, failed]) == []


@pytest.mark.parametrize("name", names())
def test_an_ablation_without_records_has_no_findings_and_does_not_fail(name: str) -> None:
    failed = [AblationTrial(label="x", role="hybrid", error="killed")]
    assert findings(name, failed) == []


@pytest.mark.parametrize(
    ("difference", "error", "verdict"), [(-1.0, 0.4, "as"), (-1.0, 0.6, "not"), (1.0, 0.4, "otherwise"), (0.0, 0.0, "not")]
)
def test_a_difference_counts_above_two_standard_errors(difference: float, error: float, verdict: str) -> None:
    assert judge(difference, error).startswith(verdict)


def test_the_evidence_contains_both_numbers_and_their_difference_with_its_error() -> None:
    finding = claim("a", "b", ("ours", (3.0, 0.3)), ("theirs", (5.0, 0.4)), "FID")
    assert finding is not None
    assert finding.evidence == "ours: 3 ± 0.3; theirs: 5 ± 0.4 FID. The difference is -2 ± 0.5."


def test_the_numbers_of_the_papers_main_table_confirm_its_claims() -> None:
    rows = ((1000, "linear", "simple", 3.73, 3.29), (4000, "linear", "simple", 3.37, 2.90), (4000, "linear", "hybrid", 3.26, 3.07))
    rows += ((4000, "cosine", "simple", 3.26, 3.05), (4000, "cosine", "hybrid", 3.17, 3.19), (4000, "cosine", "vlb", 2.94, 11.47))
    records = [_record(fid, bits, data="cifar10", num_timesteps=t, schedule=schedule, objective=o) for t, schedule, o, bits, fid in rows]
    found = _verdicts("objective-schedule", records)
    assert len(found) == 5
    assert set(found.values()) == {"as the paper says"}


def _steps(**curves: dict[int, float]) -> dict[str, Any]:
    points = [
        {"method": method, "num_steps": count, "distance": value, "standard_error": 0.01}
        for method, curve in curves.items()
        for count, value in curve.items()
    ]
    return {"sampling-steps": {"points": points, "distance_name": "FD"}}


def test_sampling_by_few_and_by_many_steps_is_compared_with_ddim_schedule_and_variance() -> None:
    hybrid = _steps(ancestral={5: 9.0, 10: 4.0, 100: 1.0, 400: 0.9}, ddim={5: 5.0, 10: 3.0, 100: 2.0})
    linear, simple = _steps(ancestral={5: 20.0, 10: 6.0, 100: 1.0, 400: 0.9}), _steps(ancestral={5: 30.0, 10: 30.0, 100: 9.0, 400: 1.0})
    records = [
        _record(role="hybrid", data="digits", schedule="cosine", objective="hybrid", measures=hybrid),
        _record(role="hybrid-linear", data="digits", schedule="linear", objective="hybrid", measures=linear),
        _record(role="simple", data="digits", schedule="cosine", objective="simple", measures=simple),
    ]
    found = _verdicts("sampling-steps", records)
    assert len(found) == 4
    assert set(found.values()) == {"as the paper says"}


@pytest.mark.parametrize(("repaired", "verdict"), [(4.1, "as the paper says"), (5.1, "otherwise than the paper says")])
def test_small_timesteps_that_repair_a_strided_likelihood_confirm_the_claim(repaired: float, verdict: str) -> None:
    points = [
        {"spacing": "strided", "num_steps": 5, "bits_per_dim": 5.0, "standard_error": 0.1},
        {"spacing": "with-small-t", "num_steps": 5, "bits_per_dim": repaired, "standard_error": 0.1},
        {"spacing": "strided", "num_steps": 400, "bits_per_dim": 4.0, "standard_error": 0.1},
    ]
    (finding,) = findings("likelihood-steps", [_record(role="hybrid", measures={"likelihood-steps": {"points": points}})])
    assert finding.verdict == verdict
    assert "all 400 steps: 4" in finding.evidence


def test_the_evidence_says_all_steps_only_of_a_chain_of_all_steps() -> None:
    points = [
        {"spacing": spacing, "num_steps": k, "bits_per_dim": bits}
        for k, strided, repaired in ((50, 5.9, 4.2), (1000, 4.3, 3.75))
        for spacing, bits in (("strided", strided), ("with-small-t", repaired))
    ]
    (finding,) = findings("likelihood-steps", [_record(role="hybrid", measures={"likelihood-steps": {"points": points}})])
    assert "(1,000 strided steps: 4.3)" in finding.evidence


def test_the_ends_of_the_ratio_are_those_of_the_ensemble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.ablations.claims.findings.ENDS_SHARE", 10)
    bound = {"bound": {"per_t": [1.0] * 40, "timesteps": list(range(40))}}
    found = findings("vlb-ratio", [_record(role=role, measures=bound) for role in ("hybrid", "vlb")])
    assert found[0].evidence.startswith("Over the first 4 timesteps ")


def test_the_ratio_of_bounds_is_judged_at_both_ends_and_in_the_middle() -> None:
    hybrid = {"bound": {"per_t": [2.0] + [0.5] * 38 + [0.5], "timesteps": list(range(40))}}
    vlb = {"bound": {"per_t": [1.0] * 40, "timesteps": list(range(40))}}
    found = findings("vlb-ratio", [_record(role="hybrid", measures=hybrid), _record(role="vlb", measures=vlb)])
    assert [finding.verdict for finding in found] == ["as the paper says", "as the paper says", "otherwise than the paper says"]
    assert "is 2 (geometric mean)" in found[0].evidence


def test_an_ensemble_is_compared_with_the_better_of_its_parts() -> None:
    records = [_record(19.2, 3.57, role="hybrid"), _record(40.1, 3.53, role="vlb"), _record(19.9, 3.49, role="ensemble")]
    found = findings("ensemble", records)
    assert [finding.verdict for finding in found] == ["as the paper says"] * 3
    assert "3.53" in found[0].evidence


def _history(curve: dict[int, float]) -> dict[str, Any]:
    points = [{"step": step, "scores": {"ema_0.9": value + 1, "ema_0.99": value}, "standard_errors": {}} for step, value in curve.items()]
    return {"history": {"points": points, "distance_name": "FD", "protocol": None}}


def test_overfitting_and_the_effect_of_dropout_are_found_in_the_scores() -> None:
    raw = {
        "raw-weights": {
            "points": [
                {"weights": "model", "distance": 9.0, "standard_error": 0.1},
                {"weights": "ema_0.99", "distance": 2.0, "standard_error": 0.1},
            ],
            "step": 300,
        }
    }
    records = [
        _record(2.0, dropout=0.0, measures={**_history({100: 2.0, 200: 3.0, 300: 4.0}), **raw}),
        _record(1.0, dropout=0.1, measures=_history({100: 3.0, 200: 1.0, 300: 1.0})),
    ]
    found = findings("cond64-overfitting", records)
    verdicts = {finding.claim.split(",")[0]: finding.verdict for finding in found}
    assert [finding.verdict for finding in found[:2]] == ["as the paper says", "not decided here"]
    assert verdicts["A small amount of dropout improves the best attainable distance."] == "as the paper says"
    assert verdicts["With dropout it takes longer to get to the best."] == "as the paper says"
    assert verdicts["An average of the weights is better than the weights that are trained (dropout 0.0)."] == "as the paper says"


def test_schedules_are_compared_by_the_steps_of_their_smallest_bits_per_dim() -> None:
    def course(values: list[float]) -> dict[str, Any]:
        points = [{"step": 100 * (k + 1), "bits_per_dim": value, "standard_error": 0.01} for k, value in enumerate(values)]
        return {"history-likelihood": {"points": points}}

    records = [
        _record(1.0, schedule="linear", dropout=0.1, measures=course([5.0, 4.0, 3.5])),
        _record(1.0, schedule="cosine", dropout=0.1, measures=course([4.0, 3.5, 3.6])),
    ]
    found = findings("cifar10-dropout", records)
    assert [finding.verdict for finding in found] == ["not decided here", "as the paper says", "as the paper says"]
    assert "still becoming better" in found[0].evidence


def test_a_curve_without_its_later_points_decides_nothing_and_says_which_are_missing() -> None:
    """The first step may be missing: its average is too short for the snapshots."""

    def record(schedule: str, left_out: list[int]) -> AblationTrial:
        points = [{"step": step, "bits_per_dim": step / 100, "standard_error": 0.01} for step in (200, 300)]
        return _record(1.0, schedule=schedule, dropout=0.1, measures={"history-likelihood": {"points": points, "left_out": left_out}})

    found = findings("cifar10-dropout", [record("linear", [100]), record("cosine", [100, 400, 500])])
    assert [finding.verdict for finding in found[:2]] == ["as the paper says", "not decided here"]
    assert found[1].evidence == "Its bits/dim are missing at some steps, the first of them 400: no average could be rebuilt there."
    assert not [finding for finding in found if "reaches its optimum" in finding.claim]


def test_the_earlier_optimum_is_undecided_until_that_curve_has_become_worse() -> None:
    records = [
        _record(2.0, dropout=0.0, measures=_history({100: 3.0, 200: 2.0, 300: 2.01})),
        _record(1.0, dropout=0.1, measures=_history({100: 3.0, 200: 2.0, 300: 1.0})),
    ]
    verdicts = _verdicts("cond64-overfitting", records)
    assert verdicts["With dropout it takes longer to get to the best."] == "not decided here"


def test_the_widest_model_is_compared_with_the_narrowest() -> None:
    found = _verdicts("width", [_record(1.0, 3.5, width=192), _record(2.0, 3.6, width=64)])
    assert set(found.values()) == {"as the paper says"}


def test_the_paired_correlation_is_one_for_equal_images_and_small_for_unrelated_ones(tmp_path: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8, generator=generator)
    other = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8, generator=generator)
    alike, unlike = paired_correlation(images, images)
    assert alike.tolist() == pytest.approx([1.0] * 50, rel=0, abs=64 * U32)  # means of so many squares
    assert abs(float(unlike.mean())) < 0.1
    records = []
    for role, batch in (("hybrid", images), ("vlb", other)):
        uri = str(tmp_path / f"{role}.npz")
        npz.write_images(uri, batch, None)
        records.append(_record(role=role, data="digits", measures={"samples": {"images_uri": uri, "sampler": "x"}}))
    (finding,) = findings("same-noise", records)
    assert finding.verdict == "not decided here"
    npz.write_images(uri, other.repeat_interleave(2, -1).repeat_interleave(2, -2), None)
    assert findings("same-noise", records) == [], "a run that the user named may have another size"
    storage.delete(uri)
    assert findings("same-noise", records) == [], "its images were deleted"


def test_the_error_of_the_same_noise_claim_is_that_of_a_mean_over_images(tmp_path: Any) -> None:
    """Images that share a fifth of their pixels: by the error of one correlation of 50 points, 1 / sqrt(50), nothing would be decided."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(0, 256, (50, 1, 16, 16), dtype=torch.uint8, generator=generator) for _ in range(2))
    second[..., :3, :] = first[..., :3, :]
    records = []
    for role, batch in (("hybrid", first), ("vlb", second)):
        uri = str(tmp_path / f"{role}.npz")
        npz.write_images(uri, batch, None)
        records.append(_record(role=role, data="digits", measures={"samples": {"images_uri": uri, "sampler": "x"}}))
    (finding,) = findings("same-noise", records)
    a, b = (batch.flatten(1).double().numpy() for batch in (first, second))
    differences = [np.corrcoef(a[i], b[i])[0, 1] - np.corrcoef(a[i], b[i - 1])[0, 1] for i in range(50)]
    assert finding.number is not None
    assert finding.number.value == rounded(np.mean(differences), 50 * 256)
    assert finding.number.error == rounded(np.std(differences, ddof=1) / math.sqrt(50), 50 * 256)
    assert finding.number.value < 2 / math.sqrt(50)
    assert finding.verdict == "as the paper says"


@pytest.mark.parametrize("name", [name for name in names() if name != "two-stage"])
def test_the_registered_plan_of_the_small_scale_is_what_decides_the_claims(name: str, tmp_path: Any) -> None:
    """Records that make every claim's number finite: the findings then have the registered texts, levels and sides."""
    request = AblationRequest(name=name, scale="small")
    steps = request.counts() or (5,)
    courses = {100: 2.0, 200: 1.0, 300: 3.0}
    measures = {
        **_steps(ancestral=dict.fromkeys(steps, 2.0), ddim=dict.fromkeys([k for k in steps if k < 400], 1.0)),
        "figure-1": {"points": [{"method": "ddim", "num_steps": k, "distance": 1.0, "standard_error": 0.1} for k in steps if k < 100]},
        "likelihood-steps": {
            "points": [
                {"spacing": spacing, "num_steps": k, "bits_per_dim": 1.0} for spacing in ("strided", "with-small-t") for k in (5, 400)
            ]
        },
        "bound": {"per_t": [1.0] * 400},
        "history-likelihood": {"points": [{"step": step, "bits_per_dim": value} for step, value in courses.items()]},
        "raw-weights": {"points": [{"weights": weights, "distance": 1.0} for weights in ("model", "ema_0.9")]},
        **_history(courses),
    }
    records = []
    for trial in (*request.trials(), *([replace(request.trials()[0], role="ensemble")] if name == "ensemble" else [])):
        uri = str(tmp_path / f"{len(records)}.npz")
        npz.write_images(uri, torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8), None)
        samples = {"samples": {"images_uri": uri, "sampler": "x"}}
        records.append(_record(role=trial.role, measures={**measures, **samples}, **trial.values))
    small = request.ablation().small
    assert small is not None
    found = {
        finding.claim: (finding.number.level, finding.number.above, finding.number.unit)
        for finding in findings(name, records)
        if finding.number
    }
    assert {text: rule[:2] for text, rule in found.items()} == {claim.text: (claim.level, claim.above) for claim in small.claims}
    for claim_ in small.claims:
        unit = found[claim_.text][2]
        if unit:  # of the numbers that are differences of two sides
            assert claim_.number.split()[0] == ("the" if "steps to" in unit else "bits/dim" if "bits" in unit else "FD(digits-classifier)")


@pytest.mark.parametrize(
    ("method", "count", "spacing"), [("ancestral", 40, "40"), ("ddim", 40, "ddim40"), ("ddim", 30, "30"), ("ancestral", 400, "")]
)
def test_ddim_uses_the_released_stride_if_one_gives_the_number_of_steps(method: Any, count: int, spacing: str) -> None:
    assert sampling_of(method, count, 400).spacing == spacing


def test_numbers_that_are_not_finite_are_not_measured_and_stop_no_claim() -> None:
    lost = {"likelihood": {"bits_per_dim": None, "standard_error": None}}
    records = [_record(role=role) for role in ("ensemble", "hybrid", "vlb")]
    records[0].measures["final"].update(lost)
    assert not [text for text in _verdicts("ensemble", records) if "likelihood" in text]
    measures = [{"bound": {"per_t": [1.0, value], "timesteps": [0, 1]}} for value in (1.0, None)]
    pair = [_record(role=role, measures=each) for role, each in zip(("hybrid", "vlb"), measures, strict=True)]
    assert _verdicts("vlb-ratio", pair) == {}
    pair[1].measures["bound"] = {"per_t": [1.0] * 4, "timesteps": list(range(4))}
    assert _verdicts("vlb-ratio", pair) == {}, "nor are models of other numbers of timesteps compared"
    bits = [("strided", 5, None), ("with-small-t", 5, 4.1), ("strided", 400, 4.0)]
    points = [{"spacing": spacing, "num_steps": count, "bits_per_dim": value} for spacing, count, value in bits]
    assert _verdicts("likelihood-steps", [_record(role="hybrid", measures={"likelihood-steps": {"points": points}})]) == {}
    weights = [{"weights": name, "distance": value, "standard_error": 0.1} for name, value in (("model", 2.0), ("ema_0.9", None))]
    assert distances_by_weights(_record(measures={"raw-weights": {"points": weights}})) == {"model": (2.0, 0.1)}
