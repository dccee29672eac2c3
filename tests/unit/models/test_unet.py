"""The network: the released implementation's numbers, and its own properties."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rounding import NETWORK, U32, U_BF16, assert_same_output
from torch import Tensor, nn

from training.config.errors import UserError
from training.config.experiment import DataConfig, DiffusionConfig, Experiment, ModelConfig
from training.models.layers import Downsample, GroupNorm32, make_low_res, timestep_embedding, with_low_res
from training.models.unet import UNet, make_model

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "reference_values.json").read_text())


def wave(shape: tuple[int, ...], phase: float, scale: float = 1.0) -> Tensor:
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    values = scale * math.sqrt(2) * torch.sin(0.7391 * i + 0.1117 * (i * i % 9973) + phase)
    return values.float().view(shape)


def fill(model: nn.Module, scale: float) -> nn.Module:
    with torch.no_grad():
        for k, (name, parameter) in enumerate(model.named_parameters()):
            parameter.copy_(wave(tuple(parameter.shape), 0.31 * k, scale))
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter += 1.0
    return model


def golden_image() -> Tensor:
    return (((torch.arange(2 * 3 * 32 * 32) * 37) % 256) / 127.5 - 1).view(2, 3, 32, 32).float()


def small(
    *, num_classes: int = 0, image_size: int = 32, out_channels: int = 6, gradient_checkpointing: bool = False, **changes: object
) -> UNet:
    options: dict[str, object] = {"model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2, 2, 2)} | changes
    return UNet(
        ModelConfig(**options),  # type: ignore[arg-type]
        image_size=image_size,
        image_channels=3,
        out_channels=out_channels,
        num_classes=num_classes,
        gradient_checkpointing=gradient_checkpointing,
    )


def tiny(**changes: object) -> UNet:
    """Two stages at 8 pixels: fast."""
    options: dict[str, object] = {"channel_mult": (1, 2), "attention_resolutions": (4,), "image_size": 8} | changes
    return small(**options)  # type: ignore[arg-type]


def assert_matches(actual: Tensor, golden: dict[str, object]) -> None:
    flat = actual.detach().double().flatten()
    rms = math.sqrt(float(flat.square().mean()))
    expected = torch.tensor([*golden["first8"], *golden["last4"]], dtype=torch.float64)  # type: ignore[misc]
    torch.testing.assert_close(torch.cat([flat[:8], flat[-4:]]), expected, rtol=0, atol=NETWORK * rms)
    for name, value in (("mean", flat.mean()), ("std", flat.std())):
        assert abs(float(value) - golden[name]) <= NETWORK * rms, name  # type: ignore[operator]
    assert float(flat.abs().sum()) == pytest.approx(golden["abs_sum"], rel=0, abs=NETWORK * rms * len(flat))


def released_embedding(t: float) -> tuple[Tensor, Tensor]:
    """The embedding of width 128 in float64, and how far the released numbers may be from it, entry by entry.

    The release computes w = exp(a), a = -i ln(10000) / 64, in float32: a has 2 roundings, which exp turns into a relative error of
    2 |a| u, and exp itself rounds by 2 u. The angle t w has another rounding, and errs by t w (2 |a| + 3) u in all. Cosine and
    sine pass that on at most as it is, and round by 2 u.
    """
    exponents = -math.log(10_000) / 64 * torch.arange(64, dtype=torch.float64)
    angles = t * exponents.exp()
    errors = (angles * (2 * exponents.abs() + 3) + 2) * U32
    return torch.cat([angles.cos(), angles.sin()]), torch.cat([errors, errors])


@pytest.mark.parametrize("t", ["0.0", "0.25", "1.0", "999.75", "3999.0"])
def test_timestep_embedding_is_the_released_one(t: str) -> None:
    golden = GOLDEN["timestep_embedding_128"][t]
    actual = timestep_embedding(torch.tensor([float(t)]), 128).double().flatten()
    exact, allowed = released_embedding(float(t))
    # Ours rounds the frequency once, the angle once, and cosine and sine by 2 u.
    assert bool(((actual - exact).abs() <= (2 * float(t) + 2) * U32).all())
    released = torch.tensor([*golden["first8"], *golden["last4"]], dtype=torch.float64)
    assert bool(((torch.cat([exact[:8], exact[-4:]]) - released).abs() <= torch.cat([allowed[:8], allowed[-4:]])).all())
    mean_error = float(allowed.mean())
    assert float(exact.mean()) == pytest.approx(golden["mean"], abs=mean_error)
    # A standard deviation moves by no more than the root mean square of what moves the entries.
    assert float(exact.std()) == pytest.approx(golden["std"], abs=2 * float(allowed.square().mean().sqrt()))
    assert float(exact.abs().sum()) == pytest.approx(golden["abs_sum"], abs=128 * mean_error)


def test_the_embeddings_frequencies_are_rounded_from_float64_on_every_processor() -> None:
    """At t = 1 the first sines are those of the frequencies: sin(w) for the correctly rounded float32 w."""
    frequencies = torch.tensor([math.exp(-math.log(10_000) / 64 * i) for i in range(64)], dtype=torch.float64).float()
    assert torch.equal(timestep_embedding(torch.ones(1), 128), torch.cat([frequencies.cos(), frequencies.sin()]).unsqueeze(0))


@pytest.mark.parametrize("t", [0.0, 1.0, 999.0])
def test_the_other_embedding_has_sines_first_and_its_last_frequency_is_a_ten_thousandth(t: float) -> None:
    """Ours rounds the frequency once, the angle once, and cosine and sine by 2 u."""
    angles = [t * 10_000.0 ** (-i / 63) for i in range(64)]
    exact = torch.tensor([math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles], dtype=torch.float64)
    actual = timestep_embedding(torch.tensor([t]), 128, "sin_cos").double().flatten()
    assert bool(((actual - exact).abs() <= (2 * t + 2) * U32).all())


@pytest.mark.parametrize(("padding", "read"), [("symmetric", 1), ("right_bottom", 2)])
def test_a_downsampling_convolutions_last_tap_reads_the_pixel_that_its_padding_says(padding: str, read: int) -> None:
    """Its output i reads the pixels 2i - 1 to 2i + 1, or 2i to 2i + 2, of which the last is beyond the image."""
    downsample = Downsample(1, padding)  # type: ignore[arg-type]
    nn.init.zeros_(downsample.op.weight)
    nn.init.zeros_(downsample.op.bias)
    downsample.op.weight.data[0, 0, 2, 2] = 1.0
    image = torch.arange(1.0, 37.0).view(1, 1, 6, 6)
    assert torch.equal(downsample(image), nn.functional.pad(image, (0, 2, 0, 2))[:, :, read : read + 6 : 2, read : read + 6 : 2])


def test_the_epsilon_is_added_to_the_variance_of_every_norm() -> None:
    """Values of +-s have the variance s^2, so the norm gives s / sqrt(s^2 + eps), with some ten roundings."""
    values = torch.tensor([1.0, -1.0]).repeat(8).view(1, 4, 4) * 1e-2
    norm = GroupNorm32(4, 2, 1e-4)
    torch.testing.assert_close(norm(values), values / math.sqrt(2e-4), rtol=10 * U32, atol=0)
    norms = [module.eps for module in tiny(norm_eps=1e-3).modules() if isinstance(module, nn.GroupNorm)]
    assert set(norms) == {1e-3}


@pytest.mark.parametrize(("name", "y"), [("base", None), ("cond", torch.tensor([3, 7]))])
def test_forward_gives_the_released_networks_numbers(name: str, y: Tensor | None) -> None:
    model = fill(small(num_classes=0 if y is None else 1000), 0.06)
    golden = GOLDEN["model_forward"][name]
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    assert len(model.state_dict()) == golden["tensors"]
    assert_matches(model(golden_image(), torch.tensor([0.0, 999.75]), y=y), golden)


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("num_classes", [0, 10])
def test_output_is_exactly_zero_at_initialisation(scale_shift: bool, num_classes: int) -> None:
    model = tiny(use_scale_shift_norm=scale_shift, num_classes=num_classes)
    y = torch.tensor([1, 9]) if num_classes else None
    output = model(torch.randn(2, 3, 8, 8), torch.tensor([0.0, 500.0]), y=y)
    assert output.shape == (2, 6, 8, 8)
    assert torch.count_nonzero(output) == 0


def test_without_scale_shift_the_embedding_is_added_before_the_norm() -> None:
    """A constant per group is removed by GroupNorm, so an embedding that is constant within groups has no effect."""
    model = fill(tiny(use_scale_shift_norm=False), 0.06)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.0, 500.0])
    before = model(x, t)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "emb_layers.1.bias" in name:
                parameter += 3.0
    assert_same_output(model(x, t), before, calls=4)  # each norm rounds 3 + 1 where it rounded 1


@pytest.mark.parametrize(("width", "groups", "is_blind"), [(32, 32, True), (32, 8, False), (64, 32, False)])
def test_groups_of_a_single_channel_hide_the_brightness_from_the_output(width: int, groups: int, is_blind: bool) -> None:
    """Each channel of the first stage then leaves the last normalisation with the mean of its bias, on every image."""
    model = fill(tiny(model_channels=width, norm_groups=groups), 0.06)
    normalised: list[Tensor] = []
    model.out[0].register_forward_hook(lambda module, inputs, output: normalised.append(output))
    image = wave((1, 3, 8, 8), 0.2)
    model(torch.cat([image, image + 0.5]), torch.full((2,), 999.0))
    dark, bright = normalised[0].mean((2, 3))
    # In float32 a mean over 64 values of size 1 is off by some 1e-7.
    assert ((bright - dark).abs().max() < 1e-5) == is_blind


def test_a_number_of_channels_and_sizes_other_than_the_papers_works() -> None:
    model = UNet(
        ModelConfig(model_channels=32, channel_mult=(1, 2, 3), num_res_blocks=2, attention_resolutions=(5,)),
        image_size=20,
        image_channels=1,
        out_channels=2,
    )
    assert model(torch.randn(3, 1, 20, 20), torch.zeros(3)).shape == (3, 2, 20, 20)
    assert model(torch.randn(1, 1, 24, 12), torch.zeros(1)).shape == (1, 2, 24, 12)


def test_a_stage_of_one_pixel_takes_a_single_image_as_it_takes_several() -> None:
    model = fill(tiny(channel_mult=(1, 1, 1, 1), attention_resolutions=()), 0.06)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 900.0])
    torch.testing.assert_close(model(x[:1], t[:1]), model(x, t)[:1])


def test_the_experiment_decides_the_output_channels() -> None:
    data = DataConfig(name="digits", image_size=8, image_channels=1, num_classes=10)
    model = ModelConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=())
    learned = Experiment(name="x", data=data, model=model)
    fixed = Experiment(name="x", data=data, model=model, diffusion=DiffusionConfig(objective="simple", variance="fixed_large"))
    x, t = torch.zeros(1, 1, 8, 8), torch.zeros(1)
    assert make_model(learned)(x, t).shape[1] == 2
    assert make_model(fixed)(x, t).shape[1] == 1


def test_gradient_checkpointing_with_dropout_changes_no_gradient() -> None:
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 900.0])
    gradients = []
    for checkpointing in (False, True):
        model = fill(tiny(dropout=0.3, gradient_checkpointing=checkpointing), 0.06).train()
        torch.manual_seed(0)
        model(x, t).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_dropout_acts_in_training_and_not_in_evaluation() -> None:
    model = fill(tiny(dropout=0.3), 0.06)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 900.0])
    assert not torch.equal(model.train()(x, t), model(x, t))
    assert torch.equal(model.eval()(x, t), model(x, t))


def test_autocast_keeps_the_output_float32_and_close() -> None:
    model = fill(tiny(), 0.06)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 900.0])
    with torch.no_grad():
        exact = model(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(x, t)
    assert mixed.dtype == torch.float32
    assert float((mixed - exact).square().mean().sqrt() / exact.square().mean().sqrt()) < 0.03


def test_group_norm_is_float32_under_autocast() -> None:
    """The mean of a group near 300 with spread 1 is lost in bfloat16 arithmetic; it isn't here."""
    norm = tiny().out[0]
    x = (300 + torch.randn(1, 32, 8, 8)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    # A rounding to bfloat16, and some four in float32 of numbers near 300.
    torch.testing.assert_close(y.float(), norm(x.float()), rtol=U_BF16, atol=4 * 300 * U32)


def test_the_upsampler_sees_the_small_image_enlarged_with_half_pixel_centres() -> None:
    low_res = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    enlarged = with_low_res(torch.zeros(1, 1, 4, 4), low_res)[:, 1:]
    row = torch.tensor([0.0, 0.25, 0.75, 1.0])  # align_corners=True would give thirds
    torch.testing.assert_close(enlarged[0, 0], row + 2 * row.unsqueeze(1))


def test_the_small_image_of_training_is_the_area_average() -> None:
    x_0 = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(make_low_res(x_0, 4), nn.functional.avg_pool2d(x_0, 4))


def test_an_upsampler_is_the_same_network_with_twice_the_input_channels() -> None:
    base, upsampler = tiny(), fill(tiny(low_res_size=4), 0.06)
    shapes = {name: tuple(p.shape) for name, p in base.state_dict().items()}
    assert {name: tuple(p.shape) for name, p in upsampler.state_dict().items()} == shapes | {"input_blocks.0.0.weight": (32, 6, 3, 3)}
    x, t, low_res = torch.randn(2, 3, 8, 8), torch.zeros(2), torch.randn(2, 3, 4, 4)
    assert not torch.allclose(upsampler(x, t, low_res=low_res), upsampler(x, t, low_res=-low_res))


IMAGES, TIMES, LABELS, SMALL_IMAGES = torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.tensor([0, 9]), torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ({}, {"y": LABELS}, "y: this model is not class-conditional and takes no labels"),
        ({"num_classes": 10}, {}, "y: this model is class-conditional and needs one label per image, of 0 to 9"),
        ({"num_classes": 10}, {"y": torch.tensor([0, 10])}, "y: labels must be of 0 to 9, got 0 to 10"),
        ({"num_classes": 10}, {"y": torch.tensor([1])}, r"y: must be \[batch\], one label per image: \[2\], got \[1\]"),
        ({"low_res_size": 4}, {}, "low_res: this model is an upsampler and needs the 4x4 images"),
        ({"low_res_size": 4}, {"low_res": torch.zeros(2, 3, 2, 2)}, r"low_res: must be \[2, 3, 4, 4\], got \[2, 3, 2, 2\]"),
        ({}, {"low_res": SMALL_IMAGES}, "low_res: this model is not an upsampler"),
        ({}, {"timesteps": torch.zeros(1)}, r"timesteps: must be \[batch\], one per image: \[2\], got \[1\]"),
        ({}, {"timesteps": torch.zeros(2, 1)}, r"timesteps: must be \[batch\], one per image: \[2\], got \[2, 1\]"),
        ({}, {"x": torch.zeros(2, 1, 8, 8)}, r"x: must be \[batch, 3, height, width\]"),
        ({}, {"x": torch.zeros(2, 3, 9, 8)}, "divisible by 2"),
    ],
)
def test_bad_input_gives_one_error_that_names_what_is_allowed(model: dict[str, object], arguments: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(**model)(**({"x": IMAGES, "timesteps": TIMES} | arguments))


COMPILED = """
import torch
from training.config import presets
from training.models.dropout import dropout_key
from training.models.unet import make_model

graphs = []
experiment = presets.preset("digits-hybrid-cosine", ["model.dropout=0.3"])
model = make_model(experiment, gradient_checkpointing=CHECKPOINTING).train()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.05)
compiled = torch.compile(model, dynamic=False, fullgraph=True, backend=lambda graph, inputs: graphs.append(graph) or graph)
for step in range(3):
    x, t, y, key = torch.randn(2, 1, 8, 8), torch.rand(2) * 1000, torch.tensor([0, 9]), dropout_key(0, step, torch.arange(2))
    assert torch.equal(compiled(x, t, y=y, dropout_key=key), model(x, t, y=y, dropout_key=key))
print(len(graphs))
"""


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_torch_compile_takes_the_network_whole_and_once_for_all_steps(checkpointing: bool) -> None:
    """The test takes a process of its own, as the shape checks of the test run can't be compiled."""
    code = COMPILED.replace("CHECKPOINTING", str(checkpointing))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
