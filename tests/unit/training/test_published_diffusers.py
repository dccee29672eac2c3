"""The published networks of Ho et al. as diffusers keeps them (`google/ddpm-*`): the same numbers from ours, and the same folder back.

The configurations are those of the published folders, with a quarter of the width and of the groups, one block a stage and 64 pixels for
256; the weights are random.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from rounding import NETWORK, U32, assert_same_output
from safetensors.torch import save_file
from torch import Tensor, nn

from training.checkpoints import checkpoint
from training.checkpoints.diffusers_folder import export_diffusers, import_diffusers
from training.checkpoints.exported_program import export_program
from training.config.errors import UserError
from training.config.experiment import Experiment, SamplingConfig
from training.cost.estimate import count_macs
from training.cost.peak import training_bytes
from training.diffusion.process import Denoiser
from training.diffusion.samplers.sampler import make_sampler, make_sampling_process, sample_loop
from training.models.unet import UNet, make_model

_UNET = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 8,
    "out_channels": 3,
    "time_embedding_type": "positional",
}
_DOWN, _UP = "AttnDownBlock2D", "AttnUpBlock2D"
CIFAR_10 = _UNET | {
    "sample_size": 32,
    "block_out_channels": [32, 64, 64, 64],
    "down_block_types": ["DownBlock2D", _DOWN, "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", _UP, "UpBlock2D"],
}
LARGE = _UNET | {  # celebahq, church, bedroom, cat, and their averages
    "sample_size": 64,
    "block_out_channels": [32, 32, 64, 64, 128, 128],
    "down_block_types": [*["DownBlock2D"] * 4, _DOWN, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", _UP, *["UpBlock2D"] * 4],
}
_SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
}
FOLDERS: dict[str, dict[str, Any]] = {
    "ddpm-cifar10-32": {"unet": CIFAR_10, "scheduler": _SCHEDULER | {"variance_type": "fixed_large"}, "ending": "bin"},
    "ddpm-ema-church-256": {"unet": LARGE, "scheduler": _SCHEDULER | {"variance_type": "fixed_small"}, "ending": "safetensors"},
    "ddpm-bedroom-256": {"unet": LARGE, "scheduler": {"_class_name": "DDPMScheduler"}, "ending": "bin", "names": "current"},
}


def _old_name(name: str) -> str:
    """The attention's names before diffusers 0.16."""
    for current, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        name = name.replace(f".{current}.", f".{old}.")
    return name


def save_folder(folder: Path, *, unet: dict[str, Any], scheduler: dict[str, Any], ending: str, names: str = "old") -> None:
    """Write a folder as those of 2022 are: all files in the folder itself.

    The first convolution is weak, so that the variances that its norm sees are about as small as the epsilon.
    """
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel.from_config(unet)
    with torch.no_grad():
        network.conv_in.weight.mul_(0.01)
        network.conv_in.bias.mul_(0.01)
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.01 * torch.randn_like(parameter))
    state = {_old_name(name) if names == "old" else name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    assert any("proj_attn" in name for name in state) == (names == "old")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(unet))
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    if ending == "bin":
        torch.save(state, folder / "diffusion_pytorch_model.bin")
    else:
        save_file(state, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


# One for all tests of a folder, as it is only read.
@pytest.fixture(scope="module", params=list(FOLDERS))
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("published") / request.param
    save_folder(folder, **FOLDERS[request.param])
    return folder, import_diffusers(str(folder), str(folder.parent / "run"))["checkpoint_uri"]


def _theirs(folder: Path) -> nn.Module:
    from diffusers import UNet2DModel

    network: nn.Module = UNet2DModel.from_pretrained(folder, use_safetensors=not (folder / "diffusion_pytorch_model.bin").exists())
    return network.eval().requires_grad_(False)


def _ours(uri: str) -> tuple[Experiment, UNet]:
    experiment = checkpoint.load_experiment(uri)
    model = make_model(experiment).eval().requires_grad_(False)
    model.load_state_dict(checkpoint.load_model_state(uri, checkpoint.MODEL))
    return experiment, model


def test_the_folder_says_what_experiment_it_is_of(imported: tuple[Path, str]) -> None:
    folder, uri = imported
    experiment = checkpoint.load_experiment(uri)
    large = folder.name != "ddpm-cifar10-32"
    assert (experiment.name, experiment.data.name, experiment.data.image_size) == (folder.name, folder.name, 64 if large else 32)
    assert experiment.model.channel_mult == ((1, 1, 2, 2, 4, 4) if large else (1, 2, 2, 2))
    assert experiment.model.attention_resolutions == ((4,) if large else (16,))
    assert experiment.diffusion.variance == ("fixed_small" if large else "fixed_large")


def test_the_networks_give_the_same_eps(imported: tuple[Path, str]) -> None:
    """The other side makes the exponents of the frequencies w in float32, so an angle t w of up to 999 differs by its last place, 6.1e-5.

    The two layers of the time path, as they are initialised, make that smaller. The rest is rounding, of the order of 1e-6.
    """
    folder, uri = imported
    _, model = _ours(uri)
    theirs, size = _theirs(folder), 32 if folder.name == "ddpm-cifar10-32" else 64
    x, t = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 321, 999])
    ours, expected = model(x, t.float()), theirs(x, t).sample
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(ours, expected, atol=2**-14 + NETWORK, rtol=0)


def test_the_same_noise_gives_the_same_samples(imported: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """x_0 is clipped to [-1, 1] at every step, and ten steps don't amplify what eps differs by."""
    from diffusers import DDPMScheduler
    from diffusers.schedulers import scheduling_ddpm

    folder, uri = imported
    experiment, model = _ours(uri)
    network, scheduler = _theirs(folder), DDPMScheduler.from_pretrained(folder)
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(1)
    start, *noise = (torch.randn(2, 3, *[experiment.data.image_size] * 2, generator=generator) for _ in range(11))
    remaining = iter(noise)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *arguments, **options: next(remaining))
    theirs: Tensor = start
    for t in scheduler.timesteps:
        theirs = scheduler.step(network(theirs, t).sample, t, theirs).prev_sample

    sampling = SamplingConfig(spacing="t:" + ",".join(str(int(t)) for t in scheduler.timesteps))
    denoiser = Denoiser(make_sampling_process(experiment.diffusion, sampling), model, conditioning={})
    ours = sample_loop(denoiser, make_sampler(sampling), start, noise=lambda k: noise[9 - k])
    assert float(ours.std()) > 0.1
    torch.testing.assert_close(ours, theirs, atol=2**-14 + NETWORK, rtol=0)


def test_the_export_is_the_same_folder_with_todays_names(imported: tuple[Path, str], tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    folder, uri = imported
    export_diffusers(uri, str(tmp_path / "exported"))
    back = DDPMPipeline.from_pretrained(tmp_path / "exported")
    theirs, scheduler = _theirs(folder), DDPMScheduler.from_pretrained(folder)
    same = theirs.config.keys() - {"_diffusers_version", "_name_or_path", "_use_default_values", "attn_norm_num_groups"}
    assert {name: back.unet.config[name] for name in same} == {name: theirs.config[name] for name in same}
    state = back.unet.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())
    assert back.scheduler.config.variance_type == scheduler.config.variance_type
    torch.testing.assert_close(back.scheduler.betas, scheduler.betas, rtol=4 * U32, atol=0)  # theirs are made in float32
    again = import_diffusers(str(tmp_path / "exported"), str(tmp_path / "again"))["checkpoint_uri"]
    assert checkpoint.load_experiment(again) == checkpoint.load_experiment(uri)


@pytest.mark.slow
def test_every_other_door_takes_the_network(tmp_path: Path) -> None:
    """The exported program, training with recomputation, the cost and the memory. A program differs by how its sums are ordered."""
    save_folder(tmp_path / "folder", **FOLDERS["ddpm-cifar10-32"])
    uri = import_diffusers(str(tmp_path / "folder"), str(tmp_path / "run"))["checkpoint_uri"]
    experiment, model = _ours(uri)
    x, t = torch.randn(2, 3, *[experiment.data.image_size] * 2), torch.tensor([3.0, 800.0])
    export_program(uri, str(tmp_path / "network.pt2"))
    program = torch.export.load(tmp_path / "network.pt2").module()
    assert_same_output(program(x=x, timesteps=t), model(x, t))
    recomputing = make_model(experiment, gradient_checkpointing=True).train()
    recomputing.load_state_dict(model.state_dict())
    recomputing(x, t).square().mean().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in recomputing.parameters())
    plain = experiment.override(["model.downsample_padding=symmetric", "model.time_embedding=cos_sin", "model.norm_eps=1e-5"])
    assert count_macs(experiment) == count_macs(plain)
    assert training_bytes(experiment, 1, bf16=True) >= training_bytes(plain, 1, bf16=True)  # the padded inputs are kept


@pytest.mark.parametrize(
    ("unet", "scheduler", "overrides", "said"),
    [
        ({}, {}, ["model.norm_eps=1e-5"], "config.json: is not the experiment's: norm_eps is 1e-06, ours is 1e-05"),
        ({"freq_shift": 0}, {}, [], "config.json: is not the experiment's: freq_shift is 0, ours is 1"),
        ({"flip_sin_to_cos": True}, {}, [], "freq_shift is 1, ours is 0"),
        ({"downsample_padding": 2}, {}, [], "downsample_padding is 2, ours is 1"),
        ({"time_embedding_type": "fourier"}, {}, [], "time_embedding_type is 'fourier', ours is 'positional'"),
        ({"block_out_channels": [32, 48, 64, 64]}, {}, [], r"block_out_channels is \[32, 48, 64, 64\], ours is \[32, 32, 64, 64\]"),
        ({"sample_size": None}, {}, [], "config.json: is no network of ours: a field has a value of another kind"),
        ({"layers_per_block": "two"}, {}, [], "config.json: is no network of ours: model.num_res_blocks: .* got 'two'"),
        (
            {"attention_head_dim": 8, "block_out_channels": [32, 32, 64, 64]},
            {},
            [],
            "is no network of ours: attention_head_dim 8 gives another number of heads at each of the widths 32, 64, and ours has",
        ),
        ({}, {"variance_type": "fixed_small_log"}, [], "variance_type is 'fixed_small_log', ours is 'fixed_small'"),
        ({}, {"prediction_type": "v_prediction"}, [], "prediction_type is 'v_prediction', ours is 'epsilon'"),
        ({}, {"beta_schedule": "scaled_linear"}, [], "trained_betas is 'of scaled_linear', ours is 1,000 values"),
        ({"block_out_channels": 128}, {}, [], r"/config\.json: block_out_channels is 128, but must be a list of whole numbers"),
        ({"block_out_channels": []}, {}, [], r"/config\.json: block_out_channels is \[\], but must be a list of whole numbers"),
        ({"down_block_types": None}, {}, [], r"/config\.json: down_block_types is None, but must be a list of names"),
        ({"attention_head_dim": 0}, {}, [], r"/config\.json: attention_head_dim is 0, but must be a whole number or null"),
        (
            {},
            {"num_train_timesteps": 1000.0},
            [],
            r"scheduler_config\.json: num_train_timesteps is 1000\.0, but must be a whole",
        ),
        ({}, {"num_train_timesteps": 10**12}, [], r"num_train_timesteps is 1000000000000, but must be a whole number from 2 to 1,000,000"),
        (
            {},
            {"beta_start": None},
            [],
            "beta_start is None, but must be a number; correct it, or save the folder again",
        ),
        (
            {},
            {"trained_betas": ["0.1"] * 1000},
            [],
            r"trained_betas is 1,000 values, '0\.1' to '0\.1', but must be a list of numbers",
        ),
        ({"_class_name": "VQModel", "block_out_channels": 128}, {}, [], r"/config\.json: is of the class VQModel, and only UNet2DModel"),
    ],
)
def test_what_ours_cannot_express_is_refused_by_its_field(
    tmp_path: Path, unet: dict[str, Any], scheduler: dict[str, Any], overrides: list[str], said: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CIFAR_10 | unet))
    (folder / "scheduler_config.json").write_text(json.dumps(_SCHEDULER | scheduler))
    with pytest.raises(UserError, match=said):
        import_diffusers(str(folder), str(tmp_path / "run"), overrides=overrides)
    assert not (tmp_path / "run").exists()


def test_an_import_of_a_folder_replaces_no_checkpoint(tmp_path: Path) -> None:
    save_folder(tmp_path / "folder", **FOLDERS["ddpm-cifar10-32"])
    made = import_diffusers(str(tmp_path / "folder"), str(tmp_path / "run"))
    assert import_diffusers(str(tmp_path / "folder"), str(tmp_path / "run")) == made, "the same content is found"
    with pytest.raises(UserError, match=r"step=00500000: there is another checkpoint already; name a new run's directory"):
        import_diffusers(str(tmp_path / "folder"), str(tmp_path / "run"), overrides=["data.name=cifar10"])


class _Code:
    def __reduce__(self) -> Any:
        return print, ("ran",)


def test_weights_that_are_code_are_refused_and_do_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_folder(tmp_path / "folder", **FOLDERS["ddpm-cifar10-32"])
    (tmp_path / "folder/diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"conv_in.weight": _Code()}, protocol=2))
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.bin: can't be read as plain tensors"):
        import_diffusers(str(tmp_path / "folder"), str(tmp_path / "run"))
    assert capsys.readouterr().out == ""


def test_weights_of_another_network_are_refused_by_the_tensor_that_is_missing(tmp_path: Path) -> None:
    save_folder(tmp_path / "folder", **FOLDERS["ddpm-cifar10-32"])
    file = tmp_path / "folder/diffusion_pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    del state["mid_block.attentions.0.query.weight"]
    torch.save(state, file)
    with pytest.raises(UserError, match=r"is not the weights of .*config\.json: 'mid_block\.attentions\.0\.to_q\.weight' is missing"):
        import_diffusers(str(tmp_path / "folder"), str(tmp_path / "run"))
