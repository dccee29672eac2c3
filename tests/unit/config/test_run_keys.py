"""Run keys: what is part of them, and that the runs of earlier releases are found."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.steps.runs import Run, claim_directory, note_attempt, run_directory
from evaluation.records.run_directory import RESULT
from training import storage
from training.checkpoints import checkpoint
from training.config import presets
from training.config.errors import UserError
from training.config.experiment import EvaluationConfig, Experiment, ModelConfig
from training.config.plain import LATER
from training.config.run_keys import EVALUATION_ONLY, run_key, run_keys, same_training

GOLDEN = Path(__file__).parents[2] / "golden" / "presets"
DEMO = presets.preset("digits-hybrid-cosine")
DIGEST = "0123456789abcdef"


def first_releases_key(plain: object, name: str) -> str:
    """A key as the first releases made it, of the experiment's whole JSON."""
    return f"{name}-{hashlib.sha256(json.dumps([plain, DIGEST], sort_keys=True).encode()).hexdigest()[:10]}"


@pytest.mark.parametrize("name", presets.names())
def test_the_run_key_of_every_preset_is_the_one_it_always_had(name: str) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    assert run_keys(presets.preset(name), DIGEST) == (first_releases_key(golden, name),)


@given(seed=st.integers(0, 2**32 - 1), digest=st.text("0123456789abcdef", min_size=8, max_size=8))
def test_a_run_key_is_one_for_one_with_experiment_and_data(seed: int, digest: str) -> None:
    experiment = replace(DEMO, seed=seed)
    key = run_key(experiment, digest)
    assert key == run_key(Experiment.from_json(experiment.to_json()), digest)
    assert key != run_key(replace(experiment, seed=(seed + 1) % 2**32), digest)
    assert key != run_key(experiment, digest + "0")
    assert key.startswith("digits-hybrid-cosine-")


EVALUATION_OVERRIDES = [
    "evaluation.num_samples=123",
    "evaluation.sampling.spacing=20",
    "evaluation.sampling.method=ddim",
    "evaluation.rescore_best=5",
    "evaluation.likelihood_split=train",
    "evaluation.likelihood_num_images=7",
    "evaluation.likelihood_form=full",
    "evaluation.likelihood_steps=50",
]


@pytest.mark.parametrize("override", EVALUATION_OVERRIDES)
def test_what_only_evaluation_reads_is_no_part_of_the_key_and_the_old_key_stays_known(override: str) -> None:
    changed = DEMO.override([override])
    assert run_keys(changed, DIGEST) == (run_key(DEMO, DIGEST), first_releases_key(changed.to_dict(), DEMO.name))
    assert same_training(changed, DEMO)
    longer = changed.override(["optim.num_steps=7"])
    assert run_key(longer, DIGEST) == first_releases_key(DEMO.override(["optim.num_steps=7"]).to_dict(), DEMO.name)


@pytest.mark.parametrize(
    "override",
    [
        "evaluation.extractor=inception",
        "evaluation.num_reference_images=50",
        "evaluation.scoring_num_samples=50",
        "evaluation.scoring_sampling.spacing=5",
        "evaluation.patience=0",
        "evaluation.min_gain=0.1",
        "evaluation.min_steps=10",
        "model.dropout=0.1",
        "seed=1",
    ],
)
def test_what_decides_the_weights_or_when_training_stops_is_part_of_the_key(override: str) -> None:
    assert run_key(DEMO.override([override]), DIGEST) != run_key(DEMO, DIGEST)


def test_every_field_of_the_evaluation_is_sorted_by_who_reads_it() -> None:
    training = {"extractor", "num_reference_images", "scoring_num_samples", "scoring_sampling", "patience", "min_gain", "min_steps"}
    assert {field.name for field in fields(EvaluationConfig)} == training | set(EVALUATION_ONLY)


def test_a_key_is_found_where_the_presets_sampler_does_not_fit_the_chain() -> None:
    short = ["diffusion.num_timesteps=20", "evaluation.sampling.spacing=", "evaluation.likelihood_steps=5"]
    assert run_key(DEMO.override(short), DIGEST) == run_key(DEMO.override([*short, "evaluation.sampling.spacing=10"]), DIGEST)


@dataclass(frozen=True, kw_only=True, slots=True)
class LaterModelConfig(ModelConfig):
    """The section as a later release might have it."""

    new_field: float = field(default=0.5, metadata=LATER)


def test_a_new_field_with_its_default_changes_no_key_and_another_value_does() -> None:
    def later(**changes: float) -> Experiment:
        return replace(DEMO, model=LaterModelConfig(**dataclasses.asdict(DEMO.model), **changes))

    assert run_keys(later(), DIGEST) == run_keys(DEMO, DIGEST)
    assert run_key(later(new_field=0.25), DIGEST) != run_key(DEMO, DIGEST)


def test_a_run_that_an_earlier_release_made_under_another_key_is_found(tmp_path: Path) -> None:
    changed, root = DEMO.override(["evaluation.num_samples=123"]), tmp_path.as_uri()
    new, old = run_keys(changed, DIGEST)
    assert run_directory(changed, DIGEST, root) == (new, f"{root}/runs/{new}")
    storage.write_bytes(f"{root}/runs/{old}/experiment.json", changed.to_json().encode())
    assert run_directory(changed, DIGEST, root) == (old, f"{root}/runs/{old}")
    storage.write_bytes(f"{root}/runs/{new}/experiment.json", DEMO.to_json().encode())
    assert run_directory(changed, DIGEST, root) == (new, f"{root}/runs/{new}")


def test_a_checkpoint_is_evaluated_as_its_run_says_now(tmp_path: Path) -> None:
    run_uri = tmp_path.as_uri() + "/runs/digits"
    files = {"experiment.json": DEMO.to_json().encode(), "state.json": {"step": 5}}
    uri = checkpoint.save(run_uri, 5, files)
    assert checkpoint.load_experiment(uri) == DEMO
    changed = DEMO.override(["evaluation.num_samples=123"])
    storage.write_bytes(f"{run_uri}/experiment.json", changed.to_json().encode())
    assert checkpoint.load_experiment(uri) == changed
    other = changed.override(["model.dropout=0.5"])
    storage.write_bytes(f"{run_uri}/experiment.json", other.to_json().encode())
    assert checkpoint.load_experiment(uri) == DEMO


def test_another_evaluation_of_a_run_takes_the_place_of_the_old_and_another_training_is_refused(tmp_path: Path) -> None:
    uri = f"{tmp_path.as_uri()}/runs/digits"

    def claim(experiment: Experiment) -> None:
        claim_directory(Run(experiment=experiment, manifest=None, key="digits", uri=uri))

    changed = DEMO.override(["evaluation.num_samples=123"])
    for experiment in (DEMO, DEMO, changed):
        claim(experiment)
        assert storage.read_bytes(f"{uri}/experiment.json") == experiment.to_json().encode()
    with pytest.raises(UserError, match="is not the experiment of this run"):
        claim(changed.override(["model.dropout=0.5"]))
    assert storage.read_bytes(f"{uri}/experiment.json") == changed.to_json().encode()
    storage.write_bytes(f"{uri}/experiment.json", changed.to_json().encode()[:50])  # as a copy that was cut off
    with pytest.raises(UserError, match=f"{uri}/experiment.json: not an experiment's JSON.*it is damaged or of another version"):
        claim(changed)


def test_a_forced_training_gets_a_directory_of_its_own_once_and_is_the_run_from_then_on(tmp_path: Path) -> None:
    def directory(forced_by: str = "") -> str:
        return run_directory(DEMO, DIGEST, str(tmp_path), forced_by=forced_by)[1]

    def begin(forced_by: str = "") -> str:
        key, uri = run_directory(DEMO, DIGEST, str(tmp_path), forced_by=forced_by)
        manifest = SimpleNamespace(content_digest=DIGEST)
        claim_directory(Run(experiment=DEMO, manifest=manifest, key=key, uri=uri, forced_by=forced_by))
        return uri

    def finish(uri: str) -> None:
        storage.write_json(f"{uri}/{RESULT}", {"step": 1})

    first = directory()
    assert directory("a") == first  # nothing is there to be done again
    begin()
    second = begin("a")  # also of a training that is not finished
    assert second == f"{first}-2"
    assert [directory("a"), directory("b"), directory()] == [second] * 3  # it goes on, whoever starts it
    finish(second)
    assert [directory("a"), directory()] == [second] * 2  # a second try of its step finds it
    third = begin("b")
    assert third == f"{first}-3"
    finish(third)
    storage.delete_prefix(second)  # somebody has given it up
    assert [directory(), directory("b")] == [third] * 2
    assert directory("c") == f"{first}-4"


def test_a_pipelines_run_keeps_its_training_when_another_trains_again_by_force(tmp_path: Path) -> None:
    """A retry of its step would else follow the other's training, and its last step would tell the other's numbers."""

    def begin(pipeline_run_id: str, forced_by: str = "") -> str:
        key, uri = run_directory(DEMO, DIGEST, str(tmp_path), forced_by=forced_by, pipeline_run_id=pipeline_run_id)
        manifest = SimpleNamespace(content_digest=DIGEST)
        claim_directory(Run(experiment=DEMO, manifest=manifest, key=key, uri=uri, forced_by=forced_by))
        note_attempt(uri, "data", pipeline_run_id)
        return uri

    first = begin("a")
    second = begin("b", "b")
    storage.write_json(f"{second}/{RESULT}", {"step": 1})
    third = begin("c", "c")
    assert [second, third] == [f"{first}-2", f"{first}-3"]
    assert [begin("a"), begin("b"), begin("b", "b"), begin("c", "c")] == [first, second, second, third]
    assert run_directory(DEMO, DIGEST, str(tmp_path), pipeline_run_id="d")[1] == third
