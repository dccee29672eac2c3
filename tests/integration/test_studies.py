"""Studies of trained models in a real MLflow: each a run of its own, with numbers, protocol and pages, also if it is made again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH
from typer.testing import CliRunner
from webhook_receiver import receive

from components.steps.studies import DEFAULT_EXPERIMENT, log_evaluation, log_study
from components.steps.webhook import URL_VARIABLE
from evaluation.distances.reference_statistics import compute_reference
from evaluation.features.extractors import load_extractor
from evaluation.monitoring.checkpoint_scorer import CheckpointScorer
from evaluation.reports.study import Study
from pipelines.cli.main import app
from pipelines.compile import load
from pipelines.local.run import run_pipeline
from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import EvaluationConfig
from training.config.presets import preset
from training.console import output_marks
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.published import digits
from training.models.unet import make_model
from training.tracking import runs as tracking
from training.tracking.registry import RegisteredModel, register

EXPERIMENT = "studies"
_OVERRIDES = [
    "diffusion.num_timesteps=40",
    "evaluation.scoring_num_samples=20",
    "evaluation.scoring_sampling.spacing=ddim2",
    "evaluation.num_samples=30",
    'evaluation.sampling.spacing="3"',
]


def server() -> Any:
    from mlflow import MlflowClient

    return MlflowClient()


def artifacts(run_id: str, folder: str = "") -> set[str]:
    return {str(file.path) for file in server().list_artifacts(run_id, folder)}


def iddpm(*arguments: str) -> str:
    with output_marks(False):
        found = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert found.exit_code == 0
    return found.stdout


def studies(kind: str, experiment: str = EXPERIMENT) -> list[Any]:
    """The runs of that kind, newest first."""
    where = server().get_experiment_by_name(experiment)
    return list(server().search_runs([where.experiment_id], f"tags.`iddpm.study` = '{kind}'")) if where else []


@pytest.fixture(scope="module")
def data_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("digits"))
    for split in ("train", "test"):
        prepare(digits(split), f"{uri}/{split}", image_size=8, options=Options(resize="none"))
    return uri


def write_run(uri: str, data_uri: str, tracking_run_id: str) -> str:
    """Two checkpoints of a network of random weights, each with two averages."""
    experiment = preset("digits-hybrid-cosine", _OVERRIDES)
    torch.manual_seed(0)
    network = make_model(experiment)
    for step in (100, 200):
        states = {
            f"{name}.pt": {key: value + size * torch.randn(value.shape) for key, value in network.state_dict().items()}
            for name, size in (("model", 0.05), ("ema_0.99", 0.02), ("ema_0.995", 0.03))
        }
        checkpoint.save(uri, step, {"experiment.json": experiment.to_dict(), **states})
    storage.write_json(f"{uri}/result.json", {"data_uri": data_uri, "tracking_run_id": tracking_run_id})
    return uri


@pytest.fixture(scope="module")
def trained(services: Any, data_uri: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A run's directory, and its MLflow run."""
    run = tracking.open_run(run_key="studied", experiment_name=EXPERIMENT, run_name="studied", tags={}, params={})
    assert run.finish("FINISHED")
    return write_run(str(tmp_path_factory.mktemp("studied")), data_uri, run.run_id), run.run_id


@pytest.mark.slow
def test_a_comparison_is_one_run_with_differences_protocol_and_page_also_when_it_is_made_again(
    trained: tuple[str, str], tmp_path: Path
) -> None:
    uri, run_id = trained
    models = [f"{uri}/checkpoints/step={step:08d}" for step in (100, 200)]
    command = ["compare", *models, "--no-likelihood", "--out", str(tmp_path)]
    printed = iddpm(*command)
    as_json = iddpm(*command, "--json")
    (run,) = studies("comparison")
    assert tracking.attach(run.info.run_id).url in printed
    second = json.loads(as_json)["models"][1]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["distance_difference/2_step_200"] == second["distance_difference"]["value"]
    assert run.data.metrics["distance_difference_standard_error/2_step_200"] == second["distance_difference"]["standard_error"]
    assert run.data.metrics["distance/2_step_200"] == second["result"]["distance"]
    assert len(server().get_metric_history(run.info.run_id, "distance/1_step_100")) == 1
    assert run.data.params["model.2"] == f"step 200: {models[1]} (ema_0.99)"
    assert run.data.params["distance.num_samples"] == "30"
    assert run.data.tags["iddpm.model_run_ids"] == run_id
    assert f"({tracking.attach(run_id).url})" in run.data.tags["mlflow.note.content"]
    assert "mlflow.parentRunId" not in run.data.tags
    assert artifacts(run.info.run_id) == {"comparison.html", "comparison.json", "samples.png"}


@pytest.mark.slow
def test_the_compare_pipeline_leaves_a_page_and_tells_the_webhook_the_distance_of_each_model(
    services: Any, data_uri: str, bucket_uri: str, tmp_path: Path
) -> None:
    uri = write_run(f"{bucket_uri}/runs/compared", data_uri, "")
    models = [f"{uri}/checkpoints/step={step:08d}" for step in (100, 200)]
    with receive() as receiver:
        here = dataclasses.replace(services, home=tmp_path, env={**services.env, URL_VARIABLE: receiver.url})
        arguments = {"models": models, "num_samples": 20, "storage_root_uri": bucket_uri}
        outputs = run_pipeline(load("compare"), arguments, here, show=lambda line: None)
    (message,) = receiver.messages
    found = storage.read_json(outputs["Output"].replace(".html", ".json"))["models"]
    assert message["event"] == "finished"
    assert "comparison of 2 models finished: FD(digits-classifier) of step 100 " in message["text"]
    assert "; step 200 " in message["text"]
    assert [each["distance"] for each in message["numbers"]["models"]] == [each["result"]["distance"] for each in found]
    assert message["numbers"]["models"][1]["difference"] == found[1]["distance_difference"]


@pytest.mark.slow
def test_mlflow_loads_a_registered_model_and_draws_the_images_of_iddpm_sample(bucket_uri: str, data_uri: str, tmp_path: Path) -> None:
    import mlflow
    import pandas  # type: ignore[import-untyped]

    run = tracking.open_run(run_key="registered", experiment_name=EXPERIMENT, run_name="registered", tags={}, params={})
    assert run.finish("FINISHED")
    uri = write_run(f"{bucket_uri}/runs/registered", data_uri, run.run_id)
    best = {"checkpoint_uri": f"{uri}/checkpoints/step=00000200", "weights": "ema_0.995", "data_uri": data_uri}
    found = register(
        RegisteredModel(name="studied", run_id=run.run_id, distance_name="FID", distance=1.0, **best),
        loader_module="evaluation.sampling.pyfunc",
    )
    model = mlflow.pyfunc.load_model(f"models:/studied/{found.version}")
    images = model.predict(pandas.DataFrame([{"seed": 3, "num_images": 4}, {"seed": 5, "num_images": 2, "label": 7, "evaluations": 2}]))
    expected = []
    for words in (("--seed", "3", "--num-images", "4"), ("--seed", "5", "--num-images", "2", "--labels", "7", "--steps", "2")):
        file = str(tmp_path / "images.npz")
        iddpm("sample", best["checkpoint_uri"], str(tmp_path / "grid.png"), "--npz", file, "--weights", "ema_0.995", *words)
        expected.append(np.load(file)["arr_0"])
    np.testing.assert_array_equal(images, np.concatenate(expected))
    with pytest.raises(UserError, match="a row has seed, and may have num_images, label and evaluations; got seed, lable"):
        model.predict(pandas.DataFrame([{"seed": 3, "lable": 7}]))


@pytest.mark.slow
def test_a_sweep_and_a_replay_are_children_of_the_run_of_their_model(trained: tuple[str, str], data_uri: str, tmp_path: Path) -> None:
    uri, run_id = trained
    swept = json.loads(iddpm("ema-sweep", uri, "--decays", "0.99,0.995", "--at", "100,200", "--out", str(tmp_path), "--json"))
    (sweep,) = studies("ema-sweep")
    assert (sweep.info.status, sweep.data.tags["mlflow.parentRunId"]) == ("FINISHED", run_id)
    history = server().get_metric_history(sweep.info.run_id, "distance/0.99")
    assert [(point.step, point.value) for point in history] == [
        (point["step"], point["distance"]) for point in swept["points"] if point["decay"] == 0.99
    ]
    by_decay = server().get_metric_history(sweep.info.run_id, "distance_by_updates_averaged/step_200")
    assert sorted(point.step for point in by_decay) == [100, 200], "1 / (1 - decay)"
    assert artifacts(sweep.info.run_id) == {"sweep.html", "sweep.csv", "sweep.json", "sweep.svg"}

    (reference,) = [name for name in storage.list_uris(f"{data_uri}/references") if name.endswith(".npz")]
    for step in (100, 200):
        CheckpointScorer(evaluation=EvaluationConfig(), reference_uri=reference).score(checkpoint.checkpoint_uri(uri, step))
    printed = iddpm("replay-stopping", uri, "--out", str(tmp_path))
    (replay,) = studies("replay-stopping")
    assert tracking.attach(replay.info.run_id).url in printed
    assert (replay.info.status, replay.data.tags["mlflow.parentRunId"]) == ("FINISHED", run_id)
    assert replay.data.metrics["score_ratio"] == 30 * 3 / (20 * 2)
    assert len(server().get_metric_history(replay.info.run_id, "full_protocol/ema_0.99")) == 2
    assert artifacts(replay.info.run_id) == {"replay.html", "replay.json", "replay.txt"}
    assert "weights sha256" in (tmp_path / "replay.html").read_text(), "the protocol card"


def test_the_score_of_a_file_is_a_run(services: Any, tmp_path: Path) -> None:
    uri = str(tmp_path / "batch.npz")
    np.savez(uri, arr_0=np.random.default_rng(0).integers(0, 255, (70, 8, 8, 1), dtype=np.uint8))
    command = ["score-batch", uri, uri, "--extractor", "digits-classifier", "--metric", "kid", "--out", str(tmp_path)]
    printed = iddpm(*command)
    iddpm(*command)
    (run,) = studies("score-batch", DEFAULT_EXPERIMENT)
    assert tracking.attach(run.info.run_id).url in printed
    assert run.info.status == "FINISHED"
    assert {"distance", "distance_standard_error"} <= run.data.metrics.keys()
    assert run.data.params["extractor"] == "digits-classifier"
    assert artifacts(run.info.run_id) == {"score.html", "score.json"}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["evaluate", "--metric", "sfid"], "gives features, logits; sfid needs spatial"),
        (["evaluate", "--metric", "density_coverage", "--num-samples", "5"], "^5 samples: density_coverage takes 6 at least$"),
        (["replay-stopping", "--num-samples", "1"], "^1 samples: a Frechet distance takes 2 at least$"),
    ],
)
def test_metrics_that_cannot_be_had_are_refused_before_the_reference_is_computed(
    trained: tuple[str, str], tmp_path: Path, command: list[str], words: str
) -> None:
    data = ["--data", str(tmp_path / "nothing")]
    with pytest.raises(UserError, match=words):
        iddpm(command[0], trained[0], *data, *command[1:])


@pytest.mark.parametrize("command", [("ema-sweep", "--decays", "0.99,0.995", "--at", "100"), ("replay-stopping",)])
def test_a_checkpoint_that_cannot_be_read_is_refused_before_the_reference_is_computed(
    services: Any, data_uri: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    uri, own_data = write_run(str(tmp_path / "run"), data_uri, ""), tmp_path / "data"
    shutil.copytree(f"{data_uri}/train", own_data / "train")
    for step in (100, 200):
        scores = {"step": step, "scores": {"ema_0.99": 2.0, "ema_0.995": 1.0}}
        storage.write_json(f"{uri}/evaluations/step={step:08d}.json", scores)
    Path(checkpoint.checkpoint_uri(uri, 100), "ema_0.995.pt").write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match=r"ema_0\.995\.pt"):
        iddpm(command[0], uri, *command[1:], "--data", str(own_data), "--out", str(tmp_path / "out"))
    assert not (own_data / "references").exists()


def test_an_evaluation_takes_the_statistics_that_the_pipeline_of_the_training_computed(
    services: Any, data_uri: str, tmp_path: Path
) -> None:
    uri, own_data = write_run(str(tmp_path / "runs" / "trained"), data_uri, ""), tmp_path / "data"
    shutil.copytree(f"{data_uri}/train", own_data / "train")
    compute_reference(f"{own_data}/train", load_extractor("digits-classifier"), f"{tmp_path}/references")
    iddpm("evaluate", uri, "--data", str(own_data), "--no-likelihood", "--no-memorisation", "--metric", "none", "--num-samples", "5")
    assert storage.exists(f"{uri}/evaluations/manual.json")
    assert not (own_data / "references").exists()


def test_an_evaluation_of_a_model_without_a_run_is_logged_and_one_by_another_protocol_separately(
    trained: tuple[str, str], data_uri: str, tmp_path: Path
) -> None:
    uri, run_id = trained
    bare = write_run(str(tmp_path / "bare"), data_uri, "")
    assert tracking.locate("f" * 32) is None
    iddpm("evaluate", bare, "--no-likelihood", "--metric", "none")
    (own,) = [run for run in studies("evaluation", DEFAULT_EXPERIMENT) if run.info.run_name == "bare: manual"]
    assert own.info.status == "FINISHED"
    assert artifacts(own.info.run_id) == {"manual.html", "manual.json", "manual.png", "manual-score-card.json"}

    for source in storage.list_uris(f"{bare}/evaluations"):
        storage.write_bytes(f"{uri}/evaluations/{source.rpartition('/')[2]}", storage.read_bytes(source))
    log_evaluation(uri, "manual", run_id)
    assert studies("evaluation") == []
    assert "evaluations/manual.html" in artifacts(run_id, "evaluations")
    other = storage.read_json(f"{uri}/evaluations/manual.json")
    other["distance"] *= 2
    storage.write_json(f"{uri}/evaluations/manual.json", other)
    log_evaluation(uri, "manual", run_id)
    (apart,) = studies("evaluation")
    assert apart.data.tags["mlflow.parentRunId"] == run_id
    assert apart.data.metrics["manual/distance"] == other["distance"]
    assert server().get_run(run_id).data.metrics["manual/distance"] == other["distance"] / 2


def test_a_note_that_is_longer_than_mlflow_takes_is_cut_and_its_form_stays(services: Any) -> None:
    study = Study(kind="memorisation", title="a long note", text="x" * 20_000, models={"m": "long"}, protocol={}, points={}, files={})
    log_study(study, [""])
    (run,) = [run for run in studies("memorisation", DEFAULT_EXPERIMENT) if run.info.run_name == "a long note"]
    note = run.data.tags["mlflow.note.content"]
    assert (len(note), note[-5:]) == (MAX_TAG_VAL_LENGTH, "x\n```")


def test_a_study_that_is_interrupted_while_it_is_logged_is_killed_and_can_be_resumed(
    services: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(kind="ema-sweep", title="t", text="t", models={"m": "u"}, protocol={}, points={("a", 1): 1.0}, files={"a.txt": b"a"})
    finish = tracking.TrackedRun.finish

    def interrupted(run: tracking.TrackedRun, status: Any, **options: Any) -> bool:
        if status == "FINISHED":
            raise KeyboardInterrupt
        return finish(run, status, **options)

    def status() -> str:
        (run,) = studies("ema-sweep", DEFAULT_EXPERIMENT)
        return str(run.info.status)

    monkeypatch.setattr(tracking.TrackedRun, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        log_study(study, [""])
    assert status() == "KILLED"
    monkeypatch.undo()
    log_study(study, [""])
    assert status() == "FINISHED"
