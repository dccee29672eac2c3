"""The benchmark suite as its user sees it: what it runs, keeps, prints and writes. No number is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import bench
import bench_samplers
import pytest
from measuring import Measured, ratio
from reports import calibrations, markdown, number, on_screen
from rows import GROUPS, ROWS, Row, rows_of

_ROOT = Path(bench.__file__).parents[2]
_EMPTY = "a page\n<!-- cpu begins -->\nold\n<!-- cpu ends -->\nits end\n"


def _results(rows: dict[str, Measured], failure: str | None = None) -> dict[str, object]:
    groups = {key.split(".")[0]: {"date": "2026-11-24", "commit": "abc", "seconds": 60.0, "failure": failure, "rows": {}} for key in rows}
    for key, measured in rows.items():
        groups[key.split(".")[0]]["rows"][key] = measured.to_dict()
    return {"machine": {"processor": "a processor, 2 cores", "versions": "torch 2.13"}, "groups": groups}


def test_every_row_of_the_suite_is_in_benchmarks_md() -> None:
    text = (_ROOT / "BENCHMARKS.md").read_text()
    for device in ("cpu", "cuda"):
        part = text.partition(f"<!-- {device} begins -->")[2].partition(f"<!-- {device} ends -->")[0]
        missing = [row.key for row in rows_of(GROUPS, device) if f"| {row.what} | {row.against}" not in part]
        assert missing == []


def test_every_group_is_a_file_and_every_key_is_used_once() -> None:
    found = {path.stem.removeprefix("bench_") for path in Path(bench.__file__).parent.glob("bench_*.py")}
    # These have commands of their own.
    alone = {"stopping", "nightly", "night_error", "intervals", "samplers", "regression", "sample_sizes", "ranking", "precision"}
    assert found - alone == set(GROUPS)
    assert len({row.key for row in ROWS}) == len(ROWS)
    assert {row.key.count(".") for row in ROWS} == {1}  # GROUP.NAME


@pytest.mark.slow
def test_a_group_that_ran_is_kept_and_shown(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, bench.__file__, "--quick", "--out", str(tmp_path), "roofline"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "convolution, bf16" in done.stdout
    kept = json.loads((tmp_path / "cpu-quick.json").read_text())
    told = kept["groups"]["roofline"]
    assert told["failure"] is None
    assert set(told["rows"]) == {row.key for row in rows_of(("roofline",), "cpu")}
    assert all(row["value"] > 0 for row in told["rows"].values())
    page = markdown(_EMPTY, kept, "cpu")
    assert f"{number(told['rows']['roofline.copy']['value'])} GB/s" in page
    assert page.startswith("a page\n")
    assert page.endswith("<!-- cpu ends -->\nits end\n")


def test_a_group_that_fails_is_told_with_its_reason_and_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def half(group: str, options: object) -> str:
        (tmp_path / f"{group}.cpu.jsonl").write_text('{"key": "roofline.copy", "value": 20.0}\n')
        return "RuntimeError: no such convolution"

    monkeypatch.setattr(bench, "_in_own_process", half)
    assert bench.main(["roofline", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "20.0 GB/s" in said
    assert "FAILED: RuntimeError: no such convolution" in said
    assert "2 rows failed" in said


def test_a_missed_goal_is_said_with_its_reason_everywhere() -> None:
    results = _results({"checkpoints.stall": Measured(value=3.0, low=2.0, high=4.0)})
    assert "MISSED" in on_screen(results, ("checkpoints",), "cpu")
    page = markdown(_EMPTY, results, "cpu")
    assert "Missed:" in page
    assert "| 3.00% | 2.00 to 4.00 | <= 1 | MISSED |" in page


@pytest.mark.parametrize(
    ("value", "at_least", "verdict"), [(1.0, True, "met"), (0.9, True, "MISSED"), (1.0, False, "met"), (1.1, False, "MISSED")]
)
def test_a_goal_is_a_bound_on_the_right_side(value: float, at_least: bool, verdict: str) -> None:
    row = Row(key="a.b", what="", against="", unit="times", goals={"cpu": 1.0}, at_least=at_least)
    assert row.verdict(Measured(value=value), "cpu") == verdict


def test_a_ratio_is_of_medians_and_its_range_is_of_rounds() -> None:
    found = ratio([4.0, 6.0, 100.0], [2.0, 2.0, 4.0])
    assert (found.value, found.low, found.high) == (3.0, 2.0, 25.0)


def test_measured_speeds_are_what_a_cost_is_reckoned_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.config.presets import preset
    from training.cost import accelerators as cards
    from training.cost.estimate import estimate

    path = tmp_path / "measured.json"
    speed = Measured(value=1.0, details={"forward_macs": 8.4e9, "flops_per_second": 1e11})
    calibrations(path, _results({"training.cifar10-fp32": speed, "training.digits": Measured(value=1.0)}), "cpu")
    monkeypatch.setattr(cards, "MEASURED_PATH", path)
    cards._measured.cache_clear()
    try:
        phase = estimate(preset("cifar10-hybrid-cosine"), "cpu", price_per_hour=2.0).phases["training"]
    finally:
        cards._measured.cache_clear()
    assert phase.card_hours == pytest.approx(phase.flops / 1e11 / 3600)
    assert phase.price == 2.0 * phase.card_hours
    assert phase.basis == "training step, CIFAR-10, fp32, measured 2026-11-24 on a processor, 2 cores"


@pytest.mark.slow
def test_the_table_of_the_ablations_costs_has_what_their_plans_say() -> None:
    from evaluation.ablations.definitions.cost import joint_cost, trial_cost
    from evaluation.ablations.definitions.paper import names
    from evaluation.ablations.definitions.request import AblationRequest

    text = (_ROOT / "BENCHMARKS.md").read_text()
    for name in names():
        request = AblationRequest(name=name, scale="paper")
        trials = request.trials()
        cost = sum((trial_cost(request, trial) for trial in trials), joint_cost(request))
        training, _, measuring = cost.describe("H100").removesuffix(" of measuring on one H100").rpartition(" of training, ")
        number = f"{len(trials)}" + ("" if training else " runs evaluated")
        assert f"| `{name}` | {number} | {training or '-'}, {measuring} |" in text


def test_the_table_of_samplers_has_ratios_on_common_seeds_with_intervals_and_marks_the_goals() -> None:
    def draw(sampler: str, evaluations: int, seed: int, distance: float, slope: float) -> bench_samplers.Draw:
        without = [distance + slope * block for block in range(10)]
        common = {"data": "digits", "model": "m", "distance_name": "FD", "num_images": 100, "steps": "even", "seconds": 1.0}
        return bench_samplers.Draw(sampler=sampler, evaluations=evaluations, seed=seed, distance=distance, without=without, **common)

    draws = [draw(bench_samplers.BASELINE, 250, seed, 2.0, 0.0) for seed in (0, 1)]
    draws += [draw("DDIM", 10, seed, distance, 0.1) for seed, distance in ((0, 2.0), (1, 2.2), (7, 99.0))]  # no baseline for seed 7
    cell = bench_samplers.cells(draws)["DDIM", "even"][10]
    # The ratios 1 and 1.1; those without a block rise by 0.05 a block: sqrt(9/10 * 82.5) * 0.05 = 0.4308 for one seed, / sqrt(2) for two.
    assert cell.ratio == pytest.approx(1.05)
    assert cell.high - cell.ratio == pytest.approx(2.1009 * 0.4308 / 2**0.5, rel=1e-3)
    page = bench_samplers.table(draws)
    assert "| DDIM | even | **1.05 (0.41 to 1.69)** |" in page
    assert bench_samplers.figure(draws).count("<svg") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nothing"], "there is no group 'nothing'"), (["--quick", "--write"], "measures nothing that could be written")],
)
def test_a_wrong_request_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
