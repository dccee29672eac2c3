"""Names of the files that evaluation keeps in a run's directory, and the digest that tells checkpoints apart.

<run>/evaluations/step=NNNNNNNN.json  final.json  choice.json ...    <run>/samples/step=NNNNNNNN.png ...
"""

from __future__ import annotations

import hashlib

from training import storage
from training.checkpoints import checkpoint

EVALUATIONS = "evaluations"
SAMPLES = "samples"
CHOICE = "choice.json"
RESULT = "result.json"
"""Written by a finished training step (`components.steps.train`)."""


def run_uri_of(checkpoint_uri: str) -> str:
    """Return the run's directory, which contains `checkpoints/step=NNNNNNNN`."""
    head, _, _ = checkpoint_uri.rstrip("/").rpartition("/")
    return head.rpartition("/")[0]


def score_uri(checkpoint_uri: str) -> str:
    """Return the file of a checkpoint's score during training."""
    return storage.join(run_uri_of(checkpoint_uri), EVALUATIONS, f"step={checkpoint.step_of(checkpoint_uri):08d}.json")


def result_uri(run_uri: str, name: str) -> str:
    """Return the file of the evaluation result of that name."""
    return storage.join(run_uri, EVALUATIONS, f"{name}.json")


def checkpoint_digest(checkpoint_uri: str) -> str:
    """Return a digest that differs between two checkpoints of the same step: a run that is trained again overwrites the first."""
    return hashlib.sha256(storage.read_bytes(storage.join(checkpoint_uri, checkpoint.COMPLETE))).hexdigest()
