"""The compiled pipelines: as committed, as a server parses them, and as this project promises."""

import copy
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.image import BASE_IMAGE, ImageError, image_from
from pipelines.compile import MAX_BYTES, PIPELINES, CompileError, check, compile_all, compiled
from training import presets

_GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {name: compiled(name) for name in PIPELINES}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_compiled_pipeline_is_the_committed_one(name: str, texts: dict[str, str]) -> None:
    spec = importlib.util.spec_from_file_location("regenerate", _GOLDEN / "regenerate.py")
    assert spec is not None
    assert spec.loader is not None
    regenerate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(regenerate)
    assert regenerate.normalised(texts[name]) == (_GOLDEN / "pipelines" / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", PIPELINES)
def test_a_strict_parser_takes_both_documents(name: str, texts: dict[str, str]) -> None:
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    spec, platform = yaml.safe_load_all(texts[name])
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    assert len(texts[name].encode()) < MAX_BYTES / 2


@pytest.mark.parametrize("name", PIPELINES)
def test_every_step_gets_addresses_credentials_and_pull_policy(name: str, texts: dict[str, str]) -> None:
    spec, platform = yaml.safe_load_all(texts[name])
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == set(spec["deploymentSpec"]["executors"])
    for executor in executors.values():
        variables = {item["envVar"] for source in executor["secretAsEnv"] for item in source["keyToEnv"]}
        addresses = {item["envVar"] for source in executor["configMapAsEnv"] for item in source["keyToEnv"]}
        assert variables == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
        assert {"AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI"} <= addresses
        assert executor["imagePullPolicy"] == "IfNotPresent"


def _tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    dags = [spec["root"]["dag"], *(component["dag"] for component in spec["components"].values() if "dag" in component)]
    return {name: task for dag in dags for name, task in dag["tasks"].items()}


@pytest.mark.parametrize(("pipeline", "step"), [("train", "evaluate"), ("ablation", "evaluate"), ("nightly-fid", "score-model")])
def test_a_score_is_never_taken_from_the_cache(pipeline: str, step: str, texts: dict[str, str]) -> None:
    task = _tasks(next(yaml.safe_load_all(texts[pipeline])))[step]
    assert not task["cachingOptions"].get("enableCache", False)


def test_training_has_room_in_shared_memory(texts: dict[str, str]) -> None:
    _, platform = yaml.safe_load_all(texts["train"])
    mounts = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]["emptyDirMounts"]
    assert [(mount["mountPath"], mount["medium"]) for mount in mounts] == [("/dev/shm", "Memory")]


def test_the_presets_are_a_drop_down(texts: dict[str, str]) -> None:
    parameters = next(yaml.safe_load_all(texts["train"]))["root"]["inputDefinitions"]["parameters"]
    assert tuple(parameters["experiment_preset"]["literals"]) == presets.names()


@pytest.mark.parametrize("name", PIPELINES)
def test_every_graph_is_given_what_its_steps_read(name: str, texts: dict[str, str]) -> None:
    spec = next(yaml.safe_load_all(texts[name]))
    for component in (spec["root"], *spec["components"].values()):
        given = set(component.get("inputDefinitions", {}).get("parameters", {}))
        for task in component.get("dag", {}).get("tasks", {}).values():
            for value in task.get("inputs", {}).get("parameters", {}).values():
                assert value.get("componentInputParameter", None) in {None, *given}


def _no_default(spec: dict[str, Any]) -> None:
    del spec["root"]["inputDefinitions"]["parameters"]["storage_root_uri"]["defaultValue"]


def _no_description(spec: dict[str, Any]) -> None:
    del spec["root"]["inputDefinitions"]["parameters"]["storage_root_uri"]["description"]


def _other_image(spec: dict[str, Any]) -> None:
    spec["deploymentSpec"]["executors"]["exec-train"]["container"]["image"] = "python:3.11"


def _pip(spec: dict[str, Any]) -> None:
    spec["deploymentSpec"]["executors"]["exec-train"]["container"]["command"] = ["sh", "-c", "python3 -m pip install torch"]


def _no_memory(spec: dict[str, Any]) -> None:
    del spec["deploymentSpec"]["executors"]["exec-train"]["container"]["resources"]["resourceMemoryLimit"]


def _no_retry(spec: dict[str, Any]) -> None:
    del spec["root"]["dag"]["tasks"]["train"]["retryPolicy"]


def _bad_literal(spec: dict[str, Any]) -> None:
    spec["root"]["inputDefinitions"]["parameters"]["train_precision"]["literals"] = ["fp16"]


def _unknown_field(spec: dict[str, Any]) -> None:
    spec["root"]["dag"]["tasks"]["train"]["retries"] = 3


def _two_pages(spec: dict[str, Any]) -> None:
    artifacts = spec["components"]["comp-report"]["outputDefinitions"]["artifacts"]
    artifacts["other"] = copy.deepcopy(artifacts["page"])


def _too_large(spec: dict[str, Any]) -> None:
    spec["pipelineInfo"]["description"] = "x" * MAX_BYTES


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_no_default, "storage_root_uri has no default"),
        (_no_description, "storage_root_uri has no description"),
        (_other_image, "exec-train runs in python:3.11"),
        (_pip, "exec-train installs packages"),
        (_no_memory, "exec-train has no resourceMemoryLimit"),
        (_no_retry, "train is not tried again"),
        (_bad_literal, "train_precision: its default 'fp32' is not among"),
        (_unknown_field, "does not parse"),
        (_two_pages, "report has 2 HTML artifacts"),
        (_too_large, "the YAML has"),
    ],
)
def test_a_pipeline_that_breaks_a_promise_is_not_written(
    damage: Callable[[dict[str, Any]], None], said: str, texts: dict[str, str]
) -> None:
    documents = list(yaml.safe_load_all(texts["train"]))
    damage(documents[0])
    with pytest.raises(CompileError, match=said):
        check(yaml.safe_dump_all(documents))


def test_all_pipelines_are_written_where_they_were_asked_for(tmp_path: Path) -> None:
    paths = compile_all(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [f"{name}.yaml" for name in PIPELINES]
    assert all(BASE_IMAGE in path.read_text() for path in paths)


def test_a_client_compiles_without_torch_ray_or_mlflow(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipelines.compile import compile_all\n"
        "compile_all(Path(sys.argv[1]))\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'numpy', 'boto3') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "reference", ["iddpm:0.1.0", "host.example/team/iddpm:0.1.0-3f2a", f"iddpm@sha256:{'a' * 64}", "localhost:5000/iddpm:1"]
)
def test_an_immutable_image_is_taken(reference: str) -> None:
    assert image_from(reference) == reference


@pytest.mark.parametrize(
    "reference", ["iddpm", "iddpm:latest", "team/iddpm:main", "localhost:5000/iddpm", "not an image", "iddpm@sha256:12"]
)
def test_an_image_that_can_change_under_the_cache_is_refused(reference: str) -> None:
    with pytest.raises(ImageError, match="IDDPM_IMAGE"):
        image_from(reference)
