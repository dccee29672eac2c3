"""The command line as a person meets it: quick, and one line where something is wrong."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli.services import connect
from pipelines.services.services import Services

_IDDPM = str(Path(sys.executable).with_name("iddpm"))


def _iddpm(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([_IDDPM, *arguments], capture_output=True, text=True, timeout=120, check=False, cwd=cwd)


def test_help_waits_for_no_library_but_that_of_the_command_line() -> None:
    """What a library costs at the start of every command is seconds on a slow machine; `iddpm --help` takes half of one."""
    done = subprocess.run(
        [_IDDPM, "--help"], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if line.startswith("import time:")}
    needs = {re.split(r"[^\w.-]", need)[0].lower() for need in importlib.metadata.requires("iddpm-pipelines") or ()} - {"iddpm-pipelines"}
    assert {"torch", "kfp", "typer"} <= needs
    of = importlib.metadata.packages_distributions()
    assert {name for name in imported if needs.intersection(distribution.lower() for distribution in of.get(name, ()))} == {"typer", "rich"}


def test_help_names_every_command() -> None:
    printed = _iddpm("--help").stdout
    for command in (
        "up",
        "down",
        "status",
        "demo",
        "run",
        "compile",
        "presets",
        "show",
        "cost",
        "sample",
        "evaluate",
        "compare",
        "ema-sweep",
        "replay-stopping",
        "score-batch",
        "adopt-reference",
        "preprocess",
        "dataset",
        "submit",
        "runs",
        "cancel",
        "schedule",
        "doctor",
    ):
        assert f" {command} " in printed


def test_an_error_is_one_line_on_standard_error() -> None:
    result = _iddpm("show", "digits-hybrid-cosine", "--set", "optim.learning_rat=1")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: optim.learning_rat: there is no 'learning_rat'")
    assert result.stderr.count("\n") == 1


def test_results_alone_are_on_standard_output(tmp_path: Path) -> None:
    result = _iddpm("preprocess", "digits-tiny-hybrid-cosine", str(tmp_path / "digits"))
    assert result.returncode == 0
    assert result.stdout.count("\n") == 1
    assert "1,497 images in 1 shard" in result.stderr
    assert "iddpm|" not in result.stderr


def test_a_path_that_can_not_be_written_is_named_without_a_word_of_defects(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = _iddpm("compile", "file", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (1, "error: file can't be written: File exists; name another directory\n")


def test_workers_are_at_least_one(tmp_path: Path) -> None:
    result = _iddpm("ablate", "hybrid-weight", "--num-workers", "0", cwd=tmp_path)
    assert result.returncode == 2
    assert "--num-workers" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback() -> None:
    result = _iddpm("show", "nothing-like-it", "--debug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_an_unknown_command_is_a_usage_error() -> None:
    result = _iddpm("tarin")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_show_prints_the_experiment_with_its_overrides() -> None:
    result = _iddpm("show", "digits-hybrid-cosine", "--set", "optim.num_steps=7")
    assert json.loads(result.stdout)["optim"]["num_steps"] == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "tarin"), "there is no pipeline 'tarin'; did you mean 'train'? The pipelines are train, ablation, nightly-fid"),
        (("run", "train", "--preset", "digits"), "there is no preset 'digits'"),
        (("run", "train", "--set", "optim.num_steps=few"), "optim.num_steps"),
        (
            ("run", "train", "--param", "train_resource=1"),
            "pipeline train has no parameter 'train_resource'; did you mean 'train_resources'?",
        ),
        (("run", "train", "--resources", "train.num_workers=0"), "train_resources.num_workers: must be at least 1, got 0"),
        (("run", "train", "--resources", "train.precision=fp16"), "train_resources.precision: Input should be 'fp32' or 'bf16'"),
        (("run", "nightly-fid", "--preset", "digits-hybrid-cosine"), "takes no --preset and no --set"),
    ],
)
def test_a_run_that_can_not_work_is_refused_before_anything_starts(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    result = _iddpm(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_cost_is_the_papers() -> None:
    found = json.loads(_iddpm("cost", "imagenet64-hybrid-cosine", "--json").stdout)
    assert found["parameters"] == 121_063_942
    assert round(found["forward_macs"] / 1e9, 2) == 39.74


@pytest.mark.parametrize(
    ("named", "local"),
    [
        ({}, {"AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI"}),
        ({"MLFLOW_TRACKING_URI": "http://mlflow.example.com"}, {"AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY"}),
        ({"AWS_ENDPOINT_URL": "http://s3.example.com"}, {"MLFLOW_TRACKING_URI"}),
        ({"AWS_ENDPOINT_URL": "http://s3.example.com", "MLFLOW_TRACKING_URI": "http://mlflow.example.com"}, set()),
        ({"AWS_ACCESS_KEY_ID": "key", "MLFLOW_TRACKING_URI": "http://mlflow.example.com"}, set()),
    ],
)
def test_the_local_services_stand_in_for_each_one_that_the_environment_does_not_name(
    named: dict[str, str], local: set[str], services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in services.env:
        monkeypatch.delenv(name)
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("IDDPM_HOME", str(services.home))
    connect()
    for name in ("AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI"):
        assert os.environ.get(name) == (services.env[name] if name in local else named.get(name))
