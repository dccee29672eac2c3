"""The experiment: what it refuses, how words from outside become fields, and what identifies a run."""

from __future__ import annotations

import subprocess
import sys

import pytest

from training.config import presets
from training.config.errors import UserError
from training.config.experiment import Experiment, Resources

DEMO = presets.preset("digits-hybrid-cosine")


@pytest.mark.parametrize("name", presets.names())
def test_json_carries_every_preset_there_and_back(name: str) -> None:
    experiment = presets.preset(name)
    assert Experiment.from_json(experiment.to_json()) == experiment


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("diffusion.vlb_weight=0.01", lambda e: e.diffusion.vlb_weight == 0.01),
        ("diffusion.vlb_weight=1e-2", lambda e: e.diffusion.vlb_weight == 0.01),
        ("model.channel_mult=1,2", lambda e: e.model.channel_mult == (1, 2)),
        ("model.channel_mult=[1, 2]", lambda e: e.model.channel_mult == (1, 2)),
        ("model.attention_resolutions=4", lambda e: e.model.attention_resolutions == (4,)),
        ("model.attention_resolutions=", lambda e: e.model.attention_resolutions == ()),
        ("optim.grad_clip_norm=1", lambda e: e.optim.grad_clip_norm == 1.0),
        ("optim.grad_clip_norm=null", lambda e: e.optim.grad_clip_norm is None),
        ("diffusion.stop_gradient=False", lambda e: e.diffusion.stop_gradient is False),
        ("diffusion.schedule=linear", lambda e: e.diffusion.schedule == "linear"),
        ("evaluation.sampling.spacing=250", lambda e: e.evaluation.sampling.spacing == "250"),
        ("evaluation.sampling.spacing=ddim50", lambda e: e.evaluation.sampling.spacing == "ddim50"),
        ("evaluation.sampling.spacing=learned:10", lambda e: e.evaluation.sampling.spacing == "learned:10"),
        ("evaluation.metrics=kid", lambda e: e.evaluation.metrics == ("kid",)),
        ("evaluation.metrics=kid, precision_recall", lambda e: e.evaluation.metrics == ("kid", "precision_recall")),
        ('evaluation.metrics=["kid"]', lambda e: e.evaluation.metrics == ("kid",)),
        ("evaluation.metrics=", lambda e: e.evaluation.metrics == ()),
        ("evaluation.metrics=none", lambda e: e.evaluation.metrics is None),
        (" seed = 7", lambda e: e.seed == 7),
    ],
)
def test_an_override_becomes_its_field(override: str, read: object) -> None:
    assert read(DEMO.override([override]))  # type: ignore[operator]


@pytest.mark.parametrize("nothing", ["none", "null", "None"])
def test_a_list_that_was_set_can_be_set_to_no_value_again(nothing: str) -> None:
    assert DEMO.override(["evaluation.metrics=kid", f"evaluation.metrics={nothing}"]).evaluation.metrics is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("diffusion.vlb_wieght=1", r"diffusion\.vlb_wieght: .*did you mean 'vlb_weight'"),
        ("difusion.vlb_weight=1", r"difusion\.vlb_weight: .*did you mean 'diffusion'"),
        ("evaluation.sampling.spacng=3", r"did you mean 'spacing'"),
        ("model=3", r"model: is a section; name one of its fields: model_channels"),
        ("model.dropout", r"reads section\.field=value"),
        ("diffusion.objective=elbo", r"diffusion\.objective: .*'simple', 'vlb' or 'hybrid'"),
        ("diffusion.schedule=linear2", r"diffusion\.schedule: .*'linear' or 'cosine'"),
        ("model.channel_mult=a,b", r"model\.channel_mult\.0: .*valid integer"),
        ("optim.num_steps=0.5", r"optim\.num_steps: .*integer"),
        ("optim.num_steps=0", r"optim\.num_steps: must be at least 1"),
        ("optim.num_steps=100000000", r"optim\.num_steps: must be at most 99,999,999, got 100,000,000"),
        ("optim.learning_rate=nan", r"optim\.learning_rate"),
        ("data.image_channels=2", r"data\.image_channels: must be 1 or 3, got 2"),
        ("data.image_size=9", r"data\.image_size: 9 is not divisible by 2"),
        ("model.model_channels=48", r"model\.model_channels: must be even and a multiple of 32"),
        ("model.norm_groups=0", r"model\.norm_groups: must be at least 1"),
        ("model.norm_eps=0", r"model\.norm_eps: must be a finite number above 0, got 0\.0"),
        ("model.time_embedding=sines", r"model\.time_embedding: .*'cos_sin' or 'sin_cos'"),
        ("model.downsample_padding=0", r"model\.downsample_padding: .*'symmetric' or 'right_bottom'"),
        ("model.num_heads=5", r"model\.num_heads: 5 heads do not divide"),
        (
            "model.attention_resolutions=16",
            r"\[16\] is not among .* \[8, 4\]; write model\.attention_resolutions=4 ",
        ),
        ("model.dropout=1", r"model\.dropout: must be in \[0, 1\)"),
        ("diffusion.variance=fixed_small", r"diffusion\.variance: L_hybrid exists to learn the variance"),
        ("diffusion.objective=simple", r"diffusion\.variance: L_simple has no gradient for a learned variance"),
        ("diffusion.num_timesteps=20", r"evaluation\.sampling\.spacing"),
        ("diffusion.num_timesteps=1000001", r"^diffusion\.num_timesteps: must be at most 1,000,000, got 1,000,001$"),
        ("evaluation.sampling.spacing=ddim60", r"evaluation\.sampling\.spacing: no integer stride .*ddim59 and ddim63"),
        ("evaluation.sampling.eta=0.5", r"only 'ddim' and 'dpm_solver_pp' have an eta"),
        ("evaluation.sampling.spacing=learned:1001", r"evaluation\.sampling\.spacing: .* asks for 1001 of 1000"),
        ("evaluation.scoring_sampling.spacing=learned:10", r"evaluation\.scoring_sampling\.spacing: .* belong to one checkpoint"),
        (
            "evaluation.sampling.guidance_scale=2",
            r"^evaluation\.sampling\.guidance_scale: the model was trained with every label; train one .*, or give a guidance_step$",
        ),
        (
            "evaluation.scoring_sampling.guidance_scale=2",
            r"^evaluation\.scoring_sampling\.guidance_scale: the model was trained with every label; train one .*, or leave it out$",
        ),
        (
            "evaluation.sampling.guidance_scale=inf",
            r"^evaluation\.sampling\.guidance_scale: must be a finite number of at least 0, got inf",
        ),
        ("evaluation.sampling.guidance_step=5", r"^evaluation\.sampling\.guidance_step: needs a guidance_scale"),
        ("model.label_dropout=1", r"model\.label_dropout: must be in"),
        ("evaluation.sampling.order=3", r"evaluation\.sampling\.order: 'ancestral' is no multistep method"),
        ("evaluation.sampling.unipc_variant=B1", r"only 'unipc' has variants"),
        ("evaluation.sampling.dynamic_threshold=2", r"evaluation\.sampling\.dynamic_threshold: must be in \[0, 1\]"),
        ("evaluation.metrics=kids", r"evaluation\.metrics\.0: .*'kid'"),
        ("evaluation.num_samples=1", r"evaluation\.num_samples: must be at least 2, got 1"),
        ("evaluation.scoring_num_samples=1", r"evaluation\.scoring_num_samples: must be at least 2, got 1"),
        ("evaluation.likelihood_steps=1001", r"evaluation\.likelihood_steps: 1001 is more than"),
        ("data.num_classes=0", r"model\.class_conditional: .* has no labels"),
        ("seed=-1", r"seed: must be in"),
        ("optim.num_steps=true", r"optim\.num_steps: 'true' is given, but this field is not true or false"),
        ("model.channel_mult=true,2", r"model\.channel_mult: 'true,2' is given"),
        ("optim.grad_clip_norm=true", r"optim\.grad_clip_norm: 'true' is given"),
        ("optim.adam_eps=inf", r"optim\.adam_eps: must be a finite number above 0"),
        ("optim.weight_decay=Infinity", r"optim\.weight_decay: must be a finite number of at least 0, got inf"),
        ("optim.grad_clip_norm=inf", r"optim\.grad_clip_norm: must be a finite number above 0"),
        ("optim.ema_snapshot_stds=0.2887", r"optim\.ema_snapshot_stds: must be different numbers between 0 and 0\.2886"),
        ("evaluation.likelihood_steps=1", r"evaluation\.likelihood_steps: a stratified likelihood takes at least 2"),
        ("evaluation.scoring_sampling.eta=2", r"^evaluation\.scoring_sampling\.eta: must be in \[0, 1\]"),
        ("evaluation.sampling.spacing=10 20", r"spacing '10 20' is not understood"),
        ("diffusion.vlb_weight.x=3", r"diffusion\.vlb_weight is a field and has none below it"),
        ("name=../../elsewhere", r"name: cannot be overridden"),
        (3, r"3: an override is text"),
        ("", r"^'': an override reads"),
        ("seed=" + "9" * 5000, r"^seed: "),
        ("optim.ema_decays=" + "[" * 100_000, r"^optim\.ema_decays: "),
        ("data.name=" + "a" * 201, r"^data\.name: must have at most 200 characters, got 201"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_field_and_what_it_allows(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        DEMO.override([override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("step", [300, 1600])
def test_a_guide_that_training_will_not_have_stored_is_refused_before_it(step: int) -> None:
    guided = DEMO.override(["evaluation.sampling.guidance_scale=2", "evaluation.sampling.guidance_step=1400"])
    guided.require_guide()
    with pytest.raises(UserError, match=rf"^evaluation\.sampling\.guidance_step: .* no checkpoint of step {step} .* \(200\) below"):
        guided.override([f"evaluation.sampling.guidance_step={step}"]).require_guide()


@pytest.mark.parametrize(("section", "remedy"), [("sampling", "give a guidance_step"), ("scoring_sampling", "leave it out")])
def test_a_model_without_labels_is_not_told_to_drop_them(section: str, remedy: str) -> None:
    with pytest.raises(UserError, match=rf"^evaluation\.{section}\.guidance_scale: the model has no labels; {remedy}$"):
        DEMO.override(["model.class_conditional=false", f"evaluation.{section}.guidance_scale=2"])


def test_the_scores_beside_training_have_no_earlier_checkpoint_to_guide_them() -> None:
    with pytest.raises(UserError, match=r"^evaluation\.scoring_sampling\.guidance_step: the first scores"):
        DEMO.override(["evaluation.scoring_sampling.guidance_scale=2", "evaluation.scoring_sampling.guidance_step=200"])


@pytest.mark.parametrize("name", ["../../elsewhere", "", "a" * 201])
def test_an_experiments_name_is_one_for_a_directory_too(name: str) -> None:
    with pytest.raises(UserError, match=f"name: ('{name}' is not a name|must have at most 200 characters)"):
        Experiment.from_dict(DEMO.to_dict() | {"name": name})
    assert Experiment.from_dict(DEMO.to_dict() | {"name": "a" * 200}).name == "a" * 200


def test_no_steps_are_learned_for_an_upsampler() -> None:
    with pytest.raises(UserError, match=r"^evaluation\.sampling\.spacing: no timesteps can be learned for an upsampler"):
        DEMO.override(["model.low_res_size=4", "evaluation.sampling.spacing=learned:10"])


def test_overrides_that_are_one_text_rather_than_a_list_are_told_so() -> None:
    with pytest.raises(UserError, match="overrides are a list"):
        DEMO.override("model.dropout=0.1")


def test_the_linear_schedule_refuses_a_t_at_which_beta_reaches_one() -> None:
    small = ["evaluation.sampling.spacing=", "evaluation.scoring_sampling.spacing=", "evaluation.likelihood_steps=5"]
    with pytest.raises(UserError, match=r"needs more than 20 timesteps"):
        DEMO.override([*small, "diffusion.schedule=linear", "diffusion.num_timesteps=20"])
    assert DEMO.override([*small, "diffusion.schedule=linear", "diffusion.num_timesteps=21"]).diffusion.num_timesteps == 21


def test_an_unknown_preset_names_the_nearest_ones() -> None:
    with pytest.raises(UserError, match=r"did you mean .*cifar10-hybrid-cosine"):
        presets.preset("cifar10-hybrid-cosin")


def test_a_file_that_is_not_an_experiment_is_told_so() -> None:
    with pytest.raises(UserError, match="not an experiment's JSON"):
        Experiment.from_json("{")
    with pytest.raises(UserError, match="not an experiment's JSON: its brackets are nested too deeply"):
        Experiment.from_json("[" * 100_000)
    with pytest.raises(UserError, match="not an experiment's JSON"):
        Experiment.from_json(b'{"name": "\xff"}')
    with pytest.raises(UserError, match=r"^colour: there is no 'colour'\. The fields are name, data, "):
        Experiment.from_dict({**DEMO.to_dict(), "colour": "red"})
    with pytest.raises(UserError, match=r"^model\.dropot: there is no 'dropot' in 'model'; did you mean 'dropout'\?"):
        Experiment.from_dict({**DEMO.to_dict(), "model": {"dropot": 1}})


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (
            ["data.image_size=16"],
            r"stages of images of 16 pixels, which are \[16, 8\]; write model\.attention_resolutions=8 ",
        ),
        (["data.image_size=4"], None),
        (["data.image_size=16", "model.attention_resolutions=8"], None),
    ],
)
def test_another_image_size_alone_is_refused_with_what_to_write_beside_it(overrides: list[str], remedy: str | None) -> None:
    if remedy is None:
        DEMO.override(overrides)
    else:
        with pytest.raises(UserError, match=remedy):
            DEMO.override(overrides)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_workers": 0}, r"resources\.num_workers: must be at least 1"),
        ({"min_workers": 3, "num_workers": 2}, r"resources\.min_workers: must be 0 to num_workers"),
        ({"precision": "fp16"}, r"precision: .*'fp32' or 'bf16'"),
        ({"num_worker": 1}, "^num_worker: there is no 'num_worker'; did you mean 'num_workers'"),
        ({"num_workers": True}, "^num_workers: true is given, but this field is not true or false"),
        ({"collective_timeout_seconds": 0}, r"collective_timeout_seconds: must be at least 1"),
    ],
)
def test_wrong_resources_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Resources.from_dict(fields)


def test_a_number_may_be_given_as_text_and_a_switch_as_true() -> None:
    assert Resources.from_dict({"num_workers": "5", "compile": True}) == Resources(num_workers=5, compile=True)


def test_an_experiment_is_validated_without_torch() -> None:
    code = (
        "import sys; from training.config.presets import preset; preset('cifar10-hybrid-cosine', ['seed=3']); "
        "assert not {'torch', 'ray', 'mlflow', 'boto3'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


WITHOUT_PYDANTIC = """
import sys
sys.modules["pydantic"] = None
from training.config.experiment import Experiment, Resources
from training.config.presets import names, preset

for name in names():
    assert Experiment.from_json(preset(name).to_json()) == preset(name)
for wrong in sys.argv[1:]:
    try:
        preset("digits-hybrid-cosine", [wrong])
    except ValueError as error:
        print(error)
    else:
        print("taken:", wrong)
try:
    Resources.from_dict({"precision": "fp16"})
except ValueError as error:
    print(error)
"""


def test_a_machine_without_pydantic_makes_the_same_checks() -> None:
    wrong = {
        "diffusion.objective=hybird": "diffusion.objective: must be 'simple' or 'vlb' or 'hybrid', got 'hybird'",
        "optim.num_steps=many": "optim.num_steps: must be of type int, got 'many'",
        "optim.num_steps=0.5": "optim.num_steps: must be of type int, got 0.5",
        "optim.num_steps=Infinity": "optim.num_steps: must be of type int, got inf",
        "optim.num_steps=NaN": "optim.num_steps: must be of type int, got nan",
        "model.channel_mult=1,a": "model.channel_mult.1: must be of type int, got 'a'",
        "optim.adam_betas=0.9": "optim.adam_betas: must have 2 entries, got [0.9]",
        "optim.grad_clip_norm=much": "optim.grad_clip_norm: must be of type float, got 'much'",
        "evaluation.sampling.method=ddpm": "evaluation.sampling.method: must be 'ancestral' or 'ddim' or 'dpm_solver_pp' or "
        "'sde_dpm_solver_pp' or 'unipc' or 'deis', got 'ddpm'",
        "evaluation.sampling.eta=2": "evaluation.sampling.eta: must be in [0, 1], got 2.0",
        "optim.num_steps=0": "optim.num_steps: must be at least 1, got 0",
    }
    done = subprocess.run([sys.executable, "-c", WITHOUT_PYDANTIC, *wrong], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [*wrong.values(), "precision: must be 'fp32' or 'bf16', got 'fp16'"]


def test_the_embedding_with_sines_first_needs_two_frequencies() -> None:
    narrow = ["model.norm_groups=2", "model.num_heads=1", "model.time_embedding=sin_cos"]
    with pytest.raises(UserError, match=r"model\.time_embedding: 'sin_cos' needs two frequencies, .* at least 4, got 2"):
        DEMO.override([*narrow, "model.model_channels=2"])
    DEMO.override([*narrow, "model.model_channels=4"])
