"""A step refuses to run the function of another commit than its image's: by the compiled sources, and in KFP's own executor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.cluster.failures import last_error
from components.container.same_version import require_same_version
from pipelines.compile import PIPELINES, compiled
from pipelines.compile_checks import parse_documents
from training.config.errors import UserError

_ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def containers() -> dict[str, dict[str, Any]]:
    """The container of every executor of every pipeline."""
    specs = {name: parse_documents(compiled(name))[0]["deploymentSpec"]["executors"] for name in PIPELINES}
    return {f"{name}/{label}": each["container"] for name, executors in specs.items() for label, each in executors.items()}


def _function(container: dict[str, Any]) -> str:
    return str(container["args"][container["args"].index("--function_to_execute") + 1])


def _require(source: str, container: dict[str, Any], directory: Path) -> None:
    """Run the check as in the executor of a container whose function has that source."""
    path = directory / "ephemeral_component.py"
    path.write_text(source)
    require_same_version(["executor_main.py", "--component_module_path", str(path), *container["args"]])


def test_every_step_of_every_pipeline_is_the_image_s_and_one_with_an_argument_more_is_not(
    containers: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    assert {label.partition("/")[0] for label in containers} == set(PIPELINES)
    for container in containers.values():
        source, name = container["command"][-1], _function(container)
        _require(source, container, tmp_path)
        changed = source.replace(f"def {name}(", f"def {name}(added,", 1)
        assert changed != source
        with pytest.raises(UserError, match=f"^step {name} is not the one in the image: the pipeline was compiled from another commit"):
            _require(changed, container, tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "fits"),
    [
        ('"pipeline_run_id": pipeline_run_id,', "", False),
        ("return uri", "return uri + '/'", False),
        (") -> str:\n", ") -> int:\n", False),
        ('force_from: str = ""', 'force_from: str = "train"', False),
        ("    return uri", "    # no longer said\n\n    return (uri)", True),
        (") -> str:\n", ') -> str:\n    """A docstring."""\n', True),
    ],
)
def test_what_a_step_takes_does_and_returns_counts_and_its_comments_do_not(
    before: str, after: str, fits: bool, containers: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    container = containers["train/exec-train"]
    source = container["command"][-1]
    assert before in source
    if fits:
        _require(source.replace(before, after), container, tmp_path)
    else:
        with pytest.raises(UserError, match="step train is not the one in the image"):
            _require(source.replace(before, after), container, tmp_path)


def test_a_component_that_the_project_does_not_have_may_import_it(containers: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    _require("def mine() -> None:\n    import components\n", {"args": ["--function_to_execute", "mine"]}, tmp_path)


def _run(container: dict[str, Any], values: dict[str, Any], directory: Path) -> str:
    """Run the container's command as KFP's launcher does; it must fail. Return its log."""
    given = {"inputs": {"parameterValues": values}, "outputs": {"outputFile": str(directory / "output.json")}}
    arguments = [json.dumps(given) if word == "{{$}}" else word for word in container["args"]]
    environment = {name: value for name, value in os.environ.items() if name != "KFP_POD_NAME"}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(directory)}
    command = [*container["command"], *arguments]
    done = subprocess.run(command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 1
    return done.stdout


def test_in_kfp_s_executor_a_step_of_another_commit_fails_in_one_line_before_it_begins(
    containers: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    settings = containers["train/exec-settings"]
    values = {"storage_root_uri": str(tmp_path / "root"), "pipeline_run_id": "1", "experiment_preset": "no-such-preset"}
    assert "no-such-preset" in last_error(_run(settings, values, tmp_path))  # the step itself ran, as its function is the image's
    assert (tmp_path / "root").exists()

    other = {**settings, "command": [*settings["command"][:-1], settings["command"][-1].replace("force_from,", "force_from, 0,")]}
    log = _run(other, {**values, "storage_root_uri": str(tmp_path / "other")}, tmp_path)
    assert last_error(log) == (
        "UserError: step settings is not the one in the image: the pipeline was compiled from another commit; submit or upload the "
        "pipeline of the image's commit, or set the parameter image to an image of the pipeline's commit"
    )
    assert log.rstrip().endswith(last_error(log).removeprefix("UserError: "))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("runtime", ["", "true"])
def test_a_process_that_a_step_starts_imports_the_package_cheaply(runtime: str) -> None:
    """A step's process inherits the executor's environment, but has arguments of its own."""
    code = "import sys, components; print(*sorted({'torch', 'ray', 'mlflow', 'kfp', 'kubernetes', 'boto3'} & set(sys.modules)))"
    environment = {**os.environ, "_KFP_RUNTIME": runtime}
    done = subprocess.run([sys.executable, "-c", code, "x"], cwd=_ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
