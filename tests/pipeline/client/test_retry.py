"""`iddpm retry` with the real KFP client, against a stand-in API server over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import yaml
from fake_kfp import FakeKfp
from recorded_workflows import workflow_states

from pipelines.client import retry as retrying
from pipelines.client.arguments import CompiledPipeline, compiled_pipeline

Iddpm = Callable[..., "tuple[int, str, str]"]
_WORDS = ("--preset", "cifar10-hybrid-cosine", "--set", "optim.num_steps=5", "--run-name", "mine")


@pytest.fixture
def failed(server: FakeKfp, iddpm: Iddpm) -> str:
    """A run of the train pipeline that failed, by its id; the runs after it succeed."""
    server.script = workflow_states("bad-source-failed")[-1:]
    assert iddpm("submit", "train", *_WORDS)[0] == 1
    server.script = workflow_states("train-local-succeeded")[-1:]
    (run_id,) = server.runs
    server.runs[run_id]["scripted"] = False
    return run_id


def test_a_failed_run_starts_again_as_the_same_version_with_the_same_arguments(server: FakeKfp, iddpm: Iddpm, failed: str) -> None:
    status, out, err = iddpm("retry", failed)
    assert (status, err) == (0, "")
    first, second = (run.body for run in server.asked("POST", "/runs"))
    assert second == {**first, "display_name": "mine (retry 1)"}
    assert "experiment  iddpm\n" in out
    assert "mine (retry 1)" in out
    assert "the run succeeded in" in out
    assert len(server.asked("POST", "/pipelines/upload_version")) == 1


def test_resources_are_changed_from_those_of_the_run_and_a_retry_of_a_retry_is_counted(server: FakeKfp, iddpm: Iddpm, failed: str) -> None:
    server.runs[failed]["display_name"] = "mine (retry 2)"
    server.runs[failed]["runtime_config"]["parameters"]["train_resources"] = '{"profile": "2xcpu", "num_workers": 2}'
    _, out, _ = iddpm("retry", failed, "--resources", "train.memory=12Gi", "--no-wait", "--json")
    told = json.loads(out)
    assert told["name"] == "mine (retry 3)"
    assert json.loads(told["parameters"]["train_resources"]) == {"profile": "2xcpu", "num_workers": 2, "memory": "12Gi"}
    assert told["parameters"]["experiment_overrides"] == ["optim.num_steps=5"]


def test_resources_that_fit_together_alone_are_changed_in_any_order(server: FakeKfp, iddpm: Iddpm, failed: str) -> None:
    words = ("--resources", "train.num_workers=8", "--resources", "train.memory=64Gi")
    assert iddpm("retry", failed, *words, "--no-wait")[0] == 0
    parameters = server.asked("POST", "/runs")[-1].body["runtime_config"]["parameters"]
    assert json.loads(parameters["train_resources"]) == {"profile": "laptop", "num_workers": 8, "memory": "64Gi"}


def test_another_image_comes_with_the_pipeline_of_this_installation_and_the_defaults_that_the_run_had(
    server: FakeKfp, iddpm: Iddpm, failed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = compiled_pipeline("train")
    spec = yaml.safe_load(yaml.safe_dump(dict(now.spec)))
    spec["root"]["inputDefinitions"]["parameters"]["storage_root_uri"]["defaultValue"] = "s3://elsewhere"
    changed = CompiledPipeline(now.name, yaml.safe_dump_all([spec, dict(now.platform)]), spec, now.platform)
    monkeypatch.setattr(retrying, "compiled_pipeline", lambda name: changed)
    assert iddpm("retry", failed, "--image", "registry/iddpm:fixed")[0] == 0
    run = server.asked("POST", "/runs")[-1].body
    parameters = run["runtime_config"]["parameters"]
    assert server.versions[run["pipeline_version_reference"]["pipeline_version_id"]]["name"] == changed.version_name
    assert (parameters["image"], parameters["storage_root_uri"]) == ("registry/iddpm:fixed", "s3://iddpm")
    assert parameters["experiment_preset"] == "cifar10-hybrid-cosine"


def test_a_step_is_done_again_by_force_also_of_a_run_that_has_succeeded_and_a_retry_of_that_run_does_not_force_again(
    server: FakeKfp, iddpm: Iddpm, failed: str
) -> None:
    server.runs[failed]["state"] = "SUCCEEDED"
    assert iddpm("retry", failed, "--from", "evaluate")[0] == 0
    forced = [run for run in server.runs if run != failed]
    assert server.asked("POST", "/runs")[-1].body["runtime_config"]["parameters"]["force_from"] == "evaluate"
    server.runs[forced[0]].update(state="FAILED", scripted=False)
    assert iddpm("retry", forced[0])[0] == 0
    assert "force_from" not in server.asked("POST", "/runs")[-1].body["runtime_config"]["parameters"]


def test_a_version_of_the_pipeline_from_before_steps_could_be_forced_is_named_with_the_remedy(
    server: FakeKfp, iddpm: Iddpm, failed: str
) -> None:
    for version in server.versions.values():
        version["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"].pop("force_from")
    assert "can't do finished steps again; --image takes the pipeline of this installation" in iddpm("retry", failed, "--from", "train")[2]


@pytest.mark.parametrize(
    ("state", "words", "message"),
    [
        ("SUCCEEDED", (), "has succeeded, so there is nothing to retry"),
        ("RUNNING", (), "is running; `iddpm cancel"),
        ("FAILED", ("--from", "preprocess"), "'preprocess' can't be done again; the steps are train, evaluate, report"),
        ("FAILED", ("--image", "iddpm:latest"), "'iddpm:latest' can change"),
        ("FAILED", ("--set", "optim.num_steps=9"), "a retry goes on with the same experiment"),
        ("FAILED", ("--resources", "train.memory=much"), "memory 'much' is not a quantity"),
        (
            "FAILED",
            ("--resources", "train.ray_mode=address", "--resources", "train.ray_address=ray://head:10001"),
            "ray_address ray://head:10001: a step's pod is not on that cluster",
        ),
        ("FAILED", ("--resources", "trian=2xcpu"), "has no stage 'trian'; did you mean 'train'?"),
    ],
)
def test_what_cannot_be_retried_is_refused_before_anything_is_sent(
    server: FakeKfp, iddpm: Iddpm, failed: str, state: str, words: tuple[str, ...], message: str
) -> None:
    server.runs[failed]["state"] = state
    status, _, err = iddpm("retry", failed, *words)
    assert status == 1
    assert message in err
    assert len(server.asked("POST", "/runs")) == 1


def test_a_pipeline_that_was_uploaded_in_the_ui_is_known_whatever_its_name_there(server: FakeKfp, iddpm: Iddpm, failed: str) -> None:
    """The form of the UI suggests the name "train" for train.yaml."""
    for pipeline in server.pipelines.values():
        pipeline.update(name="train", display_name="train")
    assert iddpm("retry", failed, "--no-wait")[0] == 0
    first, second = (run.body for run in server.asked("POST", "/runs"))
    assert second["pipeline_version_reference"] == first["pipeline_version_reference"]


def test_a_pipeline_of_others_is_refused_although_it_has_the_name_of_ours(server: FakeKfp, iddpm: Iddpm, failed: str) -> None:
    (version,) = server.versions.values()
    spec = version["pipeline_spec"]["pipeline_spec"]
    spec["pipelineInfo"]["name"] = "theirs"
    assert "is of pipeline theirs; only runs of iddpm-train, iddpm-" in iddpm("retry", failed)[2]
    version["pipeline_spec"] = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow"}  # an older pipeline has no such name
    for pipeline in server.pipelines.values():
        pipeline["display_name"] = "older"
    assert "is of pipeline older; only runs of iddpm-train, iddpm-" in iddpm("retry", failed)[2]
    assert len(server.asked("POST", "/runs")) == 1


def test_a_version_that_was_deleted_is_named_with_the_remedy(server: FakeKfp, iddpm: Iddpm, failed: str) -> None:
    server.versions.clear()
    status, _, err = iddpm("retry", failed)
    assert (status, err.count("\n")) == (1, 1)
    assert f"run {failed}: KFP no longer has its version of the pipeline; `iddpm submit` starts another run" in err


def test_a_run_of_another_pipeline_and_one_that_is_not_there_are_named(server: FakeKfp, iddpm: Iddpm) -> None:
    run_id = server.add_run("FAILED", pipeline_spec={"pipelineInfo": {"name": "theirs"}})
    assert "is of pipeline theirs; only runs of iddpm-train, iddpm-" in iddpm("retry", run_id)[2]
    assert "there is no run nobody" in iddpm("retry", "nobody")[2]


def test_a_run_that_was_given_its_pipeline_without_an_upload_is_started_anew(server: FakeKfp, iddpm: Iddpm) -> None:
    run_id = server.add_run("FAILED", pipeline_spec={"pipelineInfo": {"name": "iddpm-train"}})
    said = f"error: run {run_id} has no uploaded version of its pipeline, which a retry starts; `iddpm submit` starts another run\n"
    assert iddpm("retry", run_id)[2] == said
