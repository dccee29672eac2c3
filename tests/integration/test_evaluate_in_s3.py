"""Evaluation on real S3 and with Ray workers: the same numbers as in one process."""

import pytest
import torch

from evaluation.features import load_extractor
from evaluation.reference import compute_reference
from evaluation.run import EvaluationOptions, evaluate
from evaluation.scoring import read_history, score_checkpoint
from training import checkpoint, storage
from training.data.prepare import Options, prepare
from training.data.sources import digits
from training.models.unet import make_model
from training.presets import preset


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
    checkpoint.save(f"{bucket_uri}/run", 100, files)
    for split in ("train", "test"):
        prepare(digits(split), f"{bucket_uri}/data/{split}", image_size=8, options=Options(resize="none"))
    return f"{bucket_uri}/run"


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
    assert together.likelihood == alone.likelihood
    assert together.metrics == alone.metrics
    left = [name for name in storage.list_uris(run_uri) if "work-" in name or "images-" in name]
    assert left == [], "working files go when the result is there"
    assert storage.exists(f"{run_uri}/evaluations/by-2.json")


def test_scores_are_kept_in_s3_and_read_from_there(run_uri: str, bucket_uri: str) -> None:
    reference = compute_reference(f"{bucket_uri}/data/train", load_extractor("digits-classifier"), f"{bucket_uri}/references")
    score = score_checkpoint(checkpoint.checkpoint_uri(run_uri, 100), reference.uri)
    assert read_history(run_uri) == [score]
    assert storage.exists(score["grid_uri"])
    assert score["scores"]["ema_0.99"] == score["scores"]["ema_0.995"], "equal weights on equal noise score equally"
