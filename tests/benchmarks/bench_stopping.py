"""Early stopping on the digits, replayed: the same pick as full scoring of every checkpoint, at what cost; `make bench-stopping`.

It trains the demo's model and keeps every checkpoint, scores each as training would (200 images of 10 steps), then scores
every decay of each at full protocol (1,000 images of 100 ancestral steps), and compares the picks. Costs are network
evaluations, so that they are the same on any machine. It prints the table and one JSON line, and fails where early
stopping picks another checkpoint that is worse by more than two standard errors, or a score costs more than a fiftieth.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from evaluation.distances.reference_statistics import compute_reference
from evaluation.evaluate.options import EvaluationOptions
from evaluation.features.extractors import load_extractor
from evaluation.monitoring.checkpoint_scorer import CheckpointScorer
from evaluation.studies.stopping_replay import as_study, replay
from training.checkpoints import checkpoint
from training.config.experiment import EvaluationConfig, Experiment, Resources, SamplingConfig
from training.config.presets import preset
from training.console import say
from training.data.loading.loader import Loader
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.published import digits
from training.loop.interfaces import Hooks
from training.loop.trainer import Trainer

MIN_SCORE_RATIO = 50.0
MAX_STANDARD_ERRORS_BEHIND = 2.0
NUM_RESCORED = 3
OVERRIDES = ("evaluation.scoring_num_samples=200", 'evaluation.sampling.spacing="100"')


def train(experiment: Experiment, data_uri: str, run_uri: str) -> None:
    """Trains in this process; every checkpoint stays."""

    def save(step: int, files: Mapping[str, Any]) -> None:
        kept = {name: value for name, value in files.items() if name == checkpoint.EXPERIMENT or name.startswith("ema_")}
        checkpoint.save(run_uri, step, kept)

    loader = Loader(f"{data_uri}/train", seed=experiment.seed, global_batch_size=experiment.optim.global_batch_size)
    hooks = Hooks(save=save, log=lambda step, metrics: say(f"step {step:,}  loss {metrics['loss']:.4f}"))
    Trainer(experiment, Resources(), loader, device=torch.device("cpu"), rank=0, world_size=1, hooks=hooks).train()


def main() -> int:
    """Runs the replay; the exit status is the number of goals that were missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", help="where the run is kept; a second call goes on with it. A temporary one by default")
    parser.add_argument("--num-workers", type=int, default=1, help="Ray tasks that draw samples at once")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="iddpm-replay-") as temporary:
        home = arguments.directory or temporary
        experiment = preset("digits-hybrid-cosine", OVERRIDES)
        data_uri, run_uri = f"{home}/data", f"{home}/run"
        for split in ("train", "test"):
            if not Path(f"{data_uri}/{split}/manifest.json").exists():
                prepare(digits(split), f"{data_uri}/{split}", image_size=8, options=Options(resize="none"))
        reference = compute_reference(f"{data_uri}/train", load_extractor("digits-classifier"), f"{home}/references")
        if experiment.optim.num_steps not in checkpoint.steps(run_uri):
            train(experiment, data_uri, run_uri)
        for step in checkpoint.steps(run_uri):
            CheckpointScorer(evaluation=EvaluationConfig(), reference_uri=reference.uri).score(checkpoint.checkpoint_uri(run_uri, step))
        found = replay(
            run_uri,
            data_uri,
            reference.uri,
            num_rescored=NUM_RESCORED,
            options=EvaluationOptions(num_samples=1000, sampling=SamplingConfig(spacing="100"), num_workers=arguments.num_workers),
        )
    print(as_study(found).text)
    sure = 0.0 if not found.behind_standard_error else found.behind / found.behind_standard_error
    told = {
        "same_checkpoint": float(found.same_checkpoint),
        "score_ratio": found.score_ratio,
        "total_ratio": found.total_ratio,
        "behind": found.behind,
        "behind_standard_errors": sure,
    }
    print(json.dumps({name: float(f"{value:.4g}") for name, value in told.items()}))
    missed = []
    if found.score_ratio < MIN_SCORE_RATIO:
        missed.append(f"score_ratio {found.score_ratio:.3g} < {MIN_SCORE_RATIO:g}")
    if not found.same_checkpoint and sure > MAX_STANDARD_ERRORS_BEHIND:
        missed.append(f"early stopping picks another checkpoint, worse by {sure:.2g} standard errors")
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return len(missed)


if __name__ == "__main__":
    sys.exit(main())
