"""Keyed dropout: its distribution; a mask is a function of (seed, step, image, layer) alone."""

from __future__ import annotations

import math

import pytest
import torch
from rounding import assert_same_output

from training.config.experiment import ModelConfig
from training.models.dropout import KeyedDropout, dropout_key, keyed_dropout
from training.models.unet import UNet

INDICES = torch.arange(64)


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5])
def test_each_entry_is_zeroed_with_the_given_probability_and_the_mean_stays(probability: float) -> None:
    y = keyed_dropout(torch.ones(64, 32, 16, 16), probability, dropout_key(0, 0, INDICES), 0)
    n = y.numel()
    assert abs(float((y == 0).double().mean()) - probability) < 5 * math.sqrt(probability * (1 - probability) / n) + 2**-16
    assert float(y.double().mean()) == pytest.approx(1.0, abs=5 * math.sqrt(probability / (1 - probability) / n))


def test_a_probability_next_to_one_still_scales_by_a_finite_number() -> None:
    y = keyed_dropout(torch.ones(64, 1 << 16), 1 - 2**-20, dropout_key(0, 0, INDICES), 0)
    assert set(y.unique().tolist()) == {0.0, 65536.0}


def test_masks_of_images_layers_steps_and_seeds_are_uncorrelated() -> None:
    def mask(seed: int, step: int, layer: int, index: int) -> torch.Tensor:
        key = dropout_key(seed, step, torch.tensor([index]))
        return (keyed_dropout(torch.ones(1, 1 << 16), 0.5, key, layer) > 0).double().flatten()

    masks = torch.stack([mask(*key) for key in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0, 2)]])
    off_diagonal = torch.corrcoef(masks) - torch.eye(len(masks), dtype=torch.float64)
    assert float(off_diagonal.abs().max()) < 5 / math.sqrt(1 << 16)


def test_neighbouring_entries_of_a_mask_are_uncorrelated() -> None:
    kept = keyed_dropout(torch.ones(16, 1 << 16), 0.5, dropout_key(3, 1, INDICES[:16]), 2).gt(0).double().flatten() - 0.5
    for lag in (1, 2, 3, 4, 8, 16, 64, 1024):
        assert abs(float((kept[lag:] * kept[:-lag]).mean()) / 0.25) < 5 / math.sqrt(len(kept)), lag


def test_a_mask_is_the_same_for_any_batch_split_and_order() -> None:
    x = torch.randn(64, 8, 4, 4)
    whole = keyed_dropout(x, 0.3, dropout_key(5, 7, INDICES), 1)
    order = torch.randperm(64)
    for part in (order[:1], order[1:40], order[40:]):
        assert torch.equal(keyed_dropout(x[part], 0.3, dropout_key(5, 7, INDICES[part]), 1), whole[part])


def test_the_network_with_a_key_gives_an_image_the_same_output_in_any_batch() -> None:
    model = UNet(
        ModelConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.3),
        image_size=8,
        image_channels=3,
        out_channels=6,
    ).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    x, t = torch.randn(6, 3, 8, 8), torch.arange(6) * 100.0
    key = dropout_key(0, 11, torch.arange(6))
    whole = model(x, t, dropout_key=key)
    parts = torch.cat([model(x[p], t[p], dropout_key=key[p]) for p in (slice(0, 1), slice(1, 6))])
    assert_same_output(parts, whole)
    # A hundred times what rounding changes.
    assert not torch.allclose(model(x, t, dropout_key=dropout_key(0, 12, torch.arange(6))), whole, atol=1e-3)


def test_every_dropout_layer_of_a_network_has_its_own_number() -> None:
    model = UNet(
        ModelConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=2, attention_resolutions=(4,), dropout=0.3),
        image_size=8,
        image_channels=3,
        out_channels=6,
    )
    layers = [module.layer for module in model.modules() if isinstance(module, KeyedDropout)]
    assert layers == list(range(2 * 2 + 2 + 2 * 3))
