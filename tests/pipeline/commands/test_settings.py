"""The first step of every pipeline: settings checked at once, and outputs that size the pods of later steps."""

import json
import re
from pathlib import Path

import fake_kubernetes
import pytest
from kfp import dsl

from components.launch.logs import PIPELINES
from components.launch.resources import STAGES, PodSize
from components.preprocess import preprocess
from components.settings import settings
from components.steps.compare import compare_models
from components.steps.nightly import resolve_model
from components.steps.settings import check_settings
from pipelines.local.run import PipelineError, run_pipeline
from pipelines.pods import Pod, stage_pod
from pipelines.services.services import Services
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.config.presets import preset
from training.storage.logs import list_logs, read_part

_KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
    "users": [{"name": "u", "user": {}}],
    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    "current-context": "x",
}


@pytest.fixture(autouse=True)
def kubeconfig(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster is known, as a Ray cluster needs; nothing here asks it."""
    path = tmp_path_factory.mktemp("kube") / "config"
    path.write_text(json.dumps(_KUBECONFIG))
    monkeypatch.setenv("KUBECONFIG", str(path))


def test_the_outputs_are_the_experiment_and_every_stages_pod_in_order(tmp_path: Path) -> None:
    names = list(settings.component_spec.outputs)
    assert names == ["experiment", *(f"{stage}_{field}" for stage in STAGES for field in PodSize._fields), "reference_gpus"]
    given = settings.python_func(
        str(tmp_path),
        "1",
        experiment_preset="digits-hybrid-cosine",
        experiment_overrides=["optim.num_steps=7"],
        seed=3,
        train_resources='{"profile": "8xgpu", "node_selector": {"pool": "a100"}, "tolerations": [{"operator": "Exists"}]}',
        evaluate_resources="rayjob-8x8gpu",
    )
    outputs = dict(zip(names, given, strict=True))
    assert Experiment.from_json(outputs["experiment"]) == preset("digits-hybrid-cosine", ["optim.num_steps=7", "seed=3"])
    assert [outputs[f"train_{field}"] for field in PodSize._fields] == [
        "64", "512Gi", "8", "nvidia.com/gpu", {"pool": "a100"}, [{"operator": "Exists"}],
    ]  # fmt: skip
    assert (outputs["evaluate_cpu"], outputs["evaluate_gpus"], outputs["evaluate_node_selector"]) == ("500m", "0", {})
    assert (outputs["data_cpu"], outputs["data_memory"]) == ("1", "4Gi")


@pytest.mark.parametrize(("evaluate_resources", "gpus"), [("laptop", "0"), ("1xgpu", "1"), ("8xgpu", "1"), ("rayjob-8xgpu", "0")])
def test_the_reference_step_gets_one_gpu_of_the_stages(tmp_path: Path, evaluate_resources: str, gpus: str) -> None:
    assert settings.python_func(str(tmp_path), "1", evaluate_resources=evaluate_resources)[-1] == gpus


@pytest.mark.parametrize(
    ("pod", "train_resources", "said"),
    [
        ("", "2xcpu", "train: 2 worker(s) on this machine"),
        ("", "rayjob-2xcpu", "train: 2 worker(s) on a Ray cluster made for it, 2 core(s) and 4Gi a pod"),
        ("train-x-system-container-impl-1", "2xcpu", "train: 2 worker(s) in the step's pod, 4 core(s) and 8Gi a pod"),
    ],
)
def test_the_workers_place_and_what_a_pod_gets_are_said_as_they_are_here(
    pod: str, train_resources: str, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_POD_NAME", pod)
    check_settings("", [], "", -1, "{}", "laptop", train_resources, "laptop")
    assert f"iddpm| {said}\n" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("experiment_preset", "no-such-preset", "no-such-preset"),
        ("experiment_file", "base = 3", "must be the name of a preset"),
        ("data_options", '{"num_tests": 3}', "did you mean 'num_test'"),
        ("data_options", '{"num_test": true}', "data_options.num_test: true is given, but this field is not true or false"),
        ("data_options", '{"other_sizes": [16, true]}', "data_options.other_sizes.1: true is given"),
        ("data_options", '{"num_test": 1, "num_test": 2}', "data_options: has 'num_test' 2 times; keep one of them"),
        ("train_resources", '{"num_workers": true}', "train_resources.num_workers: true is given"),
        (
            "train_resources",
            '{"ray_mode": "rayjob", "cpu": "2", "rayjob": {"workers_per_pod": true}}',
            "train_resources.rayjob.workers_per_pod: true is given",
        ),
        ("train_resources", '{"node_selector": {"a": "1", "a": "2"}}', "train_resources: has 'a' 2 times; keep one of them"),
        (
            "train_resources",
            '{"ray_mode": "address", "ray_address": "http://head:8265", "cpu": "4"}',
            "train_resources.cpu sizes or places pods",
        ),
        ("train_resources", "9xgpu", "train_resources: there is no profile '9xgpu'"),
        ("train_resources", '{"profile": ["8xgpu"]}', "train_resources: there is no profile ['8xgpu']"),
        ("train_resources", '{"cpu": "٤"}', "train_resources.cpu '٤' is not a quantity"),  # float() reads this digit
        ("train_resources", '{"memory": "٤٤Gi"}', "train_resources.memory '٤٤Gi' is not a quantity"),
        ("train_resources", '{"node_selector": {"pool": "größe"}}', "the value 'größe' of pool is no label"),
        ("train_resources", '{"node_selector": {"größe": "x"}}', "'größe' can't be a key"),
        ("train_resources", '{"gpu_type": "nvidia.com/größe"}', "is not a resource name of GPUs"),
        ("train_resources", '{"ray_mode": "rayjob", "cpu": "2", "rayjob": {"env": {"GRÖSSE": "1"}}}', "can't name an environment variable"),
        (
            "train_resources",
            '{"ray_mode": "rayjob", "rayjob": {"head_cpus": "2"}}',
            "train_resources.rayjob.head_cpus: there is no 'head_cpus'",
        ),
        ("force_from", "trian", "the steps are train, evaluate, report"),
        ("evaluate_resources", '{"cpu": "many"}', "evaluate_resources.cpu 'many'"),
        ("tracking_experiment", " ", "tracking_experiment is empty; give the name of MLflow's experiment"),
        ("tracking_experiment", "iddpm\n", "tracking_experiment 'iddpm\\n': begins or ends with a blank or a line's end; leave it out"),
        ("tracking_experiment", "x" * 501, "tracking_experiment has 501 characters; MLflow takes 500"),
        ("baseline_nights", 2, "baseline_nights must be 3 or more, got 2"),
        ("threshold_difference", -0.1, "threshold_difference must be a number of 0 or more, got -0.1"),
    ],
)
def test_a_wrong_setting_fails_the_first_step(argument: str, value: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        settings.python_func(str(tmp_path), "1", **{argument: value})
    assert said in str(caught.value)


def test_a_seed_below_the_one_that_leaves_the_experiments_own_fails_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seed must be 0 or more, or -1, which leaves the experiment's own; got -2"):
        settings.python_func(str(tmp_path), "1", experiment_preset="digits-hybrid-cosine", seed=-2)


def test_the_address_of_a_ray_cluster_that_a_pod_can_not_join_fails_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    resources = '{"ray_mode": "address", "ray_address": "auto"}'
    check_settings("", [], "", -1, "{}", "laptop", resources, "laptop")  # on a node of the cluster
    monkeypatch.setenv("KFP_POD_NAME", "settings-1")
    with pytest.raises(UserError, match=r"^train_resources\.ray_address auto: a step's pod is not on that cluster; give its dashboard"):
        check_settings("", [], "", -1, "{}", "laptop", resources, "laptop")


@pytest.mark.parametrize("root", ["", "runs", "/data/runs", "s3://"])
def test_a_storage_root_that_only_one_pod_sees_fails_the_first_step(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_POD_NAME", "settings-1")
    with pytest.raises(UserError, match=f"^storage_root_uri '{root}': the steps of a run share only S3; write s3://BUCKET/PATH$"):
        settings.python_func(root, "1")


def test_a_data_sets_directory_that_only_one_pod_sees_fails_the_step_that_would_fill_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_POD_NAME", "preprocess-1")
    experiment = preset("digits-hybrid-cosine").to_json()
    with pytest.raises(UserError, match=r"^data_uri '/data/digits': the steps of a run share only S3"):
        preprocess.python_func(None, experiment, "/data/digits", "s3://iddpm", "", "{}", "laptop")


@pytest.mark.parametrize("uri", ["s3://iddpm/ ", " s3://iddpm", "s3://iddpm/runs\t", "s3://iddpm\n"])
def test_a_blank_around_an_address_fails_the_step_that_would_write_to_another_place(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_POD_NAME", "settings-1")
    said = re.escape(f"{uri!r}: begins or ends with a blank or a line's end; leave it out")
    with pytest.raises(UserError, match=f"^storage_root_uri {said}$"):
        settings.python_func(uri, "1")
    with pytest.raises(UserError, match=f"^data_uri {said}$"):
        preprocess.python_func(None, preset("digits-hybrid-cosine").to_json(), uri, "s3://iddpm", "", "{}", "laptop")


def test_a_blank_around_a_models_name_is_named_by_the_step_that_looks_for_it() -> None:
    with pytest.raises(UserError, match=r"^model ' models:/a@champion': begins or ends with a blank"):
        resolve_model(" models:/a@champion")
    with pytest.raises(UserError, match=r"^models 'models:/a/2 ': begins or ends with a blank"):
        compare_models(["models:/a/1", "models:/a/2 "], 0, "s3://iddpm", {})


def test_the_sources_of_an_ablation_are_refused_where_one_data_set_is_trained_on(tmp_path: Path) -> None:
    options = {"data_options": '{"sources": {"digits": "s3://b/x"}}'}
    settings.python_func(str(tmp_path), "1", **options)  # as an ablation's, which has no experiment at this step
    with pytest.raises(UserError, match="give data_source instead"):
        settings.python_func(str(tmp_path), "1", experiment_preset="digits-hybrid-cosine", **options)


def test_a_ray_cluster_without_a_kubernetes_is_refused_before_images_are_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"^evaluate_resources: no cluster is known here: .* set KUBECONFIG"):
        settings.python_func(str(tmp_path), "1", evaluate_resources="rayjob-2xcpu")
    monkeypatch.setenv("KFP_POD_NAME", "settings-1")  # the step that makes it has a pod of its own
    check_settings("", [], "", -1, "{}", "laptop", "laptop", "rayjob-2xcpu")


@pytest.mark.parametrize(("queues", "words"), [(None, "needs Kueue"), ({}, "there is no LocalQueue 'training' in namespace runs")])
def test_a_queue_that_the_cluster_does_not_have_fails_the_first_step(
    queues: dict[str, object] | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"experiment_preset": "digits-hybrid-cosine", "train_resources": '{"profile": "rayjob-2xcpu", "queue": "training"}'}
    with fake_kubernetes.serve(tmp_path) as (fake, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        fake.queues = queues
        with pytest.raises(UserError, match=f"train_resources: .*{words}"):
            settings.python_func(str(tmp_path / "root"), "1", **given)
        fake.queues = {"training": {}}
        settings.python_func(str(tmp_path / "root"), "1", **given)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def square(number: int, resources: str) -> int:
    from training.console import say

    say(f"{number * number} with {resources}")
    return number * number


@dsl.pipeline(name="toy-sized")
def sized(root: str, numbers: list = [2, 3], train_resources: str = "laptop"):  # type: ignore[type-arg]  # noqa: B006 - KFP wants literals
    """Size pods in a loop."""
    run = {"storage_root_uri": root, "pipeline_run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
    checked = Pod(image="i:1").configure(settings(**run, train_resources=train_resources), name="settings")
    with dsl.ParallelFor(numbers, name="loop") as number:
        stage_pod(checked, "train", image="i:1").configure(square(number=number, resources=train_resources), name="square")


def test_a_loop_whose_pods_the_settings_size_runs_on_a_laptop(no_services: Services, tmp_path: Path) -> None:
    lines: list[str] = []
    text = json.dumps({"num_workers": 2})
    run_pipeline(sized, {"root": str(tmp_path / "root"), "train_resources": text}, no_services, show=lines.append)
    squares = [line.partition("] ")[2] for line in lines if line.startswith("[2/2 square") and "done in" not in line]
    assert sorted(squares) == [f"4 with {text}", f"9 with {text}"]


def test_a_wrong_setting_ends_a_run_before_any_other_step_and_its_log_is_stored(no_services: Services, tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(PipelineError, match="settings: train_resources: there is no profile 'none'"):
        run_pipeline(sized, {"root": str(tmp_path / "root"), "train_resources": "none"}, no_services, show=lines.append)
    assert not [line for line in lines if "square" in line]
    (directory,) = (tmp_path / "root" / PIPELINES).iterdir()
    (log,) = list_logs(str(directory), "settings")
    words = read_part(log.parts[0].uri)
    assert "UserError: train_resources: there is no profile 'none'" in words[-1]
    assert "\n".join(words).count("there is no profile 'none'") == 1
