"""The report of an evaluation: a self-contained page that explains its numbers."""

import dataclasses
import json
import math
import re
import warnings
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import rounded
from torch import Tensor

from components.steps.run_messages import training_numbers
from evaluation.distances.metric_value import share_of_images
from evaluation.distances.paired import metric_differences
from evaluation.features.inception import WEIGHTS
from evaluation.monitoring.early_stopping import Candidate
from evaluation.records import grids
from evaluation.records.intervals import JACKKNIFE
from evaluation.records.paired import Difference
from evaluation.records.result import EvaluationResult
from evaluation.records.score_card import as_markdown
from evaluation.reports import figures
from evaluation.reports import paper_numbers as paper
from evaluation.reports.charts import Chart, Line, draw_lines
from evaluation.reports.report import render_report, write_report
from evaluation.selection.final_choice import Choice, Rescored
from training import storage
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.config.presets import preset

_VOID = {"meta", "img", "br", "link", "input", "path", "use", "rect"}


@pytest.fixture
def result(experiment: Experiment) -> EvaluationResult:
    reference = {
        "data_name": "digits",
        "data_digest": "d" * 64,
        "split": "train",
        "image_size": 8,
        "image_channels": 1,
        "resize": "none",
        "num_images": 1497,
        "extractor": "digits-classifier",
        "extractor_sha256": "e" * 64,
        "class_counts": [],
    }
    card = {
        "model": "runs/x/checkpoints/step=00000200 (ema_0.99)",
        "inputs_sha256": ["c" * 64],
        "distance": {
            "name": "FD(digits-classifier)",
            "num_samples": 80,
            "sampler": "ancestral, 8 of 40 steps",
            "sampling": {},
            "labels": "balanced",
            "quantization": "truncated",
            "seed": 1,
            "purpose": "report",
            "precision": "fp32",
            "batch_size": 20,
            "reference": reference,
        },
        "likelihood": {
            "split": "test",
            "num_images": 300,
            "form": "full",
            "num_steps": 10,
            "num_timesteps": 40,
            "seed": 1,
            "decoder": "tanh",
        },
        "device": "cpu",
        "versions": {"python": "3.11"},
    }
    return EvaluationResult(
        checkpoint_uri="runs/x/checkpoints/step=00000200",
        weights="ema_0.99",
        step=200,
        distance_name="FD(digits-classifier)",
        distance=1.23456,
        distance_standard_error=0.0321,
        held_out={"num_images": 80, "real": 3.5, "generated": 4.5},
        likelihood={
            "form": "full",
            "bits_per_dim": 4.23456,
            "standard_error": 0.0257,
            "num_images": 300,
            "num_evaluations_per_image": 40,
            "prior": 0.0,
            "decoder": 1.0,
            "timesteps": [0, 1, 2],
            "per_t": [1.0, 0.5, 0.25],
        },
        metrics={"label_agreement": {"value": 0.98, "standard_error": 0.01, "note": "as asked for"}},
        protocol=card,
        experiment=experiment.to_dict(),
        created_at="2026-11-24T15:42:00+00:00",
        seconds=12.0,
    )


def _history() -> list[dict[str, object]]:
    protocol = {"num_samples": 60, "sampler": "DDIM, eta 0, 5 of 40 steps"}
    return [
        {
            "step": step,
            "scores": {"ema_0.99": 100.0 / step, "ema_0.995": None if step == 100 else 120.0 / step},
            "standard_errors": {"ema_0.99": 0.1, "ema_0.995": None},
            "distance_name": "FD(digits-classifier)",
            "protocol": protocol,
        }
        for step in (100, 200, 300)
    ]


class _Page(HTMLParser):
    """The addresses that a page loads, its unclosed elements, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.loads += [value for name in ("src", "srcset") if (value := values.get(name))]
        if tag in ("script", "link", "iframe"):
            self.loads.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens nothing."""

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing_and_is_well_formed(result: EvaluationResult) -> None:
    png = grids.to_png(grids.sample_grid(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), num_columns=2))
    html = render_report(result, history=_history(), losses=[(i, 1 / (i + 1)) for i in range(100)], grid_png=png)
    page = _Page(html)
    assert page.open == []
    assert [address[:22] for address in page.loads] == ["data:image/png;base64,"]
    assert "url(http" not in html
    assert html.count("<svg") == 3


def test_numbers_are_shown_to_the_digits_that_their_errors_allow(result: EvaluationResult) -> None:
    text = _Page(render_report(result)).text
    assert "1.235" in text
    assert "± 0.032" in text
    assert "4.235" in text
    assert "98.0%" in text


def test_the_page_of_a_distance_in_other_features_says_not_an_fid(result: EvaluationResult) -> None:
    text = " ".join(_Page(render_report(result)).text.split())
    assert "not an FID" in text
    assert "small digit classifier" in text
    assert "cannot be compared with published numbers" in text


def test_an_fid_is_named_so_and_shown_beside_the_papers(result: EvaluationResult) -> None:
    experiment = preset("cifar10-vlb-cosine").to_dict()
    reference = {**result.protocol["distance"]["reference"], "extractor": "inception", "extractor_sha256": WEIGHTS.sha256}
    protocol = {**result.protocol, "distance": {**result.protocol["distance"], "reference": reference}}
    text = _Page(render_report(dataclasses.replace(result, distance_name="FID", experiment=experiment, protocol=protocol))).text
    assert "not an FID" not in text
    assert "The paper's numbers" in text
    assert "2.94" in text


def test_scores_beside_training_keep_their_name_on_the_page_of_another_distance(result: EvaluationResult) -> None:
    fid = dataclasses.replace(result, distance_name="FID")
    html = render_report(fid, history=_history())
    assert "FD(digits-classifier), lower is better" in html
    assert "FID, lower is better" not in html


def test_text_from_outside_is_escaped(result: EvaluationResult) -> None:
    html = render_report(result, links={"<script>alert(1)</script>": "javascript:alert(1)"})
    assert "<script>" not in html
    assert 'href="javascript' not in html


def test_an_evaluation_without_likelihood_samples_or_history_has_a_report(result: EvaluationResult) -> None:
    bare = dataclasses.replace(result, likelihood=None, held_out=None, metrics={}, distance_standard_error=None)
    bare = dataclasses.replace(bare, protocol={**bare.protocol, "likelihood": None})
    text = _Page(render_report(bare)).text
    assert "1.235" in text
    assert "Bits/dim" not in text


def test_the_score_card_has_every_number_with_its_interval_and_how_it_is_found(result: EvaluationResult) -> None:
    agreement = share_of_images("label_agreement", torch.arange(100) < 98, "as asked for").to_dict()
    blocks = [1.2 + 0.01 * number for number in range(10)]
    result = dataclasses.replace(result, distance_without_blocks=blocks, metrics={"label_agreement": agreement})
    card = {score.name: score for score in result.score_card()}
    assert list(card) == ["distance", "bits_per_dim", "label_agreement"]
    assert all(score.interval and score.interval[0] < score.value < score.interval[1] and score.method for score in card.values())
    # 2.262 has four digits.
    assert card["distance"].interval == pytest.approx((1.23456 - 2.262 * 0.0321, 1.23456 + 2.262 * 0.0321), abs=0.0005 * 0.0321)
    assert card["distance"].bias == rounded(9 * (1.245 - 1.23456), 9 * 12, scale=1.245)  # a mean of ten, times 9
    html = render_report(result)
    cells = [cell.partition("</td>")[0].rpartition(">")[2] for cell in html.partition("Score card")[2].split("<td")[1:16]]
    assert cells[:5] == [
        "FD(digits-classifier)",
        "1.235",
        "1.162 to 1.307",
        "jackknife over ten blocks of samples, corrected (Efron and Stein 1981), Student&#39;s t",
        f"{9 * (1.245 - 1.23456):+.2g}",
    ]
    assert cells[10] == "Label agreement"
    assert cells[12:14] == ["93.0 to 99.4%", "closed form for a share (Wilson)"]
    assert "| Label agreement | 98.0% | 93.0 to 99.4% | closed form for a share (Wilson) |" in as_markdown(list(card.values()), "Step 200.")
    numbers = result.flat_metrics()
    assert numbers["final/label_agreement_low"] < numbers["final/label_agreement"] < numbers["final/label_agreement_high"]


def test_the_candidates_of_the_choice_are_listed(result: EvaluationResult) -> None:
    worse = Difference(value=0.1, standard_error=0.01)
    candidates = tuple(
        Rescored(
            candidate=Candidate(step=step, weights="ema_0.99", score=2.0), distance=distance, standard_error=error, difference=difference
        )
        for step, distance, error, difference in ((200, 1.7, 0.05, None), (300, 1.8, 0.05, worse), (400, math.nan, None, None))
    )
    choice = Choice(checkpoint_uri=result.checkpoint_uri, step=200, weights="ema_0.99", candidates=candidates, reason="the smallest")
    text = _Page(render_report(result, choice=choice)).text
    assert "scored again" in text
    assert text.index("1.700 ± 0.050") < text.index("1.800 ± 0.050") < text.index("+0.1 (+0.0804 to +0.12): worse") < text.index("400")
    assert "nan" not in text


@pytest.fixture
def run_without_numbers(result: EvaluationResult, tmp_path: Path) -> str:
    """A run whose samples have features that overflow, and whose network gives no bits/dim."""
    bare = dataclasses.replace(
        result,
        distance=math.nan,
        distance_standard_error=None,
        distance_without_blocks=[math.nan] * 10,
        distance_of_halves=[[math.nan] * 2] * 6,
        held_out={"num_images": 80, "real": 3.5, "generated": math.nan},
        likelihood={**(result.likelihood or {}), "bits_per_dim": math.nan, "standard_error": None, "per_t": [1.0, math.nan, 0.25]},
        metrics={"recall": {"value": math.nan, "standard_error": None, "interval": None, "note": "n"}},
    )
    storage.write_json(str(tmp_path / "evaluations" / "final.json"), bare.to_dict())
    return str(tmp_path)


def test_numbers_that_are_not_finite_are_null_in_the_file_and_read_as_such(run_without_numbers: str) -> None:
    text = Path(run_without_numbers, "evaluations", "final.json").read_text()
    assert '"distance": null' in text
    assert "NaN" not in text
    read = EvaluationResult.read(f"{run_without_numbers}/evaluations/final.json")
    assert math.isnan(read.distance)
    assert read.rank == math.inf
    assert math.isnan(read.distance_without_blocks[0])
    assert math.isnan(read.distance_of_halves[0][0])
    assert json.dumps(read.to_dict(), indent=2) + "\n" == text


def test_a_number_that_is_not_finite_is_a_dash_on_the_page_and_in_the_model_card_and_no_metric(run_without_numbers: str) -> None:
    page = _Page(Path(write_report(run_without_numbers)).read_text()).text
    assert "nan" not in page.split("Protocol")[0]
    card = EvaluationResult.read(f"{run_without_numbers}/evaluations/final.json").score_card()
    lines = as_markdown(card, "Step 200.").splitlines()[-3:]
    assert lines == [f"| {name} | - | - | - |" for name in ("FD(digits-classifier)", "Bits/dim", "Recall")]
    assert [score.to_dict()["value"] for score in card] == [None] * 3
    assert EvaluationResult.read(f"{run_without_numbers}/evaluations/final.json").flat_metrics() == {}


def test_bits_per_dim_that_are_not_finite_are_a_dash_beside_the_papers(run_without_numbers: str) -> None:
    uri = f"{run_without_numbers}/evaluations/final.json"
    storage.write_json(uri, {**storage.read_json(uri), "experiment": preset("cifar10-hybrid-cosine").to_dict()})
    row = Path(write_report(run_without_numbers)).read_text().split("This run: cifar10-hybrid-cosine")[1].split("</tr>")[0]
    assert '<td class="number">\N{EN DASH}</td>' in row


def test_the_message_of_a_run_without_a_finite_distance_says_so(run_without_numbers: str) -> None:
    assert training_numbers(run_without_numbers) == {
        "summary": "no finite FD(digits-classifier), no finite bits/dim, at step 200",
        "distance_name": "FD(digits-classifier)",
        "step": 200,
    }


def test_two_metrics_of_which_one_is_not_finite_have_no_difference(result: EvaluationResult, run_without_numbers: str) -> None:
    item = {"value": 0.5, "standard_error": 0.1, "note": "n", "method": JACKKNIFE, "resampled": [0.5] * 9 + [0.6]}
    ours = dataclasses.replace(result, metrics={"recall": item})
    theirs = dataclasses.replace(result, metrics={"recall": {**item, "value": None, "resampled": [None] * 10}})
    assert set(metric_differences(ours, ours)) == {"recall"}
    assert metric_differences(ours, theirs) == {}


def test_metrics_that_an_earlier_version_stored_are_compared_by_the_method_that_they_have_in_words(result: EvaluationResult) -> None:
    """Theirs had no `resampling` and no `degrees_of_freedom`. Halves: the spread of 14 values, with seven degrees of freedom."""
    without_blocks, of_halves = [0.5] * 9 + [0.6], [0.5] * 13 + [0.64]
    stored = {
        "recall": ("14 balanced halves of the samples, Student's t", of_halves),
        "coverage": ("jackknife over ten blocks of samples, normal", without_blocks),
        "precision": ("closed form for a share (Wilson)", without_blocks),
    }
    items = {
        name: {"value": 0.5, "standard_error": 0.1, "note": "n", "method": method, "resampled": values}
        for name, (method, values) in stored.items()
    }
    ours = dataclasses.replace(result, metrics=items)
    theirs = dataclasses.replace(
        result, metrics={name: {**item, "resampled": [0.5] * len(item["resampled"])} for name, item in items.items()}
    )
    found = metric_differences(ours, theirs)
    assert {name: each.degrees_of_freedom for name, each in found.items()} == {"recall": 7, "coverage": None, "precision": 9}
    assert found["recall"].standard_error == pytest.approx(0.14 * math.sqrt(13) / 14)
    assert found["coverage"].standard_error == pytest.approx(0.1 * 9 / 10)
    own = {"recall": ("halves", 7), "coverage": ("blocks", None), "precision": ("blocks", 9)}
    for name, (resampling, degrees) in own.items():
        items[name] |= {"resampling": resampling, "degrees_of_freedom": degrees, "method": "reworded"}
    assert metric_differences(dataclasses.replace(result, metrics=items), theirs) == found, "the words are for people alone"


def test_a_metric_that_this_version_does_not_know_is_refused_with_its_name(result: EvaluationResult) -> None:
    item = {"value": 0.5, "standard_error": 0.1, "note": "n", "method": JACKKNIFE, "resampled": [0.5] * 10}
    other = dataclasses.replace(result, metrics={"sharpness": item})
    for read in (other.score_card, lambda: metric_differences(other, other)):
        with pytest.raises(UserError, match=r"^'sharpness' is no metric of this version, which knows kid, .*; read its result with"):
            read()


def test_the_chosen_checkpoint_is_marked_in_the_figure() -> None:
    svg = figures.distance_by_step(_history(), distance_name="FD(x)", chosen_step=200, chosen_weights="ema_0.99")
    assert "chosen: step 200" in svg
    assert "decay 0.995" in svg
    assert "training step" in svg
    assert svg == figures.distance_by_step(_history(), distance_name="FD(x)", chosen_step=200, chosen_weights="ema_0.99")


def test_the_report_of_a_run_is_made_from_its_directory(result: EvaluationResult, tmp_path: Path) -> None:
    directory = tmp_path / "run" / "evaluations"
    directory.mkdir(parents=True)
    (directory / "final.json").write_text(json.dumps(result.to_dict()))
    for score in _history():
        (directory / f"step={score['step']:08d}.json").write_text(json.dumps(score))
    uri = write_report(str(tmp_path / "run"), links={"MLflow run": "http://127.0.0.1:5000"})
    assert uri == f"{tmp_path}/run/evaluations/report.html"
    html = Path(uri).read_text()
    assert '<a href="http://127.0.0.1:5000">' in html
    assert "Distance during training" in html
    (directory / "final.json").write_text(json.dumps({**result.to_dict(), "grid_uri": str(tmp_path / "deleted.png")}))
    assert "Distance during training" in Path(write_report(str(tmp_path / "run"))).read_text(), "also where the grid was deleted"


def test_the_figure_of_a_run_has_scores_of_one_protocol(result: EvaluationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the settings with which the training went on; it began with more samples."""
    storage.write_json(f"{tmp_path}/evaluations/final.json", result.to_dict())
    for score, num_samples in zip(_history(), (600, 60, 60), strict=True):
        protocol = {"num_samples": num_samples, "sampler": "DDIM, eta 0, 5 of 40 steps"}
        storage.write_json(f"{tmp_path}/evaluations/step={score['step']:08d}.json", {**score, "protocol": protocol})
    drawn: list[object] = []

    def draw(history: Sequence[dict[str, object]], **_: object) -> str:
        drawn.extend(score["step"] for score in history)
        return ""

    monkeypatch.setattr(figures, "distance_by_step", draw)
    write_report(str(tmp_path))
    assert drawn == [200, 300]


def test_a_grid_keeps_every_pixel_as_a_square() -> None:
    images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grid = grids.sample_grid(images, num_columns=3)
    assert grid.shape == (2 * 51 + 3, 3 * 51 + 3, 3)
    assert torch.equal(torch.from_numpy(grid[3 : 3 + 48 : 6, 3 : 3 + 48 : 6, 0].copy()), images[0, 0])
    assert grids.from_png(grids.to_png(grid)).tolist() == grid.tolist()


def _class_grid(images: Tensor, labels: Tensor, class_names: Sequence[str] = ()) -> grids.Pixels:
    grid = grids.ClassGrid(class_names)
    grid.update(images, labels)
    return grid.pixels()


@pytest.mark.parametrize("name", ["0", "Ankle boot", "a name that is far too long for its column"])
def test_the_names_of_neighbouring_columns_do_not_touch(name: str) -> None:
    images = torch.zeros(3, 1, 28, 28, dtype=torch.uint8)
    grid = grids.sample_grid(images, num_columns=3, column_names=[name] * 3)
    heading = grid[: grid.shape[0] - 2 * 28 - 2 * 2]
    assert (heading < 255).any()
    assert (heading[:, [0, 58, 116]] == 255).all(), "the gaps between columns, 2 pixels wide after every 56"


def test_a_class_grid_has_each_class_in_its_column() -> None:
    labels = torch.tensor([2, 0, 1, 1, 2, 0])
    images = (labels * 100).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    grid = _class_grid(images, labels, ["a", "b", "c"])
    bottom = grid[-20]
    assert [int(bottom[3 + 24 + column * 51, 0]) for column in range(3)] == [0, 100, 200]


def test_a_class_of_any_name_has_a_heading_of_its_own() -> None:
    labels, images = torch.arange(3), torch.zeros(3, 1, 28, 28, dtype=torch.uint8)
    by_number = _class_grid(images, labels)
    assert len({_class_grid(images, labels, list(names)).tobytes() for names in ("üüü", "ßßß", "жжж", "λλλ")}) == 4
    assert np.array_equal(_class_grid(images, labels, ["\u6f22"] * 3), by_number), "no glyph of it is there, so the label stands for it"
    assert _class_grid(images, labels, ["a\nb"] * 3).tobytes() == _class_grid(images, labels, ["a b"] * 3).tobytes()


def test_a_class_grid_stores_no_more_samples_than_it_shows() -> None:
    grid, whole = grids.ClassGrid(), grids.ClassGrid()
    images = torch.randint(0, 256, (10_000, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(10_000) % 1000
    for rows in torch.arange(10_000).split(250):
        grid.update(images[rows], labels[rows])
    stored = [grid._first, *grid._columns.values()]
    memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for column in stored for tensor in column}
    assert sum(memory.values()) <= 2 * 100 * 64, "the first hundred, and ten of each of ten classes"
    whole.update(images, labels)
    assert np.array_equal(grid.pixels(), whole.pixels())


def test_a_class_grid_that_would_have_one_row_shows_the_first_images() -> None:
    images = torch.zeros(200, 3, 64, 64, dtype=torch.uint8)
    assert _class_grid(images, torch.arange(200)).shape == grids.sample_grid(images[:100]).shape


def test_the_papers_rows_are_results_for_the_same_images() -> None:
    cifar10 = paper.rows_for(preset("cifar10-hybrid-cosine"))
    assert min(row.fid for row in cifar10 if row.fid is not None) == 2.90
    assert min(row.bits_per_dim for row in cifar10 if row.bits_per_dim is not None) == 2.94
    table_2 = paper.rows_for(preset("imagenet256-cond-hybrid-linear"))
    assert {row.fid for row in table_2} == {38.1, 31.5, 12.3, 7.7, 7.0}
    assert all(row.source for row in (*cifar10, *table_2))
    assert paper.rows_for(preset("digits-hybrid-cosine")) == ()


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    for text, said in (
        ("[]", "is not a JSON object"),
        ('{"step": 3}', "checkpoint_uri: Field required"),
    ):
        storage.write_bytes(f"{tmp_path}/evaluations/final.json", text.encode())
        with pytest.raises(storage.StorageError, match=rf"evaluations/final\.json: {said}"):
            write_report(str(tmp_path))


def test_the_distance_of_held_out_images_without_their_number_is_named(result: EvaluationResult, tmp_path: Path) -> None:
    damaged = {**result.to_dict(), "held_out": {"real": 1.0, "generated": 2.0}}
    storage.write_json(f"{tmp_path}/evaluations/final.json", damaged)
    with pytest.raises(storage.StorageError, match=r"final\.json: held_out\.num_images: Field required"):
        write_report(str(tmp_path))


def test_of_more_lines_than_colours_each_looks_different() -> None:
    lines = [Line(label=f"line {style}", points={1: (style + 1.0, 0.0), 2: (style + 2.0, 0.0)}, style=style) for style in range(18)]
    picture = draw_lines(lines, Chart(x="training step", y="distance", caption="Eighteen decays."))
    assert picture is not None
    curves = re.findall(r'<path d="M [^"]* L [^"]*" clip-path=[^>]* style="fill: none; ([^"]*)"', picture.svg.replace("\n", ""))
    drawn = [style for style in curves if "stroke-width: 1.8" in style]
    assert len(drawn) == len(set(drawn)) == 18


def test_no_tick_of_a_short_training_lies_between_two_steps() -> None:
    picture = draw_lines([Line(label="a", points={20: (2.0, None), 40: (1.0, None)})], Chart(x="training step", y="distance", caption="."))
    assert picture is not None
    assert ">30<" in picture.svg
    assert not any(f">{tick}<" in picture.svg for tick in (22, 28, 32, 38))


def test_long_names_leave_the_axes_their_width() -> None:
    """Matplotlib warns where a legend beside the axes leaves them none, which is an error here."""
    names = [
        f"digits-tiny-hybrid-linear num_timesteps=400 schedule=linear objective=hybrid variance=learned_range spacing=25 seed={seed}"
        for seed in range(6)
    ]
    lines = [Line(label=name, points={100: (2.0 + number, 0.1), 200: (1.0 + number, 0.1)}) for number, name in enumerate(names)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = draw_lines(lines, Chart(x="training step", y="distance", caption="Six trials."))
    assert picture is not None
    assert [name in picture.svg for name in names] == [True] * 6
