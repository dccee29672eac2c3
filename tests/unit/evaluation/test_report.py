"""The report of an evaluation: a self-contained page that explains its numbers."""

import dataclasses
import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.distances.metric_value import share_of_images
from evaluation.features.inception import WEIGHTS
from evaluation.records import grids
from evaluation.records.result import EvaluationResult
from evaluation.records.score_card import as_markdown
from evaluation.reports import figures
from evaluation.reports import paper_numbers as paper
from evaluation.reports.report import render_report, write_report
from training import storage
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
    assert "98.0 %" in text


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
    assert card["distance"].interval == pytest.approx((1.23456 - 2.262 * 0.0321, 1.23456 + 2.262 * 0.0321), rel=1e-4)
    assert card["distance"].bias == pytest.approx(9 * (1.245 - 1.23456))
    html = render_report(result)
    cells = [cell.partition("</td>")[0].rpartition(">")[2] for cell in html.partition("Score card")[2].split("<td")[1:16]]
    assert cells[:5] == [
        "FD(digits-classifier)",
        "1.235",
        "1.162 to 1.307",
        "jackknife over ten blocks of samples, Student&#39;s t",
        f"{9 * (1.245 - 1.23456):+.2g}",
    ]
    assert cells[10] == "Label agreement"
    assert cells[12:14] == ["93.0% to 99.4%", "closed form for a share (Wilson)"]
    assert "| Label agreement | 98.0% | 93.0% to 99.4% | closed form for a share (Wilson) |" in as_markdown(
        list(card.values()), "Step 200."
    )
    numbers = result.flat_metrics()
    assert numbers["final/label_agreement_low"] < numbers["final/label_agreement"] < numbers["final/label_agreement_high"]


def test_the_candidates_of_the_choice_are_listed(result: EvaluationResult) -> None:
    candidates = [
        {"candidate": {"step": step, "weights": "ema_0.99", "score": 2.0}, "distance": 1.5 + step / 1000, "standard_error": 0.05}
        for step in (200, 300)
    ]
    text = _Page(render_report(result, choice={"candidates": candidates})).text
    assert "scored again" in text
    assert text.index("1.700 ± 0.050") < text.index("1.800 ± 0.050")


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
