"""Runs on a cluster: the real KFP client, and the command line, against a stand-in API server over HTTP."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fake_kfp
import pytest
import yaml
from fake_kfp import FakeKfp
from recorded_workflows import recorded, workflow_states

from components.launch.resources import PROFILES, read_resources
from components.steps.settings import DataOptions, read_data_options, resolve_experiment_form
from pipelines.client.arguments import CompiledPipeline, arguments_of, compiled_pipeline
from pipelines.client.connection import Connection
from pipelines.client.errors import KfpError
from pipelines.client.follow import Polling, RunCancelledError, RunFailedError, StillRunningError, follow, require_success
from pipelines.client.kfp_client import Kfp, connected
from pipelines.client.runs import list_runs, state_of
from pipelines.client.submit import upload as upload_pipeline
from pipelines.compile import PIPELINES
from training.config.errors import UserError
from training.config.experiment import Resources
from training.data.images.limits import LARGEST_MAX_PIXELS
from training.data.preparation.options import Options
from training.data.sources.catalog import SourceOptions

QUICK = Polling(interval_seconds=0.01, outage_seconds=0.5, token_seconds=0.5)
SUCCEEDS = workflow_states("nightly-succeeded")[-1:]
Iddpm = Callable[..., "tuple[int, str, str]"]


@pytest.fixture(scope="module")
def nightly() -> CompiledPipeline:
    return compiled_pipeline("nightly-fid")


@pytest.fixture(scope="module")
def train() -> CompiledPipeline:
    return compiled_pipeline("train")


# -- a run -------------------------------------------------------------------------------------------------------------


def test_submit_uploads_the_pipeline_and_starts_a_run_of_that_version(server: FakeKfp, iddpm: Iddpm, train: CompiledPipeline) -> None:
    server.script = workflow_states("train-local-succeeded")[-1:]
    words = ("--preset", "cifar10-hybrid-cosine", "--set", "optim.num_steps=5", "--resources", "train.num_workers=4", "--run-name", "mine")
    assert iddpm("submit", "train", *words)[0] == 0
    (pipeline,) = server.asked("POST", "/pipelines")
    assert pipeline.body["name"] == pipeline.body["display_name"] == "iddpm-train"
    (upload,) = server.asked("POST", "/pipelines/upload_version")
    assert list(yaml.safe_load_all(upload.body)) == [train.spec, train.platform]
    assert upload.query == {"name": train.version_name, "pipelineid": next(iter(server.pipelines))}
    (run,) = server.asked("POST", "/runs")
    assert run.body == {
        "display_name": "mine",
        "experiment_id": next(iter(server.experiments)),
        "pipeline_version_reference": {
            "pipeline_id": next(iter(server.pipelines)),
            "pipeline_version_id": next(iter(server.versions)),
        },
        "runtime_config": {
            "parameters": {
                "experiment_preset": "cifar10-hybrid-cosine",
                "experiment_overrides": ["optim.num_steps=5"],
                "train_resources": '{"profile": "laptop", "num_workers": 4}',
            }
        },
    }


def test_what_is_printed_names_the_version_the_experiment_the_run_and_its_page(server: FakeKfp, iddpm: Iddpm) -> None:
    server.script = SUCCEEDS
    _, out, err = iddpm("submit", "nightly-fid")
    (run_id,) = server.runs
    assert err == ""
    assert "(uploaded)\nexperiment  iddpm\n" in out
    assert f"run         {run_id}  iddpm-nightly-fid 20" in out
    assert f"page        {server.url}/#/runs/details/{run_id}\n" in out
    assert out.endswith("min\n")
    assert "the run succeeded in " in out


def test_the_same_yaml_is_uploaded_once(server: FakeKfp, iddpm: Iddpm) -> None:
    server.script = SUCCEEDS
    for _ in range(2):
        assert iddpm("submit", "nightly-fid")[0] == 0
    assert len(server.asked("POST", "/pipelines/upload_version")) == 1
    assert len(server.asked("POST", "/pipelines")) == 1
    assert len(server.runs) == 2


def test_a_changed_pipeline_is_a_new_version_of_the_same_pipeline(server: FakeKfp, kfp: Kfp, nightly: CompiledPipeline) -> None:
    changed = CompiledPipeline(nightly.name, nightly.text + "# changed\n", nightly.spec, nightly.platform)
    first, second = upload_pipeline(kfp, nightly), upload_pipeline(kfp, changed)
    assert first.pipeline_id == second.pipeline_id
    assert first.name != second.name
    assert second.is_new


def test_of_many_who_upload_at_once_one_does_and_all_get_its_version(server: FakeKfp, nightly: CompiledPipeline) -> None:
    together = threading.Barrier(4)
    # Each has seen that the version is not there before any of them uploads it.
    server.before = lambda request: together.wait(10) if request.path.endswith("/upload_version") else None

    def upload(_: int) -> tuple[str, bool]:
        with connected(Connection(endpoint=server.url), lambda line: None) as own:
            version = upload_pipeline(own, nightly)
        return version.version_id, version.is_new

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(upload, range(4)))
    assert len({ident for ident, _ in found}) == len(server.versions) == len(server.pipelines) == 1
    assert sorted(is_new for _, is_new in found) == [False, False, False, True]


def test_json_is_all_that_stands_on_standard_output(server: FakeKfp, iddpm: Iddpm) -> None:
    server.script = SUCCEEDS
    _, out, err = iddpm("submit", "nightly-fid", "--json", "--resources", "evaluate=2xcpu")
    told = json.loads(out)
    assert told["state"] == "succeeded"
    assert told["parameters"] == {"evaluate_resources": "2xcpu"}
    assert told["run_id"] in server.runs
    assert "resolve-model" in err


def test_no_wait_leaves_the_run_to_itself(server: FakeKfp, iddpm: Iddpm) -> None:
    status, out, _ = iddpm("submit", "nightly-fid", "--no-wait")
    assert status == 0
    assert "the run goes on without this command" in out
    assert next(iter(server.runs.values()))["looks"] == 0


def test_the_client_writes_nothing_into_the_home_directory(iddpm: Iddpm, tmp_path: Path) -> None:
    assert iddpm("submit", "nightly-fid", "--no-wait")[0] == 0
    assert not (tmp_path / ".config").exists()


@pytest.mark.slow
def test_a_client_without_torch_ray_and_mlflow_submits_a_run(server: FakeKfp) -> None:
    """The client runs in a process of its own, where importing any of them fails."""
    program = textwrap.dedent(
        """
        import sys
        for name in ("torch", "ray", "mlflow", "pyarrow", "numpy"):
            sys.modules[name] = None
        sys.argv = ["iddpm", "submit", "train", "--preset", "digits-hybrid-cosine", "--set", "optim.num_steps=5", "--no-wait"]
        from pipelines.cli.main import main
        main()
        """
    )
    env = {**os.environ, "KF_PIPELINES_ENDPOINT": server.url}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(server.runs) == 1


# -- refused before anything is sent -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tarin",), "there is no pipeline 'tarin'; did you mean 'train'?"),
        (("train", "--preset", "digits-hybrid-cosin"), "there is no preset 'digits-hybrid-cosin'"),
        (("train", "--set", "optim.num_step=5"), "optim.num_step"),
        (("train", "--set", "optim.num_steps=few"), "optim.num_steps"),
        (("train", "--param", "train_resource=1"), "no parameter 'train_resource'; did you mean 'train_resources'?"),
        (
            (
                "ablation",
                "--param",
                "ablation_name=vlb-weight",
                "--param",
                'ablation_grid={"seed": [1, 2]}',
                "--preset",
                "digits-tiny-hybrid-cosine",
            ),
            "own-grid); did you mean 'hybrid-weight'?",
        ),
        (("train", "--resources", "trian.gpus=1"), "pipeline train has no stage 'trian'; did you mean 'train'?"),
        (("train", "--resources", "train=2xcpu", "--resources", "train=8xgpu"), "--resources train is given twice"),
        (("train", "--resources", "train=8xgpu", "--param", "train_resources=2xcpu"), "mean the same; give one"),
        (
            ("train", "--resources", 'train.node_selector={"zone": "a", "zone": "b"}'),
            "--resources train.node_selector: has 'zone' 2 times; keep one of them",
        ),
        (("train", "--resources", "train"), "write STAGE.FIELD=VALUE, or STAGE=PROFILE"),
        (("train", "--resources", "train.gpu=1"), "train_resources.gpu: there is no 'gpu'; did you mean 'gpus'?"),
        (("train", "--resources", "train=laptob"), "train_resources: there is no profile 'laptob'"),
        (("train", "--resources", "train.num_workers=two"), "train_resources.num_workers: Input should be a valid integer"),
        (("train", "--resources", "train.num_workers=1.5"), "train_resources.num_workers: Input should be a valid integer"),
        (("train", "--resources", "train.min_workers=3"), "train_resources.min_workers: must be 0 to num_workers (1), got 3"),
        (("train", "--resources", "train.compile=perhaps"), "train_resources.compile: Input should be a valid boolean"),
        (("train", "--resources", "train.rayjob=[]"), "train_resources.rayjob"),
        (("train", "--resources", "train.cpu.limit=1"), "cpu"),
        (("train", "--resources", "train.precision=fp16"), "train_resources.precision: Input should be 'fp32' or 'bf16'"),
        (("train", "--resources", "train.gpus=two"), "train_resources.gpus: Input should be a valid integer"),
        (("train", "--resources", "train.cpu=4x"), "train_resources.cpu '4x' is not a quantity that Kubernetes knows, like '4' or '500m'"),
        (("train", "--resources", "train.cpu=0m"), "train_resources.cpu '0m' is not a quantity"),
        (
            ("train", "--resources", "train.memory=32GB"),
            "train_resources.memory '32GB' is not a quantity that Kubernetes knows, like '16Gi'",
        ),
        (
            ("train", "--resources", "train.memory=900Mi"),
            "train_resources.memory '900Mi' is too little for Ray and 1 worker(s): write at least 1.5Gi",
        ),
        (
            ("train", "--param", 'train_resources={"profile": "rayjob-8xgpu", "memory": "4Gi"}'),
            "train_resources.memory '4Gi' is too little for Ray and 8 worker(s) in each pod: write at least 5Gi",
        ),
        (("train", "--resources", "train.gpu_type=gpu"), "it reads like nvidia.com/gpu"),
        (("train", "--resources", 'train.node_selector={"gpu": 1}'), 'the value of label gpu must be text; write "1" in quotes'),
        (("train", "--resources", 'train.tolerations=["gpu"]'), "'gpu' is not a toleration of a pod"),
        (("train", "--resources", "train.node_selector.example.com/pool=a 100"), "the value 'a 100' of example.com/pool is no label"),
        (("train", "--resources", 'train.node_selector={"a b": "c"}'), "node_selector: 'a b' can't be a key"),
        (
            ("train", "--resources", 'train.tolerations=[{"key": "gpu", "operator": "Exists", "value": "yes"}]'),
            "is not a toleration of a pod",
        ),
        (("train", "--resources", "data.num_workers=0"), "data_resources.num_workers: must be at least 1, got 0"),
        (("train", "--resources", "data=1xgpu"), "data_resources: images are prepared on processors"),
        (("train", "--resources", "evaluate.precision=bf16"), "evaluate_resources.precision is read by training alone"),
        (("train", "--resources", "train.ray_mode=address"), "train_resources.ray_address goes with ray_mode address and is needed there"),
        (("train", "--resources", "train.ray_address=http://head:8265"), "ray_address goes with ray_mode address"),
        (("train", "--resources", "train.rayjob.head_cpu=1"), "queue and rayjob go with ray_mode rayjob; ray_mode is local"),
        (("train", "--param", 'train_resources={"profile": "8xgpu", "gpus": 4}'), "gpus 4 is too few: 8 workers take one each"),
        (("train", "--param", 'train_resources={"profile": "rayjob-8xgpu", "gpus": 8}'), "gpus 8 would be taken twice"),
        (("train", "--param", 'train_resources={"profile": "1xgpu", "gpus": 0}'), "gpus 0 is too few"),
        (
            ("train", "--param", 'train_resources={"ray_mode": "address", "ray_address": "head:6379"}'),
            "give its dashboard, like http://HEAD",
        ),
        (
            ("train", "--param", 'train_resources={"profile": "rayjob-2xcpu", "rayjob": {"head_cores": 8}}'),
            "train_resources.rayjob.head_cores",
        ),
        (
            ("train", "--param", 'train_resources={"profile": "rayjob-8xgpu", "rayjob": {"workers_per_pod": 3}}'),
            "must divide num_workers 8",
        ),
        (("train", "--param", 'train_resources={"profile": "rayjob-1xgpu", "cpu": "1900m"}'), "cpu '1900m' is too little: a Ray pod needs"),
        (
            ("nightly-fid", "--param", 'evaluate_resources={"profile": "rayjob-2xcpu", "rayjob": {"head_memory": "8 GB"}}'),
            "rayjob.head_memory '8 GB'",
        ),
        (
            ("train", "--param", 'train_resources={"profile": "rayjob-2xcpu", "rayjob": {"image": "iddpm:latest"}}'),
            "can change under a cached",
        ),
        (("train", "--param", "train_resources={"), "train_resources is not JSON"),
        (("train", "--param", 'data_options={"on_error": "ignore"}'), "data_options.on_error: Input should be 'fail' or 'skip'"),
        (("train", "--param", 'data_options={"label": "none"}'), "data_options.label: there is no 'label'; did you mean 'labels'?"),
        (("train", "--param", 'data_options={"max_errors": 0}'), "data_options.max_errors must be 1 to 2,147,483,647, got 0"),
        (("train", "--param", 'data_options={"background": "red"}'), "data_options.background: Input should be 'white', 'grey' or 'black'"),
        (("train", "--param", 'data_options={"max_pixels": 1073741825}'), "data_options.max_pixels must be 1 to 1,073,741,824"),
        (("train", "--param", 'data_options={"other_sizes": [32, 0]}'), "other_sizes must be 1 or more"),
        (("train", "--param", 'data_options={"other_sizes": [8.5]}'), "data_options.other_sizes"),
        (
            ("train", "--param", 'data_options={"num_test": true}'),
            "data_options.num_test: true is given, but this field is not true or false",
        ),
        (("train", "--param", 'data_options={"num_test": 1, "num_test": 2}'), "data_options: has 'num_test' 2 times; keep one of them"),
        (("train", "--param", "data_options=[]"), "data_options is a JSON object"),
        (("train", "--param", "data_uri"), "write name=value"),
        (("train", "--param", "data_uri=s3://a", "--param", "data_uri=s3://b"), "is given twice"),
        (("train", "--preset", "digits-hybrid-cosine", "--param", "experiment_preset=digits-hybrid-cosine"), "mean the same"),
        (("train", "--param", "experiment_overrides=[1]"), "a JSON list of words"),
        (("train", "--param", "image=iddpm:latest"), "'iddpm:latest' can change under a cached step"),
        (("train", "--param", "image="), "--param image: '' is not an image reference"),
        (("train", "--param", "image=Iddpm 1"), "--param image: 'Iddpm 1' is not an image reference"),
        (("nightly-fid", "--param", "model=digits-hybrid-cosine"), "write models:/NAME@ALIAS, runs:/ID, a run's key, or the s3://"),
        (("compare", "--param", 'models=["birds-0123456789", "birds"]'), "models=birds: write"),
        (("train", "--param", "storage_root_uri=runs"), "the steps of a run share only S3"),
        (("train", "--param", "storage_root_uri="), "is empty; give the directory of all results"),
        (("train", "--param", "data_uri=/data/cifar10"), "the steps of a run share only S3"),
        (("train", "--param", "storage_root_uri=s3://iddpm/a "), "--param storage_root_uri 's3://iddpm/a ': begins or ends with a blank"),
        (("train", "--param", "data_uri=s3://iddpm/a\t"), "--param data_uri 's3://iddpm/a\\t': begins or ends with a blank"),
        (("nightly-fid", "--param", "model=models:/a@champion\n"), "--param model 'models:/a@champion\\n': begins or ends with a blank"),
        (("compare", "--param", 'models=["runs:/1", "runs:/2 "]'), "--param models 'runs:/2 ': begins or ends with a blank"),
        (("compare", "--param", 'models=["runs:/1", "runs:/2",]'), "models is a JSON list, and this is not JSON: "),
        (("train", "--param", "experiment_overrides=seed=1"), "is a JSON list, and this is not JSON: Expecting value"),
        (("train", "--param", "experiment_overrides={}"), "experiment_overrides is a JSON list"),
        (
            ("train", "--param", "data_source=s3://me:secret@b/raw"),
            "--param data_source=s3://***@b/raw: an argument is visible to everybody; put a password",
        ),
        (
            ("ablation", "--param", 'data_options={"sources": {"digits": "s3://me:secret@b/raw"}}'),
            '--param data_options={"sources": {"digits": "s3://***@b/raw"}}: an',
        ),
        (
            ("compare", "--param", 'models=["runs:/1", "digits"]'),
            "models=digits: write models:/NAME@ALIAS, runs:/ID, a run's key, or the s3://",
        ),
        (("compare", "--param", 'models=["runs:/1"]'), "name two or more"),
        (("tune", "--param", 'tune_search=["model.dropout=0..2"]'), "model.dropout: must be in [0, 1), got 2.0"),
        (("tune", "--param", 'tune_options={"sed": 1}'), "tune_options.sed: there is no 'sed'; did you mean 'seed'?"),
        (("tune", "--param", 'tune_options={"seed": 1, "seed": 2}'), "--param tune_options: has 'seed' 2 times; keep one of them"),
        (("tune", "--param", 'tune_options={"hours": true}'), "tune_options.hours: true is given, but this field is not true or false"),
        (("tune", "--param", 'tune_options={"reduction": 1}'), "tune_options.reduction: must be 2 or more, or 0 to prune no trial, got 1"),
        (("tune", "--param", "tune_search=[1]"), "search: a searched field is text, got 1; write LOW..HIGH, log:LOW..HIGH or [A,B,C]"),
        (("tune", "--param", "tune_trials=0"), "trials: must be 1 or more, got 0"),
        (("nightly-fid", "--param", "threshold_difference=inf"), "threshold_difference is a number"),
        (("nightly-fid", "--param", "threshold_difference=-0.1"), "--param threshold_difference=-0.1: threshold_difference is 0 or more"),
        (("nightly-fid", "--param", "baseline_nights=2"), "--param baseline_nights=2: baseline_nights is 3 or more"),
        (("train", "--param", "tracking_experiment= "), "tracking_experiment is empty; give"),
        (("train", "--param", "tracking_experiment=iddpm "), "tracking_experiment 'iddpm ': begins or ends with a blank"),
        (
            ("train", "--param", "tracking_experiment={{workflow.name}}"),
            "--param tracking_experiment: has '{{', with which variables of Argo",
        ),
        (("compare", "--param", 'models=["models:/{{x}}/1", "runs:/1"]'), "--param models: has '{{'"),
        (
            ("train", "--param", f'experiment_file=base = "digits-hybrid-cosine"\n#{100_000 * "x"}'),
            "--param experiment_file: is too long; all parameters together may have 100,000 bytes. A long experiment file can be in S3: ",
        ),
        (("train", "--param", f"data_source={Path(__file__).parent}"), "is on this machine, and no step sees it; copy it to S3"),
        (
            ("ablation", "--param", "ablation_name=vlb-ratio", "--param", 'ablation_options={"runs": {"vlb": ".iddpm/x"}}'),
            "--param ablation_options: runs.vlb=.iddpm/x: write models:/NAME@ALIAS",
        ),
        (("nightly-fid", "--preset", "digits-hybrid-cosine"), "takes no --preset"),
        (("nightly-fid", "--timeout", "soon"), "--timeout 'soon' is not a duration"),
        (("nightly-fid", "--timeout", "5m"), "does not wait: leave out --no-wait"),
        (("train", "digits-hybrid-cosine", "--preset", "digits-hybrid-cosine"), "both name an experiment; give one"),
        (("train", "no-such-preset"), "no-such-preset"),
        (("train", "my.toml", "--param", "experiment_file=my.toml"), "my.toml and --param experiment_file mean the same; give one"),
        (("nightly-fid", "my.toml"), "my.toml: pipeline nightly-fid trains no experiment, so it takes no preset and no file"),
        (("ablation", "my.toml"), "my.toml: pipeline ablation takes no file; name an ablation (`iddpm ablations` lists them), or a preset"),
        (("ablation", "hybrid-wieght"), "there is no ablation and no preset 'hybrid-wieght'; did you mean 'hybrid-weight'?"),
        (("ablation", "all"), "there is no ablation and no preset 'all'; `iddpm ablations` and `iddpm presets` list them"),
        (("ablation", "width", "--param", "ablation_name=two-stage"), "width and --param ablation_name mean the same; give one"),
        (("train", "--from", "preprocess"), "'preprocess' can't be done again; the steps are train, evaluate, report"),
        (("train", "--from", "train", "--param", "force_from=evaluate"), "--from and --param force_from mean the same; give one"),
        (("nightly-fid", "--from", "evaluate"), "--from evaluate: pipeline nightly-fid can't do finished steps again"),
        (
            ("train", "--param", 'data_options={"sources": {"digits": "s3://b/raw"}}'),
            "data_options.sources is for the pipeline of ablations",
        ),
    ],
)
def test_what_can_not_work_is_refused_before_anything_is_sent(server: FakeKfp, iddpm: Iddpm, words: tuple[str, ...], said: str) -> None:
    status, out, err = iddpm("submit", "--no-wait", *words)
    assert (status, out) == (1, "")
    assert said in err
    assert err.count("\n") == 1
    assert server.requests == []


def test_the_most_pixels_are_as_many_as_are_decoded() -> None:
    assert read_data_options(json.dumps({"max_pixels": LARGEST_MAX_PIXELS})).max_pixels == LARGEST_MAX_PIXELS
    with pytest.raises(UserError, match="max_pixels"):
        read_data_options(json.dumps({"max_pixels": LARGEST_MAX_PIXELS + 1}))


def test_the_forms_options_have_the_defaults_of_the_step() -> None:
    given = DataOptions().arguments()
    assert Options(**given["options"]) == Options()
    assert SourceOptions(**given["source_options"]) == SourceOptions()


def test_a_whole_number_is_taken_where_a_fraction_may_stand(nightly: CompiledPipeline) -> None:
    given = arguments_of(nightly, preset="", overrides=[], words=["threshold_difference=1", "model=models:/m@a=b"])
    assert given == {"threshold_difference": 1.0, "model": "models:/m@a=b"}


def test_what_a_cluster_may_have_is_sent(train: CompiledPipeline) -> None:
    words = ["image=registry:5000/me/iddpm@sha256:" + "0" * 64]
    words += ['evaluate_resources={"ray_mode": "address", "ray_address": "https://ray.example.com", "num_gpus_per_worker": 1}']
    resources = ["train=rayjob-8x8gpu", 'train.node_selector={"gpu": "a100"}', "train.queue=team", "train.rayjob.head_cpu=4"]
    resources += ['train.tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}]', "train.gradient_checkpointing=true"]
    given = arguments_of(train, preset="", overrides=[], words=words, resources=resources, on_cluster=True)
    read = read_resources(given["train_resources"], stage="train")
    assert (read.num_workers, read.workers_per_pod, read.queue, read.rayjob.head_cpu) == (64, 8, "team", "4")
    assert read.gradient_checkpointing
    assert read.pod.gpus == "0"


def test_a_key_with_dots_is_one_key(train: CompiledPipeline) -> None:
    """Such as the labels of nodes, nearly all of which have dots."""
    resources = ["train=rayjob-1xgpu", "train.node_selector.cloud.google.com/gke-accelerator=nvidia-h100-80gb"]
    resources += ["train.rayjob.labels.example.com/team=vision", "train.rayjob.annotations.example.com/cost=42", "train.rayjob.env.A=b"]
    given = arguments_of(train, preset="", overrides=[], words=[], resources=resources, on_cluster=True)
    read = read_resources(given["train_resources"], stage="train")
    assert read.node_selector == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert (read.rayjob.labels, read.rayjob.annotations) == ({"example.com/team": "vision"}, {"example.com/cost": "42"})
    assert read.rayjob.env == {"A": "b"}


def test_a_text_that_looks_like_a_number_is_sent_as_it_is_written(train: CompiledPipeline) -> None:
    words = ["node_selector.pool=1", "rayjob.env.NCCL_VERSION=2.20", "rayjob.env.DEBUG=true", 'rayjob.env.QUOTED="1"']
    words += ["rayjob.labels.release=1.10", "rayjob.annotations.batch=1e5"]
    resources = ["train=rayjob-1xgpu", *(f"train.{word}" for word in words)]
    given = arguments_of(train, preset="", overrides=[], words=[], resources=resources, on_cluster=True)
    read = read_resources(given["train_resources"], stage="train")
    assert read.node_selector == {"pool": "1"}
    assert read.rayjob.env == {"NCCL_VERSION": "2.20", "DEBUG": "true", "QUOTED": "1"}
    assert (read.rayjob.labels, read.rayjob.annotations) == ({"release": "1.10"}, {"batch": "1e5"})


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_can_be_named(profile: str, train: CompiledPipeline) -> None:
    given = arguments_of(train, preset="", overrides=[], words=[], resources=[f"train={profile}", f"evaluate={profile}"], on_cluster=True)
    read = read_resources(given["train_resources"], stage="train")
    assert int(read.pod.gpus) == (0 if profile.startswith("rayjob") else read.num_workers * read.num_gpus_per_worker)


def test_every_field_of_the_works_resources_can_be_said(train: CompiledPipeline) -> None:
    for each in dataclasses.fields(Resources):
        value = {"precision": "bf16", "cache_dir": "/data", "num_gpus_per_worker": 1}.get(each.name, 1)
        words = [f"train.{each.name}={value}"]
        (text,) = arguments_of(train, preset="", overrides=[], words=[], resources=words).values()
        assert getattr(read_resources(text, stage="train").work, each.name) == value


def test_a_field_changes_the_profile_that_is_named_with_it_in_any_order(train: CompiledPipeline) -> None:
    words = ["train.memory=64Gi", "train=8xgpu"]
    found = [arguments_of(train, preset="", overrides=[], words=[], resources=each) for each in (words, words[::-1])]
    assert found[0] == found[1]
    resources = read_resources(found[0]["train_resources"], stage="train")
    assert (resources.memory, resources.num_workers) == ("64Gi", 8)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipelines_own_defaults_are_sent(name: str) -> None:
    assert arguments_of(compiled_pipeline(name), preset="", overrides=[], words=[], on_cluster=True) == {}


def test_a_preset_by_its_parameters_name_is_checked_as_well(train: CompiledPipeline) -> None:
    with pytest.raises(ValueError, match="there is no preset 'nothing'"):
        arguments_of(train, preset="", overrides=[], words=["experiment_preset=nothing"])


# -- an experiment of one's own ----------------------------------------------------------------------------------------


def test_an_experiment_file_is_sent_as_its_text(train: CompiledPipeline, tmp_path: Path) -> None:
    text = 'base = "digits-hybrid-cosine"\nname = "mine"\n[optim]\nnum_steps = 7\n'
    (tmp_path / "mine.toml").write_text(text)
    words = [f"experiment_file={tmp_path}/mine.toml", "seed=3"]
    given = arguments_of(train, preset="", overrides=["model.dropout=0.1"], words=words, on_cluster=True)
    assert given == {"experiment_file": text, "experiment_overrides": ["model.dropout=0.1"], "seed": 3}
    experiment = resolve_experiment_form("digits-tiny-hybrid-cosine", given["experiment_overrides"], text, 3)
    assert (experiment.name, experiment.optim.num_steps, experiment.model.dropout, experiment.seed) == ("mine", 7, 0.1, 3)


def test_a_blank_around_an_experiment_files_name_does_not_send_the_name_as_its_text(train: CompiledPipeline, tmp_path: Path) -> None:
    text = 'base = "digits-hybrid-cosine"\n'
    (tmp_path / "mine.toml").write_text(text)
    given = arguments_of(train, preset="", overrides=[], words=[f"experiment_file= {tmp_path}/mine.toml "])
    assert given == {"experiment_file": text}


def test_submit_takes_an_experiment_file_as_its_argument(server: FakeKfp, iddpm: Iddpm, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text('base = "digits-hybrid-cosine"')
    assert iddpm("submit", "train", str(tmp_path / "my.toml"), "--no-wait")[0] == 0
    (run,) = server.asked("POST", "/runs")
    assert run.body["runtime_config"]["parameters"] == {"experiment_file": 'base = "digits-hybrid-cosine"'}


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        (("hybrid-weight",), {"ablation_name": "hybrid-weight"}),
        (
            ("hybrid-weight", "--preset", "digits-hybrid-cosine"),
            {"ablation_name": "hybrid-weight", "experiment_preset": "digits-hybrid-cosine"},
        ),
        (("digits-tiny-hybrid-cosine",), {"experiment_preset": "digits-tiny-hybrid-cosine"}),
    ],
)
def test_submit_takes_an_ablation_as_ablate_does(server: FakeKfp, iddpm: Iddpm, words: tuple[str, ...], parameters: dict[str, str]) -> None:
    status, _, err = iddpm("submit", "ablation", *words, "--no-wait")
    assert (status, err) == (0, "")
    assert server.asked("POST", "/runs")[-1].body["runtime_config"]["parameters"] == parameters


def test_finished_steps_are_done_again_from_the_first_run_on(server: FakeKfp, iddpm: Iddpm) -> None:
    assert iddpm("submit", "train", "digits-hybrid-cosine", "--from", "evaluate", "--no-wait")[0] == 0
    (run,) = server.asked("POST", "/runs")
    assert run.body["runtime_config"]["parameters"] == {"experiment_preset": "digits-hybrid-cosine", "force_from": "evaluate"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["experiment_file=nowhere.toml"], "nowhere.toml: cannot be read"),
        (["experiment_file=[optim]\nnum_steps = 7"], "the file needs base"),
        (
            ['experiment_file=base = "digits-hybrid-cosine"', "experiment_preset=digits-hybrid-cosine"],
            "give either a preset or experiment_file",
        ),
        (["seed=-2"], "seed must be 0 or more, or -1, which leaves the experiment's own; got -2"),
        (["seed=4294967296"], "seed: must be in"),
    ],
)
def test_an_experiment_that_can_not_be_is_refused_here(train: CompiledPipeline, words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        arguments_of(train, preset="", overrides=[], words=words, on_cluster=True)


# -- experiments and users ---------------------------------------------------------------------------------------------


def test_a_blank_name_of_a_run_takes_the_usual_one(server: FakeKfp, iddpm: Iddpm) -> None:
    assert iddpm("submit", "nightly-fid", "--run-name", "  ", "--no-wait")[0] == 0
    (run,) = server.runs.values()
    assert run["display_name"].startswith("iddpm-nightly-fid 20")


def test_an_unknown_experiment_is_an_error_that_names_those_there_are(server: FakeKfp, iddpm: Iddpm) -> None:
    server.add_experiment("ablations")
    status, _, err = iddpm("submit", "nightly-fid", "--experiment", "ablation")
    assert status == 1
    assert "there is no experiment 'ablation'; did you mean 'ablations'?" in err
    assert "--create-experiment" in err
    assert "--create-experiment" not in iddpm("runs", "--experiment", "ablation")[2]  # which has no such option
    assert server.runs == {}
    assert server.versions == {}


def test_an_experiment_is_made_where_that_is_asked(server: FakeKfp, iddpm: Iddpm) -> None:
    assert iddpm("submit", "nightly-fid", "--no-wait", "--experiment", "new", "--create-experiment")[0] == 0
    assert [each["display_name"] for each in server.experiments.values()] == ["new"]


def test_an_archived_experiment_takes_no_runs(server: FakeKfp, iddpm: Iddpm) -> None:
    server.add_experiment("old", storage_state="ARCHIVED")
    assert "experiment 'old' is archived" in iddpm("submit", "nightly-fid", "--experiment", "old")[2]


def test_with_several_users_the_namespace_goes_with_the_experiment_and_the_pipeline(server: FakeKfp, iddpm: Iddpm) -> None:
    server.namespaces = {"team-a"}
    assert "give your namespace by --namespace" in iddpm("runs")[2]
    assert "does not allow it (403)" in iddpm("runs", "--namespace", "team-b")[2]
    assert iddpm("submit", "nightly-fid", "--namespace", "team-a", "--no-wait")[0] == 0
    assert [each["namespace"] for each in (*server.experiments.values(), *server.pipelines.values())] == ["team-a", "team-a"]


def test_a_list_longer_than_a_page_is_read_to_its_end(server: FakeKfp, kfp: Kfp) -> None:
    for number in range(130):
        server.add_experiment(f"experiment {number}")
    assert len(kfp.list_all(kfp.client.list_experiments, "experiments")) == 130


# -- following ---------------------------------------------------------------------------------------------------------


def test_each_change_of_a_tasks_state_is_one_line_and_argos_own_nodes_are_none(server: FakeKfp, kfp: Kfp) -> None:
    run = server.add_run("PENDING", scripted=True)
    server.script = workflow_states("train-local-succeeded")
    said: list[str] = []
    follow(kfp, run, task_names={"train", "report"}, say=said.append, polling=QUICK)
    changes = [["train", "running"], ["train", "succeeded"], ["report", "running"], ["report", "succeeded"]]
    assert [line.split() for line in said] == changes


def test_the_tasks_of_a_loop_are_numbered(server: FakeKfp, kfp: Kfp) -> None:
    run = server.add_run("PENDING", scripted=True)
    server.script = workflow_states("ablation-of-two-trials-succeeded")
    said: list[str] = []
    follow(kfp, run, task_names={"train-trial"}, say=said.append, polling=QUICK)
    assert [" ".join(line.split()) for line in said][-1:] == ["train-trial (2) succeeded"]


@pytest.mark.parametrize("state", ["SUCCEEDED", "RUNNING"])
def test_the_tasks_of_a_large_workflow_are_followed_though_kfps_list_stands_still(server: FakeKfp, kfp: Kfp, state: str) -> None:
    """Argo had compressed its nodes when the trials were measured; the recorded list still has them as running, and nothing after."""
    recording = recorded("kfp-api", "run-sweep-with-compressed-nodes")
    server.runs[recording["run_id"]] = recording | {"state": state}
    server.workflow = workflow_states("sweep-with-compressed-nodes")[-1]
    said: list[str] = []
    polling = dataclasses.replace(QUICK, look_seconds=0.1, still_seconds=0.1)
    names = {"train-trial", "measure-trial", "joint-measure", "tabulate-ablation"}
    with contextlib.suppress(StillRunningError):
        follow(kfp, recording["run_id"], task_names=names, say=said.append, timeout_seconds=1.0, polling=polling)
    last = dict(" ".join(line.split()).rsplit(" ", 1) for line in said)
    tasks = [f"{task} ({number})" for task in ("train-trial", "measure-trial") for number in (1, 2)]
    assert last == dict.fromkeys([*tasks, "joint-measure", "tabulate-ablation"], "succeeded")


LOG = """starting
Traceback (most recent call last):
  File "x.py", line 1, in f
    raise E
training.config.errors.UserError: s3://raw/photos has no images
F1126 06:43:59.1 1 main.go:49] failed to execute component: exit status 1
"""


def test_a_failed_run_is_the_commands_failure_and_names_the_step_and_its_error(server: FakeKfp, iddpm: Iddpm) -> None:
    server.script = workflow_states("bad-source-failed")[-1:]
    server.logs["iddpm-train-mxm94-retry-system-container-impl-2853953927"] = LOG
    status, _, err = iddpm("submit", "train")
    (run,) = server.runs
    assert (status, err) == (1, f"error: run {run} failed at preprocess: UserError: s3://raw/photos has no images\n")


def test_a_failed_run_of_which_kfp_has_no_workflow_says_so(server: FakeKfp, kfp: Kfp) -> None:
    recording = recorded("kfp-api", "run-failed-bad-source")
    server.runs[recording["run_id"]] = recording
    with pytest.raises(RunFailedError, match="failed: KFP gives no reason"):
        require_success(kfp, kfp.client.get_run(recording["run_id"]))


def test_the_command_of_a_cancelled_run_ends_as_an_interrupted_one(server: FakeKfp, iddpm: Iddpm) -> None:
    server.script = workflow_states("rayjob-cancelled")[-1:]
    status, _, err = iddpm("submit", "train")
    (run,) = server.runs
    assert (status, err) == (130, f"error: run {run} was cancelled\n")


@pytest.mark.parametrize("name", ["cancelled-rayjob", "cancelled-with-pod-invalid"])
def test_a_recorded_run_that_was_cancelled_is_cancelled(server: FakeKfp, kfp: Kfp, name: str) -> None:
    recording = recorded("kfp-api", f"run-{name}")
    server.runs[recording["run_id"]] = recording
    assert recording["state"] == "FAILED"
    run = kfp.client.get_run(recording["run_id"])
    assert state_of(run) == "cancelled"
    with pytest.raises(RunCancelledError, match="was cancelled"):
        require_success(kfp, run)
    said: list[str] = []
    follow(kfp, run.run_id, task_names={"preprocess", "train"}, say=said.append, polling=QUICK)
    assert said[-1].split() == ["train" if "rayjob" in name else "preprocess", "cancelled"]


def test_a_recorded_run_that_failed_is_no_cancelled_one(server: FakeKfp, kfp: Kfp) -> None:
    recording = recorded("kfp-api", "run-failed-max-duration")
    server.runs[recording["run_id"]] = recording
    server.workflow = workflow_states("worker-killed-then-step-pod-deleted")[-1]
    run = kfp.client.get_run(recording["run_id"])
    with pytest.raises(RunFailedError, match=r"failed at train: Max duration limit exceeded$"):
        require_success(kfp, run)


def test_runs_shows_the_recorded_cancelled_one_as_cancelled(server: FakeKfp, kfp: Kfp) -> None:
    recording = recorded("kfp-api", "runs-list")["runs"]
    server.runs |= {run["run_id"]: run | {"pipeline_version_reference": None} for run in recording if "state" in run}
    states = [run["state"] for run in list_runs(kfp, limit=100)]
    assert states.count("cancelled") == 2
    assert set(states) == {"cancelled", "failed", "running", "succeeded"}


def test_a_pod_that_is_refused_is_reported_once_with_the_reason(server: FakeKfp, kfp: Kfp) -> None:
    """The Workflow goes through its recorded states, one at each look; the pods were refused nine times."""
    states = workflow_states("plugin-env-collision-then-cancelled")
    run = server.add_run("RUNNING", scripted=True)
    server.script = states
    said: list[str] = []
    follow(kfp, run, task_names={"preprocess"}, say=said.append, polling=dataclasses.replace(QUICK, look_seconds=0.0))
    refused = [" ".join(line.split()) for line in said if "is invalid" in line]
    assert len(refused) == 1
    assert refused[0].startswith('preprocess is tried again: Pod "iddpm-train-g7zzw-')
    assert refused[0].endswith('spec.containers[1].env[1].valueFrom: Invalid value: "": may not be specified when `value` is not empty')
    assert not [line for line in said if "PodInitializing" in line]


def test_a_run_of_which_kfp_has_no_workflow_yet_is_followed(server: FakeKfp, kfp: Kfp) -> None:
    task = {"task_id": "1", "display_name": "train", "state": "PENDING"}
    run = server.add_run("RUNNING", run_details={"task_details": [task]})

    def end(request: fake_kfp.Request) -> None:
        if request.path.startswith("/apis/v1beta1/runs/"):
            server.runs[run]["state"] = "SUCCEEDED"

    server.before = end
    polling = dataclasses.replace(QUICK, look_seconds=0.0)
    assert follow(kfp, run, task_names={"train"}, say=lambda line: None, polling=polling).state == "SUCCEEDED"


def test_a_step_that_failed_by_its_own_error_is_not_said_to_be_tried_again(server: FakeKfp, kfp: Kfp) -> None:
    """Argo lets the backoff pass before it says that the step has failed; the recording has a state of that time."""
    run = server.add_run("RUNNING", scripted=True)
    server.script = workflow_states("bad_source")
    said: list[str] = []
    follow(kfp, run, task_names={"preprocess"}, say=said.append, polling=dataclasses.replace(QUICK, look_seconds=0.0))
    assert [line for line in said if "is tried again" in line] == []
    assert " ".join(said[-1].split()) == "preprocess failed"


def test_a_server_that_is_away_for_a_while_does_not_end_the_following(server: FakeKfp, kfp: Kfp) -> None:
    run = server.add_run("SUCCEEDED")
    server.faults["GET", f"/runs/{run}"] = [503, "drop", "drop", "drop", "drop", 500]
    said: list[str] = []
    assert follow(kfp, run, task_names=(), say=said.append, polling=QUICK).state == "SUCCEEDED"
    assert len(said) == 1
    assert "the run goes on, and this command asks again" in said[0]


def test_a_run_of_which_no_step_is_known_says_once_where_the_reason_may_be(server: FakeKfp, kfp: Kfp) -> None:
    run = server.add_run("RUNNING")
    said: list[str] = []
    with pytest.raises(StillRunningError):
        follow(kfp, run, task_names=(), say=said.append, timeout_seconds=0.5, polling=dataclasses.replace(QUICK, silence_seconds=0.1))
    (line,) = said
    assert "no step of the run" in line
    assert "ml-pipeline-persistenceagent" in line


def test_a_run_with_a_known_step_is_not_called_silent(server: FakeKfp, kfp: Kfp) -> None:
    details = {"task_details": [{"display_name": "train-driver", "state": "RUNNING"}]}
    run = server.add_run("RUNNING", run_details=details)
    said: list[str] = []
    with pytest.raises(StillRunningError):
        follow(kfp, run, task_names=(), say=said.append, timeout_seconds=0.5, polling=dataclasses.replace(QUICK, silence_seconds=0.1))
    assert said == []


def test_a_task_whose_driver_failed_has_failed_and_is_not_two(server: FakeKfp, kfp: Kfp) -> None:
    tasks = [
        {"display_name": "train-driver", "state": "SUCCEEDED"},
        {"display_name": "train", "state": "SUCCEEDED"},
        {"display_name": "evaluate-driver", "state": "FAILED"},
        {"display_name": "evaluate"},  # Argo omitted it
    ]
    times = [{"start_time": f"2026-11-29T21:4{i}:00Z", "task_id": str(i)} for i in range(len(tasks))]
    run = server.add_run("FAILED", run_details={"task_details": [task | time for task, time in zip(tasks, times, strict=True)]})
    said: list[str] = []
    follow(kfp, run, task_names=("train", "evaluate"), say=said.append, polling=QUICK)
    assert [line.split() for line in said] == [["train", "succeeded"], ["evaluate", "failed"]]


def test_a_server_that_stays_away_ends_it(server: FakeKfp, kfp: Kfp) -> None:
    run = server.add_run("RUNNING")
    server.faults["GET", f"/runs/{run}"] = [503] * 1000
    with pytest.raises(KfpError, match=r"KFP failed at .* \(503\)"):
        follow(kfp, run, task_names=(), say=lambda line: None, polling=QUICK)


def test_a_refused_token_that_nobody_renews_ends_it_at_once(server: FakeKfp, kfp: Kfp) -> None:
    run = server.add_run("RUNNING")
    server.faults["GET", f"/runs/{run}"] = [401] * 1000
    with pytest.raises(KfpError, match=r"\(401\)"):
        follow(kfp, run, task_names=(), say=lambda line: None, polling=Polling(interval_seconds=60))


def test_a_token_that_is_renewed_in_its_file_goes_on_and_one_that_is_not_ends_it(server: FakeKfp, tmp_path: Path) -> None:
    run, file = server.add_run("RUNNING"), tmp_path / "token"
    file.write_text("old")
    server.tokens = {"old"}
    said: list[str] = []
    with connected(Connection(endpoint=server.url, token_file=str(file)), lambda line: None) as kfp:
        server.tokens = {"new"}
        with pytest.raises(KfpError, match=r"\(401\)"):
            follow(kfp, run, task_names=(), say=said.append, polling=QUICK)
        server.runs[run]["state"] = "SUCCEEDED"

        def renew(request: fake_kfp.Request) -> None:
            file.write_text("new")

        server.before = renew
        assert follow(kfp, run, task_names=(), say=said.append, polling=QUICK).state == "SUCCEEDED"
    assert ["refuses the token (401)" in line for line in said] == [True, True]


def test_a_token_that_is_refused_after_an_outage_has_its_own_time(server: FakeKfp, tmp_path: Path) -> None:
    run, file = server.add_run("SUCCEEDED"), tmp_path / "token"
    file.write_text("token")
    server.faults["GET", f"/runs/{run}"] = [503] * 10 + [401] * 3
    polling = Polling(interval_seconds=0.1, outage_seconds=30.0, token_seconds=0.9)
    with connected(Connection(endpoint=server.url, token_file=str(file)), lambda line: None) as kfp:
        assert follow(kfp, run, task_names=(), say=lambda line: None, polling=polling).state == "SUCCEEDED"


def test_a_run_that_is_deleted_meanwhile_ends_it_at_once(server: FakeKfp, kfp: Kfp) -> None:
    with pytest.raises(KfpError, match="404"):
        follow(kfp, "gone", task_names=(), say=lambda line: None, polling=Polling(interval_seconds=60))


def test_a_script_gets_the_runs_id_and_a_status_of_its_own_when_the_time_is_over(server: FakeKfp, iddpm: Iddpm) -> None:
    status, out, err = iddpm("submit", "train", "digits-hybrid-cosine", "--json", "--timeout", "1s")
    assert status == 124, err
    assert json.loads(out)["run_id"] in server.runs
    assert "it goes on" in err


def test_when_the_time_is_over_the_run_goes_on(server: FakeKfp, kfp: Kfp) -> None:
    run = server.add_run("RUNNING")
    with pytest.raises(StillRunningError, match="is still running after"):
        follow(kfp, run, task_names=(), say=lambda line: None, timeout_seconds=0.05, polling=QUICK)
    assert server.runs[run]["state"] == "RUNNING"


# -- runs and cancel ---------------------------------------------------------------------------------------------------


def test_runs_lists_the_latest_first_with_their_pipelines(server: FakeKfp, iddpm: Iddpm) -> None:
    assert iddpm("runs")[1] == "no runs\n"
    server.script = SUCCEEDS
    iddpm("submit", "nightly-fid", "--run-name", "first")
    iddpm("submit", "nightly-fid", "--run-name", "second", "--no-wait")
    lines = iddpm("runs")[1].splitlines()
    assert [line.rpartition("  ")[2] for line in lines] == ["second", "first"]
    assert "iddpm-nightly-fid" in lines[0]
    told = json.loads(iddpm("runs", "--json", "--limit", "1")[1])
    assert [(each["name"], each["state"], each["finished"]) for each in told] == [("second", "pending", None)]


def test_runs_of_one_experiment(server: FakeKfp, iddpm: Iddpm) -> None:
    one = server.add_experiment("one")
    run = server.add_run("RUNNING", experiment_id=one)
    server.add_run("RUNNING", experiment_id=server.add_experiment("two"))
    assert [each["run_id"] for each in json.loads(iddpm("runs", "--experiment", "one", "--json")[1])] == [run]
    assert "there is no experiment 'three'" in iddpm("runs", "--experiment", "three")[2]


def test_lists_stay_short_with_ten_thousand_runs_and_a_thousand_experiments(server: FakeKfp, iddpm: Iddpm) -> None:
    experiments = [server.add_experiment(f"experiment {number}") for number in range(1000)]
    for number in range(10_000):
        server.add_run("SUCCEEDED", experiment_id=experiments[number % 1000], pipeline_spec={"pipelineInfo": {"name": "iddpm-train"}})
    for words in ((), ("--experiment", "experiment 999")):
        server.requests.clear()
        status, out, _ = iddpm("runs", *words)
        assert (status, len(out.splitlines())) == (0, 20 if not words else 10)
        assert len(server.requests) <= 3
    server.script = SUCCEEDS
    server.requests.clear()
    assert iddpm("submit", "nightly-fid", "--experiment", "experiment 999")[0] == 0
    assert len(server.requests) < 15


def test_cancel_terminates_a_run(server: FakeKfp, iddpm: Iddpm) -> None:
    run = server.add_run("RUNNING")
    status, out, _ = iddpm("cancel", run, "--wait")
    assert status == 0
    assert out == f"run {run} is being cancelled; what it started on a Ray cluster ends with it\nit is cancelled\n"
    assert len(server.asked("POST", f"/runs/{run}:terminate")) == 1


@pytest.mark.parametrize(("state", "word"), [("SUCCEEDED", "succeeded"), ("FAILED", "failed"), ("FAILED", "was cancelled")])
def test_cancelling_a_run_that_has_ended_is_harmless_and_says_so(server: FakeKfp, iddpm: Iddpm, state: str, word: str) -> None:
    run = server.add_run(state, cancelled=word == "was cancelled")
    assert iddpm("cancel", run) == (0, f"run {run} has ended already: it {word}\n", "")
    assert server.asked("POST", ":terminate") == []


def test_a_run_that_ends_while_it_is_cancelled_is_harmless_too(server: FakeKfp, iddpm: Iddpm) -> None:
    run = server.add_run("RUNNING")

    def end(request: fake_kfp.Request) -> None:
        if request.path.endswith(":terminate"):
            server.runs[run]["state"] = "SUCCEEDED"

    server.before = end
    assert iddpm("cancel", run) == (0, f"run {run} has ended already: it succeeded\n", "")


def test_cancelling_an_unknown_run_is_an_error(iddpm: Iddpm) -> None:
    assert iddpm("cancel", "nothing")[0::2] == (1, "error: there is no run nothing; `iddpm runs` lists them\n")


def test_a_step_of_a_cancelled_run_is_not_said_to_be_tried_again(server: FakeKfp, kfp: Kfp) -> None:
    """Argo ends the pod by a deadline of zero, and for some seconds its words are those of a step that took too long."""
    run = server.add_run("RUNNING", scripted=True)
    server.script = workflow_states("cancel")
    said: list[str] = []
    follow(kfp, run, task_names={"train"}, say=said.append, polling=dataclasses.replace(QUICK, look_seconds=0.0))
    assert [line for line in said if "is tried again" in line] == []
