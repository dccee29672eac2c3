"""Suggested experiments: valid for every card and any images, and sized by both."""

from __future__ import annotations

import pytest

from training.config.errors import UserError
from training.config.files import read_experiment_file
from training.cost.accelerators import CARDS
from training.cost.estimate import estimate
from training.cost.suggest import suggest_experiment


@pytest.mark.parametrize(
    ("card", "min_side", "channels", "num_classes"),
    [*((card, 700, 3, 1000) for card in CARDS), ("CPU", 8, 1, 0), ("A100", 20, 3, 5), ("h100", 64, 3, 0)],
)
def test_a_suggestion_is_a_valid_file_that_enlarges_no_image(card: str, min_side: int, channels: int, num_classes: int) -> None:
    text = suggest_experiment(num_images=5_000, min_side=min_side, channels=channels, num_classes=num_classes, card=card, name="birds")
    experiment = read_experiment_file(text)
    assert experiment.name == experiment.data.name == "birds"
    assert experiment.data.image_size <= min_side
    assert (experiment.data.image_channels, experiment.data.num_classes) == (channels, num_classes)
    assert experiment.model.class_conditional == (num_classes > 0)
    assert (experiment.evaluation.extractor == "efficientnet-lite0") == (card == "CPU")  # no model hub is needed
    assert experiment.optim.lr_anneal_steps == (experiment.optim.num_steps if card == "CPU" else 0)
    assert (
        experiment.model.model_channels / experiment.model.norm_groups >= 2
    )  # with one channel a group a network can't follow the brightness
    assert (10 if card == "CPU" else 20) - 1 <= experiment.optim.num_steps / experiment.optim.checkpoint_interval <= 22


@pytest.mark.parametrize("card", ["H100", "V100"])
def test_a_suggested_batch_fits_the_card_and_its_training_a_day(card: str) -> None:
    text = suggest_experiment(num_images=1_000_000, min_side=256, channels=3, card=card)
    experiment = read_experiment_file(text)
    cost = estimate(experiment, card)
    assert cost.phases["training"].card_hours < 26
    assert cost.memory is not None
    assert cost.memory.largest_microbatch_bf16 >= 8


def test_every_choice_is_explained_and_few_images_are_not_seen_for_ever() -> None:
    text = suggest_experiment(num_images=60, min_side=32, channels=3, card="cpu")
    assert "dropout = 0.3  # 60 images; fewer need more dropout" in text
    experiment = read_experiment_file(text)
    assert experiment.optim.num_steps * experiment.optim.global_batch_size <= 2_000 * 60
    assert experiment.evaluation.num_samples >= experiment.evaluation.scoring_num_samples, (
        "the reported distance is no coarser than a score"
    )


@pytest.mark.parametrize("num_images", [3, 5, 20, 60, 3_000])
def test_the_checkpoints_of_the_comment_are_those_of_the_training(num_images: int) -> None:
    text = suggest_experiment(num_images=num_images, min_side=32, channels=3, hours=0.01)
    optim = read_experiment_file(text).optim
    stored = [step for step in range(1, optim.num_steps + 1) if step % optim.checkpoint_interval == 0 or step == optim.num_steps]
    assert f"checkpoint_interval = {optim.checkpoint_interval}  # {len(stored)} checkpoints, each is scored" in text


def test_what_no_experiment_can_be_made_for_is_refused() -> None:
    with pytest.raises(UserError, match="there is no card 'H900'; the cards are H100"):
        suggest_experiment(num_images=10, min_side=64, channels=3, card="H900")
    with pytest.raises(UserError, match="min_side: must be at least 8 pixels, got 5"):
        suggest_experiment(num_images=10, min_side=5, channels=3)
    with pytest.raises(UserError, match="num_images: must be at least 1"):
        suggest_experiment(num_images=0, min_side=64, channels=3)
    for name in ("My Birds", 'a"b', "C:\\photos"):
        with pytest.raises(UserError, match=r"data\.name: '.*' is not a name"):
            suggest_experiment(num_images=10, min_side=64, channels=3, name=name)
