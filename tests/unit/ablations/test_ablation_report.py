"""The page of an ablation: our numbers beside the paper's, a difference only where both are comparable, in one self-contained file."""

import base64
import dataclasses
import io
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from components.ablations.tracking import sample_pictures
from evaluation.ablations.claims.findings import findings
from evaluation.ablations.definitions.ablation import Scale, label_of
from evaluation.ablations.definitions.paper import find_ablation, names
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.ablations.page.figures import bits_by_steps, draw_bars, figures, name_bars
from evaluation.ablations.page.gallery import findings_as_markdown, write_gallery
from evaluation.ablations.page.page import _reported_card, render
from evaluation.ablations.page.sample_grids import sample_grids
from evaluation.ablations.page.table import TableNumber, TableRow, reported, table_rows
from evaluation.ablations.trials.record import AblationTrial, slug, split_by_seed
from evaluation.ablations.trials.trial_model import find_trial_model
from evaluation.records import npz
from evaluation.records.numbers import format_estimate, plain_estimate
from evaluation.records.protocol_card import ERROR_ROW
from training import storage
from training.checkpoints import checkpoint
from training.config.experiment import Experiment
from training.config.presets import find_preset, preset
from training.storage import StorageError

_DATA = {"name": "digits", "digest": "0" * 32, "num_images": 1497, "image_size": 8}


def _final(distance: float, name: str) -> dict[str, Any]:
    reference = {
        "num_images": 1497,
        "split": "train",
        "data_name": "digits",
        "data_digest": "0" * 32,
        "extractor": "x",
        "extractor_sha256": "1" * 64,
    }
    protocol = {
        "distance": {
            "num_samples": 500,
            "quantization": "truncated",
            "seed": 1,
            "sampler": "ancestral, 25 of 400 steps",
            "reference": reference,
        },
        "likelihood": {"num_images": 300, "split": "test", "form": "stratified", "num_steps": 40, "num_timesteps": 400},
        "versions": {"python": "3.11"},
    }
    return {
        "distance_name": name,
        "distance": distance,
        "distance_standard_error": 0.5,
        "likelihood": {"bits_per_dim": 4.0, "standard_error": 0.02},
        "grid_uri": "",
        "protocol": protocol,
    }


def _curve(key: str, kind: str, names_of: tuple[str, ...], value: str) -> list[dict[str, Any]]:
    return [
        {kind: name, key: count, value: 1.0 + count / 400, "standard_error": 0.1, "sampler": f"{name}, {count}", "num_samples": 500}
        for name in names_of
        for count in (5, 40, 400)
    ]


def _measures(folder: Path) -> dict[str, Any]:
    """Return a small result of every measure."""
    uri = str(folder / "images.npz")
    images = torch.arange(40 * 64).reshape(40, 1, 8, 8).remainder(256).to(torch.uint8)
    npz.write_images(uri, images, None)
    steps = {
        "points": _curve("num_steps", "method", ("ancestral", "ddim"), "distance"),
        "distance_name": "FD(x)",
        "grids": {"ancestral": [{"num_steps": 5, "images_uri": uri}]},
    }
    scores = [{"step": step, "scores": {"ema_0.9": 9.0, "ema_0.99": 8.0 + step / 1e3}, "standard_errors": {}} for step in (100, 200)]
    return {
        "sampling-steps": steps,
        "figure-1": steps,
        "likelihood-steps": {"points": _curve("num_steps", "spacing", ("strided", "with-small-t"), "bits_per_dim"), "num_images": 100},
        "bound": {"timesteps": list(range(80)), "per_t": [1.0 / (t + 1) for t in range(80)], "num_images": 100, "bits_per_dim": 4.0},
        "samples": {"images_uri": uri, "sampler": "ancestral, 25 of 400 steps", "num_images": 40},
        "history": {"points": scores, "distance_name": "FD(x)", "protocol": {"num_samples": 250, "sampler": "DPM-Solver++"}},
        "history-likelihood": {"points": [{"step": s, "bits_per_dim": 4.0 + s / 1e3, "standard_error": 0.1} for s in (100, 200)]},
        "raw-weights": {"points": [{"weights": "model", "distance": 3.0, "standard_error": 0.1}], "step": 200},
        "flops_per_step": 1e9,
    }


def _records(request: AblationRequest, folder: Path, *, distance_name: str = "FD(x)") -> list[AblationTrial]:
    folder.mkdir(exist_ok=True)
    taken = _measures(folder)
    records = []
    for number, trial in enumerate(request.trials()):
        wanted = {name: taken[name] for name in (*trial.measures, "flops_per_step") if name in taken}
        if "final" in trial.measures:
            wanted["final"] = _final(10.0 + number, distance_name)
        records.append(
            AblationTrial(
                label=trial.label,
                role=trial.role,
                values=trial.values,
                preset=trial.preset,
                own=trial.own,
                run_uri="s3://bucket/runs/x",
                checkpoint_uri="s3://bucket/runs/x/checkpoints/step=00000100",
                weights="ema_0.99",
                step=100,
                experiment=trial.experiment.to_dict(),
                data=_DATA,
                measures=wanted,
                seed=trial.seed,
            )
        )
    joint = request.ablation().joint_role
    for seed in split_by_seed(records) if joint else ():
        known = {"role": joint, "experiment": records[0].experiment, "data": _DATA, "seed": seed}
        records.append(AblationTrial(label=label_of(joint, seed), **known, measures={"final": _final(5.0 + (seed or 0), distance_name)}))
    return records


def _page(request: AblationRequest, records: list[AblationTrial], *, draw: bool = False) -> str:
    rows = table_rows(request, records)
    drawn, found = figures(request, records, rows) if draw else [], findings("" if request.grid else request.name, records)
    return render(
        request, records, rows, figures=drawn, findings=found, links={"Directory": "s3://bucket/x", "Compare": "http://mlflow/#/x"}
    )


@pytest.mark.parametrize("scale", ["paper", "tiny"])
@pytest.mark.parametrize("name", names())
def test_every_ablation_has_a_self_contained_page_that_names_its_scale(name: str, scale: Scale, tmp_path: Path) -> None:
    request = AblationRequest(name=name, scale=scale)
    page = _page(request, _records(request, tmp_path / "records"), draw=True)
    assert find_ablation(name).title in page
    assert ("The tiny scale: the paper" in page) == (scale == "tiny")
    assert ("The paper&#39;s scale." in page) == (scale == "paper")
    assert "1,497 training images of digits" in page
    assert request.command() in page
    assert not re.search(r'<(script|link|iframe)|(src|href)="(?!#|data:|http://mlflow)', page)
    drawn = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert drawn or name == "same-noise"
    for figure in drawn:
        ElementTree.fromstring(figure)
        assert 'aria-label="' in figure
    if name not in ("same-noise", "two-stage", "ensemble", "hybrid-weight", "objective-schedule"):
        assert len(re.findall("(sampling steps|evaluation steps|timestep t|training step|FLOPs)", "".join(drawn))) > 0


@pytest.mark.parametrize("name", names())
def test_with_seeds_a_page_has_the_mean_of_each_setting_and_counts_the_seeds_that_finished(name: str, tmp_path: Path) -> None:
    request = AblationRequest(name=name, scale="tiny", seeds=3)
    settings = len(request.trials()) // 3
    records = _records(request, tmp_path / "records")
    failed = records[settings]  # the first trial of the second seed
    records[settings] = AblationTrial(label=failed.label, role=failed.role, values=failed.values, seed=failed.seed, error="killed")
    rows = table_rows(request, records)
    assert [row.seeds for row in rows[: settings + 1]] == ["2 of 3", *["3 of 3"] * (len(rows[: settings + 1]) - 1)]
    page = _page(request, records, draw=True)
    assert f"Failed: {failed.setting} seed=1." in page
    assert "Every trial has 3 seeds." in page
    assert "--seeds 3" in page
    for figure in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(figure)
    if "final" in request.ablation().measures:
        distances = [10.0 + k * settings for k in (0, 2)]  # the first setting's seeds that finished
        assert rows[0].distance.ours == sum(distances) / 2
        assert rows[0].distance.error == pytest.approx(12.706 * settings, rel=4e-5)  # t of one degree of freedom to five digits
        assert rows[0].to_dict()["distance_by_seed"] == " ".join(map(str, distances))


def test_at_the_papers_scale_our_fid_is_compared_with_the_papers_fid() -> None:
    request = AblationRequest(name="hybrid-weight", scale="paper")
    records = [
        AblationTrial(label=t.label, values=t.values, preset=t.preset, own=t.own, measures={"final": _final(30.0, "FID")})
        for t in request.trials()
    ]
    rows = table_rows(request, records)
    assert [row.distance.paper for row in rows] == [28.04, 27.36, 30.89, 34.35]
    assert [round(row.distance.difference or 0.0, 2) for row in rows] == [1.96, 2.64, -0.89, -4.35]
    assert [row.bits_per_dim.paper for row in rows] == [3.62, 3.62, 3.62, 3.63]
    assert {row.source for row in rows} == {"supplement table 1"}


def test_bars_are_named_by_what_differs_in_the_words_of_the_table(tmp_path: Path) -> None:
    request = AblationRequest(name="hybrid-weight", scale="tiny")
    rows = table_rows(request, _records(request, tmp_path))
    assert name_bars(rows)[0] == "stop-gradient yes, lambda 0.001"
    assert name_bars(rows)[-1] == "stop-gradient no, lambda 0.01"


@pytest.mark.parametrize(
    ("scale", "distance_name", "overrides"), [("tiny", "FD(x)", ()), ("paper", "FD(x)", ()), ("paper", "FID", ("seed=1",))]
)
def test_no_difference_is_taken_of_numbers_that_are_not_comparable(scale: Scale, distance_name: str, overrides: tuple[str, ...]) -> None:
    request = AblationRequest(name="hybrid-weight", scale=scale, overrides=overrides)
    trial = request.trials()[0]
    record = AblationTrial(
        label=trial.label, values=trial.values, preset=trial.preset, own=trial.own, measures={"final": _final(1.0, distance_name)}
    )
    (row,) = table_rows(request, [record])
    assert row.distance.paper == 28.04
    assert row.distance.difference is None


def _distances(request: AblationRequest, **record: Any) -> list[tuple[float | None, float | None]]:
    """Return the paper's FID and our difference from it, for each row."""
    joint = [AblationTrial(label=request.name, role=request.name)] if request.ablation().joint != "none" else []
    records = [AblationTrial(label=t.label, role=t.role, values=t.values, preset=t.preset, own=t.own) for t in request.trials()]
    filled = [dataclasses.replace(one, measures={"final": _final(30.0, "FID")}, **record) for one in (*records, *joint)]
    return [(row.distance.paper, row.distance.difference) for row in table_rows(request, filled)]


@pytest.mark.parametrize(
    ("name", "scale", "arguments"),
    [
        ("width", "paper", {"objective": "vlb"}),
        ("two-stage", "tiny", {"objective": "vlb"}),
        ("hybrid-weight", "tiny", {"preset": "cifar10-hybrid-cosine"}),
    ],
)
def test_experiments_that_the_paper_did_not_run_get_no_number_of_the_paper(name: str, scale: Scale, arguments: dict[str, str]) -> None:
    request = AblationRequest(name=name, scale=scale, **arguments)  # type: ignore[arg-type]
    assert set(_distances(request)[:4]) == {(None, None)}


def test_a_users_run_is_compared_with_the_paper_only_if_it_is_the_papers_experiment() -> None:
    request = AblationRequest(name="ensemble", scale="paper", runs={role: f"s3://x/{role}" for role in ("hybrid", "vlb")})
    assert [difference for _, difference in _distances(request, experiment=preset("digits-hybrid-cosine").to_dict())] == [None] * 3
    assert None not in [difference for _, difference in _distances(dataclasses.replace(request, runs={}))]


def test_the_page_names_the_users_changes(tmp_path: Path) -> None:
    request = AblationRequest(name="width", scale="tiny", objective="vlb", overrides=("seed=1",))
    assert "With changes: objective vlb, seed=1." in _page(request, _records(request, tmp_path / "a"))
    request = AblationRequest(name="hybrid-weight", scale="tiny", preset="digits-hybrid-cosine")
    page = _page(request, _records(request, tmp_path / "b"))
    assert "another experiment than its own, digits-hybrid-cosine." in page
    assert "divided by ten" not in page


def test_every_table_has_the_papers_numbers_in_the_right_rows() -> None:
    def paper_distances(name: str, scale: Scale = "paper") -> list[float | None]:
        request = AblationRequest(name=name, scale=scale)
        records = [AblationTrial(label=t.label, role=t.role, values=t.values, preset=t.preset, own=t.own) for t in request.trials()]
        joint = request.ablation().joint_role
        records += [AblationTrial(label=joint, role=joint)] if joint else []
        return [row.distance.paper for row in table_rows(request, records)]

    assert paper_distances("ensemble") == paper_distances("ensemble", "tiny") == [19.2, 40.1, 19.9]
    assert paper_distances("two-stage") == [31.5, 2.92, None, 12.3, 38.1, 7.7, 7.0]
    assert paper_distances("cifar10-dropout") == [3.07, None, None, None, None, 3.19]
    assert paper_distances("cond64-overfitting") == [6.92, None, None]
    assert paper_distances("objective-schedule", "tiny") == [32.5, 31.3, 32.2, 27.0, 28.0, 56.7]
    assert paper_distances("sampling-steps") == [19.2, 3.19, 3.07, 3.05]
    assert paper_distances("sampling-steps", "tiny") == paper_distances("sampling-steps", "small") == [3.19, 3.07, 3.05]
    assert paper_distances("two-stage", "tiny")[:3] == [31.5, 2.92, None]


@pytest.mark.parametrize("scale", ["tiny", "small"])
@pytest.mark.parametrize("name", [name for name in names() if name != "two-stage"])
def test_at_our_scales_the_papers_number_beside_a_trial_is_that_of_the_same_model(name: str, scale: Scale) -> None:
    """The paper's trials may be more, and in another order."""

    def model(experiment: Experiment) -> list[Any]:
        return [getattr(experiment.diffusion, field) for field in ("objective", "schedule", "stop_gradient", "vlb_weight")]

    request = AblationRequest(name=name, scale=scale)
    papers = find_ablation(name).paper
    for index, trial in enumerate(request.trials()):
        if found := reported(request, index, AblationTrial(label=trial.label)):
            theirs = [model(preset(each.preset, found.overrides)) for each in papers if found in find_preset(each.preset).results]
            assert theirs == [model(trial.experiment)] * max(len(theirs), 1)


def test_a_failed_trial_is_named_with_its_reason(tmp_path: Path) -> None:
    request = AblationRequest(name="hybrid-weight", scale="tiny")
    records = _records(request, tmp_path / "records")
    records[2] = AblationTrial(label=records[2].label, values=records[2].values, error="the device <0> has no memory")
    page = _page(request, records)
    assert f"Failed: {records[2].label}." in page
    assert "the device &lt;0&gt; has no memory" in page
    assert page.count('<tr class="failed">') == 1


def test_an_ablation_whose_trials_all_failed_still_has_a_page() -> None:
    for name in names():
        request = AblationRequest(name=name, scale="tiny")
        records = [AblationTrial(label=t.label, role=t.role, values=t.values, error="killed") for t in request.trials()]
        page = _page(request, records, draw=True)
        assert page.count("<strong>Failed:") == len(records)


def test_trials_whose_distance_is_not_finite_are_in_the_table_with_their_bits_per_dim(tmp_path: Path) -> None:
    request = AblationRequest(name="mine", scale="tiny", preset="digits-tiny-hybrid-cosine", grid={"optim.num_steps": [50, 100]})
    records = _records(request, tmp_path)
    for record in records:
        record.measures["final"]["distance"] = record.measures["final"]["distance_standard_error"] = None
    page = _page(request, records, draw=True)
    assert page.count('<td class="number">-</td><td class="number">4.000 ± 0.020</td>') == len(records)


def test_a_users_grid_has_no_claims_and_no_numbers_of_the_paper(tmp_path: Path) -> None:
    request = AblationRequest(name="mine", scale="tiny", grid={"seed": [1, 2]}, preset="digits-tiny-hybrid-cosine")
    page = _page(request, _records(request, tmp_path / "records"))
    assert "the paper&#39;s FID" not in page
    assert "The paper&#39;s FIDs are shown" not in page
    assert "The paper&#39;s claim" not in page
    assert "iddpm ablate mine --scale tiny --preset digits-tiny-hybrid-cosine --grid seed=1,2" in page


def test_sample_grids_have_one_noise_per_column_and_one_model_per_row(tmp_path: Path) -> None:
    request = AblationRequest(name="same-noise", scale="tiny")
    (grid,) = sample_grids(_records(request, tmp_path / "records"))
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(grid.address.partition(",")[2]))))
    assert picture.shape[1] > 10 * 32
    assert "hybrid, vlb" in grid.caption


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (None, None, "-"),
        (math.nan, None, "-"),
        (3.14159, None, "3.142"),
        (3.14159, 0.02, "3.142 ± 0.020"),
        (123.456, 2.0, "123.5 ± 2.0"),
        (1234567.0, 5e4, "1,234,567 ± 50,000"),
        (1.234e12, 5e10, "1.234e+12 ± 5e+10"),  # of a model that diverged
        (3.14159, math.inf, "3.142 ± inf"),
    ],
)
def test_a_number_is_shown_to_the_second_digit_of_its_error(value: float | None, error: float | None, text: str) -> None:
    assert format_estimate(value, error) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(24.0, 2.1, "24.00 +- 2.1"), (4.8, 0.02, "4.800 +- 0.020"), (1234.0, 56.0, "1234 +- 56"), (3.14159, None, "3.142"), (None, None, "-")],
)
def test_numbers_for_a_terminal_keep_their_last_zeros(value: float | None, error: float | None, text: str) -> None:
    assert plain_estimate(value, error) == text


def test_the_papers_numbers_are_shown_as_the_paper_prints_them(tmp_path: Path) -> None:
    request = AblationRequest(name="objective-schedule", scale="tiny")
    page = _page(request, _records(request, tmp_path / "records"))
    for number in ("27.0", "28.0", "3.62", "56.7"):
        assert f'<td class="number">{number}</td>' in page


@pytest.mark.parametrize("name", names())
def test_a_page_has_a_protocol_even_if_the_first_trial_failed(name: str, tmp_path: Path) -> None:
    request = AblationRequest(name=name, scale="tiny")
    records = _records(request, tmp_path / "records")
    records[0] = AblationTrial(label=records[0].label, role=records[0].role, values=records[0].values, error="killed")
    assert "<h2>Protocol</h2>" in _page(request, records)


def test_mlflow_gets_the_samples_by_number_of_steps_and_of_each_model(tmp_path: Path) -> None:
    for name, wanted in (("sampling-steps", {("samples_ancestral", 5)}), ("same-noise", {("samples", 0)}), ("likelihood-steps", set())):
        (record, *_) = _records(AblationRequest(name=name, scale="tiny"), tmp_path / name)
        drawn = sample_pictures(record)
        assert set(drawn) == wanted
        assert all(pixels.shape[0] > 32 and pixels.dtype == np.uint8 for pixels in drawn.values())


def test_a_page_of_trials_with_different_seeds_does_not_claim_the_same_noise(tmp_path: Path) -> None:
    request = AblationRequest(name="mine", scale="tiny", grid={"seed": [1, 2]}, preset="digits-tiny-hybrid-cosine")
    records = _records(request, tmp_path / "records")
    assert "the same noise for every trial" in _page(request, records)
    assert records[1].final is not None
    records[1].final["protocol"]["distance"]["seed"] = 2
    assert "the same noise" not in _page(request, records)


def test_the_bar_of_a_grids_only_trial_has_its_name(tmp_path: Path) -> None:
    request = AblationRequest(name="mine", scale="tiny", grid={"seed": [1]}, preset="digits-tiny-hybrid-cosine")
    assert ">seed=1</text>" in _page(request, _records(request, tmp_path / "records"), draw=True)


def _bars(labels: tuple[str, ...], *seeds: tuple[float, ...]) -> str:
    rows = [
        TableRow(label=label, values={}, distance=TableNumber(ours=3.0, seeds=values), bits_per_dim=TableNumber())
        for label, values in zip(labels, seeds, strict=True)
    ]
    picture = draw_bars(rows, "FD")
    assert picture is not None
    return picture.svg


def test_only_a_mean_over_two_seeds_or_more_has_a_whisker() -> None:
    whisker = re.compile(r'id="LineCollection_1">\s*<path d=')
    assert whisker.search(_bars(("a=1",), (2.0, 4.0)))
    assert not whisker.search(_bars(("a=1",), (3.0,))), "one seed has an infinite interval, not one of no width"


@pytest.mark.filterwarnings("error")
def test_a_long_name_leaves_width_for_the_bars() -> None:
    words = "timestep_sampler=loss_second_moment attention_resolutions=[16, 8] learning_rate=0.0001 stop_gradient=true vlb_weight=0.01"
    svg = _bars((words,), ())
    assert all(word in svg for word in words.split())


def test_both_likelihood_curves_end_at_the_full_number_of_steps() -> None:
    points = [
        {"spacing": spacing, "num_steps": k, "bits_per_dim": 4.0} for spacing, k in (("strided", 5), ("with-small-t", 5), ("strided", 40))
    ]
    record = AblationTrial(label="x", measures={"likelihood-steps": {"points": points}})
    assert sorted(bits_by_steps(record, "with-small-t")) == sorted(bits_by_steps(record, "strided")) == [5.0, 40.0]


def test_a_measured_point_of_the_repaired_likelihood_stays_where_the_full_number_of_steps_was_not_measured() -> None:
    """T = 2,000 is not among the paper's counts: the most steps are 1,000, and both spacings have a point there."""
    bits = {"strided": {50: 5.9, 1000: 4.3}, "with-small-t": {50: 4.2, 1000: 3.75}}
    points = [
        {"spacing": spacing, "num_steps": k, "bits_per_dim": value} for spacing, values in bits.items() for k, value in values.items()
    ]
    record = AblationTrial(label="x", measures={"likelihood-steps": {"points": points}})
    assert bits_by_steps(record, "with-small-t") == {50: (4.2, 0.0), 1000: (3.75, 0.0)}
    assert bits_by_steps(record, "strided") == {50: (5.9, 0.0), 1000: (4.3, 0.0)}
    points[-1]["bits_per_dim"] = None
    assert bits_by_steps(record, "with-small-t") == {50: (4.2, 0.0)}, "a number that is not finite is no shared point either"


def test_a_label_becomes_a_file_name() -> None:
    assert slug("stop_gradient=true vlb_weight=0.001") == "stop-gradient-true-vlb-weight-0.001"
    long = [slug(" ".join(["channel_mult=[1, 2, 3, 4]"] * 20 + [f"seed={seed}"])) for seed in (1, 2)]
    assert long[0] != long[1]
    assert max(map(len, long)) <= 255 - len(".json")


def test_the_gallery_lists_reports_with_their_findings_in_the_papers_order(tmp_path: Path) -> None:
    for order, name in ((2, "b"), (1, "a")):
        summary = {
            "name": name,
            "title": f"Title {name} <&>",
            "source": "s",
            "scale": "tiny",
            "order": order,
            "failed": [],
            "changes": ["seed=1"] if name == "b" else [],
            "findings": [{"claim": "c", "verdict": "not decided here", "evidence": "1 | 2"}],
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    page = write_gallery(tmp_path).read_text()
    assert page.index("Title a &lt;&amp;&gt;") < page.index("Title b")
    assert 'href="a/report.html"' in page
    assert "1 not decided here" in page
    assert page.count("With changes: seed=1.") == 1
    assert findings_as_markdown(tmp_path).splitlines()[2:] == [
        "| `a` | c | not decided here | 1 \\| 2 |",
        "| `b` with seed=1 | c | not decided here | 1 \\| 2 |",
    ]


def test_a_trial_model_is_the_latest_checkpoint_or_the_chosen_one_or_else_the_best(tmp_path: Path) -> None:
    experiment = preset("digits-tiny-hybrid-cosine")
    run_uri = str(tmp_path / "run")
    files = {"experiment.json": experiment.to_dict(), "model.pt": {"x": torch.zeros(1)}, "ema_0.98.pt": {"x": torch.zeros(1)}}
    for step in (100, 200, 300):
        checkpoint.save(run_uri, step, files)

    def step_and_weights(*, best: bool) -> tuple[int, str]:
        subject = find_trial_model(run_uri, best=best)
        return subject.step, subject.weights

    assert step_and_weights(best=True) == step_and_weights(best=False) == (300, "ema_0.98")
    storage.write_json(f"{run_uri}/result.json", {"best_checkpoint_uri": f"{run_uri}/checkpoints/step=00000200", "best_weights": "model"})
    assert step_and_weights(best=True) == (200, "model")
    storage.write_json(
        f"{run_uri}/evaluations/choice.json", {"checkpoint_uri": f"{run_uri}/checkpoints/step=00000100", "weights": "ema_0.98"}
    )
    assert step_and_weights(best=True) == (100, "ema_0.98")
    assert step_and_weights(best=False) == (300, "ema_0.98")
    assert find_trial_model(f"{run_uri}/checkpoints/step=00000200", best=True).step == 200
    with pytest.raises(ValueError, match="there is no checkpoint"):
        find_trial_model(str(tmp_path / "nothing"))


def test_a_summary_of_another_shape_is_named(tmp_path: Path) -> None:
    (tmp_path / "table-1").mkdir()
    for text, said in (("[]", "is not a JSON object"), ("{}", "findings: Field required")):
        (tmp_path / "table-1" / "summary.json").write_text(text)
        with pytest.raises(StorageError, match=rf"table-1/summary\.json: {said}"):
            write_gallery(tmp_path)


@pytest.mark.parametrize(("form", "evaluations"), [("full", 400), ("spaced", 59), ("stratified", 40)])
def test_the_card_says_how_often_an_image_was_evaluated_and_not_the_setting_that_its_form_ignores(form: str, evaluations: int) -> None:
    final = _final(1.0, "FD(x)")
    final["protocol"]["likelihood"]["form"] = form
    final["likelihood"]["num_evaluations_per_image"] = evaluations
    assert dict(_reported_card([final]))["Likelihood"] == f"300 test images, {form} with {evaluations} of 400 evaluations an image"


def test_the_card_describes_the_error_of_a_distance_as_that_of_an_evaluation_does() -> None:
    assert ERROR_ROW in _reported_card([_final(1.0, "FD(x)")])
    assert "corrected" in ERROR_ROW[1], "what the plain jackknife counts twice is taken off"
