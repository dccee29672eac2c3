"""Rank 0's side of a run that goes on, with a real MLflow: what a worker that was killed had not come to is made up for."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from training import storage
from training.config.experiment import Resources
from training.config.presets import preset
from training.distributed.ray_session import ray_session
from training.launch.ray_train import _Control
from training.loop.job import Job
from training.loop.rank_zero_hooks import RankZeroHooks
from training.tracking import runs as tracking

pytestmark = pytest.mark.slow


class Scores:
    """A scorer whose scores are all there."""

    def __init__(self, scores: Mapping[int, float]) -> None:
        self.scores = [{"step": step, "value": value} for step, value in scores.items()]

    def score(self, checkpoint_uri: str) -> Mapping[str, Any]:
        raise AssertionError(f"{checkpoint_uri} is scored already")

    def history(self, run_uri: str) -> Sequence[Mapping[str, Any]]:
        return self.scores

    def stop_reason(self, history: Sequence[Mapping[str, Any]]) -> str | None:
        return None

    def metrics(self, score: Mapping[str, Any]) -> Mapping[str, float]:
        return {"score/distance": score["value"]}

    def image(self, score: Mapping[str, Any]) -> Any:
        return np.full((4, 4, 3), score["step"], np.uint8)

    def keep(self, history: Sequence[Mapping[str, Any]]) -> set[int]:
        return set()


@pytest.fixture
def tracked(services: Any) -> tracking.TrackedRun:
    return tracking.open_run(run_key=uuid.uuid4().hex, experiment_name="beside", run_name="a run", tags={}, params={})


@pytest.fixture
def ray_here() -> Iterator[None]:
    with ray_session("local", num_cpus=2):
        yield


def goes_on(run_uri: str, tracking_run_id: str, scores: Mapping[int, float]) -> None:
    """A process that goes on with the run, and ends at once."""
    job = Job(
        experiment=preset("digits-hybrid-cosine"),
        resources=Resources(),
        data_uri="",
        run_uri=run_uri,
        tracking_run_id=tracking_run_id,
        scorer=Scores(scores),
    )
    control = _Control.options(name=job.control_name, namespace="iddpm").remote()  # type: ignore[attr-defined]
    RankZeroHooks(job, 1).close()
    ray.kill(control)


def told(tracked: tracking.TrackedRun) -> tuple[list[tuple[int, float]], list[str]]:
    """The scores that MLflow has, and its pictures."""
    client = tracking.connect()
    pictures = [str(file.path) for file in client.list_artifacts(tracked.run_id, "images")]
    return tracked.metric_history("score/distance"), sorted(name for name in pictures if "compressed" not in name)


def test_whoever_goes_on_tells_mlflow_the_scores_that_it_may_lack_and_none_twice(
    tracked: tracking.TrackedRun, ray_here: None, tmp_path: Path
) -> None:
    run_uri = storage.join(f"file://{tmp_path}", "run")
    goes_on(run_uri, tracked.run_id, {})
    assert told(tracked) == ([], [])
    goes_on(run_uri, tracked.run_id, {10: 3.0, 20: 2.0})  # as if a worker had been killed before it could tell
    first = told(tracked)
    assert first[0] == [(10, 3.0), (20, 2.0)]
    assert ["+step+20+" in name for name in first[1]] == [True], "the latest picture"
    goes_on(run_uri, tracked.run_id, {10: 3.0, 20: 2.0, 30: 1.0})
    scores, pictures = told(tracked)
    assert scores == [(10, 3.0), (20, 2.0), (30, 1.0)]
    assert len(pictures) == 2
    goes_on(run_uri, tracked.run_id, {10: 3.0, 20: 2.0, 30: 1.0})
    assert told(tracked) == (scores, pictures)
