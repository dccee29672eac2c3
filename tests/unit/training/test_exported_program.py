"""A network as a `.pt2` file: torch alone computes the same from it, for any batch size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rounding import assert_same_output
from torch import nn

from training.checkpoints import checkpoint
from training.checkpoints.exported_program import export_program
from training.config.experiment import Experiment
from training.config.presets import names, preset
from training.models.unet import make_model

_NARROW = ("model.model_channels=32", "model.num_res_blocks=1", "optim.ema_decays=0.99")


def _kinds() -> dict[str, Experiment]:
    """Presets whose networks have layers or inputs of another kind, not only more of them: the first of each kind, at 32 channels."""
    found: dict[Any, Experiment] = {}
    for name in names():
        own = preset(name)
        model = own.model
        kind = (model.num_heads, model.use_scale_shift_norm, model.class_conditional, model.low_res_size is None)
        small = own.override([*_NARROW, f"data.image_size={min(own.data.image_size, 64)}"])
        found.setdefault((kind, bool(model.attention_resolutions)), small)
    return {experiment.name: experiment for experiment in found.values()}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", _kinds().values(), ids=_kinds())
def test_an_exported_network_computes_the_same_for_any_batch_size(experiment: Experiment, tmp_path: Path) -> None:
    """Both run the same kernels in float32, in an order that the export may change."""
    torch.manual_seed(0)
    network = make_model(experiment).eval().requires_grad_(False)
    for module in network.modules():  # the initial network's output is 0
        if isinstance(module, nn.Conv1d | nn.Conv2d) and not module.weight.any():
            module.reset_parameters()
    uri = checkpoint.save(
        str(tmp_path / "run"), 10, {checkpoint.EXPERIMENT: experiment.to_json().encode(), "ema_0.99.pt": network.state_dict()}
    )
    told = export_program(uri, str(tmp_path / "network.pt2"))
    extra = {checkpoint.EXPERIMENT: ""}
    exported = torch.export.load(tmp_path / "network.pt2", extra_files=extra).module()
    assert Experiment.from_json(extra[checkpoint.EXPERIMENT]) == experiment
    assert json.loads(json.dumps(told))["inputs"]["x"][0] == "batch"
    for batch in (1, 3):
        inputs = {name: torch.randn(batch, *shape[1:]) for name, shape in told["inputs"].items()}
        inputs["timesteps"] = 1000 * torch.rand(batch)
        if "y" in inputs:
            inputs["y"] = torch.arange(batch) % experiment.data.num_classes
        expected = network(**inputs)
        assert expected.abs().max() > 0.1
        assert_same_output(exported(**inputs), expected)


def test_weights_of_another_network_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    experiment = preset("digits-tiny-hybrid-cosine")
    wider = experiment.override(["model.model_channels=64"])
    files = {checkpoint.EXPERIMENT: wider.to_json().encode(), "model.pt": make_model(experiment).state_dict()}
    uri = checkpoint.save(str(tmp_path / "run"), 1, files)
    with pytest.raises(
        checkpoint.CheckpointError, match=r"step=00000001 \(model\): is not a network of the checkpoint's experiment: time_"
    ):
        export_program(uri, str(tmp_path / "network.pt2"), weights="model")
    assert not (tmp_path / "network.pt2").exists()
