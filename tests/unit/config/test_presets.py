"""Every preset is a test case: it is valid, golden and has a source, and its network builds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from rounding import rounded

from training.config import presets
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.config.presets import PRESETS
from training.models.unet import make_model

GOLDEN = Path(__file__).parents[2] / "golden" / "presets"


@pytest.mark.parametrize("name", presets.names())
def test_a_presets_json_is_the_golden_one_and_reads_back(name: str) -> None:
    experiment = presets.preset(name)
    assert experiment.name == name
    golden = (GOLDEN / f"{name}.json").read_text()
    assert experiment.to_json() == golden, "run `make golden` if the change is wanted"
    assert Experiment.from_json(golden) == experiment


def test_no_golden_preset_is_left_without_its_preset() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(presets.names())


@pytest.mark.parametrize("name", presets.names())
def test_a_presets_network_builds_and_maps_an_image_to_what_the_process_needs(name: str) -> None:
    experiment = presets.preset(name)
    data = experiment.data
    with torch.device("meta"):
        model = make_model(experiment)
        x = torch.zeros(2, data.image_channels, data.image_size, data.image_size)
        y = torch.zeros(2, dtype=torch.int64) if experiment.model.class_conditional else None
        size = experiment.model.low_res_size
        low_res = torch.zeros(2, data.image_channels, size, size) if size else None
        output = model(x, torch.zeros(2), y=y, low_res=low_res)
    assert output.shape == (2, experiment.out_channels, data.image_size, data.image_size)


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_cites_its_source_and_its_results_are_experiments_that_can_be_made(name: str) -> None:
    row = presets.find_preset(name)
    assert row.source
    for result in row.results:
        row.experiment.override(result.overrides)


def test_the_papers_tables_are_all_there() -> None:
    fids = {result.fid for row in PRESETS.values() for result in row.results}
    main_table_1 = {32.5, 31.3, 32.2, 27.0, 28.0, 56.7, 19.2, 40.1}
    main_table_2 = {3.29, 2.90, 3.07, 3.05, 3.19, 11.47}
    supplement = {28.04, 27.36, 30.89, 34.35, 19.9, 31.5, 12.3}
    class_conditional = {6.92, 2.92}
    assert fids >= main_table_1 | main_table_2 | supplement | class_conditional


def test_lsun_presets_see_the_same_number_of_examples() -> None:
    lsun = [row.experiment.optim for name, row in PRESETS.items() if name.startswith("lsun")]
    assert len(lsun) == 8
    assert {optim.num_steps * optim.global_batch_size for optim in lsun} == {153_600_000}


def test_the_width_sweeps_learning_rate_falls_with_the_root_of_the_width() -> None:
    for width in (64, 96, 128, 192):
        rate = presets.preset(f"imagenet64-hybrid-cosine-width{width}").optim.learning_rate
        assert rate == rounded(1e-4 * math.sqrt(128 / width), 3)  # operations


def test_fid_protocols_are_the_supplements() -> None:
    for name in presets.names():
        experiment = presets.preset(name)
        unconditional_imagenet = experiment.data.name == "imagenet64-official"
        if not name.startswith(("digits", "fashion-mnist", "images")):
            assert experiment.evaluation.num_samples == (10_000 if unconditional_imagenet else 50_000)
            assert experiment.evaluation.num_reference_images == (50_000 if experiment.data.name == "lsun-bedroom" else None)


def test_an_unknown_preset_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(UserError, match="no preset 'cifar10-hybrid-cosin'; did you mean cifar10-hybrid-cosine"):
        presets.preset("cifar10-hybrid-cosin")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [("seed=3", "overrides are a list, each section.field=value"), ([["seed=3"]], "an override is text and reads section.field=value")],
)
def test_overrides_that_are_no_list_of_text_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        presets.preset("digits-hybrid-cosine", overrides)


def test_the_table_as_plain_data_has_every_row() -> None:
    rows = {row["name"]: row for row in presets.table()}
    assert tuple(rows) == presets.names()
    assert rows["cifar10-vlb-cosine"]["results"] == [{"where": "main table 2", "bits_per_dim": 2.94, "fid": 11.47}]
    assert rows["cifar10-vlb-cosine"]["experiment"]["diffusion"]["timestep_sampler"] == "loss_second_moment"
