"""Published checkpoints, as state dicts of the published names and shapes: recognised, imported, exported."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import rounded
from safetensors.torch import save_file
from torch import Tensor

from training.checkpoints import checkpoint
from training.checkpoints.import_export import (
    PUBLISHED,
    expected_shapes,
    export_checkpoint,
    import_checkpoint,
    read_weights,
    recognise,
    reference_flags,
    step_in_name,
)
from training.checkpoints.network import describe_difference
from training.config import presets
from training.config.errors import UserError
from training.models.unet import make_model

DIGITS = "digits-hybrid-cosine"


@pytest.fixture
def digits_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn_like(tensor) for name, tensor in make_model(presets.preset(DIGITS)).state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_recognised_by_its_name_and_verified_by_its_shapes(name: str) -> None:
    published = PUBLISHED[name]
    shapes = expected_shapes(presets.preset(published.preset))
    assert recognise(shapes, f"{name}.pt").name == published.preset
    assert recognise(shapes, f"{name} (1).pt").name == published.preset
    spoiled = dict(shapes) | {"out.2.weight": (1, 2, 3, 3)}
    with pytest.raises(UserError, match=rf"is not a network of {published.preset}: out\.2\.weight is \[1, 2, 3, 3\] where"):
        recognise(spoiled, f"{name}.pt")


def test_published_presets_have_the_flags_that_the_files_were_trained_with() -> None:
    flags = {name: presets.preset(published.preset).diffusion for name, published in PUBLISHED.items()}
    not_rescaled = {name for name, diffusion in flags.items() if not diffusion.rescale_timesteps}
    assert not_rescaled == {
        "imagenet64_cond_270M_250K",
        "upsample_cond_500K",
        "lsun_uncond_100M_1200K_bs128",
        "lsun_uncond_100M_2400K_bs64",
    }
    # The published code's weight of the per-t term is 1 where it isn't rescaled, and T/1000 where it is.
    for name, diffusion in flags.items():
        expected = 1.0 if name in not_rescaled else diffusion.num_timesteps / 1000
        assert diffusion.vlb_weight * diffusion.num_timesteps == rounded(expected, 2), name  # a quotient and a product


def test_the_number_of_tensors_is_the_published_one() -> None:
    assert len(expected_shapes(presets.preset("imagenet64-hybrid-cosine-1500k"))) == 450
    assert len(expected_shapes(presets.preset("imagenet64-cond-hybrid-cosine-large"))) == 451
    assert len(expected_shapes(presets.preset("cifar10-hybrid-cosine"))) == 446


def test_shapes_alone_identify_an_upsampler_but_not_an_objective() -> None:
    upsampler = expected_shapes(presets.preset("imagenet256-upsampler-hybrid-linear"))
    assert recognise(upsampler, "model.pt").name == "imagenet256-upsampler-hybrid-linear"
    with pytest.raises(UserError, match=r"fit several presets \(cifar10-hybrid-cosine, cifar10-vlb-cosine.*name the right one"):
        recognise(expected_shapes(presets.preset("cifar10-hybrid-cosine")), "model.pt")
    named = recognise(expected_shapes(presets.preset("cifar10-hybrid-cosine")), "model.pt", preset="cifar10-vlb-cosine")
    assert named.diffusion.objective == "vlb"


def test_another_architecture_is_answered_with_the_nearest_and_its_differences(tmp_path: Path) -> None:
    narrow = expected_shapes(presets.preset("cifar10-hybrid-cosine", ["model.num_res_blocks=2"]))
    with pytest.raises(UserError, match=r"no published network's; the nearest, \S+, differs: .* name its experiment file, or a preset and"):
        recognise(narrow, "model.pt")
    assert recognise(narrow, "model.pt", preset="cifar10-hybrid-cosine", overrides=["model.num_res_blocks=2"]).model.num_res_blocks == 2
    (tmp_path / "mine.toml").write_text('base = "cifar10-hybrid-cosine"\n[model]\nnum_res_blocks = 2')
    assert recognise(narrow, "model.pt", preset=str(tmp_path / "mine.toml")).model.num_res_blocks == 2
    with pytest.raises(UserError, match="overrides change a preset or an experiment file; name it too"):
        recognise(narrow, "model.pt", overrides=["model.num_res_blocks=2"])
    with pytest.raises(UserError, match=r"no preset .cifar10-hybrid.; did you mean"):
        recognise(narrow, "model.pt", preset="cifar10-hybrid")


def test_a_difference_names_the_first_of_each_kind_and_counts_the_rest() -> None:
    expected = {"a": (1,), "b": (2,), "c": (3,), "d": (4,)}
    found = {"a": (1,), "b": (5,), "e": (6,)}
    assert describe_difference(expected, found) == "b is [5] where [2] is expected; c [3] is missing (and 1 more); e [6] is not expected"
    assert describe_difference(expected, expected) == ""


def test_an_imported_file_is_a_checkpoint_with_its_experiment_and_bitwise_weights(tmp_path: Path, digits_state: dict[str, Tensor]) -> None:
    torch.save(digits_state, tmp_path / "ema_0.9999_020000.pt")
    result = import_checkpoint(str(tmp_path / "ema_0.9999_020000.pt"), str(tmp_path / "run"), preset=DIGITS)
    assert json.loads(json.dumps(result)) == result
    assert (result["step"], result["preset"], result["tensors"]) == (20_000, DIGITS, len(digits_state))
    uri = result["checkpoint_uri"]
    assert checkpoint.latest(str(tmp_path / "run")) == uri
    assert checkpoint.load_experiment(uri) == presets.preset(DIGITS)
    assert checkpoint.weights_names(uri) == ("model",)
    for name, tensor in checkpoint.load_model_state(uri).items():
        assert torch.equal(tensor, digits_state[name])


def test_an_import_replaces_no_checkpoint(tmp_path: Path, digits_state: dict[str, Tensor]) -> None:
    file, run = tmp_path / "model000700.pt", str(tmp_path / "run")
    trained = checkpoint.save(run, 700, {"state.json": {"step": 700}})
    torch.save(digits_state, file)
    with pytest.raises(UserError, match=r"step=00000700: there is another checkpoint already; name a new run's directory"):
        import_checkpoint(str(file), run, preset=DIGITS)
    assert checkpoint.file_names(trained) == ("state.json",)


def test_the_updates_are_those_of_the_released_codes_file_names_and_a_date_is_none() -> None:
    names = ("model200000.pt", "ema_0.9999_200000.pt", "cifar10_model200000.pt", "weights-20261130.pt", "20261130.pt")
    assert [step_in_name(name, presets.preset(DIGITS)) for name in names] == [200_000] * 3 + [presets.preset(DIGITS).optim.num_steps] * 2


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_export_gives_back_what_was_imported(tmp_path: Path, digits_state: dict[str, Tensor], suffix: str) -> None:
    torch.save(digits_state, tmp_path / "model000700.pt")
    uri = import_checkpoint(str(tmp_path / "model000700.pt"), str(tmp_path / "run"), preset=DIGITS)["checkpoint_uri"]
    exported = tmp_path / f"exported{suffix}"
    result = export_checkpoint(uri, str(exported))
    assert result["num_bytes"] == exported.stat().st_size
    again = read_weights(str(exported), preset=DIGITS if suffix == ".pt" else None)
    assert again.experiment == presets.preset(DIGITS)
    assert again.step == (700 if suffix == ".safetensors" else again.experiment.optim.num_steps)
    assert list(again.state) == list(digits_state) or suffix == ".safetensors"
    assert all(torch.equal(again.state[name], tensor) for name, tensor in digits_state.items())


def test_an_exported_pt_is_a_bare_state_dict_in_the_released_codes_order(tmp_path: Path, digits_state: dict[str, Tensor]) -> None:
    torch.save(digits_state, tmp_path / "model.pt")
    uri = import_checkpoint(str(tmp_path / "model.pt"), str(tmp_path / "run"), preset=DIGITS)["checkpoint_uri"]
    export_checkpoint(uri, str(tmp_path / "out.pt"))
    bare = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(bare) == list(digits_state)
    make_model(presets.preset(DIGITS)).load_state_dict(bare, strict=True)


@pytest.mark.slow
def test_a_published_network_is_recognised_and_imported_whole(tmp_path: Path) -> None:
    shapes = expected_shapes(presets.preset("cifar10-hybrid-cosine"))
    torch.save({name: torch.full((1,), 0.5).expand(shape) for name, shape in shapes.items()}, tmp_path / "cifar10_uncond_50M_500K.pt")
    result = import_checkpoint(str(tmp_path / "cifar10_uncond_50M_500K.pt"), str(tmp_path / "run"))
    assert (result["parameters"], result["step"]) == (52_546_438, 500_000)
    assert result["diffusion"]["rescale_timesteps"] is True


def test_half_precision_weights_become_float32(tmp_path: Path, digits_state: dict[str, Tensor]) -> None:
    torch.save({name: tensor.half() for name, tensor in digits_state.items()}, tmp_path / "model.pt")
    state = read_weights(str(tmp_path / "model.pt"), preset=DIGITS).state
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("value", [math.nan, -math.inf, 1e300])
def test_weights_that_are_not_finite_are_refused_by_the_names_of_their_tensor_and_file(
    tmp_path: Path, digits_state: dict[str, Tensor], suffix: str, value: float
) -> None:
    wrong = digits_state["out.2.weight"].double()  # 1e300 is a number there, and none in float32
    wrong[0, 0, 0, 0] = value
    file = str(tmp_path / f"model000700{suffix}")
    (save_file if suffix == ".safetensors" else torch.save)({**digits_state, "out.2.weight": wrong}, file)
    with pytest.raises(UserError, match=rf"^model000700{suffix}: out\.2\.weight contains NaN or infinity; take another copy"):
        import_checkpoint(file, str(tmp_path / "run"), preset=DIGITS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (torch.int8, r"torch\.int8"),
        (torch.bool, r"torch\.bool"),
        (torch.complex64, r"torch\.complex64"),
        (torch.sparse_coo, r"torch\.float32, torch\.sparse_coo"),
        (torch.sparse_csr, r"torch\.float32, torch\.sparse_csr"),
    ],
    ids=str,
)
def test_what_is_no_dense_tensor_of_floating_point_numbers_is_refused_by_its_name(
    tmp_path: Path, digits_state: dict[str, Tensor], kind: torch.dtype | torch.layout, said: str
) -> None:
    bias = digits_state["out.2.weight"].flatten(1)
    wrong = bias.to_sparse(layout=kind) if isinstance(kind, torch.layout) else bias.to(kind)
    torch.save({**digits_state, "out.2.weight": wrong}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=rf"^model\.pt: out\.2\.weight is {said}.* floating-point numbers; save the network's state_dict"):
        import_checkpoint(str(tmp_path / "model.pt"), str(tmp_path / "run"), preset=DIGITS)
    assert not (tmp_path / "run").exists()


def test_a_flipped_bit_is_found_in_a_file_with_checksums(tmp_path: Path, digits_state: dict[str, Tensor]) -> None:
    file = tmp_path / "flip.pt"
    torch.save(digits_state, file)
    content = bytearray(file.read_bytes())
    content[content.index(digits_state["out.2.weight"].numpy().tobytes())] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"^flip\.pt: .* damaged or cut short \(flip/data/\d+ has another checksum\); fetch it again"):
        import_checkpoint(str(file), str(tmp_path / "run"), preset=DIGITS)
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_old_format_and_one_that_was_written_without_checksums_are_read(
    tmp_path: Path, digits_state: dict[str, Tensor]
) -> None:
    torch.save(digits_state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(digits_state, tmp_path / "new.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ("old.pt", "new.pt"):
        state = read_weights(str(tmp_path / name), preset=DIGITS).state
        assert all(torch.equal(state[key], tensor) for key, tensor in digits_state.items())


@pytest.mark.parametrize("step", ["99999999999", "9" * 5000])
def test_a_step_that_no_checkpoint_has_is_refused_by_the_name_of_its_file(
    tmp_path: Path, digits_state: dict[str, Tensor], step: str
) -> None:
    save_file(digits_state, tmp_path / "x.safetensors", metadata={"experiment": presets.preset(DIGITS).to_json(), "step": step})
    with pytest.raises(UserError, match=r"^x\.safetensors: its step 9{11,20} is not in 0\.\.99,999,999; export the checkpoint again$"):
        import_checkpoint(str(tmp_path / "x.safetensors"), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_another_network_are_not_exported(tmp_path: Path, digits_state: dict[str, Tensor], suffix: str) -> None:
    wider = presets.preset(DIGITS).override(["model.model_channels=64"])
    uri = checkpoint.save(str(tmp_path / "run"), 1, {checkpoint.EXPERIMENT: wider.to_json().encode(), "model.pt": digits_state})
    with pytest.raises(
        checkpoint.CheckpointError, match=r"step=00000001 \(model\): is not a network of the checkpoint's experiment: time_"
    ):
        export_checkpoint(uri, str(tmp_path / f"out{suffix}"), weights="model")
    assert not (tmp_path / f"out{suffix}").exists()


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code ran",))


def test_a_program_of_torch_export_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"model\.pt2: is a program of torch\.export"):
        read_weights(str(tmp_path / "model.pt2"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "opt000000.pt: can't be read as plain tensors"),
        (b"PK\3\4 the beginning of a file", "it is damaged or cut short"),
        (b"step,loss\n1,0.5\n", r"opt000000\.pt: .* it is damaged or cut short \(it begins with b'step,los'\)"),
        (b"running step 1 of 10\n", r"opt000000\.pt: .* it is damaged or cut short \(it begins with b'running '\)"),
        (b"hello, I am text\n", r"opt000000\.pt: .* it is damaged or cut short \(it begins with b'hello, I'\)"),
        ({"state": {}, "param_groups": []}, "does not contain the weights of a network"),
        (Trap(), r"can't be read as plain tensors: .* could run code; save the network's state_dict\(\) alone$"),
    ],
)
def test_a_file_that_is_no_network_is_refused_and_runs_no_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object, message: str
) -> None:
    path = tmp_path / "opt000000.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        read_weights(str(path))
    assert "code ran" not in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_arrays_of_numpy_are_refused_with_torchs_reason_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "opt000000.npz", mu=np.zeros(3))
    with pytest.raises(
        UserError,
        match=r"damaged or cut short \(file in archive is not in a subdirectory: mu\.npy\); fetch it again, or name a file of torch\.save$",
    ):
        read_weights(str(tmp_path / "opt000000.npz"))


def test_a_damaged_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError, match="is not a safetensors file, or is damaged"):
        read_weights(str(tmp_path / "x.safetensors"))


def test_a_file_is_exported_to_the_formats_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.pt .* or \.safetensors"):
        export_checkpoint(str(tmp_path), str(tmp_path / "model.onnx"))


def test_the_released_codes_flags_are_given_where_it_can_build_the_network() -> None:
    flags = reference_flags(presets.preset("imagenet64-cond-hybrid-cosine-large"))
    assert flags is not None
    assert "--image_size 64 --num_channels 192 --num_res_blocks 3 --num_heads 4 --attention_resolutions 16,8" in flags
    assert "--class_cond True --learn_sigma True --diffusion_steps 4000 --noise_schedule cosine --rescale_timesteps False" in flags
    upsampler = reference_flags(presets.preset("imagenet256-upsampler-hybrid-linear"))
    assert upsampler is not None
    assert upsampler.startswith("--large_size 256 --small_size 64 --num_channels 192")
    assert reference_flags(presets.preset(DIGITS)) is None
    for override in (
        *("model.norm_groups=16", "model.label_dropout=0.1"),
        *("model.norm_eps=1e-6", "model.time_embedding=sin_cos", "model.downsample_padding=right_bottom"),
    ):
        assert reference_flags(presets.preset("imagenet64-cond-hybrid-cosine-large", [override])) is None
    assert reference_flags(presets.preset("cifar10-hybrid-cosine", ["model.low_res_size=8"])) is None, "its upsamplers are of 64 and 256"


@pytest.mark.parametrize(
    ("override", "flag"),
    [("diffusion.prediction=x_0", "--predict_xstart True"), ("model.attention_resolutions=", "--attention_resolutions 1 ")],
)
def test_the_flags_name_what_the_released_code_calls_otherwise(override: str, flag: str) -> None:
    flags = reference_flags(presets.preset("cifar10-hybrid-cosine", [override]))
    assert flags is not None
    assert flag in flags
