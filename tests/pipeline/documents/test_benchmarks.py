"""The benchmark suite as its user sees it: what it runs, keeps, prints and writes. No number is judged here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import bench
import bench_card
import bench_numerics
import bench_samplers
import pytest
import torch
from measuring import Measured, Run, ratio
from reports import calibrations, markdown, number, on_screen
from rounding import rounded
from rows import DEPTH, GROUPS, ROWS, TERMS, Row, rows_of
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from training_steps import network_experiment

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


@pytest.mark.slow
def test_a_group_that_fails_is_told_with_its_reason_and_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The group's process takes a module of the test in place of the suite's own."""
    (tmp_path / "bench.py").symlink_to(bench.__file__)
    (tmp_path / "bench_roofline.py").write_text(
        "from measuring import Measured\n"
        "def measure(run):\n"
        "    yield 'copy', Measured(value=20.0)\n"
        "    raise RuntimeError('no such convolution')\n"
    )
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "bench.py"))
    assert bench.main(["roofline", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "20.0 GB/s" in said
    assert "FAILED: RuntimeError: no such convolution" in said
    assert f"{len(rows_of(('roofline',), 'cpu')) - 1} rows failed" in said


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
    assert phase.card_hours == phase.flops / 1e11 / 3600
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
    assert cell.ratio == rounded(1.05, 4)  # two ratios and their mean
    assert cell.high - cell.ratio == pytest.approx(2.10092 * (0.9 * 82.5 / 2) ** 0.5 * 0.05, rel=2.4e-6)  # half of the last digit
    page = bench_samplers.table(draws)
    assert "| DDIM | even | **1.05 (0.41 to 1.69)** |" in page
    assert bench_samplers.figure(draws).count("<svg") == 1


class Cards:
    """A machine whose card is named by the test, and whose groups give recorded rows, in a minute each."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.out, self.card, self.value, self.now, self.allowed = root, root / "bench", "", 0.0, 0.0, dict[str, float]()
        (root / "training" / "cost").mkdir(parents=True)
        (root / "training" / "cost" / "measured.json").write_text('{"CPU": {"machine": "a processor", "speeds": []}}')
        (root / "BENCHMARKS.md").write_text("a page\n<!-- cuda begins -->\n<!-- cuda ends -->\nits end\n")
        self.out.mkdir()
        monkeypatch.setattr(bench, "ROOT", root)
        monkeypatch.setattr(bench, "_problem", lambda options: None)
        monkeypatch.setattr(bench, "describe", lambda device: {"processor": "a processor", "gpu": f"{self.card}, CUDA 13.0"})
        monkeypatch.setattr(bench, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(bench, "_in_own_process", self._recorded)

    def _recorded(self, group: str, options: object, seconds: float) -> None:
        self.allowed[group], self.now = seconds, self.now + 60.0
        details = {"forward_macs": 8.4e9, "flops_per_second": self.value * 1e12} if group == "training" else None
        rows = [{"key": row.key, **Measured(value=self.value, details=details).to_dict()} for row in rows_of((group,), "cuda")]
        (self.out / f"{group}.cuda.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def measure(self, card: str, value: float, *arguments: str) -> int:
        self.card, self.value, self.now = card, value, 0.0
        return bench.main(["--device", "cuda", "--out", str(self.out), "--write", *arguments])

    def page(self) -> str:
        return (self.root / "BENCHMARKS.md").read_text()


def test_each_card_keeps_its_tables_its_results_and_its_speeds_until_it_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = Cards(tmp_path, monkeypatch)
    path = tmp_path / "BENCHMARKS.md"
    path.write_text(markdown(path.read_text(), {"machine": {}, "groups": {}}, "cuda"))
    assert "### No card yet\n" in cards.page()
    cards.measure("NVIDIA H100 80GB HBM3", 41.0)
    cards.measure("NVIDIA H200", 42.0, "roofline", "training")
    cards.measure("NVIDIA H100 80GB HBM3", 43.0, "roofline", "training")
    text, first, second = cards.page().split("\n### ")
    assert text == "a page\n<!-- cuda begins -->"
    assert first.startswith("NVIDIA H100 80GB HBM3\n\nMeasured ")
    assert second.startswith("NVIDIA H200\n\nMeasured ")
    assert "| copy in memory | | 43.0 GB/s |" in first
    assert "eager | 41.0 times |" in first  # of the group `card`, from the run before, which another card's did not drop
    assert "were not measured" not in first
    assert "| copy in memory | | 42.0 GB/s |" in second
    assert "Groups that were not measured: `numerics`, `card`, `sampling`, `evaluation`, `memory`." in second
    assert second.endswith("\n<!-- cuda ends -->\nits end\n")
    stored = tmp_path / "training" / "cost" / "measured.json"
    speeds = json.loads(stored.read_text())
    assert list(speeds) == ["CPU", "H100", "H200"]
    assert speeds["H100"]["speeds"][0]["flops_per_second"] == 43e12
    assert speeds["H200"]["speeds"][0]["flops_per_second"] == 42e12
    (cards.out / "cuda-nvidia-h200.json").unlink()
    cards.measure("NVIDIA H200", 44.0, "roofline")  # on another machine, say; it has no speed, and takes none away
    assert "| copy in memory | | 44.0 GB/s |" in cards.page()
    assert json.loads(stored.read_text()) == speeds
    assert {path.name for path in cards.out.iterdir()} == {"cuda-nvidia-h100-80gb-hbm3.json", "cuda-nvidia-h200.json"}


def test_a_run_on_a_card_ends_after_its_minutes_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cards = Cards(tmp_path, monkeypatch)
    assert cards.measure("NVIDIA H100", 50.0, "--minutes", "2.5") == 1  # a minute a group
    assert cards.allowed == {"roofline": 150.0, "numerics": 90.0, "training": 30.0}  # a group that runs is ended then
    assert "stopped: 2.5 minutes were over before card, sampling, evaluation, memory\n" in capsys.readouterr().out
    assert "Groups that were not measured: `card`, `sampling`, `evaluation`, `memory`." in cards.page()
    cards.allowed.clear()
    assert cards.measure("NVIDIA H100", 1.0, "numerics", "--minutes", "1") == 0  # in time
    assert cards.measure("NVIDIA H100", 1.0, "roofline", "numerics", "--minutes", "1") == 1  # the earlier numbers are no measurement now
    cards.measure("NVIDIA H100", 50.0)
    assert cards.allowed["memory"] == bench.SECONDS_A_GROUP  # seven minutes of thirty
    monkeypatch.setattr(bench, "MINUTES_ON_A_CARD", 6.5)
    cards.measure("NVIDIA H100", 50.0)
    assert cards.allowed["memory"] == 30.0


def test_the_goals_of_the_numerics_are_the_rounding_of_the_networks_layers_and_sums() -> None:
    from training.models.layers import AttentionBlock, GroupNorm32
    from training.models.unet import make_model

    experiment = network_experiment("cifar10", Run(device=torch.device("cpu"), quick=False, scratch=Path()), batch=bench_numerics.BATCH)
    with torch.device("meta"):
        network = make_model(experiment)
    layers, terms = [], []

    def see(module: nn.Module, x: Tensor, y: Tensor) -> None:
        if isinstance(module, GroupNorm32):
            terms.append(x[0].numel() // module.num_groups)
        else:  # forward, gradient of the input, gradient of the weight
            terms.extend((module.weight[0].numel(), module.weight[:, 0].numel(), y.shape[0] * y.shape[2] * y.shape[3]))

    for name, module in network.named_modules():
        if not any(part in name for part in ("skip_connection", "emb_layers", "time_embed")):  # these are beside the others
            # An attention adds up twice between its two 1x1 convolutions.
            layers.append(isinstance(module, nn.Conv2d | nn.Conv1d | GroupNorm32) + 2 * isinstance(module, AttentionBlock))
        if isinstance(module, nn.Conv2d | GroupNorm32):
            module.register_forward_hook(lambda module, inputs, y: see(module, inputs[0], y))
    network(torch.empty(bench_numerics.BATCH, 3, 32, 32, device="meta"), torch.empty(bench_numerics.BATCH, device="meta"))
    assert (sum(layers), max(terms)) == (DEPTH, TERMS)
    goals = {row.key: row.goals["cuda"] for row in rows_of(("numerics",), "cuda")}
    sum_error = 2**-24 * math.sqrt(TERMS / 6)
    assert goals == {
        "numerics.loss": round(1e6 * 2 * sum_error * math.sqrt(2 * DEPTH)),
        "numerics.gradient": round(1e6 * sum_error * math.sqrt(2 * 2 * DEPTH)),
    }


def _channels_last(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    return (inputs[0].contiguous(memory_format=torch.channels_last),) if isinstance(module, nn.Conv2d) else None


def _in_tf32(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    if not isinstance(module, nn.Conv2d):
        return None
    bits = inputs[0].detach().contiguous().view(torch.int32)
    rounded = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)  # 10 of 23 bits of the fraction
    return (inputs[0] + (rounded - inputs[0]).detach(),)


@pytest.fixture
def tf32_as_before() -> Iterator[None]:
    """Puts back what a group changes for its own process."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("tf32_as_before")
def test_another_order_of_the_sums_meets_the_goals_of_the_numerics_and_tf32_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(device=torch.device("cpu"), quick=True, scratch=tmp_path)
    rows = rows_of(("numerics",), "cuda")
    step = bench_numerics.loss_and_gradients

    def values(change: object) -> dict[str, float]:
        calls = []

        def of(*arguments: object) -> dict[str, Tensor]:
            calls.append(arguments)
            if len(calls) == 1:  # the processor's own
                return step(*arguments)
            with register_module_forward_pre_hook(change):
                return step(*arguments)

        monkeypatch.setattr(bench_numerics, "loss_and_gradients", of)
        return {f"numerics.{name}": measured.value for name, measured in bench_numerics.measure(run)}

    near, far = values(_channels_last), values(_in_tf32)
    assert set(near) == {row.key for row in rows}
    assert [row.verdict(Measured(value=near[row.key]), "cuda") for row in rows] == ["met", "met"]
    assert near["numerics.gradient"] > 0
    gradient = rows[1]
    assert gradient.verdict(Measured(value=far[gradient.key]), "cuda") == "MISSED"


@pytest.mark.slow
def test_the_rows_of_a_card_are_measured_by_code_that_runs_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []

    def compiled(model: nn.Module, *, dynamic: bool, mode: str | None = None) -> nn.Module:
        modes.append(mode)
        return model

    monkeypatch.setattr(torch, "compile", compiled)  # a real one takes minutes
    found = dict(bench_card.measure(Run(device=torch.device("cpu"), quick=True, scratch=tmp_path)))
    assert {f"card.{name}" for name in found} == {row.key for row in rows_of(("card",), "cuda")}
    assert all(measured.value > 0 for measured in found.values())
    assert 0 < found["waiting"].value < 100
    assert modes == [None, None, None, "reduce-overhead"]  # the eager sides have none


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "there is no group 'nothing'"),
        (["--quick", "--write"], "measures nothing that could be written"),
        (["--minutes", "0"], "--minutes must be above 0, got 0"),
    ],
)
def test_a_wrong_request_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
