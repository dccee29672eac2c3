"""The size of a sweep's Workflow, which Kubernetes and Argo limit to 1 MiB; `workflow_size` models it."""

from __future__ import annotations

import json
import random
import re

import pytest
from recorded_workflows import recorded
from workflow_size import LIMIT, Nodes, as_json, stored_bytes, sweep_nodes

from components.cluster.workflows import LARGEST_SWEEP, require_sweep_fits
from evaluation.ablations.definitions.request import AblationRequest
from pipelines.client.arguments import arguments_of, compiled_pipeline
from training.config.errors import UserError

_RETRIES = 1.1
"""A tenth of the trials may be tried again."""


@pytest.fixture(scope="module")
def sweep() -> tuple[Nodes, Nodes]:
    """The nodes of one trial, and all other nodes."""
    return sweep_nodes()


def test_the_model_of_a_workflow_agrees_with_the_recorded_one(sweep: tuple[Nodes, Nodes]) -> None:
    """Argo began to compress the recorded sweep, of two trials, after 82 nodes: at 1 MiB. The steps' inputs are smaller today."""
    trial, others = sweep
    size = len(as_json([*trial, *trial, *others])) + len(as_json(recorded("workflows", "ablation-of-two-trials-succeeded")["created"]))
    assert 0.5 * LIMIT < size < 1.3 * LIMIT


def test_the_largest_sweep_that_is_accepted_fits_with_retries(sweep: tuple[Nodes, Nodes]) -> None:
    assert LARGEST_SWEEP >= 60
    assert stored_bytes(sweep, int(LARGEST_SWEEP * _RETRIES)) < LIMIT


def test_a_larger_sweep_is_refused_with_the_number_that_fits() -> None:
    largest = AblationRequest(name="objective-schedule", scale="paper", seeds=5).trials()
    assert len(largest) == LARGEST_SWEEP
    require_sweep_fits([trial.label for trial in largest])
    grid = {"diffusion.vlb_weight": [number / 1000 for number in range(1, LARGEST_SWEEP + 2)]}
    words = ["ablation_name=own-grid", f"ablation_grid={json.dumps(grid)}", "experiment_preset=digits-tiny-hybrid-cosine"]
    with pytest.raises(UserError, match=f"has {LARGEST_SWEEP + 1} trials; a run on a cluster takes at most {LARGEST_SWEEP}"):
        arguments_of(compiled_pipeline("ablation"), preset="", overrides=[], words=words, on_cluster=True)


@pytest.mark.parametrize("length", [100, 200, 400, 1000])
def test_a_sweep_that_is_accepted_fits_however_long_its_labels_are(sweep: tuple[Nodes, Nodes], length: int) -> None:
    rng = random.Random(length)
    labels = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789=.-", k=length)) for _ in range(LARGEST_SWEEP)]
    with pytest.raises(UserError, match=r"takes at most [0-9]+ that vary as much as these") as refusal:
        require_sweep_fits(labels)
    largest = int(re.findall("at most ([0-9]+)", str(refusal.value))[0])
    require_sweep_fits(labels[:largest])
    assert stored_bytes(sweep, largest, labels) < LIMIT < stored_bytes(sweep, int(largest * 1.25), labels * 2)
