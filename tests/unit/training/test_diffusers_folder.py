"""A checkpoint as diffusers loads it: the same samples from the same noise, and the same checkpoint when it comes back."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rounding import NETWORK, assert_same_output
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.checkpoints import checkpoint
from training.checkpoints.diffusers_folder import _example, export_diffusers, import_diffusers, unet_config
from training.config.errors import UserError
from training.config.experiment import Experiment, SamplingConfig
from training.config.presets import names, preset
from training.diffusion.process import Denoiser
from training.diffusion.samplers.sampler import make_sampler, make_sampling_process, sample_loop
from training.diffusion.schedules import cosine_betas
from training.models.unet import UNet, make_model
from training.storage import StorageError

_SMALL = ("model.model_channels=32", "model.num_res_blocks=1", "optim.ema_decays=0.99")
EXPERIMENTS = {
    "rescaled, learned range, labels": preset(
        "digits-tiny-hybrid-cosine", (*_SMALL, "model.class_conditional=true", "model.label_dropout=0.1")
    ),
    "one head at two widths, 8 groups": preset(
        "digits-tiny-hybrid-cosine",
        (*_SMALL, "model.channel_mult=1,2", "model.attention_resolutions=8,4", "model.num_heads=1", "model.norm_groups=8"),
    ),
    "four heads, additive time embedding, unlabelled, 4000 timesteps": preset(
        "cifar10-hybrid-cosine",
        (
            *_SMALL,
            "data.image_size=16",
            "model.channel_mult=1,2,2",
            "model.attention_resolutions=8",
            "model.use_scale_shift_norm=false",
            "diffusion.rescale_timesteps=false",
        ),
    ),
    "time embedding, padding and epsilon of Ho et al.'s code": preset(
        "digits-tiny-hybrid-cosine",
        (*_SMALL, "model.time_embedding=sin_cos", "model.downsample_padding=right_bottom", "model.norm_eps=1e-6"),
    ),
    "rescaled from 4000, fixed variance, x_0": preset(
        "cifar10-hybrid-cosine",
        (
            *_SMALL,
            "data.image_size=16",
            "model.channel_mult=1,2,2",
            "model.attention_resolutions=8",
            "diffusion.objective=simple",
            "diffusion.variance=fixed_large",
            "diffusion.prediction=x_0",
        ),
    ),
}


def _random_model(experiment: Experiment) -> UNet:
    torch.manual_seed(0)
    model = make_model(experiment).eval().requires_grad_(False)
    for module in model.modules():  # the initial network's output is 0
        if isinstance(module, nn.Conv1d | nn.Conv2d) and not module.weight.any():
            module.reset_parameters()
    return model


@pytest.fixture(params=list(EXPERIMENTS))
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Experiment, UNet, Path]:
    experiment = EXPERIMENTS[request.param]
    model = _random_model(experiment)
    files: dict[str, Any] = {checkpoint.EXPERIMENT: experiment.to_json().encode(), "ema_0.99.pt": model.state_dict()}
    uri = checkpoint.save(str(tmp_path / "run"), 10, files)
    export_diffusers(uri, str(tmp_path / "folder"))
    return experiment, model, tmp_path / "folder"


def test_diffusers_draws_the_same_samples_from_the_same_noise(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two differ by float32: angles t w of up to 1000 are rounded to 6e-5, and 20 steps add such differences up."""
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.schedulers import scheduling_ddpm

    experiment, model, folder = exported
    unet = UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(20)
    scale = experiment.diffusion.num_timesteps / scheduler.config.num_train_timesteps
    timesteps = [int(t * scale) for t in scheduler.timesteps.tolist()]
    generator = torch.Generator().manual_seed(1)
    shape = (3, experiment.data.image_channels, experiment.data.image_size, experiment.data.image_size)
    start, *noise = (torch.randn(shape, generator=generator) for _ in range(21))
    labels = torch.tensor([0, 3, 9]) if experiment.model.class_conditional else None

    remaining = iter(noise)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *arguments, **options: next(remaining))
    theirs: Tensor = start
    with torch.no_grad():
        for t in scheduler.timesteps:
            theirs = scheduler.step(unet(theirs, t, class_labels=labels).sample, t, theirs).prev_sample

    sampling = SamplingConfig(spacing="t:" + ",".join(map(str, timesteps)))
    process = make_sampling_process(experiment.diffusion, sampling)
    denoiser = Denoiser(process, model, conditioning={} if labels is None else {"y": labels})
    ours = sample_loop(denoiser, make_sampler(sampling), start, noise=lambda k: noise[19 - k])
    assert process.num_timesteps == 20
    assert float(ours.std()) > 0.1
    assert_same_output(theirs, ours, calls=20)


def test_an_exported_folder_comes_back_bit_for_bit(exported: Any, tmp_path: Path) -> None:
    experiment, model, folder = exported
    made = import_diffusers(str(folder), str(tmp_path / "back"))
    assert made["step"] == 10
    state = checkpoint.load_model_state(made["checkpoint_uri"], "model")
    assert checkpoint.load_experiment(made["checkpoint_uri"]) == experiment
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_folder_whose_weights_have_no_step_is_imported_as_trained_to_the_end(tmp_path: Path) -> None:
    experiment = preset("digits-tiny-hybrid-cosine", _SMALL)
    export_diffusers(_saved(tmp_path, experiment), str(tmp_path / "folder"))
    file = tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt"})  # as diffusers and earlier versions of this program
    assert import_diffusers(str(tmp_path / "folder"), str(tmp_path / "back"))["step"] == experiment.optim.num_steps


def test_weights_of_another_network_are_not_exported(tmp_path: Path) -> None:
    experiment = preset("digits-tiny-hybrid-cosine", _SMALL)
    wider = experiment.override(["model.model_channels=64"])
    files = {checkpoint.EXPERIMENT: wider.to_json().encode(), "model.pt": make_model(experiment).state_dict()}
    uri = checkpoint.save(str(tmp_path / "run"), 1, files)
    with pytest.raises(checkpoint.CheckpointError, match=r"\(model\): is not a network of the checkpoint's experiment: time_"):
        export_diffusers(uri, str(tmp_path / "folder"), weights="model")
    assert not (tmp_path / "folder").exists()


def test_the_card_has_an_example_that_runs(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, _, folder = exported
    card = (folder / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(code.replace("set_timesteps(250)", "set_timesteps(2)").replace("set_timesteps(100)", "set_timesteps(2)"), found)
    assert found["images"].shape[1] == experiment.data.image_channels
    assert (folder / "model_index.json").exists() != experiment.model.class_conditional


def test_the_example_of_a_card_asks_for_no_more_classes_than_there_are() -> None:
    experiment = EXPERIMENTS["rescaled, learned range, labels"].override(["data.num_classes=3"])
    assert "class_labels=torch.arange(4) % 3)" in _example(experiment)


_OF_THEIRS = (
    *("data.image_size=16", "model.model_channels=32", "model.channel_mult=1,1,2", "model.num_res_blocks=1"),
    *("model.attention_resolutions=4", "model.use_scale_shift_norm=false", "diffusion.num_timesteps=1000"),
    *("diffusion.schedule=linear", "diffusion.objective=simple", "diffusion.variance=fixed_small"),
)


def _save_theirs(folder: Path, *, schedule: str = "linear", **changes: Any) -> nn.Module:
    """Save the network and the scheduler of diffusers' tutorial of unconditional training, but smaller: all else has its defaults."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    size: dict[str, Any] = {"sample_size": 16, "layers_per_block": 1, "block_out_channels": (32, 32, 64)}
    down, up = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
    unet: nn.Module = UNet2DModel(down_block_types=down, up_block_types=up, **size, **changes).eval()
    DDPMPipeline(unet, DDPMScheduler(beta_schedule=schedule)).save_pretrained(folder / "theirs")
    return unet


@pytest.mark.parametrize(("theirs", "ours"), [("linear", "linear"), ("squaredcos_cap_v2", "cosine")])
def test_a_folder_that_diffusers_itself_wrote_is_imported_and_its_network_gives_the_same_numbers(
    tmp_path: Path, theirs: str, ours: str
) -> None:
    unet = _save_theirs(tmp_path, schedule=theirs)
    overrides = [*_OF_THEIRS, "model.num_heads=8", f"diffusion.schedule={ours}"]
    made = import_diffusers(str(tmp_path / "theirs"), str(tmp_path / "run"), preset="cifar10-hybrid-cosine", overrides=overrides)
    model = make_model(checkpoint.load_experiment(made["checkpoint_uri"])).eval()
    model.load_state_dict(checkpoint.load_model_state(made["checkpoint_uri"], "model"))
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([7.0, 900.0])
    with torch.no_grad():
        # Angles t w of up to 1000 are rounded to 2^-14.
        torch.testing.assert_close(model(x, t), unet(x, t).sample, atol=2**-14 + NETWORK, rtol=0)
    other = "diffusion.schedule=cosine" if ours == "linear" else "diffusion.schedule=linear"
    with pytest.raises(
        UserError, match=r"scheduler_config\.json: is not the experiment's: trained_betas is 1,000 values, .* ours is 1,000 values, "
    ):
        import_diffusers(str(tmp_path / "theirs"), str(tmp_path / "b"), preset="cifar10-hybrid-cosine", overrides=[*overrides, other])


@pytest.mark.parametrize(
    ("heads", "changes", "said"),
    [
        (1, {"attention_head_dim": 64}, ""),
        (8, {"mid_block_scale_factor": 2.0}, "mid_block_scale_factor is 2.0, ours is 1"),
        (8, {"schedule": "scaled_linear"}, "trained_betas is 'of scaled_linear', ours is 1,000 values, "),
    ],
)
def test_a_field_of_diffusers_is_taken_for_what_it_does(tmp_path: Path, heads: int, changes: dict[str, Any], said: str) -> None:
    _save_theirs(tmp_path, **changes)
    overrides = [*_OF_THEIRS, f"model.num_heads={heads}"]
    with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
        import_diffusers(str(tmp_path / "theirs"), str(tmp_path / "run"), preset="cifar10-hybrid-cosine", overrides=overrides)
    assert (tmp_path / "run").exists() == (not said)


def test_a_scheduler_that_an_old_diffusers_saved_has_the_defaults(tmp_path: Path) -> None:
    _save_theirs(tmp_path)
    file = tmp_path / "theirs" / "scheduler" / "scheduler_config.json"
    old = {"_class_name", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule"}
    file.write_text(json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name in old}))
    import_diffusers(
        str(tmp_path / "theirs"), str(tmp_path / "run"), preset="cifar10-hybrid-cosine", overrides=[*_OF_THEIRS, "model.num_heads=8"]
    )


def _saved(tmp_path: Path, experiment: Experiment) -> str:
    files: dict[str, Any] = {checkpoint.EXPERIMENT: experiment.to_json().encode(), "model.pt": _random_model(experiment).state_dict()}
    return checkpoint.save(str(tmp_path / "run"), 10, files)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_diffusers_draws_finite_images_at_every_step_also_beyond_the_last_timestep_of_training(tmp_path: Path, schedule: str) -> None:
    from diffusers import DDPMScheduler, UNet2DModel

    experiment = preset("digits-tiny-hybrid-cosine", (*_SMALL, f"diffusion.schedule={schedule}"))
    assert experiment.diffusion.num_timesteps == 400
    export_diffusers(_saved(tmp_path, experiment), str(tmp_path / "folder"))
    unet = UNet2DModel.from_pretrained(tmp_path / "folder", subfolder="unet").eval()
    scheduler = DDPMScheduler.from_pretrained(tmp_path / "folder", subfolder="scheduler")
    scheduler.set_timesteps(1000)
    assert 0 < float(scheduler.betas.min()) < float(scheduler.betas.max()) < 1
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for t in scheduler.timesteps[:5]:
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    assert bool(x.isfinite().all())


def test_a_folder_that_an_earlier_version_exported_is_imported(tmp_path: Path) -> None:
    """Its betas beyond the last timestep of training, 399 of 1000/400, are 0."""
    experiment = preset("digits-tiny-hybrid-cosine", _SMALL)
    export_diffusers(_saved(tmp_path, experiment), str(tmp_path / "folder"))
    file = tmp_path / "folder" / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    betas = cosine_betas(400)
    # alpha_bar is interpolated in log: from 398.8 to 399 is a fifth of the last step.
    config["trained_betas"][998:] = [1 - float(1 - betas[399]) ** 0.2, 0.0]
    file.write_text(json.dumps(config))
    made = import_diffusers(str(tmp_path / "folder"), str(tmp_path / "back"))
    assert checkpoint.load_experiment(made["checkpoint_uri"]) == experiment
    config["trained_betas"][999] = 0.1
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="trained_betas is 1,000 values"):
        import_diffusers(str(tmp_path / "folder"), str(tmp_path / "other"))


def test_a_folder_with_fewer_timesteps_than_the_default_evaluation_takes_is_imported(tmp_path: Path) -> None:
    spacings = ("evaluation.sampling.spacing=", "evaluation.scoring_sampling.spacing=")
    words = ("diffusion.num_timesteps=15", "diffusion.rescale_timesteps=false", "evaluation.likelihood_steps=15")
    experiment = preset("digits-tiny-hybrid-cosine", (*_SMALL, *words, *spacings))
    export_diffusers(_saved(tmp_path, experiment), str(tmp_path / "folder"))
    (tmp_path / "folder" / "experiment.json").unlink()  # as diffusers writes a folder
    made = import_diffusers(str(tmp_path / "folder"), str(tmp_path / "back"))
    evaluation = checkpoint.load_experiment(made["checkpoint_uri"]).evaluation
    assert (evaluation.sampling.spacing, evaluation.scoring_sampling.spacing, evaluation.likelihood_steps) == ("15", "15", 15)


def test_a_folder_with_another_scheduler_is_refused_with_what_writes_the_one_that_is_taken(tmp_path: Path) -> None:
    from diffusers import DDIMScheduler, DDPMScheduler

    _save_theirs(tmp_path)
    folder = tmp_path / "theirs" / "scheduler"
    scheduler = DDIMScheduler.from_config(DDPMScheduler.from_pretrained(folder).config)
    scheduler.save_pretrained(folder)
    overrides = [*_OF_THEIRS, "model.num_heads=8"]
    with pytest.raises(UserError, match="is of the class DDIMScheduler, and only DDPMScheduler is taken; in diffusers, ") as caught:
        import_diffusers(str(tmp_path / "theirs"), str(tmp_path / "run"), preset="cifar10-hybrid-cosine", overrides=overrides)
    code = str(caught.value).partition("in diffusers, ")[2].partition(" writes")[0]
    assert code == f"DDPMScheduler.from_config(pipeline.scheduler.config).save_pretrained('{folder}')"
    DDPMScheduler.from_config(scheduler.config).save_pretrained(folder)
    import_diffusers(str(tmp_path / "theirs"), str(tmp_path / "run"), preset="cifar10-hybrid-cosine", overrides=overrides)


def test_a_folder_with_a_file_of_another_shape_is_refused_by_its_name(exported: Any, tmp_path: Path) -> None:
    _, _, folder = exported
    for name, said in (("unet/config.json", "is not a JSON object"), ("experiment.json", "Experiment: Input should be a dictionary")):
        (folder / name).write_text("[1]")
        with pytest.raises((UserError, StorageError), match=f"{name}: {said}.* check the address"):
            import_diffusers(str(folder), str(tmp_path / "back"))


def test_a_changed_folder_is_refused(exported: Any, tmp_path: Path) -> None:
    _, _, folder = exported
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(config | {"norm_eps": 1e-3}))
    with pytest.raises(UserError, match=r"norm_eps is 0\.001, ours is 1e-0[56]"):
        import_diffusers(str(folder), str(tmp_path / "back"))
    assert not (tmp_path / "back").exists()


def _can_be_expressed(experiment: Experiment) -> bool:
    model = experiment.model
    sizes = [experiment.data.image_size // 2**stage for stage in range(len(model.channel_mult))]
    mults = {mult for mult, size in zip(model.channel_mult, sizes, strict=True) if size in model.attention_resolutions}
    return model.low_res_size is None and (model.num_heads == 1 or mults <= {model.channel_mult[-1]})


def test_a_first_stage_that_is_wider_than_the_first_convolution_is_refused() -> None:
    with pytest.raises(UserError, match=r"a first stage of 2 times model\.model_channels, .* export it as \.safetensors"):
        unet_config(preset("digits-tiny-hybrid-cosine", ["model.channel_mult=2,2"]))


@pytest.mark.parametrize("name", sorted(names()))
def test_each_preset_has_a_config_or_a_sentence_that_says_why_not(name: str) -> None:
    from diffusers import UNet2DModel

    experiment = preset(name)
    if not _can_be_expressed(experiment):
        with pytest.raises(UserError, match=f"{name} (is an upsampler|has . attention heads at each of the widths).* UNet2DModel"):
            unet_config(experiment)
        return
    with torch.device("meta"):
        theirs, ours = UNet2DModel.from_config(unet_config(experiment)), make_model(experiment)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
