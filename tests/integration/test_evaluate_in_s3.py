"""Evaluation on real S3 and with Ray workers: the same numbers as in one process."""

import uuid
from pathlib import Path
from typing import Any

import pytest
import requests
import torch

from components.steps.evaluate import evaluate_run, report_run
from components.steps.mlflow_sync import update_mlflow
from components.steps.reference import stored_extractor_weights
from evaluation.distances.reference_statistics import compute_reference
from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.run import evaluate
from evaluation.features.extractors import load_extractor
from evaluation.features.pretrained import NETWORKS
from evaluation.monitoring.checkpoint_scorer import CheckpointScorer, read_history
from evaluation.records import npz
from evaluation.sampling.draw import DrawRequest, draw_images
from evaluation.sampling.trained_model import ModelSpec
from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import EvaluationConfig, SamplingConfig
from training.config.presets import preset
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.published import digits
from training.models.unet import make_model
from training.tracking import client as mlflow_client
from training.tracking import sender
from training.tracking.registry import resolve
from training.tracking.runs import ERROR_TAG, PIPELINE_RUN_TAG, RUN_URI_TAG, TrackedRun, open_run


@pytest.fixture
def run_uri(bucket_uri: str) -> str:
    experiment = preset(
        "digits-hybrid-cosine",
        [
            "diffusion.num_timesteps=40",
            "evaluation.num_samples=120",
            'evaluation.sampling.spacing="6"',
            "evaluation.scoring_num_samples=60",
            "evaluation.scoring_sampling.spacing=ddim5",
            "evaluation.likelihood_steps=8",
            "evaluation.likelihood_num_images=40",
        ],
    )
    torch.manual_seed(0)
    network = make_model(experiment)
    state = {name: value + 0.02 * torch.randn(value.shape) for name, value in network.state_dict().items()}
    files = {"experiment.json": experiment.to_dict(), "model.pt": state, "ema_0.99.pt": state, "ema_0.995.pt": state}
    checkpoint.save(f"{bucket_uri}/runs/one", 100, files)
    for split in ("train", "test"):
        prepare(digits(split), f"{bucket_uri}/data/{split}", image_size=8, options=Options(resize="none"))
    storage.write_json(f"{bucket_uri}/runs/one/experiment.json", experiment.to_dict())
    return f"{bucket_uri}/runs/one"


@pytest.mark.slow
def test_two_ray_workers_find_what_one_process_finds(run_uri: str, bucket_uri: str) -> None:
    reference = compute_reference(f"{bucket_uri}/data/train", load_extractor("digits-classifier"), f"{bucket_uri}/references")
    uri = checkpoint.checkpoint_uri(run_uri, 100)
    alone, together = (
        evaluate(
            uri,
            f"{bucket_uri}/data",
            reference.uri,
            options=EvaluationOptions(batch_size=20, num_workers=num_workers, result_name=f"by-{num_workers}"),
        )
        for num_workers in (1, 2)
    )
    assert together.distance == alone.distance
    assert together.likelihood is not None
    assert alone.likelihood is not None
    each = [npz.read_arrays(likelihood.pop("per_image_uri")) for likelihood in (alone.likelihood, together.likelihood)]
    assert each[0]["bits_per_dim"].tolist() == each[1]["bits_per_dim"].tolist()
    assert together.likelihood == alone.likelihood
    assert together.metrics == alone.metrics
    left = [name for name in storage.list_uris(run_uri) if "work-" in name or "images-" in name]
    assert left == [], "working files go when the result is there"
    assert storage.exists(f"{run_uri}/evaluations/by-2.json")


@pytest.mark.slow
def test_a_set_of_images_in_s3_is_drawn_by_two_workers_as_by_one(run_uri: str, bucket_uri: str, tmp_path: Path) -> None:
    spec = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(run_uri, 100))
    request = DrawRequest(model=spec, num_images=30, seed=1, sampling=SamplingConfig(spacing="4"), batch_size=10)
    drawn = []
    for num_workers in (1, 2):
        npz_uri = f"{bucket_uri}/batch-{num_workers}.npz"
        draw_images(request, f"{bucket_uri}/set-{num_workers}", tmp_path / "grid.png", npz_uri=npz_uri, num_workers=num_workers)
        drawn.append(npz.read_images(npz_uri))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert (tmp_path / "grid.png").stat().st_size > 0


def test_an_extractors_weights_are_found_in_the_bucket(bucket_uri: str) -> None:
    assert stored_extractor_weights(bucket_uri, "vgg16") is None
    storage.write_bytes(f"{bucket_uri}/extractors/{NETWORKS['vgg16'].file.name}", b"not weights")
    found = stored_extractor_weights(bucket_uri, "vgg16")
    assert found == f"{bucket_uri}/extractors/{NETWORKS['vgg16'].file.name}"
    with pytest.raises(UserError, match="sha256"):
        load_extractor("vgg16", weights=found)


def test_scores_are_kept_in_s3_and_read_from_there(run_uri: str, bucket_uri: str) -> None:
    reference = compute_reference(f"{bucket_uri}/data/train", load_extractor("digits-classifier"), f"{bucket_uri}/references")
    score = CheckpointScorer(evaluation=EvaluationConfig(), reference_uri=reference.uri).score(checkpoint.checkpoint_uri(run_uri, 100))
    assert read_history(run_uri) == [score]
    assert storage.exists(score["grid_uri"])
    assert score["scores"]["ema_0.99"] == score["scores"]["ema_0.995"], "equal weights on equal noise score equally"


@pytest.mark.slow
def test_steps_whose_work_is_done_end_well_while_mlflow_is_away_and_the_next_one_sends_everything(
    run_uri: str, bucket_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    reference = compute_reference(f"{bucket_uri}/data/train", load_extractor("digits-classifier"), f"{bucket_uri}/references")
    CheckpointScorer(evaluation=EvaluationConfig(), reference_uri=reference.uri).score(checkpoint.checkpoint_uri(run_uri, 100))
    run = open_run(run_key="one", experiment_name="mlflow-away", run_name="one", tags={}, params={})
    assert run.flush()
    result = {"tracking_run_id": run.run_id, "data_uri": f"{bucket_uri}/data", "best_checkpoint_uri": "", "best_weights": ""}
    storage.write_json(f"{run_uri}/result.json", result)
    storage.write_bytes(f"{run_uri}/metrics.jsonl", b'{"step": 50, "time": 1, "values": {"train/loss": 0.5}}\n')

    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        away.setattr(mlflow_client, "RETRY_SECONDS", 0.0)
        evaluation_uri = evaluate_run(run_uri, f"{bucket_uri}/data", reference.uri, {})
        report_run(run_uri, evaluation_uri, str(tmp_path / "page.html"))
    said = capsys.readouterr().out
    assert f"{run_uri} has everything, and MLflow gets it from the next step" in said
    assert "no link to the MLflow run" in said
    assert len(storage.list_uris(f"{bucket_uri}/mlflow_behind")) == 1

    def refuse(*arguments: Any, **options: Any) -> None:
        raise requests.HTTPError("500 Server Error: no space left", response=requests.Response())

    with monkeypatch.context() as full:  # MLflow answers, but can't keep or list files
        full.setattr(mlflow_client, "RETRY_SECONDS", 0.0)
        full.setattr(sender, "_FLUSH_PAUSE_SECONDS", 0.01)
        for name in ("list_artifacts", "log_artifact", "log_image"):
            full.setattr(MlflowClient, name, refuse)
        assert update_mlflow(run_uri)
    assert MlflowClient().get_run(run.run_id).info.status == "FINISHED"
    assert resolve("digits-hybrid-cosine").run_id == run.run_id
    assert f"MLflow may lack sample grids of {run_uri}, which the next step" in capsys.readouterr().out

    for _ in range(2):  # doing it again changes nothing
        assert update_mlflow(run_uri)
        stored = MlflowClient().get_run(run.run_id)
        assert stored.info.status == "FINISHED"
        distance = storage.read_json(evaluation_uri)["distance"]
        assert run.metric_history("final/distance") == [(100, distance)]
        assert run.metric_history("train/loss") == [(50, 0.5)]
        assert run.image_steps("samples") == {100}
        artifacts = {file.path for folder in ("", "evaluations") for file in MlflowClient().list_artifacts(run.run_id, folder)}
        files = {"evaluations/final.json", "evaluations/final.png", "evaluations/final-score-card.json"}
        assert artifacts == {"images", "evaluations", "report.html"} | files
        assert run.metric_history("final/distance_low")[0][1] < distance < run.metric_history("final/distance_high")[0][1]
        assert resolve("digits-hybrid-cosine").run_id == run.run_id
        champion = MlflowClient().get_model_version_by_alias("digits-hybrid-cosine", "champion")
        assert "| Bits/dim |" in champion.description
    assert storage.list_uris(f"{bucket_uri}/mlflow_behind") == []


@pytest.fixture
def trained(run_uri: str, bucket_uri: str) -> TrackedRun:
    """The run as a training leaves it, finished in MLflow, and statistics at `<bucket>/reference`."""
    reference = compute_reference(f"{bucket_uri}/data/train", load_extractor("digits-classifier"), f"{bucket_uri}/references")
    storage.write_json(f"{bucket_uri}/reference", {"uri": reference.uri})
    CheckpointScorer(evaluation=EvaluationConfig(), reference_uri=reference.uri).score(checkpoint.checkpoint_uri(run_uri, 100))
    name = f"forced-{uuid.uuid4().hex[:8]}"
    tags = {PIPELINE_RUN_TAG: "first", RUN_URI_TAG: run_uri, ERROR_TAG: "evaluate: it had no card"}
    run = open_run(run_key=name, experiment_name=name, run_name=name, tags=tags, params={})
    assert run.finish("FINISHED")
    result = {"tracking_run_id": run.run_id, "data_uri": f"{bucket_uri}/data", "best_checkpoint_uri": "", "best_weights": ""}
    storage.write_json(f"{run_uri}/result.json", result)
    return run


def _evaluate(run_uri: str, bucket_uri: str, pipeline_run_id: str, force_from: str = "") -> dict[str, Any]:
    arguments = (run_uri, f"{bucket_uri}/data", storage.read_json(f"{bucket_uri}/reference")["uri"], {})
    result: dict[str, Any] = storage.read_json(evaluate_run(*arguments, pipeline_run_id, force_from))
    return result


@pytest.mark.slow
def test_a_forced_evaluation_is_the_one_that_mlflow_and_the_registry_show_and_the_earlier_one_is_kept(
    run_uri: str, bucket_uri: str, trained: TrackedRun
) -> None:
    """The earlier numbers are those of a faulty release, which had also chosen a later step."""
    from mlflow import MlflowClient

    true = _evaluate(run_uri, bucket_uri, "first")
    storage.write_json(f"{run_uri}/evaluations/final.json", {**true, "distance": None, "weights": "ema_0.995"})
    assert update_mlflow(run_uri)
    champion = resolve("digits-hybrid-cosine")
    assert (champion.weights, champion.distance) == (true["weights"], true["distance"])
    versions = MlflowClient().search_model_versions("name = 'digits-hybrid-cosine'")
    assert "ema_0.995" not in {version.tags["iddpm.weights"] for version in versions}, "without a finite distance it is not registered"
    faulty = {**true, "distance": 0.001, "step": 200, "created_at": "2026-01-01T00:00:00+00:00"}
    storage.write_json(f"{run_uri}/evaluations/final.json", faulty)
    assert update_mlflow(run_uri)
    storage.write_bytes(f"{run_uri}/samples/images-half/part", b"drawn by the faulty release")
    assert MlflowClient().get_run(trained.run_id).data.metrics["final/distance"] == 0.001
    assert resolve("digits-hybrid-cosine").distance == 0.001

    forced = _evaluate(run_uri, bucket_uri, "second", "evaluate")
    assert (forced["distance"], forced["step"]) == (true["distance"], 100)
    kept = storage.read_json(f"{run_uri}/evaluations/final.before-second.json")
    assert kept["distance"] == 0.001
    assert storage.exists(kept["likelihood"]["per_image_uri"])
    assert kept["likelihood"]["per_image_uri"] != forced["likelihood"]["per_image_uri"]
    assert storage.exists(kept["grid_uri"])
    assert not storage.list_uris(f"{run_uri}/samples/images-half")
    for _ in range(2):  # a later step or the reaper sends it again
        shown = MlflowClient().get_run(trained.run_id).data.metrics
        assert {name: shown[f"final/{name}"] for name in ("distance", "bits_per_dim")} == {
            "distance": true["distance"],
            "bits_per_dim": true["likelihood"]["bits_per_dim"],
        }
        history = MlflowClient().get_metric_history(trained.run_id, "final/distance")
        assert (200, 0.001) in [(point.step, point.value) for point in history], "MLflow keeps the earlier one beside it"
        assert len(history) == 4  # each of the two at 100 and 200
        assert update_mlflow(run_uri)
    assert resolve("digits-hybrid-cosine").distance == true["distance"]

    again = _evaluate(run_uri, bucket_uri, "second", "evaluate")  # KFP tries the step again
    assert again["created_at"] == forced["created_at"]


@pytest.mark.slow
def test_a_run_is_open_in_mlflow_while_a_later_step_works_on_it_and_ends_as_that_step_does(
    run_uri: str, bucket_uri: str, trained: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def state() -> tuple[str, str, str]:
        run = MlflowClient().get_run(trained.run_id)
        return run.info.status, run.data.tags[PIPELINE_RUN_TAG], run.data.tags[ERROR_TAG]

    seen = []

    def fail(*arguments: object, **options: object) -> None:
        seen.append(state())
        raise error

    with monkeypatch.context() as broken:
        broken.setattr("evaluation.selection.final_choice.choose_best", fail)
        for error in (UserError("no card"), SystemExit(143)):
            with pytest.raises(type(error)):
                _evaluate(run_uri, bucket_uri, "second")
            seen.append(state())
    open_now = ("RUNNING", "second", "")
    assert seen == [open_now, ("FAILED", "second", ""), open_now, ("KILLED", "second", "")]
    assert _evaluate(run_uri, bucket_uri, "third")["step"] == 100
    assert state() == ("FINISHED", "third", "")
