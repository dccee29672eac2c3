"""Experiment files: what they may contain, and the errors that refuse them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from training.config import presets
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.config.files import named_experiment, read_experiment_file, resolve_experiment, to_toml
from training.cost.suggest import suggest_experiment

FILE = """
# birds in the garden
base = "cifar10-hybrid-cosine"
name = "birds"
seed = 3

[data]
name = "birds"        # the data set's own name
image_size = 64
num_classes = 0

[model]
attention_resolutions = [16, 8]

[optim]
learning_rate = 2e-4
grad_clip_norm = 1

[evaluation.sampling]
method = "ddim"
spacing = "ddim50"
"""


def test_a_file_is_its_base_and_what_differs(tmp_path: Path) -> None:
    experiment = read_experiment_file(FILE)
    words = ["data.name=birds", "data.image_size=64", "data.num_classes=0", "optim.learning_rate=2e-4", "optim.grad_clip_norm=1"]
    words += ["evaluation.sampling.method=ddim", "evaluation.sampling.spacing=ddim50", "seed=3"]
    expected = presets.preset("cifar10-hybrid-cosine", words)
    assert experiment.name == "birds"
    assert experiment.to_dict() == expected.to_dict() | {"name": "birds"}
    path = tmp_path / "birds.toml"
    path.write_text(FILE)
    assert read_experiment_file(path) == read_experiment_file(str(path)) == experiment


def test_no_value_is_written_as_none() -> None:
    base = presets.preset("digits-hybrid-cosine", ["optim.grad_clip_norm=1", "evaluation.num_reference_images=5"])
    without = base.override(["optim.grad_clip_norm=null"])
    text = 'base = "digits-hybrid-cosine"\n[optim]\ngrad_clip_norm = "none"\n[evaluation]\nnum_reference_images = 5\n'
    assert read_experiment_file(text) == without


def _words(kind: Any, path: str = "") -> Iterator[str]:
    """Yield an override for each value of each field that takes one of a few words."""
    if dataclasses.is_dataclass(kind):
        for name, hint in get_type_hints(kind).items():
            yield from _words(hint, f"{path}.{name}".strip("."))
    elif get_origin(kind) is Literal:
        yield from (f"{path}={word}" for word in get_args(kind) if isinstance(word, str))


BESIDE = {  # what a word needs beside it
    "diffusion.objective=simple": ["diffusion.variance=fixed_small"],
    "diffusion.variance=fixed_large": ["diffusion.objective=simple"],
    "diffusion.variance=fixed_small": ["diffusion.objective=simple"],
    "evaluation.sampling.unipc_variant=B1": ["evaluation.sampling.method=unipc"],
    "evaluation.scoring_sampling.unipc_variant=B1": ["evaluation.scoring_sampling.method=unipc"],
}
REFUSED = {"evaluation.scoring_sampling.variance=analytic", "evaluation.scoring_sampling.variance=optimal"}


@pytest.mark.parametrize("word", sorted({*_words(Experiment)} - REFUSED))
def test_the_text_of_a_file_gives_back_every_word_of_every_field(word: str) -> None:
    """`data.resize` has the word "none", which stands for no value elsewhere."""
    experiment = presets.preset("images64-hybrid-cosine", [word, *BESIDE.get(word, [])])
    assert read_experiment_file(to_toml(experiment, "images64-hybrid-cosine")) == experiment


def test_the_network_of_the_earlier_code_is_three_fields_of_a_file_or_three_overrides() -> None:
    fields = {"time_embedding": "sin_cos", "downsample_padding": "right_bottom", "norm_eps": 1e-6}
    lines = "".join(f"{name} = {value!r}\n" for name, value in fields.items())
    from_file = resolve_experiment(file_text=f'base = "digits-hybrid-cosine"\n[model]\n{lines}')
    from_words = resolve_experiment(preset="digits-hybrid-cosine", overrides=[f"model.{name}={value}" for name, value in fields.items()])
    assert from_file == from_words
    assert {name: getattr(from_file.model, name) for name in fields} == fields
    assert read_experiment_file(to_toml(from_file, "digits-hybrid-cosine")) == from_file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\ndropout = 0.1", r'base: the file needs base = "a preset"'),
        ("base = 3\nseed = 0", r"base: must be the name of a preset in quotes, got 3"),
        ('base = "cifar10-hybrid-cosin"\nseed = 0', r"did you mean cifar10-hybrid-cosine"),
        ('base = "cifar10-hybrid-cosine"\n[modl]\ndropout = 1', r"modl: there is no 'modl'; did you mean 'model'"),
        ('base = "cifar10-hybrid-cosine"\n[model]\ndropot = 1', r"model\.dropot: there is no 'dropot' in 'model'; did you mean 'dropout'"),
        ('base = "cifar10-hybrid-cosine"\nmodel = 3', r"model: is a table of fields, like \[model\], got 3"),
        ('base = "cifar10-hybrid-cosine"\n[model.dropout]\nx = 3', r"model\.dropout: is a field and no table"),
        ('base = "cifar10-hybrid-cosine"\n[evaluation.sampling]\nspacing = 50', r"spacing: .*string, got 50; write it in quotes, \"50\"$"),
        ('base = "cifar10-hybrid-cosine"\n[optim]\nema_decays = 0.9', r"ema_decays: .*tuple, got 0\.9; write a list, \[0\.9\]$"),
        ('base = "cifar10-hybrid-cosine"\n[evaluation]\nmetrics = "kid"', r"metrics: .*got 'kid'; write a list, \[\"kid\"\]$"),
        ('base = "cifar10-hybrid-cosine"\n[optim]\nadam_betas = [0.9]', r"adam_betas\.1: .*, got \[0\.9\]; write one more value$"),
        ('base = "cifar10-hybrid-cosine"\n[model]\ndropout = "much"', r"model\.dropout: .*number"),
        (
            'base = "cifar10-hybrid-cosine"\n[model]\ndropout = true',
            r"model\.dropout: True is given, but this field is not true",
        ),
        ('base = "cifar10-hybrid-cosine"\n[optim]\nnum_steps = 0', r"optim\.num_steps: must be at least 1"),
        ('base = "cifar10-hybrid-cosine"\n[diffusion]\nobjective = "hybird"', r"diffusion\.objective: .*'hybrid'"),
        ("base = cifar10-hybrid-cosine\n", r"the experiment file is not TOML: .*; text needs quotes$"),
        ("base cifar10-hybrid-cosine\n", r"not TOML: .*; write a field as name = value and a table as \[model\]$"),
        ('base = "cifar10-hybrid-cosine"\nseed = 1\nseed = 2', r"not TOML: .*; a field or a table is there twice; keep one of them$"),
        ('base = "cifar10-hybrid-cosine"\n[optim]\n[optim]', r"not TOML: .*; a field or a table is there twice; keep one of them$"),
        ('base = "mine.toml"\nseed = 0', r"base: must be the name of a preset, got the file mine\.toml; `iddpm presets` lists them$"),
        ('base = "cifar10-hybrid-cosine"\nseed = ' + "9" * 5000, r"TOML that can be read: a number in it has thousands of digits$"),
        ('base = "cifar10-hybrid-cosine"\nseed = ' + "[" * 100_000, r"TOML that can be read: its brackets are nested too deeply$"),
        ('base = "cifar10-hybrid-cosine"\nname = "../elsewhere"', r"name: '\.\./elsewhere' is not a name"),
        ("no-such-file.toml", r"no-such-file\.toml: cannot be read as an experiment file: No such file or directory$"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_with_the_path_of_the_field(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_experiment_file(text)
    assert "\n" not in str(caught.value)


def test_the_mark_that_an_editor_writes_before_the_text_is_no_part_of_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b"\xef\xbb\xbf" + FILE.encode())
    assert read_experiment_file(file) == read_experiment_file(FILE)


def test_a_file_in_another_encoding_is_refused_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(FILE.encode("utf-16"))
    with pytest.raises(UserError, match=r"mine\.toml: cannot be read as an experiment file: .*; save it as UTF-8$"):
        read_experiment_file(file)


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("seed = 1\nseed = 2")
    for read in (read_experiment_file, named_experiment):
        with pytest.raises(UserError, match=rf"^{file} is not TOML: "):
            read(str(file))


def test_every_door_resolves_an_experiment_in_the_same_way() -> None:
    assert resolve_experiment(preset="digits-hybrid-cosine") == presets.preset("digits-hybrid-cosine")
    assert resolve_experiment(file_text=FILE, overrides=["model.dropout=0.2"], seed=9) == read_experiment_file(FILE).override(
        ["model.dropout=0.2", "seed=9"]
    )
    for given in ({}, {"preset": "digits-hybrid-cosine", "file_text": FILE}):
        with pytest.raises(UserError, match="give either a preset or an experiment file"):
            resolve_experiment(**given)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"guidance_step: training stores no checkpoint of step 300"):
        resolve_experiment(
            preset="digits-hybrid-cosine", overrides=["evaluation.sampling.guidance_scale=2", "evaluation.sampling.guidance_step=300"]
        )


@pytest.mark.parametrize(
    ("objective", "override", "message"),
    [
        ("vlb", "diffusion.vlb_weight=0.01", r"^diffusion\.vlb_weight: only objective 'hybrid' uses it, .* is 'vlb'; leave it at 0\.001$"),
        ("vlb", "diffusion.stop_gradient=false", r"^diffusion\.stop_gradient: .* leave it at true$"),
        ("simple", "diffusion.vlb_weight=0", r"^diffusion\.vlb_weight: .* is 'simple'"),
    ],
)
def test_a_setting_of_the_hybrid_objective_is_refused_with_another(objective: str, override: str, message: str) -> None:
    variance = "fixed_large" if objective == "simple" else "learned_range"
    words = [f"diffusion.objective={objective}", f"diffusion.variance={variance}", override]
    with pytest.raises(UserError, match=message):
        resolve_experiment(preset="digits-hybrid-cosine", overrides=words)
    assert presets.preset("digits-hybrid-cosine", words), "the experiment of an earlier run is still read"
    assert resolve_experiment(preset="digits-hybrid-cosine", overrides=[override])


def test_a_size_that_gets_attention_is_named_once() -> None:
    words = ["model.attention_resolutions=4,8,4"]
    with pytest.raises(UserError, match=r"^model\.attention_resolutions: \[4, 8, 4\] names a size twice, .*; write \[4, 8\]$"):
        resolve_experiment(preset="digits-hybrid-cosine", overrides=words)
    assert presets.preset("digits-hybrid-cosine", words), "the experiment of an earlier run is still read"


def test_more_updates_than_the_learning_rate_is_annealed_over_are_refused() -> None:
    """The rate of the rest would be 0."""
    message = r"^optim\.lr_anneal_steps: .* 0 from update 2400 on, .* optim\.num_steps \(20000\); set optim\.lr_anneal_steps to 20000 too"
    with pytest.raises(UserError, match=message):
        resolve_experiment(preset="fashion-mnist-hybrid-cosine", overrides=["optim.num_steps=20000"])
    both = resolve_experiment(preset="fashion-mnist-hybrid-cosine", overrides=["optim.num_steps=20000", "optim.lr_anneal_steps=20000"])
    assert both.optim.lr_anneal_steps == 20_000
    shorter = ["optim.num_steps=400", "optim.checkpoint_interval=100"]
    assert resolve_experiment(preset="fashion-mnist-hybrid-cosine", overrides=shorter).optim.lr_anneal_steps == 2400
    suggested = suggest_experiment(num_images=3_000, min_side=28, channels=1)
    steps = read_experiment_file(suggested).optim.num_steps
    with pytest.raises(UserError, match=rf"0 from update {steps} on, .*num_steps \({3 * steps}\)"):
        resolve_experiment(file_text=re.sub(r"\nnum_steps = \d+", f"\nnum_steps = {3 * steps}", suggested))
    assert read_experiment_file(suggested).override([f"optim.num_steps={3 * steps}"]), "the experiment of an earlier run is still read"
