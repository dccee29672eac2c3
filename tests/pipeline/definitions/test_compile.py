"""The compiled pipelines: as committed, as a server parses them, and as this project promises."""

import ast
import copy
import dataclasses
import functools
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.container.image import BASE_IMAGE, ImageError, image_from
from components.launch.resources import StageResources, read_resources
from components.steps.webhook import SECRET_KEYS
from evaluation.ablations.definitions import paper as ablations
from evaluation.ablations.definitions.reproductions import REPRODUCTIONS
from pipelines.ablation import parallel_trials
from pipelines.compile import PIPELINES, compile_all, compiled, kubernetes_manifests, load, local_specification, specification
from pipelines.compile_checks import MAX_BYTES, CompileError, check, parse_documents
from training.config import presets
from training.storage import StorageError

_GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {name: compiled(name) for name in PIPELINES}


@functools.cache
def parse(text: str) -> list[Any]:
    """Return a pipeline's two documents. Copy them before you change them."""
    return parse_documents(text)


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

    spec, platform = parse(texts[name])
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    assert len(texts[name].encode()) < MAX_BYTES / 2


@pytest.mark.parametrize("name", PIPELINES)
def test_every_step_gets_addresses_credentials_and_pull_policy(name: str, texts: dict[str, str]) -> None:
    spec, platform = parse(texts[name])
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == set(spec["deploymentSpec"]["executors"])
    for executor in executors.values():
        assert all(source["optional"] for source in executor["secretAsEnv"])  # a pod may have an identity in their place
        variables: dict[str, set[str]] = {}
        for source in executor["secretAsEnv"]:
            variables.setdefault(source["secretName"], set()).update(item["envVar"] for item in source["keyToEnv"])
        webhook = set(SECRET_KEYS.values())
        assert variables.pop("iddpm-webhook", webhook) == webhook
        token = variables.pop("iddpm-ray", None)
        assert token == ({"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} if "emptyDirMounts" in executor else None)
        addresses = {item["envVar"]: source["optional"] for source in executor["configMapAsEnv"] for item in source["keyToEnv"]}
        assert variables == {
            "iddpm-s3": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"},
            "iddpm-mlflow": {"IDDPM_MLFLOW_TRACKING_USERNAME", "IDDPM_MLFLOW_TRACKING_PASSWORD"},
        }
        needed = {"AWS_ENDPOINT_URL": False, "AWS_DEFAULT_REGION": False, "IDDPM_MLFLOW_TRACKING_URI": False}
        optional = ("AWS_ENDPOINT_URL_STS", "IDDPM_MLFLOW_PUBLIC_URL", "IDDPM_KFP_PUBLIC_URL")
        assert addresses == {**needed, **dict.fromkeys(optional, True)}
        assert executor["imagePullPolicy"] == "IfNotPresent"


@pytest.mark.parametrize("name", PIPELINES)
def test_a_step_of_every_pipeline_can_tell_the_webhook_of_its_numbers(name: str, texts: dict[str, str]) -> None:
    _, platform = parse(texts[name])
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    assert any("iddpm-webhook" in {secret["secretName"] for secret in executor["secretAsEnv"]} for executor in executors)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_finished_run_is_cleared_away_and_one_that_hangs_is_ended(name: str, texts: dict[str, str]) -> None:
    _, platform = parse(texts[name])
    config = platform["platforms"]["kubernetes"]["pipelineConfig"]
    assert config == {"activeDeadlineSeconds": 30 * 86400, "resourceTtlOnSuccess": 86400, "resourceTtlOnFailure": 7 * 86400}


def _tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    dags = [spec["root"]["dag"], *(component["dag"] for component in spec["components"].values() if "dag" in component)]
    return {name: task for dag in dags for name, task in dag["tasks"].items()}


@pytest.mark.parametrize("name", PIPELINES)
def test_only_what_its_arguments_and_the_image_determine_is_taken_from_the_cache(name: str, texts: dict[str, str]) -> None:
    tasks = {key: task for key, task in _tasks(parse(texts[name])[0]).items() if "cachingOptions" in task}
    cached = {key for key, task in tasks.items() if task["cachingOptions"].get("enableCache", False)}
    assert (
        cached == {"train": {"reference"}, "ablation": {"reference"}, "nightly-fid": set(), "compare": set(), "tune": {"reference"}}[name]
    )
    for key in cached:
        assert {"pipelinechannel--image"} <= set(tasks[key]["inputs"]["parameters"])


def test_the_cached_reference_is_known_by_the_digest_of_its_images(texts: dict[str, str]) -> None:
    task = _tasks(parse(texts["train"])[0])["reference"]
    assert task["inputs"]["parameters"]["data_digest"] == {
        "taskOutputParameter": {"outputParameterKey": "digest", "producerTask": "preprocess"}
    }


_RAY_STEPS = [("train", step) for step in ("preprocess", "reference", "train", "evaluate")]
_RAY_STEPS += [("ablation", step) for step in ("preprocess", "reference", "train-trial", "measure-trial", "joint-measure")]
_RAY_STEPS += [("nightly-fid", "score-model"), ("compare", "compare-models")]
_RAY_STEPS += [("tune", step) for step in ("preprocess", "reference", "tune")]
_STAGES = {"preprocess": "data", "train": "train", "train-trial": "train", "tune": "train"}
_STAGES |= dict.fromkeys(("reference", "evaluate", "measure-trial", "joint-measure", "score-model", "compare-models"), "evaluate")


@pytest.mark.parametrize(("pipeline", "step"), _RAY_STEPS)
def test_a_step_that_may_use_a_cluster_reads_the_resources_of_its_stage(pipeline: str, step: str, texts: dict[str, str]) -> None:
    spec = parse(texts[pipeline])[0]
    read = _tasks(spec)[step]["inputs"]["parameters"]["resources"]["componentInputParameter"]
    assert read.removeprefix("pipelinechannel--") == f"{_STAGES[step]}_resources"


@pytest.mark.parametrize(("pipeline", "step"), _RAY_STEPS)
def test_a_step_that_may_go_to_a_standing_cluster_has_its_token(pipeline: str, step: str, texts: dict[str, str]) -> None:
    _, platform = parse(texts[pipeline])
    executor = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{step}"]
    assert "iddpm-ray" in {secret["secretName"] for secret in executor["secretAsEnv"]}


@pytest.mark.parametrize(("pipeline", "step"), _RAY_STEPS)
def test_a_pod_in_which_ray_may_run_has_room_in_shared_memory(pipeline: str, step: str, texts: dict[str, str]) -> None:
    _, platform = parse(texts[pipeline])
    mounts = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{step}"]["emptyDirMounts"]
    assert [(mount["mountPath"], mount["medium"]) for mount in mounts] == [("/dev/shm", "Memory")]


@pytest.mark.parametrize(("pipeline", "step"), _RAY_STEPS)
def test_the_settings_step_sizes_a_pod_also_in_a_loop(pipeline: str, step: str, texts: dict[str, str]) -> None:
    spec, platform = parse(texts[pipeline])
    asked = spec["deploymentSpec"]["executors"][f"exec-{step}"]["container"]["resources"]
    accelerator = asked["accelerator"]
    stage = _STAGES[step]
    sizes = {"cpu": asked["resourceCpuLimit"], "memory": asked["resourceMemoryLimit"]}
    sizes |= {"gpus": accelerator["resourceCount"], "gpu_type": accelerator["resourceType"]}
    parameters = _tasks(spec)[step]["inputs"]["parameters"]
    for name, value in sizes.items():
        output = "reference_gpus" if (step, name) == ("reference", "gpus") else f"{stage}_{name}"
        channel = f"pipelinechannel--settings-{output}"
        assert value == f"{{{{$.inputs.parameters['{channel}']}}}}"
        assert _producer(parameters[channel], channel) == output
    pod = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{step}"]
    for name, source in (
        ("node_selector", pod["nodeSelector"]["nodeSelectorJson"]),
        ("tolerations", pod["tolerations"][0]["tolerationJson"]),
    ):
        assert _producer(source, f"pipelinechannel--settings-{stage}_{name}") == f"{stage}_{name}"


def _producer(source: dict[str, Any], channel: str) -> str:
    """The output of the settings step that is read, directly or as the loop's own input; that one is checked for every graph below."""
    if "taskOutputParameter" in source:
        assert source["taskOutputParameter"]["producerTask"] == "settings"
        return str(source["taskOutputParameter"]["outputParameterKey"])
    assert source == {"componentInputParameter": channel}
    return channel.removeprefix("pipelinechannel--settings-")


def test_what_sizes_pods_in_loops_is_handed_to_the_loops(texts: dict[str, str]) -> None:
    spec, platform = parse(texts["ablation"])
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    loops = {name: task for name, task in _tasks(spec).items() if "parameterIterator" in task}
    assert len(loops) == 2
    for task in loops.values():
        component = spec["components"][task["componentRef"]["name"]]
        for inner in component["dag"]["tasks"].values():
            pod = executors[inner["componentRef"]["name"].replace("comp-", "exec-")]
            selector = pod["nodeSelector"]["nodeSelectorJson"]["componentInputParameter"]
            assert selector in component["inputDefinitions"]["parameters"]
            assert task["inputs"]["parameters"][selector]["taskOutputParameter"]["producerTask"] == "settings"


@pytest.mark.parametrize("name", PIPELINES)
def test_a_form_has_at_most_fifteen_parameters_each_of_which_explains_itself(name: str, texts: dict[str, str]) -> None:
    parameters = parse(texts[name])[0]["root"]["inputDefinitions"]["parameters"]
    assert len(parameters) <= 15
    for stage in (each for each in parameters if each.endswith("_resources")):
        described = parameters[stage]["description"]
        assert all(each.name in described for each in dataclasses.fields(StageResources))
        assert '{"profile": "8xgpu"' in described
        read_resources(parameters[stage]["defaultValue"], stage=stage.removesuffix("_resources"))
    for parameter, definition in parameters.items():
        openings = re.findall(r"(?:^|\. )(\w+ \w+ \w+)", definition["description"])
        assert len(openings) == len(set(openings)), f"{parameter} says something twice"


@pytest.mark.parametrize("name", PIPELINES)
def test_a_step_carries_its_program_without_what_explains_it(name: str, texts: dict[str, str]) -> None:
    """Argo stores it with each step of a run. The program is that of the source, but for the docstring."""
    spec = parse(texts[name])[0]
    original = specification(load(name))[0]
    assert "description" not in str(spec["components"])
    for label, executor in spec["deploymentSpec"]["executors"].items():
        program, source = (each["container"]["command"][-1] for each in (executor, original["deploymentSpec"]["executors"][label]))
        assert len(program) < len(source)
        function, whole = (next(node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)) for text in (program, source))
        assert ast.get_docstring(whole)
        assert [ast.dump(node) for node in function.body] == [ast.dump(node) for node in whole.body[1:]]
        assert ast.dump(function.args) == ast.dump(whole.args)


@pytest.mark.parametrize("name", PIPELINES)
def test_on_a_laptop_no_step_reads_the_size_of_its_pod(name: str) -> None:
    assert "pipelinechannel--settings-" not in yaml.safe_dump(local_specification(load(name))["components"])


@pytest.mark.parametrize(("pipeline", "step"), [("train", "close-run"), ("ablation", "tabulate-ablation")])
def test_the_end_of_a_run_is_an_exit_task_which_knows_whose_it_is(pipeline: str, step: str, texts: dict[str, str]) -> None:
    root = parse(texts[pipeline])[0]["root"]["dag"]
    task = root["tasks"][step]
    assert task["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert task["dependentTasks"] == ["exit-handler-1"]
    assert task["inputs"]["parameters"]["pipeline_run_id"]["runtimeValue"]["constant"] == "{{$.pipeline_job_uuid}}"
    assert root["outputs"]["parameters"]["Output"]["valueFromParameter"]["producerSubtask"] == step


@pytest.mark.parametrize("name", PIPELINES)
def test_every_parameter_of_a_pipeline_is_read_by_a_step_or_its_pod(name: str, texts: dict[str, str]) -> None:
    text = texts[name]
    parameters = parse(text)[0]["root"]["inputDefinitions"]["parameters"]
    unread = [key for key in parameters if f"componentInputParameter: {key}\n" not in text]
    assert not unread


@pytest.mark.parametrize("name", PIPELINES)
def test_people_see_a_short_name_of_every_step(name: str, texts: dict[str, str]) -> None:
    spec = parse(texts[name])[0]
    names = [task["taskInfo"]["name"] for task in _tasks(spec).values()]
    assert len(set(names)) == len(names)
    assert all(len(one) <= 12 for one in names)


def test_what_an_ablation_can_be_is_a_drop_down(texts: dict[str, str]) -> None:
    parameters = parse(texts["ablation"])[0]["root"]["inputDefinitions"]["parameters"]
    assert tuple(parameters["ablation_name"]["literals"]) == (*ablations.names(), *REPRODUCTIONS, "own-grid")
    assert parameters["ablation_scale"]["literals"] == ["paper", "small", "tiny"]
    assert parameters["experiment_objective"]["literals"] == ["as named", "simple", "vlb", "hybrid"]
    assert tuple(parameters["experiment_preset"]["literals"]) == ("as named", *presets.names())
    for name in ("ablation_name", "ablation_scale", "experiment_objective", "experiment_preset"):
        assert parameters[name]["defaultValue"] in parameters[name]["literals"]


def test_the_presets_are_a_drop_down(texts: dict[str, str]) -> None:
    parameters = parse(texts["train"])[0]["root"]["inputDefinitions"]["parameters"]
    assert tuple(parameters["experiment_preset"]["literals"]) == presets.names()


@pytest.mark.parametrize("name", PIPELINES)
def test_every_graph_is_given_what_its_steps_read(name: str, texts: dict[str, str]) -> None:
    spec = parse(texts[name])[0]
    for component in (spec["root"], *spec["components"].values()):
        given = set(component.get("inputDefinitions", {}).get("parameters", {}))
        for task in component.get("dag", {}).get("tasks", {}).values():
            for value in task.get("inputs", {}).get("parameters", {}).values():
                assert value.get("componentInputParameter", None) in {None, *given}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/train\.yaml: .*; a file and a directory can't have one name, so use another"):
        compile_all(tmp_path / "file")


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
    del spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]["train"]["retryPolicy"]


def _clock_on_retries(spec: dict[str, Any]) -> None:
    spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]["train"]["retryPolicy"]["backoffMaxDuration"] = "300s"


def _placeholder_in_text(spec: dict[str, Any]) -> None:
    parameters = spec["root"]["dag"]["tasks"]["close-run"]["inputs"]["parameters"]
    parameters["pipeline_run_id"]["runtimeValue"]["constant"] = "nightly-{{$.pipeline_job_uuid}}"


def _placeholder_in_a_list(spec: dict[str, Any]) -> None:
    parameters = spec["root"]["dag"]["tasks"]["close-run"]["inputs"]["parameters"]
    parameters["pipeline_run_id"]["runtimeValue"]["constant"] = ["{{$.pipeline_job_uuid}}"]


def _placeholder_of_local_runs(spec: dict[str, Any]) -> None:
    parameters = spec["root"]["dag"]["tasks"]["close-run"]["inputs"]["parameters"]
    parameters["pipeline_run_id"]["runtimeValue"]["constant"] = "{{$.pipeline_root}}"


def _bad_literal(spec: dict[str, Any]) -> None:
    spec["root"]["inputDefinitions"]["parameters"]["experiment_preset"]["literals"] = ["fp16"]


def _unknown_field(spec: dict[str, Any]) -> None:
    spec["root"]["dag"]["tasks"]["close-run"]["retries"] = 3


def _number_of_gpus(spec: dict[str, Any]) -> None:
    spec["components"]["comp-settings"]["outputDefinitions"]["parameters"]["train_gpus"]["parameterType"] = "NUMBER_INTEGER"


def _moving_image(spec: dict[str, Any]) -> None:
    spec["root"]["inputDefinitions"]["parameters"]["image"]["defaultValue"] = "iddpm:latest"


def _hook_on_a_step(spec: dict[str, Any]) -> None:
    task = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]["report"]
    task["triggerPolicy"] = {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}


def _two_pages(spec: dict[str, Any]) -> None:
    artifacts = spec["components"]["comp-report"]["outputDefinitions"]["artifacts"]
    artifacts["other"] = copy.deepcopy(artifacts["page"])


def _too_many_parameters(spec: dict[str, Any]) -> None:
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    parameters |= {f"more_{number}": parameters["data_uri"] for number in range(9)}


def _too_large(spec: dict[str, Any]) -> None:
    spec["pipelineInfo"]["description"] = "x" * MAX_BYTES


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_no_default, "storage_root_uri has no default"),
        (_no_description, "storage_root_uri has no description"),
        (_other_image, "exec-train runs python:3.11, not the image of the parameter image"),
        (_moving_image, r"parameter image \(IDDPM_IMAGE\): 'iddpm:latest' can change"),
        (_number_of_gpus, "exec-train asks for resources by settings-train_gpus, which must be text"),
        (_hook_on_a_step, "report ignores failures of single steps"),
        (_pip, "exec-train installs packages"),
        (_no_memory, "exec-train has no resourceMemoryLimit"),
        (_no_retry, "train is not tried again"),
        (_clock_on_retries, "train: its retries end 300s after the first try"),
        (_placeholder_in_text, r"close-run: pipeline_run_id is 'nightly-\{\{.*join it in the step"),
        (_placeholder_in_a_list, "close-run: pipeline_run_id is .*join it in the step"),
        (_placeholder_of_local_runs, r"pipeline_run_id is \{\{\$.pipeline_root\}\}, which KFP's server does not replace"),
        (_bad_literal, "experiment_preset: its default 'digits-hybrid-cosine' is not among"),
        (_unknown_field, "does not parse"),
        (_two_pages, "report has 2 HTML artifacts"),
        (_too_large, "the YAML has"),
        (_too_many_parameters, "parameters, more than 15"),
    ],
)
def test_a_pipeline_that_breaks_a_promise_is_not_written(
    damage: Callable[[dict[str, Any]], None], said: str, texts: dict[str, str]
) -> None:
    documents = copy.deepcopy(parse(texts["train"]))
    damage(documents[0])
    with pytest.raises(CompileError, match=said):
        check(yaml.safe_dump_all(documents))


def test_a_step_without_a_pull_policy_is_not_written(texts: dict[str, str]) -> None:
    documents = copy.deepcopy(parse(texts["train"]))
    del documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]["imagePullPolicy"]
    with pytest.raises(CompileError, match="exec-train has no imagePullPolicy"):
        check(yaml.safe_dump_all(documents))


def test_a_variable_that_the_cluster_injects_too_is_not_written(texts: dict[str, str]) -> None:
    documents = copy.deepcopy(parse(texts["train"]))
    executor = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]
    executor["configMapAsEnv"][0]["keyToEnv"][0]["envVar"] = "MLFLOW_TRACKING_URI"
    with pytest.raises(CompileError, match="exec-train sets MLFLOW_TRACKING_URI, which the cluster injects too"):
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
    "reference",
    [
        "iddpm:0.1.0",
        "host.example/team/iddpm:0.1.0-3f2a",
        f"iddpm@sha256:{'a' * 64}",
        "localhost:5000/iddpm:1",
        "iddpm:1",
        "Registry.Example:5000/my-team/a__b.c--d:V1_x",
        "Registry:5000/iddpm:1",
    ],
)
def test_an_immutable_image_is_taken(reference: str) -> None:
    assert image_from(reference) == reference


@pytest.mark.parametrize(
    "reference", ["iddpm", "iddpm:latest", "iddpm:LATEST", "team/iddpm:main", "localhost:5000/iddpm", "not an image", "iddpm@sha256:12"]
)
def test_an_image_that_can_change_under_the_cache_is_refused(reference: str) -> None:
    with pytest.raises(ImageError, match="IDDPM_IMAGE"):
        image_from(reference)


@pytest.mark.parametrize(
    "reference", ["ghcr.io/MyOrg/iddpm:1", "MyOrg/iddpm:1", "MyImage:1", "größe:1", "a//b:1", "-a:1", "..:1", "a_-.b:1"]
)
def test_an_image_that_no_container_runtime_takes_is_refused(reference: str) -> None:
    with pytest.raises(ImageError, match="an image's name is in lower case"):
        image_from(reference)


def test_a_moving_tag_is_refused_when_compiling_and_not_when_a_laptop_imports_the_steps() -> None:
    program = "from pipelines.local.run import _write_job; from pipelines.compile import load, compiled; load('train'); compiled('train')"
    env = {**os.environ, "IDDPM_IMAGE": "iddpm-pipelines:latest"}
    result = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "CompileError: parameter image (IDDPM_IMAGE): 'iddpm-pipelines:latest' can change" in result.stderr


def test_the_trials_at_once_are_the_compiling_environments() -> None:
    assert parallel_trials({}) == 4
    assert parallel_trials({"IDDPM_PARALLEL_TRIALS": "9"}) == 9
    for word in ("0", "-1", "many", ""):
        with pytest.raises(CompileError, match="IDDPM_PARALLEL_TRIALS"):
            parallel_trials({"IDDPM_PARALLEL_TRIALS": word})


@pytest.mark.parametrize("name", PIPELINES)
def test_kubernetes_objects_carry_the_same_pipeline_under_a_name_that_changes_with_it(name: str, texts: dict[str, str]) -> None:
    pipeline, version = yaml.safe_load_all(kubernetes_manifests(name))
    assert [pipeline["kind"], version["kind"]] == ["Pipeline", "PipelineVersion"]
    assert [version["spec"]["pipelineSpec"], version["spec"]["platformSpec"]] == list(yaml.safe_load_all(texts[name]))
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"]
    assert re.fullmatch(rf"{pipeline['metadata']['name']}-[0-9a-f]{{10}}", version["metadata"]["name"])
    assert len(version["metadata"]["name"]) <= 63
